"""The table of a report: a row for every model."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path

from limbeck.evaluation import gap
from limbeck.formats.sizes import Stored, stored, stored_teacher
from limbeck.pipeline.results.comparison import Comparison, Measurements, model_name
from limbeck.pipeline.shared.base import TEACHER
from limbeck.pipeline.stages.teacher import teacher_spec
from limbeck.recipe import Alone, PackageModel, PathModel, Technique
from limbeck.report.model import Estimate, Role, Row
from limbeck.statistics import Interval
from limbeck.workflow.stage import Facts, Plain


def rows_of(compared: Comparison, teacher: PathModel | PackageModel | None, run: Path, up: Facts) -> list[Row]:
    """The teacher, and every trained model.

    Args:
        compared: the arms.
        teacher: the recipe's section of one whose weights exist.
        run: the run folder.
        up: results of all stages.
    """
    measurements, timed = Measurements(run, up), up.get("speed", {})
    served = up[TEACHER].get("served")
    first = (
        _served(served, measurements, compared.bootstrap)
        if served is not None
        else _teacher(compared, teacher, measurements, timed)
    )
    rows = [first]
    for technique in compared.techniques:
        rows += [_trained(compared, technique, member, measurements, timed) for member in compared.members(technique)]
    return rows


def _teacher(
    compared: Comparison,
    section: PathModel | PackageModel | None,
    measurements: Measurements,
    timed: Mapping[str, Plain],
) -> Row:
    measured = [measurements.of(TEACHER)]
    return Row(
        TEACHER,
        "teacher",
        parameters=measurements.facts(TEACHER)["parameters"],
        **_size(stored_teacher(section, teacher_spec(measurements.up, measurements.run))),
        bits_per_byte=estimate(gap.mean("bits_per_byte", measured, compared.bootstrap)),
        **_entropies(measured, compared.bootstrap),
        **_speed(timed, TEACHER),
        accuracy=measurements.accuracy([TEACHER], compared.bootstrap),
        technique="",
        member=TEACHER,
    )


def _served(model: str, measurements: Measurements, resamples: int) -> Row:
    """A teacher that is called: only its answers are known."""
    accuracy = measurements.accuracy([TEACHER], resamples)
    return Row(TEACHER, "teacher", note=f"{model}, called", accuracy=accuracy, technique="", member=TEACHER)


def _trained(
    compared: Comparison, technique: Technique, member: str, measurements: Measurements, timed: Mapping[str, Plain]
) -> Row:
    resamples, arms = compared.bootstrap, [compared.arm(technique, seed) for seed in compared.seeds]
    measured = [measurements.of(model_name(arm, member)) for arm in arms]
    control = None
    if compared.control is not None and member != TEACHER and not isinstance(technique, Alone):
        others = [compared.arm(compared.control, seed) for seed in compared.seeds]
        control = [measurements.of(model_name(arm, member)) for arm in others]
    role: Role = "co-teacher" if member == TEACHER else "control" if isinstance(technique, Alone) else "student"
    served = "served" in measurements.up[TEACHER]
    teacher = measurements.of(TEACHER) if not served else None
    names = [model_name(arm, member) for arm in arms]
    return Row(
        _row_name(compared, technique.label, member),
        role,
        parameters=measurements.facts(model_name(arms[0], member))["parameters"],
        **_size(stored(measurements.run / arms[0].model(member))),
        bits_per_byte=estimate(gap.mean("bits_per_byte", measured, resamples)),
        kl=estimate(gap.mean("kl", measured, resamples)) if teacher else None,
        agreement=estimate(gap.mean("agreement", measured, resamples)) if teacher else None,
        gap_closed=estimate(gap.gap_closed(measured, control, teacher, resamples)) if control and teacher else None,
        accuracy=measurements.accuracy(names, resamples),
        versus_control=estimate(gap.difference("bits_per_byte", measured, control, resamples)) if control else None,
        **_entropies(measured, resamples),
        **_speed(timed, model_name(arms[0], member)),
        train_tokens=measurements.up[f"train-{arms[0].name}"]["tokens"],
        seeds=len(compared.seeds),
        technique=technique.label,
        member=member,
    )


def _row_name(compared: Comparison, label: str, member: str) -> str:
    if member == TEACHER:
        return f"{label}: teacher"
    return label if compared.single else f"{label} / {member}"


def _speed(timed: Mapping[str, Plain], name: str) -> dict[str, Plain]:
    """The median and the range of a model's rounds, and what it shares with models of one shape."""
    rates = timed.get("speeds", {}).get(name)
    if not rates:
        return {}
    return {
        "tokens_per_second": Estimate(statistics.median(rates), min(rates), max(rates)),
        "shape": timed["shapes"][name],
    }


def _size(weights: Stored) -> dict[str, Plain]:
    return {"bytes": weights.bytes, "dtype": weights.dtype}


def _entropies(measured: list[gap.Measured], resamples: int) -> dict[str, Plain]:
    return {
        "cross_entropy": estimate(gap.mean("cross_entropy", measured, resamples)),
        "cross_entropy_words": estimate(gap.mean("cross_entropy_words", measured, resamples)),
    }


def estimate(interval: Interval | None) -> Estimate | None:
    return Estimate(interval.value, interval.low, interval.high) if interval is not None else None
