"""The figures of the report: which there are, in the order in which the page shows them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

from align.forgetting.table import Forgetting
from align.report import balance, inside_plots, plots, reward_plots, rollout_plots, snr
from align.report.chart import Chart
from align.report.reward_page import reward_page
from align.report.rollout_page import kl_target
from align.report.schema import Report, StageRecord


@dataclass(frozen=True)
class StageFigures:
    """Those of one stage: its curves, what was measured inside it, its rollouts (`large` and `small`), its pairs, and
    what Spectrum measured."""

    curves: tuple[Chart, ...]
    inside: tuple[Chart, ...]
    large: tuple[Chart, ...]
    small: tuple[Chart, ...]
    reward: tuple[Chart, ...]
    scan: tuple[Chart, ...]

    def all(self) -> Iterator[Chart]:
        for group in fields(self):
            yield from getattr(self, group.name)

    @property
    def untold(self) -> tuple[Chart, ...]:
        """Those whose numbers stand in no table of their own."""
        return tuple(chart for chart in self.all() if chart not in self.inside)


@dataclass(frozen=True)
class Figures:
    """All of a report. The matrix has a figure too, whose numbers are its table."""

    balance: Chart | None
    stages: dict[str, StageFigures]

    def all(self) -> Iterable[Chart]:
        """In the order of the page."""
        if self.balance:
            yield self.balance
        for stage in self.stages.values():
            yield from stage.all()


def figures(report: Report) -> Figures:
    """What there is to draw."""
    forgetting = report.forgetting or Forgetting()
    return Figures(balance.chart(forgetting), {stage.id: _of_stage(stage) for stage in report.stages})


def _of_stage(stage: StageRecord) -> StageFigures:
    target, rewarded = kl_target(stage), reward_page(stage)
    return StageFigures(
        curves=tuple(plots.of_stage(stage)),
        inside=tuple(inside_plots.draw(stage)),
        large=tuple(rollout_plots.large(stage.rollouts, target, stage.id)),
        small=tuple(rollout_plots.small(stage.rollouts, target, stage.id)),
        reward=tuple(reward_plots.draw(rewarded, stage.id)) if rewarded else (),
        scan=tuple(snr.draw(stage.spectrum)) if stage.spectrum else (),
    )
