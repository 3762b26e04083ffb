"""The manifest of a store: whose signals it holds, and which shards are whole.

JSON lines, appended under a lock and flushed. A shard is named after it is on the disk under its name, so what the
manifest names is whole however a writer ended. Each line carries a checksum: a torn or damaged one costs that line
only, and its shard is adopted again by ``limbeck signals repair``.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from limbeck.errors import StoreError, counted
from limbeck.files import exclusive, write_whole
from limbeck.signals.store.identity import Identity
from limbeck.signals.store.shards import PREFIX, SUFFIX, WRITING

FILE, LOCK = "manifest.jsonl", ".lock"

FORMAT = 1
"""Version of the layout of a store. The codec of the entries has its own."""


@dataclass(frozen=True)
class ShardLine:
    """What the manifest says of a shard.

    Attributes:
        name: of its file.
        sha256: of the file's bytes.
        rows, positions, entries: spans; positions with a signal; entries of all of them.
        bytes: size of the file.
        data: fingerprint of what it covers: keys, offsets, contexts and digests of its spans.
        worker: which worker wrote it.
    """

    name: str
    sha256: str
    rows: int
    positions: int
    entries: int
    bytes: int
    data: str
    worker: str


@dataclass(frozen=True)
class Manifest:
    """What a store says of itself.

    Attributes:
        folder: of the store.
        identity: whose signals; None: the line that says it cannot be read.
        shards: in the order in which they were written.
        damaged: numbers of the lines that cannot be read, from 1.
        teacher: a name of the teacher for people, no part of the identity; empty: it is not known.
    """

    folder: Path
    identity: Identity | None
    shards: tuple[ShardLine, ...]
    damaged: tuple[int, ...] = ()
    teacher: str = ""

    def whose(self) -> Identity:
        """Raises StoreError where it cannot be read."""
        if self.identity is None:
            raise StoreError(
                f"{self.folder / FILE} is damaged: it does not say whose signals it names",
                fix=f"`limbeck signals repair {self.folder}` writes it again from the shards",
            )
        return self.identity


def _line(plain: Mapping[str, Any]) -> str:
    text = json.dumps(plain, sort_keys=True)
    return json.dumps({**plain, "crc": zlib.crc32(text.encode())}, sort_keys=True)


def _plain(line: bytes) -> dict[str, Any] | None:
    """What a line says; None: it is torn or damaged."""
    try:
        plain = json.loads(line)
        crc = plain.pop("crc")
    except (ValueError, AttributeError, KeyError, TypeError):
        return None
    return plain if zlib.crc32(json.dumps(plain, sort_keys=True).encode()) == crc else None


def _head(identity: Identity, teacher: str) -> dict[str, Any]:
    named = {"teacher": teacher} if teacher else {}
    return {"limbeck_signals": FORMAT, "identity": identity.plain(), **named}


def unnamed_files(folder: Path, named: Collection[str] = ()) -> list[Path]:
    """Files of shards, whole or being written, that a manifest does not name."""
    files = [*folder.glob(f"{PREFIX}*{SUFFIX}"), *folder.glob(f"{PREFIX}*{SUFFIX}{WRITING}")]
    return sorted(file for file in files if file.name not in named)


def is_held(file: Path) -> bool:
    """Whether a writer is writing a shard."""
    if not file.name.endswith(WRITING):
        return False
    try:
        with file.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:  # it was finished, or given up, meanwhile
        return False
    except OSError:
        return True
    return False


def is_store(folder: Path) -> bool:
    """Whether a folder has a manifest; False: a store can be made there.

    Raises:
        StoreError: it has none, and shards that no writer is writing: the manifest is lost.
    """
    # Shards are looked for first: a writer makes the manifest before them.
    left = [file for file in unnamed_files(folder) if not is_held(file)]
    if (folder / FILE).exists():
        return True
    left = [file for file in left if file.exists()]
    if left:
        raise StoreError(
            f"{folder} holds {counted(len(left), 'file')} of shards, and its {FILE} is lost",
            fix=f"`limbeck signals repair {folder}` writes it again from the shards",
        )
    return False


def read_manifest(folder: Path) -> Manifest:
    """Read a store's manifest.

    Raises:
        StoreError: there is no store, one whose manifest is lost, or one of another layout.
    """
    path = folder / FILE
    try:
        lines = path.read_bytes().split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        is_store(folder)
        raise StoreError(
            f"there is no store of signals in {folder}", fix="`limbeck capture RECIPE` makes one, or name its folder"
        ) from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror})", fix="Check its permissions") from None
    identity, damaged, teacher = None, [], ""
    shards: dict[str, ShardLine] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        plain = _plain(line)
        if plain is None or "/" in plain.get("name", ""):  # a shard lies in the folder itself
            damaged.append(number)
        elif "identity" in plain:
            identity, teacher = identity or _identity(plain, path), teacher or plain.get("teacher", "")
        else:
            shard = ShardLine(**{each.name: plain[each.name] for each in fields(ShardLine)})
            shards.setdefault(shard.name, shard)
    return Manifest(folder, identity, tuple(shards.values()), tuple(damaged), teacher)


def _identity(plain: Mapping[str, Any], path: Path) -> Identity:
    if plain["limbeck_signals"] != FORMAT:
        raise StoreError(
            f"{path} has layout {plain['limbeck_signals']}, and this limbeck reads layout {FORMAT}",
            fix="Read it with the limbeck that wrote it",
        )
    return Identity.from_plain(plain["identity"])


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One writer of the manifest at a time."""
    with exclusive(folder / LOCK):
        yield


def create_manifest(folder: Path, identity: Identity, shards: Sequence[ShardLine] = (), teacher: str = "") -> None:
    """Write the manifest anew, at once or not at all. The caller holds the lock."""
    lines = [_line(_head(identity, teacher)), *(_line(asdict(shard)) for shard in shards)]
    write_whole(folder / FILE, "".join(f"{line}\n" for line in lines))


def append_shard(folder: Path, shard: ShardLine) -> None:
    """Name a shard, flushed to the disk. The caller holds the lock.

    A torn last line is ended first. A line that cannot be written whole (OSError) is taken back.
    """
    with (folder / FILE).open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        torn = b""
        if size:
            file.seek(size - 1)
            torn = b"" if file.read(1) == b"\n" else b"\n"
        try:
            file.write(torn + _line(asdict(shard)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise
