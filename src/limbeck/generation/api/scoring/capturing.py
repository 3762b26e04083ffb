"""From what a server says of documents to signals in a store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import numpy as np

from limbeck.data.packing import Row
from limbeck.generation.api.scoring.scorer import Scorer
from limbeck.generation.api.scoring.scores import Scores
from limbeck.signals.capture import FLUSH_SECONDS, Captured, cut_spans
from limbeck.signals.codec import Encoded, encode
from limbeck.signals.scheme import Decoded
from limbeck.signals.spans import Reading
from limbeck.signals.store import StoreWriter

_Prompts: TypeAlias = Iterator[tuple[Reading, list[int]]]


def capture_served(
    scorer: Scorer,
    found: Iterable[Reading],
    writer: StoreWriter,
    progress: Callable[[Captured], None] = lambda captured: None,
) -> Captured:
    """Have a server read, and write what it says of every label: the most probable tokens, the label, and the tail.

    A piece of a row is a text of its own: the server sees what the live teacher sees of it. What is answered is in the
    store as soon as its shard is full, and when this ends, also by an error.

    Args:
        scorer: who is asked.
        found: what is to be read.
        writer: of the store, whose scheme is ``top_k``. It is not closed.
        progress: told after every text.

    Raises:
        TeacherGoneError: the server answers no more.
        BudgetError: the budget does not hold the next text.
        RecipeError: the server refuses what it is asked.
        StoreWriteError: the store cannot be written.
    """
    so_far, flushed = Captured(), time.monotonic()

    def take(reading: Reading, scores: Scores) -> None:
        nonlocal flushed
        encoded, keys_N, offsets_N = _encoded(reading, scores, scorer.vocab_size)
        for signal in cut_spans(encoded, [reading], keys_N, offsets_N):
            writer.add(signal)
            so_far.count(signal)
        if time.monotonic() - flushed > FLUSH_SECONDS:
            writer.flush()
            flushed = time.monotonic()
        progress(so_far)

    scorer.run(_prompts(found), take)
    return so_far


def _prompts(found: Iterable[Reading]) -> _Prompts:
    """Texts, each with the spans that are taken from it."""
    for reading in found:
        for piece in reading.row.pieces:
            spans = tuple(span for span in reading.spans if (span.key, span.context) == (piece.key, piece.offset))
            if spans:
                yield Reading(Row((piece,)), spans), piece.ids.tolist()


def _encoded(reading: Reading, scores: Scores, vocab_size: int) -> tuple[Encoded, np.ndarray, np.ndarray]:
    """What is said of the labels of a text, their documents, and their offsets in them."""
    (piece,) = reading.row.pieces
    learned_P = np.asarray(piece.mask[1:]) != 0
    learned_R = np.repeat(learned_P, scores.counts_P)
    decoded = Decoded(
        counts=scores.counts_P[learned_P],
        ids=scores.ids[learned_R],
        logprobs=scores.logprobs[learned_R],
        entropy=np.full(int(learned_P.sum()), np.nan, np.float32),  # of a few entries it is not known
        tail=(1.0 - scores.mass_P[learned_P]).astype(np.float32),
    )
    offsets_N = np.flatnonzero(learned_P) + piece.offset
    return encode(decoded, vocab_size), np.full(len(offsets_N), piece.key, np.uint64), offsets_N
