"""Each technique as a function from its section of the recipe to loss terms.

No technique owns a loop. Techniques differ in their loss terms and in the source of their batches.
"""

from __future__ import annotations

from typing import Any

from limbeck.errors import RecipeError
from limbeck.objectives.divergences import resolve
from limbeck.objectives.schedules import Schedule
from limbeck.recipe import Alone, Co, Divergence, Hard, Ramp, Soft, Technique, Weight
from limbeck.training.loss_graph import HiddenLossTerm, LossTerm

TEACHER = "teacher"


def loss_terms_of(technique: Technique, students: list[str]) -> list[LossTerm]:
    """The loss terms of a graph. ``alone`` and ``hard`` learn labels (the data's, or what the teacher
    wrote); ``soft`` and ``co`` learn the teacher's probabilities too; in ``co`` it learns itself.

    Raises:
        RecipeError: a divergence that does not exist; its key is relative to the technique.
    """
    match technique:
        case Alone() | Hard():
            return [LossTerm(student) for student in students]
        case Soft() | Co():
            divergence = _divergence(technique.divergence)
            loss_terms = [LossTerm(TEACHER)] if isinstance(technique, Co) else []
            for student in students:
                loss_terms.append(
                    LossTerm(student, TEACHER, divergence, technique.temperature, schedule(technique.kd_weight))
                )
                if technique.ce_weight != 0:
                    loss_terms.append(LossTerm(student, weight=schedule(technique.ce_weight)))
            return loss_terms


def hidden_loss_terms(technique: Technique, matched: dict[str, list[tuple[int, int]]]) -> list[HiddenLossTerm]:
    """The loss terms on hidden states.

    Args:
        technique: a section of the recipe.
        matched: for each student, which of its layers goes with which of the teacher's.
    """
    if not isinstance(technique, Soft) or technique.hidden is None:
        return []
    section = technique.hidden
    return [
        HiddenLossTerm(
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
    """Whether the teacher is in the graph (rather than having written its text before)."""
    return isinstance(technique, Soft | Co)


def schedule(weight: Weight) -> Schedule:
    if isinstance(weight, Ramp):
        return Schedule(weight.start, weight.end, weight.begin, weight.until, weight.shape == "cosine")
    return Schedule.constant(float(weight))


def _divergence(section: str | Divergence) -> Any:
    try:
        return resolve(section if isinstance(section, str) else section.model_dump())
    except (ValueError, TypeError, KeyError) as error:
        said = str(error.args[0]) if error.args else str(error)
        raise RecipeError(said, key=".divergence") from None
