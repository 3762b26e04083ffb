"""A term of the loss, and its target made ready to be served chunk by chunk.

Shape suffixes: N positions, M = N + 1; n positions of a chunk, m = n + 1; V vocabulary; E width of the
teacher; R, r entries of all positions, of a chunk's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from limbeck.objectives.divergences import (
    LOG_ZERO,
    CrossEntropy,
    Divergence,
    DivergenceLike,
    ForwardKL,
    resolve,
)
from limbeck.objectives.kernels.rows import SparseRows, owners
from limbeck.objectives.targets import IGNORED, Dense, Labels, Sparse, Target

Index: TypeAlias = slice | Tensor
"""Which positions a chunk takes: a slice where all of them count, their numbers where some do not."""


@dataclass(frozen=True)
class Term:
    """One thing to learn: a target, and how to measure the distance from it.

    Args:
        target: N positions of ``Labels``, ``Dense`` or ``Sparse``.
        divergence: a :class:`~limbeck.objectives.Divergence`, its name, or ``{"name": ..., settings}``.
            ``Labels`` know one, cross-entropy (forward KL from a one-hot distribution).
        temperature: divides the logits of both sides before the softmax. The gradient then shrinks about
            as 1/T**2; Hinton's factor T**2 is **not** applied here: put it into ``weight`` if you want it.
        weight: multiplies this term's sum in the loss; the place for schedules and denominators.
        weight_N: floating [N], multiplies each position; 0 leaves it out. None counts every position
            (for labels, every one that is not ``-100``).
        name: what to call it; of no effect here.
    """

    target: Target
    divergence: DivergenceLike = "forward_kl"
    temperature: float = 1.0
    weight: float = 1.0
    weight_N: Tensor | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.target, Labels | Dense | Sparse):
            raise ValueError(f"a term's target is Labels, Dense or Sparse, got a {type(self.target).__name__}")
        if isinstance(self.weight, Tensor) and self.weight.numel() != 1:
            raise ValueError(f"weight is one number, got {list(self.weight.shape)}; weights of positions are weight_N")
        for name in ("weight", "temperature"):
            value = getattr(self, name)
            if isinstance(value, str) or not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value!r}")
        if self.weight_N is not None and not isinstance(self.weight_N, Tensor):
            raise ValueError(f"weight_N must be a tensor [N], got a {type(self.weight_N).__name__}")


@dataclass(frozen=True)
class Entries:
    """A sparse target of all positions, in the form the kernels take (see ``SparseRows``)."""

    offsets_M: Tensor
    ids_R: Tensor
    logprobs_R: Tensor
    tail_N: Tensor | None
    entropy_N: Tensor
    offset_N: Tensor | None
    top_N: Tensor

    def rows(self, index: Index) -> SparseRows:
        """The entries of a chunk's positions."""
        begin_n, end_n = self.offsets_M[:-1][index], self.offsets_M[1:][index]
        length_n = end_n - begin_n
        offsets_m = torch.cat([length_n.new_zeros(1), length_n.cumsum(0)])
        if isinstance(index, slice):
            chosen: Index = slice(int(begin_n[0]), int(end_n[-1]))
        else:
            shift_n = begin_n - offsets_m[:-1]
            chosen = shift_n.repeat_interleave(length_n)
            chosen += torch.arange(len(chosen), device=chosen.device)
        return SparseRows(
            offsets_m=offsets_m,
            ids_r=self.ids_R[chosen],
            logprobs_r=self.logprobs_R[chosen],
            tail_n=None if self.tail_N is None else self.tail_N[index],
            entropy_n=self.entropy_N[index],
            offset_n=None if self.offset_N is None else self.offset_N[index],
            top_n=self.top_N[index],
        )


@dataclass(frozen=True)
class Prepared:
    """A checked term: what the chunk loop needs of it.

    ``weight_N`` is 0 exactly where the position takes no part; ``everywhere``: it is nowhere 0, as far as is
    known without reading it back from a device.
    """

    source: Dense | Entries
    divergence: Divergence
    temperature: float
    weight: float
    weight_N: Tensor
    everywhere: bool


