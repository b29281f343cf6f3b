"""The recipe's `notify`: who is told what became of a run. A webhook's URL is a secret, and is written nowhere."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from align import user_paths

WITHHELD = "$ALIGN_NOTIFY_URL"
"""Stands for a URL of the recipe wherever align writes the recipe."""

SECRET = "$ALIGN_NOTIFY_SECRET"
"""Stands for a word of a command that looks like one."""

_NAME = re.compile(r"\$(\w+)")
_NAMED = re.compile(r"--?[\w-]*(token|secret|passw|credential|api-?key)[\w-]*", re.IGNORECASE)
_GIVEN = re.compile(r"(token|secret|passw|credential|api[-_]?key|authorization)[\w-]*\s*[=:]|\bbearer\s", re.IGNORECASE)


def _kind(value: object) -> str:
    return "list" if isinstance(value, list) else "text"


class Notify(BaseModel):
    """`notify:` a command or a webhook; plain text or a list is taken for the one that it looks like."""

    model_config = ConfigDict(extra="forbid")

    command: Annotated[Annotated[str, Tag("text")] | Annotated[list[str], Tag("list")], Discriminator(_kind)] | None = (
        Field(
            default=None,
            description="A program with its arguments, run without a shell; gets the JSON on standard input.",
        )
    )
    url: str | None = Field(
        default=None, description="An http(s) address that the JSON is posted to, or $NAME of an environment variable."
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, list):
            return {"command": value}
        if not isinstance(value, str):
            return value
        return {"url" if "://" in value.split(" ")[0] or _NAME.fullmatch(value) else "command": value}

    @model_validator(mode="after")
    def _one(self) -> Notify:
        """No message repeats what was written."""
        if (self.command is None) == (self.url is None):
            raise ValueError("one hook is told: give either `command` or `url`")
        if self.url is not None and not _NAME.fullmatch(self.url) and not _is_address(self.url):
            raise ValueError(
                "the URL is none that can be posted to: write http:// or https://, a host and no user or password, or "
                "$NAME of an environment variable that holds it"
            )
        try:
            words = self.words()
        except ValueError as error:
            raise ValueError("a quote of the command is not closed: write it as a list, a word each") from error
        if self.url is None and not (words and words[0]):
            raise ValueError("the command is empty: give a program and its arguments")
        return self

    def words(self) -> list[str]:
        """The command as a program and its arguments; empty where it is a webhook."""
        if self.command is None:
            return []
        return shlex.split(self.command) if isinstance(self.command, str) else self.command

    def target(self, root: Path) -> tuple[str, list[str]]:
        """The URL, or the command, with the environment's values for `$NAME`; both are empty where one is not set, or
        holds no URL."""
        if self.trouble(root):
            return "", []
        return _value(self.url or ""), [
            _program(self.words(), root),
            *map(_value, self.words()[1:]),
        ] if self.command else []

    def trouble(self, root: Path) -> str | None:
        """Why nobody will be told, where that is known before the run."""
        words = [self.url or "", *self.words()[1:]]
        unset = next(
            (found[1] for word in words if (found := _NAME.fullmatch(word)) and found[1] not in os.environ), None
        )
        if unset:
            return f"notify: the environment variable {unset} is not set, so nobody will be told"
        if self.url is not None:
            return None if _is_address(_value(self.url)) else f"notify: {self.url} holds no http(s) URL"
        if shutil.which(_program(self.words(), root)) is None:
            return f"notify: there is no program '{self.words()[0]}', so nobody will be told"
        return None

    def name(self) -> str:
        """The hook as it may be shown: no path of a URL, no arguments."""
        if self.url is None:
            return f"'{self.words()[0]}'"
        return self.url if _NAME.fullmatch(self.url) else urlsplit(self.url).hostname or "the URL"

    def withheld(self, root: Path) -> dict[str, Any]:
        """As it is written into the run folder: `WITHHELD` in place of every URL, `SECRET` in place of every argument
        that names a secret and of the one after it, and the program with its whole path."""
        if self.url is not None:
            return {"url": self.url if _NAME.fullmatch(self.url) else WITHHELD}
        words = self.words()
        return {"command": [_program(words, root), *_withheld(words[1:])]}


def _withheld(words: list[str]) -> list[str]:
    """Arguments without URLs and what looks like a secret: `--token=abc`, `Authorization: Bearer abc`, and `abc` after
    `--token`. A name of the environment is none."""
    found, named = [], False
    for word in words:
        hidden = (named or _GIVEN.search(word)) and not _NAME.fullmatch(word)
        found.append(WITHHELD if "://" in word else SECRET if hidden else word)
        named = _NAMED.fullmatch(word) is not None
    return found


def _program(words: list[str], root: Path) -> str:
    """A program of the recipe's own folder by its path; any other as it is called."""
    found = user_paths.find(words[0], root) if "/" in words[0] else None
    return str(found.resolve()) if found else words[0]


def _value(word: str) -> str:
    found = _NAME.fullmatch(word)
    return os.environ.get(found[1], "") if found else word


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return known and "@" not in parts.netloc and url.isascii() and not re.search(r"[\s\x00-\x1f]", url)
