"""Every row of a stage's data, read, understood and checked before any model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Final

from align.data import hints, notes
from align.data.faults import raise_all
from align.data.fields import LABELS
from align.data.formats import Example, Kind, normalise, prompt_of, with_columns
from align.data.rows import Row
from align.data.sources import DataSource, scan
from align.errors import AlignError

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
    name = " + ".join(source.source for source in sources)
    return _table(examples, name, undesirable=len(read) - len(examples), asked="prompt" in accepts)


def _table(examples: list[Example], name: str, *, undesirable: int, asked: bool) -> Table:
    """Checked examples with their hash, and what is worth a warning about them.

    Args:
        undesirable: how many rows were left out for their label.
        asked: they are prompts; what is asked may well be asked often.
    """
    lines = [example.canonical().encode() for example in examples]
    copies = len(lines) - len(set(lines))
    warnings = [f"{copies:,} of {len(lines):,} rows are duplicates"] if copies and not asked else []
    if undesirable:
        dropped = f"{undesirable:,} of {len(examples) + undesirable:,} rows are dropped"
        warnings.append(f"{dropped}: they are labelled undesirable")
    warnings += notes.unused(examples) + notes.preferences(examples)
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
