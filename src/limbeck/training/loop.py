"""The loop: the same for every technique."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from limbeck.data.packing import Batch
from limbeck.errors import DivergedError
from limbeck.recipe import Training
from limbeck.training.batches import CorpusBatches
from limbeck.training.checkpoint import Checkpoints
from limbeck.training.cohort import Cohort, Tally
from limbeck.training.diagnosis import faulty_teacher
from limbeck.training.meter import Meter
from limbeck.training.optim import LearnerOptimiser

OnStep = Callable[[int, int, int, Mapping[str, float]], None]
"""Step, of how many, tokens so far, and the losses of the current window (:meth:`Meter.means`)."""

MOST_SKIPPED_IN_A_ROW = 5
"""Updates. One infinite gradient is an accident of a batch; so many are a training that has diverged."""

PROBES = 3
"""Batches on which a trained model has to fail to be called broken: one could be at fault itself."""


class Peak(NamedTuple):
    """A learner's peak learning rate, and where it stands in the recipe."""

    lr: float
    key: str


class Skips:
    """Updates that were left out because a gradient or loss was not finite, by learner.

    Args:
        total: how many of each learner, from a checkpoint. None is saved while a learner's last update was
            skipped, so that no learner starts within a series.
    """

    def __init__(self, total: Mapping[str, int]) -> None:
        self.total = dict(total)
        self.in_a_row: dict[str, int] = {}

    def count(self, learners: list[str]) -> None:
        """Note whose update this step skipped; it ends the series of all others."""
        self.in_a_row = {name: self.in_a_row.get(name, 0) + 1 for name in learners}
        for name in learners:
            self.total[name] = self.total.get(name, 0) + 1


def train(
    cohort: Cohort,
    batches: CorpusBatches,
    section: Training,
    folder: Path,
    *,
    seed: int,
    key: str = "training",
    lrs: Mapping[str, Peak] | None = None,
    on_step: OnStep = lambda step, steps, tokens, losses: None,
) -> dict[str, Any]:
    """Train a cohort's learners; goes on from the newest checkpoint in ``folder`` if there is one.

    An update whose gradient or loss is not finite is skipped and counted.

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
        ``{"steps": ..., "tokens": ..., "seconds": ...}`` of the whole training, and ``"skipped"``, the number of
        skipped updates by learner, if there were any.

    Raises:
        DivergedError: a learner's gradients stay infinite or NaN. Checkpoints are kept.
        InputError: a teacher's logits are not finite.
    """
    lrs = {name: (lrs or {}).get(name, Peak(section.lr, f"{key}.lr")) for name in cohort.learners}
    optimisers = {
        name: LearnerOptimiser(lm, section, len(batches), lrs[name].lr) for name, lm in cohort.learners.items()
    }
    checkpoints = Checkpoints(folder / "checkpoints", cohort.learners, optimisers)
    state = checkpoints.restore() or {"step": 0, "tokens": 0, "metrics_bytes": 0, "seconds": 0.0}
    meter = Meter(folder, (state["metrics_bytes"], state["step"]))
    meter.clock -= state["seconds"]
    tokens, skips = state["tokens"], Skips(state.get("skipped", {}))
    device = next(iter(cohort.learners.values())).device
    try:
        for step, microbatches in enumerate(batches.start_at(state["step"]), state["step"] + 1):
            torch.manual_seed(seed * 1_000_003 + step)
            moved = [batch.to(device) for batch in microbatches]
            count = sum(batch.count() for batch in microbatches)  # the whole step, before any backward
            lr = {f"lr/{name}": optimiser.lr for name, optimiser in optimisers.items()}
            tallies, norms = _step(cohort, optimisers, moved, count, (step - 1) / max(len(batches) - 1, 1))
            skips.count([name for name, norm in norms.items() if not math.isfinite(norm)])
            if skips.in_a_row:
                _refuse_to_go_on(cohort, moved, skips, step, checkpoints, lrs)
            meter.add({name: tally for name, tally in tallies.items() if name.split("<")[0] not in skips.in_a_row})
            tokens += count
            meter.count(count)
            on_step(step, len(batches), tokens, meter.means())
            keep = step % section.checkpoint_every_steps == 0 and step < len(batches)
            if keep or step % section.log_every_steps == 0 or step == len(batches):
                gradients = {f"grad_norm/{name}": norm for name, norm in norms.items()}
                skipped = {f"skipped/{name}": float(n) for name, n in skips.total.items()}
                meter.line(step, tokens, {**lr, **gradients, **skipped})
            if keep and not skips.in_a_row:
                extra = {"tokens": tokens, "metrics_bytes": meter.position(), "seconds": meter.seconds()}
                checkpoints.save(step, {**extra, "skipped": skips.total})
        torch.manual_seed(seed * 1_000_003)
        for name in _broken(cohort, optimisers, batches, device):
            raise _diverged(name, skips, len(batches), checkpoints, lrs)
        result = {"steps": len(batches), "tokens": tokens, "seconds": round(meter.seconds(), 2)}
        return {**result, "skipped": skips.total} if skips.total else result
    finally:
        meter.close()


