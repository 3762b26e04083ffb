"""The recipe: one strict YAML file that says what is distilled from what, and how.

Unknown keys are errors that suggest the near name; every model is frozen. This module knows
no torch, so that ``limbeck --help`` and ``limbeck schema`` stay instant.

Numbers carry their unit in their name (``tokens``, ``micro_batch_size``, ``max_new_tokens``). Relative
paths are relative to the directory in which ``limbeck`` is called.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from limbeck.errors import RecipeError
from limbeck.recipe.base import LONGEST_NAME, Count, NonNegative, Section, Seed
from limbeck.recipe.data import (
    Columns,
    Data,
    FilesSource,
    HubSource,
    JsonlSource,
    ParquetSource,
    Source,
    StdlibSource,
    TextSource,
)
from limbeck.recipe.filters import Filters, Keep
from limbeck.recipe.models import (
    AnyStudent,
    ConfigModel,
    ConfigStudent,
    ConfigTeacher,
    Correction,
    CutStudent,
    Lora,
    PackageModel,
    PackageStudent,
    PathModel,
    PathStudent,
    PathTokenizer,
    ServedTeacher,
    Student,
    Teacher,
    Tokenizer,
    TrainedTokenizer,
    Vocabulary,
)
from limbeck.recipe.served import Budget, Endpoint, Prices, Terms
from limbeck.recipe.techniques import (
    KINDS,
    Alone,
    Co,
    Divergence,
    Generation,
    Hard,
    Ramp,
    Signals,
    Soft,
    Technique,
    Weight,
)
from limbeck.recipe.techniques.generation import Example
from limbeck.recipe.training import Optimiser, Training
from limbeck.recipe.verify import Verify
from limbeck.recipe.yaml_file import apply_overrides, explain, read_yaml

__all__ = [
    "Accuracy",
    "Alone",
    "AnyStudent",
    "Budget",
    "Co",
    "Columns",
    "ConfigModel",
    "ConfigStudent",
    "ConfigTeacher",
    "Correction",
    "CutStudent",
    "Data",
    "Divergence",
    "Endpoint",
    "Evaluation",
    "Example",
    "FilesSource",
    "Filters",
    "Generation",
    "Hard",
    "HubSource",
    "JsonlSource",
    "Keep",
    "Lora",
    "Optimiser",
    "PackageModel",
    "PackageStudent",
    "ParquetSource",
    "PathModel",
    "PathStudent",
    "PathTokenizer",
    "Prices",
    "Ramp",
    "Recipe",
    "Section",
    "ServedTeacher",
    "Signals",
    "Soft",
    "Source",
    "StdlibSource",
    "Student",
    "Teacher",
    "Technique",
    "Terms",
    "TextSource",
    "Tokenizer",
    "TrainedTokenizer",
    "Training",
    "Verify",
    "Vocabulary",
    "Weight",
    "fingerprint",
    "load_recipe",
    "parse_recipe",
]  # fmt: skip


TAKEN = ("labels", "teacher")
"""What a loss term may have as its source: no student and no technique is called so."""


class Accuracy(Section):
    """Share of held-out prompts that a model answers right, greedily."""

    verify: Verify = Field(description="How an answer is checked against the document's own.")
    max_documents: Count = Field(200, description="Held-out prompts (by hash order).")
    max_new_tokens: Count = Field(128, description="Length of an answer.")
    system: str | None = Field(None, description="System text before conversations that have none.")
    temperature: NonNegative | None = Field(
        0.0,
        description="Of a teacher that is called; null: left to an endpoint that refuses it. Other models are greedy.",
    )


class Evaluation(Section):
    """How the gap between student and teacher is measured on the held-out documents."""

    max_documents: Count = Field(200, description="Held-out documents measured (by hash order).")
    bootstrap: Annotated[int, Field(ge=100)] = Field(2000, description="Resamples behind each 95% interval.")
    samples: Annotated[int, Field(ge=0)] = Field(4, description="Continuations shown side by side.")
    sample_tokens: Count = Field(60, description="Length of a continuation.")
    speed_tokens: Annotated[int, Field(ge=0)] = Field(64, description="Tokens generated to time it; 0: not timed.")
    accuracy: Accuracy | None = Field(None, description="Held-out prompts answered and checked; default: not measured.")


def _sections(techniques: Any) -> Any:
    """Techniques with every bare name as a section with that ``kind``."""
    if isinstance(techniques, str | dict):
        techniques = [techniques]
    if isinstance(techniques, list | tuple):
        techniques = [{"kind": item} if isinstance(item, str) else item for item in techniques]
    return techniques


def _or_their_names(schema: dict[str, Any]) -> None:
    """In the schema as in the recipe, a technique may be just its name."""
    schema["items"] = {"anyOf": [{"enum": list(KINDS)}, schema["items"]]}


class Recipe(Section):
    """One run of limbeck."""

    title: str | None = Field(None, description="Heading of the report.")
    run: str = Field(
        "runs/recipe", description="The run folder; default: runs/ and the recipe's name. An existing one is continued."
    )
    threads: Count | Literal["auto"] = Field(
        "auto",
        description="CPU threads of a stage. `auto`: one where there are as many arms as cores; for a teacher that is "
        "trained first, and for fewer arms, the better of one and all, timed once a run. Results may follow it in the "
        "last bits.",
    )
    jobs: Count | Literal["auto"] = Field(
        "auto",
        description="Stages that run at a time, where they do not need each other. `auto`: one for each GPU, or as "
        "many as fit the cores. Results do not depend on it.",
    )
    seeds: tuple[Seed, ...] = Field((0,), min_length=1, description="Every technique is run once for each seed.")
    teacher: Teacher = Field(
        description="The model that is distilled: `path`, `package`, `config` with `pretraining`, or `api`, one that "
        "can only be called."
    )
    student: Student | None = Field(
        None, description="The model that is trained: `path`, `config`, or `from: teacher`."
    )
    students: dict[str, Student] | None = Field(
        None, description="Instead of `student`: several, by name; one teacher forward serves all."
    )
    tokenizer: Tokenizer | None = Field(
        None, description="Default: the teacher's; the student's where the teacher is only called."
    )
    data: Data
    techniques: tuple[Technique, ...] = Field(
        min_length=1,
        description=f"What is run and compared: {', '.join(KINDS)}; a name or a section with `kind`.",
        json_schema_extra=_or_their_names,
    )
    training: Training
    evaluation: Evaluation = Field(default_factory=Evaluation)

    @field_validator("techniques", mode="before")
    @classmethod
    def _names_are_kinds(cls, value: Any) -> Any:
        return _sections(value)

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        if (self.student is None) == (self.students is None):
            raise ValueError("write either `student:` or `students:`, one of them")
        if self.students is not None and not self.students:
            raise ValueError("students is empty; write at least one")
        self._check_students_names()
        self._check_techniques_names()
        if len({self._vocabulary_of(student) for student in (self.students or {}).values()}) > 1:
            raise ValueError("students: all of a run share one vocabulary; write the same `vocabulary` for each")
        if self.vocabulary is not None and isinstance(self.teacher, ConfigTeacher):
            raise ValueError(
                "student.vocabulary: a teacher that is trained here has its data's; leave `vocabulary` out"
            )
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds: the same seed stands twice")
        if isinstance(self.teacher, ConfigTeacher) and self.tokenizer is None:
            raise ValueError(
                "tokenizer: a teacher from a config brings none; write `tokenizer: {train: {vocab_size: 2048}}`"
            )
        if isinstance(self.tokenizer, TrainedTokenizer) and not isinstance(self.teacher, ConfigTeacher | ServedTeacher):
            raise ValueError("tokenizer: the teacher was trained with its own; leave `tokenizer` out")
        if isinstance(self.teacher, ServedTeacher):
            self._check_served()
        self._check_controls()
        return self

    def _check_served(self) -> None:
        """A teacher that is called has no weights, no probabilities and no tokenizer here."""
        assert isinstance(self.teacher, ServedTeacher)
        for name, student in self.named_students.items():
            key = "student" if self.student is not None else f"students.{name}"
            if isinstance(student, CutStudent):
                raise ValueError(f"{key}: a teacher that is called has no weights to cut; name a student by `path`")
        for i, fallback in enumerate(self.teacher.fallbacks):
            if isinstance(fallback, Endpoint) and fallback.batch:
                raise ValueError(
                    f"teacher.fallbacks.{i}.batch: only the first teacher is sent batches, which take hours; leave it "
                    "out, and the fallback is asked at once"
                )
        for i, technique in enumerate(self.techniques):
            if isinstance(technique, Soft):
                self._check_served_signals(i, technique)
            elif technique.kind not in ("alone", "hard"):
                raise ValueError(
                    f"techniques.{i}: {technique.kind!r} needs the teacher's weights, and this one is only called "
                    "(access: text); write `hard`"
                )
            generation = getattr(technique, "generation", None)
            if generation is not None and generation.tokens is not None:
                raise ValueError(
                    f"techniques.{i}.generation.tokens: a teacher that is called answers prompts; write `max_prompts`"
                )
        known = any(isinstance(student, PathStudent | PackageStudent) for student in self.named_students.values())
        if self.tokenizer is None and not known:
            raise ValueError(
                "tokenizer: neither a teacher that is called nor a student from a config brings one; write "
                "`tokenizer: {path: ...}`"
            )

    def _check_served_signals(self, i: int, technique: Soft) -> None:
        """A server may say what it thinks of a text: a few log-probabilities a token, which are kept."""
        if not isinstance(technique.signals, Signals) or technique.signals.scheme != "top_k":
            raise ValueError(
                f"techniques.{i}.signals: a teacher that is called gives a few log-probabilities a token; write "
                "`signals: {scheme: top_k, k: 20}` if its server has `prompt_logprobs`, else `hard`"
            )
        if isinstance(self.tokenizer, TrainedTokenizer):
            raise ValueError(
                f"techniques.{i}: signals are of the teacher's own tokens; write `tokenizer: {{path: ...}}` with its "
                "tokenizer, or `hard`"
            )

    def _check_controls(self) -> None:
        """`as_many_as` names another technique, whose text is chosen."""
        texts = {t.label: getattr(t, "generation", None) for t in self.techniques}
        for i, technique in enumerate(self.techniques):
            own = texts[technique.label]
            if own is None or own.as_many_as is None:
                continue
            other = texts.get(own.as_many_as)
            if other is None or other.as_many_as is not None:
                raise ValueError(
                    f"techniques.{i}.generation.as_many_as: {own.as_many_as!r} is no technique whose text is chosen; "
                    "write the name of one"
                )

    def _check_students_names(self) -> None:
        """Names become folders, rows and sources of loss_terms. Some file systems do not tell a from A."""
        seen: set[str] = set()
        for name in self.students or {}:
            folded = name.casefold()
            if folded in TAKEN:
                raise ValueError(f"students: {name!r} means something else here; choose another name")
            if not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"students: {name!r} is no plain name; use letters, digits, - and _")
            if len(name) > LONGEST_NAME:
                raise ValueError(f"students: {name!r} is longer than {LONGEST_NAME} characters; choose a shorter name")
            if folded in seen:
                raise ValueError(f"students: {name!r} stands twice, capitals aside; choose another name")
            seen.add(folded)

    def _check_techniques_names(self) -> None:
        """A technique's name is its row in the table and its folder: it may not read as anything else."""
        students = {name.casefold() for name in self.students or {}}
        seen: set[str] = set()
        for i, technique in enumerate(self.techniques):
            label, key = technique.label, f"techniques.{i}.name"
            folded = label.casefold()
            if folded in TAKEN or folded in students:
                what = "a student" if folded in students else f"the {folded}" if folded == "teacher" else "a source"
                raise ValueError(f"{key}: {label!r} is the name of {what}; choose another name")
            if folded in KINDS and folded != technique.kind:
                raise ValueError(f"{key}: {label!r} is another kind of technique than {technique.kind!r}; rename it")
            if re.search(r"-seed\d+", folded):
                raise ValueError(f"{key}: {label!r} reads as the folder of a seed; leave `-seed` and its number out")
            if folded in seen:
                raise ValueError(f"techniques: {label!r} stands twice; give one of them another `name`")
            seen.add(folded)

    @staticmethod
    def _vocabulary_of(student: AnyStudent | None) -> Vocabulary | None:
        return student.vocabulary if isinstance(student, CutStudent) else None

    @property
    def vocabulary(self) -> Vocabulary | None:
        """Which tokens the students keep; None: all."""
        return self._vocabulary_of(next(iter(self.named_students.values())))

    @property
    def named_students(self) -> dict[str, AnyStudent]:
        """The students by name; a single one is called ``student``."""
        return self.students if self.students is not None else {"student": self.student}  # type: ignore[dict-item]


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe file and apply ``key.path=value`` overrides.

    Raises:
        RecipeError: the file cannot be read, or a key or value is wrong; names the key and the fix.
    """
    path = Path(path)
    raw = read_yaml(path)
    if isinstance(raw, dict):
        raw.setdefault("run", f"runs/{path.stem}")
        if "techniques" in raw:  # so that an override can reach into one that is only named
            raw["techniques"] = _sections(raw["techniques"])
    raw = apply_overrides(raw, overrides)
    return parse_recipe(raw)


def parse_recipe(raw: Any) -> Recipe:
    """Validate a recipe that is already plain Python data. Raises RecipeError."""
    if not isinstance(raw, dict):
        raise RecipeError("a recipe is a mapping of keys to values", fix="See `limbeck schema` for the keys")
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise explain(error, Recipe) from None


def fingerprint(*parts: Any) -> str:
    """A short stable hash of recipe sections or plain data (hex, 16 characters)."""
    plain = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
