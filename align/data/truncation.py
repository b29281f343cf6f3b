"""What `max_length`, the chat template and the model's context leave of rows, before any model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from align.data.each_turn import each_turn
from align.data.encode import Turns
from align.data.faults import raise_all
from align.data.formats import Example
from align.data.lengths import Count, Lengths, no_answer_left
from align.errors import AlignError

TOO_LONG_SHOWN: Final = 5

LONGEST: Final = 256
"""Rows with most bytes whose tokens are counted to see whether a model's context holds them all."""


def fitting(
    examples: list[Example],
    lengths: Lengths | None,
    max_length: int | None,
    truncation_mode: str = "keep_start",
    *,
    drop: bool = False,
    turns: Turns = "all",
) -> tuple[list[Example], list[str]]:
    """The rows of which truncation and the chat template leave something to learn, and warnings about all that is lost.

    Args:
        lengths: None where the model has no tokenizer.json; then nothing is checked and the warning says so.
        max_length: tokens of prompt and answer that are kept; None keeps all.
        truncation_mode: `keep_start`, `keep_end`, or `whole` for rows of which nothing may be cut.
        drop: leave rows that are too long out, with a warning; otherwise they are refused.
        turns: which of the assistant's turns are learnt.

    Raises:
        AlignError, Faults: rows without an answer left, or rows that the chat template refuses.
    """
    if lengths is None:
        return examples, ["the model has no tokenizer.json, so row lengths were not checked"]
    lengths.check_template(examples)
    warnings = _left_out(examples, lengths, turns)
    if max_length is not None:
        examples, more = _short_enough(examples, lengths, max_length, truncation_mode, drop, turns)
        warnings += more
    examples, more = _telling_apart(examples, lengths, None if truncation_mode == "whole" else max_length)
    return examples, warnings + more


def _short_enough(
    examples: list[Example], lengths: Lengths, max_length: int, truncation_mode: str, drop: bool, turns: Turns
) -> tuple[list[Example], list[str]]:
    """The rows that have something to learn among the tokens that are kept."""
    long = [i for i, example in enumerate(examples) if not lengths.surely_fits(example, max_length)]
    faults: dict[int, AlignError] = {}
    cut = 0
    for i, count in zip(long, lengths.counts([examples[i] for i in long], turns), strict=True):
        cut += count.total > max_length
        if no_answer_left(examples[i], count, max_length, truncation_mode):
            faults[i] = _too_long(examples[i], count, max_length, truncation_mode)
    if not drop:
        raise_all(list(faults.values()), TOO_LONG_SHOWN, "rows that are too long")
    kept = [example for i, example in enumerate(examples) if i not in faults]
    if examples and not kept:
        raise AlignError(f"all {len(examples):,} rows are too long for max_length {max_length:,}", "raise it")
    return kept, _length_warnings(examples, cut - len(faults), len(faults), max_length, truncation_mode)


def _left_out(examples: Sequence[Example], lengths: Lengths, turns: Turns) -> list[str]:
    """What the chat template does not write of the rows, with how many they are."""
    found = []
    for what, (count, example) in lengths.left_out(examples, turns).items():
        text = f"the chat template drops the {what} of {count:,} of {len(examples):,} rows (first: {example.place})"
        if what == "reasoning" and turns == "all" and example.kind == "chat" and _written_each(example, lengths):
            text += "; `turns: each` includes that of every turn"
        found.append(text)
    return found


def _written_each(example: Example, lengths: Lengths) -> bool:
    """Whether the thoughts of every turn are written where it is the last one."""
    try:
        return "reasoning" not in lengths.left_out(each_turn([example]), "last")
    except AlignError:  # the template refuses a conversation that ends there
        return False


def _telling_apart(
    examples: list[Example], lengths: Lengths, max_length: int | None
) -> tuple[list[Example], list[str]]:
    """The rows without pairs whose two sides are the same to the model."""
    same = {
        i for i, one in enumerate(examples) if one.kind == "preference" and lengths.prefers_nothing(one, max_length)
    }
    if not same:
        return examples, []
    first = examples[min(same)].place
    what = "have two identical sides after templating and truncation"
    if len(same) == len(examples):
        remedy = "choose a chat_template that keeps the difference, raise max_length, or fix the data"
        raise AlignError(f"all {len(examples):,} pairs {what}", remedy, place=first)
    kept = [example for i, example in enumerate(examples) if i not in same]
    return kept, [f"{len(same):,} of {len(examples):,} pairs are dropped: they {what} (first: {first})"]


