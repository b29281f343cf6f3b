"""A user's probes, read and checked, each item with its place. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from align.errors import AlignError
from align.forgetting import probes
from align.forgetting.keys import ForgettingKeys
from align.forgetting.own.items import Halves
from align.forgetting.own.keys import ProbeTask
from align.run_folder import files


@dataclass(frozen=True)
class OwnProbe:
    """A probe of the user's.

    Attributes:
        metric: as the recipe names it; empty for a task of lm-evaluation-harness.
        items: with their places; of a task none.
    """

    name: str
    probe: probes.Probe
    metric: str
    items: Halves


def read(keys: ForgettingKeys, root: Path, *, offline: bool) -> tuple[list[OwnProbe], list[tuple[str, AlignError]]]:
    """The user's probes of a recipe, and what is wrong with the others, by name.

    Args:
        root: the recipe's folder.
        offline: what has to be fetched is looked for in the caches only.
    """
    assert isinstance(keys.probes, dict)
    found: list[OwnProbe] = []
    faults: list[tuple[str, AlignError]] = []
    taken = {name for probe in probes.load(_sets(keys), root) for name in probes.called(probe)}
    for name, own in keys.probes.items():
        if isinstance(own, bool):
            continue
        try:
            if name in taken:
                raise probes.taken(name)
            probe, items = probes.own(name, own, root, offline=offline)
            found.append(OwnProbe(name, probe, "" if isinstance(own, ProbeTask) else own.metric, items))
        except AlignError as error:
            faults.append((name, error))
    return found, faults


def digest(found: list[OwnProbe], keys: ForgettingKeys) -> str:
    """Hash of what is measured: the user's probes by content, shipped sets by name and version."""
    sets = _sets(keys).probes
    content = [probes.size(keys), probes.content()] if "general" in sets else []
    return files.digest([probes.VERSION, [probes.identity(one.probe) for one in found], *sets, *content])


def _sets(keys: ForgettingKeys) -> ForgettingKeys:
    """The same with the shipped sets alone."""
    assert isinstance(keys.probes, dict)
    sets = {name: one for name, one in keys.probes.items() if isinstance(one, bool)}
    return keys.model_copy(update={"probes": sets})
