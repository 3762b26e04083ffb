"""The loop: the same for every technique."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from limbeck.data.packing import Batch
from limbeck.errors import DivergedError
from limbeck.recipe import Training
from limbeck.training.checkpoint import Checkpoints
from limbeck.training.diagnosis import faulty_teacher
from limbeck.training.learner import Learner
from limbeck.training.loss_graph import LossGraph, Tally
from limbeck.training.metrics import Meter
from limbeck.training.sources import ONE_PROCESS, BatchSource, World

OnStep = Callable[[int, int, int, Mapping[str, float]], None]
"""Step, of how many, tokens so far, and the losses of the current window (:meth:`Meter.means`)."""

MOST_SKIPPED_IN_A_ROW = 5
"""Updates. One infinite gradient is an accident of a batch; so many are a training that has diverged."""

PROBES = 3
"""Batches on which a trained model has to fail to be called broken: one could be at fault itself."""


class Peak(NamedTuple):
    """A learner's peak learning rate, and where it stands in the recipe, for errors.

    Attributes:
        key: relative to the section of the training if it begins with a dot.
    """

    lr: float
    key: str = ".lr"


@dataclass(frozen=True)
class TrainingJob:
    """How a loss graph is trained.

    Attributes:
        section: the recipe's numbers.
        folder: for metrics, TensorBoard and checkpoints.
        seed: of what is random inside a step (dropout); with the step's number it makes the step's
            own seed, so that a resumed run draws the same.
        peaks: peak learning rates of learners that do not use the section's.
    """

    section: Training
    folder: Path
    seed: int
    peaks: Mapping[str, Peak] = field(default_factory=dict)

    def peak(self, learner: str) -> Peak:
        return self.peaks.get(learner, Peak(self.section.lr))

    def seed_of(self, step: int) -> int:
        """Of step number ``step``, from 1; of 0: of what follows the last one."""
        return self.seed * 1_000_003 + step


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


class StepSums(NamedTuple):
    """What the batches of one step come to, on all ranks together.

    Attributes:
        labels: tokens that were learned from.
        tallies: sums by name of the loss term.
        objectives: by learner, what it minimises, a float64 scalar.
    """

    labels: int
    tallies: dict[str, Tally]
    objectives: dict[str, torch.Tensor]


def train(
    graph: LossGraph,
    source: BatchSource,
    job: TrainingJob,
    *,
    world: World = ONE_PROCESS,
    on_step: OnStep = lambda step, steps, tokens, losses: None,
) -> dict[str, Any]:
    """Train a graph's models; goes on from the newest checkpoint in the job's folder if there is one.

    An update whose gradient or loss is not finite is skipped and counted.

    Args:
        graph: the models and their loss terms.
        source: from what, in steps of micro-batches.
        job: how fast, where to, and with which seed.
        world: the processes that train together.
        on_step: told of every finished step.

    Returns:
        ``{"steps": ..., "tokens": ..., "seconds": ...}`` of the whole training, and ``"skipped"``, the number of
        skipped updates by learner, if there were any.

    Raises:
        DivergedError: a learner's gradients stay infinite or NaN. Checkpoints are kept. Its key is that of the
            learning rate, relative to the section.
        InputError: a teacher's logits are not finite; names the teacher.
    """
    section, steps = job.section, len(source)
    learners = {name: Learner(lm, section, steps, job.peak(name).lr) for name, lm in graph.trainable.items()}
    checkpoints = Checkpoints(job.folder / "checkpoints", learners)
    state = checkpoints.restore() or {"step": 0, "tokens": 0, "metrics_bytes": 0, "seconds": 0.0}
    tokens, skips = state["tokens"], Skips(state.get("skipped", {}))
    with _meter(job.folder, state) as meter:
        for n in range(state["step"], steps):
            step = n + 1
            torch.manual_seed(job.seed_of(step))
            batches = source.step(n, world)
            sums = _forward_backward(graph, batches, world, n / max(steps - 1, 1))
            lrs = {f"lr/{name}": learner.lr for name, learner in learners.items()}
            norms = _update(learners, sums)
            skips.count([name for name, norm in norms.items() if not math.isfinite(norm)])
            if skips.in_a_row:
                _refuse_teachers_of_nan(graph, batches)
                _refuse_divergence(job, skips, step, checkpoints)
            tokens += sums.labels
            _add(meter, sums, skips)
            on_step(step, steps, tokens, meter.means())
            keep = step % section.checkpoint_every_steps == 0 and step < steps
            if keep or step % section.log_every_steps == 0 or step == steps:
                gradients = {f"grad_norm/{name}": norm for name, norm in norms.items()}
                skipped = {f"skipped/{name}": float(count) for name, count in skips.total.items()}
                meter.line(step, tokens, {**lrs, **gradients, **skipped})
            if keep and not skips.in_a_row:
                extra = {"tokens": tokens, "metrics_bytes": meter.position(), "seconds": meter.seconds()}
                checkpoints.save(step, {**extra, "skipped": skips.total})
        torch.manual_seed(job.seed_of(0))
        for name in _broken(graph, learners, source, world):
            raise _diverged(name, job, skips, steps, checkpoints)
        result = {"steps": steps, "tokens": tokens, "seconds": round(meter.seconds(), 2)}
        return {**result, "skipped": skips.total} if skips.total else result


@contextmanager
def _meter(folder: Path, state: Mapping[str, Any]) -> Iterator[Meter]:
    """Metrics that go on where a checkpoint left them."""
    meter = Meter(folder, (state["metrics_bytes"], state["step"]))
    meter.clock -= state["seconds"]
    try:
        yield meter
    finally:
        meter.close()


def _add(meter: Meter, sums: StepSums, skips: Skips) -> None:
    """Count a step, without what a skipped learner would have learned."""
    objectives = {
        name: Tally(objective * sums.labels, torch.tensor(sums.labels)) for name, objective in sums.objectives.items()
    }
    tallies = {**sums.tallies, **objectives}
    meter.add({name: tally for name, tally in tallies.items() if name.split("<")[0] not in skips.in_a_row})
    meter.count(sums.labels)


def _forward_backward(graph: LossGraph, batches: Sequence[Batch], world: World, progress: float) -> StepSums:
    """Add one step's gradients to every trainable model."""
    # Counted over the whole step, on all ranks, before any backward pass: how it is split changes nothing.
    labels = torch.tensor([sum(batch.count() for batch in batches)])
    counts = world.sum(torch.cat([labels, graph.count_labels(batches)]).to(graph.device))
    denominators = graph.denominators(counts[1:])
    tallies: dict[str, Tally] = {}
    for batch in batches:
        for name, tally in graph.forward_backward(batch.to(graph.device), denominators, progress).items():
            tallies[name] = tallies[name] + tally if name in tallies else tally
    tallies = {name: tally.over(world.sum) for name, tally in tallies.items()}
    return StepSums(int(counts[0]), tallies, graph.objectives(tallies, denominators, progress))


