"""Shards: Arrow IPC streams, one row a span, that are memory-mapped by their readers.

``datasets.Dataset.from_file`` opens a shard, too. Its columns: ``key`` uint64, ``start``, ``length`` and ``context``
int32, ``digest`` uint64, and lists: ``words`` (the encoded entries of all positions), ``counts`` (words a position),
``entropy`` and, where the scheme has one, ``tail`` (a value a position).

Shape letters: S spans of a shard; n positions; R entries.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa

from limbeck.errors import StoreError
from limbeck.signals.codec import Encoded, entries_in
from limbeck.signals.store.identity import Identity, Span, SpanSignal

PREFIX, SUFFIX = "shard-", ".arrow"
"""Of the names of shards; other files in a store are nobody's."""
WRITING = ".writing"
"""Suffix of a shard that is being written. Its writer holds a lock on it."""

END = b"\xff\xff\xff\xff\0\0\0\0"
"""What a stream ends with."""

METADATA = b"limbeck"
"""In the metadata of a shard's schema: the identity of the signals, so that a lost manifest can be written again."""

COLUMNS = {"key": np.uint64, "start": np.int32, "length": np.int32, "context": np.int32, "digest": np.uint64}


class Dtypes(NamedTuple):
    """Of the arrays of an ``Encoded``. All signals of a shard share them."""

    words: str
    entropy: str
    tail: str | None

    @classmethod
    def of(cls, encoded: Encoded) -> Dtypes:
        tail = None if encoded.tail is None else encoded.tail.dtype.name
        return cls(encoded.words.dtype.name, encoded.entropy.dtype.name, tail)


class Facts(NamedTuple):
    """Of a shard that was written or read: see ``ShardLine``."""

    rows: int
    positions: int
    entries: int
    data: str


def _schema(identity: Identity, dtypes: Dtypes) -> pa.Schema:
    lists = {"words": dtypes.words, "counts": "uint16", "entropy": dtypes.entropy}
    if dtypes.tail is not None:
        lists["tail"] = dtypes.tail
    fields = [
        *((name, pa.from_numpy_dtype(dtype)) for name, dtype in COLUMNS.items()),
        *((name, pa.list_(pa.from_numpy_dtype(np.dtype(dtype)))) for name, dtype in lists.items()),
    ]
    return pa.schema(fields, metadata={METADATA: json.dumps(identity.plain(), sort_keys=True).encode()})


def columns_of(spans: Sequence[Span]) -> dict[str, np.ndarray]:
    """``COLUMNS`` of spans, [S] each."""
    return {name: np.array([getattr(span, name) for span in spans], dtype) for name, dtype in COLUMNS.items()}


def record_batch(signals: Sequence[SpanSignal], identity: Identity) -> pa.RecordBatch:
    """Signals as rows of a shard. At least one; all have the same dtypes."""
    schema = _schema(identity, Dtypes.of(signals[0].encoded))
    columns: list[pa.Array] = [pa.array(column) for column in columns_of([signal.span for signal in signals]).values()]
    for name in schema.names[len(COLUMNS) :]:
        arrays = [getattr(signal.encoded, name) for signal in signals]
        offsets = np.zeros(len(arrays) + 1, np.int32)
        np.cumsum([len(array) for array in arrays], out=offsets[1:])
        columns.append(pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(arrays))))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


