"""Shards are hashed when they are first opened, and again when they were changed.

A stamp (device, inode, size, times of the last change) of each shard that was found right is kept in the user's
cache, so that a large store opens at once the next time. The cache is a convenience: without it, all is hashed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from limbeck.errors import StoreError
from limbeck.files import cache_folder
from limbeck.signals.store.manifest import ShardLine

THREADS = 4


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def repair_fix(folder: Path) -> str:
    return f"`limbeck signals repair {folder}` sets it aside, and its spans are captured again"


def cheap_fault(folder: Path, shard: ShardLine) -> StoreError | None:
    """What a look at its size shows of a shard."""
    path = folder / shard.name
    try:
        size = path.stat().st_size
    except OSError:
        return StoreError(f"{path} is missing", fix=repair_fix(folder))
    if size == shard.bytes:
        return None
    how = "truncated" if size < shard.bytes else "longer than it was"
    return StoreError(f"{path} is {how}: {size:,} bytes, not {shard.bytes:,}", fix=repair_fix(folder))


def fault(folder: Path, shard: ShardLine) -> StoreError | None:
    """What reading all of it shows of a shard."""
    found = cheap_fault(folder, shard)
    if found is not None:
        return found
    path = folder / shard.name
    if sha256_of(path) != shard.sha256:
        return StoreError(f"{path} is damaged: its bytes are not those that were written", fix=repair_fix(folder))
    return None


def require_whole(folder: Path, shards: Sequence[ShardLine]) -> None:
    """Sizes of all shards, and the hashes of those that were not found right before, or have changed since.

    Raises:
        StoreError: a shard is missing, truncated or damaged. It names the file and the fix.
    """
    _raise_first(cheap_fault(folder, shard) for shard in shards)
    stamps = Stamps(folder)
    todo = [shard for shard in shards if not stamps.has(shard)]
    with ThreadPoolExecutor(THREADS) as threads:
        _raise_first(threads.map(lambda shard: fault(folder, shard), todo))
    if todo:
        stamps.put(todo)


def _raise_first(found: Iterable[StoreError | None]) -> None:
    for error in found:
        if error is not None:
            raise error


class Stamps:
    """Which shards of a store were found right, in the user's cache."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        name = hashlib.sha256(str(self._folder).encode()).hexdigest()[:16]
        self._path = cache_folder() / "signals" / f"{name}.json"
        self._stamps = self._read()

    def has(self, shard: ShardLine) -> bool:
        return shard.name in self._stamps and self._stamps[shard.name] == self._stamp(shard)

    def put(self, shards: Sequence[ShardLine]) -> None:
        """Remember shards. A cache that cannot be written is left alone."""
        with contextlib.suppress(OSError):
            new = {shard.name: self._stamp(shard) for shard in shards}
            self._path.parent.mkdir(parents=True, exist_ok=True)
            scratch = self._path.with_suffix(f".{os.getpid()}")
            scratch.write_text(json.dumps({**self._read(), **new}), encoding="utf-8")
            os.replace(scratch, self._path)

    def _stamp(self, shard: ShardLine) -> list[object]:
        found = (self._folder / shard.name).stat()
        return [shard.sha256, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]

    def _read(self) -> dict[str, list[object]]:
        try:
            return dict(json.loads(self._path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}