def _update(learners: Mapping[str, Learner], sums: StepSums, *, update: bool = True) -> dict[str, float]:
    """Update every learner whose gradient and loss are finite; with ``update=False``, none.

    Returns:
        The norm of each learner's gradient, NaN where only its loss is not finite.
    """
    norms = {}
    for name, learner in learners.items():
        finite = bool(torch.isfinite(sums.objectives[name]))
        norm = learner.step(update=update and finite)
        norms[name] = norm if finite else math.nan
    return norms


def _broken(graph: LossGraph, learners: Mapping[str, Learner], source: BatchSource, world: World) -> list[str]:
    """Learners whose gradients are not finite after the last step, which no further step would find.

    One batch is enough to see that they are; the first ones of the training, so that a resumed one asks the same.
    """
    broken = list(learners)
    for n in range(min(PROBES, len(source))):
        sums = _forward_backward(graph, source.step(n, world)[:1], world, 1.0)
        norms = _update(learners, sums, update=False)
        broken = [name for name in broken if not math.isfinite(norms[name])]
        if not broken:
            break
    return broken


def _refuse_teachers_of_nan(graph: LossGraph, batches: Sequence[Batch]) -> None:
    """Raise where a skipped update is a teacher's fault."""
    fault = faulty_teacher(graph, [batch.to(graph.device) for batch in batches])
    if fault is not None:
        raise fault


def _refuse_divergence(job: TrainingJob, skips: Skips, step: int, checkpoints: Checkpoints) -> None:
    """Raise where a skipped update is one of too many in a row."""
    for name, n in skips.in_a_row.items():
        if n >= MOST_SKIPPED_IN_A_ROW:
            raise _diverged(name, job, skips, step, checkpoints)


def _diverged(name: str, job: TrainingJob, skips: Skips, step: int, checkpoints: Checkpoints) -> DivergedError:
    n = skips.in_a_row.get(name, 0)
    # The weights of a checkpoint are known to be good once a later step has found a finite gradient with them.
    good = checkpoints.newest_before(step - n)
    when = "after" if n == 0 else f"in the {n} step{'s' if n > 1 else ''} to"
    kept = f"the last good checkpoint is {good}" if good is not None else "there is no good checkpoint"
    return DivergedError(
        f"the gradient of {name} was not finite {when} step {step}; {kept}",
        key=job.peak(name).key,
        fix="Lower it, or clip harder" + (", in another `run:` folder" if checkpoints.any() else ""),
    )
