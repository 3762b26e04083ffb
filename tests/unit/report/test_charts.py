"""Charts with good, odd and no data: always well-formed, always on the sheet."""

from __future__ import annotations

import dataclasses
import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from limbeck.report.axes import Scale, extremes, means, spread, tick_labels
from limbeck.report.charts import WIDTH, Mark, Reference, bar_chart, interval_plot, line_chart, series_of
from limbeck.report.model import Chart, Curve, Estimate

from . import example

_NAN, _INF = float("nan"), float("inf")


def _chart(*curves: Curve, **options: bool) -> Chart:
    return Chart("title", "step", "loss", list(curves), log_x=options.get("x", False), log_y=options.get("y", False))


def _drawn(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert width == WIDTH
    assert "nan" not in svg
    assert "inf" not in svg.replace("infinite", "")
    for element in root.iter():
        for name, low, high in (
            ("x", -1, width + 1),
            ("cx", 0, width),
            ("y", -1, height + 1),
            ("cy", 0, height),
        ):
            if name in element.attrib:
                assert low <= float(element.attrib[name]) <= high
        if "d" in element.attrib:
            at = re.match(r"M(-?[\d.e+]+) (-?[\d.e+]+)", element.attrib["d"])
            assert at is not None
            assert -1 <= float(at[1]) <= width + 1
            assert -1 <= float(at[2]) <= height + 1
    return root


def _words(root: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in root.iter("text")]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "curve",
    [
        Curve("empty", [], []),
        Curve("one point", [3], [2.0]),
        Curve("constant", [0, 1, 2, 3], [2.0, 2.0, 2.0, 2.0]),
        Curve("zero", [0, 1, 2], [0.0, 0.0, 0.0]),
        Curve("same x", [5, 5, 5], [1.0, 2.0, 3.0]),
        Curve("not finite", [0, 1, 2, 3, 4], [_NAN, 2.0, _INF, 1.0, -_INF]),
        Curve("nothing finite", [0, 1], [_NAN, _NAN]),
        Curve("negative", [-3, -2, -1], [-1.0, -2.0, -3.0]),
        Curve("huge", [0, 1e12], [1e300, 1e14]),
        Curve("tiny", [1e-12, 2e-12], [1e-14, 3e-14]),
        Curve("unequal", [0, 1, 2], [1.0]),
        Curve("close", [1, 2, 3], [1.0, 1.0 + 1e-15, 1.0]),
    ],
    ids=lambda curve: curve.name,
)
def test_degenerate_curves_draw_sanely(curve: Curve, log: bool) -> None:
    _drawn(line_chart(_chart(curve, x=log, y=log)))
    _drawn(line_chart(_chart(curve, Curve("good", [0, 1, 2], [3.0, 2.0, 1.0]), x=log, y=log)))


def test_a_curve_of_which_nothing_is_left_is_named() -> None:
    words = _words(_drawn(line_chart(_chart(Curve("gone", [0, 1], [_NAN, _NAN]), Curve("good", [0, 1], [2, 1])))))
    assert "2 points are not finite and left out." in words
    assert "Nothing left to draw of gone." in words


def test_no_curve_says_so() -> None:
    assert "Nothing was recorded." in _words(_drawn(line_chart(_chart())))


def test_points_that_are_not_finite_are_gaps_and_are_counted() -> None:
    root = _drawn(line_chart(_chart(Curve("a", [0, 1, 2, 3, 4], [5, 4, _NAN, 3, 2]))))
    lines = [path for path in root.iter("path") if path.attrib.get("class") == "line"]
    assert len(lines) == 2
    assert "1 point is not finite and left out." in _words(root)


def test_a_curve_of_any_length_stays_small_and_keeps_its_spike() -> None:
    ys = [2 + math.sin(i / 3000) + 0.1 * math.sin(i * 1.7) for i in range(30_000)]
    ys[12_345] = 40.0
    svg = line_chart(_chart(Curve("a", list(range(30_000)), ys)))
    assert len(svg) < 6000
    root = _drawn(svg)
    raw = next(path.attrib["d"] for path in root.iter("path") if path.attrib.get("class") == "raw")
    assert raw.count(" ") <= 2 * 200
    ups = [float(step.split()[1]) for step in re.findall(r"-?[\d.]+ -?[\d.]+", raw.partition("l")[2])]
    assert min(ups) < -150  # upwards is negative


def test_labels_at_the_ends_do_not_touch() -> None:
    curves = [Curve(f"curve {i}", [0, 1], [3.0, 1.0 + 1e-6 * i]) for i in range(8)]
    root = _drawn(line_chart(_chart(*curves)))
    heights = sorted(float(t.attrib["y"]) for t in root.iter("text") if t.attrib.get("class") == "label")
    assert len(heights) == 8
    assert all(b - a >= 13.9 for a, b in pairwise(heights))


def test_many_curves_get_a_legend() -> None:
    curves = [Curve(f"a rather long name {i}", [0, 1, 2], [3.0, i, 1.0]) for i in range(14)]
    root = _drawn(line_chart(_chart(*curves)))
    assert sum(t.attrib.get("class") == "label" for t in root.iter("text")) == 14


