"""What of a recipe to change so that a stage takes less, and how much each change helps. No torch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from align.errors import AlignError
from align.planning import memory, questions, tracing
from align.planning.target import Target
from align.preflight.check import prepare
from align.recipe.plan import Loaded, StagePlan
from align.run_folder.paths import RunDir

Load = Callable[[Sequence[str]], Loaded]


@dataclass(frozen=True)
class Change:
    """A change of one stage.

    Attributes:
        texts: as given to `--set`.
        peak: bytes that the stage takes with it.
    """

    texts: tuple[str, ...]
    peak: int


def helpful(load: Load, stage: str, target: Target, peak: int, commit: str | None) -> list[Change]:
    """The changes that lower the peak of a stage, the one that costs the least first.

    Args:
        load: reads the recipe with more that is set.
        peak: bytes that it takes as it is.
        commit: of a model of the Hub, where the run was begun with one.
    """
    plan = next(one for one in load(()).stages if one.id == stage)
    found = []
    for texts in _candidates(plan, target):
        try:
            took = _peak(load(texts), stage, target, commit)
        except AlignError:  # the recipe has something else against it
            continue
        if took is not None and took < peak:
            found.append(Change(texts, took))
    return found


def _candidates(plan: StagePlan, target: Target) -> Iterator[tuple[str, ...]]:
    """From that which changes nothing but the time, to that which changes what is learnt."""
    at = f"stages.{plan.id}"
    size, accumulation = plan.global_batch
    if not plan.training.get("gradient_checkpointing", target.gpu):
        yield (f"{at}.training.gradient_checkpointing=true",)
    if size > 1 and size % 2 == 0 and not plan.program.stage.samples:
        yield (
            f"{at}.training.per_device_train_batch_size={size // 2}",
            f"{at}.training.gradient_accumulation_steps={accumulation * 2}",
        )
    if plan.trains_base:
        yield (f"{at}.parameterization={{method: lora}}",)
    if not plan.layer.quantized:
        yield (f"{at}.parameterization={{method: qlora}}",)


def _peak(loaded: Loaded, stage: str, target: Target, commit: str | None) -> int | None:
    prepared = prepare(loaded, weights=False, commit=commit, here=False)
    stages = [one for one in loaded.stages if one.id == stage]
    with tempfile.TemporaryDirectory() as temporary:
        folder = RunDir(Path(temporary))
        lengths = questions.lengths_of(loaded, prepared)
        asked = questions.every(loaded, prepared, stages, folder, target, lengths)
        traced = tracing.trace(folder.root, list(asked.values()))
    if stage not in traced or traced[stage].failed:
        return None
    return memory.of_whole(traced[stage], asked[stage].layers).peak
