"""The pointwise work over a chunk on CUDA, in Triton.

A term reads each row three times (statistics, value, gradient) and writes the gradient once, over the
student's logits where their types agree. Several terms, and soft-capped logits, are summed in a float32
chunk first.

Shape suffixes: n positions of the chunk; V vocabulary; r entries of these positions together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.objectives.divergences import Divergence, EntropySwitched
from limbeck.objectives.kernels import cpu, entries
from limbeck.objectives.kernels import triton_kernels as kernels
from limbeck.objectives.kernels.rows import DenseRows, RowResult, RowTerm, SparseRows

BLOCK = 4096
"""Elements of a row that a program holds at a time."""

WARPS = 8
"""Warps of a program."""


@dataclasses.dataclass(frozen=True)
class _Stats:
    """Of the rows of one side: maximum, log of the normaliser (after the maximum), entropy, [n] each."""

    max_n: Tensor
    log_z_n: Tensor
    entropy_n: Tensor

    def lse(self, inverse: float) -> Tensor:
        return torch.where(self.max_n == -torch.inf, self.max_n, self.max_n * inverse + self.log_z_n)


def run(
    logits_nV: Tensor,
    terms: Sequence[RowTerm],
    softcap: float | None,
    gradient: torch.dtype | None,
    statistics: bool,
) -> tuple[list[RowResult], Tensor | None]:
    """The Triton backend; see :mod:`limbeck.objectives.kernels.rows`."""
    student_nV = logits_nV if softcap is None else softcap * torch.tanh(logits_nV.float() / softcap)
    summed = len(terms) > 1 or softcap is not None
    out_nV = None
    if gradient is not None:
        in_place = gradient == logits_nV.dtype and not summed
        dtype = torch.float32 if summed else gradient
        out_nV = logits_nV if in_place else torch.empty_like(logits_nV, dtype=dtype)
    results = []
    for i, term in enumerate(terms):
        one = _dense if isinstance(term.rows, DenseRows) else _sparse
        results.append(one(student_nV, term, out_nV, i > 0, statistics))
    if out_nV is None or gradient is None or not summed:
        return results, out_nV
    if softcap is not None:
        out_nV.mul_(1.0 - (student_nV / softcap).square_())
    if gradient == logits_nV.dtype:
        return results, logits_nV.copy_(out_nV)
    return results, out_nV.to(gradient)


def _stats(logits_nV: Tensor, inverse: float) -> _Stats:
    max_n, log_z_n, entropy_n = (logits_nV.new_empty(len(logits_nV), dtype=torch.float32) for _ in range(3))
    kernels.row_stats[(len(logits_nV),)](
        logits_nV,
        logits_nV.stride(0),
        logits_nV.shape[1],
        inverse,
        max_n,
        log_z_n,
        entropy_n,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )
    return _Stats(max_n, log_z_n, entropy_n)


def _kind(divergence: Divergence) -> tuple[int, int, float, float]:
    """The number of the kernel's formula, of the one it switches with, and two settings."""
    if isinstance(divergence, EntropySwitched):
        return 0, 2, 0.0, 0.0
    number = cpu.NUMBERS[type(divergence)]
    settings = [float(getattr(divergence, field.name)) for field in dataclasses.fields(divergence)]
    first, second, *_ = [*settings, 0.0, 0.0]
    return number, number, first, second


def _blocks(logits_nV: Tensor) -> tuple[int, int]:
    return len(logits_nV), -(-logits_nV.shape[1] // BLOCK)


def _factor(term: RowTerm, inverse: float) -> Tensor:
    return (term.coefficient_n.float() * inverse).contiguous()


def _dense(student_nV: Tensor, term: RowTerm, out_nV: Tensor | None, add: bool, statistics: bool) -> RowResult:
    rows = term.rows
    assert isinstance(rows, DenseRows)
    teacher_nV = rows.logits_nV
    if rows.softcap is not None:
        teacher_nV = rows.softcap * torch.tanh(teacher_nV.float() / rows.softcap)
    if teacher_nV.stride(1) != 1:
        teacher_nV = teacher_nV.contiguous()
    inverse, count = 1.0 / term.temperature, len(student_nV)
    of_s, of_t = _stats(student_nV, inverse), _stats(teacher_nV, inverse)
    kind, other, first, second = _kind(term.divergence)
    switched_n = torch.zeros(count, dtype=torch.int32, device=student_nV.device)
    if isinstance(term.divergence, EntropySwitched):
        switched_n = (of_t.entropy_n <= term.divergence.threshold_nats).int()
    divergence_n, weight_n = torch.empty_like(of_s.max_n), torch.empty_like(of_s.max_n)
    shared_n = torch.empty_like(switched_n)
    common: list[Any] = [
        student_nV, student_nV.stride(0), teacher_nV, teacher_nV.stride(0), student_nV.shape[1], inverse,
        of_s.max_n, of_s.log_z_n, of_t.max_n, of_t.log_z_n, switched_n, first, second,
    ]  # fmt: skip
    kernels.dense_value[(count,)](
        *common, divergence_n, weight_n, shared_n, KIND=kind, OTHER=other, BLOCK=BLOCK, num_warps=WARPS
    )
    if out_nV is not None:
        kernels.dense_gradient[_blocks(student_nV)](
            *common, weight_n, _factor(term, inverse), out_nV, out_nV.stride(0),
            KIND=kind, OTHER=other, ADD=add, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    if not statistics:
        return RowResult(divergence_n)
    return RowResult(divergence_n, of_s.entropy_n, of_t.entropy_n, shared_n > 0)


def _sparse(student_nV: Tensor, term: RowTerm, out_nV: Tensor | None, add: bool, statistics: bool) -> RowResult:
    rows = term.rows
    assert isinstance(rows, SparseRows)
    inverse = 1.0 / term.temperature
    index = (entries.positions(rows), rows.ids_r)
    kept_r = student_nV[index]
    of_s, tail_lse_n = _stats(student_nV, inverse), None
    if rows.tail_n is not None:
        # Without the entries, so that the bucket's mass is not what is left of a subtraction from 1.
        student_nV.index_put_(index, student_nV.new_full((), -torch.inf))
        tail_lse_n = _stats(student_nV, inverse).lse(inverse)
        student_nV.index_put_(index, kept_r)
    divergence_n, made = entries.compare(rows, term.divergence, kept_r.float() * inverse, of_s.lse(inverse), tail_lse_n)
    result = RowResult(divergence_n)
    if statistics:
        agreement_n = entries.agreement(rows, student_nV, of_s.max_n.to(student_nV.dtype))
        result = RowResult(divergence_n, of_s.entropy_n, rows.entropy_n, agreement_n)
    if out_nV is None:
        return result
    factor_n = _factor(term, inverse)
    rest_n = made.rest_n * factor_n
    kernels.rest_gradient[_blocks(student_nV)](
        student_nV, student_nV.stride(0), student_nV.shape[1], inverse, made.lse_n.contiguous(), rest_n,
        out_nV, out_nV.stride(0), ADD=add, BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    base_r = (kept_r.float() * inverse - made.lse_n[index[0]]).clamp_max_(0.0).exp_() * rest_n[index[0]]
    entry_r = made.entry_r * factor_n[index[0]]
    if not made.replace:
        entry_r = entry_r + base_r
    if add:
        out_nV.index_put_(index, entry_r - base_r, accumulate=True)
    else:
        # Set and not added to: what the kernel has put there is rounded already.
        out_nV.index_put_(index, entry_r.to(out_nV.dtype))
    return result
