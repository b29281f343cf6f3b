"""A path as a user writes it: from the current folder, then from the recipe's; `~` is the home folder."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

from align.errors import AlignError, Place

TEXT_BYTES = 10_000_000  # of a file that is read whole: a template, a program
_NOT_THERE = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOENT, errno.ENOTDIR)
START = "paths are resolved from the current folder, then from the recipe's"


def candidates(name: str, root: Path) -> list[Path]:
    """Where a path can point, the current folder first; one place where both are the same.

    Args:
        root: the recipe's folder.
    """
    given = expanded(name)
    if name.startswith("~") and given == Path(name):
        return [given]
    return list({path.absolute(): path for path in (root / given, given)}.values())[::-1]


def find(name: str, root: Path, is_it: Callable[[Path], bool] = Path.exists) -> Path | None:
    """The first place where a path points to something; relative where it was found from the current folder.

    Args:
        root: the recipe's folder.
        is_it: what it has to be, such as `Path.is_file`.
    """
    return next((path for path in candidates(name, root) if there(path, is_it)), None)


def there(path: Path, is_it: Callable[[Path], bool] = Path.exists) -> bool:
    """Whether a path points to something; one that no file can have points to nothing.

    Raises:
        AlignError: a folder above it cannot be looked into.
    """
    try:
        return is_it(path)
    except ValueError:  # it contains a NUL
        return False
    except OSError as error:
        if error.errno in _NOT_THERE:
            return False
        raise unreadable(error, str(path)) from None


def expanded(name: str) -> Path:
    """A path with its `~` replaced; as it is where there is no such user."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def text(path: Path, shown: str) -> str:
    """What a small file of the user's says.

    Args:
        shown: the file's name in messages.

    Raises:
        AlignError: it cannot be read, is no UTF-8, or is larger than 10 MB.
    """
    try:
        with path.open("rb") as file:
            found = file.read(TEXT_BYTES + 1)
        if len(found) > TEXT_BYTES:
            what = f"the file is larger than {TEXT_BYTES // 1_000_000} MB"
            raise AlignError(what, "give the right file", place=Place(shown))
        return found.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = found.count(b"\n", 0, error.start) + 1
        what = f"the byte 0x{found[error.start]:02x} is not UTF-8"
        raise AlignError(what, "save the file as UTF-8", place=Place(shown, line)) from None
    except OSError as error:
        raise unreadable(error, shown) from None


def unreadable(error: OSError, shown: str) -> AlignError:
    """A file or folder of the user's that the system does not let be read."""
    what = f"the file or folder cannot be read: {error.strerror}"
    return AlignError(what, "check that it is complete and that you have permission to read it", place=Place(shown))
