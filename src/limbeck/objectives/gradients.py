"""The gradients of hidden states, head and bias, gathered chunk by chunk.

Shape suffixes: N positions; n positions of a chunk; D width of the learner; V vocabulary; v a block of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.objectives import matmul, memory
from limbeck.objectives.kernels import mkl
from limbeck.objectives.terms import Index


class HeadGradient:
    """The sum over chunks of ``grad_nV.T @ hidden_nD``, [V, D], in ``dtype``: see :func:`dtype_of_sum`."""

    def __init__(self, head_VD: Tensor, dtype: torch.dtype) -> None:
        self.sum_VD = memory.empty(*head_VD.shape, like=head_VD, dtype=dtype)
        self.begun = False

    def add(self, grad_nV: Tensor, hidden_nD: Tensor) -> None:
        first, self.begun = not self.begun, True
        if self.sum_VD.dtype == hidden_nD.dtype:
            beta = 0.0 if first else 1.0
            torch.addmm(self.sum_VD, grad_nV.t(), hidden_nD, beta=beta, out=self.sum_VD)
        elif matmul.has_mixed(hidden_nD):
            if first:
                # Measured: clearing and adding takes less than MKL's own overwriting.
                self.sum_VD.zero_()
            mkl.gemm(self.sum_VD, grad_nV.t(), hidden_nD, accumulate=True)
        else:
            for block in matmul.blocks(len(self.sum_VD)):
                part_vD = matmul.product(grad_nV[:, block].t(), hidden_nD, self.sum_VD.dtype)
                self.sum_VD[block] = part_vD if first else self.sum_VD[block] + part_vD

    def take(self) -> Tensor:
        """The sum; zeros if no chunk was added."""
        return self.sum_VD if self.begun else self.sum_VD.zero_()


MOST_ROUNDED = 16
"""Chunks whose sum a bfloat16 gradient may be, rounded after each. The sum of many would lose what each adds
once it has grown; of 16 equal ones the last is still 30 times what is rounded away. Measured (V = 16,000, float64
beside it): the gradient is 2.71e-2 off with float32 sums, for its logits are bfloat16, and 2.74e-2 with these."""


def dtype_of_sum(matmul: torch.dtype, wanted: torch.dtype, chunks: int, *, precise: bool) -> torch.dtype:
    """What the head's gradient is summed in, of so many chunks: float32 at least, where it matters.

    Args:
        matmul: dtype of the matmuls.
        wanted: dtype of the head, in which the gradient is handed over.
        chunks: how many there are.
        precise: whether the logits are float32, so that rounding the sum would show.
    """
    rounded = matmul == wanted == torch.bfloat16 and chunks <= MOST_ROUNDED and not precise
    return matmul if chunks <= 1 or rounded else torch.promote_types(matmul, torch.float32)


class Gradients:
    """What is wanted of the three; the rest is ``None`` and costs nothing."""

    def __init__(
        self, hidden_ND: Tensor, head_VD: Tensor, of_head: torch.dtype, *, hidden: bool, head: bool, bias: bool
    ) -> None:
        self.any = hidden or head or bias
        self.head_VD = head_VD
        self.hidden_ND = torch.zeros_like(hidden_ND) if hidden else None
        self.head = HeadGradient(head_VD, of_head) if head else None
        compute = torch.promote_types(hidden_ND.dtype, torch.float32)
        self.bias_V = hidden_ND.new_zeros(len(head_VD), dtype=compute) if bias else None

    def add(self, index: Index, grad_nV: Tensor, hidden_nD: Tensor) -> None:
        """Take in the chunk at ``index``, given the derivative by its logits."""
        if self.hidden_ND is not None:
            out_nD = self.hidden_ND[index] if isinstance(index, slice) else torch.empty_like(hidden_nD)
            matmul.into_hidden(out_nD, grad_nV, self.head_VD)
            if not isinstance(index, slice):
                self.hidden_ND[index] = out_nD
        if self.head is not None:
            self.head.add(grad_nV, hidden_nD)
        if self.bias_V is not None:
            self.bias_V += grad_nV.sum(0, dtype=self.bias_V.dtype)


def fit(grad: Tensor, like: Tensor) -> Tensor:
    """A gradient in the dtype of its tensor, with zeros for the padding rows of the head; ``grad`` is used up."""
    if grad.shape == like.shape:
        return grad if grad.dtype == like.dtype else memory.converted(grad, like.dtype)
    whole = memory.empty(*like.shape, like=like, dtype=like.dtype)
    whole[: len(grad)] = grad
    whole[len(grad) :] = 0
    return whole
