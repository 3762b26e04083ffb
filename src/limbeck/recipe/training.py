"""The optimiser and the loop."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from limbeck.recipe.base import Count, NonNegative, PartOf, Positive, Section, Share


class Optimiser(Section):
    """AdamW and its schedule."""

    lr: Positive = Field(1e-3, description="Peak learning rate.")
    schedule: Literal["cosine", "wsd", "linear", "constant"] = Field(
        "cosine", description="After the warm-up: cosine, warm-up-stable-decay, linear, or constant."
    )
    warmup: Share = Field(0.03, description="Share of the steps spent warming up.")
    decay: Share = Field(0.2, description="wsd: share of the steps spent decaying at the end.")
    min_lr_ratio: Share = Field(0.1, description="cosine and wsd end at this share of `lr`; linear ends at 0.")
    weight_decay: NonNegative = Field(0.1, description="On matrices only, not on norms.")
    betas: tuple[PartOf, PartOf] = Field((0.9, 0.95), description="AdamW's betas.")
    clip: NonNegative = Field(1.0, description="Clip the gradient's norm; 0: never.")

    @model_validator(mode="after")
    def _has_room(self) -> Optimiser:
        if self.schedule == "wsd" and self.warmup + self.decay > 1:
            raise ValueError(f"wsd: warmup and decay are {self.warmup + self.decay:g} of the steps; lower one of them")
        return self


class Training(Optimiser):
    """The loop: the same for every technique, so that they can be compared."""

    tokens: Count = Field(description="Student tokens (labels) to learn from: the same for every technique.")
    micro_batch_size: Count = Field(16, description="Rows of a forward pass.")
    gradient_accumulation_steps: Count = Field(1, description="Forward passes of a step.")
    precision: Literal["fp32", "bf16", "auto"] = Field(
        "fp32",
        description="bf16: matrix products under autocast. `auto`: bf16 on a GPU and on processors with instructions "
        "for it, else fp32.",
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations: slower, less memory.")
    checkpoint_every_steps: Count = Field(200, description="How often a resumable checkpoint is written.")
    log_every_steps: Count = Field(10, description="How often a line goes to metrics.jsonl and TensorBoard.")
