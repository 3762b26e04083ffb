"""A teacher seen through its student's smaller vocabulary.

A run whose students keep only the tokens of their data works in the students' ids everywhere. The
teacher keeps its own vocabulary: ids are translated on the way in, its distribution is restricted on
the way out, with everything the students do not have as one bucket.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from limbeck.models.language_model import LanguageModel
from limbeck.models.vocabulary import KeptTokens
from limbeck.objectives.targets import Dense


class RestrictedModel(LanguageModel):
    """Reads students' ids and teaches their vocabulary; writes and learns in its own.

    Args:
        lm: the teacher, with its own tokenizer.
        kept: which of its tokens the students have.
        tokenizer: the students'.
    """

    def __init__(self, lm: LanguageModel, kept: KeptTokens, tokenizer: Any) -> None:
        super().__init__(lm.model, tokenizer)
        self.own_tokenizer, self.own_vocab_size = lm.tokenizer, lm.vocab_size
        self.kept, self.packs = kept, lm.packs
        # The bucket is never read; should it be, the end mark is the least wrong.
        table = torch.full((max(kept.size, self.vocab_size),), lm.tokenizer.eos_token_id or 0)
        table[: len(kept.ids_K)] = kept.ids_K
        self._own_ids = table

    def own_ids(self, ids: Tensor) -> Tensor:
        known = ids >= 0
        return torch.where(known, self._own_ids.to(ids.device)[ids.clamp(min=0)], ids)

    def from_own(self, ids: list[int]) -> list[int]:
        """A token that the students do not have falls into the pieces that they do, where it stands: splitting
        its text as a text of its own could put a space before it."""
        out: list[int] = []
        for own, student in zip(ids, self.kept.to_student()[torch.tensor(ids, dtype=torch.long)].tolist(), strict=True):
            if student in (self.kept.other, -100):
                token = self.own_tokenizer.convert_ids_to_tokens(own)
                out += [piece.id for piece in self.tokenizer.backend_tokenizer.model.tokenize(token)]
            else:
                out.append(student)
        return out

    def as_target(self, hidden_ND: Tensor, *, own: bool = False) -> Dense:
        whole = super().as_target(hidden_ND)
        return whole if own else dataclasses.replace(whole, restriction=self.kept.restriction)
