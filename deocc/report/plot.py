"""Plots as inline SVG: drawn with the page's own colours, so that they are readable in light and in dark.

A plot's text is set in the page's font and scales with it; its legend stands beside it in the page, where it covers
nothing. Colours and dashes go by a series' ``style``: 0 is the reference (dotted, the ink's colour), 1 what is to be
improved (dashed), 2 to 7 what is compared with it.
"""

from __future__ import annotations

import html as markup
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from deocc.errors import UsageError

__all__ = ["STYLES", "Line", "Panel", "Plot", "Points", "histograms", "intervals", "lines"]

STYLES = 8
"""How many series can be told apart."""

_WIDTH = 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 24, 10, 46
_CHARACTER = 8.3  # width of a digit of 13 px, in a wide font


@dataclass(frozen=True)
class Plot:
    """A drawing for :func:`deocc.report.html`: SVG without script, a caption, and the names of its series by style."""

    svg: str
    caption: str
    legend: Sequence[tuple[str, int]] = ()


@dataclass(frozen=True)
class Line:
    """A curve: x and y of its points, x rising."""

    name: str
    style: int
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Points:
    """A figure for each row of :func:`intervals`, with its interval; None where there is no figure, or no interval."""

    name: str
    style: int
    values: Sequence[float | None]
    lows: Sequence[float | None] = ()
    highs: Sequence[float | None] = ()


@dataclass(frozen=True)
class Panel:
    """One of several histograms over the same bins: counts of each series, each scaled to its own total.

    Attributes:
        title: written in the panel.
        counts: one sequence for each series, as long as there are bins.
        mark: where to draw a vertical line, or None.
    """

    title: str
    counts: Sequence[Sequence[int]]
    mark: float | None = None


@dataclass
class _Drawing:
    height: float
    label: str
    body: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, words: str, anchor: str = "middle", more: str = "") -> None:
        self.body.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{markup.escape(words)}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self.body.append(f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def svg(self) -> str:
        label = markup.escape(self.label, quote=True)
        return "\n".join(
            [f'<svg viewBox="0 0 {_WIDTH} {self.height:.0f}" role="img" aria-label="{label}">', *self.body, "</svg>"]
        )


def lines(
    series: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    caption: str,
    log_x: bool = False,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
) -> Plot:
    """Curves over a linear or logarithmic axis.

    What lies left of ``x_range`` is not drawn; a curve begins with the highest point there is at its left end. Rates
    on a logarithmic axis are written in percent.

    Raises:
        UsageError: an empty range, a logarithmic one that does not begin above 0, or a style that there is not.
    """
    height = 340
    _check(series, x_range, y_range)
    if log_x and x_range[0] <= 0:
        raise UsageError(f"a logarithmic axis must begin above 0, got {x_range[0]:g}")
    drawing = _Drawing(height, f"{y_label} against {x_label}: {caption}")
    to_x = _scale(x_range, (_LEFT, _WIDTH - _RIGHT), log=log_x)
    to_y = _scale(y_range, (height - _BOTTOM, _TOP))
    ticks = _decades(*x_range) if log_x else _ticks(*x_range)
    _grid(drawing, to_x, to_y, ticks, _ticks(*y_range), percent=log_x)
    _labels(drawing, x_label, y_label)
    for line in series:
        points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if x_range[0] <= x <= x_range[1]]
        before = [y for x, y in zip(line.x, line.y, strict=True) if x < x_range[0]]
        if before and (not points or points[0][0] > x_range[0]):
            points.insert(0, (x_range[0], before[-1]))
        path = " ".join(f"{to_x(x):.1f},{to_y(min(max(y, y_range[0]), y_range[1])):.1f}" for x, y in points)
        title = f"<title>{markup.escape(line.name)}</title>"
        drawing.body.append(f'<polyline class="curve s{line.style}" points="{path}">{title}</polyline>')
    return Plot(drawing.svg(), caption, [(line.name, line.style) for line in series])


def intervals(
    rows: Sequence[str], series: Sequence[Points], *, x_label: str, caption: str, x_range: tuple[float, float]
) -> Plot:
    """Figures with their intervals, a row for each group and a line in it for each series.

    Raises:
        UsageError: no rows, an empty range, or a series of another length than the rows.
    """
    _check(series, x_range, (0, 1))
    if not rows or any(len(points.values) != len(rows) for points in series):
        raise UsageError(f"each series needs a value for each of {len(rows)} rows, at least one")
    step = 13
    row = step * len(series) + 12
    bottom = _TOP + row * len(rows)
    drawing = _Drawing(bottom + _BOTTOM, f"{x_label}: {caption}")
    left = min(max(_LEFT, 12 + _CHARACTER * max(map(len, rows))), _WIDTH / 2)
    to_x = _scale(x_range, (left, _WIDTH - _RIGHT))
    for tick in _ticks(*x_range):
        drawing.line(to_x(tick), _TOP, to_x(tick), bottom, "grid")
        drawing.text(to_x(tick), bottom + 18, _number(tick))
    drawing.text((left + _WIDTH - _RIGHT) / 2, bottom + 38, x_label, more=' class="axis"')
    for index, name in enumerate(rows):
        top = _TOP + index * row
        if index:
            drawing.line(0, top, _WIDTH - _RIGHT, top, "grid")
        drawing.text(left - 8, top + row / 2 + 4, _shortened(name, left - 12), "end")
        for number, points in enumerate(series):
            value = points.values[index]
            if value is None:
                continue
            y = top + 6 + step * (number + 0.5)
            low, high = (side[index] if side else None for side in (points.lows, points.highs))
            if low is not None and high is not None:
                ends = (to_x(min(max(end, x_range[0]), x_range[1])) for end in (low, high))
                drawing.line(next(ends), y, next(ends), y, f"curve s{points.style} solid")
            words = markup.escape(f"{name}, {points.name}: {value:.4f}")
            drawing.body.append(
                f'<circle class="dot s{points.style}" cx="{to_x(value):.1f}" cy="{y:.1f}" r="4">'
                f"<title>{words}</title></circle>"
            )
    return Plot(drawing.svg(), caption, [(points.name, points.style) for points in series])


