"""The matrix as it stands in forgetting.json: capability by stage."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from align.forgetting.measurements import Split

BASE = "base"
ALL = "all"  # of the groups of skills

Number = float | None
Interval = list[Number]


class ProbeEntry(TypedDict):
    """One probe; `replayed` is true where any stage replayed it, null where that is not known; `n` counts items;
    `limit` is what its verdicts are held against, a drop or a perplexity ratio, null where it has none."""

    metric: str
    higher_is_better: bool
    kind: str
    replayed: bool | None
    n: int
    limit: Number


class Difference(TypedDict):
    """A change. `ci95` is the interval of `ratio` where there is one (perplexity), else of `delta`, after - before."""

    delta: Number
    ratio: NotRequired[Number]
    ci95: Interval
    p_value: Number


class Cell(TypedDict):
    """One probe after one stage; the base has `score` and `n` only, everything else is against the base.

    `verdict` is null where no limit is set. `lost` and `gained` count items, null for perplexity. `items_to_decide` is
    null unless the verdict is UNCLEAR and a number of items would settle it.
    """

    score: Number
    n: int
    delta: NotRequired[Number]
    ratio: NotRequired[Number]
    ci95: NotRequired[Interval]
    p_value: NotRequired[Number]
    verdict: NotRequired[str | None]
    lost: NotRequired[int | None]
    gained: NotRequired[int | None]
    items_to_decide: NotRequired[int | None]
    since_parent: NotRequired[Difference]


class MeanCell(TypedDict):
    """The unweighted mean over a group of skills; `n` counts the items of all of them, `probes` the skills. Only that
    of all skills has a limit, and so a verdict."""

    score: Number
    probes: int
    n: int
    delta: NotRequired[Number]
    ci95: NotRequired[Interval]
    p_value: NotRequired[Number]
    verdict: NotRequired[str | None]


class NoValue(TypedDict):
    undefined: str


class Forgetting(TypedDict):
    """`forgetting.json`. `left_out` names probes of the base that have no items in this split."""

    format: int
    split: Split
    stages: list[str]
    parent: dict[str, str]
    no_row: dict[str, str]
    probes: dict[str, ProbeEntry]
    left_out: dict[str, str]
    matrix: dict[str, dict[str, Cell]]
    mean: dict[str, dict[str, MeanCell]]
    backward_transfer: dict[str, Number | NoValue]
    average_forgetting: dict[str, Number | NoValue]
    thresholds: dict[str, float | dict[str, float] | str | None]
    advice: list[str]
