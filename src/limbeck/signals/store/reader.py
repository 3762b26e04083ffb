"""Reads signals from a store: memory-mapped, by document and offset, in any order.

Shape letters: N positions that are asked for; S spans; R entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from limbeck.errors import MissingSignalError, StoreError
from limbeck.signals.codec import CODEC, NARROW, Encoded, decode
from limbeck.signals.scheme import Decoded
from limbeck.signals.store.hashes import repair_fix, require_whole
from limbeck.signals.store.identity import Identity, Span, SpanSignal
from limbeck.signals.store.index import SpanIndex
from limbeck.signals.store.manifest import FILE, read_manifest
from limbeck.signals.store.shards import Shard, columns_of, mapped_bytes

RELEASE_BYTES = 64 << 20
"""Pages of the shards that stay in memory: when there are more, the system takes them back. The kernel maps what lies
around a page too: a batch of 1 MB makes 30 MB resident."""


class Store:
    """The signals in a folder, as its manifest names them now. What is added later is seen by opening it again.

    On opening, these are always checked: identity, layout, codec, and of each shard its size, schema and number of
    spans. The sha256 of a shard is checked when this user opens it for the first time, and again whenever its inode,
    size or times have changed.

    Args:
        folder: the store.
        identity: whose signals they must be; None: anyone's.

    Attributes:
        identity: whose signals they are.
        shards: what the manifest says of each shard.
        teacher: a name of the teacher for people, no part of the identity; empty: it is not known.
        bytes_read: of entries, counts, entropies and tails that were read since it was opened.

    Raises:
        StoreError: there is no store, its signals are another identity's, or a shard is damaged. It names the file
            and the fix.
    """

    def __init__(self, folder: Path, identity: Identity | None = None) -> None:
        self.folder = folder
        manifest = read_manifest(folder)
        self.identity, self.shards, self.teacher = manifest.whose(), manifest.shards, manifest.teacher
        if identity is not None:
            self.identity.require(identity, str(folder / FILE), self.teacher)
        if self.identity.codec != CODEC:
            raise StoreError(
                f"{folder / FILE} is of codec version {self.identity.codec}, and this limbeck reads {CODEC}",
                fix="Read it with the limbeck that wrote it, or capture again into another folder",
            )
        require_whole(folder, self.shards)
        self._shards = [self._open(line.name, line.rows) for line in self.shards]
        rows = [shard.rows for shard in self._shards]
        self._shard = np.repeat(np.arange(len(rows), dtype=np.int32), rows)
        self._row = np.concatenate([np.arange(n, dtype=np.int32) for n in rows] or [np.zeros(0, np.int32)])
        self._spans = SpanIndex.of(self._shards)
        self.bytes_read, self._mapped = 0, mapped_bytes()

    def _open(self, name: str, rows: int) -> Shard:
        shard = Shard(self.folder / name, fix=repair_fix(self.folder))
        if shard.identity != self.identity:
            shard.identity.require(self.identity, str(shard.path))
        if shard.rows != rows:
            raise shard.damaged(f"it has {shard.rows:,} spans, and the manifest says {rows:,}")
        return shard

    def __len__(self) -> int:
        """Spans. Those that were written twice count once."""
        return len(self._spans)

    @property
    def positions(self) -> int:
        """Positions with a signal, in all shards."""
        return sum(shard.positions for shard in self.shards)

    @property
    def keys(self) -> np.ndarray:
        """uint64, ascending: the documents that have a span."""
        return self._spans.keys

    def missing(self, spans: Sequence[Span]) -> list[Span]:
        """The spans that are not there, or are there for other tokens (digest), in the order given."""
        there = self._spans.has(columns_of(spans))
        return [span for span, is_there in zip(spans, there.tolist(), strict=True) if not is_there]

    def read(self, keys_N: np.ndarray, offsets_N: np.ndarray, contexts_N: np.ndarray | None = None) -> Decoded:
        """The signals of positions, in the order given.

        Args:
            keys_N: uint64, or int64 of the same bits: the documents.
            offsets_N: int64, the positions in them.
            contexts_N: int64, where the teacher's context must have begun; None: anywhere.

        Raises:
            MissingSignalError: a position has no signal. It names the document and the offset.
        """
        return decode(self.encoded(keys_N, offsets_N, contexts_N), self.identity.vocab_size)

    def encoded(self, keys_N: np.ndarray, offsets_N: np.ndarray, contexts_N: np.ndarray | None = None) -> Encoded:
        """As :meth:`read`, before decoding."""
        if keys_N.dtype == np.int64:  # torch has no uint64 that can be indexed: the same bits
            keys_N = keys_N.view(np.uint64)
        if keys_N.dtype != np.uint64:  # compared as float64, keys that are near each other would be equal
            raise ValueError(f"keys must be uint64, or int64 of the same bits, got {keys_N.dtype}")
        span_N = self._spans.locate(keys_N, offsets_N, contexts_N)
        if (span_N < 0).any():
            raise self._missing(keys_N, offsets_N, contexts_N, int(np.argmax(span_N < 0)))
        if not len(span_N):
            return self._empty()
        pieces = self._pieces(span_N)
        counts = np.concatenate([piece.counts for piece in pieces.list])
        piece_N = np.searchsorted(pieces.spans, span_N)
        place_N = pieces.base[piece_N] + (offsets_N - self._spans.start[span_N])
        counts_N = counts[place_N]
        if not counts_N.all():
            raise self._missing(keys_N, offsets_N, contexts_N, int(np.argmin(counts_N)))
        words = _words(pieces, piece_N, place_N, counts)
        entropy = np.concatenate([piece.entropy for piece in pieces.list])[place_N]
        tails = [piece.tail for piece in pieces.list if piece.tail is not None]
        tail = np.concatenate(tails)[place_N] if tails else None
        self._count(words, counts_N, entropy, *([] if tail is None else [tail]))
        return Encoded(words, counts_N, entropy, tail)

    def _pieces(self, span_N: np.ndarray) -> _Pieces:
        """What the spans of some positions hold: views of the files."""
        heads = np.flatnonzero(np.concatenate([[True], span_N[1:] != span_N[:-1]]))
        spans = np.unique(span_N[heads])
        arrivals = self._spans.arrival[spans]
        rows = zip(self._shard[arrivals].tolist(), self._row[arrivals].tolist(), strict=True)
        views = [self._shards[shard].encoded(row) for shard, row in rows]
        return _Pieces(views, spans, np.cumsum(self._spans.length[spans]) - self._spans.length[spans])

    def _count(self, *arrays: np.ndarray) -> None:
        self.bytes_read += sum(array.nbytes for array in arrays)
        if mapped_bytes() - self._mapped > RELEASE_BYTES:
            for shard in self._shards:
                shard.release()
            self._mapped = mapped_bytes()

    def _empty(self) -> Encoded:
        if self._shards:
            first = self._shards[0].encoded(0)
            tail = None if first.tail is None else first.tail[:0]
            return Encoded(first.words[:0], first.counts[:0], first.entropy[:0], tail)
        words = np.zeros(0, np.uint32 if self.identity.vocab_size <= NARROW else np.uint64)
        return Encoded(words, np.zeros(0, np.uint16), np.zeros(0, np.uint16), None)

    def _missing(
        self, keys_N: np.ndarray, offsets_N: np.ndarray, contexts_N: np.ndarray | None, n: int
    ) -> MissingSignalError:
        context = "" if contexts_N is None else f" with a context from {int(contexts_N[n])}"
        return MissingSignalError(
            f"{self.folder} has no signal for document {int(keys_N[n]):016x} at offset {int(offsets_N[n])}{context}",
            fix="`limbeck capture RECIPE` captures what is missing",
        )

    def signals(self) -> Iterator[SpanSignal]:
        """All spans, each once, in the order in which they were written. Arrays are views of the files."""
        for arrival in np.sort(self._spans.arrival):
            signal = self._shards[int(self._shard[arrival])].signal(int(self._row[arrival]))
            yield signal
            self._count(*(array for array in vars(signal.encoded).values() if array is not None))


class _Pieces(NamedTuple):
    """The arrays of some spans.

    Attributes:
        list: one a span.
        spans: their numbers in the index, ascending.
        base: int64, where the positions of each span begin when they stand one after another.
    """

    list: list[Encoded]
    spans: np.ndarray
    base: np.ndarray


def _words(pieces: _Pieces, piece_N: np.ndarray, place_N: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The entries of positions, run by run where positions follow each other, as those of a batch do.

    Args:
        piece_N: the span of each position, among ``pieces``.
        place_N: where it stands among the positions of all of them.
        counts: of all their positions.
    """
    ends = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, dtype=np.int64, out=ends[1:])
    follows = (place_N[1:] == place_N[:-1] + 1) & (piece_N[1:] == piece_N[:-1])
    heads = np.flatnonzero(np.concatenate([[True], ~follows]))
    lasts = np.append(heads[1:], len(place_N)) - 1
    lows, highs = ends[place_N[heads]], ends[place_N[lasts] + 1]
    if len(heads) * 8 < len(place_N):
        before = ends[pieces.base[piece_N[heads]]]  # entries of the spans before
        runs = zip(piece_N[heads].tolist(), (lows - before).tolist(), (highs - before).tolist(), strict=True)
        return np.concatenate([pieces.list[piece].words[low:high] for piece, low, high in runs])
    sizes = highs - lows
    within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.concatenate([piece.words for piece in pieces.list])[np.repeat(lows, sizes) + within]
