"""From a teacher's weights to signals on disk: hidden states, logits a chunk at a time, a few entries a position.

Shape letters: B rows of a batch, T tokens of a row, N positions with a label, n positions of a chunk, E width of the
teacher, V vocabulary, R entries.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from limbeck.data.packing import IGNORED, collate
from limbeck.errors import InputError
from limbeck.models.causal_lm import CausalLM
from limbeck.objectives.dense import logits_of
from limbeck.signals.codec import Encoded, encode
from limbeck.signals.sampling import LogitsError, draw, uniforms
from limbeck.signals.scheme import Scheme
from limbeck.signals.spans import Reading, batches
from limbeck.signals.store import SpanSignal, StoreWriter

BATCH_TOKENS = 4096
"""Of a forward pass, with padding."""

FLUSH_SECONDS = 120.0
"""A shard is ended after so long, so that a slow teacher that is killed does not lose hours."""


@dataclass
class Captured:
    """What was captured so far.

    Attributes:
        positions: with a label.
        n_bytes: of the encoded signals.
    """

    positions: int = 0
    n_bytes: int = 0

    def count(self, signal: SpanSignal) -> None:
        encoded = signal.encoded
        self.positions += int(np.count_nonzero(encoded.counts))
        self.n_bytes += _bytes_of(encoded)

    @property
    def bytes_a_token(self) -> float:
        return self.n_bytes / max(self.positions, 1)


def capture(
    lm: CausalLM,
    found: Iterable[Reading],
    writer: StoreWriter,
    scheme: Scheme,
    *,
    precision: str = "fp32",
    progress: Callable[[Captured], None] = lambda captured: None,
) -> Captured:
    """Have a teacher read, and write what it says of every label.

    What is written depends on the documents and the scheme alone, up to rounding: the random number of a position is a
    function of its document and offset.

    Args:
        lm: the teacher, frozen, in evaluation mode. It may be seen through a smaller vocabulary.
        found: what it reads.
        writer: of the store. It is not closed.
        scheme: how a distribution becomes a few entries.
        precision: ``fp32``, or ``bf16`` for autocast.
        progress: told after every batch.

    Raises:
        InputError: the teacher's logits are not finite.
        StoreWriteError: the store cannot be written.
    """
    so_far, flushed = Captured(), time.monotonic()
    for group in batches(found, BATCH_TOKENS):
        for signal in signals_of(lm, group, scheme, precision):
            writer.add(signal)
            so_far.count(signal)
        if time.monotonic() - flushed > FLUSH_SECONDS:
            writer.flush()
            flushed = time.monotonic()
        progress(so_far)
    return so_far


def signals_of(
    lm: CausalLM,
    group: Sequence[Reading],
    scheme: Scheme,
    precision: str,
    last_BTE: torch.Tensor | None = None,
) -> Iterator[SpanSignal]:
    """The signals of a batch's spans, in order. Logits are held a chunk of positions at a time.

    Args:
        last_BTE: the teacher's last hidden states, where somebody kept them; None: it reads the batch.
    """
    batch = collate([reading.row for reading in group])
    learned_BT = batch.labels_BT != IGNORED
    on_device = batch.to(lm.device)
    with torch.no_grad(), lm.autocast(precision):
        if last_BTE is None:
            last_BTE = lm.hidden(on_device.ids_BT, on_device.positions_BT)
        target = lm.as_target(last_BTE[on_device.labels_BT != IGNORED])
        if precision == "bf16":  # as the live teacher's
            target = target.multiplied_in(torch.bfloat16)
    del last_BTE
    keys_N = batch.keys_BT[learned_BT].numpy().view(np.uint64)
    offsets_N = batch.offsets_BT[learned_BT].numpy()
    labels_N = batch.labels_BT[learned_BT].to(lm.device)
    uniform_N = torch.from_numpy(uniforms(scheme.seed, keys_N, offsets_N)).to(lm.device)
    parts = []
    for index, logits_nV in logits_of(target, vocab_size=lm.vocab_size):
        try:
            drawn = draw(logits_nV, scheme, labels_N[index], uniform_N[index])
        except LogitsError as error:
            at = index.start + error.position
            raise InputError(
                f"the teacher's logits are not finite after token {offsets_N[at]} of document {keys_N[at]:016x}",
                key="teacher",
                fix="Remove that document, or use another model"
                + (", or write `precision: fp32`" if precision == "bf16" else ""),
            ) from None
        parts.append(encode(drawn, lm.vocab_size))
    yield from cut_spans(_joined(parts), group, keys_N, offsets_N)


def _joined(parts: Sequence[Encoded]) -> Encoded:
    tails = [part.tail for part in parts if part.tail is not None]
    return Encoded(
        np.concatenate([part.words for part in parts]),
        np.concatenate([part.counts for part in parts]),
        np.concatenate([part.entropy for part in parts]),
        np.concatenate(tails) if tails else None,
    )


def cut_spans(
    encoded: Encoded, group: Sequence[Reading], keys_N: np.ndarray, offsets_N: np.ndarray
) -> Iterator[SpanSignal]:
    """A batch's signals, a span at a time.

    Args:
        encoded: of the N positions with a label.
        group: what was read; its spans lie one after another.
        keys_N, offsets_N: uint64 and int64, the positions' documents, and where they are in them.
    """
    ends_N = np.concatenate([[0], np.cumsum(encoded.counts, dtype=np.int64)])
    at = 0
    for span in (span for reading in group for span in reading.spans):
        ahead = slice(at, at + span.length)  # the labels of a span stand together
        inside = (keys_N[ahead] == span.key) & (offsets_N[ahead] < span.start + span.length)
        last = at + (len(inside) if inside.all() else int(inside.argmin()))
        own, place = slice(at, last), offsets_N[at:last] - span.start
        yield SpanSignal(
            span,
            Encoded(
                encoded.words[ends_N[at] : ends_N[last]],
                _spread(encoded.counts[own], place, span.length),
                _spread(encoded.entropy[own], place, span.length),
                None if encoded.tail is None else _spread(encoded.tail[own], place, span.length),
            ),
        )
        at = last


def _spread(values: np.ndarray, place: np.ndarray, length: int) -> np.ndarray:
    """Values of positions with a label at their places in a span: others have no entries."""
    whole = np.zeros(length, values.dtype)
    whole[place] = values
    return whole


def _bytes_of(encoded: Encoded) -> int:
    arrays = (encoded.words, encoded.counts, encoded.entropy, encoded.tail)
    return sum(array.nbytes for array in arrays if array is not None)
