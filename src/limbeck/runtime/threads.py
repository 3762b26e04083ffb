"""How many threads a model of some shape is best trained with on this machine, as busy as it is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

STEPS, ROUNDS = 2, 3
WORTH = 1.3
"""How much faster all threads have to be than one."""


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def one_thread() -> Iterator[None]:
    """For small models: threads would wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_threads(step: Callable[[], Any]) -> dict[str, Any]:
    """Time ``step`` with one thread and with one for each core, in turn, and take the better.

    Returns:
        ``{"threads": ..., "seconds": {threads: the median of a step}}``. The number of torch's threads is as before.
    """
    before, cores = torch.get_num_threads(), usable_cores()
    if cores == 1:
        return {"threads": 1, "seconds": {}}
    taken: dict[int, list[float]] = {1: [], cores: []}
    try:
        for _ in range(ROUNDS):
            for threads, seconds in taken.items():
                torch.set_num_threads(threads)
                step()  # wakes threads up
                start = time.perf_counter()
                for _ in range(STEPS):
                    step()
                seconds.append((time.perf_counter() - start) / STEPS)
    finally:
        torch.set_num_threads(before)
    median = {threads: sorted(seconds)[len(seconds) // 2] for threads, seconds in taken.items()}
    best = cores if median[1] > WORTH * median[cores] else 1
    return {"threads": best, "seconds": {str(n): round(seconds, 4) for n, seconds in median.items()}}


def has_fast_bf16() -> bool:
    """Whether matrix products in bfloat16 are faster here than in float32: on a GPU, and on processors with
    instructions for them. Others emulate them at a sixth of the speed."""
    if torch.accelerator.is_available():
        return True
    found = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(ask is not None and ask() for ask in found)
