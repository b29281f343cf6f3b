"""Where numbers stand beside an axis, and how they are written there."""

import math
from collections.abc import Sequence
from typing import Final

LOG_TICKS: Final = 4
"""Numbers beside a logarithmic axis."""


def linear(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them; with `whole` no others than whole ones."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [float(round(low))] if whole else [low]
    rough = span / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    if whole:
        step = max(1.0, float(math.ceil(step)))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def logarithmic(low: float, high: float) -> list[float]:
    """At most `LOG_TICKS` round numbers between two, or else both of them in two digits."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [step * 10.0**k for k in decades for step in (1, 2, 5)]
    coarse = [10.0**k for k in decades]
    inside = [[tick for tick in ticks if low <= tick <= high] for ticks in (fine, coarse)]
    if len(inside[0]) < 2:
        return sorted({float(f"{value:.2g}") for value in (low, high)})
    if len(inside[0]) <= LOG_TICKS or len(inside[1]) < 2:
        return inside[0]
    return inside[1][:: -(-len(inside[1]) // LOG_TICKS)]


def texts(ticks: Sequence[float]) -> list[str]:
    """The numbers with as many decimals as tell them apart; very small ones with a power of ten."""
    largest = max((abs(tick) for tick in ticks), default=0.0)
    if 0 < largest < 0.001 or largest >= 1e7:
        return [_power(tick) for tick in ticks]
    for digits in range(5):
        rounded = [f"{tick:,.{digits}f}" for tick in ticks]
        if all(abs(float(f"{tick:.{digits}f}") - tick) <= 1e-6 * max(largest, 1e-9) for tick in ticks):
            return [_minus(text) for text in rounded]
    return [_minus(f"{tick:g}") for tick in ticks]


def _power(value: float) -> str:
    """`2.5e-5`, and `2e-5` without a decimal that says nothing."""
    digits, _, power = f"{value:.2e}".partition("e")
    return _minus(f"{digits.rstrip('0').rstrip('.')}e{int(power)}") if value else "0"


def _minus(text: str) -> str:
    return "0" if not text.strip("-0.") else text.replace("-", "−")
