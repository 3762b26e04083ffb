"""A sampler whose weights are in hand."""

from __future__ import annotations

from collections.abc import Iterator

from limbeck.models.causal_lm import CausalLM
from limbeck.models.generate import Sampling, generate


class LocalSampler:
    """Samples from a model's weights. Under ``precision: bf16`` its linear layers are rounded to bfloat16, once."""

    def __init__(self, lm: CausalLM, precision: str = "fp32") -> None:
        self.lm, self.precision = lm, precision
        if precision == "bf16":
            lm.hold_in_bfloat16()

    def sample(self, prompts: list[list[int]], sampling: Sampling) -> Iterator[tuple[int, list[int]]]:
        """All prompts in one batch; see :meth:`~limbeck.generation.sampler.Sampler.sample`."""
        with self.lm.autocast(self.precision):
            yield from generate(self.lm, prompts, sampling, batch_size=len(prompts))
