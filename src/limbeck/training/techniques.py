"""What each technique means: a function from its section of the recipe to lessons.

None of them owns a loop. They differ in who learns what from whom, and in where batches come from.
"""

from __future__ import annotations

from typing import Any

from limbeck.errors import RecipeError
from limbeck.objectives.divergences import resolve
from limbeck.objectives.schedules import Schedule
from limbeck.recipe import Alone, Co, Divergence, Hard, Ramp, Soft, Technique, Weight
from limbeck.training.cohort import HiddenLesson, Lesson

TEACHER = "teacher"


def lessons_of(technique: Technique, students: list[str], key: str) -> list[Lesson]:
    """The lessons of a cohort. ``alone`` and ``hard`` learn labels (the data's, or what the teacher
    wrote); ``soft`` and ``co`` learn the teacher's probabilities too; in ``co`` it learns itself.

    Raises:
        RecipeError: a divergence that does not exist; names ``key``.
    """
    match technique:
        case Alone() | Hard():
            return [Lesson(student) for student in students]
        case Soft() | Co():
            divergence = _divergence(technique.divergence, f"{key}.divergence")
            lessons = [Lesson(TEACHER)] if isinstance(technique, Co) else []
            for student in students:
                lessons.append(
                    Lesson(student, TEACHER, divergence, technique.temperature, schedule(technique.soft_weight))
                )
                if technique.hard_weight != 0:
                    lessons.append(Lesson(student, weight=schedule(technique.hard_weight)))
            return lessons


def hidden_lessons(technique: Technique, matched: dict[str, list[tuple[int, int]]]) -> list[HiddenLesson]:
    """The lessons on hidden states.

    Args:
        technique: a section of the recipe.
        matched: for each student, which of its layers goes with which of the teacher's.
    """
    if not isinstance(technique, Soft) or technique.hidden is None:
        return []
    section = technique.hidden
    return [
        HiddenLesson(
            student,
            TEACHER,
            tuple(pairs) if section.layers == "matched" else section.layers,
            section.distance,
            schedule(section.weight),
        )
        for student, pairs in matched.items()
    ]


def matched_layers(students_layers: int, teachers_layers: int, kept: list[int] | None = None) -> list[tuple[int, int]]:
    """Student's layers with teacher's: those they were cut from, else evenly, last with last."""
    if kept is None:
        kept = [round((i + 1) * teachers_layers / students_layers) - 1 for i in range(students_layers)]
    return list(enumerate(kept))


def needs_teacher(technique: Technique) -> bool:
    """Whether the teacher is in the cohort (rather than having written its text before)."""
    return isinstance(technique, Soft | Co)


def schedule(weight: Weight) -> Schedule:
    if isinstance(weight, Ramp):
        return Schedule(weight.start, weight.end, weight.begin, weight.until, weight.shape == "cosine")
    return Schedule.constant(float(weight))


def _divergence(section: str | Divergence, key: str) -> Any:
    try:
        return resolve(section if isinstance(section, str) else section.model_dump())
    except (ValueError, TypeError, KeyError) as error:
        said = str(error.args[0]) if error.args else str(error)
        raise RecipeError(said, key=key) from None
