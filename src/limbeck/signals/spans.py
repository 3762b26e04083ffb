"""Which spans of which documents are captured, and what the teacher reads for them.

``context: document``: a document falls into spans of :func:`grid_of` positions, 1,024 for most teachers, from its
beginning on, whatever the rows of a training are. The teacher sees it from its beginning; of a document that is longer
than its window, it reads windows that overlap by half, and a position is taken from the first one that holds its span
(see :func:`context_of`). ``context: row``: a span is the piece of a document that stands in a row, and the teacher sees
the row as the live one does.

Shape letters: L positions of a piece.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

import numpy as np

from limbeck.data.chat.encode import MASKED
from limbeck.data.corpus import Corpus
from limbeck.data.packing import Piece, Row, Rows
from limbeck.signals.store.identity import Context, Span

GRID = 1024
"""Positions of a span in ``context: document``."""

WINDOW = 8192
"""The longest text that a teacher reads at a time in ``context: document``, unless the recipe says otherwise."""

BLOCK = 4096
"""Readings that are looked up, and put in order of their length, at a time."""


@dataclass(frozen=True)
class Reading:
    """A row that the teacher reads, and the spans that are taken from it.

    Attributes:
        row: its labels are those of the spans and no others.
        spans: in the order in which they stand in the row; each has a label.
    """

    row: Row
    spans: tuple[Span, ...]

    def count(self) -> int:
        """Positions that are captured."""
        return sum(int(np.count_nonzero(piece.mask[1:])) for piece in self.row.pieces)

    def only(self, spans: Collection[Span]) -> Reading | None:
        """What is read for some of the spans; None: none of them is here."""
        kept = tuple(span for span in self.spans if span in spans)
        if len(kept) == len(self.spans) or not kept:
            return self if kept else None
        of_document: dict[tuple[int, int], list[Span]] = defaultdict(list)
        for span in kept:
            of_document[span.key, span.context].append(span)
        pieces = [_masked(piece, of_document.get((piece.key, piece.offset), [])) for piece in self.row.pieces]
        if len(pieces) == 1:  # nothing after the last span is read
            end = kept[-1].start + kept[-1].length - pieces[0].offset + 1
            pieces = [replace(pieces[0], ids=pieces[0].ids[:end], mask=pieces[0].mask[:end])]
        return Reading(Row(tuple(pieces)), kept)


class Lacking(Protocol):
    """A store, as far as it says what it does not hold."""

    def missing(self, spans: list[Span]) -> list[Span]: ...


def readings(rows: Rows, chosen: Iterable[int], context: Context, window: int) -> Iterator[Reading]:
    """What a teacher reads for all labels of some rows, each label once.

    Args:
        rows: of a training.
        chosen: their numbers, each once.
        context: what the teacher sees before a position.
        window: the most tokens that it reads at a time; of ``context: document``.
    """
    if context == "row":
        return _rows(rows, chosen)
    return _documents(rows.corpus, _touched(rows, chosen, grid_of(window)), window)


def grid_of(window: int) -> int:
    """Positions of a span in ``context: document``: 1,024, or half the window of a teacher that reads less than twice
    that."""
    return min(GRID, max(window // 2, 1))


def context_of(start: int, window: int) -> int:
    """Where the teacher's context begins for the span that starts at ``start``, in ``context: document``.

    At the document's beginning, as long as the span ends within the window. Further on, at the first of the window's
    half steps (in whole spans) that leaves the span within the window: at least a quarter of the window, in most cases
    nearly half of it, then stands before a position.
    """
    grid = grid_of(window)
    step = max(window // 2 // grid, 1) * grid
    return max(-(-(start + grid - window) // step), 0) * step


def digest_of(ids: np.ndarray) -> int:
    """64 bits of a hash of token ids, unsigned."""
    data = np.ascontiguousarray(ids, np.dtype("<u4")).tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def lacking(found: Iterable[Reading], store: Lacking | None) -> Iterator[Reading]:
    """Readings for what a store does not hold; None: there is no store yet."""
    remaining = iter(found)
    while block := list(islice(remaining, BLOCK)):
        if store is None:
            yield from block
            continue
        wanted = set(store.missing([span for reading in block for span in reading.spans]))
        for reading in block:
            if wanted and (left := reading.only(wanted)) is not None:
                yield left


def shared(found: Iterable[Reading], worker: int, workers: int) -> Iterator[Reading]:
    """The part of one of several workers. It follows from the documents alone, so that no two read the same,
    whatever the store holds when each of them begins."""
    return (reading for reading in found if reading.spans[0].key % workers == worker)


def batches(found: Iterable[Reading], tokens: int) -> Iterator[list[Reading]]:
    """Readings of like length together, at most ``tokens`` with their padding; at least one reading."""
    remaining = iter(found)
    while block := list(islice(remaining, BLOCK)):
        block.sort(key=lambda reading: len(reading.row), reverse=True)
        start = 0
        while start < len(block):
            size = max(tokens // max(len(block[start].row), 1), 1)
            yield block[start : start + size]
            start += size


# ---------------------------------------------------------------------------------- context: row


def _rows(rows: Rows, chosen: Iterable[int]) -> Iterator[Reading]:
    for r in chosen:
        row = rows[r]
        spans = tuple(
            Span(piece.key, piece.offset, len(piece), piece.offset, digest_of(piece.ids))
            for piece in row.pieces
            if np.any(piece.mask[1:])
        )
        if spans:
            yield Reading(row, spans)


# ----------------------------------------------------------------------------- context: document


def _touched(rows: Rows, chosen: Iterable[int], grid: int) -> dict[int, set[int]]:
    """By number of the document, the numbers of its spans that hold a label of the rows."""
    found: dict[int, set[int]] = defaultdict(set)
    corpus = rows.corpus
    for r in chosen:
        for piece in rows[r].pieces:
            labels = np.flatnonzero(piece.mask[1:])
            if len(labels):
                document = int(np.searchsorted(corpus.keys, np.uint64(piece.key)))
                found[document].update(np.unique((labels + piece.offset) // grid).tolist())
    return found


def _documents(corpus: Corpus, touched: Mapping[int, set[int]], window: int) -> Iterator[Reading]:
    grid = grid_of(window)
    for d in sorted(touched):
        ids, mask = corpus.document(d)
        key, positions = int(corpus.keys[d]), len(ids) - 1
        by_context: dict[int, list[Span]] = defaultdict(list)
        for number in sorted(touched[d]):
            start = number * grid
            length, context = min(grid, positions - start), context_of(start, window)
            digest = digest_of(ids[context : start + length + 1])
            by_context[context].append(Span(key, start, length, context, digest))
        for context, spans in by_context.items():
            end = spans[-1].start + spans[-1].length + 1
            piece = _masked(Piece(ids[context:end], mask[context:end], key, context), spans)
            yield Reading(Row((piece,)), tuple(spans))


def _masked(piece: Piece, spans: Iterable[Span]) -> Piece:
    """The piece with the labels of some spans only."""
    kept = np.full(len(piece.mask), MASKED, piece.mask.dtype)
    for span in spans:
        begin = span.start - piece.offset + 1
        kept[begin : begin + span.length] = piece.mask[begin : begin + span.length]
    return replace(piece, mask=kept)
