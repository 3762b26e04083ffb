"""The result of a comparison in a sentence or two, no kinder than the numbers.

A technique *beats* its control only where the whole 95% interval of the paired difference lies below zero.
Where the interval holds zero the two cannot be told apart, and the verdict says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from limbeck.report.markup import one_line
from limbeck.report.model import Estimate, Row, known
from limbeck.report.numbers import between, decimals_for, number, percent, significant


class Standing(Enum):
    """How a student compares with its control."""

    BETTER = "better"
    UNCLEAR = "cannot be told apart"
    WORSE = "worse"
    NO_INTERVAL = "no interval"
    UNKNOWN = "not compared"


def standing(row: Row) -> Standing:
    """Where the interval of ``row.versus_control`` lies; the edge at zero counts as unclear."""
    difference = known(row.versus_control)
    if difference is None:
        return Standing.UNKNOWN
    if difference.interval is None:
        return Standing.NO_INTERVAL
    low, high = difference.interval
    if high < 0:
        return Standing.BETTER
    return Standing.WORSE if low > 0 else Standing.UNCLEAR


def best_student(rows: Sequence[Row]) -> Row | None:
    """The student of the fewest bits per byte that is not worse than its control, or None where there is none."""
    measured = [
        (e.value, row)
        for row in rows
        if row.role == "student" and (e := known(row.bits_per_byte)) and standing(row) is not Standing.WORSE
    ]
    return min(measured, key=lambda pair: pair[0])[1] if measured else None


def teacher_of(rows: Sequence[Row]) -> Row | None:
    """The first teacher among ``rows``."""
    return next((row for row in rows if row.role == "teacher"), None)


def control_of(row: Row, rows: Sequence[Row]) -> Row | None:
    """The control of ``row``: the one of the same student, else the only one."""
    controls = [other for other in rows if other.role == "control"]
    same = [other for other in controls if row.member and other.member == row.member]
    if same:
        return same[0]
    return controls[0] if len(controls) == 1 else None


def verdict(rows: Sequence[Row]) -> str:
    """What the rows show, in plain text with names in backticks.

    It names the best student by bits per byte, its size beside the teacher, whether it beats its control,
    the share of the gap it closed, and every technique that does not beat its control.
    """
    students = [row for row in rows if row.role == "student"]
    if not students:
        return _without_techniques(rows)
    if not any(known(row.bits_per_byte) for row in students):
        return "No student's bits per byte were measured, so there is no verdict."
    accurate = _most_accurate(rows)
    best = best_student(rows)
    if best is None:  # all are worse than their controls
        several = [f"No technique beats {_controls(rows)}."] if len(students) > 1 else []
        outdone = [said for row in rows if row.role == "control" and (said := _teacher_outdone(row, rows))]
        return " ".join([*several, *_rest(None, rows), *outdone[:1], *accurate])
    sentences = [*_opening(best, rows), *_rest(best, rows), *accurate]
    return " ".join(sentences)


def _most_accurate(rows: Sequence[Row]) -> list[str]:
    """Who answers most held-out prompts right, and whether its interval overlaps with those of the others."""
    trained = [(e, row) for row in rows if row.role in ("student", "control") and (e := known(row.accuracy))]
    if len(trained) < 2:
        return []
    trained.sort(key=lambda pair: -pair[0].value)
    (first, row), others = trained[0], trained[1:]
    figures = [f"{quoted(other.name)} {percent(e.value, 1)}" for e, other in others]
    near = [quoted(other.name) for e, other in others if not _apart(first, e)]
    teacher = teacher_of(rows)
    beside = known(teacher.accuracy) if teacher else None
    said = f"{quoted(row.name)} answers {percent(first.value, 1)} of the held-out prompts right; {_listed(figures)}"
    said += f"; the teacher {percent(beside.value, 1)}." if beside else "."
    return [said, *([f"Its interval overlaps with that of {_listed(near)}."] if near else [])]


def quoted(name: str) -> str:
    """A row's name in backticks, on one line."""
    return f"`{one_line(name, 60).replace('`', chr(39))}`"


