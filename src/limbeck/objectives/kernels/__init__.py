"""The pointwise work over one chunk of logits: in plain torch, in C++ for CPUs, in Triton for CUDA."""

from __future__ import annotations

import importlib.util

import torch

from limbeck.objectives.kernels import cpu, eager
from limbeck.objectives.kernels.rows import Backend


def choose(device: torch.device, logits: torch.dtype, gradient: torch.dtype | None) -> Backend:
    """The fastest backend that this device and these dtypes have."""
    if device.type == "cpu" and cpu.serves(logits, gradient):
        return cpu.run
    if device.type == "cuda" and logits != torch.float64 and _has_triton():
        # Only here, for it takes a second and is not everywhere.
        from limbeck.objectives.kernels import cuda

        return cuda.run
    return eager.run


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
