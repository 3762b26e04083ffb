"""Whether a recipe is right.

What needs torch is proven once and kept (``pipeline/beforehand/proofs.py``); all else is looked at every time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.data.documents.sources import file_stamps
from limbeck.pipeline.beforehand.estimates import Labels, Sample, few_steps, sample_of
from limbeck.pipeline.beforehand.proofs import keep_proof, proof_key, read_proof
from limbeck.pipeline.checks_served import check_served, check_verifiers
from limbeck.pipeline.sections import existing_models, generations_of, verifiers_of
from limbeck.pipeline.stored.room import check_homes
from limbeck.recipe import ConfigTeacher, PathModel, PathTokenizer, Recipe, ServedTeacher, Training
from limbeck.workflow.lock import run_path


@dataclass(frozen=True)
class Seen:
    """What looking at a recipe has shown.

    Attributes:
        sample: documents that were read.
        labels: what the tokens of these say of the corpus; None for a tokenizer that is still to be trained.
        parameters: of every model, by its name.
        notes, warnings: what people should know, and what is hardly meant so.
    """

    sample: Sample
    labels: Labels | None
    parameters: dict[str, int]
    notes: list[str]
    warnings: list[str]


def look(recipe: Recipe) -> Seen:
    """Refuse a recipe that cannot work, as ``pipeline.build.check`` does, without torch where it was proven before.

    Raises:
        RecipeError, InputError: names the key and the fix.
    """
    run_path(recipe.run)
    check_homes(recipe.techniques, run_path(recipe.run))
    said = check_verifiers(verifiers_of(recipe), isinstance(recipe.teacher, ServedTeacher))
    sample = sample_of(recipe.data)
    if isinstance(recipe.teacher, ServedTeacher):
        said += check_served(recipe.teacher, recipe.data, generations_of(recipe))
    key = _key(recipe, sample, said)
    if key is None or (proof := read_proof(key)) is None:
        proof = _prove(recipe, sample, key)
    labels = Labels.of(sample, proof["read"], recipe.data) if proof["read"] is not None else None
    steps = few_steps(recipe.training, recipe.data, labels)
    warnings = [*steps, *_epochs(recipe, labels), *proof["warnings"]]
    return Seen(sample, labels, proof["parameters"], proof["notes"], warnings)


def _epochs(recipe: Recipe, labels: Labels | None) -> list[str]:
    if labels is None:
        return []
    found, teacher = [], recipe.teacher
    if isinstance(teacher, ConfigTeacher):
        found += labels.too_many(teacher.pretraining.tokens, "teacher.pretraining")
    elif not isinstance(teacher, ServedTeacher) and teacher.correct is not None:
        found += labels.too_many(teacher.correct.tokens, "teacher.correct")
    if any(getattr(technique, "generation", None) is None for technique in recipe.techniques):
        found += labels.too_many(recipe.training.tokens, "training")
    return found


def _prove(recipe: Recipe, sample: Sample, key: str | None) -> dict[str, Any]:
    from limbeck.pipeline.build import check  # torch
    from limbeck.pipeline.shared.base import located

    found = check(recipe, sample.documents)
    proof = {
        "notes": found.notes,
        "warnings": found.warnings,
        "parameters": found.parameters,
        "read": found.read,
    }
    if key is not None:
        folders = {Path(located(spec)[0].path) for spec in existing_models(recipe).values()}
        keep_proof(key, proof, sorted(folder for folder in folders if folder.is_dir()))
    return proof


_RUN_ONLY = {"title", "run", "seeds", "threads", "jobs", "training", "evaluation"}
"""Sections on which no proof depends. What of them is checked needs no torch."""

_LOOP_ONLY = set(Training.model_fields) - {"gradient_checkpointing"}


def _key(recipe: Recipe, sample: Sample, said: list[str]) -> str | None:
    """The key of a proof (``proof_key``). A section that is new in a recipe is part of it unless it is named above."""
    plain = recipe.model_dump(mode="json", exclude=_RUN_ONLY)
    for technique in plain["techniques"]:
        if isinstance(technique.get("signals"), dict):
            technique["signals"].pop("folder")  # what is in a store changes, and is not proven
    data = plain.pop("data")
    data.pop("heldout")
    for section in ("pretraining", "correct"):
        if plain["teacher"].get(section) is not None:
            plain["teacher"][section] = {k: v for k, v in plain["teacher"][section].items() if k not in _LOOP_ONLY}
    plain["gradient_checkpointing"] = recipe.training.gradient_checkpointing
    models = [*existing_models(recipe).values()]
    if isinstance(recipe.tokenizer, PathTokenizer):
        models.append(PathModel(path=recipe.tokenizer.path))
    # The corpus itself is not hashed: its first documents are read every time.
    prompts = json.dumps(file_stamps(recipe.data.prompts, "data.prompts"))
    documents = (document.key for document in sample.documents)
    said = [*said, json.dumps(data), prompts, str(sample.whole), *documents]
    return proof_key(plain, models, said)
