"""The part of a sparse target that is only as large as its entries; backends add what takes whole rows.

Shape suffixes: n positions of the chunk; V vocabulary; r entries of these positions together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.objectives.divergences import LOG_ZERO, Divergence
from limbeck.objectives.kernels.rows import SparseRows, owners


@dataclass(frozen=True)
class EntryGradients:
    """The gradient by the logits over temperature, for a coefficient of 1.

    Every token gets ``rest_n * exp(logit - lse_n)``: its part in the normalisation, or in the bucket, which
    the student's conditional probabilities share out. Entries then get ``entry_r``: in place of that with a
    bucket, on top of it without one.
    """

    lse_n: Tensor
    rest_n: Tensor
    entry_r: Tensor
    replace: bool


def positions(rows: SparseRows) -> Tensor:
    """The position of each entry, [r]."""
    return owners(rows.offsets_m, len(rows.ids_r))


def compare(
    rows: SparseRows, divergence: Divergence, logits_r: Tensor, lse_n: Tensor, tail_lse_n: Tensor | None
) -> tuple[Tensor, EntryGradients]:
    """The divergence of each position [n], and its gradients.

    Args:
        rows: the target.
        divergence: how to compare.
        logits_r: the student's logits of the entries, over temperature.
        lse_n: logarithm of the sum of exponentials of the whole row.
        tail_lse_n: of the row without its entries, where the bucket is an outcome.
    """
    row_r = positions(rows)
    logq_r = (logits_r - lse_n[row_r]).clamp_min_(LOG_ZERO)
    share_r, weight_r = divergence.pointwise(rows.logprobs_r, logq_r, rows.entropy_n[row_r])
    # An unusable normaliser shows in the value, entries or not.
    divergence_n = torch.where(lse_n.isnan(), lse_n, 0.0).index_add_(0, row_r, share_r)
    sum_n = torch.zeros_like(lse_n).index_add_(0, row_r, weight_r)
    if rows.offset_n is not None:
        divergence_n += rows.offset_n
    if rows.tail_n is None or tail_lse_n is None:
        return divergence_n, EntryGradients(lse_n, -sum_n, weight_r, replace=False)
    logq_tail_n = (tail_lse_n - lse_n).clamp_min_(LOG_ZERO)
    share_n, weight_n = divergence.pointwise(rows.tail_n, logq_tail_n, rows.entropy_n)
    divergence_n += share_n
    sum_n += weight_n
    # An empty tail has nothing to share out; its exponentials are sent to zero.
    tail_lse_n = torch.where(tail_lse_n == -torch.inf, 1e30, tail_lse_n)
    rest_n = weight_n - logq_tail_n.exp() * sum_n
    return divergence_n, EntryGradients(tail_lse_n, rest_n, weight_r - logq_r.exp() * sum_n[row_r], replace=True)


def agreement(rows: SparseRows, logits_nV: Tensor, max_n: Tensor) -> Tensor:
    """Whether the teacher's likeliest token is a likeliest token of the student, bool [n]."""
    top_n1 = rows.top_n.clamp_min(0).unsqueeze(1)
    return (rows.top_n >= 0) & (logits_nV.gather(1, top_n1).squeeze(1) == max_n)
