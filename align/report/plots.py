"""The figures of the report: the heat map of the matrix, and the curves of a stage, as inline SVG.

matplotlib is imported here and only when a figure is drawn; nothing of its global state is used. Colours are words that
the page resolves (`var(--blue)`), so that one figure suits a light page, a dark page and print.
"""

import io
import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from align.forgetting.table import Cell, Forgetting, ProbeEntry
from align.report import curves, findings, numbers
from align.report.reward_page import reward_page
from align.report.rollout_page import kl_target
from align.report.schema import StageRecord
from align.report.svg import PALETTE, RC, canvas, clip, finish, inline, inset, smooth, thinned, whole
from align.spectrum.records import Spectrum

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS: Final = (
    ("rewards/margins", "reward margin", "green"),
    ("rewards/accuracies", "preferred answer ranked first", "purple"),
    ("margin", "reward margin", "green"),
    ("accuracy", "preferred answer ranked first", "purple"),
    ("reward", "reward", "green"),
    ("kl", "KL to the reference", "purple"),
    ("learning_rate", "learning rate", "muted"),
)
"""Logged numbers that get a small panel of their own where a stage logs them."""

OF_ROLLOUTS: Final = frozenset({"reward", "kl"})
"""Those of them that the figures of the rollouts show, where a stage has any."""


@dataclass(frozen=True)
class Drawing:
    """One inline SVG: `svg` is markup made here, safe to put on the page; `title` says what it shows."""

    title: str
    svg: str


class Plotter:
    """Draws the figures of one page; the ids of every figure are its own."""

    def __init__(self) -> None:
        import matplotlib

        self._context = matplotlib.rc_context
        self._serial = itertools.count(1)

    def heat_map(self, forgetting: Forgetting) -> Drawing:
        """The matrix as shades: a deeper cell is a better score, an orange frame a capability that was forgotten."""
        with self._context(RC):
            return self._drawing(_heat_map(forgetting), "Scores after every stage")

    def curves(self, stage: StageRecord) -> list[Drawing]:
        """The loss of a stage, train and eval on one axis, and a small panel for each other number worth seeing."""
        found = []
        with self._context(RC):
            train, evaluation = curves.train_loss(stage), curves.eval_loss(stage)
            if train or evaluation:
                found.append(self._drawing(_loss(train, evaluation), f"Loss of {stage.id}"))
            for key, title, colour in PANELS:
                points = curves.finite(stage.series(key))
                if len(points) > 1 and not (stage.rollouts and key in OF_ROLLOUTS):
                    found.append(self._drawing(_panel(points, title, PALETTE[colour]), f"{title} of {stage.id}"))
        return found

    def spectrum(self, scan: Spectrum) -> Drawing:
        """The ratios of a scan by type and layer; filled where the layer was trained."""
        from align.report import snr

        with self._context(RC):
            return self._drawing(snr.figure(scan), "Signal-to-noise ratio by type and layer")

    def rollouts(self, stage: StageRecord) -> dict[str, list[Drawing]]:
        """`large`: score, and score against KL; `small`: a panel for each other measurement of the rollouts."""
        from align.report import rollout_plots

        with self._context(RC):
            target = kl_target(stage)
            drawn = {"large": rollout_plots.large, "small": rollout_plots.small}
            return {
                size: [
                    self._drawing(figure, f"{title} of {stage.id}") for title, figure in draw(stage.rollouts, target)
                ]
                for size, draw in drawn.items()
            }

    def reward(self, stage: StageRecord) -> list[Drawing]:
        """How a reward model scores better and worse answers, and whether it is as sure as it is right."""
        from align.report import reward_plots

        page = reward_page(stage)
        with self._context(RC):
            drawn = reward_plots.draw(page) if page else ()
            return [self._drawing(figure, f"{title} of {stage.id}") for title, figure in drawn]

    def _drawing(self, figure: "Figure", title: str) -> Drawing:
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the reader's fonts draw the text
            figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
        return Drawing(title, inline(buffer.getvalue(), f"f{next(self._serial)}"))


