"""The SQLite file under a journal: its tables, how it is opened, and how it is told to keep what it is given."""

from __future__ import annotations

import fcntl
import os
import re
import sqlite3
import time
from pathlib import Path
from typing import IO

from limbeck.errors import InputError, MachineError, RunFolderError

APPLICATION = 0x6C6D626B
"""Marks the file as a journal of limbeck ("lmbk")."""

VERSION = 2
"""1 had no ``attempts.lead``; a writer adds it."""

WAIT_SECONDS = 10.0
"""How long a writer waits for another one: the worker of a run that was killed takes a moment to end."""

TABLES = """
CREATE TABLE teachers (id INTEGER PRIMARY KEY, identity BLOB NOT NULL UNIQUE, sample BLOB);
CREATE TABLE prompts (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, request BLOB NOT NULL);
CREATE TABLE requests (
  id INTEGER PRIMARY KEY,
  key BLOB NOT NULL UNIQUE,
  prompt INTEGER NOT NULL,
  sample INTEGER NOT NULL,
  teacher INTEGER NOT NULL,
  state TEXT NOT NULL,
  outcome TEXT,
  failure TEXT,
  message TEXT,
  answer INTEGER,
  unknown INTEGER NOT NULL DEFAULT 0,
  resent INTEGER NOT NULL DEFAULT 0,
  most_unknown INTEGER NOT NULL DEFAULT 5
);
CREATE INDEX unfinished ON requests (state) WHERE state <> 'answered';
CREATE TABLE attempts (
  id INTEGER PRIMARY KEY,
  request INTEGER NOT NULL,
  teacher INTEGER NOT NULL,
  state TEXT NOT NULL,
  body BLOB,
  reserved INTEGER NOT NULL,
  reserved_tokens INTEGER NOT NULL,
  cost INTEGER NOT NULL DEFAULT 0,
  tokens INTEGER NOT NULL DEFAULT 0,
  began REAL NOT NULL,
  ended REAL,
  failure TEXT,
  message TEXT,
  batch INTEGER,
  lead INTEGER
);
CREATE INDEX attempts_of ON attempts (request);
CREATE INDEX in_flight ON attempts (state) WHERE state = 'sent';
CREATE TABLE answers (attempt INTEGER PRIMARY KEY, raw BLOB, completion BLOB NOT NULL);
CREATE TABLE batches (
  id INTEGER PRIMARY KEY,
  teacher INTEGER NOT NULL,
  tag TEXT NOT NULL,
  name TEXT,
  project TEXT,
  began REAL NOT NULL,
  ended REAL
);
CREATE INDEX batch_of ON attempts (batch) WHERE batch IS NOT NULL;
CREATE TABLE batch_files (id INTEGER PRIMARY KEY, batch INTEGER NOT NULL, kind TEXT NOT NULL, content BLOB NOT NULL);
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""

_NETWORK = re.compile(
    r"^(nfs\d*|cifs|smb\d*|smbfs|afs|9p|ceph|lustre|gpfs|beegfs|gfs2?|ocfs2|glusterfs|fuse.*|virtiofs)$"
)


class DamagedError(MachineError):
    """The file is not as SQLite wrote it."""


def open_for_writing(path: Path) -> sqlite3.Connection:
    """The connection of the one writer. A file that does not exist is made.

    Raises:
        InputError: the file is no journal, or a newer one.
        DamagedError: it is damaged.
        MachineError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=60, cached_statements=256)
    except (sqlite3.Error, OSError) as error:
        raise MachineError(f"the journal {path} cannot be written ({error})") from None
    try:
        _require_journal(db, path)
        db.execute(f"PRAGMA journal_mode={'DELETE' if on_network(path) else 'WAL'}")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA fullfsync=ON")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version < VERSION:
            made = TABLES if version == 0 else "ALTER TABLE attempts ADD COLUMN lead INTEGER;"
            db.executescript(
                f"BEGIN IMMEDIATE; {made} PRAGMA application_id={APPLICATION}; PRAGMA user_version={VERSION}; COMMIT;"
            )
        found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            db.close()
            raise _damaged(path, str(found).splitlines()[-1])
    except sqlite3.DatabaseError as error:
        db.close()
        raise problem(path, error) from None
    except InputError:
        db.close()
        raise
    return db


def open_for_reading(path: Path) -> sqlite3.Connection:
    """A connection that never writes.

    Raises:
        InputError: there is no such file, or it is no journal.
    """
    if not path.is_file():
        raise InputError(f"there is no journal {path}")
    try:
        db = sqlite3.connect(
            f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False, timeout=60
        )
        begun = _require_journal(db, path)
    except sqlite3.Error as error:
        raise problem(path, error) from None
    if not begun:
        raise InputError(f"the journal {path} is empty")
    return db


def _require_journal(db: sqlite3.Connection, path: Path) -> bool:
    """False: it is an empty file."""
    try:
        application = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        empty = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
            raise InputError(f"{path} is not a journal of limbeck", fix="Name another file") from None
        raise
    if empty:
        return False
    if application != APPLICATION:
        raise InputError(f"{path} is a database of another program", fix="Name another file")
    if version > VERSION:
        raise InputError(
            f"the journal {path} was made by a newer limbeck (version {version}; this one reads {VERSION})",
            fix="Update limbeck",
        )
    return True


def problem(path: Path, error: sqlite3.Error) -> MachineError:
    """The user's view of an error of SQLite."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return MachineError(f"the disk of the journal {path} is full", fix="Free some space and run again")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return _damaged(path, str(error))
    return MachineError(f"the journal {path} cannot be read or written ({error})")


def _damaged(path: Path, how: str) -> DamagedError:
    return DamagedError(f"the journal {path} is damaged ({how})", fix="Restore it from a copy, or move it away")


def on_network(path: Path) -> bool:
    """Whether a file is on a network file system, where a write-ahead log is not safe. Unknown counts as yes."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return True
    place, best = path.parent.resolve(), (-1, "")
    for line in mounts:
        before, _, after = line.partition(" - ")
        point = Path(re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), before.split()[4]))
        if place.is_relative_to(point):
            best = max(best, (len(point.parts), after.split()[0]), key=lambda found: found[0])
    return bool(_NETWORK.match(best[1]))


def is_written(path: Path) -> bool:
    """Whether a process holds the journal's :class:`WriterLock`. Nothing is written."""
    try:
        with path.with_name(f"{path.name}.lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


class WriterLock:
    """Held by the one process that writes a journal, until it is closed or the process ends.

    Raises:
        RunFolderError: another process holds it.
    """

    def __init__(self, path: Path) -> None:
        name = path.with_name(f"{path.name}.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[str] = name.open("a+")
        except OSError as error:
            raise MachineError(f"the journal {path} cannot be written ({error.strerror})") from None
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                self._file.seek(0)
                owner = self._file.read().strip()
                self._file.close()
                raise RunFolderError(
                    f"the journal {path} is written by another limbeck{f' (process {owner})' if owner else ''}",
                    fix="Wait for it to end",
                ) from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def close(self) -> None:
        self._file.close()
