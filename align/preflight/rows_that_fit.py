"""The rows of a stage as far as the model can learn from them: what a chat template writes, within `max_length`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from align.data import mixing, truncation
from align.data.checks import Table
from align.data.each_turn import each_turn
from align.data.encode import Turns
from align.data.formats import Example
from align.data.lengths import Lengths
from align.errors import AlignError, FaultList
from align.penalties.keys import LONGEST
from align.recipe import training_arguments
from align.recipe.plan import StagePlan


@dataclass(frozen=True)
class Replayed:
    """The rows of one source of a replay.

    Attributes:
        stage: that trained on them, where they are those of a stage.
        written: whether a policy writes them itself; then there are none yet.
    """

    name: str
    weight: float
    examples: list[Example]
    stage: str | None = None
    written: bool = False


@dataclass(frozen=True)
class StageRows:
    """The checked rows of one stage, not written yet."""

    train: list[Example]
    evaluation: list[Example]
    replay: tuple[Replayed, ...] = ()
    fisher: list[Example] = field(default_factory=list)  # what `ewc` is measured on
    asked: Table | None = None  # prompts of the rows that a policy writes

    @property
    def trained(self) -> list[Example]:
        """Every row that the model learns, replayed ones too."""
        return [*self.train, *self.replayed]

    @property
    def replayed(self) -> list[Example]:
        """The rows of all sources of its replay, one after the other."""
        return [example for source in self.replay for example in source.examples]

    @property
    def all(self) -> list[Example]:
        """Every row that the model will see."""
        asked = self.asked.examples if self.asked else []
        return [*self.trained, *self.evaluation, *self.fisher, *asked]


@dataclass
class Fitting:
    """What was found of a stage's rows.

    Attributes:
        warnings: what must be heard before the stage spends its hours.
    """

    rows: StageRows
    faults: list[AlignError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def fitting(plan: StagePlan, rows: StageRows, lengths: Lengths | None) -> Fitting:
    """The rows of which the chat template and `max_length` leave something to learn; with `turns: each` a row for every
    turn.

    Args:
        lengths: None where the model has no tokenizer.json.
    """
    if getattr(plan.keys, "turns", "all") == "each":
        split = tuple(replace(source, examples=each_turn(source.examples)) for source in rows.replay)
        rows = replace(rows, train=each_turn(rows.train), evaluation=each_turn(rows.evaluation), replay=split)
    found = Fitting(rows)
    replay = tuple(
        replace(source, examples=_those(found, plan, source.examples, lengths, "replayed rows"))
        for source in rows.replay
    )
    train = _those(found, plan, rows.train, lengths, "rows")
    held = _those(found, plan, rows.evaluation, lengths, "rows of eval_data")
    fisher = _those(found, plan, rows.fisher, lengths, "rows of ewc.data")
    found.rows = replace(rows, train=train, evaluation=held, replay=replay, fisher=fisher)
    return found


def _those(
    found: Fitting, plan: StagePlan, examples: list[Example], lengths: Lengths | None, called: str
) -> list[Example]:
    """The examples that fit; what is wrong or worth a word goes into `found`."""
    mode, drop = plan.training.get("truncation_mode", "keep_start"), plan.keys.too_long == "drop"
    if plan.program.stage.gives == "reward":
        mode = "whole"  # what is scored stands at the end of an answer
    limit = None if _packed_whole(plan) else max_length(plan)
    turns: Turns = "all" if getattr(plan.keys, "turns", "all") == "all" else "last"
    faults, kept = FaultList(), examples
    with faults.collect():
        kept, notes = truncation.fitting(examples, lengths, limit, mode, drop=drop, turns=turns)
        found.notes += notes
    found.faults += faults.found
    count, gone = len(examples), len(examples) - len(kept)
    if 2 * gone > count:
        text = f"{len(kept):,} of {count:,} {called} remain: {gone:,} ({gone / count:.0%}) were dropped"
        remedy = f"; raise `training.max_length` ({limit:,}), or shorten the rows" if limit and drop else ""
        found.warnings.append(text + remedy)
    return kept


def whole(rows: StageRows, lengths: Lengths, context: int) -> Iterator[AlignError]:
    """A fault for the old rows of a stage that samples answers, which cuts none, where the model has no room for one.

    Args:
        context: the model's positions.
    """
    fisher = rows.fisher if context < LONGEST else []  # of which no more is read
    for called, old in (("replayed row", rows.replayed), ("row of `ewc.data`", fisher)):
        long = truncation.longest(old, lengths, context)
        if long is not None:
            what = f"a {called} has {long[1]:,} tokens, more than the model's context of {context:,}"
            yield AlignError(what, "shorten it, or remove it", place=long[0].place)


def of_an_epoch(plan: StagePlan, rows: StageRows) -> int:
    """How many rows an epoch has, those that are mixed in included; of a pair that KTO takes apart, each answer."""
    answers = 2 if "unpaired" in plan.program.stage.rows else 1
    count = sum(answers if example.kind == "preference" else 1 for example in rows.train)
    if plan.replay and plan.mixes and "prompt" not in plan.program.stage.rows:
        count += mixing.replay_rows(count, plan.replay.ratio)
    return count


def max_length(plan: StagePlan) -> int | None:
    """The tokens of a row that a stage keeps: the recipe's, else the trainer's own default."""
    config = plan.program.stage.arguments
    argument = training_arguments.known(config).get("max_length") if config else None
    limit: Any = plan.training.get("max_length", argument.default if argument else None)
    return limit if isinstance(limit, int) else None


def answer_length(plan: StagePlan) -> int:
    """The tokens that a stage samples after each row; 0 for one that samples none."""
    if not plan.program.stage.samples or plan.program.stage.arguments is None:
        return 0
    argument = training_arguments.known(plan.program.stage.arguments).get("max_completion_length")
    limit: Any = plan.training.get("max_completion_length", argument.default if argument else 0)
    return limit if isinstance(limit, int) else 0


def _packed_whole(plan: StagePlan) -> bool:
    """Whether rows are packed so that none is cut: one that is longer than `max_length` goes on in the next pack."""
    return bool(plan.training.get("packing")) and plan.training.get("packing_strategy") in ("wrapped", "bfd_split")
