"""Plots as SVG: the points are where the figures say."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from deocc.errors import UsageError
from deocc.report import html
from deocc.report.html import Section, Strip, Table
from deocc.report.plot import Line, Panel, Plot, Points, histograms, intervals, lines

UNIT = {"x_label": "x", "y_label": "y", "caption": "c", "x_range": (0, 1), "y_range": (0, 1)}


def parsed(plot: Plot) -> ElementTree.Element:
    return ElementTree.fromstring(plot.svg)


def points(plot: Plot, number: int = 0) -> list[tuple[float, float]]:
    curve = parsed(plot).findall("polyline")[number]
    return [tuple(map(float, pair.split(","))) for pair in curve.attrib["points"].split()]


def words(plot: Plot) -> list[str]:
    return [text.text or "" for text in parsed(plot).findall("text")]


def test_lines_lie_where_their_numbers_say() -> None:
    plot = lines([Line("a", 2, [0, 0.5, 1], [0, 0.25, 1])], **UNIT)
    (left, bottom), (middle, quarter), (right, top) = points(plot)
    assert middle == pytest.approx((left + right) / 2, abs=0.1)
    assert bottom - quarter == pytest.approx((bottom - top) / 4, abs=0.1)
    assert top < bottom
    assert {"0", "0.2", "1", "x", "y"} <= set(words(plot))
    assert plot.legend == [("a", 2)]


def test_logarithmic_axis() -> None:
    curve = Line("a", 0, [0, 0, 0.0005, 0.01, 0.1, 1], [0, 0.1, 0.3, 0.5, 0.6, 1])
    plot = lines([curve], **{**UNIT, "x_range": (0.001, 1), "log_x": True})
    (x0, y0), (x1, _), (x2, _), (x3, _) = points(plot)
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 == pytest.approx(294 - 0.3 * 284, abs=0.1), "the highest rate so far"
    assert {"0.1 %", "1 %", "10 %", "100 %"} <= set(words(plot))


def test_intervals() -> None:
    series = [Points("a", 1, [0.2, None], [0.1, None], [0.4, None]), Points("b", 2, [0.5, 0.6])]
    plot = intervals(["first", "second"], series, x_label="x", caption="c", x_range=(0, 1))
    found = parsed(plot)
    dots = [float(dot.attrib["cx"]) for dot in found.findall("circle")]
    assert len(dots) == 3
    assert dots[0] < dots[1] < dots[2]
    (bar,) = [line for line in found.findall("line") if "solid" in line.attrib["class"]]
    assert float(bar.attrib["x1"]) < dots[0] < float(bar.attrib["x2"])
    long = intervals(["a long name of a group" * 3], [Points("b", 2, [0.5])], x_label="x", caption="c", x_range=(0, 1))
    assert any(text.endswith("…") for text in words(long))


def test_histograms_share_their_axis() -> None:
    panels = [Panel("one", ([0, 4, 0, 0], [0, 0, 2, 0])), Panel("two", ([0, 1, 1, 0], [0, 0, 1, 0]), mark=0.5)]
    plot = histograms([-1, -0.5, 0, 0.5, 1], panels, [("a", 2), ("b", 1)], x_label="x", caption="c", mark="here")
    found = parsed(plot)
    areas = [
        [tuple(map(float, pair.split(","))) for pair in area.attrib["points"].split()]
        for area in found.findall("polygon")
    ]
    assert len(areas) == 4
    heights = [max(y for _, y in area) - min(y for _, y in area) for area in areas]
    assert heights[0] == heights[1] == 2 * heights[2], "each to its own total"
    assert {area[0][0] for area in areas} == {14.0}, "empty bins at the ends are left out"
    assert plot.legend == [("a", 2), ("b", 1), ("here", 0)]
    assert len([line for line in found.findall("line") if line.attrib["class"] == "curve s0"]) == 1


@pytest.mark.parametrize(
    "draw",
    [
        lambda: lines([], **{**UNIT, "x_range": (1, 1)}),
        lambda: lines([], **{**UNIT, "log_x": True}),
        lambda: lines([Line("a", 8, [0], [0])], **UNIT),
        lambda: intervals([], [], x_label="x", caption="c", x_range=(0, 1)),
        lambda: intervals(["a"], [Points("b", 1, [])], x_label="x", caption="c", x_range=(0, 1)),
        lambda: histograms([0, 1], [Panel("a", ([0],))], [("b", 1)], x_label="x", caption="c"),
        lambda: histograms([0, 1], [Panel("a", ([0, 1],))], [("b", 1)], x_label="x", caption="c"),
    ],
)
def test_refusals(draw) -> None:
    with pytest.raises(UsageError):
        draw()


def test_everything_is_escaped() -> None:
    evil = "</svg><script>\"&'"
    plots = [
        lines([Line(evil, 1, [0, 1], [0, 1])], **{**UNIT, "x_label": evil, "y_label": evil, "caption": evil}),
        intervals([evil], [Points(evil, 1, [0.5])], x_label=evil, caption=evil, x_range=(0, 1)),
        histograms([0, 1], [Panel(evil, ([1],))], [(evil, 1)], x_label=evil, caption=evil),
    ]
    for plot in plots:
        parsed(plot)
    page = html(evil, notes=[evil], sections=[Section(evil, [*plots, Table([evil], [[evil]]), Strip(evil, [])], evil)])
    assert "<script" not in page
    assert page.count("<svg") == page.count("</svg>")


def test_sections_in_a_page() -> None:
    plot = lines([Line("a", 2, [0, 1], [0, 1])], **UNIT)
    sections = [
        Section("one", [plot, plot, Table(["t"], [["1"]])]),
        Section("two", folded=True),
        Section("three", level=3),
    ]
    page = html("title", sections=sections)
    assert page.count('<div class="plots">') == 1, "neighbours share a line"
    assert re.search(r"<details>\s*<summary>two</summary>", page)
    assert "<h3>three</h3>" in page
