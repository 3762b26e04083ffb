"""The techniques and their weights."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from limbeck.recipe.base import LONGEST_NAME, PLAIN_NAME, Count, NonNegative, Positive, Section, Seed, Share
from limbeck.recipe.filters import Filters, Keep
from limbeck.recipe.verify import Verify


class Divergence(Section):
    """A per-token divergence by name, with its parameters."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    name: str = Field(description="forward_kl, reverse_kl, jsd, skew_kl, skew_reverse_kl, alpha_beta, tvd, ...")


class Ramp(Section):
    """A weight that moves from `start` to `end` between two points of the training."""

    start: NonNegative
    end: NonNegative
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


Weight = NonNegative | Ramp


class _Technique(Section):
    uses_teacher: ClassVar[bool] = True
    """Whether what is learned depends on the teacher: its probabilities, its text, or its weights."""

    name: str | None = Field(
        None,
        pattern=PLAIN_NAME,
        max_length=LONGEST_NAME,
        description="What this run of the technique is called in the table; default: its kind.",
    )

    @property
    def label(self) -> str:
        return self.name or self.kind  # type: ignore[attr-defined]


class Alone(_Technique):
    """No teacher: the control that every technique must beat."""

    uses_teacher: ClassVar[bool] = False

    kind: Literal["alone"] = "alone"


class Generation(Section):
    """How the teacher writes text for its students."""

    tokens: Count | None = Field(
        None, description="Tokens to write; default: `training.tokens` (each is then learned once)."
    )
    prompt_tokens: Count = Field(
        8, description="Plain text: the teacher continues the first so many tokens of training documents."
    )
    max_new_tokens: Count | None = Field(None, description="Length of an answer; default: the rest of a row.")
    temperature: NonNegative | None = Field(
        1.0, description="Sampling temperature; 0: greedy; null: left to an endpoint that refuses it."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="Nucleus sampling.")
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="Sample from the k most probable; 0: all.")
    batch_size: Count = Field(64, description="Answers written at a time, by a teacher whose weights are in hand.")
    seed: Seed = Field(0, description="Seed of the sampling. 0: an endpoint is sent none.")
    samples: Count = Field(1, description="Answers to each prompt.")
    system: str | None = Field(None, description="System text before conversations that have none; learned along.")
    stop: tuple[str, ...] = Field((), description="Texts that end an answer.")
    max_prompts: Count | None = Field(None, description="Prompts, by the hash of their documents; default: all.")
    reasoning: Literal["keep", "drop"] = Field(
        "keep",
        description="Whether students learn the teacher's thoughts: by their own chat template where it writes "
        "thoughts, else between think tags.",
    )
    verify: Verify | None = Field(None, description="How answers are checked against the data's own.")
    filters: Filters | None = Field(None, description="Which answers are left out.")
    keep: Keep | None = Field(None, description="Which of a prompt's answers are learned.")
    as_many_as: str | None = Field(
        None,
        description="A control: learn a random part of what is kept, of as many answers as the named technique learns.",
    )

    @property
    def is_selected(self) -> bool:
        """Whether answers are asked for prompt by prompt, journalled, and chosen from."""
        return any(getattr(self, name) != type(self).model_fields[name].default for name in SELECTED)

    def sampling(self) -> dict[str, Any]:
        """What decides which answers are asked for, as plain data: nothing of what is done with them."""
        chosen = {"tokens", "reasoning", "verify", "filters", "keep", "as_many_as"}
        if self.keep is not None and self.keep.at_most is not None:
            chosen -= {"verify", "keep"}  # verdicts decide how often a prompt is asked
        return self.model_dump(mode="json", exclude=chosen)

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is selected is left out where it is not asked for: fingerprints of other recipes stay as they were."""
        plain: dict[str, Any] = handler(self)
        unset = {name for name in SELECTED if getattr(self, name) == type(self).model_fields[name].default}
        return {name: value for name, value in plain.items() if name not in unset}


SELECTED = (
    "samples", "system", "stop", "max_prompts", "reasoning", "verify", "filters", "keep", "as_many_as",
)  # fmt: skip
"""Settings of a generation whose answers are asked for prompt by prompt, verified and chosen."""


class _SoftTerms(_Technique):
    divergence: str | Divergence = Field("forward_kl", description="What is minimised against the teacher.")
    temperature: Positive = Field(1.0, description="Softens both distributions; the term is scaled by its square.")
    kd_weight: Weight = Field(0.9, description="Weight of the divergence to the teacher: a number or a ramp.")
    ce_weight: Weight = Field(0.1, description="Weight of the cross-entropy on the data's own labels.")

    @model_validator(mode="after")
    def _learns(self) -> _SoftTerms:
        if self.kd_weight == 0:
            raise ValueError("kd_weight is 0: nothing would be learned from the teacher; write `kind: alone`")
        return self


_Layer = Annotated[int, Field(ge=0)]


class Hidden(Section):
    """A loss term on hidden states beside the one on probabilities; projections, where widths differ, are discarded."""

    weight: Weight = Field(1.0, description="Weight of the distance in the student's loss.")
    distance: Literal["cosine", "mse"] = Field("cosine", description="One less the cosine, or the mean squared error.")
    layers: Literal["matched"] | Annotated[tuple[tuple[_Layer, _Layer], ...], Field(min_length=1)] = Field(
        "matched",
        description="Pairs [student's layer, teacher's layer], from 0. `matched`: a cut student's layers with "
        "those they were cut from, other students' evenly over the teacher's depth.",
    )

    @model_validator(mode="after")
    def _learns(self) -> Hidden:
        if self.weight == 0:
            raise ValueError("weight is 0: nothing would be learned from hidden states; leave `hidden` out")
        return self


class Soft(_SoftTerms):
    """Learn the teacher's probabilities: its weights are in hand and answer every batch."""

    kind: Literal["soft"] = "soft"
    hidden: Hidden | None = Field(None, description="Learn the teacher's hidden states too.")
    generation: Generation | None = Field(
        None, description="The teacher first writes the text (as for `hard`), then grades every token of it."
    )


class Hard(_Technique):
    """Learn the teacher's text: it writes, the student reads; works with closed teachers too."""

    kind: Literal["hard"] = "hard"
    generation: Generation = Field(default_factory=Generation, description="How the teacher writes.")


class Co(_SoftTerms):
    """Teacher and students learn together: one forward pass of the teacher serves itself and them."""

    kind: Literal["co"] = "co"
    teacher_start: Literal["trained", "scratch"] = Field(
        "trained", description="The teacher goes on from its weights, or starts from nothing beside its students."
    )
    teacher_lr: Positive | None = Field(
        None,
        description="The teacher's peak learning rate. Default: a tenth of `training.lr` where it is `trained`, "
        "`training.lr` where it starts from `scratch`.",
    )

    def peak_lr(self, lr: float) -> float:
        """The teacher's peak learning rate beside students that use ``lr``."""
        return self.teacher_lr or (lr if self.teacher_start == "scratch" else lr / 10)


Technique = Annotated[Alone | Soft | Hard | Co, Field(discriminator="kind")]
_members: tuple[Any, ...] = get_args(get_args(Technique)[0])
KINDS: tuple[str, ...] = tuple(member.model_fields["kind"].default for member in _members)