def _without_techniques(rows: Sequence[Row]) -> str:
    """Of a run of controls only, or of nothing but a teacher."""
    controls = [row for row in rows if row.role == "control"]
    if not controls:
        return "No student was trained, so there is nothing to judge."
    teacher = teacher_of(rows)
    reached = [
        f"{quoted(row.name)} reaches {number(bits.value, decimals_for([bits]))} bits per byte{_size(row, teacher)}."
        for row in controls
        if (bits := known(row.bits_per_byte))
    ]
    alone = "it learned" if len(controls) == 1 else "they learned"
    return " ".join([*reached, f"No technique was run beside {_controls(rows, 'the controls')}: {alone} without a "
                     "teacher, so what a teacher adds is not known."])  # fmt: skip


def _opening(best: Row, rows: Sequence[Row]) -> list[str]:
    students = [row for row in rows if row.role == "student"]
    reached = known(best.bits_per_byte)
    assert reached is not None
    figure = number(reached.value, decimals_for([best.bits_per_byte]))
    size = _size(best, teacher_of(rows))
    name = quoted(best.name)
    if len(students) > 1 and standing(best) is Standing.BETTER:
        claim = f"{name} is the best student: {figure} bits per byte{size}."
    elif len(students) > 1:
        claim = f"{name} has the fewest bits per byte of the students: {figure}{size}."
    else:
        claim = f"{name} reaches {figure} bits per byte{size}."

    control = control_of(best, rows)
    judged = standing(best)
    if control is None and judged is Standing.UNKNOWN:
        return [
            claim,
            "There is no control trained without the teacher, so what the teacher added is not known.",
        ]
    against = quoted(control.name) if control else "its control"
    gap = _gap(best, control, rows)
    if judged is Standing.BETTER:
        result = f"It beats {against} by {_amount(best, rows)}"
        result += f" and closes {gap} of the gap to the teacher." if gap else "."
    elif judged is Standing.UNCLEAR:
        result = f"It cannot be told apart from {against}: {_difference(best, rows)}."
    elif judged is Standing.NO_INTERVAL:
        difference = _difference(best, rows)
        result = f"It differs from {against} by {difference}, without an interval, so it may be chance."
    else:
        result = f"It was not compared with {against}."
    sentences = [claim, result]
    if control and (outdone := _teacher_outdone(control, rows)):
        sentences.append(outdone)
    several = len(students) > 1
    if several and all(standing(row) in (Standing.UNCLEAR, Standing.WORSE) for row in students):
        sentences[0:0] = [f"No technique beats {_controls(rows)}."]
    return sentences


def _rest(best: Row | None, rows: Sequence[Row]) -> list[str]:
    """One clause for every other technique; those that fail are never left out."""
    better, clauses = [], []
    for row in rows:
        if row.role != "student" or row is best:
            continue
        control = control_of(row, rows)
        against = quoted(control.name) if control else "its control"
        name, judged = quoted(row.name), standing(row)
        if judged is Standing.BETTER:
            better.append(f"{name} (by {_amount(row, rows, unit=False)})")
        elif judged is Standing.UNCLEAR:
            clauses.append(f"{name} cannot be told apart from {against}: {_difference(row, rows)}.")
        elif judged is Standing.WORSE:
            clauses.append(f"{name} does not beat {against}: it is worse by {_amount(row, rows)}.")
        elif judged is Standing.NO_INTERVAL:
            clauses.append(f"{name} differs from {against} by {_difference(row, rows)}, without an interval.")
        elif control is not None:
            clauses.append(f"{name} was not compared with {against}.")
    if better:
        also = "also " if best is not None and standing(best) is Standing.BETTER else ""
        beats = "beats" if len(better) == 1 else "beat"
        beaten = _controls(rows) if len(better) == 1 else _controls(rows, "their controls")
        clauses.insert(0, f"{_listed(better)} {also}{beats} {beaten}.")
    return clauses


