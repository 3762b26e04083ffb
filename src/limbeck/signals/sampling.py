"""A few weighted tokens of a teacher's distributions, drawn from its logits a chunk at a time.

No sort and no sum over the whole vocabulary but one: exponentials are added up in blocks of tokens, and only the
blocks that hold something likely, or that a point of the sample falls into, are looked at again.

Shape suffixes: n positions; V vocabulary; B blocks of it; W tokens of a block; K points of a position; r entries,
or whatever there are a few of a position.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import InputError
from limbeck.objectives.kernels.blocks import block_sums
from limbeck.signals.scheme import Decoded, Draw, Kind, Scheme, to_sparse

__all__ = ["Decoded", "Draw", "Kind", "LogitsError", "Scheme", "draw", "to_sparse", "uniforms"]

BLOCK = 64
"""W: tokens whose exponentials are added up together."""

PART, PART_ON_GPU = 2**23, 2**26
"""Elements of the logits whose positions are worked on together."""


class LogitsError(InputError):
    """The teacher's logits at a position are no distribution.

    Attributes:
        position: row of the logits.
    """

    def __init__(self, what: str, position: int) -> None:
        super().__init__(f"the teacher's logits at position {position} {what}")
        self.position = position


def draw(logits_nV: Tensor, scheme: Scheme, labels_n: Tensor, uniform_n: Tensor) -> Draw:
    """Entries of n positions.

    Those of a position depend on its own logits, label and uniform number alone: chunks and their order change nothing.
    A token with a logit of -inf is never drawn; as a label it is an entry with the log-probability -inf.

    Args:
        logits_nV: floating, of any dtype; final (soft cap, scale) and without padding. They are read, never written.
            Half precision is computed in float32, float64 in float64.
        scheme: what to keep.
        labels_n: int64, the token that follows in the text: always an entry of ``threshold``.
        uniform_n: float64 in [0, 1), see :func:`uniforms`.

    Raises:
        LogitsError: logits of a position are NaN or +inf, or all of them are -inf.
        ValueError: shapes do not fit, or a label is no token.
    """
    count, vocab_size = logits_nV.shape
    if labels_n.shape != (count,) or uniform_n.shape != (count,):
        raise ValueError(
            f"labels and uniforms must be [n={count}], got {list(labels_n.shape)} and {list(uniform_n.shape)}"
        )
    if count and not bool(((labels_n >= 0) & (labels_n < vocab_size)).all()):
        raise ValueError(
            f"labels must be in [0, {vocab_size}), they run from {int(labels_n.min())} to {int(labels_n.max())}"
        )
    logits_nV, labels_n = logits_nV.detach(), labels_n.to(logits_nV.device, torch.int64)
    step = max(1, (PART if logits_nV.device.type == "cpu" else PART_ON_GPU) // vocab_size)
    parts = []
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        rows = _rows(logits_nV[part], scheme.temperature, start)
        parts.append(_KINDS[scheme.kind](rows, scheme, labels_n[part], uniform_n[part]))
    if not parts:
        none, nothing = labels_n.new_zeros(0), logits_nV.new_zeros(0, dtype=torch.float32)
        return Draw(none, none, nothing, nothing if scheme.kind == "top_k" else None, nothing)
    return Draw(
        counts_n=torch.cat([part.counts_n for part in parts]),
        ids=torch.cat([part.ids for part in parts]),
        logprobs=torch.cat([part.logprobs for part in parts]),
        tail_n=torch.cat([part.tail_n for part in parts if part.tail_n is not None])
        if parts[0].tail_n is not None
        else None,
        entropy_n=torch.cat([part.entropy_n for part in parts]),
    )


def uniforms(seed: int, keys_n: np.ndarray, offsets_n: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each position, float64 [n]: a function of seed, document and offset alone.

    So a capture is the same whatever its batches, their order and the number of workers. Hashed by the finaliser of
    splitmix64 (Steele et al. 2014), once for each of the three.

    Args:
        seed: of the scheme.
        keys_n: uint64, of the documents.
        offsets_n: int64, of the tokens in them.
    """
    hashed_n = _mixed(np.full(1, seed & 0xFFFFFFFFFFFFFFFF, np.uint64))
    for part_n in (np.asarray(keys_n).astype(np.uint64), np.asarray(offsets_n).astype(np.uint64)):
        hashed_n = _mixed(hashed_n ^ part_n)
    return _fractions(hashed_n)


