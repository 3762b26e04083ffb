"""Signals to store: random, but a function of their span alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from limbeck.signals.codec import CODEC, NARROW, Encoded
from limbeck.signals.store import Identity, Span, SpanSignal, StoreWriter

IDENTITY = Identity(
    teacher="weights-1",
    tokenizer="map-1",
    vocab_size=1_000,
    scheme={"kind": "threshold", "threshold": 0.02, "temperature": 1.0, "seed": 0},
    context="document",
    encoding="format-4",
    codec=CODEC,
    window=2_048,
)
WIDE = dataclasses.replace(IDENTITY, vocab_size=300_000)


def identity(**changes: object) -> Identity:
    return dataclasses.replace(IDENTITY, **changes)  # type: ignore[arg-type]


def encoded(span: Span, *, vocab_size: int = 1_000, tail: bool = False, unlabelled: float = 0.2) -> Encoded:
    """Entries that are sensible for the codec, and depend on the span and its digest."""
    random = np.random.default_rng([span.key, span.start, span.length, span.context, span.digest])
    counts = random.integers(1, 20, span.length).astype(np.uint16)
    counts[random.random(span.length) < unlabelled] = 0
    n = int(counts.sum())
    ids = random.integers(0, vocab_size, n)
    if vocab_size <= NARROW:
        words = (ids | (random.integers(0, 1 << 13, n) << 18)).astype(np.uint32)
    else:
        words = ids.astype(np.uint64) | (
            np.log(random.random(n)).astype(np.float32).view(np.uint32).astype(np.uint64) << 32
        )
    entropy, tails = random.integers(0, 1 << 16, (2, span.length)).astype(np.uint16)
    return Encoded(words, counts, entropy, tails if tail else None)


def signal(span: Span, **settings: object) -> SpanSignal:
    return SpanSignal(span, encoded(span, **settings))  # type: ignore[arg-type]


def grid(documents: int, *, step: int = 64, seed: int = 0) -> list[Span]:
    """The spans of documents of 1 to 4 steps, on a grid, each with the document's beginning as its context."""
    random = np.random.default_rng(seed)
    spans = []
    for key in random.integers(0, 2**64, documents, np.uint64, endpoint=False).tolist():
        length = int(random.integers(1, 4 * step))
        for start in range(0, length, step):
            spans.append(Span(key, start, min(step, length - start), 0, digest=int(random.integers(0, 2**62))))
    return spans


def write(
    folder: Path, spans: list[Span], whose: Identity = IDENTITY, shard_tokens: int = 500, **settings: object
) -> None:
    with StoreWriter(folder, whose, shard_tokens=shard_tokens) as writer:
        for span in spans:
            writer.add(signal(span, vocab_size=whose.vocab_size, **settings))


def equal(a: Encoded, b: Encoded) -> bool:
    pairs = zip(vars(a).values(), vars(b).values(), strict=True)
    return all((x is None and y is None) or (x.dtype == y.dtype and np.array_equal(x, y)) for x, y in pairs)