def _step(
    cohort: Cohort,
    optimisers: Mapping[str, LearnerOptimiser],
    microbatches: list[Batch],
    count: int,
    progress: float,
    *,
    update: bool = True,
) -> tuple[dict[str, Tally], dict[str, float]]:
    """One update of every learner whose gradient and loss are finite; without ``update``, only what it would be of.

    Returns:
        Sums by lesson, and by learner of what it minimises; the norm of each learner's gradient, NaN where only its
        loss is not finite.
    """
    denominators = {lesson.name: count for lesson in cohort.lessons}
    tallies: dict[str, Tally] = {}
    for batch in microbatches:
        for name, tally in cohort.forward_backward(batch, denominators, progress).items():
            tallies[name] = tallies[name] + tally if name in tallies else tally
    norms = {}
    for name, objective in cohort.objectives(tallies, denominators, progress).items():
        finite = bool(torch.isfinite(objective))
        norm = optimisers[name].step(update=update and finite)
        norms[name] = norm if finite else math.nan
        tallies[name] = Tally(objective * count, torch.tensor(count))
    return tallies, norms


def _broken(
    cohort: Cohort, optimisers: Mapping[str, LearnerOptimiser], batches: CorpusBatches, device: torch.device
) -> list[str]:
    """Learners whose gradients are not finite after the last step, which no further step would find.

    One batch is enough to see that they are; the first ones of the training, so that a resumed one asks the same.
    """
    broken = list(optimisers)
    for microbatches in islice(batches.start_at(0), PROBES):
        _, norms = _step(cohort, optimisers, [microbatches[0].to(device)], microbatches[0].count(), 1.0, update=False)
        broken = [name for name in broken if not math.isfinite(norms[name])]
        if not broken:
            break
    return broken


def _refuse_to_go_on(
    cohort: Cohort,
    microbatches: list[Batch],
    skips: Skips,
    step: int,
    checkpoints: Checkpoints,
    lrs: Mapping[str, Peak],
) -> None:
    """Raise where a skipped update is a teacher's fault, or one of too many in a row."""
    fault = faulty_teacher(cohort, microbatches)
    if fault is not None:
        raise fault
    for name, n in skips.in_a_row.items():
        if n >= MOST_SKIPPED_IN_A_ROW:
            raise _diverged(name, skips, step, checkpoints, lrs)


def _diverged(name: str, skips: Skips, step: int, checkpoints: Checkpoints, lrs: Mapping[str, Peak]) -> DivergedError:
    n = skips.in_a_row.get(name, 0)
    # The weights of a checkpoint are known to be good once a later step has found a finite gradient with them.
    good = checkpoints.newest_before(step - n)
    when = "after" if n == 0 else f"in the {n} step{'s' if n > 1 else ''} to"
    kept = f"the last good checkpoint is {good}" if good is not None else "there is no good checkpoint"
    return DivergedError(
        f"the gradient of {name} was not finite {when} step {step}; {kept}",
        key=lrs[name].key,
        fix="Lower it, or clip harder" + (", in another `run:` folder" if checkpoints.any() else ""),
    )
