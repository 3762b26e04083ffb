"""Checkpoints: whole or absent, verified when read, and enough to go on to the same bytes.

Only safetensors and JSON: nothing in a checkpoint can run. A checkpoint holds the weights that
change, the optimiser's state, and the step; data order and dropout follow from the step.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from limbeck.files import whole_folder
from limbeck.models.causal_lm import CausalLM
from limbeck.training.learner import Learner


class Checkpoints:
    """The checkpoints of one training, in ``folder``; the newest two are kept."""

    def __init__(self, folder: Path, learners: Mapping[str, Learner]) -> None:
        self.folder, self.learners = folder, learners

    def save(self, step: int, extra: dict[str, Any]) -> None:
        """Write the state after ``step`` steps; ``extra`` is given back by ``restore``."""
        with whole_folder(self.folder / f"step-{step:08d}") as scratch:
            for name, learner in self.learners.items():
                save_file(_trainable(learner.lm), scratch / f"{name}.weights.safetensors")
                tensors, rest = _flatten(learner.adamw.state_dict())
                save_file(tensors, scratch / f"{name}.optimiser.safetensors")
                rest["schedule"] = _plain(learner.schedule.state_dict())
                (scratch / f"{name}.optimiser.json").write_text(json.dumps(rest))
            sums = {path.name: _sha256(path) for path in sorted(scratch.iterdir())}
            (scratch / "state.json").write_text(json.dumps({"step": step, "sha256": sums, **extra}))
        for old in self._found()[:-2]:
            shutil.rmtree(old)

    def restore(self) -> dict[str, Any] | None:
        """Load the newest whole checkpoint into the learners. Returns its step and ``extra``; None if there is none."""
        for folder in reversed(self._found()):
            state = _verified(folder)
            if state is None:
                continue  # torn by a full disk or a hand: the one before it is as good, only older
            for name, learner in self.learners.items():
                weights = load_file(folder / f"{name}.weights.safetensors")
                own = _trainable(learner.lm)
                for key, tensor in weights.items():
                    own[key].copy_(tensor)
                rest = json.loads((folder / f"{name}.optimiser.json").read_text())
                tensors = load_file(folder / f"{name}.optimiser.safetensors")
                learner.schedule.load_state_dict(rest.pop("schedule"))
                learner.adamw.load_state_dict(_unflatten(tensors, rest))
            return state
        return None

    def newest_before(self, step: int) -> Path | None:
        """The newest whole checkpoint of a step before ``step``."""
        good = [folder for folder in self._found() if _step_of(folder) < step and _verified(folder) is not None]
        return good[-1] if good else None

    def any(self) -> bool:
        return bool(self._found())

    def _found(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def tokens_of_newest(folder: Path) -> int:
    """How many tokens were learned up to the newest checkpoint in a folder."""
    for checkpoint in sorted(folder.glob("step-*"), reverse=True):
        try:
            return int(json.loads((checkpoint / "state.json").read_text())["tokens"])
        except (OSError, ValueError, KeyError):
            continue
    return 0


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _trainable(lm: CausalLM) -> dict[str, torch.Tensor]:
    return {name: p.data for name, p in lm.model.named_parameters() if p.requires_grad}


def _verified(folder: Path) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = json.loads((folder / "state.json").read_text())
        whole = all(_sha256(folder / name) == digest for name, digest in state["sha256"].items())
    except (OSError, ValueError, KeyError, SafetensorError):
        return None
    return state if whole else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flatten(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimiser's state as named tensors, and what is left of it as plain data."""
    tensors = {
        f"{index}.{name}": value.contiguous()
        for index, slots in state["state"].items()
        for name, value in slots.items()
        if isinstance(value, torch.Tensor)
    }
    return tensors, {"param_groups": _plain(state["param_groups"])}


def _unflatten(tensors: dict[str, torch.Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    return {"state": state, **rest}


def _plain(value: Any) -> Any:
    """JSON-able copy: schedules carry lambdas (None in their state) and tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        return value.item()
    return value
