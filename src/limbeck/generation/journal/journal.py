"""The durable record of requests and their answers: what was paid for is on disk before it is used."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from limbeck.errors import RecipeError
from limbeck.generation.journal.rows import Counts, Row, RowState, Spent, Teacher
from limbeck.generation.journal.storage.codec import completion_from_bytes, completion_to_bytes, pack, unpack
from limbeck.generation.journal.storage.database import (
    DamagedError,
    WriterLock,
    open_for_reading,
    open_for_writing,
    problem,
)
from limbeck.generation.journal.storage.salvage import salvage
from limbeck.generation.journal.storage.tables import (
    UNREADABLE,
    Standing,
    end_attempt,
    find,
    hold_prompt,
    hold_teacher,
    move,
    near_answer,
    prompt_bytes,
    request_of,
    standing,
    teacher_of,
)
from limbeck.generation.journal.storage.writer import Writer
from limbeck.generation.request import Completion, Request

ADDED_AT_ONCE = 500
PAGE = 64
"""Rows that are read at once: answers of some megabytes fit into memory."""


class Journal:
    """Requests and their answers, in one SQLite file.

    A request is a row before it is sent, and an answer is on disk before it counts. What was in flight when a process
    was killed is ``unknown`` on the next opening: it may have been paid for, so what was reserved for it stays spent.
    One process writes at a time; any number may read meanwhile.

    Args:
        path: the file. A writer makes it, and keeps a lock (``.lock``) and some room (``.ballast``) beside it.
        read_only: never write; the file must be there.

    Attributes:
        note: what was lost, where the file was damaged and a writer went on with what could be read; else None.

    Raises:
        InputError: the file is no journal, or was made by a newer version.
        RunFolderError: another process writes it.
        MachineError: nothing in it can be read, it cannot be written, or the disk is full.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self.note: str | None = None
        self._reading = threading.Lock()
        self._writer: Writer | None = None
        self._held: WriterLock | None = None
        if not read_only:
            self._held = WriterLock(path)
            try:
                self._db, self.note = _open_or_salvage(path)
                self._writer = Writer(self._db, path)
                self._writer.do(_close_open_attempts)
            except BaseException:
                self.close()
                raise
        self._reader = open_for_reading(path)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Commit what is under way and close the file. A journal that is closed is one file beside its lock."""
        if (reader := getattr(self, "_reader", None)) is not None:
            reader.close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if (db := getattr(self, "_db", None)) is not None:
            with suppress(sqlite3.Error):  # someone reads it: the write-ahead log stays
                db.execute("PRAGMA journal_mode=DELETE")
            db.close()
        if self._held is not None:
            self._held.close()
            self._held = None

    @property
    def writer(self) -> Writer:
        """The thread that all changes go through."""
        if self._writer is None:
            raise ValueError("the journal is not open for writing")
        return self._writer

    def add(self, requests: Iterable[Request], teacher: Teacher) -> int:
        """Make rows of requests that are not there yet; they are on disk when this returns.

        Returns:
            How many rows are new.
        """
        new, left = 0, iter(requests)
        while some := [(each, bytes.fromhex(each.key(teacher))) for each in islice(left, ADDED_AT_ONCE)]:

            def work(db: sqlite3.Connection, changes: Counter[str], some: list[tuple[Request, bytes]] = some) -> int:
                who = hold_teacher(db, teacher)
                added = 0
                for request, key in some:
                    if find(db, key) is None:
                        hold_prompt(db, changes, key, request, who)
                        added += 1
                return added

            new += self.writer.do(work, spends=True)
        return new

    def get(self, key: str) -> Completion | None:
        """The answer of a row; None: there is no such row, or no answer yet."""
        found = self._read(
            "SELECT r.id, a.id, t.sample, s.raw, s.completion FROM requests r JOIN attempts a ON a.id = r.answer "
            "JOIN teachers t ON t.id = a.teacher JOIN answers s ON s.attempt = a.id WHERE r.key = ?",
            (bytes.fromhex(key),),
        )
        return self._completion(*found[0]) if found else None

    def _completion(
        self, number: int, attempt: int, sample: bytes | None, raw: bytes | None, packed: bytes
    ) -> Completion | None:
        """An answer; None: it is damaged. Its row is to do then."""
        try:
            plain = b"" if raw is None else unpack(raw, near_answer(sample, attempt))
            return completion_from_bytes(unpack(packed, plain))
        except (zlib.error, ValueError, TypeError, KeyError):
            if self._writer is not None:
                self._writer.do(lambda db, changes: _lose(db, changes, number))
            return None

    def has_open_batch(self) -> bool:
        """Whether a provider's batch is under way: what it holds waits for no process."""
        there = self._read("SELECT 1 FROM sqlite_master WHERE name = 'batches'", ())
        return bool(there and self._read("SELECT 1 FROM batches WHERE ended IS NULL LIMIT 1", ()))

    def state(self, key: str) -> RowState | None:
        """Where a row stands; None: there is no such row."""
        found = self._read("SELECT state FROM requests WHERE key = ?", (bytes.fromhex(key),))
        return RowState(found[0][0]) if found else None

    def row(self, key: str) -> Row | None:
        """All about one row; None: there is no such row."""
        return next(self._rows("key = ?", (bytes.fromhex(key),)), None)

    def rows(self, *states: RowState) -> Iterator[Row]:
        """Rows in the order in which they were added, a few at a time; of some states, or all."""
        if not states:
            yield from self._rows("TRUE", ())
        else:
            yield from self._rows(f"state IN ({', '.join('?' * len(states))})", tuple(states))

    def who_wrote(self, key: str) -> Teacher | None:
        """The teacher that answered a row; None: there is no answer."""
        row = self.row(key)
        return None if row is None else row.written_by

    def wrote(self) -> list[tuple[Teacher, int]]:
        """How many answers each teacher wrote. One that stands alone costs no look at the rows."""
        numbers = [number for (number,) in self._read("SELECT id FROM teachers ORDER BY id", ())]
        if len(numbers) == 1:
            found = [(numbers[0], sum(self.counts().answered.values()))]
        else:
            found = self._read(
                "SELECT a.teacher, count(*) FROM requests r JOIN attempts a ON a.id = r.answer GROUP BY a.teacher "
                "ORDER BY a.teacher",
                (),
            )
        with self._reading:
            return [(teacher_of(self._reader, number), count) for number, count in found if count]

    def exchange(self, key: str) -> tuple[bytes | None, bytes | None] | None:
        """The body that was sent and the raw answer, byte for byte, of a row that is answered; else None.

        Rows that were answered by one request (:meth:`sent_together`) have both in common.
        """
        has_lead = self._read("SELECT 1 FROM pragma_table_info('attempts') WHERE name = 'lead'", ())
        found = self._read(
            "SELECT r.prompt, a.body, t.sample, s.raw, s.attempt FROM requests r JOIN attempts a ON a.id = "
            f"{'(SELECT coalesce(lead, id) FROM attempts WHERE id = r.answer)' if has_lead else 'r.answer'} "
            "JOIN answers s ON s.attempt = a.id JOIN teachers t ON t.id = a.teacher WHERE r.key = ?",
            (bytes.fromhex(key),),
        )
        if not found:
            return None
        prompt, body, sample, raw, attempt = found[0]
        with self._reading:
            near = prompt_bytes(self._reader, prompt)
        return (
            None if body is None else unpack(body, near),
            None if raw is None else unpack(raw, near_answer(sample, attempt)),
        )

    async def sent(self, key: str, teacher: Teacher, body: bytes, reserved: int, reserved_tokens: int = 0) -> int:
        """Note that a request is about to be sent; it is on disk when this returns.

        Args:
            key: of its row.
            teacher: who is asked: the row's first teacher, or one that stands in for it.
            body: the exact body.
            reserved: the most that it can cost, in nano-USD.
            reserved_tokens: the most tokens that it can take.

        Returns:
            The number of the attempt.

        Raises:
            MachineError: the disk is full; nothing may be sent.
        """
        return (await self.sent_together([key], teacher, body, reserved, reserved_tokens))[0]

    async def sent_together(
        self, keys: Sequence[str], teacher: Teacher, body: bytes, reserved: int, reserved_tokens: int = 0
    ) -> list[int]:
        """The same of one request that asks for an answer to each of several rows: samples of one prompt.

        Body and reservation are kept once, with the first attempt.

        Returns:
            The numbers of the attempts, one a row.
        """

        def one(db: sqlite3.Connection, changes: Counter[str], key: str, lead: int | None) -> int:
            row = standing(db, key)
            if row.state is RowState.ANSWERED:
                raise ValueError(f"row {key} is answered already")
            if row.state is RowState.SENT:
                raise RecipeError(
                    "an answer that is asked for is part of a batch that has not ended",
                    key=".batch",
                    fix="Write `batch: true` until it has ended",
                )
            first = lead is None
            cursor = db.execute(
                "INSERT INTO attempts (request, teacher, state, body, reserved, reserved_tokens, began, lead) "
                "VALUES (?, ?, 'sent', ?, ?, ?, ?, ?)",
                (
                    row.id,
                    hold_teacher(db, teacher),
                    pack(body, prompt_bytes(db, row.prompt)) if first else None,
                    reserved if first else 0,
                    reserved_tokens if first else 0,
                    time.time(),
                    lead,
                ),
            )
            if first:
                changes["reserved_nano_usd"] += reserved
                changes["reserved_tokens"] += reserved_tokens
            if row.unknown > row.resent:
                changes["possibly_paid_twice"] += row.unknown - row.resent
                db.execute("UPDATE requests SET resent = unknown WHERE id = ?", (row.id,))
            move(db, changes, row, RowState.SENT)
            assert cursor.lastrowid is not None
            return cursor.lastrowid

        def work(db: sqlite3.Connection, changes: Counter[str]) -> list[int]:
            begun: list[int] = []
            for key in keys:
                begun.append(one(db, changes, key, begun[0] if begun else None))
            return begun

        future = self.writer.enqueue(work, spends=True)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(self._withdraw)  # it was never sent
            raise

    def withdraw(self, attempts: Iterable[int]) -> list[asyncio.Future[None]]:
        """Note that attempts were not sent: their rows stand where they stood. Futures: it is on disk."""
        return [self._fail(attempt, "cancelled", "not sent", final=False, maybe_served=False) for attempt in attempts]

    def _withdraw(self, attempts: asyncio.Future[list[int]]) -> None:
        if not attempts.cancelled() and attempts.exception() is None and self._writer is not None:
            self.withdraw(attempts.result())

    async def answered(self, attempt: int, raw: bytes, completion: Completion, cost: int) -> None:
        """Keep an answer; it is on disk when this returns.

        Args:
            attempt: what :meth:`sent` returned.
            raw: the answer's body, byte for byte.
            cost: nano-USD.
        """
        await self.answered_together([attempt], raw, [completion], cost)

    async def answered_together(
        self, attempts: Sequence[int], raw: bytes, completions: Sequence[Completion], cost: int
    ) -> None:
        """Keep the answers that one request brought; they are on disk when this returns.

        The raw answer and the cost are kept once, with the first attempt, whose completion has the usage. Rows for
        which the answer has no completion are to do again.

        Args:
            attempts: what :meth:`sent_together` returned.
            raw: the answer's body, byte for byte.
            completions: one or more, and no more than attempts.
            cost: nano-USD, of all of them.
        """
        fewer = ("fewer", f"{len(completions)} answers came where {len(attempts)} were asked for")

        def work(db: sqlite3.Connection, changes: Counter[str]) -> None:
            for attempt, completion in zip(attempts, completions, strict=False):
                _answer(db, changes, attempt, raw if attempt == attempts[0] else None, completion, cost)
            for attempt in attempts[len(completions) :]:
                request, _ = end_attempt(db, changes, attempt, "failed", failure=fewer)
                _fall(db, changes, standing(db, request), fewer, final=False)

        await self.writer.enqueue(work)

    async def failed(self, attempt: int, kind: str, message: str, *, final: bool, maybe_served: bool) -> None:
        """Note that an attempt brought no answer; it is on disk when this returns.

        A row whose attempts may all have been served is failed for good after five of them.

        Args:
            attempt: what :meth:`sent` returned.
            kind: the class of the error; counted by it.
            message: for people. It holds no key.
            final: the row is not sent again.
            maybe_served: bytes may have reached the server: what was reserved stays spent.
        """
        await self._fail(attempt, kind, message, final=final, maybe_served=maybe_served)

    def _fail(self, attempt: int, kind: str, message: str, *, final: bool, maybe_served: bool) -> asyncio.Future[None]:
        def work(db: sqlite3.Connection, changes: Counter[str]) -> None:
            state = "unknown" if maybe_served else "failed"
            request, _ = end_attempt(db, changes, attempt, state, failure=(kind, message))
            row = standing(db, request)
            if row.state is not RowState.ANSWERED:
                _fall(db, changes, row, (kind, message), final=final)

        return self.writer.enqueue(work)

    def put(self, request: Request, teacher: Teacher, completion: Completion) -> None:
        """Keep the answer of a model that is in hand; it is on disk when this returns."""
        self.put_many([(request, completion)], teacher)

    def put_many(self, answers: Iterable[tuple[Request, Completion]], teacher: Teacher) -> None:
        """Keep answers of a model that is in hand, all or none. Rows that are answered already are left as they are."""
        known = [(request, bytes.fromhex(request.key(teacher)), completion) for request, completion in answers]

        def work(db: sqlite3.Connection, changes: Counter[str]) -> None:
            who = hold_teacher(db, teacher)
            for request, key, completion in known:
                found = find(db, key) or hold_prompt(db, changes, key, request, who)
                row = standing(db, found)
                if row.state is RowState.ANSWERED:
                    continue
                usage = completion.usage
                tokens = usage.input + usage.output if usage else len(completion.ids or ())
                attempt = db.execute(
                    "INSERT INTO attempts (request, teacher, state, reserved, reserved_tokens, tokens, began, ended) "
                    "VALUES (?, ?, 'answered', 0, 0, ?, ?, ?)",
                    (row.id, who, tokens, time.time(), time.time()),
                ).lastrowid
                db.execute("INSERT INTO answers VALUES (?, NULL, ?)", (attempt, pack(completion_to_bytes(completion))))
                db.execute("UPDATE requests SET answer = ? WHERE id = ?", (attempt, row.id))
                changes["tokens"] += tokens
                move(db, changes, row, RowState.ANSWERED, outcome=completion.outcome.value)

        self.writer.do(work)

    def retry(self, *kinds: str) -> int:
        """Make rows that failed rows to do: those of some kinds, or all.

        Returns:
            How many.
        """

        def work(db: sqlite3.Connection, changes: Counter[str]) -> int:
            chosen = f"AND failure IN ({', '.join('?' * len(kinds))})" if kinds else ""
            keys = db.execute(f"SELECT id FROM requests WHERE state = 'failed' {chosen}", kinds).fetchall()
            for (number,) in keys:
                row = standing(db, number)
                db.execute("UPDATE requests SET most_unknown = unknown + 5 WHERE id = ?", (number,))
                move(db, changes, row, RowState.UNKNOWN if row.unknown > row.resent else RowState.TODO)
            return len(keys)

        return self.writer.do(work)

    def counts(self) -> Counts:
        """How many rows stand where; the same time for a thousand and a million."""
        counted = self._counters()
        return Counts(
            todo=counted.get("todo", 0),
            sent=counted.get("sent", 0),
            unknown=counted.get("unknown", 0),
            answered=_below("answered/", counted),
            failed=_below("failed/", counted),
            possibly_paid_twice=counted.get("possibly_paid_twice", 0),
        )

    def spent(self) -> Spent:
        """What all attempts cost; what is reserved counts where the cost is not known."""
        counted = self._counters()
        nano_usd, tokens = counted.get("reserved_nano_usd", 0), counted.get("reserved_tokens", 0)
        return Spent(counted.get("nano_usd", 0) + nano_usd, counted.get("tokens", 0) + tokens, nano_usd, tokens)

    def _counters(self) -> dict[str, int]:
        return {str(name): int(value) for name, value in self._read("SELECT name, value FROM counters", ())}

    def _read(self, statement: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        try:
            with self._reading:
                return self._reader.execute(statement, values).fetchall()
        except sqlite3.ProgrammingError:
            raise
        except sqlite3.Error as error:
            raise problem(self.path, error) from None

    def _rows(self, where: str, values: tuple[Any, ...]) -> Iterator[Row]:
        after = 0
        while page := self._read(
            "SELECT r.id, r.key, r.prompt, r.sample, r.teacher, r.state, r.failure, r.message, r.unknown, "
            "a.teacher, a.id, t.sample, s.raw, s.completion "
            f"FROM (SELECT * FROM requests WHERE {where} AND id > ? ORDER BY id LIMIT {PAGE}) r "
            "LEFT JOIN attempts a ON a.id = r.answer LEFT JOIN teachers t ON t.id = a.teacher "
            "LEFT JOIN answers s ON s.attempt = r.answer ORDER BY r.id",
            (*values, after),
        ):
            after = page[-1][0]
            for found in page:
                yield self._row(found)
            if len(page) < PAGE:
                return

    def _row(self, found: tuple[Any, ...]) -> Row:
        number, key, prompt, sample, asked, state, failure, message, unknown, wrote, attempt, near, raw, packed = found
        [(attempts, cost)] = self._read(
            "SELECT count(*), total(CASE WHEN state IN ('sent', 'unknown') THEN reserved ELSE cost END) "
            "FROM attempts WHERE request = ?",
            (number,),
        )
        with self._reading:
            request = request_of(self._reader, prompt, sample)
            teacher = teacher_of(self._reader, asked)
            written_by = None if wrote is None else teacher_of(self._reader, wrote)
        completion = None
        if packed is not None:
            completion = self._completion(number, attempt, near, raw, packed)
            if completion is None:
                state, failure, message, written_by = "failed", UNREADABLE, "its answer is damaged on disk", None
                if self._writer is not None:
                    state = "todo"
        return Row(
            key=key.hex(),
            request=request,
            teacher=teacher,
            state=RowState(state),
            completion=completion,
            written_by=written_by,
            attempts=attempts,
            unknown=unknown,
            failure=failure,
            message=message,
            cost=int(cost),
        )


def _answer(
    db: sqlite3.Connection, changes: Counter[str], attempt: int, raw: bytes | None, completion: Completion, cost: int
) -> None:
    """Keep one answer. ``raw``: None: it, and the cost, are those of another attempt."""
    usage = completion.usage
    request, teacher = end_attempt(
        db, changes, attempt, "answered",
        cost=0 if raw is None else cost, tokens=None if usage is None else usage.input + usage.output,
    )  # fmt: skip
    packed = None
    if raw is not None:
        sample = db.execute("SELECT sample FROM teachers WHERE id = ?", (teacher,)).fetchone()[0]
        if sample is None:
            sample = attempt.to_bytes(8, "big") + raw[-8192:]
            db.execute("UPDATE teachers SET sample = ? WHERE id = ?", (sample, teacher))
        packed = pack(raw, near_answer(sample, attempt))
    db.execute(
        "INSERT INTO answers VALUES (?, ?, ?)", (attempt, packed, pack(completion_to_bytes(completion), raw or b""))
    )
    row = standing(db, request)
    if row.state is not RowState.ANSWERED:
        db.execute("UPDATE requests SET answer = ? WHERE id = ?", (attempt, row.id))
        move(db, changes, row, RowState.ANSWERED, outcome=completion.outcome.value)


def _open_or_salvage(path: Path) -> tuple[sqlite3.Connection, str | None]:
    try:
        return open_for_writing(path), None
    except DamagedError as damage:
        try:
            note = salvage(path)
        except (sqlite3.Error, OSError):
            raise damage from None
        return open_for_writing(path), note


def _below(prefix: str, counted: Mapping[str, int]) -> dict[str, int]:
    return {name.removeprefix(prefix): n for name, n in sorted(counted.items()) if name.startswith(prefix) and n}


def _close_open_attempts(db: sqlite3.Connection, changes: Counter[str]) -> None:
    """What was in flight when the last writer ended may have been served. What is part of a batch still is."""
    why = ("interrupted", "the process ended before the answer came")
    for (attempt,) in db.execute(
        "SELECT id FROM attempts WHERE state = 'sent' AND (batch IS NULL "
        "OR batch NOT IN (SELECT id FROM batches WHERE ended IS NULL))"
    ).fetchall():
        request, _ = end_attempt(db, changes, attempt, "unknown", failure=why)
        row = standing(db, request)
        if row.state is RowState.SENT:
            _fall(db, changes, row, why, final=False)


def _fall(
    db: sqlite3.Connection, changes: Counter[str], row: Standing, failure: tuple[str, str], *, final: bool
) -> None:
    """Where a row stands after an attempt without an answer."""
    if row.unknown >= row.most_unknown:
        final, failure = True, ("unknown", f"{row.unknown} attempts may have been served; the last: {failure[1]}")
    state = RowState.FAILED if final else RowState.UNKNOWN if row.unknown > row.resent else RowState.TODO
    move(db, changes, row, state, failure=failure)


def _lose(db: sqlite3.Connection, changes: Counter[str], number: int) -> None:
    """A damaged answer costs its own row: it is to do again, and what it cost stays spent."""
    row = standing(db, number)
    db.execute("UPDATE attempts SET state = 'failed', failure = ? WHERE id = ?", (UNREADABLE, row.answer))
    db.execute("UPDATE requests SET answer = NULL WHERE id = ?", (number,))
    move(db, changes, row, RowState.TODO, failure=(UNREADABLE, "its answer was damaged on disk"))
