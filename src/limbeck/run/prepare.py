"""The corpus in tokens, and the small pieces that every stage of a run shares."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from limbeck.data.corpus import Corpus
from limbeck.data.packing import Rows
from limbeck.display import Display
from limbeck.files import whole_folder
from limbeck.models.language_model import PROJECTIONS, LanguageModel
from limbeck.models.load import load_model
from limbeck.models.restricted import RestrictedModel
from limbeck.models.tokenizer import load_tokenizer
from limbeck.models.vocabulary import KeptTokens
from limbeck.recipe import ConfigModel, Data, PathModel, Recipe, Training
from limbeck.run.budget import is_whole
from limbeck.training.batches import CorpusBatches

OWN_HELDOUT = "heldout-teacher"
OPERATIONAL = {"checkpoint_every_steps", "log_every_steps", "cache"}


@dataclass
class Prepared:
    """What every technique starts from.

    Attributes:
        tokenizer: everybody's.
        train, heldout: the corpus in tokens.
        data: facts about it: fingerprint, documents, tokens.
        teacher: where the weights of who teaches are, also if they were trained or tuned here.
        teacher_facts: its fingerprint and size.
        students: how each starts: weights (also if they were cut here), or a configuration.
        student_facts: what was cut, by student.
        notes: what people should know of the models' origin.
        kept: which of the teacher's tokens the students have; None: all.
        heldout_own: then, the held-out documents in the teacher's own tokens, in the same order.
    """

    tokenizer: Any
    train: Corpus
    heldout: Corpus
    data: dict[str, Any]
    teacher: PathModel
    teacher_facts: dict[str, Any]
    students: dict[str, PathModel | ConfigModel]
    student_facts: dict[str, dict[str, Any]]
    notes: list[str]
    kept: KeptTokens | None = None
    heldout_own: Corpus | None = None

    def note(self, text: str, display: Display) -> None:
        """Something to know of the models: said now, and kept for the report."""
        self.notes.append(text)
        display.note(text)

    def load_teacher(self, seq_len: int | None = None) -> LanguageModel:
        """The teacher, seen through the students' vocabulary if theirs is smaller."""
        return load_teacher(self.teacher, self.tokenizer, self.kept, seq_len)


def load_teacher(spec: PathModel, tokenizer: Any, kept: KeptTokens | None, seq_len: int | None = None) -> LanguageModel:
    if kept is None:
        return load_model(spec, tokenizer, key="teacher", seq_len=seq_len)
    own = load_tokenizer(spec.path, key="teacher.path", revision=spec.revision)
    own.eos_token = tokenizer.eos_token  # the recipe's (`data.end`): it says where the teacher stops
    return RestrictedModel(load_model(spec, own, key="teacher", seq_len=seq_len), kept, tokenizer)


def settings(training: Training) -> dict[str, Any]:
    """The part of ``training`` that changes what is learned."""
    return training.model_dump(mode="json", exclude=OPERATIONAL)


def data_inputs(recipe: Recipe, facts: dict[str, Any], *, pack: bool = True) -> dict[str, Any]:
    """What a later stage takes from the data: which documents, which of them are held out, in which tokens and
    rows. ``pack``: how they share rows matters too."""
    data = recipe.data
    return {
        "fingerprint": facts["fingerprint"],
        "tokenizer": facts["tokenizer"],
        "heldout": data.heldout,
        "end": data.end,
        "seq_len": data.seq_len,
        **({"pack": data.pack} if pack else {}),
        # Of a corpus that was tokenised in part, which part.
        **({} if is_whole(facts["train"]) else {"documents": facts["train"]["documents"]}),
    }


def recipe_keys(recipe: Recipe) -> dict[str, str]:
    """How the inputs of stages are called in the recipe, for errors."""
    one = recipe.student is not None
    vocabulary = "student.vocabulary" if one else "students.*.vocabulary"
    keys = {
        "data.fingerprint": "data.corpus",
        "data.documents": "training.tokens",
        "data.tokenizer": vocabulary if recipe.vocabulary is not None else "tokenizer",
        "vocabulary": vocabulary,
        "teacher.weights": "teacher",
    }
    for name in recipe.cohort:
        keys[f"students.{name}.fingerprint"] = "teacher"  # it was cut from another one
    keys["chat_template"] = "tokenizer" if recipe.tokenizer is not None else "teacher"
    for name in recipe.cohort:
        keys[f"students.{name}"] = "student" if one else f"students.{name}"
    return keys


def make_batches(corpus: Corpus, data: Data, section: Training, *, seed: int) -> CorpusBatches:
    return CorpusBatches(
        Rows(corpus, data.seq_len, pack=data.pack),
        tokens=section.tokens,
        batch_rows=section.batch_rows,
        accumulation=section.accumulation,
        seed=seed,
    )


def save_model(lm: LanguageModel, target: Path, dtype: str | None = None) -> None:
    """A plain ``save_pretrained`` folder with its tokenizer; adapters are merged into the weights.

    ``dtype``: in which the weights are written; the model is left in it. None: as they are held.
    """
    if hasattr(lm.model, PROJECTIONS):
        delattr(lm.model, PROJECTIONS)  # they belonged to the lesson, not to the student
    core = lm.model.merge_and_unload() if hasattr(lm.model, "peft_config") else lm.model
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if core.generation_config is not None and getattr(core.generation_config, name, None) is None:
            setattr(core.generation_config, name, getattr(lm.own_tokenizer, name, None))
    if dtype is not None:
        core.to(getattr(torch, dtype))
    with whole_folder(target) as scratch:
        core.save_pretrained(scratch)
        lm.own_tokenizer.save_pretrained(scratch)


def kept_tokens(run: Path) -> KeptTokens | None:
    """Which of the teacher's tokens a run's students have; None: all."""
    path = run / "data" / "vocabulary.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    return KeptTokens(torch.tensor(found["ids"]), found["teacher_size"], found["other"])
