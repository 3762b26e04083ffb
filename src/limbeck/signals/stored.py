"""A teacher whose signals are on disk: nothing of the model itself is read.

Shape letters: B rows of a batch, T tokens of a row, N positions that are answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from limbeck.data.packing import IGNORED, Batch
from limbeck.signals.scheme import Scheme, to_sparse
from limbeck.signals.source import Access, HiddenShape, Signal
from limbeck.signals.store import Store


class StoredTeacher:
    """Answers every batch out of a store, at all positions that have a label.

    Args:
        store: opened with the identity that is asked for.

    Attributes:
        positions: that were read so far; ``store.bytes_read`` says how many bytes.
    """

    access = Access.TOP_LOGPROBS
    hidden_shape: HiddenShape | None = None

    def __init__(self, store: Store) -> None:
        self.store = store
        self.scheme = Scheme(**store.identity.scheme)
        self.positions = 0

    @property
    def fingerprint(self) -> str:
        return self.store.identity.fingerprint

    def count(self, batch: Batch) -> int:
        return batch.count()

    def signal(self, batch: Batch, layers: Sequence[int] = ()) -> Signal:
        """What the store holds of a batch's labels.

        Returns:
            A ``Sparse`` target of N = :meth:`count` positions, on the device of the batch.

        Raises:
            MissingSignalError: a position was not captured. It names document and offset.
            ValueError: ``layers`` are asked for.
        """
        if layers:
            raise ValueError("stored signals hold no hidden states")
        learned_BT = (batch.labels_BT != IGNORED).cpu()
        keys_N = batch.keys_BT.cpu()[learned_BT].numpy().view(np.uint64)
        offsets_N = batch.offsets_BT.cpu()[learned_BT].numpy()
        contexts_N = None
        if self.store.identity.context == "row":
            contexts_N = offsets_N - batch.positions_BT.cpu()[learned_BT].numpy()
        decoded = self.store.read(keys_N, offsets_N, contexts_N)
        self.positions += len(decoded)
        sparse = to_sparse(decoded, self.scheme)
        sparse = replace(sparse, vocab_size=self.store.identity.vocab_size)
        return Signal(sparse.to(batch.labels_BT.device))
