"""Sections of a recipe by their place in it. No torch: ``limbeck check`` asks here first."""

from __future__ import annotations

import yaml

from limbeck.recipe import (
    ConfigTeacher,
    Generation,
    PackageModel,
    PathModel,
    Recipe,
    ServedTeacher,
    Technique,
    Verify,
)


def resolved(recipe: Recipe, *, full: bool = False) -> str:
    """The recipe with its defaults, in YAML. ``full``: what is not set, too."""
    return yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=not full), sort_keys=False, allow_unicode=True)


def given_teacher(recipe: Recipe) -> PathModel | PackageModel | None:
    """The section of a teacher whose weights exist."""
    return None if isinstance(recipe.teacher, ConfigTeacher | ServedTeacher) else recipe.teacher


def existing_models(recipe: Recipe) -> dict[str, PathModel | PackageModel]:
    """Models whose weights exist, by their place."""
    teacher = given_teacher(recipe)
    found: dict[str, PathModel | PackageModel] = {} if teacher is None else {"teacher": teacher}
    for name, student in recipe.named_students.items():
        if isinstance(student, PathModel | PackageModel):
            found[student_key(recipe, name)] = student
    return found


def generation_of(technique: Technique) -> Generation | None:
    return getattr(technique, "generation", None)


def generations_of(recipe: Recipe) -> dict[str, Generation]:
    """Sections that have text written, by their place."""
    found = {f"techniques.{i}.generation": generation_of(technique) for i, technique in enumerate(recipe.techniques)}
    return {place: section for place, section in found.items() if section is not None}


def verifiers_of(recipe: Recipe) -> dict[str, Verify]:
    """Sections that say how answers are verified, by their place."""
    found = {f"{place}.verify": section.verify for place, section in generations_of(recipe).items()}
    if recipe.evaluation.accuracy is not None:
        found["evaluation.accuracy.verify"] = recipe.evaluation.accuracy.verify
    return {place: section for place, section in found.items() if section is not None}


def student_key(recipe: Recipe, name: str) -> str:
    """Where a student stands in the recipe."""
    return "student" if recipe.student is not None else f"students.{name}"