class _Hashing:
    """A file that is hashed while it is written."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.sha256, self.bytes = file, hashlib.sha256(), 0

    def write(self, piece: Any) -> int:
        view = memoryview(piece)
        self.sha256.update(view)
        self.bytes += view.nbytes
        self._file.write(view)
        return view.nbytes

    def flush(self) -> None:
        self._file.flush()


def write_shard(file: IO[bytes], batch: pa.RecordBatch) -> tuple[str, int]:
    """Returns: sha256 of what was written, and its bytes."""
    sink = _Hashing(file)
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return sink.sha256.hexdigest(), sink.bytes


@dataclass(frozen=True)
class Lists:
    """A list column: row r owns ``values[offsets[r] : offsets[r + 1]]``."""

    offsets: np.ndarray
    values: np.ndarray

    def row(self, r: int) -> np.ndarray:
        return self.values[self.offsets[r] : self.offsets[r + 1]]


class Shard:
    """The rows of a shard file, memory-mapped: nothing is read before it is used.

    Attributes:
        key, start, length, context, digest: [S], by row.
        words, counts, entropy, tail: lists, by row.

    Raises:
        StoreError: the file is no whole shard.
    """

    def __init__(self, path: Path, fix: str) -> None:
        self.path, self._fix, self._touched = path, fix, False
        try:
            with pa.memory_map(str(path)) as source:
                self._map = source.read_buffer()
            table = pa.ipc.open_stream(pa.BufferReader(self._map)).read_all()
            columns = {name: _one(table.column(name)) for name in (*COLUMNS, "words", "counts", "entropy")}
            if "tail" in table.column_names:
                columns["tail"] = _one(table.column("tail"))
        except (OSError, pa.ArrowException, KeyError) as error:
            raise self.damaged(str(error)) from None
        self.identity = self._whose(table.schema)
        self.rows = table.num_rows
        self.index = {name: _view(columns[name]) for name in COLUMNS}
        self._lists = {
            name: Lists(_view(column.offsets), _view(column.values))
            for name, column in columns.items()
            if name not in COLUMNS
        }
        self.words, self.counts, self.entropy = (self._lists[name] for name in ("words", "counts", "entropy"))
        self.tail = self._lists.get("tail")

    def _whose(self, schema: pa.Schema) -> Identity:
        """What the schema says; it must be one of ours."""
        try:
            identity = Identity.from_plain(json.loads((schema.metadata or {})[METADATA]))
        except (KeyError, ValueError, TypeError):
            raise self.damaged("its schema does not say whose signals it holds") from None
        for name, dtype in COLUMNS.items():
            if schema.field(name).type != pa.from_numpy_dtype(dtype):
                raise self.damaged(f"its column {name} is {schema.field(name).type}")
        for name in set(schema.names) - set(COLUMNS):
            if not pa.types.is_list(schema.field(name).type):
                raise self.damaged(f"its column {name} is {schema.field(name).type}")
        return identity

    def damaged(self, why: str) -> StoreError:
        return StoreError(f"{self.path} is no whole shard of signals ({why})", fix=self._fix)

    def signal(self, r: int) -> SpanSignal:
        """Row r."""
        span = Span(**{name: int(column[r]) for name, column in self.index.items()})
        return SpanSignal(span, self.encoded(r))

    def encoded(self, r: int) -> Encoded:
        """The arrays of row r: views of the file."""
        self._touched = True
        tail = None if self.tail is None else self.tail.row(r)
        return Encoded(self.words.row(r), self.counts.row(r), self.entropy.row(r), tail)

    @property
    def dtypes(self) -> Dtypes:
        tail = None if self.tail is None else self.tail.values.dtype.name
        return Dtypes(self.words.values.dtype.name, self.entropy.values.dtype.name, tail)

    def check(self) -> Facts:
        """Read all rows, and require that their lists fit each other.

        Raises:
            StoreError: they do not.
        """
        counts = self.counts
        for name, column in self._lists.items():
            offsets = column.offsets.astype(np.int64)
            if len(offsets) != self.rows + 1 or (np.diff(offsets) < 0).any() or offsets[-1] > len(column.values):
                raise self.damaged(f"the lists of {name} do not fit the file")
            if name != "words" and not np.array_equal(np.diff(offsets), self.index["length"]):
                raise self.damaged(f"{name} is not as long as the spans")
        first, last = counts.offsets[0], counts.offsets[-1]
        ends = np.concatenate([[0], np.cumsum(counts.values[first:last], dtype=np.int64)])
        if not np.array_equal(np.diff(ends[counts.offsets - first]), np.diff(self.words.offsets)):
            raise self.damaged("words and counts do not fit each other")
        positions = int(np.count_nonzero(counts.values[first:last]))
        entries = entries_in(self.words.values[self.words.offsets[0] : self.words.offsets[-1]])
        return Facts(self.rows, positions, entries, data_fingerprint(self.index))

    def release(self) -> None:
        """Let the system take back the memory of pages that were read; they are read again when they are needed."""
        if self._touched:
            _dont_need(self._map.address, self._map.size)
        self._touched = False


def _one(column: pa.ChunkedArray) -> Any:
    """A column as one array: a view where the file has one record batch, as ours do."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _view(array: Any) -> np.ndarray:
    """The numbers of an array without nulls; ``to_numpy`` would import pandas, which takes seconds."""
    if not len(array):
        return np.zeros(0, array.type.to_pandas_dtype())
    values = np.frombuffer(array.buffers()[1], array.type.to_pandas_dtype())
    return values[array.offset : array.offset + len(array)]


def data_fingerprint(index: dict[str, np.ndarray]) -> str:
    """16 hexadecimal digits of keys, offsets, contexts and digests."""
    digest = hashlib.sha256()
    for name in COLUMNS:
        digest.update(np.ascontiguousarray(index[name]).tobytes())
    return digest.hexdigest()[:16]


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None)


def _dont_need(address: int, size: int) -> None:
    if size and hasattr(mmap, "MADV_DONTNEED"):
        _libc().madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), mmap.MADV_DONTNEED)


def mapped_bytes() -> int:
    """Of the process: resident pages of files. 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[2]) * mmap.PAGESIZE
    except OSError:
        return 0
