"""A teacher whose weights are in hand."""

from __future__ import annotations

from collections.abc import Iterator

from limbeck.models.generate import Sampling, generate
from limbeck.models.language_model import LanguageModel
from limbeck.teachers.base import Access


class LocalTeacher:
    """Answers from weights, which are rounded to bfloat16 under ``precision: bf16``."""

    access = Access.LOGITS

    def __init__(self, lm: LanguageModel, precision: str = "fp32") -> None:
        self.lm, self.precision = lm, precision
        if precision == "bf16":
            lm.hold_in_bfloat16()

    def write(self, prompts: list[list[int]], sampling: Sampling) -> Iterator[tuple[int, list[int]]]:
        with self.lm.autocast(self.precision):
            yield from generate(self.lm, prompts, sampling, batch_rows=len(prompts))
