"""A change of the recipe as lines: the dotted path of a key, its old value and the new one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Line:
    """One key: where it stands, what the run had there (None where nothing stood), what to write."""

    path: tuple[str, ...]
    old: Any
    new: Any

    @property
    def dotted(self) -> str:
        """As `--set` takes it."""
        return ".".join(self.path)


def stage(id: str, *path: str, old: Any, new: Any) -> Line:
    """A key of a stage's entry."""
    return Line(("stages", id, *path), old, new)


def block(lines: Iterable[Line]) -> tuple[str, ...]:
    """The lines as YAML to paste into a recipe: every mapping named once, the old value in a comment."""
    found: list[str] = []
    stands: tuple[str, ...] = ()
    for line in lines:
        shared = _shared(stands, line.path[:-1])
        found += [f"{'  ' * depth}{key}:" for depth, key in enumerate(line.path[:-1]) if depth >= shared]
        old = f"  # was {written(line.old)}" if line.old is not None else ""
        found.append(f"{'  ' * (len(line.path) - 1)}{line.path[-1]}: {written(line.new)}{old}")
        stands = line.path[:-1]
    return tuple(found)


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def written(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, float):
        return number(value)
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {written(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(written(inner) for inner in value)}]"
    if isinstance(value, str) and _plain(value):
        return value
    return json.dumps(value, ensure_ascii=False)


def _plain(text: str) -> bool:
    """Whether a text needs no quotes in YAML's flow style."""
    return bool(text) and text[0].isalpha() and all(c.isalnum() or c in "/._-" for c in text) and text not in _WORDS


_WORDS = {word for one in ("true", "false", "yes", "no", "on", "off", "null", "y", "n") for word in (one, one.upper())}


def number(value: float) -> str:
    """Two digits, as YAML takes them for a number: `5.0e-5`, not `5e-05`, which is a text."""
    if value >= 0.001 or value == 0:
        return f"{value:.2g}" if value < 100 else f"{value:.0f}"
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits}e{int(power)}"


def source(data: Any) -> Any:
    """Data of a written-out recipe as a user writes it: without what is at its default."""
    if isinstance(data, list):
        return [source(one) for one in data]
    if not isinstance(data, dict):
        return data
    plain = {"split": "train", "format": "auto", "columns": {}}
    kept = {key: value for key, value in data.items() if value is not None and plain.get(key, "") != value}
    return kept["source"] if set(kept) == {"source"} else kept


def several(data: Any) -> Iterator[Any]:
    """Each source of `data`, which is one or a list."""
    yield from data if isinstance(data, list) else [data]
