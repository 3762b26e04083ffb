"""Charts as small inline SVG: lines, dots with whiskers, bars. No script, no fonts, no network.

They are drawn at the width of half a page (``WIDTH`` units), so that the text stays readable when a phone
shrinks them. Colours are CSS classes of the page's style sheet (see :mod:`limbeck.report.style`), so that
they follow light and dark; every mark is also labelled in words, so that colour alone never carries the
meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from limbeck.report.axes import Scale, drawable, spread, tick_labels
from limbeck.report.drawing import PALETTE, WIDTH, nothing, spaced, svg, text, wide
from limbeck.report.lines import line_chart
from limbeck.report.markup import Html, el, one_line
from limbeck.report.model import Estimate, Key, Row, known
from limbeck.report.numbers import compact, decimals_for, number

__all__ = ["WIDTH", "Mark", "Reference", "bar_chart", "interval_plot", "line_chart", "series_of"]


@dataclass(frozen=True)
class Mark:
    """A row of an interval plot or a bar of a bar chart; ``series`` is its colour class."""

    name: str
    estimate: Estimate | None
    series: str = "s0"
    label: str | None = None


@dataclass(frozen=True)
class Reference:
    """A vertical line at ``value`` with a few words above it."""

    value: float
    label: str
    series: str = "sc"


def series_of(rows: Sequence[Row]) -> dict[Key, str]:
    """Colour classes by key of a row.

    Teacher and control are neutral, the techniques take the palette in turn. With several students a
    technique keeps its colour and the students differ by their dashes.
    """
    colours: dict[Key, str] = {}
    students: dict[str, int] = {}
    classes: dict[Key, str] = {}
    for row in rows:
        technique, member = row.key
        if row.role in ("teacher", "control"):
            colour = "st" if row.role == "teacher" else "sc"
        else:
            colour = colours.setdefault(
                row.key if row.role == "co-teacher" else (technique, ""), f"s{len(colours) % PALETTE}"
            )
        variant = students.setdefault(member, len(students)) if row.role in ("control", "student") else 0
        classes[row.key] = f"{colour} v{variant % 3}" if variant else colour
    return classes


def interval_plot(
    title: str,
    marks: Sequence[Mark],
    *,
    x_label: str,
    references: Sequence[Reference] = (),
    band: tuple[float, float] | None = None,
    ends: tuple[str, str] | None = None,
    key: str = "interval",
) -> Html:
    """Dots with whiskers, one row each, on a common axis.

    Args:
        title: what is shown, for those who cannot see it.
        marks: the rows; one without an estimate says "not measured".
        x_label: name and unit of the axis.
        references: vertical lines, such as the teacher and the control.
        band: a tinted stretch of the axis, such as the gap between them.
        ends: words under the left and the right end of an axis of differences, such as "better" and "worse"; positive
            values have a plus then.
        key: distinguishes the ids of several charts on one page.
    """
    names = [one_line(mark.name, 24) for mark in marks]
    digits = decimals_for([mark.estimate for mark in marks])
    measured = [known(mark.estimate) for mark in marks]
    values = ["not measured" if e is None else number(e.value, digits, sign=ends is not None) for e in measured]
    lines = [reference for reference in references if drawable(reference.value)]
    left, right = 14 + wide(names), WIDTH - (14 + wide(values))
    everything = [v for e in measured if e for v in (e.value, *(e.interval or ()))]
    everything += [reference.value for reference in lines]
    x = Scale.over(everything, left, right, pad=0.06)
    top, step = (30.0 if lines else 8.0), 30.0
    bottom = top + step * max(1, len(marks)) + 2
    ticks = spaced(x, x.ticks(6))

    parts: list[Html] = []
    if band and drawable(band[0]) and drawable(band[1]):
        a, b = sorted((x(band[0]), x(band[1])))
        parts.append(el("rect", x=a, y=top, width=b - a, height=bottom - top, class_="band"))
    if everything:
        for tick, label in zip(ticks, tick_labels(ticks), strict=True):
            parts.append(el("path", d=f"M{x(tick):.1f} {top:.1f}V{bottom:.1f}", class_="grid"))
            parts.append(text(label, x(tick), bottom + 17, "tick", anchor="middle"))
    parts.append(el("path", d=f"M{left:.1f} {bottom:.1f}H{right:.1f}", class_="axis"))
    parts += _reference_lines(lines, x, top, bottom, left, right)
    for index, (mark, name, estimate, value) in enumerate(zip(marks, names, measured, values, strict=True)):
        at = top + step * (index + 0.5) + 1
        parts.append(text(name, left - 14, at + 4, "name", anchor="end"))
        parts.append(text(value, WIDTH, at + 4, "value" if estimate else "tick", anchor="end"))
        if estimate is not None and drawable(estimate.value):
            parts.append(_whisker(mark, estimate, x, at))
    if not marks:
        parts.append(nothing(top, bottom))
    height = bottom + 38
    centre = (left + right) / 2
    if ends:
        parts.append(text(f"← {ends[0]}", left, bottom + 34, "axis-name"))
        parts.append(text(f"{ends[1]} →", right, bottom + 34, "axis-name", anchor="end"))
        height += 16
        parts.append(text(x_label, centre, bottom + 51, "axis-name", anchor="middle"))
    else:
        parts.append(text(x_label, centre, bottom + 35, "axis-name", anchor="middle"))
    described = "; ".join(
        f"{name} {value}"
        + (f" ({number(e.interval[0], digits)} to {number(e.interval[1], digits)})" if e and e.interval else "")
        for name, value, e in zip(names, values, measured, strict=True)
    )
    return svg(title, f"{x_label}: {described}", parts, height, key)


def bar_chart(title: str, marks: Sequence[Mark], *, x_label: str, key: str = "bar") -> Html:
    """Horizontal bars from zero, one a row, with the value written after each.

    Args:
        title: what is shown.
        marks: the bars; ``label`` is what is written after one, a number by default.
        x_label: what the lengths mean.
        key: distinguishes the ids of several charts on one page.
    """
    names = [one_line(mark.name, 24) for mark in marks]
    measured = [known(mark.estimate) for mark in marks]
    values = [
        "not measured" if e is None else mark.label or compact(e.value) for mark, e in zip(marks, measured, strict=True)
    ]
    left, room = 14 + wide(names), 12 + wide(values)
    longest = max((e.value for e in measured if e and drawable(e.value)), default=0) or 1
    step, top = 28.0, 4.0
    bottom = top + step * max(1, len(marks))
    parts: list[Html] = []
    for index, (mark, name, estimate, value) in enumerate(zip(marks, names, measured, values, strict=True)):
        at = top + step * (index + 0.5)
        share = 0.0 if estimate is None or not drawable(estimate.value) else max(0.0, estimate.value / longest)
        length = (WIDTH - room - left) * share
        parts.append(text(name, left - 14, at + 4, "name", anchor="end"))
        if estimate is not None:
            parts.append(
                el(
                    "rect",
                    x=left,
                    y=at - 7,
                    width=max(1.5, length),
                    height=14,
                    rx=2,
                    class_=f"bar {mark.series}",
                )
            )
        parts.append(text(value, left + length + 8, at + 4, "value" if estimate else "tick"))
    parts.append(el("path", d=f"M{left:.1f} {top:.1f}V{bottom:.1f}", class_="axis"))
    if not marks:
        parts.append(nothing(top, bottom))
    described = "; ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
    return svg(title, f"{x_label}: {described}", parts, bottom + 4, key)


def _whisker(mark: Mark, estimate: Estimate, x: Scale, at: float) -> Html:
    parts: list[Html] = []
    centre = x(estimate.value)
    if estimate.interval and all(drawable(end) for end in estimate.interval):
        a, b = x(estimate.interval[0]), x(estimate.interval[1])
        parts.append(
            el(
                "path",
                d=f"M{a:.1f} {at:.1f}H{b:.1f}M{a:.1f} {at - 4:.1f}v8M{b:.1f} {at - 4:.1f}v8",
                class_="whisker",
            )
        )
    parts.append(el("circle", cx=centre, cy=at, r=4.2, class_="dot"))
    return el("g", *parts, class_=mark.series)


def _reference_lines(
    lines: Sequence[Reference], x: Scale, top: float, bottom: float, left: float, right: float
) -> list[Html]:
    """The lines, and their words above them, moved apart where they would touch."""
    parts: list[Html] = []
    words = [one_line(line.label, 28) for line in lines]
    widths = [wide([word]) for word in words]
    gap = max(widths, default=0.0) + 8
    # Words are centred over their line and kept on the sheet; the widest decides the distance.
    half = max(widths, default=0.0) / 2
    places = spread([x(line.value) for line in lines], gap, half, WIDTH - half)
    for line, word, place in zip(lines, words, places, strict=True):
        at = x(line.value)
        parts.append(
            el(
                "g",
                el(
                    "path",
                    d=f"M{place:.1f} {top - 13:.1f}L{at:.1f} {top - 5:.1f}V{bottom:.1f}",
                    class_="reference",
                ),
                text(word, place, top - 18, "label", anchor="middle"),
                class_=line.series,
            )
        )
    return parts
