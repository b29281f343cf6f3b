"""A user's function, imported from its file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from align.errors import AlignError
from align.functions import calling

WITH_A_CLASS = """\
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Unit:
    name: str

def right(completion):
    return completion == Unit("{unit}").name
"""


def test_files_of_one_name_with_classes_of_their_own(tmp_path: Path) -> None:
    found = []
    for unit in ("mg", "ml"):
        (tmp_path / unit).mkdir()
        file = tmp_path / unit / "score.py"
        file.write_text(WITH_A_CLASS.format(unit=unit), encoding="utf-8")
        found.append(calling.load(file, "right", "scorer"))
    assert [[right(unit) for unit in ("mg", "ml")] for right in found] == [[True, False], [False, True]]
    assert {sys.modules[right.__module__].__file__ for right in found} == {
        str(tmp_path / unit / "score.py") for unit in ("mg", "ml")
    }


@pytest.mark.parametrize(
    ("line", "said"), [("1 / 0", "ZeroDivisionError: division by zero"), ("exit(3)", "SystemExit: 3")]
)
def test_a_file_that_cannot_be_imported(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(f"{line}\ndef right(completion): return True\n", encoding="utf-8")
    with pytest.raises(AlignError) as caught:
        calling.load(file, "right", "scorer")
    assert str(caught.value) == f"the file of the scorer cannot be imported: {said}\n  -> correct it"
    assert not [name for name in sys.modules if name.startswith("align_functions_broken")]