def _heat_map(forgetting: Forgetting) -> "Figure":
    stages = [name for name in forgetting.stages if name in forgetting.matrix]
    rows: list[tuple[float, str]] = []
    y = 0.0
    for group in findings.groups(forgetting):
        for name in group.probes:
            rows.append((y, name))
            y += 1
        y += 0.35
    label = min(2.6, 0.25 + 0.078 * max(len(name) for _, name in rows))
    figure, axes = canvas(label + 0.78 * len(stages), 0.45 + 0.3 * y)
    inset(figure, axes, label, 0.05, 0.4, 0.02)
    for y, name in rows:
        probe = forgetting.probes[name]
        row = [forgetting.matrix[stage].get(name, Cell()) for stage in stages]
        for x, (cell, shade) in enumerate(zip(row, _shades(row, probe), strict=True)):
            _square(axes, x, y, cell, probe, shade)
    axes.set(xlim=(-0.5, len(stages) - 0.5), ylim=(rows[-1][0] + 0.55, -0.55))
    axes.set_xticks(range(len(stages)), [clip(stage, 11) for stage in stages], color=PALETTE["ink"], weight="bold")
    axes.set_yticks([y for y, _ in rows], [clip(name, 30) for _, name in rows], color=PALETTE["ink"])
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    return figure


def _square(axes: Any, x: int, y: float, cell: Cell, probe: ProbeEntry, shade: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    forgot = cell.verdict == "FORGOT"
    corner, round_off = (x - 0.44, y - 0.4), "round,pad=0,rounding_size=0.1"
    axes.add_patch(FancyBboxPatch(corner, 0.88, 0.8, round_off, facecolor=PALETTE["heat"], alpha=shade, linewidth=0))
    if forgot:
        frame = FancyBboxPatch(corner, 0.88, 0.8, round_off, fill=False, edgecolor=PALETTE["orange"], linewidth=1.6)
        axes.add_patch(frame)
    score, weight = numbers.score(cell.score, probe), "bold" if forgot else "normal"
    axes.text(x - 0.05, y, score, ha="center", va="center_baseline", fontsize=9, weight=weight)
    mark = {"FORGOT": ("▼", PALETTE["orange"]), "UNCLEAR": ("?", PALETTE["ink"])}.get(cell.verdict or "")
    if mark:
        axes.text(x + 0.4, y, mark[0], color=mark[1], ha="right", va="center_baseline", fontsize=7, weight="bold")


def _shades(row: Sequence[Cell], probe: ProbeEntry) -> list[float]:
    """Opacity of every cell: its score where that lies between 0 and 1, else the best score of the row over it."""
    scores = [cell.score for cell in row if cell.score is not None]
    if probe.higher_is_better:
        top = max([1.0, *scores])
        parts = [(cell.score or 0.0) / top for cell in row]
    else:
        parts = [min(scores) / cell.score if cell.score else 0.0 for cell in row]
    return [0.05 + 0.5 * min(1.0, max(0.0, part)) for part in parts]


def _loss(train: curves.Points, evaluation: curves.Points) -> "Figure":
    figure, axes = canvas(5.2, 2.7)
    inset(figure, axes, 0.55, 0.15, 0.3, 0.42)
    points = thinned(curves.finite(train))
    if points:
        steps, values = zip(*points, strict=True)
        long = len(points) >= curves.MIN_POINTS
        axes.plot(steps, values, color=PALETTE["blue"], linewidth=0.8 if long else 1.8, alpha=0.35 if long else 1)
        if long:
            axes.plot(steps, smooth(values), color=PALETTE["blue"], linewidth=1.8)
    points = thinned(curves.finite(evaluation))
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=PALETTE["orange"], linewidth=1.8, marker="o", markersize=3.5)
        low = min(points, key=lambda point: point[1])
        axes.plot(*low, marker="o", markersize=8, fillstyle="none", color=PALETTE["orange"])
        if curves.overfitting(train, evaluation).tone == "bad":
            axes.axvspan(low[0], steps[-1], color=PALETTE["orange"], alpha=0.1, linewidth=0)
            top = {"transform": axes.get_xaxis_transform(), "ha": "right", "va": "top"}
            axes.text(steps[-1], 0.98, "overfits ", color=PALETTE["orange"], fontsize=8, **top)
    axes.set_title("train loss", loc="left", color=PALETTE["blue"], fontsize=9, weight="bold", x=0.0)
    if points:
        text = "eval loss (ring: its lowest)"
        axes.text(0.165, 1.035, text, transform=axes.transAxes, color=PALETTE["orange"], fontsize=9, weight="bold")
    whole(axes)
    finish(axes, "step")
    return figure


def _panel(points: curves.Points, title: str, colour: str) -> "Figure":
    figure, axes = canvas(2.5, 1.3)
    inset(figure, axes, 0.5, 0.12, 0.26, 0.24)
    steps, values = zip(*thinned(points), strict=True)
    axes.plot(steps, values, color=colour, linewidth=1.5)
    axes.set_title(title, loc="left", fontsize=8.5, color=colour, weight="bold", x=0)
    axes.tick_params(labelsize=8)
    axes.locator_params(nbins=3)
    whole(axes)
    if max(values) < 0.01:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-") if value else "0")
    finish(axes, "")
    return figure