def within_context(
    examples: list[Example], lengths: Lengths, max_length: int | None, context: int, answer: int = 0
) -> None:
    """Refuse rows that have more tokens than the model has positions.

    Looks at the rows with most bytes, and at all only where one of those is too long: tokenising every row of every
    recipe for this would double the time of a check.

    Args:
        max_length: tokens of a row that are kept; None keeps all.
        context: the model's positions.
        answer: tokens that the stage samples after each row.

    Raises:
        AlignError: with the number of such rows, and the first one's place.
    """
    if answer:
        _room_for_answers(examples, lengths, context, answer)
        return
    if max_length is not None and max_length <= context:
        return
    long = [example for example in examples if not lengths.surely_fits(example, context)]
    longest = sorted(long, key=_bytes, reverse=True)[:LONGEST]
    if all(count.total <= context for count in lengths.counts(longest)):
        return
    beyond = [row for row, count in zip(long, lengths.counts(long), strict=True) if count.total > context]
    if beyond:
        rows = "1 row has" if len(beyond) == 1 else f"{len(beyond):,} of {len(examples):,} rows have"
        what = f"{rows} more tokens than the model's context of {context:,}"
        raise AlignError(what, f"write `max_length: {context}` under `training:`", place=beyond[0].place)


def _room_for_answers(examples: list[Example], lengths: Lengths, context: int, answer: int) -> None:
    room = max(context - answer, 0)
    long = [example for example in examples if not lengths.surely_fits(example, room)]
    beyond = [(row, count.total) for row, count in zip(long, lengths.counts(long), strict=True) if count.total > room]
    if beyond:
        row, tokens = max(beyond, key=lambda found: found[1])
        what = f"a prompt of {tokens:,} tokens and an answer of {answer:,} (max_completion_length) exceed the "
        what += f"model's context of {context:,}"
        others = len(beyond) - 1
        more = f"; {others:,} more row{'s are' if others > 1 else ' is'} affected" if others else ""
        raise AlignError(what + more, "lower `training.max_completion_length`, or shorten the rows", place=row.place)


def longest(examples: list[Example], lengths: Lengths, room: int) -> tuple[Example, int] | None:
    """The row with most tokens, where it has more than `room`, and how many."""
    long = [example for example in examples if not lengths.surely_fits(example, max(room, 0))]
    beyond = [(row, count.total) for row, count in zip(long, lengths.counts(long), strict=True) if count.total > room]
    return max(beyond, key=lambda found: found[1], default=None)


def _bytes(example: Example) -> int:
    """The size of what a row says, without its template."""
    return len(example.canonical())


def _too_long(example: Example, count: Count, max_length: int, truncation_mode: str) -> AlignError:
    tokens = count.prompt
    what = f"max_length {max_length:,} leaves nothing of the answer: the prompt has {tokens:,} tokens"
    if truncation_mode == "whole":
        tokens = count.total - 1
        what = f"the row has {count.total:,} tokens and must not be truncated, but max_length is {max_length:,}"
    remedy = f"raise max_length above {tokens:,}, shorten the row, or write `too_long: drop` in the stage"
    return AlignError(what, remedy, place=example.place)


def _length_warnings(
    examples: Sequence[Example], cut: int, dropped: int, max_length: int, truncation_mode: str
) -> list[str]:
    of = f"of {len(examples):,}"
    why = "they have more tokens than" if truncation_mode == "whole" else "no answer is left by"
    warnings = [f"{dropped:,} {of} rows are dropped: {why} max_length {max_length:,}"] if dropped else []
    if cut and truncation_mode == "keep_end":
        warnings.append(f"{cut:,} {of} rows lose their beginning to max_length {max_length:,}")
    elif cut:
        noun = "rows" if any(example.kind == "text" for example in examples) else "answers"
        warnings.append(f"{cut:,} {of} {noun} are cut short by max_length {max_length:,}")
    return warnings
