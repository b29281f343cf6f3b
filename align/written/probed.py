"""What probes ask, so that nothing of it is replayed: a probe that is trained on measures memorisation. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from align.forgetting.battery.skill import Item
from align.forgetting.own.items import OwnItem
from align.forgetting.probes import Probe, Question
from align.written.filters import folded


def asked(probes: Iterable[Probe]) -> frozenset[str]:
    """Every question and text of the probes, folded; those of a task of the harness are not known."""
    return frozenset(folded(text) for probe in probes for text in _texts(probe))


def _texts(probe: Any) -> Iterator[str]:
    for half in getattr(probe, "texts", {}).values():
        yield from half
    for half in getattr(probe, "items", {}).values():
        yield from map(_question, half.values() if isinstance(half, dict) else half)


def _question(item: Question | Item | OwnItem) -> str:
    if isinstance(item, Question):
        return item.prompt
    return item.question if isinstance(item, OwnItem) else item.messages[-1]["content"]
