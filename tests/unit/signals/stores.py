"""Signals to store: random, but a function of their span alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from limbeck.signals.codec import CODEC, Encoded, encode
from limbeck.signals.scheme import Decoded
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
    """What a capture would write: some exact entries, and drawn ones that share a weight. It depends on the span and
    its digest."""
    random = np.random.default_rng([span.key, span.start, span.length, span.context, span.digest])
    counts = random.integers(1, 20, span.length)
    counts[random.random(span.length) < unlabelled] = 0
    position = np.repeat(np.arange(span.length), counts)
    places = np.unique(position * vocab_size + random.integers(0, vocab_size, len(position)))
    logprobs = np.where(random.random(len(places)) < 0.4, -4 * random.random(len(places)), np.log(0.02))
    decoded = Decoded(
        counts=np.bincount(places // vocab_size, minlength=span.length),
        ids=places % vocab_size,
        logprobs=logprobs.astype(np.float32),
        entropy=(5 * random.random(span.length)).astype(np.float32),
        tail=random.random(span.length).astype(np.float32) if tail else None,
    )
    return encode(decoded, vocab_size)


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
