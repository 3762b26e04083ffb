"""The pointwise work over one chunk of logits: in plain torch, in C++ for CPUs, in Triton for CUDA."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch

from limbeck.objectives.divergences import Divergence
from limbeck.objectives.kernels import cpu, eager
from limbeck.objectives.kernels.rows import Backend


def choose(
    device: torch.device, logits: torch.dtype, gradient: torch.dtype | None, divergences: Sequence[Divergence]
) -> Backend:
    """The fastest backend that this device and these dtypes have, and that knows all ``divergences``: those of users
    exist in torch only."""
    if any(type(divergence) not in cpu.NUMBERS for divergence in divergences):
        return eager.run
    if device.type == "cpu" and cpu.serves(logits, gradient):
        return cpu.run
    if device.type == "cuda" and logits != torch.float64 and _has_triton():
        # Only here, for it takes a second and is not everywhere.
        from limbeck.objectives.kernels import cuda

        return cuda.run
    return eager.run


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