def prepare(term: Term, positions: int, vocab_size: int, compute: torch.dtype) -> Prepared:
    """Check a term against the learner's shapes and bring its target into the kernels' form.

    Raises:
        ValueError: if the target does not fit the positions, the vocabulary, the divergence or the
            temperature.
    """
    target, divergence = term.target, resolve(term.divergence).canonical()
    label = f"term {term.name!r}" if term.name else f"a {type(target).__name__} term"
    if len(target) != positions:
        raise ValueError(f"{label} has {len(target)} positions, the hidden states have {positions}")
    if not term.temperature > 0:
        raise ValueError(f"{label}: temperature must be above 0, got {term.temperature}")
    source: Dense | Entries
    if isinstance(target, Dense):
        if target.vocab_size < vocab_size:
            raise ValueError(f"{label}: the teacher's head has {target.vocab_size} rows, fewer than {vocab_size}")
        source, device = target, _device(target)
    elif isinstance(target, Labels):
        if not isinstance(divergence, ForwardKL | CrossEntropy):
            raise ValueError(f"{label}: labels are compared by cross_entropy, not by {divergence.name}")
        source, device = _from_labels(target, vocab_size, compute), target.ids_N.device
    else:
        if term.temperature != target.temperature:
            raise ValueError(
                f"{label}: its log-probabilities were taken at temperature {target.temperature:g} and cannot "
                f"be used at {term.temperature:g}; capture them at that temperature, or set the term's"
            )
        source, device = _from_sparse(target, divergence, vocab_size, compute, label), target.offsets.device
    if term.weight_N is None:
        weight_N = torch.ones(positions, dtype=compute, device=device)
    elif term.weight_N.shape == (positions,):
        weight_N = term.weight_N.detach().to(device, compute)
    else:
        raise ValueError(f"{label}: weight_N must be [N={positions}], got {list(term.weight_N.shape)}")
    if isinstance(target, Labels):
        weight_N = weight_N.masked_fill(target.ids_N == IGNORED, 0.0)
    everywhere = term.weight_N is None and not isinstance(target, Labels)
    return Prepared(source, divergence, float(term.temperature), float(term.weight), weight_N, everywhere)


def _device(target: Dense) -> torch.device:
    source = target.logits_NV if target.logits_NV is not None else target.hidden_NE
    assert source is not None
    return source.device


def _from_labels(target: Labels, vocab_size: int, compute: torch.dtype) -> Entries:
    ids_N = target.ids_N
    counted_N = ids_N != IGNORED
    ids_N = torch.where(counted_N, ids_N, 0)
    _check_ids(ids_N, vocab_size, "labels")
    zero_N = torch.zeros(len(ids_N), dtype=compute, device=ids_N.device)
    return Entries(
        offsets_M=torch.arange(len(ids_N) + 1, device=ids_N.device),
        ids_R=ids_N,
        logprobs_R=zero_N,
        tail_N=None,
        entropy_N=zero_N,
        offset_N=None,
        top_N=ids_N,
    )


def _from_sparse(target: Sparse, divergence: Divergence, vocab_size: int, compute: torch.dtype, label: str) -> Entries:
    ids_R = target.ids.long()
    _check_ids(ids_R, vocab_size, label)
    offsets_M, logprobs_R = target.offsets, target.logprobs.detach().to(compute).clamp_min(LOG_ZERO)
    drawn = target.scheme == "threshold_sampling"
    estimated = drawn and divergence.linear_in_teacher
    if drawn and not estimated:
        if target.threshold is None:
            raise ValueError(
                f"{label}: {divergence.name} is not linear in the teacher's probabilities, so of a "
                "threshold_sampling target only the exact entries serve; give Sparse its threshold"
            )
        offsets_M, ids_R, logprobs_R = _exact_only(offsets_M, ids_R, logprobs_R, target.threshold)
    sums = _Segments(offsets_M, len(ids_R))
    p_R = logprobs_R.exp()
    entry_entropy_N = -sums.add(p_R * logprobs_R)
    tail_N = None
    entropy_N = entry_entropy_N
    if not estimated:
        mass_N = (
            target.tail_N.detach().to(compute)
            if target.tail_N is not None and not drawn
            else _left_of_one(logprobs_R, sums, torch.finfo(target.logprobs.dtype).eps, vocab_size, label)
        )
        tail_N = mass_N.log().clamp_min(LOG_ZERO).to(compute)
        mass_N = mass_N.to(compute)
        entropy_N = entry_entropy_N - mass_N * tail_N
    offset_N = None
    if target.entropy_N is not None:
        entropy_N = target.entropy_N.detach().to(compute)
        if estimated and isinstance(divergence, ForwardKL):
            # sum p log p over a draw is biased; the stored entropy is the thing itself.
            offset_N = entry_entropy_N - entropy_N
    return Entries(offsets_M, ids_R, logprobs_R, tail_N, entropy_N, offset_N, sums.top(logprobs_R, ids_R))


