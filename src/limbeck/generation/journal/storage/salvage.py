"""What can still be read of a damaged journal: a torn page costs what is on it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from limbeck.generation.journal.storage.database import APPLICATION, TABLES, VERSION

_NUMBERED = ("teachers", "prompts", "requests", "attempts", "answers", "batches", "batch_files")
_NAMED = ("facts",)

STEPS = 300
"""A page has fewer rows than this: after so many errors, larger steps are taken."""

_MEND = """
DELETE FROM requests WHERE prompt NOT IN (SELECT id FROM prompts) OR teacher NOT IN (SELECT id FROM teachers);
DELETE FROM attempts WHERE request NOT IN (SELECT id FROM requests) OR teacher NOT IN (SELECT id FROM teachers);
DELETE FROM answers WHERE attempt NOT IN (SELECT id FROM attempts);
UPDATE requests SET state = 'todo', answer = NULL, outcome = NULL
  WHERE state = 'answered' AND answer NOT IN (SELECT attempt FROM answers);
UPDATE requests SET state = 'unknown'
  WHERE state = 'sent' AND id NOT IN (SELECT request FROM attempts WHERE state = 'sent');
"""

RECOUNT = """
SELECT 'answered/' || outcome, count(*) FROM requests WHERE state = 'answered' GROUP BY outcome
UNION ALL SELECT 'failed/' || failure, count(*) FROM requests WHERE state = 'failed' GROUP BY failure
UNION ALL SELECT state, count(*) FROM requests WHERE state NOT IN ('answered', 'failed') GROUP BY state
UNION ALL SELECT 'possibly_paid_twice', coalesce(sum(resent), 0) FROM requests
UNION ALL SELECT 'nano_usd', coalesce(sum(cost), 0) FROM attempts
UNION ALL SELECT 'tokens', coalesce(sum(tokens), 0) FROM attempts
UNION ALL SELECT 'reserved_nano_usd', coalesce(sum(reserved), 0) FROM attempts WHERE state IN ('sent', 'unknown')
UNION ALL SELECT 'reserved_tokens', coalesce(sum(reserved_tokens), 0) FROM attempts WHERE state IN ('sent', 'unknown')
"""
"""What the counters must be, by the tables themselves."""


def salvage(path: Path) -> str:
    """Replace a damaged journal by one of what can be read. The damaged file is kept beside it.

    Returns:
        What came of it, for people.

    Raises:
        sqlite3.DatabaseError: nothing can be read.
    """
    scratch = path.with_name(f".{path.name}.writing")
    scratch.unlink(missing_ok=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as old, closing(sqlite3.connect(scratch)) as new:
        new.executescript(f"{TABLES} PRAGMA application_id={APPLICATION}; PRAGMA user_version={VERSION};")
        held = {name: _copy(old, new, name) for name in (*_NUMBERED, *_NAMED)}
        new.executescript(_MEND)
        new.execute(f"INSERT INTO counters {RECOUNT}")
        new.commit()
        kept = new.execute("SELECT count(*) FROM answers").fetchone()[0]
    for side in ("-wal", "-shm"):  # its content was read above
        path.with_name(path.name + side).unlink(missing_ok=True)
    damaged = path.with_name(f"{path.name}.damaged")
    os.replace(path, damaged)
    os.replace(scratch, path)
    return f"the journal {path} was damaged: {kept:,} answers of {held['requests']:,} rows were read; see {damaged}"


def _copy(old: sqlite3.Connection, new: sqlite3.Connection, table: str) -> int:
    columns = len(new.execute(f"PRAGMA table_info({table})").fetchall())
    rows = 0
    for row in _readable(old, table):
        rows += 1
        new.execute(f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * columns)})", row)
    return rows


def _readable(db: sqlite3.Connection, table: str) -> Iterator[tuple[Any, ...]]:
    """All rows but those that cannot be read: those are stepped over, one at a time, then faster and faster."""
    if table in _NAMED:
        with suppress(sqlite3.DatabaseError):
            yield from db.execute(f"SELECT * FROM {table}").fetchall()
        return
    after, errors, failure = 0, 0, None
    found = 0
    while after < 2**40:
        try:
            row = db.execute(f"SELECT * FROM {table} WHERE rowid > ? ORDER BY rowid LIMIT 1", (after,)).fetchone()
        except sqlite3.DatabaseError as error:
            errors, failure = errors + 1, error
            after += 1 if errors <= STEPS else 2 ** (errors - STEPS)
            continue
        if row is None:
            break
        after, errors, found = row[0], 0, found + 1
        yield row
    if failure is not None and not found and table == "requests":
        raise failure
