"""What the report says of how far each stage's policy is from the base: KL on the task's prompts, and the weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from align.forgetting.distances import Drift, KlEstimate, Moved, TaskKl
from align.forgetting.table import ALL, Cell, Forgetting
from align.report import numbers

LAYERS_SHOWN: Final = 12
BAR_WIDTH: Final = 190
"""Pixels of the bar of the layer that moved most."""

KL_HOW: Final = (
    "KL(base || policy) over the whole vocabulary, in nats per answer token, along answers that the base itself "
    "sampled and along those of the data. It needs no old data. The base is the one that the stage loads, quantised if "
    "the stage quantises it."
)
DRIFT_HOW: Final = (
    "The Frobenius norm of all that was added to a layer's weights since the base, over that of the base's weights."
)


@dataclass(frozen=True)
class KlLine:
    """One stage; `drop` is the change of the mean of the skills."""

    stage: str
    own: str
    own_interval: str
    data: str
    data_interval: str
    drop: str
    prompts: str
    verdict: str


@dataclass(frozen=True)
class MovedLine:
    """A layer or a module, and how long its bar is."""

    name: str
    moved: str
    bar: float


@dataclass(frozen=True)
class DriftTable:
    """The layers of one stage, those first that moved most; `more` are not shown."""

    stage: str
    whole: str
    layers: tuple[MovedLine, ...]
    more: int
    modules: str
    note: str


@dataclass(frozen=True)
class Distances:
    """The section; `limit` is the recipe's `max_kl` as text."""

    kl: tuple[KlLine, ...]
    limit: str
    drifts: tuple[DriftTable, ...]
    kl_how: str = KL_HOW
    drift_how: str = DRIFT_HOW


def distances(forgetting: Forgetting) -> Distances:
    """What was measured; nothing for a run of an older align."""
    shown = [stage for stage in forgetting.stages if stage in forgetting.matrix]
    limit = forgetting.thresholds.get("max_kl")
    return Distances(
        kl=tuple(_kl_line(s, forgetting.task_kl[s], forgetting.mean) for s in shown if s in forgetting.task_kl),
        limit=f"{limit:g}" if isinstance(limit, int | float) else "",
        drifts=tuple(_drift_table(stage, forgetting.drift[stage]) for stage in shown if stage in forgetting.drift),
    )


def nats(found: KlEstimate | None) -> str:
    """A KL with three decimals; `n/a` where there is none."""
    return numbers.score(found.kl) if found else numbers.NONE


def in_a_line(forgetting: Forgetting) -> str:
    """The KL after each stage for a terminal; nothing where none was measured."""
    known = {stage: kl.judged for stage, kl in forgetting.task_kl.items() if stage in forgetting.matrix}
    told = [f"{stage} {nats(found)}" for stage, found in known.items() if found and found.kl is not None]
    return f"KL to the base on prompts of the task, nats per token: {', '.join(told)}" if told else ""


def _kl_line(stage: str, found: TaskKl, means: Mapping[str, Mapping[str, Cell]]) -> KlLine:
    cell = means.get(stage, {}).get(ALL)
    return KlLine(
        stage=stage,
        own=nats(found.own_answers),
        own_interval=_interval(found.own_answers),
        data=nats(found.data_answers),
        data_interval=_interval(found.data_answers),
        drop=numbers.change(cell) if cell else "",
        prompts=found.prompts or found.undefined or "",
        verdict=found.verdict or "",
    )


def _interval(found: KlEstimate | None) -> str:
    if found is None or found.ci95 is None:
        return numbers.NONE
    low, high = found.ci95
    return f"[{numbers.score(low)}, {'inf' if high is None else numbers.score(high)}]"


def _drift_table(stage: str, found: Drift) -> DriftTable:
    most = sorted(found.layers, key=lambda layer: -(layer.relative or 0.0))
    still = sum(not layer.update for layer in most)
    most = [layer for layer in most if layer.update]
    longest = (most[0].relative or 1.0) if most else 1.0
    notes = [found.note, found.undefined or ""]
    return DriftTable(
        stage=stage,
        whole=percent(found.all) if found.all else numbers.NONE,
        layers=tuple(
            MovedLine(layer.name, percent(layer), round(BAR_WIDTH * (layer.relative or 0.0) / longest, 1))
            for layer in most[:LAYERS_SHOWN]
        ),
        more=len(most[LAYERS_SHOWN:]) + still,
        modules=", ".join(f"{module.name} {percent(module)}" for module in found.modules[:3]),
        note="; ".join(note for note in notes if note),
    )


def percent(found: Moved) -> str:
    """How far weights moved, in three significant digits."""
    if found.relative is None:
        return numbers.NONE
    return f"{100 * found.relative:.3g} %"
