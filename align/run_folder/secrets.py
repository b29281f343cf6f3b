"""Values of the environment that are secrets by their names: no file of a run holds one."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

_NAMED = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL|HOOK|NOTIFY", re.IGNORECASE)
SHORTEST = 8  # of a value; a shorter one may be any word
HIDDEN = "***"


def values() -> list[str]:
    """The secrets in the environment of this process, the longest first, since one may be a part of another."""
    found = {value for name, value in os.environ.items() if _NAMED.search(name) and len(value) >= SHORTEST}
    return sorted(found, key=len, reverse=True)


def hidden(text: str) -> str:
    """A text without them."""
    for value in values():
        text = text.replace(value, HIDDEN)
    return text


def hide_in(path: Path) -> None:
    """Take them out of a file in place, so that whoever appends to it goes on. What a link points to is left alone."""
    found = [value.encode("utf-8", "surrogateescape") for value in values()]
    if not found:
        return
    with suppress(OSError), os.fdopen(os.open(path, os.O_RDWR | os.O_NOFOLLOW), "r+b") as file:
        content = file.read()
        if not any(value in content for value in found):
            return
        for value in found:
            content = content.replace(value, HIDDEN.encode())
        file.seek(0)
        file.write(content)
        file.truncate()
