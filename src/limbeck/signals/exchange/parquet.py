"""A store as Parquet, compressed by zstd, and back: for cold storage. Every span comes back byte by byte."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from limbeck.errors import InputError, StoreError
from limbeck.files import whole_folder
from limbeck.signals.codec import Encoded
from limbeck.signals.store import Identity, Span, SpanSignal, Store
from limbeck.signals.store.shards import COLUMNS, METADATA, record_batch

SPANS = 1_024
"""Of a file: some 60 MB before compression."""

GROUP = 64
"""Spans that are compressed, and held in memory when they are read, together."""


_WRITTEN: dict[str, Any] = {"compression": "zstd", "use_dictionary": False, "write_page_checksum": True}


def export_parquet(folder: Path, out: Path, progress: Callable[[int], None] = lambda n: None) -> int:
    """Write a store as a folder of Parquet files, whole or not at all.

    Args:
        progress: is told of spans.

    Returns:
        The bytes that were written.

    Raises:
        StoreError: the store is damaged, or ``out`` is there.
    """
    store = Store(folder)
    if out.exists():
        raise StoreError(f"{out} is there already", fix="Name a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(out) as scratch:
        signals, number = store.signals(), 0
        while some := list(islice(signals, SPANS)):
            batch = record_batch(some, store.identity)
            file = scratch / f"signals-{number:05d}.parquet"
            pq.write_table(pa.Table.from_batches([batch]), file, row_group_size=GROUP, **_WRITTEN)
            number += 1
            progress(len(some))
        if not number:
            raise StoreError(f"there are no signals in {folder}", fix="`limbeck capture RECIPE` captures them")
    return sum(file.stat().st_size for file in out.iterdir())


def is_ours(source: Path) -> bool:
    """Whether a Parquet file, or one of those in a folder, was exported by limbeck."""
    for file in sorted(source.glob("*.parquet")) if source.is_dir() else [source]:
        with suppress(OSError, pa.ArrowException):  # what is damaged, or no Parquet, is told by who reads it
            if METADATA in (pq.read_schema(file).metadata or {}):
                return True
    return False


def exported_signals(source: Path) -> tuple[Identity, Iterator[SpanSignal]]:
    """The signals in a folder of exported files.

    Raises:
        InputError: a file is none of ours, is damaged, or the files are of several identities.
    """
    files = sorted(source.glob("*.parquet"))
    if not files:
        raise InputError(f"there are no Parquet files in {source}", fix="Name the folder that was exported")
    found: dict[str, Identity] = {}
    for file in files:
        identity = _identity(file)
        found.setdefault(identity.fingerprint, identity)
    if len(found) > 1:
        raise InputError(
            f"{source} holds signals of {len(found)} identities", fix="Import those of each from a folder of their own"
        )
    return next(iter(found.values())), (signal for file in files for signal in _signals(file))


def _identity(file: Path) -> Identity:
    try:
        metadata = pq.read_schema(file).metadata or {}
        return Identity.from_plain(json.loads(metadata[METADATA]))
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} was not exported by limbeck, or is damaged ({error})") from None


def _signals(file: Path) -> Iterator[SpanSignal]:
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as opened:
            for batch in opened.iter_batches(batch_size=GROUP):
                yield from _rows(batch)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file} is damaged ({error})", fix="Take another copy of it") from None


def _rows(batch: pa.RecordBatch) -> Iterator[SpanSignal]:
    columns = {name: batch.column(name).to_pylist() for name in COLUMNS}
    lists = {name: batch.column(name) for name in ("words", "counts", "entropy", "tail") if name in batch.schema.names}
    for row in range(batch.num_rows):
        arrays: dict[str, Any] = {name: _numbers(column[row].values) for name, column in lists.items()}
        encoded = Encoded(arrays["words"], arrays["counts"], arrays["entropy"], arrays.get("tail"))
        yield SpanSignal(Span(**{name: columns[name][row] for name in COLUMNS}), encoded)


def _numbers(array: pa.Array) -> np.ndarray:
    dtype = array.type.to_pandas_dtype()
    if not len(array):
        return np.zeros(0, dtype)
    return np.frombuffer(array.buffers()[1], dtype)[array.offset : array.offset + len(array)]
