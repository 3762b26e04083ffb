"""bfloat16 times bfloat16 into float32, which torch has no call for on CPUs, from the MKL inside torch.

torch's x86 builds carry and export ``cblas_gemm_bf16bf16f32``. It is looked up, tried once on a small
product, and used only if the answer is right; elsewhere plain torch does the work by another road.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

_ROW_MAJOR, _PLAIN, _TRANSPOSED = 101, 111, 112


@functools.cache
def available() -> bool:
    """Whether the call is there, fast on this processor, and gives the right answer."""
    if _function() is None or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    left, right = torch.arange(-6, 6).view(4, 3).bfloat16(), torch.arange(-7, 8).view(3, 5).bfloat16()
    out = torch.ones(4, 5)
    gemm(out, left, right, accumulate=True)
    return torch.equal(out, 1.0 + left.float() @ right.float())


def gemm(out_MN: Tensor, left_MK: Tensor, right_KN: Tensor, *, accumulate: bool) -> None:
    """``out = left @ right``, or ``out += left @ right``: bfloat16 operands, float32 ``out``.

    Each operand has one dimension of stride 1; ``out`` is row-major.
    """
    function = _function()
    assert function is not None
    M, K = left_MK.shape
    (left_form, left_stride), (right_form, right_stride) = _form(left_MK), _form(right_KN)
    function(
        _ROW_MAJOR, left_form, right_form, M, right_KN.shape[1], K,
        1.0, left_MK.data_ptr(), left_stride, right_KN.data_ptr(), right_stride,
        1.0 if accumulate else 0.0, out_MN.data_ptr(), out_MN.stride(0),
    )  # fmt: skip


def _form(matrix: Tensor) -> tuple[int, int]:
    if matrix.stride(1) == 1:
        return _PLAIN, matrix.stride(0)
    assert matrix.stride(0) == 1
    return _TRANSPOSED, matrix.stride(1)


@functools.cache
def _function() -> Callable[..., None] | None:
    if not torch.backends.mkl.is_available():
        return None
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        function = ctypes.CDLL(str(path)).cblas_gemm_bf16bf16f32
    except (OSError, AttributeError):
        return None
    i, f, p = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
    function.argtypes = [i, i, i, i, i, i, f, p, i, p, i, f, p, i]
    function.restype = None
    return function
