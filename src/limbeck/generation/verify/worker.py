"""A process that verifies answers for its parent; see ``workers``."""

from __future__ import annotations

import os
import pickle
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

from limbeck.errors import LimbeckError
from limbeck.generation.candidate import Candidate, Verdict


def _receive(pipe: BinaryIO) -> Any:
    header = pipe.read(4)
    return pickle.loads(pipe.read(struct.unpack("<I", header)[0])) if len(header) == 4 else None


def _send(pipe: BinaryIO, message: bytes) -> None:
    pipe.write(struct.pack("<I", len(message)) + message)
    pipe.flush()


def _limit_memory(limit: int) -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        pass  # not every system has it


def _judge(check: Callable[[Candidate], Verdict], candidate: Candidate) -> Verdict:
    try:
        return check(candidate)
    except (Exception, KeyboardInterrupt):  # a parser that fails on an answer has not decided
        return Verdict.UNDECIDED


def main() -> None:
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process
    received = sys.stdin.buffer
    sent = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a check prints is no verdict
    make, section, seconds, memory = _receive(received)
    _limit_memory(memory)
    try:
        check = make(section)
    except LimbeckError as error:
        _send(sent, pickle.dumps(error))
        return
    _send(sent, b"ready")
    while (candidate := _receive(received)) is not None:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        verdict = _judge(check, candidate)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(sent, verdict.value.encode("ascii"))


if __name__ == "__main__":
    main()
