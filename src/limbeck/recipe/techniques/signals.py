"""Whether a teacher answers every batch, or is asked once and read from disk."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from limbeck.recipe.base import Count, Section, Seed

GEMMA_SAMPLES, MULTINOMIAL_SAMPLES = 256, 50

SETTINGS = {
    "threshold": ("threshold",),
    "top_k": ("k",),
    "top_k_renormalised": ("k",),
    "multinomial": ("samples",),
    "gemma": ("samples",),
}
"""Of each scheme, the settings that it reads."""


class Signals(Section):
    """What is kept of a teacher's distributions on disk."""

    scheme: Literal["threshold", "top_k", "top_k_renormalised", "multinomial", "gemma"] = Field(
        "threshold",
        description="threshold: likely tokens exactly, the rest drawn, unbiased. top_k: the likeliest, and all others "
        "as one. For comparison: top_k_renormalised and gemma (biased), multinomial (noisy).",
    )
    threshold: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.02, description="threshold: tokens at least so probable are kept exactly; the others are drawn."
    )
    k: Annotated[int, Field(ge=1, le=65_535)] = Field(64, description="top_k, top_k_renormalised: tokens kept.")
    samples: Annotated[int, Field(ge=1, le=65_535)] | None = Field(
        None, description=f"Draws. Default: multinomial {MULTINOMIAL_SAMPLES}, gemma {GEMMA_SAMPLES}."
    )
    context: Literal["document", "row"] = Field(
        "document",
        description="What the teacher sees before a token. document: the document from its beginning, whatever "
        "`seq_len` is. row: what stands in the row, as the live teacher; another `seq_len` is then captured anew.",
    )
    window: Count | None = Field(
        None, description="document: tokens that the teacher reads at a time. Default: all it can, at most 8192."
    )
    seed: Seed = Field(0, description="Seed of the drawing.")
    folder: str | None = Field(
        None, description="Where stores are, or a store. Default: `signals` beside the run folder."
    )

    @property
    def draws(self) -> int:
        """Samples of a drawn scheme."""
        return self.samples or (GEMMA_SAMPLES if self.scheme == "gemma" else MULTINOMIAL_SAMPLES)

    @model_validator(mode="after")
    def _read(self) -> Signals:
        for name in ("threshold", "k", "samples"):
            if getattr(self, name) != type(self).model_fields[name].default and name not in SETTINGS[self.scheme]:
                raise ValueError(f"{name} is not read by the scheme {self.scheme!r}; leave it out, or name another")
        if self.window is not None and self.context == "row":
            raise ValueError("window: with `context: row` the teacher reads rows; leave it out")
        return self