def histograms(
    edges: Sequence[float],
    panels: Sequence[Panel],
    series: Sequence[tuple[str, int]],
    *,
    x_label: str,
    caption: str,
    mark: str = "",
) -> Plot:
    """Histograms below one another over the same axis, which covers the bins that are not empty.

    Args:
        edges: of the bins, one more than there are.
        panels: the histograms.
        series: name and style of each series of counts.
        x_label, caption: words.
        mark: what the panels' vertical lines are, for the legend.

    Raises:
        UsageError: no counts at all, or a series of another length than the bins.
    """
    bins = len(edges) - 1
    if any(len(counts) != bins for panel in panels for counts in panel.counts):
        raise UsageError(f"each series of a histogram needs {bins} counts")
    shares = [[[count / max(1, sum(counts)) for count in counts] for counts in panel.counts] for panel in panels]
    used = [index for panel in shares for counts in panel for index, share in enumerate(counts) if share]
    if not used:
        raise UsageError("a histogram needs at least one count")
    first, last = min(used), max(used) + 1
    highest = max(share for panel in shares for counts in panel for share in counts)
    tall, gap = 92, 20
    bottom = _TOP + gap + len(panels) * (tall + gap) - gap
    drawing = _Drawing(bottom + _BOTTOM, f"histograms of {x_label}: {caption}")
    to_x = _scale((edges[first], edges[last]), (_MARGIN, _WIDTH - _RIGHT))
    for number, panel in enumerate(panels):
        base = _TOP + gap + number * (tall + gap) + tall
        for (name, style), counts in zip(series, shares[number], strict=True):
            at = [f"{to_x(edges[first]):.1f},{base}"]
            for index in range(first, last):
                y = base - tall * counts[index] / highest
                at += [f"{to_x(edges[index]):.1f},{y:.1f}", f"{to_x(edges[index + 1]):.1f},{y:.1f}"]
            at.append(f"{to_x(edges[last]):.1f},{base}")
            words = markup.escape(f"{panel.title}, {name}")
            drawing.body.append(
                f'<polygon class="area s{style}" points="{" ".join(at)}"><title>{words}</title></polygon>'
            )
        if panel.mark is not None and edges[first] <= panel.mark <= edges[last]:
            drawing.line(to_x(panel.mark), base - tall, to_x(panel.mark), base, "curve s0")
        drawing.line(_MARGIN, base, _WIDTH - _RIGHT, base, "frame")
        drawing.text(_MARGIN, base - tall - 6, panel.title, "start")
    for tick in _ticks(edges[first], edges[last]):
        drawing.line(to_x(tick), bottom, to_x(tick), bottom + 4, "frame")
        drawing.text(to_x(tick), bottom + 18, _number(tick))
    drawing.text(_WIDTH / 2, bottom + 38, x_label, more=' class="axis"')
    return Plot(drawing.svg(), caption, [*series, *([(mark, 0)] if mark else [])])


_MARGIN = 14


def _check(
    series: Sequence[Line] | Sequence[Points], x_range: tuple[float, float], y_range: tuple[float, float]
) -> None:
    for low, high in (x_range, y_range):
        if not low < high:
            raise UsageError(f"an axis must have a low end and a higher one, got {low:g} to {high:g}")
    for one in series:
        if not 0 <= one.style < STYLES:
            raise UsageError(f"a series has a style from 0 to {STYLES - 1}, got {one.style} for {one.name!r}")


def _scale(values: tuple[float, float], places: tuple[float, float], log: bool = False) -> Callable[[float], float]:
    low, high = (math.log10(value) for value in values) if log else values

    def to(value: float) -> float:
        share = ((math.log10(value) if log else value) - low) / (high - low)
        return places[0] + share * (places[1] - places[0])

    return to


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers from ``low`` to ``high``."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    return [10.0**power for power in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)]


def _number(value: float) -> str:
    return f"{value:.10g}"


def _grid(
    drawing: _Drawing,
    to_x: Callable[[float], float],
    to_y: Callable[[float], float],
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    *,
    percent: bool,
) -> None:
    base = drawing.height - _BOTTOM
    for tick in y_ticks:
        drawing.line(_LEFT, to_y(tick), _WIDTH - _RIGHT, to_y(tick), "grid")
        drawing.text(_LEFT - 6, to_y(tick) + 4, _number(tick), "end")
    for tick in x_ticks:
        drawing.line(to_x(tick), _TOP, to_x(tick), base, "grid")
        words = f"{_number(100 * tick)} %" if percent else _number(tick)
        # The last label would stand out of the picture.
        drawing.text(min(to_x(tick), _WIDTH - _CHARACTER * len(words) / 2), base + 18, words)
    drawing.line(_LEFT, base, _WIDTH - _RIGHT, base, "frame")


def _labels(drawing: _Drawing, x_label: str, y_label: str) -> None:
    middle = (_TOP + drawing.height - _BOTTOM) / 2
    drawing.text((_LEFT + _WIDTH - _RIGHT) / 2, drawing.height - 8, x_label, more=' class="axis"')
    drawing.text(12, middle, y_label, more=f' class="axis" transform="rotate(-90 12 {middle:.1f})"')


def _shortened(words: str, width: float) -> str:
    most = int(width / _CHARACTER)
    return words if len(words) <= most else words[: most - 1] + "…"
