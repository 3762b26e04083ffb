"""Writes signals into a store, also beside other writers."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import numpy as np

from limbeck.errors import StoreWriteError
from limbeck.files import fsync
from limbeck.signals.codec import entries_in
from limbeck.signals.store.identity import LARGEST_OFFSET, Identity, SpanSignal
from limbeck.signals.store.manifest import (
    FILE,
    ShardLine,
    append_shard,
    create_manifest,
    is_store,
    locked,
    read_manifest,
)
from limbeck.signals.store.shards import (
    COLUMNS,
    PREFIX,
    SUFFIX,
    WRITING,
    Dtypes,
    data_fingerprint,
    record_batch,
    write_shard,
)

SHARD_TOKENS = 1 << 18
"""Positions of a shard: some 15 MB at 60 bytes a token. What a killed writer loses is less than this."""

_MOST_WORDS = 1 << 30
"""Of a shard: its lists have 32-bit offsets."""


class StoreWriter:
    """Appends signals to a store, a shard at a time. Several processes may write the same store.

    A shard is written under another name, flushed and renamed, and only then named by the manifest: whatever ends
    the process, what the manifest names is whole. Leaving the ``with`` block, also by an exception, writes the rest.

    Args:
        folder: made if it is not there.
        identity: whose signals.
        worker: a name for the shards of this writer; it need not be unique.
        shard_tokens: positions after which a shard is ended.
        teacher: a name of the teacher for people, which a new store keeps.

    Attributes:
        positions, entries, bytes: of the shards that this writer finished; ``positions`` are those with a signal.

    Raises:
        StoreError: the store holds signals of another identity, or its manifest is lost.
        StoreWriteError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        identity: Identity,
        worker: str = "0",
        shard_tokens: int = SHARD_TOKENS,
        teacher: str = "",
    ) -> None:
        self.folder, self.identity, self.shard_tokens = folder, identity, shard_tokens
        self._worker = re.sub(r"[^A-Za-z0-9_]+", "_", worker) or "0"
        self._signals: list[SpanSignal] = []
        self._length = self._words = 0
        self._dtypes: Dtypes | None = None
        self.positions = self.entries = self.bytes = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreWriteError(
                f"the folder {folder} cannot be made ({error.strerror or error})", fix="Name a folder you may write to"
            ) from None
        with writing(folder), locked(folder):
            if not is_store(folder):
                create_manifest(folder, identity, teacher=teacher)
        manifest = read_manifest(folder)
        manifest.whose().require(identity, str(folder / FILE), manifest.teacher)

    def add(self, signal: SpanSignal) -> None:
        """Take a span. It is on the disk after :meth:`flush`, or when a shard is full.

        Raises:
            ValueError: its arrays do not fit each other.
            StoreWriteError: a shard could not be written. It is tried again by :meth:`flush`.
        """
        self._check(signal)
        self._signals.append(signal)
        self._length += signal.span.length
        self._words += len(signal.encoded.words)
        if self._length >= self.shard_tokens or self._words >= _MOST_WORDS:
            self.flush()

    def _check(self, signal: SpanSignal) -> None:
        span, encoded = signal.span, signal.encoded
        if not 0 <= span.context <= span.start or span.length < 1 or span.start + span.length > LARGEST_OFFSET:
            raise ValueError(f"{span} is no span of a document")
        arrays = [encoded.counts, encoded.entropy, *([] if encoded.tail is None else [encoded.tail])]
        if any(len(array) != span.length for array in arrays) or encoded.counts.dtype != np.uint16:
            raise ValueError(f"{span} has {span.length} positions, and its arrays have others")
        if int(encoded.counts.sum(dtype=np.int64)) != len(encoded.words):
            raise ValueError(f"{span} has {len(encoded.words)} words, and its counts say otherwise")
        dtypes = Dtypes.of(encoded)
        self._dtypes = self._dtypes or dtypes
        if dtypes != self._dtypes:
            raise ValueError(f"{span} has {dtypes}, and the spans before it {self._dtypes}")

    def flush(self) -> None:
        """Write what is left as a shard, and name it.

        Raises:
            StoreWriteError: it could not be written. What the store had is whole, and what is left may be tried again.
        """
        if not self._signals:
            return
        batch = record_batch(self._signals, self.identity)
        positions = int(sum(np.count_nonzero(signal.encoded.counts) for signal in self._signals))
        entries = sum(entries_in(signal.encoded.words) for signal in self._signals)
        name = f"{PREFIX}{self._worker}-{secrets.token_hex(6)}{SUFFIX}"
        scratch = self.folder / f"{name}{WRITING}"
        with writing(self.folder):
            try:
                with scratch.open("xb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX)  # `repair` removes what nobody holds
                    sha256, n_bytes = write_shard(file, batch)
                    file.flush()
                    os.fsync(file.fileno())
                    index = {column: batch.column(column).to_numpy() for column in COLUMNS}
                    line = ShardLine(
                        name, sha256, len(self._signals), positions, entries, n_bytes, data_fingerprint(index),
                        self._worker,
                    )  # fmt: skip
                    with locked(self.folder):
                        os.rename(scratch, self.folder / name)
                        fsync(self.folder)
                        append_shard(self.folder, line)
            except BaseException:
                with suppress(OSError):
                    scratch.unlink(missing_ok=True)
                raise
        self._signals, self._length, self._words = [], 0, 0
        self.positions += positions
        self.entries += entries
        self.bytes += n_bytes

    def close(self) -> None:
        self.flush()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not isinstance(error, StoreWriteError):
            self.flush()


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What the system refuses, as an error that names the folder."""
    try:
        yield
    except OSError as error:
        raise StoreWriteError(
            f"signals cannot be written to {folder} ({error.strerror or error}); what its manifest names is whole",
            fix="Free space or check permissions, then run it again: it goes on where it stopped",
        ) from None