def test_a_technique_keeps_its_colour_over_several_students() -> None:
    keys = [("soft", "small"), ("hard", "small"), ("soft", "large"), ("hard", "large")]
    row = example.rows()[2]
    classes = series_of([dataclasses.replace(row, technique=label, member=member) for label, member in keys])
    assert [classes[key] for key in keys] == ["s0", "s1", "s0 v1", "s1 v1"]


def test_rows_are_told_apart_by_technique_and_model_whatever_they_are_called() -> None:
    keys = [("a / b", "c"), ("a", "b / c"), ("a", "c"), ("a / b", "b / c")]
    row = example.rows()[2]
    rows = [dataclasses.replace(row, name=" / ".join(key), technique=key[0], member=key[1]) for key in keys]
    assert rows[0].name == rows[1].name
    assert series_of(rows) == dict(zip(keys, ["s0", "s1 v1", "s1", "s0 v1"], strict=True))


def test_a_curve_takes_the_colour_of_its_row() -> None:
    series = series_of(example.rows())
    named = {"soft": "soft", "soft seed 2": "soft", "softer": "softer", "anything": "alone"}
    curves = [Curve(name, [0, 1], [2.0, 1.0], (technique, "")) for name, technique in named.items()]
    root = _drawn(line_chart(_chart(*curves), series=series))
    classes = [g.attrib["class"] for g in root.iter("g") if g.find("title") is not None]
    assert classes[:2] == [series["soft", ""]] * 2
    assert classes[2] not in series.values()
    assert classes[3] == "sc"


@pytest.mark.parametrize(
    "estimate",
    [
        None,
        Estimate(_NAN),
        Estimate(_INF, 0, 1),
        Estimate(1.0),
        Estimate(1.0, 1.0, 1.0),
        Estimate(0.0, _NAN, 1.0),
    ],
)
def test_intervals_and_bars_with_odd_numbers(estimate: Estimate | None) -> None:
    for marks in ([Mark("a", estimate)], [Mark("a", estimate), Mark("b", Estimate(2.0, 1.0, 3.0))], []):
        _drawn(interval_plot("t", marks, x_label="x", references=[Reference(1.0, "one"), Reference(_NAN, "none")]))
        _drawn(bar_chart("t", marks, x_label="x"))
    if estimate is None:
        assert "not measured" in _words(_drawn(interval_plot("t", [Mark("a", estimate)], x_label="x")))


def test_references_close_together_keep_their_words_apart() -> None:
    references = [Reference(1.0, "the teacher"), Reference(1.0001, "the control")]
    root = _drawn(interval_plot("t", [Mark("a", Estimate(2.0, 1.9, 2.1))], x_label="x", references=references))
    at = sorted(float(t.attrib["x"]) for t in root.iter("text") if t.attrib.get("class") == "label")
    assert at[1] - at[0] > 66


def test_bars_start_at_zero() -> None:
    root = _drawn(bar_chart("t", [Mark("a", Estimate(100.0)), Mark("b", Estimate(25.0))], x_label="x"))
    long, short = (float(rect.attrib["width"]) for rect in root.iter("rect"))
    assert short == pytest.approx(long / 4, abs=0.1)


def test_ticks_are_round_and_inside() -> None:
    assert tick_labels(Scale(0, 2300, 0, 1).ticks()) == ["0", "500", "1,000", "1,500", "2,000"]
    assert tick_labels(Scale(0, 90_000, 0, 1).ticks()) == ["0", "20k", "40k", "60k", "80k"]
    assert tick_labels(Scale(1, 1000, 0, 1, log=True).ticks(4)) == ["1", "10", "100", "1,000"]
    for low, high in ((1.571, 1.693), (-3.2e-7, 9.9e-7), (1e9, 1.0001e9)):
        ticks = Scale(low, high, 0, 1).ticks()
        assert 2 <= len(ticks) <= 8
        assert low <= ticks[0] < ticks[-1] <= high


def test_thinning_keeps_ends_and_extremes() -> None:
    points = [(float(i), float(i % 7)) for i in range(1000)]
    points[500] = (500.0, 99.0)
    thin = extremes(points, 50)
    assert len(thin) <= 50
    assert (thin[0], thin[-1]) == (points[0], points[-1])
    assert points[500] in thin
    assert [x for x, _ in thin] == sorted(x for x, _ in thin)
    averaged = means(points, 10)
    assert len(averaged) == 10
    assert (averaged[0][0], averaged[-1][0]) == (0.0, 999.0)


def test_spread_moves_no_more_than_it_must() -> None:
    assert spread([10, 50, 90], 15, 0, 100) == [10, 50, 90]
    assert spread([50, 50], 10, 0, 100) == [45, 55]
    assert spread([99, 100, 0], 10, 0, 100) == [90, 100, 0]
    crowded = spread([1.0] * 30, 15, 0, 100)
    assert min(crowded) >= -1e-9
    assert max(crowded) <= 100 + 1e-9
