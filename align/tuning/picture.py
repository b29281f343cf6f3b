"""The trials as a picture: what each gained, over what it forgot."""

from __future__ import annotations

from align.report import svg
from align.report.chart import Chart, Colour, Dots, Mark
from align.tuning.result import Result
from align.tuning.study import Tried


def drawn(found: Result) -> str:
    """An SVG file: filled, trials that came to their end, the front and the best in colour; rings, those ended early,
    at the step that they came to."""
    done = [one for one in found.trials if one.record.state == "done"]
    best = found.best.record.number
    groups: list[tuple[str, Colour, list[Tried]]] = [
        ("best", "green", [found.best]),
        ("on the front", "blue", [one for one in done if one.record.number in found.front and one is not found.best]),
        ("other trials", "muted", [one for one in done if one.record.number not in {*found.front, best}]),
    ]
    early = [one for one in found.trials if one.record.state == "ended early"]
    marks: list[Mark] = [_dots(trials, colour) for _, colour, trials in groups if trials]
    marks += [_dots(early, "line", ring=True)] if early else []
    heads: list[tuple[str, Colour]] = [(name, colour) for name, colour, trials in groups if trials]
    heads += [("ended early", "muted")] if early else []
    chart = Chart(
        title="What each trial gained, over what it forgot",
        heads=tuple(heads),
        x_label="forgotten: fall of the mean of the skills",
        y_label="gain",
        x_name="forgotten",
        whole_x=False,
        marks=marks,
    )
    return svg.alone(svg.draw(chart))


def _dots(trials: list[Tried], colour: Colour, *, ring: bool = False) -> Dots:
    points = tuple((one.last.forgotten or 0.0, one.last.gain) for one in trials if one.last is not None)
    labels = tuple(str(one.record.number) for one in trials if one.last is not None)
    return Dots(points, colour, (4.0,) * len(points), shape="ring" if ring else "disc", labels=labels)
