"""One look over data: every row counted as it is read, one of them kept to be shown, bad ones written aside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, get_args

from align import shipped
from align.data import sources, template
from align.data.formats import Kind
from align.data.sources import DataSource
from align.data.tokenizer import TextTokenizer
from align.errors import AlignError, did_you_mean
from align.inspection import survey, tokens
from align.inspection.survey import Seen, Survey
from align.inspection.tokens import Tokens
from align.policy import base
from align.stage.program import load

ASKED: Final[frozenset[Kind]] = frozenset({"chat", "prompt_completion", "preference", "unpaired", "prompt"})
"""The kinds of rows that ask something, which a stage that samples its answers can take."""


@dataclass(frozen=True)
class How:
    """How data is read, as the options say.

    Attributes:
        stage: the shipped stage, or the stage file, that is to train on it.
        model, chat_template: whose tokenizer counts tokens, and the template in place of its own.
        max_length: tokens of a row that are kept.
    """

    split: str = "train"
    format: str = "auto"
    stage: str | None = None
    model: str | None = None
    chat_template: str | None = None
    max_length: int | None = None

    def source(self, data: str) -> DataSource:
        """The data as a source of a recipe; raises AlignError where there is no such format."""
        if not data:
            raise AlignError("the name of the data is empty", "give a file, a folder, or a dataset")
        formats = get_args(sources.Format)
        if self.format not in formats:
            raise AlignError(f"there is no format '{self.format}'", did_you_mean(self.format, formats))
        split = {} if self.split == "train" else {"split": self.split}  # one that is given must be there
        return DataSource.model_validate({"source": data, "format": self.format, **split})

    def rows(self, data: str) -> Iterator[Seen]:
        """Every row, as the stage needs it where one is named."""
        if self.stage is None:
            return survey.read([self.source(data)], root=Path())
        accepts = load(self.stage, Path()).stage.rows
        return survey.read([self.source(data)], root=Path(), accepts=accepts, whose=f"stage '{self.stage}'")

    def tokens(self) -> Tokens | None:
        """What counts tokens, without loading the model; None where none is named."""
        if self.model is None:
            for flag, value in (("--chat-template", self.chat_template), ("--max-length", self.max_length)):
                if value is not None:
                    raise AlignError(f"{flag} needs --model", "name the model whose tokenizer counts the tokens")
            return None
        folder = base.resolve(self.model, None, root=Path(), weights=False).path
        assert folder is not None
        text = template.resolve(self.chat_template, Path()) if self.chat_template is not None else None
        tokenizer = TextTokenizer.of_folder(folder, text)
        if tokenizer is None:
            what = f"'{self.model}' has no tokenizer.json"
            raise AlignError(
                what, "write one with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            )
        return Tokens(tokenizer, self.max_length)


def refuse_to_harm(data: str, how: How, *written: Path | None) -> None:
    """Raises AlignError where a file that is to be written is read, would be read the next time, or is named twice."""
    files = [file.resolve() for file in written if file is not None]
    if len(set(files)) < len(files):
        raise AlignError(f"'{written[0]}' is named twice as a file to write", "give another name for one of them")
    try:
        read = {file.resolve() for file in sources.identity(how.source(data), root=Path())}
    except AlignError:  # it cannot be read, which is told where it is
        read = set()
    folder = Path(data).resolve()
    for file in files:
        if file in read or (folder.is_dir() and file.is_relative_to(folder)):
            raise AlignError(f"'{file}' is among the data that are read", "give a name outside of them")


@dataclass
class Looked:
    """What was found.

    Attributes:
        tokens: None without a model.
        row: the one that was asked for; None where there are fewer.
    """

    survey: Survey
    tokens: Tokens | None
    row: Seen | None = None
    trains: dict[str, bool] = field(default_factory=dict)
    whole: bool = True  # no stage is named that leaves rows out

    @property
    def bad(self) -> int:
        """Rows that cannot be used."""
        return self.survey.bad + (len(self.tokens.faults) if self.tokens else 0)

    @property
    def faults(self) -> list[AlignError]:
        """What is wrong with rows, the first of them where they are very many."""
        return [*self.survey.faults, *(self.tokens.faults if self.tokens else [])]

    @property
    def warnings(self) -> list[str]:
        """What is worth a look, although each row by itself is good."""
        return [*survey.warnings(self.survey, whole=self.whole), *(tokens.warnings(self.tokens) if self.tokens else [])]


def over(data: str, how: How, *, row: int = 0, rejects: Path | None = None) -> Looked:
    """Read all of some data.

    Args:
        row: the number of a good row to keep, from 1.
        rejects: a JSONL file for the bad rows, with what is wrong.

    Raises:
        AlignError: an option names what is not there. Faults of the data are only collected.
    """
    found = Looked(Survey(data), how.tokens(), whole=how.stage is None)
    refuse_to_harm(data, how, rejects)
    with ExitStack() as stack:
        aside = stack.enter_context(rejects.open("w", encoding="utf-8")) if rejects is not None else None
        for seen in how.rows(data):
            found.survey.add(seen)
            if isinstance(seen.found, AlignError):
                if aside is not None:
                    aside.write(line(rejected(seen)))
                continue
            if found.tokens is not None:
                found.tokens.add(seen.found)
            if found.survey.rows == row:
                found.row = seen
        if found.tokens is not None:
            found.tokens.finish()
            if aside is not None:
                aside.writelines(line(rejected(Seen(fault, fault))) for fault in found.tokens.faults)
    if how.stage is not None:
        for fault in _of_the_table(found.survey, how.stage):
            found.survey.add(Seen(fault, fault))
    found.trains = _trains(found.survey)
    return found


def _of_the_table(found: Survey, stage: str) -> Iterator[AlignError]:
    """What is wrong with all rows together, as `align check` finds it."""
    accepts = load(stage, Path()).stage.rows
    left_out = found.kinds["unpaired"] if accepts & {"chat", "prompt_completion"} and "unpaired" not in accepts else 0
    if found.rows and left_out == found.rows:
        yield AlignError(f"stage '{stage}' trains on answers, but every row is labelled undesirable", "give other data")
    if "prompt" in accepts and found.texts and found.talks:
        what = f"{found.texts:,} prompts are plain text and {found.talks:,} are conversations"
        yield AlignError(what, "use one form for all prompts")


def _trains(found: Survey) -> dict[str, bool]:
    """The shipped stages that can take all of the rows; of each, whether it asks only their prompts."""
    kinds = found.kinds.keys()
    can: dict[str, bool] = {}
    for name in shipped.names("stages"):
        rows = load(name, Path()).stage.rows
        asks = "prompt" in rows and kinds <= ASKED and not found.fields["tools"]
        desirable = "chat" in rows and kinds <= rows | {"unpaired"} and bool(found.fields["desirable"])
        if kinds and (asks or (kinds <= rows and "prompt" not in rows) or desirable):
            can[name] = asks and kinds != {"prompt"}
    return can


def rejected(seen: Seen) -> dict[str, Any]:
    """What a file of bad rows has of one of them."""
    fault = seen.found
    assert isinstance(fault, AlignError)
    row = {} if isinstance(seen.row, AlignError) else {"row": seen.row.value}
    return {"place": str(fault.place or ""), "error": fault.what, "remedy": fault.remedy, **row}


def line(value: dict[str, Any]) -> str:
    """A row of a JSONL file."""
    return json.dumps(value, ensure_ascii=False, default=str) + "\n"
