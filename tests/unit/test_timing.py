"""The speed stage: kept, begun anew after a kill, and with models that do not fit together."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from limbeck.run import timing
from limbeck.run.folder import RunFolder

_MODELS: list[timing.Timed] = [("teacher", None, "teacher"), ("soft", None, "student")]


class _Examiner:
    """What the stage asks of an examiner; it counts what is loaded."""

    def __init__(self, path: Path) -> None:
        self.recipe = SimpleNamespace(evaluation=SimpleNamespace(speed_tokens=4))
        self.prepared = SimpleNamespace(teacher_facts={"fingerprint": "f"})
        self.display = self
        self.folder = RunFolder(path)
        self.loaded: list[str] = []
        self.forgotten = 0
        self.path = path / "model"
        self.path.mkdir(exist_ok=True)
        (self.path / "config.json").write_text(json.dumps({"hidden_size": 8}))
        (self.path / "model.safetensors").write_bytes(bytes(1000))

    def prompts(self) -> list[tuple[list[int], list[int]]]:
        return [([1, 2], [3])]

    def load(self, arm: None, member: str) -> str:
        self.loaded.append(member)
        return member

    def weights(self, arm: None, member: str) -> Path:
        return self.path

    def forget_teacher(self) -> None:
        self.forgotten += 1

    @contextmanager
    def stage(self, *_: Any) -> Any:
        yield SimpleNamespace(advance=lambda n: None)


def _rounds(loaders: dict[str, Callable[[], Any]], prompt: Any, tokens: int, rounds: int, done: Any) -> Any:
    return {name: [10.0 for _ in range(rounds) if load()] for name, load in loaders.items()}


@pytest.fixture
def examiner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Examiner:
    monkeypatch.setattr(timing, "speeds_in_turn", _rounds)
    return _Examiner(tmp_path)


def _time(examiner: _Examiner) -> dict[str, Any]:
    found = timing.time_models(examiner, _MODELS, {})  # type: ignore[arg-type]
    assert found is not None
    return found


@pytest.mark.parametrize(("free", "held"), [(8001, True), (8000, False)])
def test_models_are_held_where_they_fit_into_half_of_the_memory(
    examiner: _Examiner, monkeypatch: pytest.MonkeyPatch, free: int, held: bool
) -> None:
    monkeypatch.setattr(timing, "_free_memory", lambda: free)
    assert _time(examiner)["held"] is held
    assert len(examiner.loaded) == (2 if held else 2 * timing.ROUNDS)
    assert examiner.forgotten == (0 if held else 1)


def test_the_stage_is_begun_anew_after_a_kill_and_kept_once_it_is_done(
    examiner: _Examiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(timing, "speeds_in_turn", killed)
    with pytest.raises(KeyboardInterrupt):
        _time(examiner)
    monkeypatch.setattr(timing, "speeds_in_turn", _rounds)
    found = _time(examiner)
    assert found["speeds"] == {"teacher": [10.0] * 7, "soft": [10.0] * 7}
    monkeypatch.setattr(timing, "speeds_in_turn", killed)
    assert _time(examiner) == found
    with pytest.raises(KeyboardInterrupt):  # other weights are timed anew, and nothing is refused
        timing.time_models(examiner, _MODELS, {"soft": "other"})  # type: ignore[arg-type]
