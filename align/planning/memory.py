"""From what was traced to what the whole model takes. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from align.planning.records import Memory, Moments, Part, Traced


def of_whole(traced: Traced, layers: int) -> Memory:
    """The greatest of the phases, each with as many layers as the model has.

    A phase's peak is a straight line in the number of layers, part by part, so that two depths tell every other.
    """
    depths = sorted(traced.moments)
    if len(depths) == 1:
        phases: Moments = traced.moments[depths[0]]
    else:
        one, two = (traced.moments[depth] for depth in depths)
        phases = {phase: _line(one.get(phase, {}), two[phase], depths, layers) for phase in two}
    phase = max(phases, key=lambda name: sum(phases[name].values()))
    parts = {part: size for part, size in phases[phase].items() if size > 0}
    return Memory(peak=sum(parts.values()), parts=parts, phase=phase)


def _line(one: Mapping[Part, int], two: Mapping[Part, int], depths: list[int], layers: int) -> dict[Part, int]:
    first, second = depths
    found: dict[Part, int] = {}
    for part in two:
        slope = (two[part] - one.get(part, 0)) / (second - first)
        found[part] = max(0, round(two[part] + slope * (layers - second)))
    return found
