"""The techniques and their weights."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from limbeck.recipe.base import LONGEST_NAME, PLAIN_NAME, NonNegative, Positive, Section, Share
from limbeck.recipe.techniques.generation import Generation
from limbeck.recipe.techniques.signals import Signals


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
    """Learn the teacher's probabilities: it answers every batch, or was asked once and is read from disk."""

    kind: Literal["soft"] = "soft"
    signals: Literal["live", "stored", "auto"] | Signals = Field(
        "live",
        description="live: the teacher answers every batch. stored: it is asked once, and what it says is kept on "
        "disk; or a section of settings. auto: stored where it would be asked the same several times.",
    )
    hidden: Hidden | None = Field(None, description="Learn the teacher's hidden states too.")
    generation: Generation | None = Field(
        None, description="The teacher first writes the text (as for `hard`), then grades every token of it."
    )

    @property
    def stored(self) -> Signals | None:
        """What is kept on disk, or may be (`auto`); None: nothing, the teacher answers every batch."""
        if isinstance(self.signals, Signals):
            return self.signals
        return None if self.signals == "live" or (self.signals == "auto" and self.hidden is not None) else Signals()

    @model_validator(mode="after")
    def _can_be_stored(self) -> Soft:
        if self.hidden is not None and self.stored is not None:
            raise ValueError(
                "hidden: stored signals hold no hidden states; write `signals: live`, or leave `hidden` out"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A live teacher is left out: fingerprints of recipes without stored signals stay as they were."""
        plain: dict[str, Any] = handler(self)
        return {name: value for name, value in plain.items() if name != "signals" or value != "live"}


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
