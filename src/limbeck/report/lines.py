"""Line charts: curves on common axes, labelled at their ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from limbeck.report.axes import Point, Scale, drawable, extremes, means, roughness, runs, spread, tick_labels
from limbeck.report.drawing import PALETTE, WIDTH, nothing, spaced, svg, text, wide
from limbeck.report.markup import Html, el, join, one_line
from limbeck.report.model import Chart, Curve, Key
from limbeck.report.numbers import number

_MOST_POINTS = 200
_TREND = 40
_MOST_LABELS = 10
_TOP, _BOTTOM = 26.0, 238.0  # of the plot, in units of the sheet


def line_chart(chart: Chart, *, series: Mapping[Key, str] | None = None, key: str = "line") -> Html:
    """Curves on common axes, labelled at their ends.

    Long curves are thinned to 200 points that keep every spike; a noisy one is drawn faint under its trend
    (the mean of 40 stretches). Points that are not finite, or not positive on a logarithmic axis, are left
    out and counted below the chart.

    Args:
        chart: what to draw; any curve may be empty.
        series: colour class by key of a row (:func:`series_of`).
        key: distinguishes the ids of several charts on one page.
    """
    curves = [_Drawn.of(curve, chart) for curve in chart.curves]
    kept = [curve for curve in curves if curve.points]
    names = [one_line(curve.name, 22) for curve in kept]
    colours = _curve_series(kept, series or {})
    direct = len(kept) <= _MOST_LABELS
    right = WIDTH - (14 + wide(names) if direct and names else 10)
    x, y, parts = _axes(chart, kept, right)

    ends: list[Point] = []
    smoothed = False
    for curve, colour in zip(kept, colours, strict=True):
        placed = [None if point is None else (x(point[0]), y(point[1])) for point in curve.stretches]
        drawing, noisy = _curve(curve.name, placed, colour)
        parts.append(drawing)
        smoothed = smoothed or noisy
        ends.append(next(point for point in reversed(placed) if point is not None))

    height = _BOTTOM + 44
    if direct:
        heights = spread([end[1] for end in ends], 15, _TOP, _BOTTOM)
        for name, colour, end, at in zip(names, colours, ends, heights, strict=True):
            parts.append(_end_label(name, colour, end, right, at))
    else:
        drawn, height = _legend(names, colours, height)
        parts.append(drawn)
    for note in _notes(curves, smoothed, chart.log_x or chart.log_y):
        height += 16
        parts.append(text(note, 0, height - 4, "tick"))
    return svg(chart.title, _describe(kept, chart), parts, height, key)


def _axes(chart: Chart, curves: Sequence[_Drawn], right: float) -> tuple[Scale, Scale, list[Html]]:
    """The two scales, and the grid with its names and ticks."""
    y = Scale.over([y for curve in curves for _, y in curve.points], _BOTTOM, _TOP, log=chart.log_y)
    ticks_y = y.ticks(6)
    labels_y = tick_labels(ticks_y)
    left = 8 + wide(labels_y) if curves else 10.0
    x = Scale.over([x for curve in curves for x, _ in curve.points], left, right, log=chart.log_x, pad=0.0)
    ticks_x = spaced(x, x.ticks(5))
    parts = [
        text(chart.y_label, 0, 12, "axis-name"),
        text(chart.x_label, (left + right) / 2, _BOTTOM + 36, "axis-name", anchor="middle"),
    ]
    if not curves:
        return x, y, [*parts, nothing(_TOP, _BOTTOM)]
    for tick, label in zip(ticks_y, labels_y, strict=True):
        parts.append(el("path", d=f"M{left:.1f} {y(tick):.1f}H{right:.1f}", class_="grid"))
        parts.append(text(label, left - 6, y(tick) + 4, "tick", anchor="end"))
    for tick, label in zip(ticks_x, tick_labels(ticks_x), strict=True):
        anchor = "end" if x(tick) + wide([label]) / 2 > right + 24 else "middle"
        parts.append(text(label, x(tick), _BOTTOM + 17, "tick", anchor=anchor))
    parts.append(el("path", d=f"M{left:.1f} {_BOTTOM:.1f}H{right:.1f}", class_="axis"))
    return x, y, parts


def _notes(curves: Sequence[_Drawn], smoothed: bool, log: bool) -> list[str]:
    """What a reader must know of what is drawn, and of what is not."""
    notes = [f"Faint: as recorded. Strong: means over {_TREND} stretches."] if smoothed else []
    left_out = sum(curve.left_out for curve in curves)
    if left_out:
        what = "point is" if left_out == 1 else "points are"
        why = "not finite, or not above zero," if log else "not finite"
        notes.append(f"{left_out:,} {what} {why} and left out.")
    gone = [one_line(curve.name, 22) for curve in curves if curve.left_out and not curve.points]
    if gone:
        notes.append(f"Nothing left to draw of {', '.join(gone)}.")
    return notes


@dataclass(frozen=True)
class _Drawn:
    """A curve with its undrawable points turned into gaps."""

    name: str
    stretches: list[Point | None]
    left_out: int
    key: Key | None

    @property
    def points(self) -> list[Point]:
        return [point for point in self.stretches if point is not None]

    @classmethod
    def of(cls, curve: Curve, chart: Chart) -> _Drawn:
        points: list[Point | None] = []
        for x, y in zip(curve.x, curve.y, strict=False):
            fine = drawable(x, log=chart.log_x) and drawable(y, log=chart.log_y)
            points.append((float(x), float(y)) if fine else None)
        return cls(curve.name, points, points.count(None), curve.key)


def _curve(name: str, placed: Sequence[Point | None], colour: str) -> tuple[Html, bool]:
    """One curve in pixels: its line, or a faint line under its trend where it is noisy, or a dot.

    Says also whether there is a trend.
    """
    stretches = runs(placed)
    total = sum(len(stretch) for stretch in stretches)
    marks: list[Html] = [el("title", one_line(name, 80))]
    noisy = False
    for stretch in stretches:
        if len(stretch) == 1:
            x, y = stretch[0]
            marks.append(el("circle", cx=x, cy=y, r=2.6, class_="dot"))
            continue
        share = max(8, _MOST_POINTS * len(stretch) // total)
        line = extremes(stretch, share)
        trend = means(stretch, max(4, _TREND * len(stretch) // total))
        if len(stretch) > 2 * len(trend) and roughness(line) > 2.5 * roughness(trend):
            marks.append(el("path", d=_path(line), class_="raw"))
            line, noisy = trend, True
        marks.append(el("path", d=_path(line), class_="line"))
    return el("g", *marks, class_=colour), noisy


def _path(points: Sequence[Point]) -> str:
    """A path in tenths of a unit, relative to keep it small."""
    cells = [(round(10 * x), round(10 * y)) for x, y in points]
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(cells)]
    start = f"M{cells[0][0] / 10:g} {cells[0][1] / 10:g}"
    return start + "l" + " ".join(f"{dx / 10:g} {dy / 10:g}" for dx, dy in steps)


def _end_label(name: str, colour: str, end: Point, right: float, at: float) -> Html:
    leader = el(
        "path",
        d=f"M{end[0] + 4:.1f} {end[1]:.1f}L{right + 3:.1f} {end[1]:.1f}L{right + 9:.1f} {at:.1f}",
        class_="leader far" if end[0] < right - 4 else "leader",
    )
    return el("g", leader, text(name, right + 12, at + 4, "label"), class_=colour)


def _legend_rows(names: Sequence[str]) -> list[list[int]]:
    """Indices of the names that share a row of the legend."""
    rows: list[list[int]] = [[]]
    used = 0.0
    for index, name in enumerate(names):
        room = 34 + wide([name])
        if rows[-1] and used + room > WIDTH:
            rows.append([])
            used = 0.0
        rows[-1].append(index)
        used += room
    return rows


def _legend(names: Sequence[str], colours: Sequence[str], top: float) -> tuple[Html, float]:
    """Names beside strokes of their colours, in rows from ``top`` down; and where it ends."""
    rows = _legend_rows(names)
    parts: list[Html] = []
    for line, row in enumerate(rows):
        x, y = 0.0, top + 14 + 18 * line
        for index in row:
            swatch = el("path", d=f"M{x:.1f} {y - 4:.1f}h14", class_="line")
            parts.append(el("g", swatch, text(names[index], x + 19, y, "label"), class_=colours[index]))
            x += 34 + wide([names[index]])
    return join(*parts), top + 18 * len(rows) + 6


def _curve_series(curves: Sequence[_Drawn], series: Mapping[Key, str]) -> list[str]:
    """The colour of a curve's row; for a curve without one, the next free colour, one for every name."""
    taken = {classes.split()[0] for classes in series.values()}
    free = [f"s{i}" for i in range(PALETTE) if f"s{i}" not in taken] or [f"s{i}" for i in range(PALETTE)]
    own: dict[str, str] = {}
    return [
        series[curve.key]
        if curve.key is not None and curve.key in series
        else own.setdefault(curve.name, free[len(own) % len(free)])
        for curve in curves
    ]


def _describe(curves: Sequence[_Drawn], chart: Chart) -> str:
    if not curves:
        return "Nothing was recorded."
    parts = []
    for curve in curves:
        points = curve.points
        first, last = number(points[0][1], 3), number(points[-1][1], 3)
        parts.append(f"{one_line(curve.name, 60)} from {first} to {last}")
    return f"{chart.y_label} over {chart.x_label}: " + "; ".join(parts)
