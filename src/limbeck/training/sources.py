"""Where batches come from. A step's batches are a function of its number alone, so resuming is exact."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from limbeck.data.packing import IGNORED, Batch, Rows, collate, epoch_order, row_order
from limbeck.errors import InputError


class World(Protocol):
    """The processes that train together, one rank each."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def sum(self, x: Tensor) -> Tensor:
        """The sum of ``x`` over all ranks, on each of them."""
        ...


class OneProcess:
    """The world of a training that has one process."""

    rank, size = 0, 1

    def sum(self, x: Tensor) -> Tensor:
        return x


ONE_PROCESS = OneProcess()


class BatchSource(Protocol):
    """Batches of a training, step by step, in any order."""

    def __len__(self) -> int:
        """Steps of the training."""
        ...

    def step(self, n: int, world: World) -> Sequence[Batch]:
        """This rank's micro-batches of step ``n`` (from 0): the same whenever they are asked for.

        All ranks together get the micro-batches that one process would, whatever their number; and all get equally
        many, so that they stay in step.
        """
        ...


class CorpusBatches:
    """Rows of a corpus in a seeded order, epoch after epoch, until a budget of labels is spent.

    Args:
        rows: the corpus, cut to rows.
        tokens: labels to learn from in all; the last step may go over by less than a step.
        micro_batch_size: rows of a forward pass.
        gradient_accumulation_steps: forward passes of a step.
        seed: of the order.

    Raises:
        InputError: no row has a label.
    """

    def __init__(
        self, rows: Rows, *, tokens: int, micro_batch_size: int, gradient_accumulation_steps: int, seed: int
    ) -> None:
        self.rows, self.seed = rows, seed
        self.micro_batch_size, self.gradient_accumulation_steps = micro_batch_size, gradient_accumulation_steps
        self._epoch, self._order = -1, np.empty(0, np.int64)
        self.steps = self._count_steps(tokens)

    def _count_steps(self, tokens: int) -> int:
        counts = [self.rows.count(r) for r in range(len(self.rows))]
        self.usable = [r for r, count in enumerate(counts) if count]  # the rest would cost and teach nothing
        per_row = [counts[r] for r in self.usable]
        total = sum(per_row)
        if not total:
            raise InputError("the corpus holds no token to learn", fix="Add documents")
        per_step = self.micro_batch_size * self.gradient_accumulation_steps
        whole_epochs = tokens // total
        # Whole epochs hold the same labels in any order; only the last, partial one is walked.
        order = islice(row_order(len(self.usable), self.seed), whole_epochs * len(self.usable), None)
        seen, rows = whole_epochs * total, whole_epochs * len(self.usable)
        for r in order:
            if seen >= tokens:
                break
            seen, rows = seen + per_row[r], rows + 1
        return max(-(-rows // per_step), 1)

    def __len__(self) -> int:
        return self.steps

    def rows_read(self) -> list[int]:
        """Numbers of the rows that the training reads, ascending, each once."""
        places = self.steps * self.micro_batch_size * self.gradient_accumulation_steps
        return sorted(set(self._rows_at(range(min(places, len(self.usable))))))

    def step(self, n: int, world: World) -> list[Batch]:
        """Micro-batches ``rank``, ``rank + size``, … of step ``n``; a rank that gets one fewer than others gets one
        more without labels.

        Raises:
            IndexError: there is no step ``n``.
        """
        if not 0 <= n < self.steps:
            raise IndexError(f"step {n} of {self.steps}")
        first = n * self.gradient_accumulation_steps
        own = range(first + world.rank, first + self.gradient_accumulation_steps, world.size)
        batches = [self._micro_batch(number) for number in own]
        if len(batches) < -(-self.gradient_accumulation_steps // world.size):
            batches.append(_without_labels(self._micro_batch(first)))
        return batches

    def _micro_batch(self, number: int) -> Batch:
        """A micro-batch by its number, counted from the first step on."""
        first = number * self.micro_batch_size
        return collate([self.rows[r] for r in self._rows_at(range(first, first + self.micro_batch_size))])

    def _rows_at(self, places: Iterable[int]) -> list[int]:
        """Which rows stand at some places of the endless order of epochs."""
        found = []
        for place in places:
            epoch, at = divmod(place, len(self.usable))
            if epoch != self._epoch:
                self._epoch, self._order = epoch, epoch_order(len(self.usable), self.seed, epoch)
            found.append(self.usable[self._order[at]])
        return found


def _without_labels(batch: Batch) -> Batch:
    return replace(
        batch,
        labels_BT=torch.full_like(batch.labels_BT, IGNORED),
        words_BT=torch.zeros_like(batch.words_BT),
    )
