"""What a recipe, a row or a record should not hold: odd texts, numbers, YAML and JSON, and the trees they stand in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class Pairs(list[list[Any]]):
    """A mapping, as its pairs of key and value: a key may stand in it twice, or be no text."""


@dataclass(frozen=True)
class Raw:
    """Text that is written as it stands: a tag, an anchor, a number that is none."""

    text: str


_WORDS = """
[red]x[/red] [/] :100: {{7*7}} {%for%} %s%d{0}{x} true null ~ 1e400 -1 0.5 nan a:b #x *x &x !x @x `x` é 中文
/ /dev/zero /dev/null /proc/self/mem . .. ~nosuchuser/x ../x a/b/c * ** [ ? a//b C:\\x file:///x http:// https://[
http://localhost:99999 org/name org/name/more : :: x.py:y ./own.py:short ./own.py: os:remove 0 00 1_000 ٣ ² ½ 1,5 100%
2h -2h 1e3h
"""
_SPACED = ("", " ", "\n", "a: b", "- a", "a\tb", "a\r\nb", "\x00", "\x1b[31m", "\ud800", "e\u0301", "\u202etxt")
_LONG = ("x" * 300, "x" * 100_000)
TEXTS: tuple[str, ...] = (*_SPACED, *_WORDS.split(), *_LONG, "\u200b", "\ufeff", "\u2028", "\U0001f600")
NUMBERS: tuple[int | float, ...] = (
    *(0, -1, 1, 2, 3, -0.0, 0.5, 1.5, -1.5, 1e-300, 1e300, 1e16, 2**31, 2**32, 2**53 + 1, 2**62, 2**63 - 1),
)
OTHERS: tuple[Any, ...] = (
    *(None, True, False, [], Pairs(), [[]], [None], [Pairs()], [1, "a", None], Pairs([["a", 1]]), ["a", "a"]),
)
NOT_FINITE = (Raw("NaN"), Raw("Infinity"), Raw("-Infinity"))  # of JSON as Python writes it
DEEP = tuple(Raw("[" * depth + "]" * depth) for depth in (40, 60, 900))
LARGE = (Raw("9" * 5000), Raw("1" + "0" * 400), Raw("0.1e999999999"), Raw("-0"))
_YAML = """
.nan | .inf | -.inf | 0o17 | 0x1F | 0b11 | 1_000 | 1:30 | 12:30:45 | +1 | 1. | .5 | yes | No | on | ~ | << | = | ? a
2020-01-01 | 2020-13-45 | 2020-01-01T10:00:00Z | !!timestamp x | !!binary aGk= | !!null '' | !!bool yes | !!float 1
!!str 5 | !!int x | !!set {a} | !!omap [a: 1] | !foo x | !!python/object:os.system x | !!seq {} | !!map []
&a [1, *a] | *nowhere | &a 1 | {<<: {a: 1}, b: 2} | {<<: [{a: 1}, 2]} | {<<: 1} | {? [a] : 1} | {a, b} | {a: }
[a, , b] | 'it''s' | "\\x41" | "\\q" | "\\U00110000" | > x | %x
"""
YAML = (*(Raw(one) for line in _YAML.strip().splitlines() for one in line.split(" | ")), Raw("|"), Raw("\t1"))
