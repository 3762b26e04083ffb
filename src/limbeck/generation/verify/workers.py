"""Checks that may take for ever, in processes that are killed.

A worker is a fresh interpreter, not a fork: it can be started from any thread and any process, and holds no keys.
It ends itself (``SIGPROF``) when a check has used its CPU time, whatever the check does and whether or not it returns
to Python; so a verdict does not depend on how busy the machine is.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from limbeck.errors import LimbeckError
from limbeck.generation.candidate import Candidate, Verdict

Verdicts = Generator[tuple[Candidate, Verdict], None, None]

STARTING_SECONDS = 120.0
"""For a worker to import what it needs, on a busy machine."""
WALL = 15
"""Times the CPU time: a check that sleeps is ended after it."""
MEMORY = 4 << 30
_PLAIN = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
"""What a worker is told of the environment: no keys."""


@dataclass(frozen=True)
class Job:
    """What workers do.

    Attributes:
        make: makes the check of a section; a function of a module.
        section: its settings.
        seconds: CPU time of one check.
        whole_environment: the check is the user's own and may need environment variables.
    """

    make: Callable[[Any], Callable[[Candidate], Verdict]]
    section: Any
    seconds: float
    whole_environment: bool = False


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Worker:
    """One process. It is started at the first check, and again after one that ended it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def stop(self) -> None:
        """End what runs in another thread: its check is undecided, and there is no other."""
        self._stopped = True
        if (process := self._process) is not None:
            process.kill()

    def start(self) -> None:
        """Start the process now, if it does not run."""
        self._started()

    def check(self, candidate: Candidate) -> Verdict:
        """UNDECIDED: out of time, out of memory, or it crashed."""
        if self._stopped:
            return Verdict.UNDECIDED
        process = self._started()
        try:
            _write(process, pickle.dumps(candidate))
        except OSError:
            self.close()
            return Verdict.UNDECIDED
        answer = self._read(process, self.job.seconds * WALL)
        if answer is None:
            self.close()
            return Verdict.UNDECIDED
        return Verdict(answer.decode("ascii"))

    def close(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):  # what was not flushed cannot be written any more
                    if pipe is not None:
                        pipe.close()
            self._process = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None:
            return self._process
        environment = (
            dict(os.environ) if self.job.whole_environment else {k: os.environ[k] for k in _PLAIN if k in os.environ}
        )
        environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUTF8": "1"}
        self._process = process = subprocess.Popen(
            [sys.executable, "-m", "limbeck.generation.verify.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        try:
            _write(process, pickle.dumps((self.job.make, self.job.section, self.job.seconds, MEMORY)))
            ready = self._read(process, STARTING_SECONDS)
        except OSError:
            ready = None
        if ready is None or ready != b"ready":
            self.close()
            if ready:
                raise pickle.loads(ready)
            raise LimbeckError("a process that verifies answers did not start", fix="Check that memory is free")
        return process

    def _read(self, process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
        """One message. None: the process ended, or was killed after so many seconds."""
        assert process.stdout is not None
        timer = threading.Timer(seconds, process.send_signal, (signal.SIGKILL,))
        timer.daemon = True
        timer.start()
        try:
            header = process.stdout.read(4)
            if len(header) < 4:
                return None
            length = struct.unpack("<I", header)[0]
            body = process.stdout.read(length)
            return body if len(body) == length else None
        finally:
            timer.cancel()


def _write(process: subprocess.Popen[bytes], message: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(struct.pack("<I", len(message)) + message)
    process.stdin.flush()


def in_order(
    candidates: Iterable[Candidate],
    checks: list[Callable[[Candidate], Verdict]],
    stop: Callable[[], None] = lambda: None,
) -> Verdicts:
    """Candidates with their verdicts, in the order they come in; each check runs in a thread of its own.

    No more candidates are held than four for each check. ``stop`` is called when there is an error, or when nobody asks
    for the rest: it ends the checks that run.
    """
    waiting: queue.SimpleQueue[tuple[Candidate, Future[Verdict]] | None] = queue.SimpleQueue()

    def serve(check: Callable[[Candidate], Verdict]) -> None:
        while (item := waiting.get()) is not None:
            candidate, future = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(check(candidate))
            except BaseException as error:
                future.set_exception(error)

    threads = [threading.Thread(target=serve, args=(check,), daemon=True) for check in checks]
    for thread in threads:
        thread.start()
    held: deque[tuple[Candidate, Future[Verdict]]] = deque()
    try:
        for candidate in candidates:
            future: Future[Verdict] = Future()
            held.append((candidate, future))
            waiting.put((candidate, future))
            if len(held) >= 4 * len(checks):
                first, done = held.popleft()
                yield first, done.result()
        while held:
            first, done = held.popleft()
            yield first, done.result()
    except BaseException:
        for _, future in held:
            future.cancel()
        stop()
        raise
    finally:
        for _ in threads:
            waiting.put(None)
        for thread in threads:
            thread.join()


def check_in_workers(candidates: Iterable[Candidate], job: Job, workers: int) -> Verdicts:
    """Candidates with their verdicts, in order; ``job`` is done by so many processes."""
    pool = [Worker(job) for _ in range(workers)]

    def stop() -> None:
        for worker in pool:
            worker.stop()

    try:
        yield from in_order(candidates, [worker.check for worker in pool], stop)
    finally:
        for worker in pool:
            worker.close()
