"""Tests of the objective run on every backend that this machine has."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.kernels import choose_kernel

from limbeck.objectives.kernels import eager

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors: threads only get in each other's way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["eager", "cpu"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test on plain torch and on the C++ kernel."""
    choose_kernel(request.param, monkeypatch)
    if request.param == "eager":
        # Two parts a chunk, so that what is cut is tested.
        monkeypatch.setattr(eager, "PART", 40)
    return request.param
