"""Which backend of the objective a test runs on."""

from __future__ import annotations

import pytest

from limbeck.objectives.kernels import build


def choose_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``eager``: plain torch; ``cpu``: the C++ kernel. A machine without a compiler skips the latter."""
    if name == "eager":
        monkeypatch.setenv("LIMBECK_CPU_KERNEL", "0")
        return
    monkeypatch.delenv("LIMBECK_CPU_KERNEL", raising=False)
    try:
        build.find_compiler()
    except build.CannotBuildError:
        pytest.skip("no C++ compiler")
    assert build.library() is not None, "there is a compiler, so there must be a kernel"
