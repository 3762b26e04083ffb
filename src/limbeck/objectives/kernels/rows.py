"""What a backend is asked to do with one chunk of logits, and what it answers.

A backend is a function ``(logits_nV, terms, softcap, gradient, statistics) -> (results, grad_nV)``. It
reads the learner's logits, and if ``gradient`` names a dtype returns in it the derivative of

    sum over terms, positions of coefficient_n * D_n

by what the matmul gave (so before the soft cap), in the memory of the logits, which are lost. Backends
differ in speed only; the same numbers come from each, to rounding.

Shape suffixes: n positions of the chunk; m = n + 1; V vocabulary; r entries of these positions together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from limbeck.objectives.divergences import Divergence


@dataclass(frozen=True)
class DenseRows:
    """The teacher's logits for these positions, as its matmul gave them.

    Args:
        logits_nV: floating, of any dtype.
        softcap: the teacher's, still to be applied.
    """

    logits_nV: Tensor
    softcap: float | None

    def part(self, rows: slice) -> DenseRows:
        """Some of the positions."""
        return DenseRows(self.logits_nV[rows], self.softcap)


@dataclass(frozen=True)
class SparseRows:
    """A few outcomes with known probabilities, and perhaps one bucket for all the others.

    Args:
        offsets_m: int64; position ``i`` owns entries ``offsets_m[i] .. offsets_m[i + 1]``.
        ids_r: int64 token ids.
        logprobs_r: the teacher's, ``>= LOG_ZERO``, in the compute type, as are the next three.
        tail_n: logarithm of the teacher's probability of everything else; ``None`` where nothing else
            takes part (labels, an unbiased draw).
        entropy_n: the teacher's entropy.
        offset_n: added to the divergence to make it independent of what was drawn, or ``None``.
        top_n: int64, the teacher's likeliest token, -1 if unknown.
    """

    offsets_m: Tensor
    ids_r: Tensor
    logprobs_r: Tensor
    tail_n: Tensor | None
    entropy_n: Tensor
    offset_n: Tensor | None
    top_n: Tensor

    def part(self, rows: slice) -> SparseRows:
        """Some of the positions, with a start and a stop."""
        begin, end = int(self.offsets_m[rows.start]), int(self.offsets_m[rows.stop])
        return SparseRows(
            self.offsets_m[rows.start : rows.stop + 1] - begin,
            self.ids_r[begin:end],
            self.logprobs_r[begin:end],
            None if self.tail_n is None else self.tail_n[rows],
            self.entropy_n[rows],
            None if self.offset_n is None else self.offset_n[rows],
            self.top_n[rows],
        )


def owners(offsets_m: Tensor, entries: int) -> Tensor:
    """The position of each of so many entries. Told how many, a GPU need not be waited for."""
    numbers_n = torch.arange(len(offsets_m) - 1, device=offsets_m.device)
    return numbers_n.repeat_interleave(offsets_m.diff(), output_size=entries)


@dataclass(frozen=True)
class RowTerm:
    """One term over the chunk: ``coefficient_n`` multiplies each position's divergence in the loss."""

    rows: DenseRows | SparseRows
    divergence: Divergence
    temperature: float
    coefficient_n: Tensor


@dataclass(frozen=True)
class RowResult:
    """Per position, in the compute type; the last three only where statistics were asked for.

    Entropies, in nats, are of the two distributions that the term compares, at its temperature.
    ``agreement_n`` is bool: a likeliest token of the teacher is a likeliest token of the student.
    """

    divergence_n: Tensor
    student_entropy_n: Tensor | None = None
    teacher_entropy_n: Tensor | None = None
    agreement_n: Tensor | None = None


Backend: TypeAlias = Callable[
    [Tensor, Sequence[RowTerm], float | None, torch.dtype | None, bool],
    tuple[list[RowResult], Tensor | None],
]
