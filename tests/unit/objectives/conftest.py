"""Tests of the objective run on every backend that this machine has."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from limbeck.objectives.kernels import build, eager

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
    if request.param == "eager":
        monkeypatch.setenv("LIMBECK_CPU_KERNEL", "0")
        # Two parts a chunk, so that what is cut is tested.
        monkeypatch.setattr(eager, "PART", 40)
    else:
        monkeypatch.delenv("LIMBECK_CPU_KERNEL", raising=False)
        try:
            build.find_compiler()
        except build.CannotBuildError:
            pytest.skip("no C++ compiler")
        assert build.library() is not None, "there is a compiler, so there must be a kernel"
    return request.param
