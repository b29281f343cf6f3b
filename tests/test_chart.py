"""The figures of the report: where numbers stand beside an axis, and that what is drawn is text and in its place."""

import re
from xml.etree import ElementTree

import pytest

from align.report import svg, ticks
from align.report.chart import Band, Chart, Curve, Dots, Rule, Span, Stairs

EVIL = '</text><script>alert(1)</script>"&\x00'


@pytest.mark.parametrize(
    ("low", "high", "count", "whole", "expected"),
    [
        (0.0, 1.0, 4, False, [0.0, 0.25, 0.5, 0.75, 1.0]),
        (-0.3, 0.9, 4, False, [0.0, 0.5]),
        (0.0, 120.0, 6, True, [0.0, 20.0, 40.0, 60.0, 80.0, 100.0, 120.0]),
        (1.0, 3.0, 6, True, [1.0, 2.0, 3.0]),
        (0.5, 1.5, 6, True, [1.0]),
        (7.0, 7.0, 4, False, [7.0]),
        (0.00002, 0.00009, 3, False, [2.5e-5, 5e-5, 7.5e-5]),
    ],
)
def test_round_numbers_beside_an_axis(low: float, high: float, count: int, whole: bool, expected: list[float]) -> None:
    assert ticks.linear(low, high, count, whole=whole) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.25, 0.5], ["0", "0.25", "0.50"]),
        ([-0.5, 0.0], ["−0.5", "0"]),
        ([0.0, 20000.0], ["0", "20,000"]),
        ([0.0, 2e-5], ["0", "2e−5"]),
        ([-2.5e-5, 1.25e-4], ["−2.5e−5", "1.25e−4"]),
        ([0.0, 3e7], ["0", "3e7"]),
    ],
)
def test_numbers_have_as_many_decimals_as_tell_them_apart(values: list[float], expected: list[str]) -> None:
    assert ticks.texts(values) == expected


def everything() -> Chart:
    up = ((0.0, 1.0), (10.0, 2.0), (20.0, 4.0))
    return Chart(
        EVIL,
        ((EVIL, "blue"),),
        EVIL,
        EVIL,
        [
            Curve(up, "blue", EVIL),
            Dots(up, "orange", (3.0, 4.0, 5.0), (0.2, 0.6, 1.0), name="dots", labels=(EVIL, "b", "c")),
            Band(up, tuple((x, y + 1) for x, y in up), "green"),
            Stairs((0.0, 10.0, 20.0), (3.0, 1.0), "purple", "counts"),
            Rule(10.0, True, "orange", "3 2", EVIL),
            Rule(2.0, False),
            Span(10.0, 20.0, "orange", EVIL),
        ],
    )


def test_a_figure_is_well_formed_and_its_texts_are_texts() -> None:
    drawn = svg.draw(everything()).replace("\x00", "?")  # which the page shows as a sign
    root = ElementTree.fromstring(drawn)
    assert {node.tag for node in root.iter()} == {"svg", "text", "tspan", "line", "path", "circle", "rect", "g"}
    told = "".join(root.itertext())
    assert told.count("</text><script>alert(1)</script>") == 6, "head, two labels, curve, rule, span"
    assert root.attrib["aria-label"] == EVIL.replace("\x00", "?")


def test_every_point_lies_between_the_ends_of_its_axes() -> None:
    root = ElementTree.fromstring(svg.draw(everything()).replace("\x00", "?"))
    width, height = (float(number) for number in root.attrib["viewBox"].split()[2:])
    places = [(float(node.attrib["cx"]), float(node.attrib["cy"])) for node in root.iter("circle")]
    assert (
        len(places) == 3
        and places == sorted(places)
        and [y for _, y in places] == sorted((y for _, y in places), reverse=True)
    )
    assert all(0 < x < width and 0 < y < height for x, y in places)
    (x0, y0), (x1, y1), (x2, y2) = places  # 0, 10, 20 and 1, 2, 4 at equal scale
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and (y1 - y2) == pytest.approx(2 * (y0 - y1), abs=0.3)


def test_the_table_has_every_named_mark_and_nothing_else() -> None:
    table = everything().table()
    assert table.head == ("", "step", EVIL, "dots", "counts")
    assert table.rows == (
        (EVIL, "0", "1", "1", "3"), ("b", "10", "2", "2", "1"), ("c", "20", "4", "4", ""),
    )  # fmt: skip
    long = Chart("long", marks=[Curve(tuple((float(x), 0.5) for x in range(100)), "blue", "y")]).table()
    assert (long.every, len(long.rows), long.rows[-1]) == (5, 21, ("99", "0.5"))


def test_points_that_lie_on_each_other_share_a_label() -> None:
    points = ((0.0, 0.0), (1.0, 1.0), (1.0, 1.0))
    chart = Chart("x", marks=[Dots(points, "blue", (4.0, 4.0, 4.0), labels=("base", "sft", "ppo"))])
    drawn = ElementTree.fromstring(svg.draw(chart))
    assert [node.text for node in drawn.iter("text") if "600" in node.attrib["style"]] == ["base", "sft, ppo"]


def test_a_level_curve_is_drawn_level() -> None:
    level = tuple((float(x), sum([0.1] * 3) / 3 if x % 2 else 0.1) for x in range(4))
    assert len({y for _, y in level}) == 2, "as a moving mean rounds them"
    path = re.findall(r'<path d="M([^"]*)"', svg.draw(Chart("x", marks=[Curve(level, "blue")])))[0]
    assert len({place.split()[1] for place in path.split("L")}) == 1


def test_a_long_curve_is_drawn_in_stretches() -> None:
    points = [(float(x), float(x)) for x in range(1000)]
    found = svg.thinned(points)
    assert len(found) == svg.MAX_POINTS and found[0] == (1.5, 1.5) and svg.thinned(points[:5]) == tuple(points[:5])
    assert not re.search("nan|inf", svg.draw(Chart("x", marks=[Curve((), "blue")])))
