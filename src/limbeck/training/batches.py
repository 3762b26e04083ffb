"""Where batches come from: a step's rows are a function of the step alone, so resuming is exact."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from limbeck.data.packing import Batch, Rows, collate, row_order
from limbeck.errors import InputError


class CorpusBatches:
    """Rows of a corpus in a seeded order, epoch after epoch, until a budget of labels is spent.

    Args:
        rows: the corpus, cut to rows.
        tokens: labels to learn from in all; the last step may go over by less than a step.
        batch_rows: rows of a forward pass.
        accumulation: forward passes of a step.
        seed: of the order.
    """

    def __init__(self, rows: Rows, *, tokens: int, batch_rows: int, accumulation: int, seed: int) -> None:
        self.rows, self.batch_rows, self.accumulation, self.seed = rows, batch_rows, accumulation, seed
        self.steps = self._count_steps(tokens)

    def _count_steps(self, tokens: int) -> int:
        counts = [self.rows.count(r) for r in range(len(self.rows))]
        self.usable = [r for r, count in enumerate(counts) if count]  # the rest would cost and teach nothing
        per_row = [counts[r] for r in self.usable]
        total = sum(per_row)
        if not total:
            raise InputError("the corpus holds no token to learn", key="data.corpus", fix="Add documents")
        per_step = self.batch_rows * self.accumulation
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

    def start_at(self, step: int) -> Iterator[list[Batch]]:
        """The steps' microbatches, from step number ``step`` (0 is the first)."""
        per_step = self.batch_rows * self.accumulation
        order = islice(row_order(len(self.usable), self.seed), step * per_step, None)
        for _ in range(step, self.steps):
            chosen = [self.rows[self.usable[i]] for i in islice(order, per_step)]
            yield [collate(chosen[i : i + self.batch_rows]) for i in range(0, per_step, self.batch_rows)]
