"""The matmuls of the objective: logits into a buffer, their gradients into the hidden states.

Shape suffixes: n positions of a chunk; V vocabulary; D width; v a block of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from limbeck.objectives.kernels import mkl

VOCABULARY_BLOCK = 8192
"""Rows of the head that are converted or accumulated at a time, to bound what is held beside a chunk."""

POSITIONS_BLOCK = 384
"""Most positions per matmul with the head from the right. oneDNN's bfloat16 kernels can lose half their speed
above (AMX, two free cores, V = 128,256, D = 512: 1650 GFLOP/s at 256 positions, 810 at 512)."""


def blocks(size: int, block: int = VOCABULARY_BLOCK) -> Iterator[slice]:
    for start in range(0, size, block):
        yield slice(start, min(start + block, size))


def logits(out_nV: Tensor, hidden_nD: Tensor, head_VD: Tensor, bias_V: Tensor | None, scale: float) -> Tensor:
    """``scale * (hidden @ head.T + bias)`` into ``out_nV``, in its dtype; returns it."""
    if out_nV.dtype == hidden_nD.dtype:
        torch.mm(hidden_nD, head_VD.t(), out=out_nV)
    elif has_mixed(hidden_nD):
        mkl.gemm(out_nV, hidden_nD, head_VD.t(), accumulate=False)
    elif hidden_nD.device.type == "cuda":
        torch.mm(hidden_nD, head_VD.t(), out_dtype=out_nV.dtype, out=out_nV)
    else:
        hidden_nD = hidden_nD.to(out_nV.dtype)
        for block in blocks(len(head_VD)):
            out_nV[:, block] = hidden_nD @ head_VD[block].to(out_nV.dtype).t()
    if bias_V is not None:
        out_nV += bias_V
    if scale != 1.0:
        out_nV *= scale
    return out_nV


def into_hidden(out_nD: Tensor, grad_nV: Tensor, head_VD: Tensor) -> None:
    """``out_nD = grad_nV @ head_VD``."""
    count = len(grad_nV)
    most = POSITIONS_BLOCK if grad_nV.device.type == "cpu" else count
    pieces = -(-count // most)
    for i in range(pieces):
        part = slice(i * count // pieces, (i + 1) * count // pieces)
        torch.mm(grad_nV[part], head_VD, out=out_nD[part])


def product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """``left @ right``, in ``dtype`` where the device multiplies into another one, else in its own."""
    if left.device.type == "cuda" and left.dtype != dtype:
        return torch.mm(left, right, out_dtype=dtype)
    return left @ right


def has_mixed(operand: Tensor) -> bool:
    """Whether bfloat16 operands like this one can be multiplied into float32 directly."""
    return operand.device.type == "cpu" and operand.dtype == torch.bfloat16 and mkl.available()
