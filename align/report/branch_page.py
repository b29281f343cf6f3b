"""Stages that go on from one policy, each its own way, side by side: what each gained and what it cost."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from align.forgetting.table import Cell, Forgetting, ProbeEntry
from align.report import findings, numbers
from align.report.findings import BASE
from align.report.schema import Report, StageRecord
from align.run_folder.comparison import Compared, ComparisonResult

NONE: Final = "-"
KL: Final = "KL"


@dataclass(frozen=True)
class Value:
    """One cell; `change` is counted from the parent, and `direction` says whether it is sure."""

    text: str = NONE
    change: str = ""
    direction: str = ""


@dataclass(frozen=True)
class Line:
    """One row, a value for each column."""

    name: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Branching:
    """The branches that leave one policy. The first column is that policy, before any of them."""

    parent: str
    branches: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]


def branchings(report: Report) -> Iterable[Branching]:
    """A table for each policy from which two or more finished stages go on that give a policy."""
    found: dict[str, list[StageRecord]] = {}
    for stage in report.stages:
        parent = stage.entry.inputs.get("policy")
        if isinstance(parent, str) and stage.outcome and stage.outcome.policy:
            found.setdefault(parent, []).append(stage)
    for parent, branches in found.items():
        if len(branches) > 1:
            yield _branching(report, parent, branches)


def _branching(report: Report, parent: str, branches: Sequence[StageRecord]) -> Branching:
    stages = {stage.id: stage for stage in report.stages}
    ids = [parent, *(stage.id for stage in branches)]
    comparison = report.comparison if report.comparison and report.comparison.parent == parent else None
    lines = [*_measured(report.forgetting or Forgetting(), ids), *_sampled(comparison, stages, ids)]
    lines.append(_line("CPU time of training", ids, lambda id: Value(_cpu([id], stages))))
    needs = {stage.id: [id for id in _needed(stage) if id in stages] for stage in branches}
    if any(needs.values()):
        beside = dict.fromkeys(itertools.chain.from_iterable(needs.values()))
        title = f"CPU time of {' and '.join(beside)}, which it needs"
        lines.append(_line(title, ids, lambda id: Value(_cpu(needs.get(id, []), stages))))
    lines.append(_line("Trainable weights", ids, lambda id: Value(_trainable(stages.get(id)))))
    return Branching(parent, tuple(ids[1:]), tuple(lines), tuple(_notes(parent, comparison, lines)))


def _line(name: str, ids: Iterable[str], value: Callable[[str], Value]) -> Line:
    return Line(name, tuple(value(id) for id in ids))


def _measured(forgetting: Forgetting, ids: Sequence[str]) -> Iterable[Line]:
    """Every score of a task, the mean of the skills, and every perplexity."""
    for name, probe in forgetting.probes.items():
        if probe.kind == "task":
            yield _scores(name, probe, forgetting.matrix, forgetting, ids)
    if any("all" in forgetting.mean.get(id, {}) for id in ids):
        means = {id: {"mean": row["all"]} for id, row in forgetting.mean.items() if "all" in row}
        yield _scores("mean", ProbeEntry(), means, forgetting, ids, title="Mean of all skills")
    for name, probe in forgetting.probes.items():
        if probe.metric == "perplexity":
            yield _scores(name, probe, forgetting.matrix, forgetting, ids, title=f"Perplexity of {name}")


def _scores(
    name: str,
    probe: ProbeEntry,
    matrix: Mapping[str, Mapping[str, Cell]],
    forgetting: Forgetting,
    ids: Sequence[str],
    title: str = "",
) -> Line:
    def value(id: str) -> Value:
        cell = matrix.get(id, {}).get(name)
        if cell is None:
            return Value()
        score = numbers.score(cell.score, probe)
        effect = cell if ids[0] == BASE else cell.since_parent
        if id == ids[0] or effect is None:
            return Value(score)
        return Value(score, numbers.change(effect), findings.direction(effect, probe) or "")

    return _line(title or name, ids, value)


def _sampled(
    comparison: ComparisonResult | None, stages: Mapping[str, StageRecord], ids: Sequence[str]
) -> Iterable[Line]:
    """Reward, KL and length of sampled answers on the same prompts; without a comparison the KL that a stage tells."""
    kl = f"{KL} to {ids[0]}, nats an answer"
    if comparison is None:
        told = {id: _metric(stages.get(id), "kl") for id in ids[1:]}
        if any(value is not None for value in told.values()):
            yield _line(kl, ids, lambda id: _plain(told.get(id)))
        return
    compared = {id: comparison.stages.get(id, Compared()) for id in ids}
    yield _line("Mean reward", ids, lambda id: _plain(compared[id].score))
    yield _line(kl, ids, lambda id: Value() if id == ids[0] else _plain(compared[id].kl))
    yield _line("Tokens an answer", ids, lambda id: _plain(compared[id].length))


def _plain(value: float | None) -> Value:
    return Value(NONE if value is None else numbers.plain(float(value)))


def _metric(stage: StageRecord | None, name: str) -> float | None:
    value = stage.outcome.metrics.get(name) if stage and stage.outcome else None
    return float(value) if isinstance(value, int | float) else None


def _needed(stage: StageRecord) -> list[str]:
    """What a stage takes beside the policy: a reward model is not free."""
    sources = [source for name, source in stage.entry.inputs.items() if name != "policy"]
    return [str(id) for source in sources for id in (source if isinstance(source, list) else [source])]


def _cpu(ids: Iterable[str], stages: Mapping[str, StageRecord]) -> str:
    outcomes = [stages[id].outcome for id in ids if id in stages]
    known = [outcome.cpu_seconds for outcome in outcomes if outcome]
    return numbers.seconds(sum(known)) if known else NONE


def _trainable(stage: StageRecord | None) -> str:
    parameters = stage.outcome.parameters if stage and stage.outcome else None
    return f"{parameters['trainable']:,}" if parameters else NONE


def _notes(parent: str, comparison: ComparisonResult | None, lines: Sequence[Line]) -> Iterable[str]:
    if any(value.change for line in lines for value in line.values):
        yield f"Beside a score: its change from {parent}. The branches are not tested against each other."
    if comparison:
        prompts = comparison.prompts
        count = "the same" if prompts.count is None else f"the same {prompts.count:,}"
        kind = "held-out prompts" if prompts.held_out else "training prompts"
        judge = f" (given by {comparison.reward})" if comparison.reward else ""
        source = f" of the stage {prompts.of}" if prompts.of else ""
        yield f"Reward{judge}, KL and length: means over one sampled answer to each of {count} {kind}{source}."
    elif any(line.name.startswith(KL) for line in lines):
        yield f"KL: as a stage measured it itself on the answers that it sampled; {NONE} where it did not."
