"""YAML as recipes may have it: read within limits, and every fault of it at its line and column."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, RoundTripConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

CHARACTERS: Final = 1_000_000
DEPTH: Final = 50  # mappings and lists within each other
VALUES: Final = 50_000  # once aliases are written out
BITS: Final = 63  # of a whole number, beside its sign
_KINDS: Final = ("str", "int", "float", "bool", "null", "seq", "map", "merge")
_TAGS: Final = tuple(f"tag:yaml.org,2002:{kind}" for kind in _KINDS)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_OTHERS: Final = (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError)  # ruamel's, on odd values


class _Constructor(RoundTripConstructor):
    """Says where a value stands that cannot be made."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            found = super().construct_object(node, deep=deep)
        except YAMLError:
            raise
        except _OTHERS:
            raise _at(node.start_mark, "this value cannot be read") from None
        if isinstance(found, int) and not isinstance(found, bool) and found.bit_length() > BITS:
            raise _at(node.start_mark, "this number is too large")
        if isinstance(found, str) and (_CONTROL.search(found) or any("\ud800" <= one <= "\udfff" for one in found)):
            raise _at(node.start_mark, "this text contains a control character or half of a character")
        return found


def load(text: str) -> Any:
    """The containers of ruamel, which know where everything stands.

    Raises:
        YAMLError: it is no YAML, or goes beyond a limit.
    """
    if len(text) > CHARACTERS:
        raise MarkedYAMLError(problem=f"the file is longer than {CHARACTERS:,} characters")
    try:
        _within(YAML(typ="rt", pure=True).parse(text))
        yaml = YAML(typ="rt", pure=True)
        yaml.Constructor = _Constructor
        return yaml.load(text)
    except YAMLError:
        raise
    except RecursionError:
        raise MarkedYAMLError(problem="an anchor contains itself") from None
    except _OTHERS:  # of an escape that names no character, in ruamel's scanner
        raise MarkedYAMLError(problem="a value cannot be read") from None


def _within(events: Iterator[Event]) -> None:
    """Raises MarkedYAMLError at what recipes may not have."""
    open_: list[list[Any]] = []  # of each mapping and list: whether it is a mapping, values in it, its anchor
    sizes: dict[str, int] = {}  # values below an anchor, aliases written out
    total = 0
    for event in events:
        if isinstance(event, SequenceEndEvent | MappingEndEvent):
            _, _, anchor, before = open_.pop()
            if anchor:
                sizes[anchor] = total - before
            continue
        if not isinstance(event, NodeEvent):
            continue
        if open_ and open_[-1][0] and open_[-1][1] % 2 == 0 and not isinstance(event, ScalarEvent | AliasEvent):
            raise _at(event.start_mark, "a key must be text")
        if open_:
            open_[-1][1] += 1
        if isinstance(event, AliasEvent):
            if any(anchor == event.anchor for *_, anchor, _ in open_):
                raise _at(event.start_mark, "an anchor contains itself")
            total += sizes.get(event.anchor, 0)
        tag = str(getattr(event, "tag", None) or "")
        if tag and tag not in _TAGS:
            named = tag.replace("tag:yaml.org,2002:", "!!")
            raise _at(event.start_mark, f"the tag {named} has no place in a recipe")
        total += 1
        if total > VALUES:
            raise _at(event.start_mark, f"there are more than {VALUES:,} values up to here")
        if isinstance(event, SequenceStartEvent | MappingStartEvent):
            open_.append([isinstance(event, MappingStartEvent), 0, event.anchor, total])
            if len(open_) > DEPTH:
                raise _at(event.start_mark, f"there are more than {DEPTH} mappings and lists within each other")


def _at(mark: Any, problem: str) -> ConstructorError:
    return ConstructorError(None, None, problem, mark)
