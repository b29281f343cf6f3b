"""Numbers as the records hold them."""

from __future__ import annotations

import math


def number(value: float) -> float | None:
    """Six significant digits; None for what JSON cannot hold."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
