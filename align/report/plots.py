"""The curves of a stage: its loss, and a small panel for each other number that it logs."""

from typing import Final

from align.report import curves
from align.report.chart import Chart, Colour, Curve, Dots, Mark, Span
from align.report.schema import StageRecord
from align.report.svg import smooth, thinned

PANELS: Final[tuple[tuple[str, str, Colour], ...]] = (
    ("rewards/margins", "reward margin", "green"),
    ("rewards/accuracies", "preferred answer ranked first", "purple"),
    ("margin", "reward margin", "green"),
    ("accuracy", "preferred answer ranked first", "purple"),
    ("reward", "reward", "green"),
    ("kl", "KL to the reference", "purple"),
    ("loss/kl", "KL to the incoming policy", "purple"),
    ("gradient_ratio/ewc", "gradient of EWC / task's", "orange"),
    ("gradient_ratio/l2_sp", "gradient of L2-SP / task's", "orange"),
    ("learning_rate", "learning rate", "muted"),
)
"""Logged numbers that get a small panel of their own where a stage logs them."""

OF_ROLLOUTS: Final = frozenset({"reward", "kl"})
"""Those of them that the figures of the rollouts show, where a stage has any."""

LARGE: Final = (500, 260)
PANEL: Final = (240, 130)


def of_stage(stage: StageRecord) -> list[Chart]:
    """The loss of a stage, train and eval on one axis, and a small panel for each other number worth seeing."""
    found = []
    train, evaluation = curves.train_loss(stage), curves.eval_loss(stage)
    if train or evaluation:
        found.append(loss(train, evaluation, f"Loss of {stage.id}"))
    for key, title, colour in PANELS:
        points = curves.finite(stage.series(key))
        if len(points) > 1 and not (stage.rollouts and key in OF_ROLLOUTS):
            found.append(panel(points, title, colour, f"{title} of {stage.id}"))
    return found


def loss(train: curves.Points, evaluation: curves.Points, title: str) -> Chart:
    """Train and eval loss by step; the lowest eval loss has a ring, and what follows it is shaded if it overfits."""
    marks: list[Mark] = []
    points = thinned(curves.finite(train))
    if points:
        long = len(points) >= curves.MIN_POINTS
        width, opacity = (1.0, 0.35) if long else (2.2, 1.0)
        marks.append(Curve(points, "blue", "train loss", width=width, opacity=opacity))
        if long:
            means = smooth([value for _, value in points])
            steps = [step for step, _ in points]
            marks.append(Curve(tuple(zip(steps, means, strict=True)), "blue"))
    heads: list[tuple[str, Colour]] = [("train loss", "blue")]
    measured = thinned(curves.finite(evaluation))
    if measured:
        low = min(measured, key=lambda point: point[1])
        if curves.overfitting(train, evaluation).tone == "bad":
            marks.insert(0, Span(low[0], measured[-1][0], "orange", "overfits"))
        marks.append(Curve(measured, "orange", "eval loss", dots=3))
        marks.append(Dots((low,), "orange", (6.5,), shape="ring"))
        heads.append(("eval loss (ring: its lowest)", "orange"))
    return Chart(title, tuple(heads), "step", marks=marks, size=LARGE)


def panel(points: curves.Points, head: str, colour: Colour, title: str) -> Chart:
    """One number by step."""
    return Chart(title, ((head, colour),), marks=[Curve(thinned(points), colour, head, width=1.8)], size=PANEL)