def _left_of_one(logprobs_R: Tensor, sums: _Segments, eps: float, vocab_size: int, label: str) -> Tensor:
    """The mass outside the entries, float64 [N], as far as log-probabilities of this precision can tell.

    Rounding them moves the sum by up to ``eps / 2 * sum p |log p|``. A rest below that is not known, and taking
    it for nothing would make the divergence of a student that is unsure of it boundless: it counts as that much.
    Where the entries are the whole vocabulary there is no rest.
    """
    exact_R = logprobs_R.double()
    p_R = exact_R.exp()
    sum_N, rounding_N = sums.add(p_R), sums.add(p_R * exact_R.abs()) * (eps / 2)
    if sum_N.device.type == "cpu" and bool((sum_N > 1.1).any()):
        raise ValueError(
            f"{label}: the probabilities of a position add up to {float(sum_N.max()):.3g}; "
            "give each id once, and log-probabilities, not logits"
        )
    whole_N = sums.add(torch.ones_like(p_R)) >= vocab_size
    return torch.maximum(1.0 - sum_N, rounding_N).masked_fill(whole_N, 0.0)


def _exact_only(
    offsets_M: Tensor, ids_R: Tensor, logprobs_R: Tensor, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Leave out the drawn entries, whose weight is the threshold; whatever is left out joins the bucket.

    The margin of 1% is for log-probabilities that were rounded when stored; an exact entry lost to it
    makes the bucket a little coarser and nothing wrong.
    """
    exact_R = logprobs_R > math.log(threshold * 1.01)
    kept_M = torch.cat([offsets_M.new_zeros(1), exact_R.long().cumsum(0)])[offsets_M]
    return kept_M, ids_R[exact_R], logprobs_R[exact_R]


class _Segments:
    """Sums and maxima over the entries of each position."""

    def __init__(self, offsets_M: Tensor, entries: int) -> None:
        self.count = len(offsets_M) - 1
        self.row_R = owners(offsets_M, entries)

    def add(self, values_R: Tensor) -> Tensor:
        return values_R.new_zeros(self.count).index_add_(0, self.row_R, values_R)

    def top(self, values_R: Tensor, ids_R: Tensor) -> Tensor:
        """The id of the largest value of each position; -1 where there is none."""
        best_N = values_R.new_full((self.count,), -torch.inf)
        best_N = best_N.scatter_reduce(0, self.row_R, values_R, "amax")
        hit_R = values_R == best_N[self.row_R]
        top_N = ids_R.new_full((self.count,), -1)
        return top_N.scatter_reduce(0, self.row_R, torch.where(hit_R, ids_R, -1), "amax")


def _check_ids(ids: Tensor, vocab_size: int, label: str) -> None:
    if ids.numel() == 0:
        return
    inside = ((ids >= 0) & (ids < vocab_size)).all()
    if ids.device.type != "cpu":
        # Reading it back would stall the stream; the device stops by itself where it is false.
        torch._assert_async(inside)
    elif not bool(inside):
        raise ValueError(
            f"{label}: token ids must be in [0, {vocab_size}), they run from {int(ids.min())} to {int(ids.max())}"
        )
