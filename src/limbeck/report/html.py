"""The report: one HTML file that needs nothing else, on a wide screen, on a phone, in the dark and on paper.

The file holds no script and refers to nothing outside itself, and its content security policy forbids both,
so that text written by a model stays text whatever it says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime

from limbeck.report.charts import Mark, Reference, bar_chart, interval_plot, line_chart, series_of
from limbeck.report.markup import Html, el, escape, one_line
from limbeck.report.model import Estimate, Key, ReportData, Row, Sample, known
from limbeck.report.numbers import (
    between,
    compact,
    decimals_for,
    number,
    percent,
    significant,
)
from limbeck.report.results import glossary, results, speed, weights
from limbeck.report.style import STYLE
from limbeck.report.verdict import best_student, control_of, speed_up, teacher_of, verdict

LONGEST_TEXT = 1500
"""Characters of a prompt or continuation that are shown; the rest is counted."""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def render(data: ReportData) -> str:
    """The whole page as a string; write it to a file as UTF-8."""
    series = series_of(data.rows)
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", name="referrer", content="no-referrer"),
        el("title", one_line(data.title)),
        el("style", Html(STYLE)),
    )
    main = el(
        "main",
        _masthead(data),
        results(data.rows, series),
        _distances(data.rows, series),
        *_curves(data, series),
        _size_and_speed(data, series),
        _samples(data, series),
        glossary(data.rows),
        _origins(data),
    )
    return f'<!doctype html>\n<html lang="en">\n{head}\n{el("body", main)}\n</html>\n'


# -- the top -------------------------------------------------------------------------------------------------


def _masthead(data: ReportData) -> Html:
    words = data.verdict if data.verdict is not None else verdict(data.rows)
    first, rest = _split(words)
    warnings = [el("li", el("b", "Note "), warning) for warning in data.warnings]
    return el(
        "header",
        el(
            "div",
            el("h1", one_line(data.title)),
            el("time", _date(data.created), datetime=one_line(data.created, 40)) if data.created else None,
            class_="masthead",
        ),
        el("p", _coded(first), class_="verdict"),
        el("p", _coded(rest), class_="verdict more") if rest else None,
        el("ul", *warnings, class_="warnings", aria_label="Before you believe the numbers") if warnings else None,
        _figures(data.rows),
    )


def _split(words: str) -> tuple[str, str]:
    """The first two sentences, set large, and the rest."""
    sentences = re.split(r"(?<=[.!?])\s+(?=[`A-Z])", words.strip())
    return " ".join(sentences[:2]), " ".join(sentences[2:])


def _coded(words: str) -> Html:
    """Escaped words with `names` in backticks set as code."""
    return Html(re.sub(r"`([^`\n]+)`", r"<code>\1</code>", escape(words)))


def _date(created: str) -> str:
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return one_line(created, 40)
    day = f"{moment.day} {moment:%B %Y}"
    if moment.hour or moment.minute:
        day += f"{moment:, %H:%M}"
        day += f" {moment.tzname()}" if moment.tzinfo else ""
    return day


def _figures(rows: Sequence[Row]) -> Html | None:
    """The student with the fewest bits per byte in four numbers."""
    best, teacher = best_student(rows), teacher_of(rows)
    if best is None:
        return None
    control = control_of(best, rows)
    tiles: list[Html] = []

    def tile(label: str, big: str, small: str) -> None:
        tiles.append(
            el(
                "div",
                el("dt", label),
                el("dd", el("div", big, class_="big"), el("div", small, class_="small")),
            )
        )

    closed = known(best.gap_closed)
    if closed is not None:
        small = between(closed.interval, 0, scale=100, unit="%") if closed.interval else "no interval"
        tile("Gap to the teacher closed", percent(closed.value), small)
    bits = known(best.bits_per_byte)
    if bits is not None:
        digits = decimals_for([best.bits_per_byte])
        others = [
            f"{one_line(other.name, 24)} {number(measured.value, digits)}"
            for other in (teacher, control)
            if other is not None and (measured := known(other.bits_per_byte))
        ]
        tile("Bits per byte", number(bits.value, digits), ", ".join(others) or "held-out text, lower is better")
    if teacher is not None and teacher.parameters and best.parameters:
        ratio = teacher.parameters / best.parameters
        big = f"{significant(ratio)}× smaller" if ratio > 1.05 else percent(1 / ratio)
        tile("Size", big, f"{compact(best.parameters)} of {compact(teacher.parameters)} parameters")
    ratio_of_speeds, _ = speed_up(best, rows)
    if ratio_of_speeds is not None and teacher is not None and teacher.tokens_per_second and best.tokens_per_second:
        faster = (
            f"{significant(ratio_of_speeds)}× faster" if ratio_of_speeds > 1 else f"{significant(ratio_of_speeds)}×"
        )
        tile(
            "Generation",
            faster,
            f"{speed(best.tokens_per_second)} against {speed(teacher.tokens_per_second)} tokens/s",
        )
    return (
        el(
            "dl",
            *tiles,
            class_="figures",
            aria_label=f"The student with the fewest bits per byte, {one_line(best.name)}",
        )
        if tiles
        else None
    )


# -- the charts ----------------------------------------------------------------------------------------------


def _distances(rows: Sequence[Row], series: Mapping[Key, str]) -> Html | None:
    """How far each model is from teacher and control, and each student from its control."""
    figures: list[Html] = []
    shown = [row for row in rows if row.role in ("student", "co-teacher")]
    if any(known(row.bits_per_byte) for row in rows):
        anchors = [row for row in rows if row.role in ("teacher", "control") and known(row.bits_per_byte)]
        lines = [Reference(row.bits_per_byte.value, row.name, series[row.key]) for row in anchors if row.bits_per_byte]
        gap = (lines[0].value, lines[1].value) if [row.role for row in anchors] == ["teacher", "control"] else None
        plot = interval_plot(
            "Bits per byte of every model",
            [Mark(row.name, row.bits_per_byte, series[row.key]) for row in rows],
            x_label="bits per byte, lower is better",
            references=lines if len(lines) <= 3 else (),
            band=gap,
            key="bits",
        )
        caption = "Shaded: the gap between the control and the teacher." if gap else None
        figures.append(_figure("Bits per byte", plot, caption))
    compared = [row for row in shown if known(row.versus_control)]
    if compared:
        plot = interval_plot(
            "Difference to the control, paired by document",
            [Mark(row.name, row.versus_control, series[row.key]) for row in compared],
            x_label="difference in bits per byte",
            references=[Reference(0.0, "control")],
            ends=("better", "worse"),
            key="difference",
        )
        figures.append(
            _figure(
                "Difference to the control",
                plot,
                "Compared document by document. A whisker that crosses the line cannot be told apart from the control.",
            )
        )
    if not figures:
        return None
    return el("section", el("h2", "How near they came"), el("div", *figures, class_="charts"))


def _curves(data: ReportData, series: Mapping[Key, str]) -> list[Html]:
    """A section for every heading that charts stand under, in their order."""
    sections = []
    for heading in dict.fromkeys(chart.heading for chart in data.charts):
        figures = [
            _figure(chart.title, line_chart(chart, series=series, key=f"chart-{index}"), chart.caption)
            for index, chart in enumerate(data.charts)
            if chart.heading == heading
        ]
        sections.append(el("section", el("h2", heading), el("div", *figures, class_="charts")))
    return sections


def _size_and_speed(data: ReportData, series: Mapping[Key, str]) -> Html | None:
    rows = data.rows
    if not any(known(row.tokens_per_second) for row in rows):
        return None
    files = [
        Mark(row.name, Estimate(row.bytes), series[row.key], weights(row)) for row in rows if row.bytes is not None
    ]
    speeds = [
        Mark(row.name, rate, series[row.key], speed(rate) if rate else None)
        for row in rows
        for rate in [known(row.tokens_per_second)]
    ]
    best = best_student(rows)
    why_not = speed_up(best, rows)[1].replace("`", "") if best is not None else ""
    notes = " ".join(filter(None, [why_not, data.speed_note]))
    return el(
        "section",
        el("h2", "Size and speed"),
        el(
            "div",
            _figure("Weights on disk", bar_chart("Weights on disk", files, x_label="bytes", key="size")),
            _figure(
                "Generated tokens per second",
                bar_chart("Speed", speeds, x_label="tokens per second, median of the rounds", key="speed"),
                notes or None,
            ),
            class_="charts",
        ),
    )


def _figure(title: str, drawing: Html, caption: str | None = None) -> Html:
    return el(
        "figure",
        el("h3", one_line(title, 120)),
        drawing,
        el("figcaption", one_line(caption, 400)) if caption else None,
    )


# -- the samples ---------------------------------------------------------------------------------------------


def _samples(data: ReportData, series: Mapping[Key, str]) -> Html | None:
    if not data.samples:
        return None
    return el(
        "section",
        el("h2", "In their own words"),
        el(
            "p",
            "The same prompts, continued by each model. A handful of samples shows style and gross faults; "
            "it does not rank models, the table does.",
            class_="lead",
        ),
        *[_sample(sample, data.rows, series) for sample in data.samples],
    )


def _sample(sample: Sample, rows: Sequence[Row], series: Mapping[Key, str]) -> Html:
    answers = [
        _answer(one_line(row.name, 60), sample.continuations[row.key], series[row.key])
        for row in rows
        if row.key in sample.continuations
    ]
    if sample.reference is not None:
        answers.insert(0, _answer("As written", sample.reference, None))
    return el(
        "article",
        el("div", el("b", "Prompt"), el("span", *_cut(sample.prompt), dir="auto"), class_="prompt"),
        el("div", *answers, class_=" ".join(["answers", *_columns(len(answers))])),
        class_="sample",
    )


def _columns(count: int) -> tuple[str, str]:
    """Columns for so many answers on a wide screen and on a narrower one (classes of the style): as few empty places
    as can be, and no answer alone in the last row."""

    def best(among: Sequence[int]) -> int:
        return min((n for n in among if count % n != 1), key=lambda n: -count % n, default=among[0])

    wide = max(count, 1) if count <= 5 else best((5, 4, 3))
    return f"n{wide}", f"m{max(count, 1) if count <= 3 else best((3, 2, 4))}"


def _answer(name: str, text: str, series: str | None) -> Html:
    words = _cut(text) if text.strip() else [el("span", "nothing but blanks" if text else "nothing", class_="cut")]
    return el("div", el("h3", name, class_=series), el("div", *words, class_="text", dir="auto"))


def _cut(text: str) -> list[str]:
    """Text of bounded length, and a remark on what was left away."""
    if len(text) <= LONGEST_TEXT:
        return [text.strip("\n")]
    rest = f" … and {len(text) - LONGEST_TEXT:,} more characters"
    return [text[:LONGEST_TEXT].strip("\n"), el("span", rest, class_="cut")]


# -- the rest ------------------------------------------------------------------------------------------------


def _origins(data: ReportData) -> Html | None:
    parts: list[Html] = []
    if data.provenance:
        groups = [
            el(
                "div",
                el("h3", one_line(heading, 80)),
                el(
                    "dl",
                    *[p for fact in facts for p in (el("dt", one_line(fact.label)), el("dd", fact.value))],
                ),
            )
            for heading, facts in data.provenance.items()
        ]
        parts.append(_details("Provenance", el("div", *groups, class_="facts")))
    if data.recipe_yaml.strip():
        parts.append(_details("Resolved recipe", el("pre", el("code", data.recipe_yaml.strip("\n")))))
    if data.command.strip():
        parts.append(
            _details(
                "Make this report again",
                el("pre", el("code", data.command.strip()), class_="command"),
                open_=True,
            )
        )
    return el("section", el("h2", "How it was made"), *parts) if parts else None


def _details(heading: str, inside: Html, *, open_: bool = False) -> Html:
    return el("details", el("summary", heading), el("div", inside, class_="inside"), open=open_)
