"""What a probe asks and how it is scored, as a hash: the same in two runs, however their recipes say it. No torch."""

from __future__ import annotations

from functools import cache
from typing import Any

from align.forgetting import probes
from align.forgetting.own.kinds import Own
from align.forgetting.probes import Battery, Exact, Graded, Probe, Texts
from align.run_folder import files


def digest(probe: Probe) -> str:
    """Hash of the items of a probe and of what scores them; not of how the recipe says it, nor of other probes."""
    return files.digest([probes.VERSION, type(probe).__name__, _asked(probe)])


def _asked(probe: Probe) -> Any:
    if isinstance(probe, Own):
        return probe.identity()
    if isinstance(probe, Texts):
        return probe.texts
    if isinstance(probe, Battery):  # an id is a hash of the question; answers and checks are code
        return [_shipped(), {split: list(half) for split, half in probe.items.items()}]
    marks = list(probe.measures) if isinstance(probe, Graded) else []
    return [marks, _questions(probe)]


def _questions(probe: Exact | Graded) -> Any:
    return {split: [[one.id, one.prompt, one.answer] for one in half] for split, half in probe.items.items()}


@cache
def _shipped() -> str:
    return probes.content()
