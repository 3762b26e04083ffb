from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.runtime import world
from limbeck.runtime.world import World, device, device_count, device_name, free_memory


def test_one_process_is_a_world() -> None:
    one = World.current()
    assert one == World.single() == World(0, 1, device())
    x = torch.tensor([1, 2])
    assert torch.equal(one.sum(x), x)


def test_the_memory_of_this_machine() -> None:
    total = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line)
    assert 0 < free_memory(torch.device("cpu")) <= total * 1024
    World.single().release_memory()


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert (device(), device_count(), device_name()) == (torch.device("cpu"), 0, None)
    world.synchronise()


def test_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch holds of freed memory counts as free."""
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "get_device_name": lambda _n: "Some GPU",
        "mem_get_info": lambda _of: (1000, 9000),
        "memory_reserved": lambda _of: 500,
        "memory_allocated": lambda _of: 200,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(f"torch.cuda.{name}", answer)
    assert (device(), device_count(), device_name()) == (torch.device("cuda"), 2, "Some GPU")
    assert World.single().free_memory() == free_memory() == 1300
