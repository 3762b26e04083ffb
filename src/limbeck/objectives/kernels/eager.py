"""The pointwise work over a chunk in plain torch: any device, any float type, the numbers to beat.

Computes in float32 (in float64 for float64 logits), a few passes over the chunk and a few copies of it.

Shape suffixes: n positions of the chunk; m = n + 1; V vocabulary; r entries of these positions together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from limbeck.objectives.divergences import LOG_ZERO
from limbeck.objectives.kernels import entries
from limbeck.objectives.kernels.rows import DenseRows, RowResult, RowTerm, SparseRows

PART = 2**21
"""Elements of a chunk that are worked on at a time: some twenty copies of them are made."""


def run(
    logits_nV: Tensor,
    terms: Sequence[RowTerm],
    softcap: float | None,
    gradient: torch.dtype | None,
    statistics: bool,
) -> tuple[list[RowResult], Tensor | None]:
    """The eager backend; see :mod:`limbeck.objectives.kernels.rows`."""
    count, vocab_size = logits_nV.shape
    step = max(1, PART // vocab_size)
    parts = []
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        of_rows = [replace(term, rows=term.rows.part(rows), coefficient_n=term.coefficient_n[rows]) for term in terms]
        parts.append(_run_part(logits_nV[rows], of_rows, softcap, gradient, statistics))
    results = [_joined([part[i] for part in parts]) for i in range(len(terms))]
    return results, None if gradient is None else logits_nV.view(gradient)[:, :vocab_size]


def _joined(parts: list[RowResult]) -> RowResult:
    def cat(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values)

    divergence_n = torch.cat([part.divergence_n for part in parts])
    return RowResult(divergence_n, cat("student_entropy_n"), cat("teacher_entropy_n"), cat("agreement_n"))


def _run_part(
    logits_nV: Tensor,
    terms: Sequence[RowTerm],
    softcap: float | None,
    gradient: torch.dtype | None,
    statistics: bool,
) -> list[RowResult]:
    """Some positions; the gradient is written over their logits."""
    compute = torch.promote_types(logits_nV.dtype, torch.float32)
    student_nV = _capped(logits_nV.to(compute), softcap)
    total_nV: Tensor | None = None
    results = []
    for term in terms:
        dense = isinstance(term.rows, DenseRows)
        result, grad_nV = (_dense if dense else _sparse)(student_nV, term, gradient is not None, statistics)
        results.append(result)
        if grad_nV is not None:
            grad_nV.mul_((term.coefficient_n.to(compute) / term.temperature).unsqueeze(1))
            total_nV = grad_nV if total_nV is None else total_nV.add_(grad_nV)
    if gradient is not None and total_nV is not None:
        if softcap is not None:
            # d/dx c tanh(x/c) = 1 - tanh^2, and tanh is the capped logit over c.
            total_nV.mul_(1.0 - (student_nV / softcap).square_())
        logits_nV.view(gradient)[:, : logits_nV.shape[1]].copy_(total_nV)
    return results


def _capped(logits_nV: Tensor, softcap: float | None) -> Tensor:
    return logits_nV if softcap is None else (logits_nV / softcap).tanh_().mul_(softcap)


def _log_softmax(logits_nV: Tensor, temperature: float) -> Tensor:
    scaled_nV = logits_nV if temperature == 1.0 else logits_nV / temperature
    return torch.log_softmax(scaled_nV, dim=-1).clamp_min_(LOG_ZERO)


def _entropy(logprobs_nV: Tensor) -> Tensor:
    return -(logprobs_nV.exp().mul_(logprobs_nV)).sum(-1)


def _dense(student_nV: Tensor, term: RowTerm, gradient: bool, statistics: bool) -> tuple[RowResult, Tensor | None]:
    rows = term.rows
    assert isinstance(rows, DenseRows)
    teacher_nV = _capped(rows.logits_nV.to(student_nV.dtype), rows.softcap)
    logq_nV = _log_softmax(student_nV, term.temperature)
    logp_nV = _log_softmax(teacher_nV, term.temperature)
    entropy_n = _entropy(logp_nV)
    share_nV, weight_nV = term.divergence.pointwise(logp_nV, logq_nV, entropy_n.unsqueeze(1))
    result = RowResult(share_nV.sum(-1))
    if statistics:
        top_nV = (student_nV == student_nV.amax(-1, keepdim=True)).logical_and_(
            teacher_nV == teacher_nV.amax(-1, keepdim=True)
        )
        result = RowResult(result.divergence_n, _entropy(logq_nV), entropy_n, top_nV.any(-1))
    if not gradient:
        return result, None
    total_n1 = weight_nV.sum(-1, keepdim=True)
    return result, torch.addcmul(weight_nV, logq_nV.exp_(), total_n1, value=-1.0)


def _sparse(student_nV: Tensor, term: RowTerm, gradient: bool, statistics: bool) -> tuple[RowResult, Tensor | None]:
    rows = term.rows
    assert isinstance(rows, SparseRows)
    index = (entries.positions(rows), rows.ids_r)
    scaled_nV = student_nV / term.temperature
    logits_r, lse_n, tail_lse_n = scaled_nV[index], scaled_nV.logsumexp(-1), None
    student_entropy_n = _entropy((scaled_nV - lse_n.unsqueeze(1)).clamp_min_(LOG_ZERO)) if statistics else None
    if rows.tail_n is not None:
        # Without the entries, so that the bucket's mass is not what is left of a subtraction from 1.
        scaled_nV.index_put_(index, scaled_nV.new_tensor(-torch.inf))
        tail_lse_n = scaled_nV.logsumexp(-1)
    divergence_n, made = entries.compare(rows, term.divergence, logits_r, lse_n, tail_lse_n)
    result = RowResult(divergence_n)
    if statistics:
        agreement_n = entries.agreement(rows, student_nV, student_nV.amax(-1))
        result = RowResult(divergence_n, student_entropy_n, rows.entropy_n, agreement_n)
    if not gradient:
        return result, None
    grad_nV = scaled_nV.sub_(made.lse_n.unsqueeze(1)).exp_().mul_(made.rest_n.unsqueeze(1))
    return result, grad_nV.index_put_(index, made.entry_r, accumulate=not made.replace)
