"""Timing all models of a run in turn, when all are trained."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from limbeck.evaluation.speed import speeds_in_turn
from limbeck.models.language_model import LanguageModel
from limbeck.recipe import Recipe, fingerprint
from limbeck.run.arms import Arm
from limbeck.run.measure import Examiner
from limbeck.training.techniques import TEACHER

ROUNDS = 7

Timed = tuple[str, Arm | None, str]
"""A model that is timed: its name, the arm that trained it (None: the run's teacher), its name in that arm."""


def timed_models(recipe: Recipe, arms: list[Arm], learners: dict[str, list[str]]) -> list[Timed]:
    """The teacher, and what the arms of the first seed trained: other seeds have the same shapes."""
    first = [arm for arm in arms if arm.seed == recipe.seeds[0]]
    return [
        (TEACHER, None, TEACHER),
        *((f"{arm.name}-{member}", arm, member) for arm in first for member in learners[arm.name]),
    ]


def time_models(examiner: Examiner, models: list[Timed], trained: dict[str, Any]) -> dict[str, Any] | None:
    """Speeds by model, kept on disk; None where the recipe asks for none or there is no prompt.

    Args:
        examiner: of the run.
        models: from :func:`timed_models`.
        trained: facts of the arms, so that other weights are timed anew.

    Returns:
        ``{"speeds": {name: [tokens per second of each round]}, "shapes": {name: hash of its configuration},
        "held": whether all were in memory at once}``.
    """
    tokens, prompts = examiner.recipe.evaluation.speed_tokens, examiner.prompts()
    if not tokens or not prompts:
        return None
    inputs = {
        "tokens": tokens,
        "rounds": ROUNDS,
        "prompt": prompts[0][0],
        "models": [name for name, _, _ in models],
        "teacher": examiner.prepared.teacher_facts["fingerprint"],
        "trained": trained,
    }
    kept = examiner.folder.done("speed", inputs, derived=True)
    if kept is not None:
        return kept
    loaders: dict[str, Callable[[], LanguageModel]] = {
        name: partial(examiner.load, arm, member) for name, arm, member in models
    }
    shapes = {name: _shape(examiner.weights(arm, member)) for name, arm, member in models}
    held = sum(_in_memory(examiner.weights(arm, member)) for _, arm, member in models) < _free_memory() / 2
    if held:
        loaded = {name: load() for name, load in loaders.items()}
        loaders = {name: partial(loaded.__getitem__, name) for name in loaded}
    else:
        examiner.forget_teacher()
    with examiner.display.stage("speed", ROUNDS * len(models), "answers") as bar:
        speeds = speeds_in_turn(loaders, prompts[0][0], tokens, ROUNDS, lambda: bar.advance(1))
    rounded = {name: [round(speed, 2) for speed in found] for name, found in speeds.items()}
    return examiner.folder.finish("speed", {"speeds": rounded, "shapes": shapes, "held": held})


def _shape(folder: Path) -> str:
    """Equal for models that do the same arithmetic: of one configuration, in one type."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    ignored = ("_name_or_path", "transformers_version", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache")
    return fingerprint({key: value for key, value in config.items() if key not in ignored})


def _in_memory(folder: Path) -> int:
    """Bytes at most: weights in bfloat16 may be held in float32."""
    return 2 * sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _free_memory() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
