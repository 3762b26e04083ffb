"""Whole runs on a GPU, beside the same on the CPU; `make test-gpu`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")]


def run(raw: dict[str, Any], folder: Path, **environment: str) -> Path:
    recipe = folder.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(raw))
    done = subprocess.run(
        [sys.executable, "-m", "limbeck", "run", str(recipe), f"run={folder}"],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def nats(folder: Path, name: str) -> np.ndarray:
    with np.load(folder / "measured" / name / "documents.npz") as arrays:
        return np.asarray(arrays["nats"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_trains_what_the_cpu_trains(tmp_path: Path, raw_recipe: dict[str, Any], precision: str) -> None:
    raw_recipe["teacher"]["correct"] = {"tokens": 600, "micro_batch_size": 4, "precision": precision}
    raw_recipe.pop("student")
    vocabulary = {"min_count": 2}
    raw_recipe["students"] = {
        "shallow": {"from": "teacher", "layers": 1, "keep_ends": False, "vocabulary": vocabulary},
        "narrow": {"from": "teacher", "ffn": 64, "heads": 2, "hidden": 24, "vocabulary": vocabulary},
    }
    raw_recipe["techniques"] = ["alone", {"kind": "soft", "hidden": {}}, "co"]
    raw_recipe["training"]["precision"] = precision
    on_gpu = run(raw_recipe, tmp_path / "gpu")
    on_cpu = run(raw_recipe, tmp_path / "cpu", CUDA_VISIBLE_DEVICES="")
    assert "gpu" in json.loads((on_gpu / "run.json").read_text())[0]["machine"]
    assert "gpu" not in json.loads((on_cpu / "run.json").read_text())[0]["machine"]
    measured = sorted(path.name for path in (on_cpu / "measured").iterdir())
    assert len(measured) == 8
    for name in measured:
        np.testing.assert_allclose(nats(on_gpu, name), nats(on_cpu, name), rtol=2e-3 if precision == "fp32" else 2e-2)


def test_text_is_written_on_a_gpu(tmp_path: Path, raw_recipe: dict[str, Any]) -> None:
    raw_recipe["techniques"] = [
        {"kind": "hard", "generation": {"batch_size": 8}},
        {"kind": "soft", "name": "mixed", "generation": {"batch_size": 8}},
    ]
    report = (run(raw_recipe, tmp_path / "gpu") / "report.html").read_text()
    assert torch.cuda.get_device_name(0) in report
