"""The contract of what writes text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from limbeck.models.generate import Sampling


class Sampler(Protocol):
    """A model that continues prompts: local, or behind a server."""

    def sample(self, prompts: list[list[int]], sampling: Sampling) -> Iterable[tuple[int, list[int]]]:
        """Completions as (number of the prompt, new token ids), in any order; an EOS token is included.

        Args:
            prompts: token ids of the run.
            sampling: seed and settings; equal ones give equal completions.

        Raises:
            InputError: the model's logits are NaN or infinite.
        """
        ...
