"""A user's checker, `./check.py:right`: which texts of a policy are kept. `find` needs no import of the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from align.errors import AlignError, Exit
from align.functions import calling, declared
from align.run_folder.records import UserFunction

PURPOSE: Final = "checker"
Check = Callable[[dict[str, Any]], bool]  # the arguments by name -> whether the text is kept


def find(name: str, root: Path, given: tuple[str, ...], otherwise: str = "") -> UserFunction:
    """The checker that a recipe names.

    Args:
        root: the recipe's folder.
        given: the arguments that it will be called with.
        otherwise: what else the name could have meant, and how that is written.

    Raises:
        AlignError: there is no such file or function, or it needs an argument that there is not.
    """
    named = declared.NAMED.fullmatch(name)
    if named is None:
        raise AlignError(
            f"the checker '{name}' is not a function in a Python file", f"write it as ./check.py:right{otherwise}"
        )
    example = f"def {named['name'] or 'right'}({', '.join(given)})"
    found = declared.find(named["file"], named["name"], root, purpose=PURPOSE, example=example)
    missing = declared.missing(found, given)
    if missing is not None:
        what = f"the checker '{found.name}' asks for '{missing}', which it is not given"
        raise AlignError(what, f"it can ask for {', '.join(given)}; or give it a default")
    return UserFunction(name=found.name, path=str(found.path), sha256=found.sha256)


def load(function: UserFunction) -> Check:
    """The checker, imported.

    Raises:
        AlignError: the file cannot be imported. What is returned raises one where the checker does, or where it says
            neither yes nor no.
    """
    path = Path(function.path)
    imported = calling.load(path, function.name, PURPOSE)
    called = f"the checker '{function.name}' of {path.name}"

    def check(given: dict[str, Any]) -> bool:
        shown = f"for the answer {_short(str(given['completion']))}"
        try:
            found = imported(**calling.taken(imported, given))
        except (Exception, SystemExit) as error:
            what = f"{called} raised {calling.raised(error)} {shown} ({calling.line(error, path)})"
            raise AlignError(what, "correct it", exit=Exit.STAGE_FAILED) from error
        if not hasattr(found, "__bool__") or found not in (0, 1):
            what = f"{called} returned {found!r} {shown}"
            raise AlignError(what, "return True or False", exit=Exit.STAGE_FAILED)
        return bool(found)

    return check


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")
