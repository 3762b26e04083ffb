"""Which teacher made a step fail: asked only once a gradient or a loss is not finite."""

from __future__ import annotations

from collections.abc import Sequence

from limbeck.data.packing import Batch
from limbeck.errors import InputError
from limbeck.evaluation.diagnosis import fault_of
from limbeck.signals.live import LiveTeacher
from limbeck.training.loss_graph import LossGraph


def faulty_teacher(graph: LossGraph, batches: Sequence[Batch]) -> InputError | None:
    """The error of a live teacher whose logits are NaN or infinite somewhere in these batches; None: all are finite."""
    for name, source in graph.sources.items():
        fault = fault_of(source.lm, batches, name, source.precision) if isinstance(source, LiveTeacher) else None
        if fault is not None:
            return fault
    return None
