"""Batches in a journal: which requests are in which, and what came back."""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from limbeck.generation.journal.journal import Journal
from limbeck.generation.journal.rows import RowState, Teacher
from limbeck.generation.journal.storage.codec import pack, unpack
from limbeck.generation.journal.storage.tables import hold_teacher, move, prompt_bytes, request_of, standing
from limbeck.generation.request import Request


@dataclass(frozen=True)
class Sending:
    """A request on its way: see :meth:`Journal.sent`."""

    key: str
    request: Request
    body: bytes
    reserved: int
    reserved_tokens: int
    attempt: int = 0


@dataclass(frozen=True)
class Batch:
    """Requests that were sent together.

    Attributes:
        id: its number in the journal.
        tag: a name of our own, which the provider is told where it keeps one.
        name: the provider's; None: it is not known whether there is such a batch.
        project: whose key it was sent with, as a fingerprint.
        sendings: its requests that have no answer yet.
    """

    id: int
    tag: str
    name: str | None
    project: str | None
    sendings: tuple[Sending, ...]


class Batches:
    """The batches of one journal, which is open for writing."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def begin(self, sendings: Sequence[Sending], teacher: Teacher) -> Batch:
        """Note that requests are about to be sent as one batch; it is on disk when this returns."""
        tag = uuid.uuid4().hex

        def work(db: sqlite3.Connection, changes: Counter[str]) -> tuple[int, list[Sending]]:
            who = hold_teacher(db, teacher)
            number = db.execute(
                "INSERT INTO batches (teacher, tag, began) VALUES (?, ?, ?) RETURNING id", (who, tag, time.time())
            ).fetchone()[0]
            begun = []
            for each in sendings:
                row = standing(db, each.key)
                if row.state in (RowState.ANSWERED, RowState.SENT):
                    raise ValueError(f"row {each.key} is {row.state.value} already")
                body = pack(each.body, prompt_bytes(db, row.prompt))
                attempt = db.execute(
                    "INSERT INTO attempts (request, teacher, state, body, reserved, reserved_tokens, began, batch) "
                    "VALUES (?, ?, 'sent', ?, ?, ?, ?, ?) RETURNING id",
                    (row.id, who, body, each.reserved, each.reserved_tokens, time.time(), number),
                ).fetchone()[0]
                changes["reserved_nano_usd"] += each.reserved
                changes["reserved_tokens"] += each.reserved_tokens
                changes["possibly_paid_twice"] += row.unknown - row.resent
                db.execute("UPDATE requests SET resent = unknown WHERE id = ?", (row.id,))
                move(db, changes, row, RowState.SENT)
                begun.append(replace(each, attempt=attempt))
            return number, begun

        number, begun = self.journal.writer.do(work, spends=True)
        return Batch(number, tag, None, None, tuple(begun))

    def name(self, batch: Batch, name: str, project: str) -> Batch:
        """Keep the provider's name of a batch, and a fingerprint of whose it is; it is on disk when this returns."""
        self.journal.writer.do(
            lambda db, _: (
                db.execute("UPDATE batches SET name = ?, project = ? WHERE id = ?", (name, project, batch.id)).rowcount
            )
        )
        return replace(batch, name=name, project=project)

    def keep_file(self, batch: Batch, kind: str, content: bytes) -> None:
        """Keep a file of results as it came; it is on disk when this returns. What was kept before stays."""

        def work(db: sqlite3.Connection, _: Counter[str]) -> None:
            known = db.execute("SELECT content FROM batch_files WHERE batch = ? AND kind = ?", (batch.id, kind))
            if all(unpack(packed) != content for (packed,) in known.fetchall()):
                db.execute(
                    "INSERT INTO batch_files (batch, kind, content) VALUES (?, ?, ?)", (batch.id, kind, pack(content))
                )

        self.journal.writer.do(work)

    def file(self, batch: Batch, kind: str) -> bytes | None:
        """The last file of a kind that was kept."""

        def work(db: sqlite3.Connection, _: Counter[str]) -> bytes | None:
            found = db.execute(
                "SELECT content FROM batch_files WHERE batch = ? AND kind = ? ORDER BY id DESC", (batch.id, kind)
            ).fetchone()
            return None if found is None else unpack(found[0])

        return self.journal.writer.do(work)

    def end(self, batch: Batch) -> None:
        """All that a batch will bring is in the journal."""
        self.journal.writer.do(
            lambda db, _: db.execute("UPDATE batches SET ended = ? WHERE id = ?", (time.time(), batch.id)).rowcount
        )

    def unfinished(self, teacher: Teacher) -> list[Batch]:
        """Batches of a teacher that were sent, or may have been, and have not ended."""

        def work(db: sqlite3.Connection, _: Counter[str]) -> list[Batch]:
            found = []
            for number, tag, name, project in db.execute(
                "SELECT id, tag, name, project FROM batches WHERE ended IS NULL AND teacher = ? ORDER BY id",
                (hold_teacher(db, teacher),),
            ).fetchall():
                sendings = []
                for attempt, key, prompt, sample, body, reserved, tokens in db.execute(
                    "SELECT a.id, r.key, r.prompt, r.sample, a.body, a.reserved, a.reserved_tokens FROM attempts a "
                    "JOIN requests r ON r.id = a.request WHERE a.batch = ? AND a.state = 'sent'",
                    (number,),
                ).fetchall():
                    request, plain = request_of(db, prompt, sample), unpack(body, prompt_bytes(db, prompt))
                    sendings.append(Sending(key.hex(), request, plain, reserved, tokens, attempt))
                found.append(Batch(number, tag, name, project, tuple(sendings)))
            return found

        return self.journal.writer.do(work)
