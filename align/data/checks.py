"""Every row of a stage's data, read, understood and checked before any model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Final

from align.data import hints, notes
from align.data.each_turn import each_turn
from align.data.encode import Turns
from align.data.faults import raise_all
from align.data.fields import LABELS
from align.data.formats import Example, Kind, normalise, prompt_of, with_columns
from align.data.lengths import Count, Lengths, no_answer_left
from align.data.rows import Row
from align.data.sources import DataSource, scan
from align.errors import AlignError

__all__ = ["Lengths", "Table", "fitting", "load", "within_context"]

TOO_LONG_SHOWN: Final = 5

LONGEST: Final = 256
"""Rows with most bytes whose tokens are counted to see whether a model's context holds them all."""

_NEEDS: Final[dict[Kind, str]] = {
    "chat": "messages",
    "prompt_completion": "prompt + completion",
    "preference": "prompt + chosen + rejected",
    "unpaired": "prompt + completion + label",
    "text": "text",
    "prompt": "prompts",
}
_IS: Final[dict[Kind, str]] = {
    "chat": "a chat",
    "prompt_completion": "a prompt with a completion",
    "preference": "a preference pair",
    "unpaired": "an answer with a label",
    "text": "plain text",
    "prompt": "a prompt without an answer",
}


@dataclass(frozen=True)
class Table:
    """What a stage trains on; `sha256` is that of all examples in this order, wherever they came from."""

    examples: list[Example]
    sha256: str
    name: str
    warnings: list[str] = field(default_factory=list)


def load(
    sources: list[DataSource],
    *,
    root: Path,
    accepts: frozenset[Kind],
    stage: str,
    columns: bool = False,
    whose: str = "",
    max_faults: int = 20,
) -> Table:
    """All rows of `sources`, one source after the other; raises one AlignError for all faults together.

    Args:
        root: the recipe's folder, where relative paths are looked for after the current folder.
        accepts: the kinds of rows that the stage can train on.
        stage: the stage's name, for messages.
        columns: prompts keep the other columns of their rows.
        whose: what the rows are for, in messages, where that is not the stage itself: "the replay of stage 'dpo'".
        max_faults: how many faults are told one by one before the rest is only counted.
    """
    if not sources:
        raise AlignError(f"stage '{stage}' has no data", "name it with the key data")
    faults: list[AlignError] = []
    read: list[Example] = []
    for found in _examples(sources, root, accepts, whose or f"stage '{stage}'", columns):
        if isinstance(found, Example):
            read.append(found)
        else:
            faults.append(found)
    if "prompt" in accepts:
        faults += _two_kinds_of_prompts(read)
    examples = [example for example in read if example.kind in accepts]
    if read and not examples and not faults:
        what = f"stage '{stage}' trains on answers, but every row is labelled undesirable"
        faults.append(AlignError(what, "give other data", place=read[0].place))
    raise_all(faults, max_faults, "errors in the data")
    lines = [example.canonical().encode() for example in examples]
    copies = len(lines) - len(set(lines))
    copied = copies and "prompt" not in accepts  # what is asked may well be asked often
    warnings = [f"{copies:,} of {len(lines):,} rows are duplicates"] if copied else []
    if len(examples) < len(read):
        dropped = f"{len(read) - len(examples):,} of {len(read):,} rows are dropped"
        warnings.append(f"{dropped}: they are labelled undesirable")
    warnings += notes.unused(examples) + notes.preferences(examples)
    name = " + ".join(source.source for source in sources)
    return Table(examples, sha256(b"\n".join(lines)).hexdigest(), name, warnings)


def _two_kinds_of_prompts(examples: Sequence[Example]) -> list[AlignError]:
    """A trainer asks with texts or with conversations: the first row that is not as those before it."""
    for example in examples:
        prompt, first = example.value["prompt"], examples[0].value["prompt"]
        if isinstance(prompt, str) != isinstance(first, str):
            kinds = ("plain text", "a conversation") if isinstance(prompt, str) else ("a conversation", "plain text")
            what = f"the prompt is {kinds[0]}, but that of the first row is {kinds[1]}"
            return [AlignError(what, "use one form for all prompts", place=example.place)]
    return []


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


def _examples(
    sources: list[DataSource], root: Path, accepts: frozenset[Kind], whose: str, columns: bool
) -> Iterator[Example | AlignError]:
    for source in sources:
        for found in scan(source, root=root):
            try:
                if isinstance(found, Row):
                    checked = _checked(found, source.format, accepts, whose)
                    yield with_columns(checked, found) if columns else checked
                else:
                    yield found
            except AlignError as error:
                yield error


def _checked(row: Row, format: str, accepts: frozenset[Kind], whose: str) -> Example:
    example = normalise(row, format)
    if "prompt" in accepts:
        example = prompt_of(example)
        if example.value.get("tools"):
            what = f"the row has tools, but {whose} samples answers without tools"
            raise AlignError(what, "remove such rows", place=row.place)
    if example.kind == "unpaired" and accepts & {"chat", "prompt_completion"} and "unpaired" not in accepts:
        # An answer that is not desirable is dropped and counted; the others are as they are without their label.
        return example if not example.value["label"] else replace(normalise(row, labelled=False), unused=example.unused)
    if example.kind not in accepts:
        needs = " or ".join(text for kind, text in _NEEDS.items() if kind in accepts)
        what = f"{whose} needs {needs}, but the row is {_IS[example.kind]}"
        remedy = "use other data, or set `format` and `columns`"
        if example.kind == "prompt":
            remedy += hints.columns(row.value)
        label = next((row.value[name] for name in LABELS if row.value.get(name) is not None), None)
        if "unpaired" in accepts and label is not None:
            what, remedy = (
                f"the label {label!r} is neither true nor false",
                "write true for a desirable answer, false for an undesirable one",
            )
        raise AlignError(what, remedy, place=row.place)
    if example.kind == "preference" and notes.said(example.value["chosen"]) == notes.said(example.value["rejected"]):
        what = "'chosen' and 'rejected' are identical, so the pair expresses no preference"
        raise AlignError(what, "remove the row, or correct one of the two", place=row.place)
    return example
