"""The one thread that writes a journal. It commits in groups: a flush of the disk takes as long for many as for one."""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from limbeck.errors import MachineError
from limbeck.generation.journal.storage.database import problem

T = TypeVar("T")

GROUP_ROWS = 64
GROUP_SECONDS = 0.05
FEW_ROWS, FEW_SECONDS = 8, 0.003
"""So few pieces wait so long for more: a commit of one costs as much processor time as one of ten."""
BALLAST = 8 * 2**20
"""Bytes that are held back on the disk: when it is full they make room for the answers that are in flight."""

Work: TypeAlias = Callable[[sqlite3.Connection, Counter[str]], T]
"""Changes the database, and says by how much the counters change."""


@dataclass(eq=False)
class _Item:
    """``spends``: it leads to a new request; it is refused once the disk is full."""

    work: Work[Any]
    spends: bool
    future: Future[Any] | asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop | None = None
    result: Any = None
    error: Exception | None = None


class Writer:
    """Runs pieces of work in transactions. A piece is on disk when its call returns.

    What is queued while a commit is under way is committed together, at most 64 pieces or 50 ms of them.
    """

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self._db, self._path = db, path
        self._ballast = path.with_name(f"{path.name}.ballast")
        self._full: MachineError | None = None
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._hold_room()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def do(self, work: Work[T], *, spends: bool = False) -> T:
        """Run one piece of work and wait for its commit."""
        future: Future[T] = Future()
        self._queue.put(_Item(work, spends, future))
        return future.result()

    def enqueue(self, work: Work[T], *, spends: bool = False) -> asyncio.Future[T]:
        """The same in an event loop. The work is done even if nobody waits for it any more."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._queue.put(_Item(work, spends, future, loop))
        return future

    def close(self) -> None:
        """Commit what is queued, and end."""
        self._queue.put(None)
        self._thread.join()
        self._ballast.unlink(missing_ok=True)

    def _run(self) -> None:
        waiting: deque[_Item] = deque()
        closing = False
        while waiting or not closing:
            if not waiting:
                closing = self._take(waiting, block=True)
            closing = closing or self._gather(waiting)
            if not closing and 0 < len(waiting) < FEW_ROWS and waiting[-1].loop is not None:  # nobody blocks on it
                time.sleep(FEW_SECONDS)
                closing = self._gather(waiting)
            _settle(self._commit(waiting))

    def _gather(self, waiting: deque[_Item]) -> bool:
        """Move what is queued, up to a group. True: there are no more."""
        closing = False
        while not closing and len(waiting) < GROUP_ROWS and not self._queue.empty():
            closing = self._take(waiting, block=False)
        return closing

    def _take(self, waiting: deque[_Item], *, block: bool) -> bool:
        """Move one piece of work from the queue. True: there are no more."""
        item = self._queue.get(block)
        if item is not None:
            waiting.append(item)
        return item is None

    def _commit(self, waiting: deque[_Item]) -> list[_Item]:
        """Do what is waiting, in one transaction. Where the disk is full, room is made once, and all stay waiting."""
        done: list[_Item] = []
        changes: Counter[str] = Counter()
        until = time.monotonic() + GROUP_SECONDS
        try:
            self._db.execute("BEGIN IMMEDIATE")
            while waiting and (not done or time.monotonic() < until):
                done.append(waiting.popleft())
                self._one(done[-1], changes)
            self._db.executemany(
                "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
                [(name, change) for name, change in changes.items() if change],
            )
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
            trouble = problem(self._path, error)
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL and self._make_room():
                self._full = trouble
                waiting.extendleft(reversed(done))
                return []
            for item in done:
                item.error = trouble
        return done

    def _one(self, item: _Item, changes: Counter[str]) -> None:
        item.result = item.error = None
        if item.spends and self._full:
            item.error = self._full
            return
        own: Counter[str] = Counter()
        self._db.execute("SAVEPOINT piece")
        try:
            item.result = item.work(self._db, own)
        except sqlite3.Error:
            raise
        except Exception as error:
            item.error = error
            self._db.execute("ROLLBACK TO piece")
        else:
            for name, change in own.items():
                changes[name] += change
        self._db.execute("RELEASE piece")

    def _hold_room(self) -> None:
        try:
            with self._ballast.open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, BALLAST)
        except OSError as error:
            self._ballast.unlink(missing_ok=True)
            raise MachineError(
                f"the disk of the journal {self._path} has no room for {BALLAST // 2**20} MB ({error.strerror})",
                fix="Free some space and run again",
            ) from None

    def _make_room(self) -> bool:
        """Give back what was held; False: that was done before."""
        try:
            self._ballast.unlink()
        except FileNotFoundError:
            return False
        return True


def _settle(done: list[_Item]) -> None:
    """Tell the callers, each event loop once."""
    loops: dict[asyncio.AbstractEventLoop, list[_Item]] = {}
    for item in done:
        if item.loop is None:
            assert isinstance(item.future, Future)
            _tell(item)
        else:
            loops.setdefault(item.loop, []).append(item)
    for loop, items in loops.items():
        with suppress(RuntimeError):  # the loop was closed: nobody waits
            loop.call_soon_threadsafe(_tell_all, items)


def _tell_all(items: list[_Item]) -> None:
    for item in items:
        _tell(item)


def _tell(item: _Item) -> None:
    if item.future.done():
        return
    if item.error is None:
        item.future.set_result(item.result)
    else:
        item.future.set_exception(item.error)
