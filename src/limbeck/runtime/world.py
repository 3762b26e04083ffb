"""The processes of a run and their devices: the only user of ``torch.distributed`` and ``torch.cuda``.

``objectives/`` is the exception: it runs in other people's trainers, and its kernels ask the device that they run on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch import distributed as dist


@dataclass(frozen=True)
class World:
    """One process among those that train together.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        device: where this process computes.
    """

    rank: int
    size: int
    device: torch.device

    @classmethod
    def single(cls) -> World:
        """This process alone."""
        return cls(0, 1, device())

    @classmethod
    def current(cls) -> World:
        """The process group that ``torch.distributed`` was initialised with; without one, this process alone."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), device())
        return cls.single()

    def sum(self, x: Tensor) -> Tensor:
        """The sum of ``x`` over all processes, the same on each of them; ``x`` itself is left as it was.

        Args:
            x: of one shape and dtype everywhere. Every process has to call.
        """
        if self.size == 1:
            return x
        total = x.clone()
        dist.all_reduce(total)
        return total

    def free_memory(self) -> int:
        """Bytes that can still be allocated on the device, about."""
        return free_memory(self.device)

    def release_memory(self) -> None:
        """Give what torch keeps of freed memory back to the device."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_count() -> int:
    """Number of CUDA devices; 0 on a machine without."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def device_name() -> str | None:
    """Name of the first CUDA device, None on a machine without."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def free_memory(of: torch.device | None = None) -> int:
    """Bytes that can still be allocated on a device, about. Default: the one of :func:`device`."""
    of = of or device()
    if of.type == "cuda":
        unused = torch.cuda.memory_reserved(of) - torch.cuda.memory_allocated(of)  # torch keeps it for itself
        return int(torch.cuda.mem_get_info(of)[0]) + unused
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def synchronise() -> None:
    """Wait for what a CUDA device still computes; on the CPU nothing is left to wait for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
