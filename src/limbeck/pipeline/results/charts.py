"""Curves of a report: what each technique learned, and what it reaches at each size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from limbeck.pipeline.results.comparison import Comparison
from limbeck.pipeline.shared.base import TEACHER
from limbeck.pipeline.stages.train import Arm
from limbeck.report.model import Chart, Curve, Estimate, Row
from limbeck.training.metrics import read_metrics


def by_size(compared: Comparison, rows: list[Row]) -> list[Chart]:
    """What each technique reaches at each size, where students of three sizes or more were trained."""
    by_key = {row.key: row for row in rows}
    if len({row.parameters for row in rows if row.role in ("student", "control")}) < 3:
        return []

    def chart(title: str, y_label: str, of: Callable[[Row], Estimate | None], caption: str) -> Chart:
        curves = []
        for technique in compared.techniques:
            own = [by_key[technique.label, member] for member in compared.students]
            points = sorted(((row.parameters or 0) / 1e6, found.value) for row in own if (found := of(row)))
            curves.append(Curve(technique.label, [x for x, _ in points], [y for _, y in points], own[0].key))
        return Chart(title, "million parameters", y_label, curves, caption=caption, heading="By size")

    charts = [
        chart("Bits per byte by size", "bits per byte", lambda row: row.bits_per_byte,
              "On held-out documents; the intervals are in the table."),
        chart("Distance to the teacher by size", "KL (nats per token)", lambda row: row.kl,
              "On held-out documents, from the teacher's probabilities to the student's."),
    ]  # fmt: skip
    return [each for each in charts if any(curve.x for curve in each.curves)]


def charts_of(compared: Comparison, run: Path) -> list[Chart]:
    return [chart for student in compared.students for chart in _charts_of(compared, student, run)]


def _charts_of(compared: Comparison, student: str, run: Path) -> list[Chart]:
    """What one student learned, by the parts of what is minimised."""
    of = "" if compared.single else f": {student}"
    arms = compared.arms()
    written = [arm for arm in arms if getattr(arm.technique, "generation", None) is not None]
    own = [arm for arm in arms if arm not in written]
    charts = [
        *_weighted(run, student, arms, of),
        _chart(run, student, own, f"loss/{student}<labels", f"Learning the data{of}", "cross-entropy (nats per token)",
               "On training text, as it is learned."),
        _chart(run, student, arms, f"loss/{student}<{TEACHER}", f"Learning the teacher's probabilities{of}",
               "divergence (nats per token)", "The divergence that is minimised, at its temperature."),
        _chart(run, student, written, f"loss/{student}<labels", f"Learning the teacher's text{of}",
               "cross-entropy (nats per token)", "On text that the teacher wrote: not comparable with the data's."),
        _chart(run, student, arms, f"agreement/{student}<{TEACHER}", f"Agreement with the teacher{of}",
               "share of tokens", "How often both find the same token most probable, on training text."),
    ]  # fmt: skip
    return [chart for chart in charts if chart.curves]


def _weighted(run: Path, student: str, arms: list[Arm], of: str) -> list[Chart]:
    """What each technique minimises, where that has several parts: weights differ, so no two share their axes."""
    charts = []
    for label in dict.fromkeys(arm.technique.label for arm in arms):
        own = [arm for arm in arms if arm.technique.label == label]
        lines = [line for arm in own for line in read_metrics(run / arm.folder / "metrics.jsonl")]
        if len({key for line in lines for key in line if key.startswith(f"loss/{student}<")}) > 1:
            title = f"The loss of {label}{of}"
            caption = "What is minimised: all parts with their weights. It does not compare with other techniques."
            charts.append(_chart(run, student, own, f"loss/{student}", title, "weighted loss", caption))
    return charts


def _chart(run: Path, student: str, arms: list[Arm], metric: str, title: str, y_label: str, caption: str) -> Chart:
    curves = []
    for arm in arms:
        lines = [line for line in read_metrics(run / arm.folder / "metrics.jsonl") if metric in line]
        if lines:
            name = arm.technique.label if arm.seed == arms[0].seed else f"{arm.technique.label} seed {arm.seed}"
            tokens, values = [line["tokens"] for line in lines], [line[metric] for line in lines]
            curves.append(Curve(name, tokens, values, (arm.technique.label, student)))
    return Chart(title, "student tokens", y_label, curves, caption=caption)
