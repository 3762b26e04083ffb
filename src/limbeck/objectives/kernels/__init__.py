"""The pointwise work over one chunk of logits: in plain torch, in C++ for CPUs, in Triton for CUDA."""

from __future__ import annotations

import torch

from limbeck.objectives.kernels import cpu, eager
from limbeck.objectives.kernels.rows import Backend


def choose(device: torch.device, logits: torch.dtype, gradient: torch.dtype | None) -> Backend:
    """The fastest backend that this device and these dtypes have."""
    if device.type == "cpu" and cpu.serves(logits, gradient):
        return cpu.run
    return eager.run
