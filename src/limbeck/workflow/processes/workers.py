"""Worker processes: each runs one stage after another, and keeps what it has loaded.

A worker is a fresh interpreter, so that it shares no threads with its parent. It holds the run's lock, and ends when
its parent does: the kernel closes the parent's end of a pipe, however the parent died.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from limbeck.errors import MachineError
from limbeck.workflow.lock import RunLock
from limbeck.workflow.stage import Event, Facts, Stage


class WorkerError(Exception):
    """A bug in a stage: the traceback of the worker."""


class _Worker:
    """The parent's side."""

    def __init__(self, folder: Path, lock: RunLock, environment: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair()
        listens, self._lifeline = os.pipe()
        handles = (theirs.fileno(), listens, lock.fileno())
        self.process = subprocess.Popen(
            [sys.executable, "-m", "limbeck.workflow.processes.worker", *map(str, handles[:2])],
            pass_fds=handles,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        os.close(listens)
        self.connection = Connection(ours.detach())
        self.stage: str | None = None
        self.connection.send((str(folder), sys.path))

    def stop(self) -> None:
        """At once."""
        self.process.kill()
        self.process.wait()
        self.connection.close()
        os.close(self._lifeline)


class Workers:
    """Worker processes of a run, started when they are needed.

    Args:
        folder: the run folder.
        lock: its lock, which the workers hold too.
        environment: variables for each worker, by its number.
    """

    def __init__(self, folder: Path, lock: RunLock, environment: Callable[[int], Mapping[str, str]]) -> None:
        self._folder, self._lock, self._environment = folder, lock, environment
        self._workers: list[_Worker] = []

    def prepare(self, count: int, modules: Sequence[str]) -> None:
        """Start workers before they are needed: they import ``modules`` beside the first stages."""
        for _ in range(count - len(self._workers)):
            self._new().connection.send(list(modules))

    def _new(self) -> _Worker:
        worker = _Worker(self._folder, self._lock, self._environment(len(self._workers)))
        self._workers.append(worker)
        return worker

    def start(self, stage: Stage, up: Facts, surroundings: Mapping[str, Any]) -> None:
        """Run a stage in an idle worker, or in a new one."""
        idle = (worker for worker in self._workers if worker.stage is None and worker.process.poll() is None)
        worker = next(idle, None) or self._new()
        worker.stage = stage.name
        worker.connection.send((pickle.dumps(stage), up, surroundings))

    def interrupt(self, draining: Collection[str]) -> None:
        """Tell workers on these stages to end, as by a SIGTERM, and kill the others."""
        for worker in [*self._workers]:
            if worker.stage in draining:
                worker.process.send_signal(signal.SIGTERM)
            else:
                self._workers.remove(worker)
                worker.stop()

    def wait(self) -> Iterator[Event]:
        """What busy workers say, as soon as one does: events of stages, and ``stage_result``, ``stage_error`` or
        ``stage_stopped`` at their end."""
        busy = {worker.connection: worker for worker in self._workers if worker.stage is not None}
        for connection in wait(list(busy)):
            worker = busy[connection]  # type: ignore[index]
            try:
                event: Event = worker.connection.recv()
            except (EOFError, ConnectionResetError):
                event = {"event": "stage_error", "stage": worker.stage, "error": self._dead(worker)}
            if event["event"] in ("stage_result", "stage_error", "stage_stopped"):
                worker.stage = None
            yield event

    @staticmethod
    def _dead(worker: _Worker) -> MachineError:
        code = worker.process.wait()
        how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
        return MachineError(
            f"the process that worked on {worker.stage} {how}",
            fix="Run it again to go on; if memory ran out, with fewer `--jobs`",
        )

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers = []
