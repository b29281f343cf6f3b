"""The report as a page, before it is HTML or Markdown: every sentence and figure that both of them show."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from align.forgetting.records import BrokenAnswer, Sample
from align.forgetting.table import Cell, Effect, Forgetting, ProbeEntry
from align.report import curves, findings, numbers, sentence
from align.report.answers_page import Answered, answered
from align.report.branch_page import Branching, branchings
from align.report.change_line import Line, line, scale
from align.report.findings import BASE
from align.report.schema import Report
from align.report.stage_page import Fact, StagePage, flat, stage_page
from align.run_folder.records import Outcome, Policy

BROKEN_SHOWN: Final = 5
"""Broken answers shown of one probe."""

SAMPLES_SHOWN: Final = 6

VIOLATION: Final = "on_violation"
"""Stands among the limits in forgetting.json, and is none."""

VIOLATIONS: Final = {"warn": "is told, and the run goes on", "stop": "ends the run"}

MEANS: Final = {"all": "Mean of all skills", "replayed": "Mean, in the replay", "not_replayed": "Mean, not replayed"}


@dataclass(frozen=True)
class Entry:
    """One cell of the matrix."""

    score: str
    change: str = ""
    verdict: str = ""
    direction: str = ""


@dataclass(frozen=True)
class Row:
    """One capability of the matrix, an entry for each column."""

    name: str
    n: int | None
    entries: tuple[Entry | None, ...]


@dataclass(frozen=True)
class Block:
    """Rows of the matrix under one heading."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Section:
    """Changes under one heading."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class End:
    """What a policy that the run hands to its user has learnt and lost, against the base."""

    stage: str
    learnt: tuple[Line, ...]
    lost: tuple[Section, ...]
    unclear: tuple[Line, ...]

    @property
    def drawn(self) -> str:
        """How to read the little axes, where there are any."""
        lines = [*self.learnt, *(line for section in self.lost for line in section.lines), *self.unclear]
        bars = [line.bar for line in lines if line.bar]
        if not bars:
            return ""
        limit = ", the dashed line the tolerated drop" if any(bar.limit is not None for bar in bars) else ""
        return f"Drawn: the change and its 95 % interval; the line is no change{limit}."


@dataclass(frozen=True)
class BrokenGroup:
    """Answers of one probe that were right in the base and are wrong after `stage`; `total` are lost in all."""

    stage: str
    probe: str
    total: int
    shown: tuple[BrokenAnswer, ...]


@dataclass(frozen=True)
class SampleGroup:
    """One prompt of the task and what every stage answered."""

    probe: str
    prompt: str
    outputs: tuple[tuple[str, Sample], ...]


@dataclass(frozen=True)
class Page:
    """The whole report."""

    title: str
    verdict: str
    facts: tuple[Fact, ...]
    columns: tuple[tuple[str, str], ...]
    blocks: tuple[Block, ...]
    summary: tuple[Row, ...]
    missing: tuple[Fact, ...]
    notes: tuple[str, ...]
    nothing: str
    answered: tuple[Answered, ...]
    branchings: tuple[Branching, ...]
    ends: tuple[End, ...]
    advice: tuple[str, ...]
    stages: tuple[StagePage, ...]
    broken: tuple[BrokenGroup, ...]
    samples: tuple[SampleGroup, ...]
    measured: tuple[str, ...]
    thresholds: tuple[Fact, ...]
    recipe: str
    versions: tuple[Fact, ...]


def build(report: Report) -> Page:
    """Everything that the report says, as text; what has not been measured or run is left empty."""
    forgetting = report.forgetting or Forgetting()
    versions: dict[str, str] = {}
    for stage in report.stages:
        versions |= stage.outcome.versions if stage.outcome else {}
    return Page(
        title=report.run.name,
        verdict=sentence.verdict_line(report),
        facts=tuple(_facts(report)),
        columns=tuple((name, forgetting.parent.get(name, "")) for name in _columns(forgetting)),
        blocks=tuple(_blocks(forgetting)),
        summary=tuple(_summary(forgetting)),
        missing=tuple(Fact(name, why) for name, why in {**forgetting.no_row, **forgetting.left_out}.items()),
        notes=tuple(sentence.notes(forgetting)),
        nothing=f"{sentence.nothing(report)}.",
        answered=tuple(answered(report)),
        branchings=tuple(branchings(report)),
        ends=tuple(_end(forgetting, stage) for stage in findings.ends(forgetting)),
        advice=forgetting.advice,
        stages=tuple(stage_page(stage, report.forgetting) for stage in report.stages),
        broken=tuple(_broken(report)),
        samples=tuple(_samples(report, forgetting)),
        measured=tuple(_measured(forgetting, report)),
        thresholds=tuple(fact for fact in flat(forgetting.thresholds) if fact.label != VIOLATION),
        recipe=report.recipe,
        versions=tuple(Fact(name, version) for name, version in {"align": report.run.align, **versions}.items()),
    )


def _facts(report: Report) -> Iterable[Fact]:
    outcomes = [stage.outcome for stage in report.stages if stage.outcome]
    done = sum(stage.entry.status == "done" for stage in report.stages)
    base = described({stage.id: stage.outcome for stage in report.stages if stage.outcome})
    if base:
        yield Fact("Base", base)
    cost = report.quantization
    if cost and cost.ratio is not None:
        effect = Effect(ratio=cost.ratio, ci95=cost.ci95)
        yield Fact("Cost of quantising", f"perplexity {numbers.change(effect)} {numbers.interval(effect)}")
    if report.run.pipeline:
        yield Fact("Pipeline", report.run.pipeline)
    yield Fact("Stages done", f"{done} of {len(report.stages)}")
    if outcomes:
        spent = sum(outcome.seconds + outcome.measure_seconds for outcome in outcomes)
        yield Fact("Training and measuring", numbers.seconds(spent))
    yield Fact("Started", numbers.moment(report.run.created))


def described(outcomes: Mapping[str, Outcome]) -> str:
    """The base by its name, its revision of the Hub, and the precision in which the stages loaded it."""
    policies = {id: policy for id, outcome in outcomes.items() if (policy := outcome.policy or outcome.reward)}
    if not policies:
        return ""
    base = next(iter(policies.values())).base
    loaded: dict[str, list[str]] = {}
    for id, policy in policies.items():
        loaded.setdefault(", ".join(_precision(policy, outcomes[id].dtype)), []).append(id)
    if len(loaded) > 1:
        precisions = [f"{precision or 'unknown'} in {' and '.join(ids)}" for precision, ids in loaded.items()]
    else:
        precisions = list(loaded)
    return ", ".join(filter(None, [base.name, base.revision and f"revision {base.revision}", *precisions]))


def _precision(policy: Policy, dtype: str | None) -> Iterable[str]:
    """`4-bit nf4` and what the rest is in, `bfloat16`, or nothing where an older run does not say."""
    settings = policy.quantization or {}
    if settings.get("load_in_4bit"):
        yield f"4-bit {settings.get('bnb_4bit_quant_type', '')}".rstrip()
    elif settings.get("load_in_8bit"):
        yield "8-bit"
    elif dtype:
        yield dtype
        return
    if settings and dtype:
        yield f"the rest {dtype}"


def _columns(forgetting: Forgetting) -> list[str]:
    return [name for name in forgetting.stages if name in forgetting.matrix]


def _entry(cell: Cell | None, probe: ProbeEntry) -> Entry | None:
    if cell is None:
        return None
    return Entry(
        numbers.score(cell.score, probe), numbers.change(cell), cell.verdict or "",
        findings.direction(cell, probe) or "",
    )  # fmt: skip


def _blocks(forgetting: Forgetting) -> Iterable[Block]:
    columns = _columns(forgetting)
    for group in findings.groups(forgetting):
        rows = []
        for name in group.probes:
            probe = forgetting.probes[name]
            entries = tuple(_entry(forgetting.matrix[column].get(name), probe) for column in columns)
            rows.append(Row(name, probe.n, entries))
        yield Block(group.title, tuple(rows))


def _summary(forgetting: Forgetting) -> Iterable[Row]:
    columns = _columns(forgetting)
    for key, title in MEANS.items():
        cells = [forgetting.mean.get(column, {}).get(key) for column in columns]
        if any(cells):
            n = next((cell.n for cell in cells if cell), None)
            yield Row(title, n, tuple(_entry(cell, ProbeEntry()) for cell in cells))
    for title, values in (
        ("Backward transfer", forgetting.backward_transfer),
        ("Average forgetting", forgetting.average_forgetting),
    ):
        if values:
            trained = [column if column in values and column != BASE else None for column in columns]
            texts = [numbers.figure(values[column]) if column else "" for column in trained]
            yield Row(title, None, tuple(Entry(text) for text in texts))


def _end(forgetting: Forgetting, stage: str) -> End:
    learnt, lost = findings.learnt(forgetting, stage), findings.lost(forgetting, stage)
    unclear = findings.unclear(forgetting, stage)
    up, down = scale(forgetting, learnt), scale(forgetting, lost + unclear)
    sections = [
        Section(group.title, tuple(line(c, forgetting, down) for c in lost if c.name in group.probes))
        for group in findings.groups(forgetting)
    ]
    return End(
        stage,
        tuple(line(c, forgetting, up) for c in learnt),
        tuple(section for section in sections if section.lines),
        tuple(line(c, forgetting, down) for c in unclear),
    )


def _broken(report: Report) -> Iterable[BrokenGroup]:
    """The broken answers of the split that the report reads; of all splits where none is marked with it."""
    split = report.forgetting.split if report.forgetting else None
    for stage in report.stages:
        rows = [row for row in stage.broken if row.split == split] or list(stage.broken)
        for probe in dict.fromkeys(row.probe for row in rows):
            found = [row for row in rows if row.probe == probe]
            cell = report.forgetting.matrix.get(stage.id, {}).get(probe) if report.forgetting else None
            total = max(len(found), cell.lost or 0) if cell else len(found)
            yield BrokenGroup(stage.id, probe, total, tuple(found[:BROKEN_SHOWN]))


def _samples(report: Report, forgetting: Forgetting) -> Iterable[SampleGroup]:
    """The same prompts of the task through all stages; prompts of any probe where no probe is a task."""
    tasks = {name.split(" ")[0] for name, probe in forgetting.probes.items() if probe.kind == "task"}
    found: dict[tuple[str, str], list[tuple[str, Sample]]] = {}
    for stage in report.stages:
        rows = [row for row in stage.samples if row.probe.split(" ")[0] in tasks] or stage.samples
        for row in rows:
            found.setdefault((row.probe, str(row.id)), []).append((stage.id, row))
    for (probe, _), outputs in list(found.items())[:SAMPLES_SHOWN]:
        yield SampleGroup(probe, outputs[0][1].prompt, tuple(outputs))


def _measured(forgetting: Forgetting, report: Report) -> Iterable[str]:
    if forgetting.matrix:
        counts = sorted({probe.n for probe in forgetting.probes.values() if probe.n})
        items = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}" if counts else "the same"
        split = f" of the split `{forgetting.split}`" if forgetting.split else ""
        yield (
            f"Each capability is asked {items} held-out items{split}, the same before and after, so every change is "
            f"a paired one."
            + (" A gate decides on other items, which this page does not show." if forgetting.split == "report" else "")
        )
        yield (
            f"The column `{BASE}` is the base model as it was loaded for training (quantised, if the recipe says so), "
            f"before anything was trained. Every change is counted from it, unless the table says otherwise."
        )
        yield (
            "Intervals are paired 95 % intervals: of the difference of the means (right or wrong answers: Bonett and "
            "Price 2012, and p by the exact McNemar test on the answers lost and gained; marks in between: Student's "
            "t); of a perplexity, of the ratio after / before (jackknife over the texts)."
        )
        yield (
            "FORGOT: the whole interval lies past the limit of its capability, a drop or a perplexity ratio. OK: the "
            "whole interval lies within it. UNCLEAR: neither; the number of items that would decide it stands beside "
            "it. What has no verdict has no limit, and no gate looks at it."
        )
        action = forgetting.thresholds.get(VIOLATION)
        if action in VIOLATIONS:
            yield f"A limit that a gate finds broken {VIOLATIONS[str(action)]} (`on_violation: {action}`)."
    if report.quantization:
        yield (
            "The cost of quantising is the perplexity of the probes' running text under the quantised base, over that "
            "under the base in its own precision, before anything is trained."
        )
    yield f"Converged: {curves.CONVERGED_HOW}."
    yield f"Overfits: {curves.OVERFIT_HOW}."
    if any(stage.rollouts for stage in report.stages):
        yield (
            "A rollout is one batch of sampled answers and the updates made from it. Its score is the mean of the "
            "weighted rewards without the KL penalty; its KL the mean over its answers of log pi(y|x) - log ref(y|x), "
            "in nats. An alarm is raised once a run, by the first rollout that meets its condition."
        )
