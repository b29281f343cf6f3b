"""What was written stays in the run folder as readable JSONL; a resumed stage takes it as it lies there. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from align.errors import AlignError, Exit
from align.forgetting.prompts import shown
from align.run_folder import files, reading
from align.run_folder.records import Record

Row = dict[str, Any]
SHOWN: Final = 3  # examples of each kind


class Kept(Record):
    """NAME.json beside NAME.jsonl. Written last: its presence means that the rows are whole.

    Attributes:
        key: hash of all that the rows follow from.
        sha256: of NAME.jsonl.
        figures: how many were written and kept, and why the others were not.
    """

    key: str
    sha256: str
    figures: dict[str, Any]


@dataclass(frozen=True)
class Shelf:
    """A place for rows of one kind.

    Attributes:
        name: of its files: NAME.jsonl, NAME_rejected.jsonl, NAME.json.
    """

    folder: Path
    name: str

    @property
    def rows(self) -> Path:
        return self.folder / f"{self.name}.jsonl"

    @property
    def rejected(self) -> Path:
        return self.folder / f"{self.name}_rejected.jsonl"

    @property
    def record(self) -> Path:
        return self.folder / f"{self.name}.json"

    def kept(self, key: str) -> Kept | None:
        """What an earlier attempt at the stage left; None where there is nothing whole, or of something else."""
        found = reading.whole(self.record, Kept)
        if found is None or found.key != key or not self.rows.is_file():
            return None
        return found if files.file_sha256(self.rows) == found.sha256 else None

    def put(
        self, key: str, rows: Sequence[Row], rejected: Sequence[Row], figures: dict[str, Any], *, begun: bool
    ) -> None:
        """Write rows, those that were rejected with the reason under `why`, and the record.

        Args:
            begun: whether the stage has trained on the rows already.

        Raises:
            AlignError: the stage has, and they were others.
        """
        before = reading.whole(self.record, Kept)
        self.reject(rejected)
        text = _lines(rows)
        written = Kept(key=key, sha256=hashlib.sha256(text.encode()).hexdigest(), figures=figures)
        if begun and before is not None and before.key == key and before.sha256 != written.sha256:
            what = f"{self.rows} was changed, and what is written now is not what the stage began to train on"
            raise AlignError(what, "redo the stage with --from", exit=Exit.STAGE_FAILED)
        files.write_text(self.rows, text)
        files.write_json(self.record, written.written())

    def reject(self, rejected: Sequence[Row]) -> None:
        """Write what is not kept."""
        files.write_text(self.rejected, _lines(rejected))

    def read(self) -> list[Row]:
        """The rows."""
        return reading.lines(self.rows)


class Example(Record):
    """A row that was written, as it is shown.

    Attributes:
        of: replay, or rewrite.
        asked: empty where nothing was.
        was: the data's answer, where there is one.
        why: it is not kept; empty where it is.
    """

    of: str
    asked: str
    said: str
    was: str = ""
    why: str = ""


def examples(folder: Path) -> tuple[Example, ...]:
    """A few rows of each kind that a stage's folder has, the first of each file."""
    found = []
    for name in ("replay", "rewrite"):
        shelf = Shelf(folder, name)
        for row in (*_first(shelf.rows), *_first(shelf.rejected)):
            said = row.get("answer", row.get("sample", row.get("completion", row.get("text"))))
            asked = shown(row) if "prompt" in row else ""
            found.append(
                Example(of=name, asked=asked, said=_text(said), was=row.get("was", ""), why=row.get("why", ""))
            )
    return tuple(found)


def _first(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in islice(file, SHOWN)]


def _text(said: Any) -> str:
    """The words of an answer, or of a message."""
    return str(said[-1]["content"]) if isinstance(said, list) else str(said or "")


def _lines(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
