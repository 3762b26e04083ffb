"""Whether every byte of a store is what was written, and every entry can be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from limbeck.errors import StoreError
from limbeck.signals.codec import CODEC, decode
from limbeck.signals.store.hashes import Stamps, fault, repair_fix
from limbeck.signals.store.identity import Identity
from limbeck.signals.store.manifest import FILE, ShardLine, read_manifest, unnamed_files
from limbeck.signals.store.shards import Shard


@dataclass(frozen=True)
class Verified:
    """What reading all of a store found.

    Attributes:
        shards: how many are whole.
        positions: with a signal, in whole shards.
        faults: what is wrong, a sentence each, with the fix.
        unnamed: files of shards that the manifest does not name. Readers leave them alone.
    """

    shards: int
    positions: int
    faults: tuple[str, ...]
    unnamed: tuple[str, ...]


def verify(folder: Path, progress: Callable[[int], None] = lambda n_bytes: None) -> Verified:
    """Hash every shard, whatever was found before, and decode every entry.

    Args:
        progress: is told of the bytes of each shard.

    Raises:
        StoreError: there is no store, or its manifest does not say whose signals it names.
    """
    manifest = read_manifest(folder)
    identity = manifest.whose()
    mend = f"`limbeck signals repair {folder}` adopts the shard that it named"
    faults = [f"{folder / FILE}: line {number} cannot be read. {mend}" for number in manifest.damaged]
    whole: list[ShardLine] = []
    for line in manifest.shards:
        try:
            check_shard(folder, line, identity)
            whole.append(line)
        except StoreError as error:
            faults.append(error.line())
        progress(line.bytes)
    Stamps(folder).put(whole)
    unnamed = unnamed_files(folder, {line.name for line in manifest.shards})
    positions = sum(line.positions for line in whole)
    return Verified(len(whole), positions, tuple(faults), tuple(file.name for file in unnamed))


def check_shard(folder: Path, line: ShardLine, identity: Identity) -> None:
    """Raise StoreError if a shard is not what the manifest says."""
    found = fault(folder, line)
    if found is not None:
        raise found
    shard = Shard(folder / line.name, repair_fix(folder))
    shard.identity.require(identity, str(shard.path))
    facts = shard.check()
    if facts != (line.rows, line.positions, line.entries, line.data):
        raise shard.damaged("its spans are not those of the manifest")
    check_entries(shard)


def check_entries(shard: Shard) -> None:
    """Raise StoreError if an entry is none of the vocabulary's, or no log-probability."""
    if shard.identity.codec != CODEC:
        raise StoreError(
            f"{shard.path} is of codec version {shard.identity.codec}, and this limbeck reads {CODEC}",
            fix="Read it with the limbeck that wrote it",
        )
    vocab_size = shard.identity.vocab_size
    for row in range(shard.rows):
        decoded = decode(shard.encoded(row), vocab_size)
        if len(decoded.ids) and (int(decoded.ids.max()) >= vocab_size or not (decoded.logprobs <= 0).all()):
            raise shard.damaged(f"span {row} has an entry that is no token's probability")
        if not np.isfinite(decoded.entropy).all():
            raise shard.damaged(f"span {row} has an entropy that is no number")
    shard.release()
