"""Damage of trees, in which a mapping is a list of pairs, and of bytes.

`damaged` changes such a tree, `spoilt` the bytes of a file; both by the generator they are given and nothing else.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from benchmarks.fuzzing.odd_values import NUMBERS, OTHERS, TEXTS, Pairs, Raw

Slot: TypeAlias = tuple[list[Any], int]  # what stands in a list, a key in a pair (0), or its value (1)


@dataclass(frozen=True)
class Words:
    """What damage may put into a tree: keys, each with values that fit it, odd values, and odd keys.

    Attributes:
        below: the keys that belong into the mapping under a key; under `""` those of any other mapping.
    """

    keys: dict[str, list[Any]] = field(default_factory=dict)
    below: dict[str, list[str]] = field(default_factory=dict)
    odd: Sequence[Any] = ()
    odd_keys: Sequence[Any] = ()


def planted(value: Any) -> Any:
    """A tree of a plain value."""
    if isinstance(value, dict):
        return Pairs([key, planted(one)] for key, one in value.items())
    return [planted(one) for one in value] if isinstance(value, list | tuple) else value


def plain(tree: Any) -> Any:
    """The value of a tree; what was to be written as it stands becomes a text."""
    if isinstance(tree, Pairs):
        return {str(plain(key)): plain(one) for key, one in tree}
    return [plain(one) for one in tree] if isinstance(tree, list) else tree.text if isinstance(tree, Raw) else tree


def text(tree: Any, depth: int = 0, *, blocks: int = 0) -> str:
    """The tree as JSON, which is YAML; the outer `blocks` mappings as YAML's blocks, one key a line."""
    if isinstance(tree, Raw):
        return tree.text
    if isinstance(tree, Pairs) and tree and depth < blocks:
        indent = "\n" * bool(depth) + "  " * depth
        lines = (f"{text(key)}: {text(one, depth + 1, blocks=blocks)}" for key, one in tree)
        return indent + ("\n" + "  " * depth).join(lines)
    if isinstance(tree, Pairs):
        return "{" + ", ".join(f"{text(key)}: {text(one, depth + 1)}" for key, one in tree) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(text(one, depth + 1) for one in tree) + "]"
    return json.dumps(tree)


def damaged(tree: Any, words: Words, chance: random.Random) -> Any:
    """The tree with one to five things changed in it."""
    root = [tree]
    for _ in range(chance.choice((1, 1, 1, 1, 1, 2, 2, 4))):
        chance.choice(_DAMAGES)(root, words, chance)
    return root[0]


def _slots(tree: list[Any], found: list[Slot]) -> list[Slot]:
    """Every place of the tree where a value stands."""
    for place, one in enumerate(tree):
        holder, at = (one, 1) if isinstance(tree, Pairs) else (tree, place)
        found.append((holder, at))
        if isinstance(holder[at], list):
            _slots(holder[at], found)
    return found


def _lists(root: list[Any]) -> list[list[Any]]:
    return [held for holder, at in _slots(root, []) if isinstance(held := holder[at], list)]


def _mappings(root: list[Any]) -> list[Pairs]:
    return [held for held in _lists(root) if isinstance(held, Pairs)] or [Pairs()]


def _copy(tree: Any) -> Any:
    return type(tree)(_copy(one) for one in tree) if isinstance(tree, list) else tree


def _drop(root: list[Any], words: Words, chance: random.Random) -> None:
    if filled := [held for held in _lists(root) if held]:
        held = chance.choice(filled)
        del held[chance.randrange(len(held))]


def _double(root: list[Any], words: Words, chance: random.Random) -> None:
    if filled := [held for held in _lists(root) if held]:
        held = chance.choice(filled)
        held.insert(chance.randrange(len(held) + 1), _copy(chance.choice(held)))


def _misspell(root: list[Any], words: Words, chance: random.Random) -> None:
    if pairs := [pair for held in _mappings(root) for pair in held if isinstance(pair[0], str) and pair[0]]:
        pair = chance.choice(pairs)
        pair[0] = _slip(pair[0], chance)


def _slip(word: str, chance: random.Random) -> str:
    at = chance.randrange(len(word))
    others = (word.upper(), word.replace("_", "-"), word + " ", word + "s", word[:at] + word[at] + word[at:])
    return chance.choice((word[:at] + word[at + 1 :], word[:at] + chance.choice("aez_.:[]{}") + word[at:], *others))


def _rename(root: list[Any], words: Words, chance: random.Random) -> None:
    if pairs := [pair for held in _mappings(root) for pair in held]:
        known = list(words.keys) or [pair[0] for pair in pairs]
        chance.choice(pairs)[0] = chance.choice(known if chance.random() < 0.6 else words.odd_keys or known)


