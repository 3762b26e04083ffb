"""What is in a store, also in one that is damaged. Nothing is hashed, and nothing is written."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import StoreError
from limbeck.signals.store.hashes import cheap_fault, repair_fix
from limbeck.signals.store.index import SpanIndex
from limbeck.signals.store.manifest import FILE, read_manifest, unnamed_files
from limbeck.signals.store.shards import Shard


@dataclass(frozen=True)
class Summary:
    """What is in a store.

    Attributes:
        folder: of the store.
        identity: whose signals, as plain data; None: the manifest does not say.
        fingerprint: of the identity, 16 hexadecimal digits.
        teacher: a name of it for people; empty: it is not known.
        shards, documents, spans: how many there are.
        twice: spans that were written more than once.
        positions: with a signal.
        entries, bytes: of all positions.
        workers: shards by the worker that wrote them.
        faults: what is wrong, as far as sizes show it.
        unnamed: files of shards that the manifest does not name.
    """

    folder: str
    identity: dict[str, Any] | None
    fingerprint: str | None
    teacher: str
    shards: int
    documents: int
    spans: int
    twice: int
    positions: int
    entries: int
    bytes: int
    workers: dict[str, int]
    faults: tuple[str, ...]
    unnamed: tuple[str, ...]

    @property
    def bytes_per_position(self) -> float:
        """All in: what the shards take on the disk. 0 where there are none."""
        return self.bytes / self.positions if self.positions else 0.0

    @property
    def entries_per_position(self) -> float:
        return self.entries / self.positions if self.positions else 0.0


def summary_of(folder: Path) -> Summary:
    """Look into a store.

    Raises:
        StoreError: there is no store.
    """
    manifest = read_manifest(folder)
    faults = [f"{folder / FILE}: line {number} cannot be read" for number in manifest.damaged]
    opened = []
    for line in manifest.shards:
        try:
            fault = cheap_fault(folder, line)
            if fault is not None:
                raise fault
            opened.append(Shard(folder / line.name, repair_fix(folder)))
        except StoreError as error:
            faults.append(error.what)
    spans = SpanIndex.of(opened)
    identity = manifest.identity
    return Summary(
        folder=str(folder),
        identity=None if identity is None else identity.plain(),
        fingerprint=None if identity is None else identity.fingerprint,
        teacher=manifest.teacher,
        shards=len(manifest.shards),
        documents=len(spans.keys),
        spans=len(spans),
        twice=sum(shard.rows for shard in opened) - len(spans),
        positions=sum(line.positions for line in manifest.shards),
        entries=sum(line.entries for line in manifest.shards),
        bytes=sum(line.bytes for line in manifest.shards),
        workers=dict(sorted(Counter(line.worker for line in manifest.shards).items())),
        faults=tuple(faults),
        unnamed=tuple(file.name for file in unnamed_files(folder, {line.name for line in manifest.shards})),
    )
