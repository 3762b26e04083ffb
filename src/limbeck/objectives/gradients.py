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
    """The sum over chunks of ``grad_nV.T @ hidden_nD``, [V, D].

    One chunk is written in the matmul's dtype; the sum of several is kept in float32 at least. Sums in
    bfloat16 lose what each chunk adds once the sum has grown: measured relative error 9e-2, against 2e-3.
    """

    def __init__(self, head_VD: Tensor, chunks: int) -> None:
        dtype = head_VD.dtype if chunks <= 1 else torch.promote_types(head_VD.dtype, torch.float32)
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


class Gradients:
    """What is wanted of the three; the rest is ``None`` and costs nothing."""

    def __init__(
        self, hidden_ND: Tensor, head_VD: Tensor, chunks: int, *, hidden: bool, head: bool, bias: bool
    ) -> None:
        self.any = hidden or head or bias
        self.head_VD = head_VD
        self.hidden_ND = torch.zeros_like(hidden_ND) if hidden else None
        self.head = HeadGradient(head_VD, chunks) if head else None
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