def _replace(root: list[Any], words: Words, chance: random.Random) -> None:
    holder, at = chance.choice(_slots(root, []))
    holder[at] = _copy(chance.choice(chance.choice((words.odd or TEXTS, TEXTS, NUMBERS, OTHERS))))


def _retype(root: list[Any], words: Words, chance: random.Random) -> None:
    """The same value as text, in a list, in a mapping, negative, far larger or a little wrong."""
    holder, at = chance.choice(_slots(root, []))
    old = holder[at]
    made: list[Any] = [[old], [old, _copy(old)], Pairs([["source", old]]), Pairs([["a", old]]), str(plain(old))[:1000]]
    if isinstance(old, int | float):
        made += [-old, old * 10**6, old / 7, old + 1, old - 1, bool(old), 10**9]
    if isinstance(old, str) and old:
        made += [_slip(old, chance), old + chance.choice(TEXTS[:-6]), "./" + old, old.split("/"), old[: len(old) // 2]]
    holder[at] = chance.choice(made)


def _swap(root: list[Any], words: Words, chance: random.Random) -> None:
    (one, here), (other, there) = chance.choice(_slots(root, [])), chance.choice(_slots(root, []))
    one[here], other[there] = _copy(other[there]), _copy(one[here])


def _move(root: list[Any], words: Words, chance: random.Random) -> None:
    holders = [held for held in _mappings(root) if held]
    if holders:
        source, target = chance.choice(holders), chance.choice(_mappings(root))
        pair = chance.choice(source)
        target.append(_copy(pair))
        if chance.random() < 0.5:
            source.remove(pair)


def _add(root: list[Any], words: Words, chance: random.Random) -> None:
    """A known key, mostly with a value that fits it; half of the time where it may have no place."""
    if words.keys:
        named = [pair for held in _mappings(root) for pair in held if isinstance(pair[1], Pairs)]
        above, holder = chance.choice(named) if named else ("", chance.choice(_mappings(root)))
        known = words.below.get(str(above), words.below.get("")) if chance.random() < 0.5 else None
        name = chance.choice(known or list(words.keys))
        fitting = words.keys[name] if chance.random() < 0.8 else [*TEXTS, *NUMBERS, *OTHERS]
        holder.append([name, _copy(chance.choice(fitting or [None]))])


_DAMAGES: tuple[Callable[[list[Any], Words, random.Random], None], ...] = (
    *(_drop, _double, _misspell, _rename, _replace, _replace, _replace, _retype, _retype, _swap, _move),
    *(_add, _add, _add),
)


def spoilt(content: bytes, chance: random.Random) -> bytes:
    """The bytes with one to three things changed: bits, pieces, lines, line ends, the encoding."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        content = chance.choice(_SPOILS)(content, chance)
    return content


def _flip(content: bytes, chance: random.Random) -> bytes:
    made = bytearray(content)
    for _ in range(chance.choice((1, 1, 4))):
        if made:
            made[chance.randrange(len(made))] ^= 1 << chance.randrange(8)
    return bytes(made)


def _insert(content: bytes, chance: random.Random) -> bytes:
    odd = (
        *b"\x00\xff\t\r\n\"'{}[]:,#&*!|>%@`- ",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\xe2\x80\xa8",
        b"\xef\xbb\xbf",
        b"---\n",
        b"...\n",
    )
    piece = chance.choice(odd)
    at = chance.randrange(len(content) + 1)
    return content[:at] + (bytes([piece]) if isinstance(piece, int) else piece) + content[at:]


def _cut(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content) + 1)
    end = chance.choice((len(content), at + 1, at + 10))
    return content[:at] + content[end:]


def _lines(content: bytes, chance: random.Random) -> bytes:
    """A line twice, gone, elsewhere, or indented in another way."""
    lines = content.split(b"\n")
    at, to = chance.randrange(len(lines)), chance.randrange(len(lines))
    what = chance.randrange(4)
    if what == 0:
        lines.insert(to, lines[at])
    elif what == 1:
        del lines[at]
    elif what == 2:
        lines[at], lines[to] = lines[to], lines[at]
    else:
        lines[at] = chance.choice((b" ", b"  ", b"    ", b"\t", b"- ", b"# ")) + lines[at].lstrip(
            chance.choice((b" ", b"x"))
        )
    return b"\n".join(lines)


def _ends(content: bytes, chance: random.Random) -> bytes:
    return content.replace(b"\n", chance.choice((b"\r\n", b"\r", b"\n\n", b"", b"\xe2\x80\xa8", b"\x00\n")))


def _encode(content: bytes, chance: random.Random) -> bytes:
    told = content.decode("utf-8", "replace")
    return told.encode(chance.choice(("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "utf-7")), "replace")


_SPOILS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_flip, _insert, _insert, _cut, _cut, _lines, _lines, _ends, _encode),
)
