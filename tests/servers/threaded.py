"""A server of aiohttp in a thread of its own, as a context manager."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

from aiohttp import web


class ThreadedServer(ABC):
    """Serves on loopback while its context lasts. ``url``: where, without a path."""

    url = ""

    def __enter__(self) -> Self:
        ready = threading.Event()

        def work() -> None:
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
            self._loop.run_until_complete(self.serve(0, ready.set))
            self._loop.close()

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()
        assert ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    @abstractmethod
    def routes(self, app: web.Application) -> None:
        """Add what is served."""

    async def serve(self, port: int, ready: Callable[[], None]) -> None:
        """Serve until it is stopped. ``port`` 0: any that is free."""
        self._stop = asyncio.Event()
        app = web.Application(client_max_size=256 << 20)
        self.routes(app)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port, backlog=2048)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready()
        await self._stop.wait()
        await runner.cleanup()
