"""Replayed rows: those that an earlier stage trained on, and questions of the battery among them. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from align.data.replay import quotas
from align.errors import AlignError
from align.forgetting import probes
from align.forgetting.battery import leaks
from align.forgetting.keys import ForgettingKeys
from align.forgetting.probes import GENERAL_TEXT, Battery, Texts
from align.preflight.rows_that_fit import Replayed, StageRows


def trained_on(rows: StageRows, stages: Mapping[str, StageRows]) -> StageRows:
    """A stage's rows, of which those of an earlier stage are the ones that fit into that stage.

    Args:
        stages: the rows of the stages before it, as far as they fit.
    """
    found = []
    for source in rows.replay:
        if source.stage is not None and source.stage in stages:
            fits = {str(example.place) for example in stages[source.stage].train}
            source = replace(source, examples=[one for one in source.examples if str(one.place) in fits])
        found.append(source)
    return replace(rows, replay=tuple(found))


def idle(sources: Sequence[Replayed], count: int) -> list[str]:
    """The sources of which none of so many mixed rows is: their weight is too small."""
    shares = quotas(count, [source.weight for source in sources])
    return [source.name for source, share in zip(sources, shares, strict=True) if not share]


def of_battery(stage: str, rows: StageRows, keys: ForgettingKeys) -> list[AlignError]:
    """A fault for each replayed row that teaches what the gate measures by the shipped battery."""
    if not rows.replayed or GENERAL_TEXT not in probes.names(keys):
        return []
    general = keys.model_copy(update={"probes": "general"})
    gate: dict[str, str] = {}
    for probe in probes.load(general, Path()):
        if isinstance(probe, Battery):
            gate |= {leaks.folded(item.messages[-1]["content"]): probe.name for item in probe.items["gate"].values()}
        elif isinstance(probe, Texts):
            gate |= {leaks.folded(text): probe.name for text in probe.texts["gate"]}
    faults = []
    for example in rows.replayed:
        named = next((gate[text] for text in leaks.said(example.value) if text in gate), None)
        if named is not None:
            what = f"this replayed row of stage {stage} is also a gate item of the probe '{named}'"
            faults.append(AlignError(what, "remove it: what is replayed cannot be measured", place=example.place))
    return faults
