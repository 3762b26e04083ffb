"""Exponentials of rows of logits, added up in blocks of tokens: one function, in C++ (``blocks.h``) or in torch.

Samplers and searches then look again at few blocks, instead of keeping or sorting what belongs to all tokens.

Shape suffixes: n positions; V vocabulary; B blocks of it.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.objectives.kernels import build

PART = 2**20
"""Elements that the torch version works on at a time on CPUs: two copies of them are made, and stay in the cache."""


@dataclass(frozen=True)
class BlockSums:
    """Sums over exp(x), x = (logit - max) / temperature; float64 but for the first.

    Attributes:
        max_n: the largest logit, in the type of the arithmetic. NaN logits show here or in the sums.
        sums_nB: of the blocks; the last one ends with the vocabulary. Each is added up in float32 (float64 for float64
            logits): to some 1e-7 of it, where x is small; to 4e-6 where it is -46.
        moment_n: of exp(x) * x over all tokens.
    """

    max_n: Tensor
    sums_nB: Tensor
    moment_n: Tensor


def block_sums(logits_nV: Tensor, temperature: float, width: int) -> BlockSums:
    """Block sums of some positions.

    Args:
        logits_nV: floating. 16 bits are computed in float32.
        temperature: divides them.
        width: tokens of a block, a multiple of 16.
    """
    on_cpu = logits_nV.device.type == "cpu"
    known = on_cpu and logits_nV.dtype in (torch.float32, torch.bfloat16)
    if known and not build.disabled() and (library := build.library()) is not None:
        return _cpu(library, logits_nV, temperature, width)
    return _eager(logits_nV, temperature, width, PART if on_cpu else logits_nV.numel())


class _Blocks(ctypes.Structure):
    _fields_ = [
        ("logits", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("V", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("is_bf16", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("width", ctypes.c_int64),
        ("inverse", ctypes.c_float),
        ("max", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("moment", ctypes.c_void_p),
    ]


def _cpu(library: ctypes.CDLL, logits_nV: Tensor, temperature: float, width: int) -> BlockSums:
    if logits_nV.stride(1) != 1:
        logits_nV = logits_nV.contiguous()
    count, vocab_size = logits_nV.shape
    max_n = torch.empty(count)
    sums_nB = torch.empty(count, -(-vocab_size // width))
    moment_n = torch.empty(count, dtype=torch.float64)
    library.limbeck_blocks(
        ctypes.byref(
            _Blocks(
                logits=logits_nV.data_ptr(),
                rows=count,
                V=vocab_size,
                stride=logits_nV.stride(0),
                is_bf16=logits_nV.dtype == torch.bfloat16,
                threads=min(torch.get_num_threads(), max(1, count)),
                width=width,
                inverse=1.0 / temperature,
                max=max_n.data_ptr(),
                sums=sums_nB.data_ptr(),
                moment=moment_n.data_ptr(),
            )
        )
    )
    return BlockSums(max_n, sums_nB.double(), moment_n)


def _eager(logits_nV: Tensor, temperature: float, width: int, part: int) -> BlockSums:
    count, vocab_size = logits_nV.shape
    step = min(max(1, part // vocab_size), count)
    dtype = torch.promote_types(logits_nV.dtype, torch.float32)
    # All parts use the same memory: asking for it anew would cost more than the arithmetic.
    x_nV = logits_nV.new_empty(step, vocab_size, dtype=dtype)
    exp_nP = logits_nV.new_zeros(step, -(-vocab_size // width) * width, dtype=dtype)
    found = [
        _eager_part(logits_nV[start : start + step], temperature, width, x_nV, exp_nP)
        for start in range(0, count, step)
    ]
    return BlockSums(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _eager_part(
    logits_nV: Tensor, temperature: float, width: int, x_nV: Tensor, exp_nP: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    count, vocab_size = logits_nV.shape
    x_nV, exp_nP = x_nV[:count], exp_nP[:count]
    max_n1 = logits_nV.amax(1, keepdim=True).to(x_nV.dtype)
    if logits_nV.dtype == x_nV.dtype:
        torch.sub(logits_nV, max_n1, out=x_nV)
    else:
        x_nV.copy_(logits_nV).sub_(max_n1)
    if temperature != 1.0:
        x_nV.div_(temperature)
    torch.exp(x_nV, out=exp_nP[:, :vocab_size])
    sums_nB = exp_nP.view(count, -1, width).sum(2).double()
    moment_n = x_nV.mul_(exp_nP[:, :vocab_size]).sum(1)
    if bool(moment_n.isnan().any()):
        # 0 times the -inf of a forbidden token.
        moment_n = x_nV.nan_to_num_(nan=0.0).sum(1)
    return max_n1.squeeze(1), sums_nB, moment_n.double()
