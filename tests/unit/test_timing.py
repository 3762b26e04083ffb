"""The speed stage: models that fit together are held, others are loaded anew, other weights are timed anew."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from limbeck.pipeline.measuring import speed
from limbeck.pipeline.measuring.speed import ROUNDS, Speed
from limbeck.pipeline.stages.train import Arm
from limbeck.recipe import Soft
from limbeck.workflow.lock import RunLock
from limbeck.workflow.runner import Runner
from limbeck.workflow.stage import Facts, Stage
from tests.unit.test_workflow import Count

ARM = Arm(0, Soft(), 0)


class _Known(Count):
    """A stage before the one that is timed, whose result is known."""

    def run(self, up: Facts, context: Any) -> dict[str, Any]:
        super().run(up, context)
        return {
            "machine": {"threads": 1},
            "teacher": {"spec": {"path": str(context.folder / "model")}, "given": True, "fingerprint": "f"},
            "measure-teacher": {"prompt": [1, 2]},
            f"train-{ARM.name}": {"weights": {"student": f"w{self.upto}"}},
        }.get(self.name, {})


def _stages(weights: int = 1) -> list[Stage]:
    timed = Speed(tokens=4, arms=(ARM,), members={ARM.name: ["student"]})
    before = [_Known(name_=name, upto=1) for name in timed.needs[:-1]]
    return [*before, _Known(name_=timed.needs[-1], upto=weights, recomputable=True), timed]


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is loaded; weights take 1,000 bytes each."""
    found: list[str] = []
    for folder in (tmp_path / "model", tmp_path / ARM.model("student")):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"hidden_size": 8}))
        (folder / "model.safetensors").write_bytes(bytes(1000))
    (tmp_path / "stages").mkdir()

    @contextmanager
    def lease(name: str, *_: Any) -> Iterator[str]:
        found.append(name)
        yield name

    monkeypatch.setattr(speed, "open_text", lambda run: None)
    monkeypatch.setattr(speed, "lease_teacher", lambda *_: lease("teacher"))
    monkeypatch.setattr(speed, "lease_trained", lambda arm, member, *_: lease(member))
    monkeypatch.setattr(speed, "speeds_in_turn", _rounds)
    return found


def _rounds(loaders: dict[str, Callable[[], Any]], prompt: Any, tokens: int, rounds: int, done: Any) -> Any:
    return {name: [10.0 for _ in range(rounds) if load()] for name, load in loaders.items()}


def _time(folder: Path, weights: int = 1) -> Any:
    with RunLock(folder) as lock:
        return Runner(folder).run(_stages(weights), lock, lambda event: None)["speed"]


@pytest.mark.parametrize(("free", "held"), [(8001, True), (8000, False)])
def test_models_are_held_where_they_fit_into_half_of_the_memory(
    tmp_path: Path, loaded: list[str], monkeypatch: pytest.MonkeyPatch, free: int, held: bool
) -> None:
    monkeypatch.setattr(speed, "free_memory", lambda: free)
    cleared: list[int] = []
    monkeypatch.setattr(speed, "pool", lambda: SimpleNamespace(clear=lambda: cleared.append(1)))
    assert _time(tmp_path)["held"] is held
    assert len(loaded) == (2 if held else 2 * ROUNDS)
    assert len(cleared) == (0 if held else 2 * ROUNDS)  # nobody else holds a model while its turn lasts


def test_the_stage_is_begun_anew_after_a_kill_and_kept_once_it_is_done(
    tmp_path: Path, loaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(speed, "speeds_in_turn", killed)
    with pytest.raises(KeyboardInterrupt):
        _time(tmp_path)
    monkeypatch.setattr(speed, "speeds_in_turn", _rounds)
    found = _time(tmp_path)
    assert found["speeds"] == {"teacher": [10.0] * 7, f"{ARM.name}-student": [10.0] * 7}
    monkeypatch.setattr(speed, "speeds_in_turn", killed)
    assert _time(tmp_path) == found
    with pytest.raises(KeyboardInterrupt):  # other weights are timed anew, and nothing is refused
        _time(tmp_path, weights=2)
