"""How the report writes numbers: the same in the terminal, in Markdown and on the page. Plain ASCII."""

import math
from datetime import UTC, datetime

from align.forgetting.table import Cell, Effect, Figure, Interval, NoValue, ProbeEntry

NONE = "n/a"
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)  # in English, whatever the machine's locale


def score(value: float | None, probe: ProbeEntry | None = None) -> str:
    """A score with three decimals; a perplexity, which has no upper end, with two, and `inf` for a diverged one."""
    if value is None or not math.isfinite(value):
        return "inf" if probe and probe.metric == "perplexity" else NONE
    if probe is None or probe.metric != "perplexity":
        return f"{value:.3f}"
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def signed(value: float | None) -> str:
    """A difference with its sign; what rounds to nothing has none."""
    if value is None or not math.isfinite(value):
        return NONE
    text = f"{value:+.3f}"
    return text[1:] if not text.strip("+-0.") else text


def change(effect: Effect | None) -> str:
    """`+0.905` for a difference, `x2.31` for a ratio, nothing where there is neither."""
    if effect is None:
        return ""
    if effect.ratio is not None:
        return f"x{effect.ratio:.2f}"
    return signed(effect.delta) if effect.delta is not None else ""


def interval(effect: Effect) -> str:
    """The 95 % interval of a change, in the unit of the change."""
    if effect.ci95 is None:
        return NONE
    low, high = effect.ci95
    if low is None:
        return NONE
    if effect.ratio is not None:
        return f"[x{low:.2f}, x{'inf' if high is None else f'{high:.2f}'}]"
    return f"[{signed(low)}, {signed(high)}]"


def p_value(value: float | None) -> str:
    """A p-value with three decimals; below that only its bound."""
    if value is None or not math.isfinite(value):
        return NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def figure(value: Figure) -> str:
    """A number, or `undefined: why`."""
    return f"undefined: {value.undefined}" if isinstance(value, NoValue) else score(value)


def estimate(value: Figure, ci95: Interval | None) -> str:
    """A figure and its 95 % interval, where it has one."""
    if ci95 is None or isinstance(value, NoValue):
        return figure(value)
    return f"{figure(value)} {interval(Effect(ci95=ci95))}"


def seconds(value: float | None) -> str:
    """A duration in the two largest units that it has."""
    if value is None or not math.isfinite(value):
        return NONE
    if value < 60:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def memory(value: float | None) -> str:
    """Bytes in the largest binary unit below them."""
    if value is None:
        return NONE
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def plain(value: object) -> str:
    """A logged number in four significant digits; anything else as it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def moment(value: str | None) -> str:
    """A time of run.json, ISO 8601, in words: `28 November 2026, 14:03 UTC`."""
    if value is None:
        return NONE
    time = datetime.fromisoformat(value).astimezone(UTC)
    return f"{time.day} {MONTHS[time.month - 1]} {time:%Y, %H:%M} UTC"


def verdict(cell: Cell | None) -> str:
    """The verdict of a cell, or nothing."""
    return cell.verdict or "" if cell else ""
