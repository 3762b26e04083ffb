"""What a teacher is: somebody who answers. It knows no store, no journal and no recipe."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Protocol

from limbeck.models.generate import Sampling


class Access(StrEnum):
    """What a teacher reveals, from least to most."""

    TEXT = "text"
    TOP_LOGPROBS = "top_logprobs"
    LOGITS = "logits"


class Teacher(Protocol):
    """Writes text when asked. A teacher with ``LOGITS`` access may also join a cohort."""

    access: Access

    def write(self, prompts: list[list[int]], sampling: Sampling) -> Iterator[tuple[int, list[int]]]:
        """Answers as (number of the prompt, new token ids), an end mark included."""
        ...
