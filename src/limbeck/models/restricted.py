"""A teacher seen through its student's smaller vocabulary.

A run whose students keep only the tokens of their data works in the students' ids everywhere. The
teacher keeps its own vocabulary: ids are translated on the way in, its distribution is restricted on
the way out, with everything the students do not have as one bucket.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.models.causal_lm import CausalLM
from limbeck.objectives.targets import Dense, Restriction


@dataclass(frozen=True)
class KeptTokens:
    """Which of the teacher's tokens the student has.

    Attributes:
        ids_K: int64 [K] teacher ids, ascending; student id k is teacher id ``ids_K[k]``.
        teacher_size: V, tokens of the teacher's tokenizer (padding rows of its head do not count).
        other: student id K of the row for all dropped tokens together, or None.
    """

    ids_K: Tensor
    teacher_size: int
    other: int | None

    @property
    def size(self) -> int:
        """Tokens of the student, ``other`` included."""
        return len(self.ids_K) + (self.other is not None)

    @property
    def dropped(self) -> Tensor:
        """int64 [V - K] teacher ids that the student does not have, ascending."""
        gone = torch.ones(self.teacher_size, dtype=torch.bool)
        gone[self.ids_K] = False
        return gone.nonzero().flatten()

    def to_student(self) -> Tensor:
        """int64 [V] student id of each teacher id: ``other`` for a dropped one, -100 where there is none.

        A dropped token must not be fed to the student; as a label, ``other`` (or -100) is right.
        """
        table = torch.full((self.teacher_size,), -100 if self.other is None else self.other)
        table[self.ids_K] = torch.arange(len(self.ids_K))
        return table

    def restrict(self, logits_NV: Tensor) -> Tensor:
        """The teacher's logits [N, >= V] over the student's tokens [N, size].

        With ``other``, its logit is the log of the dropped tokens' summed exponentials, so a softmax
        gives the teacher's own probabilities and theirs together. Without, the softmax is the
        teacher's, given that the token is a kept one.
        """
        return self.restriction.apply(logits_NV)

    def to_json(self) -> str:
        return json.dumps({"ids": self.ids_K.tolist(), "teacher_size": self.teacher_size, "other": self.other})

    @property
    def restriction(self) -> Restriction:
        """The same, as the objective knows it."""
        return Restriction(self.ids_K, self.teacher_size, self.other is not None)


def read_kept_tokens(file: Path) -> KeptTokens | None:
    """What :meth:`KeptTokens.to_json` wrote; None where there is no such file."""
    if not file.exists():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    return KeptTokens(torch.tensor(found["ids"]), found["teacher_size"], found["other"])


class RestrictedModel(CausalLM):
    """Reads students' ids and teaches their vocabulary; writes and learns in its own.

    Args:
        lm: the teacher, with its own tokenizer.
        kept: which of its tokens the students have.
        tokenizer: the students'.
    """

    def __init__(self, lm: CausalLM, kept: KeptTokens, tokenizer: Any) -> None:
        super().__init__(lm.model, tokenizer)
        self.own_tokenizer, self.own_vocab_size = lm.tokenizer, lm.vocab_size
        self.kept, self.traits, self.shared = kept, lm.traits, lm.shared
        # The bucket is never read; should it be, the EOS token is the least wrong.
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
