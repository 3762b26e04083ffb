"""What is decided of the machine once a run, and kept: threads, and the precision of matrix products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from limbeck.errors import LimbeckError
from limbeck.models.skeleton import small_copy
from limbeck.pipeline.shared.base import MACHINE, located
from limbeck.recipe import ConfigModel, PackageModel, PathModel
from limbeck.runtime.threads import choose_threads, has_fast_bf16, usable_cores
from limbeck.workflow.stage import Context, Facts, Plain, Stage

MOST_TOKENS = 1024
"""Of a step that is timed."""


Shape = PathModel | PackageModel | ConfigModel


@dataclass(frozen=True, kw_only=True)
class Machine(Stage):
    """Decides what the recipe leaves open (``auto``). A run keeps what was decided, so that resuming is exact.

    Arms run side by side, with one thread each where there are as many as cores. A teacher that is trained or corrected
    is waited for by most of them, so that it may have all cores.

    Attributes:
        threads: the recipe's; None: to be measured.
        student: what is trained, or what it is cut from.
        teacher: what is trained before it teaches; None: nothing.
        vocabulary: tokens of a tokenizer that is still to be trained; None: the model's own.
        rows, seq_len: of a forward pass.
        arms: how many can run at a time.
    """

    threads: int | None
    student: Shape
    teacher: Shape | None
    vocabulary: int | None
    rows: int
    seq_len: int
    arms: int

    @property
    def name(self) -> str:
        return MACHINE

    def key(self, up: Facts) -> dict[str, Plain]:
        return {}

    def run(self, up: Facts, context: Context) -> dict[str, Plain]:
        found: dict[str, Plain] = {"precision": "bf16" if has_fast_bf16() else "fp32"}
        cores = usable_cores()
        if self.threads is not None or torch.accelerator.is_available():
            threads = self.threads or cores
            return {**found, "threads": threads, "teacher_threads": threads}
        with context.task("choose threads") as task:
            timed = {
                "threads": self._threads(self.student) if self.arms < cores else {"threads": 1},
                "teacher_threads": self._threads(self.teacher) if self.teacher is not None else {"threads": 1},
            }
            task.summary = f"{timed['threads']['threads']} of {cores}"
            if self.teacher is not None:
                task.summary += f", the teacher's training {timed['teacher_threads']['threads']}"
        return {**found, **{name: each["threads"] for name, each in timed.items()}, "timed": timed}

    def _threads(self, shape: Shape) -> dict[str, Plain]:
        return choose_threads(self._step(shape))

    def _step(self, spec: Shape) -> Callable[[], Any]:
        """A forward and backward pass through a model of this shape, or through two of its layers. Weights are random:
        none are read."""
        if isinstance(spec, ConfigModel) and self.vocabulary is not None:
            spec = ConfigModel(config={"vocab_size": self.vocabulary, **spec.config})
        try:
            model = small_copy(spec if isinstance(spec, ConfigModel) else located(spec)[0])
        except LimbeckError:  # it is loaded later, and then says what is wrong with it
            layers = torch.nn.Embedding(512, 512), torch.nn.Linear(512, 2048), torch.nn.Linear(2048, 512)
            model = torch.nn.Sequential(*layers)
        rows = max(min(self.rows, MOST_TOKENS // self.seq_len), 1)
        ids_BT = torch.arange(rows * self.seq_len).remainder(256).view(rows, self.seq_len)

        def step() -> None:
            out = model(ids_BT)
            (out if isinstance(out, torch.Tensor) else out.logits).float().square().mean().backward()
            model.zero_grad()

        return step
