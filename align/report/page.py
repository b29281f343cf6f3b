"""The report as a page, before it is HTML, Markdown or JSON: every sentence and figure that all of them show."""

from dataclasses import dataclass
from datetime import UTC, datetime

from align.forgetting.table import Forgetting
from align.report import findings, sentence
from align.report.answers_page import Answered, answered
from align.report.balance import Balance, balance
from align.report.branch_page import Branching, branchings
from align.report.coverage import Buffer, Coverage, buffers, coverage
from align.report.decisions_page import Decided, decided
from align.report.details_page import Details, MendedGroup, details, mended
from align.report.distance_page import Distances, distances
from align.report.ends_page import End, end_page
from align.report.facts import facts
from align.report.headline import Headline, headline
from align.report.matrix_page import Block, Row, blocks, columns, summary
from align.report.method_page import ACTIONS, measured
from align.report.next_step import Step, steps
from align.report.sampled_page import BrokenGroup, SampleGroup, broken, samples
from align.report.schema import Report
from align.report.stage_page import Fact, StagePage, flat, stage_page
from align.report.under_way import UnderWay, under_way


@dataclass(frozen=True)
class Page:
    """The whole report."""

    title: str
    headline: Headline
    verdict: str
    under_way: UnderWay | None
    written: str
    facts: tuple[Fact, ...]
    columns: tuple[tuple[str, str], ...]
    blocks: tuple[Block, ...]
    summary: tuple[Row, ...]
    missing: tuple[Fact, ...]
    notes: tuple[str, ...]
    nothing: str
    answered: tuple[Answered, ...]
    balance: Balance | None
    branchings: tuple[Branching, ...]
    ends: tuple[End, ...]
    distances: Distances
    broken: tuple[BrokenGroup, ...]
    details: tuple[Details, ...]
    mended: tuple[MendedGroup, ...]
    coverage: tuple[Coverage, ...]
    buffers: tuple[Buffer, ...]
    decisions: tuple[Decided, ...]
    steps: tuple[Step, ...]
    samples: tuple[SampleGroup, ...]
    stages: tuple[StagePage, ...]
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
        headline=headline(report),
        verdict=sentence.verdict_line(report),
        under_way=under_way(report),
        written=f"{datetime.now(UTC):%H:%M:%S} UTC",
        facts=tuple(facts(report)),
        columns=tuple((name, forgetting.parent.get(name, "")) for name in columns(forgetting)),
        blocks=tuple(blocks(forgetting)),
        summary=tuple(summary(forgetting)),
        missing=tuple(Fact(name, why) for name, why in {**forgetting.no_row, **forgetting.left_out}.items()),
        notes=tuple(sentence.notes(forgetting)),
        nothing="" if forgetting.matrix else f"{sentence.nothing(report)}.",
        balance=balance(forgetting),
        answered=tuple(answered(report)),
        branchings=tuple(branchings(report)),
        ends=tuple(end_page(forgetting, stage) for stage in findings.ends(forgetting)),
        distances=distances(forgetting),
        broken=tuple(broken(report)),
        details=tuple(details(forgetting)),
        mended=tuple(mended(report)),
        coverage=tuple(coverage(forgetting)),
        buffers=tuple(buffers(report)),
        decisions=tuple(decided(report)),
        steps=tuple(steps(report)),
        samples=tuple(samples(report, forgetting)),
        stages=tuple(stage_page(stage, report.forgetting) for stage in report.stages),
        measured=tuple(measured(forgetting, report)),
        thresholds=tuple(fact for fact in flat(forgetting.thresholds) if fact.label not in ACTIONS),
        recipe=report.recipe,
        versions=tuple(Fact(name, version) for name, version in {"align": report.run.align, **versions}.items()),
    )
