"""The pointwise work over a chunk in plain torch: any device, any float type, the numbers to beat.

Computes in float32 (in float64 for float64 logits), a few passes over the chunk and a few copies of it.

Shape suffixes: n positions of the chunk; m = n + 1; V vocabulary; r entries of these positions together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.objectives.divergences import LOG_ZERO
from limbeck.objectives.kernels.rows import DenseRows, RowResult, RowTerm, SparseRows


def run(
    logits_nV: Tensor,
    terms: Sequence[RowTerm],
    softcap: float | None,
    gradient: torch.dtype | None,
    statistics: bool,
) -> tuple[list[RowResult], Tensor | None]:
    """The eager backend; see :mod:`limbeck.objectives.kernels.rows`."""
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
    if gradient is None or total_nV is None:
        return results, None
    if softcap is not None:
        # d/dx c tanh(x/c) = 1 - tanh^2, and tanh is the capped logit over c.
        total_nV.mul_(1.0 - (student_nV / softcap).square_())
    grad_nV = logits_nV.view(gradient)[:, : logits_nV.shape[1]]
    return results, grad_nV.copy_(total_nV)


def _capped(logits_nV: Tensor, softcap: float | None) -> Tensor:
    return logits_nV if softcap is None else (logits_nV / softcap).tanh_().mul_(softcap)


def _log_softmax(logits_nV: Tensor) -> Tensor:
    return torch.log_softmax(logits_nV, dim=-1).clamp_min_(LOG_ZERO)


def _entropy(logprobs_nV: Tensor) -> Tensor:
    return -(logprobs_nV.exp().mul_(logprobs_nV)).sum(-1)


def _dense(student_nV: Tensor, term: RowTerm, gradient: bool, statistics: bool) -> tuple[RowResult, Tensor | None]:
    rows = term.rows
    assert isinstance(rows, DenseRows)
    teacher_nV = _capped(rows.logits_nV.to(student_nV.dtype), rows.softcap)
    logq_nV = _log_softmax(student_nV / term.temperature)
    logp_nV = _log_softmax(teacher_nV / term.temperature)
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
    count = student_nV.shape[0]
    row_r = torch.arange(count, device=student_nV.device).repeat_interleave(rows.offsets_m.diff())
    index = (row_r, rows.ids_r)
    scaled_nV = student_nV / term.temperature
    total_n = scaled_nV.logsumexp(-1)
    logq_r = (scaled_nV[index] - total_n[row_r]).clamp_min_(LOG_ZERO)
    share_r, weight_r = term.divergence.pointwise(rows.logprobs_r, logq_r, rows.entropy_n[row_r])
    divergence_n = total_n.new_zeros(count).index_add_(0, row_r, share_r)
    sum_n = total_n.new_zeros(count).index_add_(0, row_r, weight_r)
    if rows.offset_n is not None:
        divergence_n += rows.offset_n
    result = RowResult(divergence_n)
    if statistics:
        known_n = rows.top_n >= 0
        top_n1 = rows.top_n.clamp_min(0).unsqueeze(1)
        agreement_n = known_n & (student_nV.gather(1, top_n1).squeeze(1) == student_nV.amax(-1))
        student_entropy_n = _entropy((scaled_nV - total_n.unsqueeze(1)).clamp_min_(LOG_ZERO))
        result = RowResult(divergence_n, student_entropy_n, rows.entropy_n, agreement_n)

    if rows.tail_n is None:
        if not gradient:
            return result, None
        # Outcomes outside the entries only feel the normalisation. Drawn ids may repeat: accumulate.
        grad_nV = (scaled_nV - total_n.unsqueeze(1)).exp_().mul_(-sum_n.unsqueeze(1))
        return result, grad_nV.index_put_(index, weight_r, accumulate=True)

    # The student's probability of the bucket, without subtracting from 1.
    outside_nV = scaled_nV.index_put(index, scaled_nV.new_tensor(-torch.inf))
    tail_n = outside_nV.logsumexp(-1)
    logq_tail_n = (tail_n - total_n).clamp_min_(LOG_ZERO)
    share_n, weight_n = term.divergence.pointwise(rows.tail_n, logq_tail_n, rows.entropy_n)
    divergence_n += share_n
    if not gradient:
        return result, None
    sum_n += weight_n
    # Within the bucket the derivative is shared out by the student's own conditional probabilities.
    bucket_n = weight_n - logq_tail_n.exp() * sum_n
    grad_nV = outside_nV.sub_(tail_n.clamp_min(-torch.finfo(tail_n.dtype).max).unsqueeze(1)).exp_()
    grad_nV.mul_(bucket_n.unsqueeze(1))
    return result, grad_nV.index_put_(index, weight_r - logq_r.exp() * sum_n[row_r])
