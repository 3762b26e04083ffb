"""The logits that a ``Dense`` target stands for, a chunk of positions at a time.

Shape suffixes: N positions; n positions of a chunk; E width of the teacher; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from limbeck.objectives import matmul, memory
from limbeck.objectives.kernels.rows import DenseRows
from limbeck.objectives.targets import Dense
from limbeck.objectives.terms import Index


def logits_of(dense: Dense, *, vocab_size: int, chunk_tokens: int | None = None) -> Iterator[tuple[slice, Tensor]]:
    """The teacher's logits as the objective compares them: scaled, soft-capped, over the learner's vocabulary.

    They are made in float32 (float64 for float64 hidden states), or are parts of the target's own. They are to be
    read only, and each chunk may be overwritten by the next one.

    Args:
        dense: N positions.
        vocab_size: tokens of the vocabulary; further rows of the teacher's head are padding and are left out. Of a
            restricted teacher the restriction says it.
        chunk_tokens: positions a chunk; chosen from the shapes if left out.

    Yields:
        Which positions, and their logits, floating [n, V].
    """
    source = dense.logits_NV if dense.logits_NV is not None else dense.hidden_NE
    assert source is not None
    whole = vocab_size if dense.restriction is None else dense.restriction.of_size
    step = max(min(chunk_tokens or chunk_of(4 * whole, source.device), len(dense)), 1)
    chunks = DenseLogits(dense, vocab_size, step, precise=True)
    with torch.no_grad():
        for start in range(0, len(dense), step):
            index = slice(start, min(start + step, len(dense)))
            yield index, chunks.final(index)


def chunk_of(row_bytes: int, device: torch.device, *, share: float = 1.0) -> int:
    """Positions of a chunk of logits: as few as keep the matmuls efficient, so that little is held.

    128 MiB on a CPU and at most 1,024 positions, so that wide vocabularies do not hold much and narrow ones do not
    hold up the matmuls; a GPU, which needs more at a time, gets four times that.

    Args:
        row_bytes: of the logits of a position.
        share: of that memory.
    """
    budget, most = (2**29, 4096) if device.type == "cuda" else (2**27, 1024)
    return max(32, min(most, int(budget * share) // row_bytes // 32 * 32))


class DenseLogits:
    """The logits of one target, a chunk at a time in one buffer: fresh pages for every chunk would cost as much as a
    pass.

    Args:
        dense: the target.
        vocab_size: tokens of the learner's vocabulary.
        size: the most positions of a chunk.
        precise: make them in float32 at least, instead of the dtype of the hidden states.
    """

    def __init__(self, dense: Dense, vocab_size: int, size: int, *, precise: bool) -> None:
        self.dense, self.size, self.precise = dense, size, precise
        # A restricted teacher's logits are made over its own vocabulary, a chunk of them, and cut down.
        self.vocab_size = vocab_size if dense.restriction is None else dense.restriction.of_size
        self._buffer_nV: Tensor | None = None

    def rows(self, index: Index) -> DenseRows:
        """The logits of some positions, and the soft cap that is still to be applied to them."""
        dense, size = self.dense, self.vocab_size
        if dense.logits_NV is not None:
            logits_nV = dense.logits_NV.detach()[index][:, :size]
            return DenseRows(logits_nV if dense.restriction is None else dense.restriction.apply(logits_nV), None)
        assert dense.hidden_NE is not None
        assert dense.head_VE is not None
        hidden_nE = dense.hidden_NE.detach()[index]
        if self._buffer_nV is None:
            dtype = hidden_nE.dtype
            if self.precise:
                dtype = torch.promote_types(dtype, torch.float32)
            self._buffer_nV = memory.empty(self.size, size, like=hidden_nE, dtype=dtype)
        out_nV = self._buffer_nV[: len(hidden_nE)]
        bias_V = None if dense.bias_V is None else dense.bias_V.detach()[:size]
        head_VE = dense.head_VE.detach()[:size]
        logits_nV = matmul.logits(out_nV, hidden_nE, head_VE, bias_V, dense.scale)
        if dense.restriction is None:
            return DenseRows(logits_nV, dense.softcap)
        return DenseRows(dense.restriction.apply(_capped(logits_nV, dense.softcap)), None)

    def final(self, index: Index) -> Tensor:
        """The logits of some positions, with the soft cap applied."""
        rows = self.rows(index)
        return rows.logits_nV if rows.softcap is None else _capped(rows.logits_nV, rows.softcap)


def _capped(logits_nV: Tensor, softcap: float | None) -> Tensor:
    """The soft cap, in place."""
    return logits_nV if softcap is None else logits_nV.div_(softcap).tanh_().mul_(softcap)
