"""A teacher whose weights are in hand."""

from __future__ import annotations

from collections.abc import Iterator

from limbeck.models.generate import Sampling, generate
from limbeck.models.language_model import LanguageModel
from limbeck.teachers.base import Access


class LocalTeacher:
    """Answers from weights; ``lm`` may join a cohort as it is."""

    access = Access.LOGITS

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm

    def write(self, prompts: list[list[int]], sampling: Sampling) -> Iterator[tuple[int, list[int]]]:
        return generate(self.lm, prompts, sampling, batch_rows=len(prompts))
