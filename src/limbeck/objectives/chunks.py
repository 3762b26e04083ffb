"""The loop over chunks of positions: matmul, compare, multiply back.

Shape suffixes: N positions; n positions of a chunk; D width of the learner; E of a teacher; V vocabulary
(the shared part of it); W rows of the learner's head, V and padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.objectives import matmul, memory
from limbeck.objectives.dense import DenseLogits, chunk_of
from limbeck.objectives.gradients import Gradients, dtype_of_sum
from limbeck.objectives.kernels import choose
from limbeck.objectives.kernels.rows import DenseRows, RowResult, RowTerm, SparseRows
from limbeck.objectives.targets import Dense
from limbeck.objectives.terms import Index, Prepared


@dataclass(frozen=True)
class Job:
    """Everything one call needs, checked. Tensors are detached and in the dtype of the matmuls; ``head_dtype`` is
    the one that the head itself has, and that its gradient will have."""

    hidden_ND: Tensor
    head_VD: Tensor
    head_dtype: torch.dtype
    bias_V: Tensor | None
    terms: list[Prepared]
    softcap: float | None
    scale: float
    chunk_tokens: int | None
    precise: bool
    statistics: bool

    @property
    def compute(self) -> torch.dtype:
        """float32, or float64 for float64 inputs."""
        return torch.promote_types(self.hidden_ND.dtype, torch.float32)

    @property
    def logits_dtype(self) -> torch.dtype:
        return self.compute if self.precise else self.hidden_ND.dtype


@dataclass
class Totals:
    """What the loop adds up. The gradients are still to be multiplied by ``unit``."""

    loss_sum: Tensor
    sums: list[Tensor]
    counts: list[Tensor]
    results: list[RowResult]
    gradients: Gradients
    unit: float


def run_job(job: Job, *, hidden: bool, head: bool, bias: bool) -> Totals:
    """Run the loop, making the gradients that are asked for."""
    gradient = job.hidden_ND.dtype if hidden or head or bias else None
    backend = choose(job.hidden_ND.device, job.logits_dtype, gradient, [term.divergence for term in job.terms])
    pieces = _pieces(job, job.chunk_tokens or choose_chunk(job, head=head))
    of_head = dtype_of_sum(job.head_VD.dtype, job.head_dtype, len(pieces), precise=job.precise)
    gradients = Gradients(job.hidden_ND, job.head_VD, of_head, hidden=hidden, head=head, bias=bias)
    results = [_empty_result(job) for _ in job.terms]
    buffers = _Buffers(job, max(map(_length, pieces), default=0))
    unit = _unit(job)
    # Cut before the first matmul: where entries begin and end is read back, for which a GPU stops.
    stored = [[_stored_rows(term, index) for term in job.terms] for index in pieces]
    for index, stored_rows in zip(pieces, stored, strict=True):
        hidden_nD = job.hidden_ND[index]
        logits_nV = buffers.student(hidden_nD)
        terms = [
            _row_term(term, index, rows or buffers.teacher(i, term, index), job.scale / unit)
            for i, (term, rows) in enumerate(zip(job.terms, stored_rows, strict=True))
        ]
        of_chunk, grad_nV = backend(logits_nV, terms, job.softcap, gradient, job.statistics)
        for term, result, part in zip(job.terms, results, of_chunk, strict=True):
            _store(result, part, index, term.weight_N[index] != 0)
        if grad_nV is not None:
            gradients.add(index, grad_nV, hidden_nD)
    sums = [(term.weight_N * result.divergence_n).sum() for term, result in zip(job.terms, results, strict=True)]
    return Totals(
        loss_sum=sum(
            (term.weight * value for term, value in zip(job.terms, sums, strict=True)), torch.zeros_like(sums[0])
        ),
        sums=sums,
        counts=[(term.weight_N != 0).sum() for term in job.terms],
        results=results,
        gradients=gradients,
        unit=unit,
    )


def _unit(job: Job) -> float:
    """A factor that float16 gradients are made without: the largest weight of a position.

    A weight such as one over the number of tokens would push them below what float16 can tell from zero, before
    a loss scaler's factor, which arrives in backward, could lift them.
    """
    if job.hidden_ND.dtype != torch.float16:
        return 1.0
    largest = [abs(term.weight) * float(term.weight_N.abs().max()) for term in job.terms if len(term.weight_N)]
    return max(largest, default=0.0) or 1.0


def choose_chunk(job: Job, *, head: bool) -> int:
    """Positions per chunk, as :func:`chunk_of` has them for the learner's logits.

    Where the head's gradient is summed in float32 for a 16-bit head, chunks take less, for it is held beside them. A
    single chunk needs no such sum, so it may be larger where that holds about as much.
    """
    positions, (vocab_size, width) = len(job.hidden_ND), job.head_VD.shape
    of_logits = vocab_size * job.logits_dtype.itemsize
    device = job.hidden_ND.device
    chunks = -(-positions // chunk_of(of_logits, device))
    of_sum = dtype_of_sum(job.head_VD.dtype, job.head_dtype, chunks, precise=job.precise)
    summed_apart = head and job.head_VD.dtype != of_sum
    size = chunk_of(of_logits, device, share=11 / 16 if summed_apart and not job.precise else 1.0)
    teachers = sum(isinstance(term.source, Dense) and term.source.logits_NV is None for term in job.terms)
    of_position = of_logits * (1 + teachers)
    of_head = vocab_size * width
    several = size * of_position + of_head * job.compute.itemsize
    single = positions * of_position + of_head * job.head_VD.dtype.itemsize
    return positions if summed_apart and single <= 1.15 * several else size


def _pieces(job: Job, size: int) -> list[Index]:
    """Cut the positions that count into about equal chunks, none longer than ``size``.

    Lengths are multiples of 32 where they can be: matmuls lose a tenth on others.
    """
    positions_A = None
    if not any(term.everywhere for term in job.terms):
        active_N = torch.stack([term.weight_N != 0 for term in job.terms]).any(0)
        if not bool(active_N.all()):
            positions_A = active_N.nonzero().squeeze(1)
    count = len(job.hidden_ND) if positions_A is None else len(positions_A)
    if count == 0:
        return []
    even = -(-count // -(-count // size))
    step = min(size, -(-even // 32) * 32)
    cuts = [slice(start, min(start + step, count)) for start in range(0, count, step)]
    return list(cuts) if positions_A is None else [positions_A[cut] for cut in cuts]


def _length(index: Index) -> int:
    return index.stop - index.start if isinstance(index, slice) else len(index)


class _Buffers:
    """The logits of one chunk, allocated once: fresh pages for every chunk would cost as much as a pass."""

    def __init__(self, job: Job, size: int) -> None:
        self.job = job
        self.size = size
        self.vocab_size = job.head_VD.shape[0]
        self._student_nV: Tensor | None = None
        self._teachers: dict[int, DenseLogits] = {}

    def student(self, hidden_nD: Tensor) -> Tensor:
        job = self.job
        if self._student_nV is None:
            self._student_nV = memory.empty(self.size, self.vocab_size, like=hidden_nD, dtype=job.logits_dtype)
        out_nV = self._student_nV[: len(hidden_nD)]
        return matmul.logits(out_nV, hidden_nD, job.head_VD, job.bias_V, job.scale)

    def teacher(self, i: int, term: Prepared, index: Index) -> DenseRows:
        assert isinstance(term.source, Dense)
        if i not in self._teachers:
            self._teachers[i] = DenseLogits(term.source, self.vocab_size, self.size, precise=self.job.precise)
        return self._teachers[i].rows(index)


def _stored_rows(term: Prepared, index: Index) -> SparseRows | None:
    return None if isinstance(term.source, Dense) else term.source.rows(index)


def _row_term(term: Prepared, index: Index, rows: DenseRows | SparseRows, scale: float) -> RowTerm:
    # The logit scale multiplies what the matmul gave, so it is one more factor of the gradient.
    return RowTerm(rows, term.divergence, term.temperature, term.weight_N[index] * (term.weight * scale))


def _empty_result(job: Job) -> RowResult:
    def zeros(dtype: torch.dtype) -> Tensor:
        return job.hidden_ND.new_zeros(len(job.hidden_ND), dtype=dtype)

    if not job.statistics:
        return RowResult(zeros(job.compute))
    return RowResult(zeros(job.compute), zeros(job.compute), zeros(job.compute), zeros(torch.bool))


def _store(total: RowResult, result: RowResult, index: Index, part_n: Tensor) -> None:
    """Write a chunk's statistics where they belong, zero where the term leaves the position out."""
    for name in ("divergence_n", "student_entropy_n", "teacher_entropy_n", "agreement_n"):
        into, values = getattr(total, name), getattr(result, name)
        if into is not None and values is not None:
            into[index] = torch.where(part_n, values, torch.zeros_like(values))
