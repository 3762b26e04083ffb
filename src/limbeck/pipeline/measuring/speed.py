"""Timing all models of a run in turn, when all are trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from limbeck.evaluation.speed import speeds_in_turn
from limbeck.formats.sizes import folder_of
from limbeck.models.causal_lm import CausalLM
from limbeck.pipeline.measuring.evaluate import lease_trained
from limbeck.pipeline.shared.base import DATA, MACHINE, TEACHER, PipelineStage, lease_teacher, open_text, pool
from limbeck.pipeline.stages.teacher import teacher_spec
from limbeck.pipeline.stages.train import Arm
from limbeck.recipe import fingerprint
from limbeck.runtime.world import free_memory
from limbeck.workflow.stage import Context, Facts, Plain

ROUNDS = 7


@dataclass(frozen=True, kw_only=True)
class Speed(PipelineStage):
    """Tokens per second of the teacher and of what the arms of the first seed trained: others have the same shapes.

    Attributes:
        tokens: length of an answer.
        arms: of the first seed; ``members``: who was trained in each, by the arm's name.
        served: the teacher is only called, and not timed.
    """

    tokens: int
    arms: tuple[Arm, ...]
    members: Mapping[str, list[str]]
    served: bool = False
    recomputable = True

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return (MACHINE, DATA, TEACHER, f"measure-{TEACHER}", *(f"train-{arm.name}" for arm in self.arms))

    @property
    def name(self) -> str:
        return "speed"

    def is_undisturbed(self, up: Facts) -> bool:
        return True

    def key(self, up: Facts) -> dict[str, Plain]:
        return {
            "tokens": self.tokens,
            "rounds": ROUNDS,
            "prompt": up[f"measure-{TEACHER}"]["prompt"],
            "teacher": up[TEACHER]["fingerprint"],
            "trained": {arm.name: up[f"train-{arm.name}"]["weights"] for arm in self.arms},
        }

    def work(self, up: Facts, context: Context) -> dict[str, Plain]:
        """``{"speeds": {name: [tokens per second of each round]}, "shapes": {name: hash of its configuration}, "held":
        whether all were in memory at once}``; nothing where there is no prompt."""
        run, text, prompt = context.folder, open_text(context.folder), up[f"measure-{TEACHER}"]["prompt"]
        if not prompt:
            return {}
        models: dict[str, Callable[[], AbstractContextManager[CausalLM]]] = {}
        folders: dict[str, Path] = {}
        if not self.served:
            teacher = teacher_spec(up, run)
            models[TEACHER] = partial(lease_teacher, teacher, text)
            folders[TEACHER] = folder_of(teacher)
        for arm in self.arms:
            for member in self.members[arm.name]:
                name = f"{arm.name}-{member}"
                models[name] = partial(lease_trained, arm, member, run, text)
                folders[name] = run / arm.model(member)
        held = sum(map(_in_memory, folders.values())) < free_memory() / 2
        with context.task("speed", ROUNDS * len(models), "answers") as task, ExitStack() as stack:
            if held:
                loaded = {name: stack.enter_context(lease()) for name, lease in models.items()}
                ready: dict[str, Callable[[], CausalLM]] = {name: partial(loaded.__getitem__, name) for name in loaded}
            else:
                ready = {name: partial(_anew, lease) for name, lease in models.items()}
            speeds = speeds_in_turn(ready, prompt, self.tokens, ROUNDS, task.advance)
        rounded = {name: [round(speed, 2) for speed in found] for name, found in speeds.items()}
        return {"speeds": rounded, "shapes": {name: _shape(folder) for name, folder in folders.items()}, "held": held}


def _anew(lease: Callable[[], AbstractContextManager[CausalLM]]) -> CausalLM:
    """A model without a lease: its memory is freed after its turn."""
    with lease() as lm:
        pool().clear()
        return lm


def _shape(folder: Path) -> str:
    """Equal for models that do the same arithmetic: of one configuration, in one type."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    ignored = ("_name_or_path", "transformers_version", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache")
    return fingerprint({key: value for key, value in config.items() if key not in ignored})


def _in_memory(folder: Path) -> int:
    """Bytes at most: weights in bfloat16 may be held in float32."""
    return 2 * sum(file.stat().st_size for file in folder.glob("*.safetensors"))