def _size(row: Row, teacher: Row | None) -> str:
    if teacher is None or not teacher.parameters or not row.parameters:
        return ""
    ratio = row.parameters / teacher.parameters
    if ratio > 1.05:
        return f", with {significant(ratio)} times the teacher's parameters"
    if ratio > 0.95:
        return ", at the teacher's size"
    return f", at {significant(100 * ratio)}% of the teacher's parameters"


def _gap(row: Row, control: Row | None, rows: Sequence[Row]) -> str | None:
    closed = known(row.gap_closed)
    if closed is None or closed.value <= 0 or (control and _teacher_outdone(control, rows)):
        return None
    text = percent(closed.value)
    return f"{text} ({between(closed.interval, 0, scale=100, unit='%')})" if closed.interval else text


def _teacher_outdone(control: Row, rows: Sequence[Row]) -> str | None:
    teacher = teacher_of(rows)
    there, here = known(teacher.bits_per_byte) if teacher else None, known(control.bits_per_byte)
    if there is None or here is None or there.value < here.value:
        return None
    figures = f"{number(there.value)} against {number(here.value)}"
    against = quoted(control.name)
    return (
        f"The teacher itself is no better than {against} here ({figures}): there is no gap to close. "
        "Tune it on this data, or more of it, before it teaches (`teacher.correct`, `teacher.pretraining`)."
    )


def _amount(row: Row, rows: Sequence[Row], *, unit: bool = True) -> str:
    """The size of the difference, without its sign: "0.066 bits per byte (0.060 to 0.072)"."""
    difference = known(row.versus_control)
    assert difference is not None
    decimals = decimals_for([other.versus_control for other in rows])
    text = number(abs(difference.value), decimals) + (" bits per byte" if unit else "")
    if difference.interval is None:
        return text
    low, high = sorted(abs(end) for end in difference.interval)
    return f"{text} ({between((low, high), decimals)})" if unit else text


def _difference(row: Row, rows: Sequence[Row]) -> str:
    """The difference with its sign: "−0.003 bits per byte (−0.010 to 0.004)"."""
    difference = known(row.versus_control)
    assert difference is not None
    decimals = decimals_for([other.versus_control for other in rows])
    text = f"{number(difference.value, decimals, sign=True)} bits per byte"
    return f"{text} ({between(difference.interval, decimals)})" if difference.interval else text


def _controls(rows: Sequence[Row], several: str = "its control") -> str:
    controls = [row for row in rows if row.role == "control"]
    return quoted(controls[0].name) if len(controls) == 1 else several


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def speed_up(row: Row, rows: Sequence[Row]) -> tuple[float | None, str]:
    """How many times faster than the teacher a row generates, or None and why that cannot be said.

    It is said only where the two ranges do not overlap, and where models of one shape, which do the same arithmetic,
    were measured alike: what tells those apart is the machine.
    """
    teacher = teacher_of(rows)
    own, other = known(row.tokens_per_second), known(teacher.tokens_per_second) if teacher else None
    if own is None or other is None or own.interval is None or other.interval is None or other.value <= 0:
        return None, "No speed-up is given: not all speeds were measured with their spread."
    timed = [(each, rate) for each in rows if each.shape and (rate := known(each.tokens_per_second))]
    for i, (one, first) in enumerate(timed):
        for two, second in timed[i + 1 :]:
            if one.shape == two.shape and _apart(first, second):
                return None, (
                    f"No speed-up is given: {quoted(one.name)} and {quoted(two.name)} have one shape, and "
                    f"were timed at {significant(first.value)} and {significant(second.value)} tokens/s. "
                    "The machine was not quiet."
                )
    if not _apart(own, other):
        return None, f"No speed-up is given: {quoted(row.name)} and the teacher cannot be told apart in speed."
    return own.value / other.value, ""


def _apart(one: Estimate, other: Estimate) -> bool:
    """Whether two ranges do not overlap; without a range, nothing is known."""
    if one.interval is None or other.interval is None:
        return False
    return one.interval[0] > other.interval[1] or other.interval[0] > one.interval[1]