def _mixed(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _fractions(bits: np.ndarray) -> np.ndarray:
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True)
class _Rows:
    """Positions of a part, by sums of numbers that are proportional to their probabilities.

    ``sums_nB`` are of exp((logit - the position's largest) / temperature) over blocks, ``z_n`` over everything.
    """

    logits_nV: Tensor
    temperature: float
    max_n: Tensor
    sums_nB: Tensor
    z_n: Tensor
    lse_n: Tensor
    entropy_n: Tensor

    @property
    def blocks(self) -> int:
        return self.sums_nB.shape[1]

    @property
    def width(self) -> int:
        """Entries are numbered row * width + id, and so block row * blocks + b begins with entry BLOCK times that."""
        return self.blocks * BLOCK

    def exps(self, block_r: Tensor) -> Tensor:
        """The numbers themselves of some blocks, float64 [r, W]; 0 beyond the vocabulary."""
        row_r, last = block_r // self.blocks, self.logits_nV.shape[1] - 1
        id_rW = (block_r % self.blocks * BLOCK).unsqueeze(1) + torch.arange(BLOCK, device=block_r.device)
        x_rW = self.logits_nV[row_r.unsqueeze(1), id_rW.clamp_max(last)].double()
        x_rW = x_rW.sub_(self.max_n[row_r].unsqueeze(1)).div_(self.temperature)
        return x_rW.exp_().masked_fill_(id_rW > last, 0.0)

    def logprobs(self, at_r: Tensor) -> Tensor:
        """Of entries, float64: by their logits, for their exponentials may be 0."""
        row_r = at_r // self.width
        return self.logits_nV[row_r, at_r % self.width].double() / self.temperature - self.lse_n[row_r]

    def made(self, at_r: Tensor, logprobs_r: Tensor, tail_n: Tensor | None = None) -> Draw:
        return Draw(
            counts_n=torch.bincount(at_r // self.width, minlength=len(self.z_n)),
            ids=at_r % self.width,
            logprobs=logprobs_r.float(),
            tail_n=tail_n,
            entropy_n=self.entropy_n.float(),
        )


def _rows(logits_nV: Tensor, temperature: float, start: int) -> _Rows:
    found = block_sums(logits_nV, temperature, BLOCK)
    max_n, z_n = found.max_n.double(), found.sums_nB.sum(1)
    log_z_n = z_n.log()
    broken_n = ~(max_n + z_n).isfinite()
    if bool(broken_n.any()):
        position = int(broken_n.nonzero()[0])
        of_V = logits_nV[position]
        what = "are NaN" if bool(of_V.isnan().any()) else "hold +inf" if float(of_V.max()) > 0 else "are all -inf"
        raise LogitsError(what, start + position)
    return _Rows(
        logits_nV=logits_nV,
        temperature=temperature,
        max_n=max_n,
        sums_nB=found.sums_nB,
        z_n=z_n,
        lse_n=max_n / temperature + log_z_n,
        entropy_n=(log_z_n - found.moment_n / z_n).clamp_min_(0.0),
    )


class _Rest:
    """What is left of positions without some entries, as intervals that points fall on.

    Args:
        rows: the positions.
        without_r: entries that are taken out. The sums of their blocks are made again: a difference would lose what
            is small beside them.
    """

    def __init__(self, rows: _Rows, without_r: Tensor) -> None:
        self.rows = rows
        self.changed_r, inverse_r = (without_r // BLOCK).unique(return_inverse=True)
        self.exps_rW = rows.exps(self.changed_r)
        self.exps_rW[inverse_r, without_r % BLOCK] = 0.0
        self.sums_nB = rows.sums_nB.clone()
        self.sums_nB.view(-1)[self.changed_r] = self.exps_rW.sum(1)
        self.cumulative_nB = self.sums_nB.cumsum(1)
        self.mass_n1 = self.cumulative_nB[:, -1:]

    def locate(self, points_nK: Tensor) -> Tensor:
        """The entries that points within [0, mass) fall on, in the order of the points; others are left out.

        float32 sums of a block differ from float64 ones by a millionth of it. The place within a block is the same
        part of either, so that this makes each of its tokens that much more or less likely and none twice as much.
        """
        valid_nK = points_nK < self.mass_n1
        point_r = points_nK[valid_nK]
        inside_r = torch.searchsorted(self.cumulative_nB, points_nK, right=True)[valid_nK]
        block_r = valid_nK.nonzero()[:, 0] * self.rows.blocks + inside_r
        end_r, sum_r = self.cumulative_nB.view(-1)[block_r], self.sums_nB.view(-1)[block_r]
        exps_rW = self.rows.exps(block_r)
        if len(self.changed_r):
            changed_r = torch.searchsorted(self.changed_r, block_r).clamp_max_(len(self.changed_r) - 1)
            same_r = self.changed_r[changed_r] == block_r
            exps_rW[same_r] = self.exps_rW[changed_r[same_r]]
        inner_rW = exps_rW.cumsum_(1)
        whole_r = inner_rW[:, -1]
        target_r = ((point_r - (end_r - sum_r)) / sum_r).clamp_min_(0.0) * whole_r
        target_r = torch.minimum(target_r, torch.nextafter(whole_r, torch.zeros_like(whole_r)))
        within_r = torch.searchsorted(inner_rW, target_r.unsqueeze(1), right=True).squeeze(1)
        return block_r * BLOCK + within_r


def _threshold(rows: _Rows, scheme: Scheme, labels_n: Tensor, uniform_n: Tensor) -> Draw:
    cut_n = rows.z_n * scheme.threshold
    # A block with an entry above the cut adds up to more than the cut, so there are few; the margin is for rounding.
    block_r = (rows.sums_nB >= (cut_n * (1 - 1e-4)).unsqueeze(1)).view(-1).nonzero().squeeze(1)
    of_r, within_r = (rows.exps(block_r) >= cut_n[block_r // rows.blocks].unsqueeze(1)).nonzero(as_tuple=True)
    label_at_n = labels_n + torch.arange(len(labels_n), device=labels_n.device) * rows.width
    exact_r = torch.cat([block_r[of_r] * BLOCK + within_r, label_at_n]).unique()

    rest = _Rest(rows, exact_r)
    most = int((rest.mass_n1.squeeze(1) / cut_n).max()) + 1
    steps_K = torch.arange(most, device=cut_n.device)
    drawn_r = rest.locate((uniform_n.to(cut_n).unsqueeze(1) + steps_K) * cut_n.unsqueeze(1))
    # Two points fall on one token only by rounding; it has twice the weight then.
    drawn_r, times_r = drawn_r.unique_consecutive(return_counts=True)

    at_r, order_r = torch.cat([exact_r, drawn_r]).sort()
    logprobs_r = torch.cat([rows.logprobs(exact_r), (times_r * scheme.threshold).double().log()])
    return rows.made(at_r, logprobs_r[order_r])


def _top_k(rows: _Rows, scheme: Scheme, labels_n: Tensor, uniform_n: Tensor) -> Draw:
    count, vocab_size = rows.logits_nV.shape
    top = rows.logits_nV.topk(min(scheme.k, vocab_size), 1)
    at_nk = top.indices + torch.arange(count, device=labels_n.device).unsqueeze(1) * rows.width
    at_r = at_nk[top.values > -torch.inf]
    logprobs_r = rows.logprobs(at_r).clamp_max_(0.0)
    if scheme.kind == "top_k_renormalised":
        return rows.made(at_r, _renormalised(logprobs_r, at_r // rows.width, count))
    return rows.made(at_r, logprobs_r, (_Rest(rows, at_r).mass_n1.squeeze(1) / rows.z_n).float())


def _sampled(rows: _Rows, scheme: Scheme, labels_n: Tensor, uniform_n: Tensor) -> Draw:
    # A stream of numbers a position: the hash of its one number and a counter.
    bits_n1 = np.ascontiguousarray(uniform_n.double().cpu().numpy()).view(np.uint64)[:, None]
    fractions_nK = _fractions(_mixed(_mixed(bits_n1) ^ np.arange(scheme.samples, dtype=np.uint64)))
    rest = _Rest(rows, labels_n[:0])
    drawn_r = rest.locate(torch.from_numpy(fractions_nK).to(rest.mass_n1) * rest.mass_n1)
    at_r, times_r = drawn_r.unique(return_counts=True)
    if scheme.kind == "multinomial":
        return rows.made(at_r, (times_r / scheme.samples).double().log())
    return rows.made(at_r, _renormalised(rows.logprobs(at_r), at_r // rows.width, len(rows.z_n)))


def _renormalised(logprobs_r: Tensor, row_r: Tensor, count: int) -> Tensor:
    mass_n = logprobs_r.new_zeros(count).index_add_(0, row_r, logprobs_r.exp())
    return (logprobs_r - mass_n.log()[row_r]).clamp_max_(0.0)


_KINDS = {
    "threshold": _threshold,
    "top_k": _top_k,
    "top_k_renormalised": _top_k,
    "multinomial": _sampled,
    "gemma": _sampled,
}
