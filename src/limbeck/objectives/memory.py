"""Large buffers on huge pages, where Linux leaves the choice to the program.

Touching a gigabyte for the first time costs 262,144 page faults of 4 KiB, about a tenth of a second of CPU
each 300 MB; of 2 MiB it costs 512.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable

import torch
from torch import Tensor

HUGE_PAGE = 2**21


def empty(*shape: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """``torch.empty`` on the device of ``like``, on huge pages if it is large and that can be had."""
    tensor = torch.empty(shape, dtype=dtype, device=like.device)
    size = tensor.numel() * tensor.element_size()
    if tensor.device.type == "cpu" and size >= 4 * HUGE_PAGE and (madvise := _madvise()) is not None:
        # Advice about whole pages inside the tensor; whatever comes of it, the memory is the same.
        begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (tensor.data_ptr() + size) // mmap.PAGESIZE * mmap.PAGESIZE
        madvise(begin, end - begin, mmap.MADV_HUGEPAGE)
    return tensor


def converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` in another dtype, in new memory; what ``tensor`` held is given up, and must not be read again.

    On Linux its pages go back to the system block by block, as they are converted, so that the two are never
    both held.
    """
    whole = empty(*tensor.shape, like=tensor, dtype=dtype)
    if not tensor.numel():
        return whole
    # Not by strides: of a dimension of one element they say nothing, and may be anything.
    of_row = tensor.numel() // len(tensor) * tensor.element_size()
    rows = max(16 * HUGE_PAGE // of_row, 1)
    madvise = _madvise() if tensor.device.type == "cpu" and tensor.is_contiguous() else None
    for start in range(0, len(tensor), rows):
        part = tensor[start : start + rows]
        whole[start : start + rows] = part
        if madvise is not None:
            begin = -(-part.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
            end = (part.data_ptr() + len(part) * of_row) // mmap.PAGESIZE * mmap.PAGESIZE
            if end > begin:
                madvise(begin, end - begin, mmap.MADV_DONTNEED)
    return whole


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not (hasattr(mmap, "MADV_HUGEPAGE") and sys.platform == "linux"):
        return None
    try:
        function = ctypes.CDLL(None).madvise
    except (OSError, AttributeError, TypeError):
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    function.restype = ctypes.c_int
    return function
