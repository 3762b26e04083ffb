"""Mends a store: what fails is set aside, what is whole and was not named is adopted."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from limbeck.errors import StoreError, counted
from limbeck.files import fsync
from limbeck.signals.store.hashes import Stamps, repair_fix, sha256_of
from limbeck.signals.store.identity import Identity
from limbeck.signals.store.index import SpanIndex
from limbeck.signals.store.manifest import (
    FILE,
    Manifest,
    ShardLine,
    create_manifest,
    is_held,
    locked,
    read_manifest,
    unnamed_files,
)
from limbeck.signals.store.shards import END, WRITING, Shard
from limbeck.signals.store.writer import writing
from limbeck.signals.upkeep.check import check_entries, check_shard

ASIDE = "damaged"
"""Folder in a store for what was set aside. Nothing is read from it."""


@dataclass
class Repaired:
    """What was done, a sentence each. Empty: the store was whole.

    Attributes:
        said: what was adopted, set aside or left alone, and why.
        changed: whether the manifest was written again.
    """

    said: list[str] = field(default_factory=list)
    changed: bool = False


def repair(folder: Path) -> Repaired:
    """Make a store whole. Other writers of it wait meanwhile; what they are writing is left alone.

    Shards that fail are moved to ``FOLDER/damaged``, and their spans are captured again by the next capture. Shards
    that are whole, and hold spans that the store does not have, are named again. The manifest is written anew where
    that changes it, also where it is lost: each shard says whose signals it holds.

    Raises:
        StoreError: there is no store, or it cannot be told whose signals its shards hold.
        StoreWriteError: the folder cannot be written.
    """
    if not folder.is_dir():
        raise StoreError(f"there is no folder {folder}", fix="Check the path")
    done = Repaired()
    with writing(folder), locked(folder):
        try:
            manifest = read_manifest(folder)
        except StoreError:
            if (folder / FILE).exists():
                raise
            manifest = Manifest(folder, None, ())
        identity = manifest.identity or _identity_of_shards(folder, done)
        if manifest.damaged:
            done.changed = True
            done.said.append(f"{counted(len(manifest.damaged), 'line')} of {FILE} could not be read, and left out")
        kept = [line for line in manifest.shards if _keeps(folder, line, identity, done)]
        adopted = _adopt(folder, identity, kept, done)
        if done.changed or adopted:
            done.changed = True
            create_manifest(folder, identity, [*kept, *adopted], manifest.teacher)
        Stamps(folder).put([*kept, *adopted])
    return done


def _identity_of_shards(folder: Path, done: Repaired) -> Identity:
    """Whose signals all shards hold, by their own schemas."""
    found: dict[str, Identity] = {}
    for file in unnamed_files(folder):
        try:
            identity = Shard(file, repair_fix(folder)).identity
        except StoreError:
            continue
        found[identity.fingerprint] = identity
    if not found:
        raise StoreError(f"there is no store of signals in {folder}", fix="Check the path")
    if len(found) > 1:
        raise StoreError(
            f"the shards in {folder} hold signals of {len(found)} identities, and its manifest is lost",
            fix="Move those of each into a folder of their own, and repair each",
        )
    done.changed = True
    done.said.append(f"{FILE} did not say whose signals it names; the shards do")
    return next(iter(found.values()))


def _keeps(folder: Path, line: ShardLine, identity: Identity, done: Repaired) -> bool:
    """Whether a shard is what the manifest says. If not, it is set aside."""
    try:
        check_shard(folder, line, identity)
    except StoreError as error:
        done.changed = True
        _set_aside(folder / line.name, error.what, done)
        return False
    return True


def _adopt(folder: Path, identity: Identity, kept: list[ShardLine], done: Repaired) -> list[ShardLine]:
    """Lines for shards that are whole and were not named; others are set aside."""
    adopted: list[ShardLine] = []
    for file in unnamed_files(folder, {line.name for line in kept}):
        if is_held(file):
            done.said.append(f"{file.name} is being written, and was left alone")
            continue
        try:
            shard = Shard(file, repair_fix(folder))
            shard.identity.require(identity, str(file))
            if not _ends(file):
                raise shard.damaged("its end is missing")
            facts = shard.check()
            check_entries(shard)
        except StoreError as error:
            _set_aside(file, error.what, done)
            continue
        there = SpanIndex.of([Shard(folder / line.name, repair_fix(folder)) for line in [*kept, *adopted]])
        if np.all(there.has(shard.index)):
            _set_aside(file, "the store has all of its spans", done)
            continue
        name = file.name.removesuffix(WRITING)
        os.rename(file, folder / name)
        fsync(folder)
        path = folder / name
        adopted.append(ShardLine(name, sha256_of(path), *facts[:3], path.stat().st_size, facts.data, "repair"))
        done.said.append(f"{name} was not named, and is whole: {counted(facts.rows, 'span')} adopted")
    return adopted


def _ends(file: Path) -> bool:
    """Whether a shard has the mark that ends a stream: it was written to its end."""
    with file.open("rb") as opened:
        opened.seek(-len(END), os.SEEK_END)
        return opened.read() == END


def _set_aside(file: Path, why: str, done: Repaired) -> None:
    if not file.exists():
        done.said.append(f"{file.name} is gone: its spans are captured again")
        return
    aside = file.parent / ASIDE
    aside.mkdir(exist_ok=True)
    os.replace(file, aside / file.name)
    done.said.append(f"{file.name} was moved to {ASIDE}/: {why}")
