"""A figure before it is drawn: curves, points, bands and lines over two axes, and the same as a table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from align.report import numbers

Point: TypeAlias = tuple[float, float]
Colour: TypeAlias = Literal["ink", "muted", "line", "blue", "orange", "green", "purple"]

TABLE_ROWS: Final = 24
"""Rows of a figure's table at most; of more points every n-th is told, and the last."""


@dataclass(frozen=True)
class Curve:
    """Points joined by a line; `name` heads its column of the table, and one without a name has none."""

    points: tuple[Point, ...]
    colour: Colour
    name: str = ""
    width: float = 2.2
    opacity: float = 1.0
    dots: float = 0.0  # their radius
    dashed: bool = False


@dataclass(frozen=True)
class Dots:
    """Points alone, with a radius and an opacity each."""

    points: tuple[Point, ...]
    colour: Colour
    radii: tuple[float, ...]
    shades: tuple[float, ...] = ()
    shape: Literal["disc", "ring", "down"] = "disc"
    name: str = ""
    labels: tuple[str, ...] = ()  # beside each point


@dataclass(frozen=True)
class Band:
    """What lies between two curves over the same x."""

    low: tuple[Point, ...]
    high: tuple[Point, ...]
    colour: Colour


@dataclass(frozen=True)
class Stairs:
    """Counts over the stretches between `edges`, one fewer than these."""

    edges: tuple[float, ...]
    counts: tuple[float, ...]
    colour: Colour
    name: str


@dataclass(frozen=True)
class Rule:
    """A line from end to end, at a value of x (`vertical`) or of y; `text` stands beside a vertical one."""

    at: float
    vertical: bool
    colour: Colour = "ink"
    dash: str = ""
    text: str = ""
    row: int = 0  # of the text, from below


@dataclass(frozen=True)
class Span:
    """The stretch of x between two values, shaded."""

    low: float
    high: float
    colour: Colour
    text: str = ""


Mark: TypeAlias = Curve | Dots | Band | Stairs | Rule | Span


@dataclass(frozen=True)
class Table:
    """A figure's numbers as text."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    every: int = 1  # of how many rows one is shown


@dataclass
class Chart:
    """One figure.

    Attributes:
        title: what it shows, in words, for those who do not see it.
        heads: texts above it with their colours, which name its curves.
        x_name: what x is, at the head of the table.
        told: what the table has beside the marks.
        whole_x: only whole numbers stand below the axis: there is no step 1.5.
        y_ends: ends of the axis that are not to be found from the marks.
    """

    title: str
    heads: tuple[tuple[str, Colour], ...] = ()
    x_label: str = ""
    y_label: str = ""
    marks: list[Mark] = field(default_factory=list)
    size: tuple[int, int] = (500, 260)
    x_name: str = "step"
    told: tuple[Curve, ...] = ()
    whole_x: bool = True
    whole_y: bool = False
    log_y: bool = False
    y_ends: tuple[float, float] | None = None

    @property
    def small(self) -> bool:
        """Whether it is one of several panels."""
        return self.size[0] < 300

    def points(self) -> Iterator[Point]:
        """Every point that must be seen."""
        for mark in self.marks:
            match mark:
                case Curve() | Dots():
                    yield from mark.points
                case Band():
                    yield from (*mark.low, *mark.high)
                case Stairs():
                    yield from zip(mark.edges, (0.0, *mark.counts), strict=True)
                case Rule():
                    yield from ((mark.at, y) if mark.vertical else (x, mark.at) for x, y in self._first_point())

    def _first_point(self) -> Sequence[Point]:
        drawn = [mark.points for mark in self.marks if isinstance(mark, Curve | Dots) and mark.points]
        return drawn[0][:1] if drawn else ()

    def named(self) -> list[Curve | Dots | Stairs]:
        """What has a column of the table."""
        return [mark for mark in (*self.marks, *self.told) if isinstance(mark, Curve | Dots | Stairs) and mark.name]

    def table(self) -> Table:
        """The named curves and points as columns over their common x."""
        named = self.named()
        columns = [values(mark) for mark in named]
        xs = sorted({x for column in columns for x in column})
        labels = {
            point[0]: label
            for mark in named
            if isinstance(mark, Dots)
            for point, label in zip(mark.points, mark.labels, strict=False)
        }
        every = max(1, -(-len(xs) // TABLE_ROWS))
        shown = [*xs[: len(xs) - 1 : every], *xs[-1:]]
        rows = [
            (*((labels.get(x, ""),) if labels else ()), numbers.plain(x), *(_told(column, x) for column in columns))
            for x in shown
        ]
        lead = ("", self.x_name) if labels else (self.x_name,)
        return Table(self.title, (*lead, *(mark.name for mark in named)), tuple(rows), every)


def values(mark: Curve | Dots | Stairs) -> dict[float, float]:
    """Its y by x."""
    points = zip(mark.edges, mark.counts, strict=False) if isinstance(mark, Stairs) else mark.points
    return dict(points)


def _told(column: dict[float, float], x: float) -> str:
    return numbers.plain(column[x]) if x in column else ""
