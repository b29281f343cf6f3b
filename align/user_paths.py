"""A path as a user writes it: from the current folder, then from the recipe's; `~` is the home folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

START = "paths are resolved from the current folder, then from the recipe's"


def candidates(name: str, root: Path) -> list[Path]:
    """Where a path can point, the current folder first; one place where both are the same.

    Args:
        root: the recipe's folder.
    """
    given = Path(name)
    if name.startswith("~"):
        try:
            given = given.expanduser()
        except RuntimeError:  # there is no such user
            return [given]
    return list({path.absolute(): path for path in (root / given, given)}.values())[::-1]


def find(name: str, root: Path, is_it: Callable[[Path], bool] = Path.exists) -> Path | None:
    """The first place where a path points to something; relative where it was found from the current folder.

    Args:
        root: the recipe's folder.
        is_it: what it has to be, such as `Path.is_file`.
    """
    return next((path for path in candidates(name, root) if is_it(path)), None)
