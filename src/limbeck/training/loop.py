"""The loop: the same for every technique."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch

from limbeck.errors import DivergedError
from limbeck.recipe import Training
from limbeck.training.batches import CorpusBatches
from limbeck.training.checkpoint import Checkpoints
from limbeck.training.cohort import Cohort
from limbeck.training.meter import Meter
from limbeck.training.optim import LearnerOptimiser

OnStep = Callable[[int, int, int, float], None]  # step, of how many, tokens so far, loss


def train(
    cohort: Cohort,
    batches: CorpusBatches,
    section: Training,
    folder: Path,
    *,
    seed: int,
    key: str = "training",
    lrs: dict[str, float | None] | None = None,
    on_step: OnStep = lambda step, steps, tokens, loss: None,
) -> dict[str, float]:
    """Train a cohort's learners; goes on from the newest checkpoint in ``folder`` if there is one.

    Args:
        cohort: who learns what.
        batches: from what, in steps of microbatches.
        section: the recipe's ``training``.
        folder: for metrics, TensorBoard and checkpoints.
        seed: of what is random inside a step (dropout); with the step's number it makes the step's
            own seed, so that a resumed run draws the same.
        key: where that section stands in the recipe, for errors.
        lrs: peak learning rates of learners that do not use the section's.
        on_step: told of every finished step.

    Returns:
        ``{"steps": ..., "tokens": ..., "seconds": ...}`` of the whole training.

    Raises:
        DivergedError: a gradient is not finite.
    """
    optimisers = {
        name: LearnerOptimiser(lm, section, len(batches), (lrs or {}).get(name)) for name, lm in cohort.learners.items()
    }
    checkpoints = Checkpoints(folder / "checkpoints", cohort.learners, optimisers)
    state = checkpoints.restore() or {"step": 0, "tokens": 0, "metrics_bytes": 0, "seconds": 0.0}
    meter = Meter(folder, (state["metrics_bytes"], state["step"]))
    meter.clock -= state["seconds"]
    tokens = state["tokens"]
    device = next(iter(cohort.learners.values())).device
    try:
        for step, microbatches in enumerate(batches.start_at(state["step"]), state["step"] + 1):
            torch.manual_seed(seed * 1_000_003 + step)
            count = sum(batch.count() for batch in microbatches)  # the whole step, before any backward
            denominators = {lesson.name: count for lesson in cohort.lessons}
            progress = (step - 1) / max(len(batches) - 1, 1)
            for batch in microbatches:
                meter.add(cohort.forward_backward(batch.to(device), denominators, progress))
            lr = {f"lr/{name}": optimiser.lr for name, optimiser in optimisers.items()}
            norms = {f"grad_norm/{name}": optimiser.step() for name, optimiser in optimisers.items()}
            for name, norm in norms.items():
                if not math.isfinite(norm):
                    checkpoints.clear()  # made with the settings that diverged: nothing to go on from
                    raise DivergedError(
                        f"step {step}: the gradient of {name.split('/')[1]} is {norm}",
                        key=f"{key}.lr",
                        fix="Lower it, or clip harder",
                    )
            tokens += count
            meter.count(count)
            losses = meter.means()
            on_step(step, len(batches), tokens, sum(losses.values()) / len(losses))
            keep = step % section.checkpoint_every_steps == 0 and step < len(batches)
            if keep or step % section.log_every_steps == 0 or step == len(batches):
                meter.line(step, tokens, {**lr, **norms})
            if keep:
                checkpoints.save(
                    step, {"tokens": tokens, "metrics_bytes": meter.position(), "seconds": meter.seconds()}
                )
        return {"steps": len(batches), "tokens": tokens, "seconds": round(meter.seconds(), 2)}
    finally:
        meter.close()
