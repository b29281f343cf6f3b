"""Every row of a stage's data, read, understood and checked before any model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Final

from align.data import hints, notes, weighing
from align.data.faults import raise_all
from align.data.fields import LABELS
from align.data.formats import Example, Kind, normalise, prompt_of, with_columns
from align.data.rows import Row, Unreadable
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
    """What a stage trains on; `sha256` is that of all examples in this order, wherever they came from.

    Attributes:
        skipped: the faults of the rows that `on_bad_row: skip` left out.
    """

    examples: list[Example]
    sha256: str
    name: str
    warnings: list[str] = field(default_factory=list)
    skipped: list[AlignError] = field(default_factory=list)


def load(
    sources: list[DataSource],
    *,
    root: Path,
    accepts: frozenset[Kind],
    stage: str,
    columns: bool = False,
    whose: str = "",
    seed: int = 0,
    max_faults: int = 20,
) -> Table:
    """All rows of `sources`, one source after the other; raises one AlignError for all faults together.

    Args:
        root: the recipe's folder, where relative paths are looked for after the current folder.
        accepts: the kinds of rows that the stage can train on.
        stage: the stage's name, for messages.
        columns: prompts keep the other columns of their rows.
        whose: what the rows are for, in messages, where that is not the stage itself: "the replay of stage 'dpo'".
        seed: which rows are taken of a source of which its weight leaves a part.
        max_faults: how many faults are told one by one before the rest is only counted.
    """
    if not sources:
        raise AlignError(f"stage '{stage}' has no data", "name it with the key data")
    whose = whose or f"stage '{stage}'"
    every = [_read(source, root, accepts, whose, columns) for source in sources]
    faults = [fault for one in every for fault in one.faults]
    read = [example for one in every for example in one.examples]
    if "prompt" in accepts:
        faults += _two_kinds_of_prompts(read)
    parts = [[example for example in one.examples if example.kind in accepts] for one in every]
    if read and not any(parts) and not faults:
        what = f"stage '{stage}' trains on answers, but every row is labelled undesirable"
        faults.append(AlignError(what, "give other data", place=read[0].place))
    raise_all(faults, max_faults, "errors in the data")
    name = " + ".join(source.source for source in sources)
    undesirable = len(read) - sum(map(len, parts))
    parts, warnings = weighing.weighed(sources, parts, seed)
    table = _table([example for part in parts for example in part], name, undesirable, asked="prompt" in accepts)
    skipped = [fault for one in every for fault in one.skipped]
    said = [_left_out(one) for one in every if one.skipped]
    return replace(table, warnings=said + warnings + table.warnings, skipped=skipped)


@dataclass
class _Read:
    """The rows of one source, and what is wrong with it."""

    name: str
    examples: list[Example] = field(default_factory=list)
    faults: list[AlignError] = field(default_factory=list)
    skipped: list[AlignError] = field(default_factory=list)


def _read(source: DataSource, root: Path, accepts: frozenset[Kind], whose: str, columns: bool) -> _Read:
    """All rows of a source. A fault of the file, after which no more of it is read, is never skipped; nor are the
    faults of a source that has no good row."""
    read = _Read(source.source)
    for found in scan(source, root=root):
        try:
            if isinstance(found, AlignError):
                raise found
            checked = fits(normalise(found, source.format), found, accepts, whose)
            read.examples.append(with_columns(checked, found) if columns else checked)
        except AlignError as error:
            of_a_row = error.place is not None and not isinstance(error, Unreadable)
            faults = read.skipped if of_a_row and source.on_bad_row == "skip" else read.faults
            faults.append(error.with_traceback(None))  # whose frames hold the row
    if not read.examples:
        read.faults, read.skipped = read.faults + read.skipped, []
    return read


def _left_out(read: _Read) -> str:
    count = len(read.skipped)
    rows = f"{count:,} of {count + len(read.examples):,} rows of '{read.name}'"
    return (
        f"{rows} {'was' if count == 1 else 'were'} skipped; the first: {read.skipped[0].place}: {read.skipped[0].what}"
    )


def _table(examples: list[Example], name: str, undesirable: int, *, asked: bool) -> Table:
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


def understood(row: Row, format: str = "auto") -> Example:
    """The example that a row is, whatever it is for; raises AlignError where it is none, or prefers nothing."""
    example = normalise(row, format)
    _refuse_no_preference(example)
    return example


def fits(example: Example, row: Row, accepts: frozenset[Kind], whose: str) -> Example:
    """The example as a stage trains on it that accepts these kinds, or an undesirable answer, which is left out.

    Raises:
        AlignError: it trains on none of its kind.
    """
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
    _refuse_no_preference(example)
    return example


def _refuse_no_preference(example: Example) -> None:
    if example.kind == "preference" and notes.said(example.value["chosen"]) == notes.said(example.value["rejected"]):
        what = "'chosen' and 'rejected' are identical, so the pair expresses no preference"
        raise AlignError(what, "remove the row, or correct one of the two", place=example.place)
