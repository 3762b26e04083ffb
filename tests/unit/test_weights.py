"""Sizes of weights on disk, of whatever kind the teacher is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from limbeck.formats import sizes as weights
from limbeck.recipe import PathModel, Recipe


def _model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    save_file({"a": torch.zeros(4, 8, dtype=torch.bfloat16)}, folder / "model-1.safetensors")
    save_file({"b": torch.zeros(3, dtype=torch.float32)}, folder / "model-2.safetensors")
    return folder


def _recipe(tmp_path: Path, teacher: dict[str, str]) -> Recipe:
    return Recipe.model_validate(
        {
            "run": str(tmp_path / "run"),
            "data": {"corpus": [{"text": str(tmp_path / "a.txt")}]},
            "teacher": teacher,
            "student": {"config": {"model_type": "llama"}},
            "techniques": [{"kind": "alone"}],
            "training": {"tokens": 1000},
        }
    )


def test_the_size_is_of_all_files_and_the_type_of_most_bytes(tmp_path: Path) -> None:
    folder = _model(tmp_path / "m")
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert weights.stored(folder) == weights.Stored(size, "BF16")


def test_a_model_of_the_hub_is_measured_in_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _model(tmp_path / "cache")
    asked = []

    def snapshot_download(name: str, *, revision: str | None, local_files_only: bool) -> str:
        asked.append((name, revision, local_files_only))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    recipe = _recipe(tmp_path, {"path": "owner/name", "revision": "v2"})
    assert isinstance(recipe.teacher, PathModel)
    assert weights.stored_teacher(recipe.teacher, recipe.teacher) == weights.stored(folder)
    assert asked == [("owner/name", "v2", True)]


def test_a_gguf_file_is_measured_itself_and_not_what_was_read_from_it(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + bytes(96))
    read = _model(tmp_path / "read")
    (read / "gguf.json").write_text(json.dumps({}))
    recipe = _recipe(tmp_path, {"path": str(file)})
    assert weights.stored_teacher(recipe.teacher, PathModel(path=str(read))) == weights.Stored(100, "GGUF")
