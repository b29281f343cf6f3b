"""What a policy is to write itself, before a model is loaded: its prompts and the user's checkers. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from align.data import mixing, truncation
from align.data.checks import Table
from align.data.formats import Example, prompt_of
from align.data.lengths import Lengths
from align.errors import AlignError
from align.recipe import replays
from align.recipe.document import Loc
from align.recipe.plan import StagePlan
from align.run_folder.records import UserFunction
from align.stage import rewrite_keys
from align.written import asking, checker
from align.written.keys import SelfWritten

REPLAY: Final = "replay"
REWRITE: Final = "rewrite"
GIVEN: Final = ("prompt", "completion")  # what a checker of replayed rows may ask for
APART: Final = 0.2  # of the task's rows: as many at most are asked and not trained on

Checkers = dict[tuple[str, str], UserFunction]  # by stage, and what they check


def place(plan: StagePlan) -> Loc:
    """Where the recipe says that the policy of a stage writes what is replayed."""
    return next(at for at, source in replays.places(plan) if source.self is not None)


def writes(plan: StagePlan) -> SelfWritten | None:
    """What the policy of a stage writes to be replayed."""
    return next((source.self for _, source in replays.places(plan) if source.self is not None), None)


def apart(rows: list[Example], wanted: SelfWritten, seed: int) -> tuple[list[Example], Table]:
    """The task's rows without some that are only asked, and those as prompts.

    Raises:
        AlignError: the rows ask nothing.
    """
    if any(row.kind == "text" for row in rows):
        what = "`prompts: task` asks the prompts of the stage's data, but some of its rows are plain text"
        raise AlignError(what, "name a source of prompts, or leave `prompts` out")
    try:
        train, held = mixing.hold_out(rows, max(1, min(wanted.rows, int(APART * len(rows)))), seed)
    except AlignError as error:
        what = f"`prompts: task` cannot set rows of the stage's data apart: {error.what}"
        raise AlignError(what, "name a source of prompts, or leave `prompts` out") from None
    return train, Table([prompt_of(row) for row in held], "", "task")


def checkers(plan: StagePlan, root: Path) -> tuple[Checkers, list[tuple[AlignError, Loc]]]:
    """The user's checkers that a stage names, and what is wrong with the others, each with its place."""
    named: list[tuple[str, str | None, Loc, tuple[str, ...]]] = []
    if (wanted := writes(plan)) is not None:
        named.append((REPLAY, wanted.check, (*place(plan), "self", "check"), GIVEN))
    rewrite = getattr(plan.keys, REWRITE, None)
    if isinstance(rewrite, rewrite_keys.Rewrite):
        named.append((REWRITE, rewrite.checker, ("stages", plan.id, REWRITE, "accept"), rewrite_keys.GIVEN))
    found: Checkers = {}
    faults: list[tuple[AlignError, Loc]] = []
    for purpose, name, at, given in named:
        try:
            if name is not None:
                otherwise = f"; a reward is `accept: {{reward: {name}}}`" if purpose == REWRITE else ""
                found[plan.id, purpose] = checker.find(name, root, given, otherwise)
        except AlignError as error:
            faults.append((error, at))
    return found, faults


def against_model(asked: Table | None, wanted: SelfWritten, lengths: Lengths, context: int | None) -> None:
    """Whether the model can write what is wanted.

    Raises:
        AlignError: its template does not let it write questions, or prompts and answers exceed its context.
    """
    if asked is None and lengths.tokenizer.template is not None:
        asking.around_question(lengths.tokenizer)
    if context is None:
        return
    if wanted.max_new_tokens >= context:
        what = f"answers of {wanted.max_new_tokens:,} tokens exceed the model's context of {context:,}"
        raise AlignError(what, "lower `max_new_tokens`")
    if asked is not None:
        long = truncation.longest(asked.examples, lengths, context - wanted.max_new_tokens)
        if long is not None:
            what = f"a prompt of {long[1]:,} tokens and an answer of {wanted.max_new_tokens:,} (max_new_tokens) exceed "
            what += f"the model's context of {context:,}"
            raise AlignError(what, "lower `max_new_tokens`, or shorten the rows", place=long[0].place)
