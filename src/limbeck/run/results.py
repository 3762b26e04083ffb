"""From what was measured to what is shown: the rows, curves, samples and facts of the report."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from limbeck.evaluation import gap
from limbeck.recipe import Alone, Co, Recipe
from limbeck.report.model import Chart, Curve, Estimate, Fact, ReportData, Row, Sample
from limbeck.run.arms import Arm, arms_of
from limbeck.run.measure import SAMPLE_TEMPERATURE, Examined, Examiner
from limbeck.run.prepare import Prepared
from limbeck.run.provenance import command, machine, versions
from limbeck.run.teacher import correction_said, is_worse
from limbeck.run.weights import Stored, stored, stored_teacher
from limbeck.statistics import Interval
from limbeck.training.meter import read_metrics
from limbeck.training.techniques import TEACHER

MUCH_DROPPED = 0.1  # of the teacher's probability: where a cut vocabulary begins to be what is compared
NOT_HELD = "The models did not fit into memory together: each was loaded anew for its turn."
FEW_DOCUMENTS = 30  # below, a bootstrap over documents is not to be trusted


def build(
    recipe: Recipe,
    prepared: Prepared,
    examiner: Examiner,
    arm_facts: dict[str, dict[str, Any]],
    timed: dict[str, Any] | None,
    run: Path,
) -> ReportData:
    """Measure what is not measured yet, and put the report's data together."""
    teacher = examiner.examine_teacher()
    arms = arms_of(recipe)
    examined = {
        (arm.technique.label, member, arm.seed): examiner.examine(arm, member)
        for arm in arms
        for member in arm_facts[arm.name]["learners"]
    }
    timed = timed or {}
    rows = _rows(recipe, examiner, teacher, examined, arm_facts, timed)
    samples = _samples(recipe, examiner, teacher, examined)
    return ReportData(
        title=recipe.title or f"{Path(recipe.run).name}: what the students kept",
        rows=rows,
        warnings=_warnings(recipe, examiner, teacher),
        charts=[*_by_size(recipe, rows), *_charts(recipe, run)],
        samples=samples,
        speed_note=None if timed.get("held", True) else NOT_HELD,
        provenance=_provenance(recipe, prepared, examiner),
        recipe_yaml=yaml.safe_dump(
            recipe.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True
        ),
        command=command(),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def _row_name(recipe: Recipe, label: str, member: str) -> str:
    if member == TEACHER:
        return f"{label}: teacher"
    return label if recipe.student is not None else f"{label} / {member}"


def _speed(timed: dict[str, Any], name: str) -> dict[str, Any]:
    """The median and the range of a model's rounds, and what it shares with models of one shape."""
    rates = timed.get("speeds", {}).get(name)
    if not rates:
        return {}
    return {
        "tokens_per_second": Estimate(statistics.median(rates), min(rates), max(rates)),
        "shape": timed["shapes"][name],
    }


def _size(weights: Stored) -> dict[str, Any]:
    return {"bytes": weights.bytes, "dtype": weights.dtype}


def _entropies(measured: list[gap.Measured], resamples: int) -> dict[str, Any]:
    return {
        "cross_entropy": _estimate(gap.mean("cross_entropy", measured, resamples)),
        "cross_entropy_words": _estimate(gap.mean("cross_entropy_words", measured, resamples)),
    }


def _rows(
    recipe: Recipe,
    examiner: Examiner,
    teacher: Examined,
    examined: dict[tuple[str, str, int], Examined],
    arm_facts: dict[str, dict[str, Any]],
    timed: dict[str, Any],
) -> list[Row]:
    resamples = recipe.evaluation.bootstrap
    rows = [
        Row(
            TEACHER,
            "teacher",
            parameters=teacher.facts["parameters"],
            **_size(stored_teacher(recipe, examiner.prepared.teacher)),
            bits_per_byte=_estimate(gap.mean("bits_per_byte", [teacher.measured], resamples)),
            **_entropies([teacher.measured], resamples),
            **_speed(timed, TEACHER),
            technique="",
            member=TEACHER,
        )
    ]
    control_label = next((t.label for t in recipe.techniques if isinstance(t, Alone)), None)
    firsts = {arm.technique.label: arm for arm in arms_of(recipe) if arm.seed == recipe.seeds[0]}
    for technique in recipe.techniques:
        first = firsts[technique.label]
        members = [*recipe.cohort, *([TEACHER] if isinstance(technique, Co) else [])]
        for member in members:
            runs = [examined[technique.label, member, seed] for seed in recipe.seeds]
            measured = [run.measured for run in runs]
            control = None
            if control_label and member != TEACHER and not isinstance(technique, Alone):
                control = [examined[control_label, member, seed].measured for seed in recipe.seeds]
            role = "co-teacher" if member == TEACHER else "control" if isinstance(technique, Alone) else "student"
            rows.append(
                Row(
                    _row_name(recipe, technique.label, member),
                    role,  # type: ignore[arg-type]
                    parameters=runs[0].facts["parameters"],
                    **_size(stored(examiner.weights(first, member))),
                    bits_per_byte=_estimate(gap.mean("bits_per_byte", measured, resamples)),
                    kl=_estimate(gap.mean("kl", measured, resamples)),
                    agreement=_estimate(gap.mean("agreement", measured, resamples)),
                    gap_closed=_estimate(gap.gap_closed(measured, control, teacher.measured, resamples))
                    if control
                    else None,
                    versus_control=_estimate(gap.difference("bits_per_byte", measured, control, resamples))
                    if control
                    else None,
                    **_entropies(measured, resamples),
                    **_speed(timed, f"{first.name}-{member}"),
                    train_tokens=arm_facts[first.name]["tokens"],
                    seeds=len(recipe.seeds),
                    technique=technique.label,
                    member=member,
                )
            )
    return rows


def _warnings(recipe: Recipe, examiner: Examiner, teacher: Examined) -> list[str]:
    found = []
    documents = len(examiner.corpus)
    if documents < FEW_DOCUMENTS:
        found.append(
            f"Only {documents} held-out documents were measured: intervals over so few are too narrow to be relied on."
        )
    if not any(isinstance(technique, Alone) for technique in recipe.techniques):
        found.append("No control (`alone`) was trained, so nothing here says whether the teacher helped.")
    dropped = teacher.facts.get("dropped", 0.0)
    if dropped > MUCH_DROPPED:
        found.append(
            f"The teacher gives {100 * dropped:.0f}% of its probability to tokens that the students do not have. They "
            "count as one, so KL and agreement say little about text: lower vocabulary.min_count, or raise its size."
        )
    if is_worse(examiner.prepared.teacher_facts):
        said = correction_said(examiner.prepared.teacher_facts) or ""
        found.append(f"The tuning made the teacher worse: {said.removeprefix('teacher: ')}.")
    return found


def _estimate(interval: Interval | None) -> Estimate | None:
    return Estimate(interval.value, interval.low, interval.high) if interval is not None else None


# ---------------------------------------------------------------------------------------- curves


def _by_size(recipe: Recipe, rows: list[Row]) -> list[Chart]:
    """What each technique reaches at each size, where students of three sizes or more were trained."""
    by_key = {row.key: row for row in rows}
    if len({row.parameters for row in rows if row.role in ("student", "control")}) < 3:
        return []

    def chart(title: str, y_label: str, of: Callable[[Row], Estimate | None], caption: str) -> Chart:
        curves = []
        for technique in recipe.techniques:
            own = [by_key[technique.label, member] for member in recipe.cohort]
            points = sorted((row.parameters / 1e6, found.value) for row in own if (found := of(row)))
            curves.append(Curve(technique.label, [x for x, _ in points], [y for _, y in points], own[0].key))
        return Chart(title, "million parameters", y_label, curves, caption=caption, heading="By size")

    return [
        chart("Bits per byte by size", "bits per byte", lambda row: row.bits_per_byte,
              "On held-out documents; the intervals are in the table."),
        chart("Distance to the teacher by size", "KL (nats per token)", lambda row: row.kl,
              "On held-out documents, from the teacher's probabilities to the student's."),
    ]  # fmt: skip


def _charts(recipe: Recipe, run: Path) -> list[Chart]:
    return [chart for student in recipe.cohort for chart in _charts_of(recipe, student, run)]


def _charts_of(recipe: Recipe, student: str, run: Path) -> list[Chart]:
    """What one student learned, by the parts of what is minimised."""
    of = "" if recipe.student is not None else f": {student}"
    arms = arms_of(recipe)
    written = [arm for arm in arms if getattr(arm.technique, "writing", None) is not None]
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
        lines = [line for arm in own for line in read_metrics(arm.folder(run) / "metrics.jsonl")]
        if len({key for line in lines for key in line if key.startswith(f"loss/{student}<")}) > 1:
            title = f"The loss of {label}{of}"
            caption = "What is minimised: all parts with their weights. It does not compare with other techniques."
            charts.append(_chart(run, student, own, f"loss/{student}", title, "weighted loss", caption))
    return charts


def _chart(run: Path, student: str, arms: list[Arm], metric: str, title: str, y_label: str, caption: str) -> Chart:
    curves = []
    for arm in arms:
        lines = [line for line in read_metrics(arm.folder(run) / "metrics.jsonl") if metric in line]
        if lines:
            name = arm.technique.label if arm.seed == arms[0].seed else f"{arm.technique.label} seed {arm.seed}"
            tokens, values = [line["tokens"] for line in lines], [line[metric] for line in lines]
            curves.append(Curve(name, tokens, values, (arm.technique.label, student)))
    return Chart(title, "student tokens", y_label, curves, caption=caption)


# ----------------------------------------------------------------------------- samples and facts


def _samples(
    recipe: Recipe, examiner: Examiner, teacher: Examined, examined: dict[tuple[str, str, int], Examined]
) -> list[Sample]:
    found = []
    for i, (prompt, rest) in enumerate(examiner.prompts()):
        texts = {("", TEACHER): teacher.facts["samples"][i]}
        for (label, member, seed), each in examined.items():
            if seed == recipe.seeds[0]:
                texts[label, member] = each.facts["samples"][i]
        found.append(Sample(examiner.asked(prompt), texts, examiner.text(rest)))
    return found


def _template_said(data: dict[str, Any]) -> dict[str, str]:
    """What conversations in tokens depend on beside the tokenizer, where there is a chat template."""
    labels = {"chat_template": "Chat template", "date": "Template date"}
    return {label: str(data[key]) for key, label in labels.items() if data.get(key) is not None}


def _provenance(recipe: Recipe, prepared: Prepared, examiner: Examiner) -> dict[str, list[Fact]]:
    def facts(pairs: dict[str, Any]) -> list[Fact]:
        return [Fact(label, str(value)) for label, value in pairs.items()]

    size: Callable[[dict[str, int]], str] = lambda part: (  # noqa: E731
        f"{part['documents']:,} documents, {part['labels']:,} tokens, {part['bytes']:,} bytes"
    )
    data = prepared.data
    notes = {f"Note {i}": note for i, note in enumerate(prepared.notes, 1)}
    cuts = {
        f"Cut {name}": f"{facts['parameters']:,} parameters; layers {', '.join(map(str, facts['layers']))}"
        for name, facts in prepared.student_facts.items()
    }
    return {
        "Data": facts({
            "Trained on": size(data["train"]),
            "Held out": size(data["heldout"]),
            "Measured on": f"{len(examiner.corpus):,} held-out documents",
            "Fingerprint": data["fingerprint"],
            "Tokenizer": f"{data['vocabulary']:,} tokens, map {data['tokenizer']}",
            **_template_said(data),
        }),
        "Models": facts({
            "Teacher": f"{prepared.teacher_facts['parameters']:,} parameters",
            "Teacher's weights": prepared.teacher_facts["fingerprint"],
            **notes,
            **cuts,
            "Seeds": ", ".join(map(str, recipe.seeds)),
            "Samples": f"temperature {SAMPLE_TEMPERATURE}, not chosen: the first held-out documents",
        }),
        "Machine": facts(machine()),
        "Versions": facts(versions()),
    }  # fmt: skip
