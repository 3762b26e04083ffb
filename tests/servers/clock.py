"""A clock for tests: it jumps to the next moment that somebody waits for."""

from __future__ import annotations

import asyncio
import heapq
import itertools


class JumpingClock:
    """Twenty minutes pass in a moment. Answers of a real server have a few milliseconds to come before each jump."""

    def __init__(self) -> None:
        self.time = 0.0
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._number = itertools.count()
        self._jumper: asyncio.Task[None] | None = None

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return 1_800_000_000.0 + self.time

    async def sleep(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (self.time + seconds, next(self._number), future))
        if self._jumper is None or self._jumper.done():
            self._jumper = asyncio.create_task(self._jump())
        await future

    async def _jump(self) -> None:
        while self._waiting:
            await asyncio.sleep(0.01)
            until = self._waiting[0][0]
            self.time = max(self.time, until)
            while self._waiting and self._waiting[0][0] <= self.time:
                future = heapq.heappop(self._waiting)[2]
                if not future.done():
                    future.set_result(None)
