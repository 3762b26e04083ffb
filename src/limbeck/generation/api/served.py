"""The sampler over HTTP: requests go out, answers go into the journal."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from limbeck.errors import TeacherGoneError
from limbeck.generation.api.sending.rows import Row
from limbeck.generation.api.sending.sending import Sending
from limbeck.generation.api.summary import Summary
from limbeck.generation.api.teacher import Asked, Probed
from limbeck.generation.api.transport.client import import_aiohttp
from limbeck.generation.api.transport.clock import Clock, SystemClock
from limbeck.generation.journal.budget import Ledger, usd
from limbeck.generation.journal.journal import Journal
from limbeck.generation.request import Completion, Request
from limbeck.recipe.served import Endpoint

PROGRESS_SECONDS = 2.0


class LocalTeacher(Protocol):
    """A model in hand, as the last of a chain."""

    @property
    def identity(self) -> Mapping[str, str]:
        """Its fingerprint."""

    def write(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Completion]]:
        """Answer all requests, in any order."""


class ServedSampler:
    """A chain of teachers. The first is asked; where it cannot answer, the next is.

    A request is a row of the journal before it is sent, and an answer is on disk before it counts. Rows have the key
    ``request.key(chain[0].identity)``, whoever answers them.

    Args:
        chain: endpoints, and possibly a local model as the last.
        journal: where requests and answers go. It is open for writing.
        ledger: what may be spent.
        probed: what was found of endpoints.
        clock: the time; tests bring their own.

    Raises:
        RecipeError: a key is missing, or a price is not known.
        MachineError: aiohttp is not installed.
    """

    def __init__(
        self,
        chain: Sequence[Endpoint | LocalTeacher],
        journal: Journal,
        ledger: Ledger,
        *,
        probed: Sequence[Probed] = (),
        clock: Clock | None = None,
    ) -> None:
        import_aiohttp()
        self.chain, self.journal, self.ledger = tuple(chain), journal, ledger
        self.probed, self.clock = probed, clock or SystemClock()
        self._endpoints = [each for each in self.chain if isinstance(each, Endpoint)]
        locals_ = [each for each in self.chain if not isinstance(each, Endpoint)]
        if len(locals_) > 1 or (locals_ and self.chain[-1] is not locals_[0]):
            raise ValueError("a local model is the last of a chain")
        if any(isinstance(each, Endpoint) and each.batch for each in self.chain[1:]):
            raise ValueError("only the first of a chain is sent batches: they take hours")
        self._local: LocalTeacher | None = locals_[0] if locals_ else None
        for endpoint in self._endpoints:
            Asked(endpoint, self.clock)  # keys and prices are there

    def write(self, requests: Iterable[Request], progress: Callable[[int, str], None]) -> Summary:
        """Have requests answered. Rows that are answered already are not sent.

        Where the first endpoint takes batches, all rows are sent in batches; the others are asked where it takes none.

        Ctrl-C stops the sending, waits for what is in flight, and raises KeyboardInterrupt; a second one does not wait.

        Args:
            requests: what is asked.
            progress: told of the rows that are done and of a line for people, every few seconds.

        Raises:
            TeacherGoneError: rows are left, and no teacher is.
            BudgetError: the next request could cost more than is left of the budget. Rows are left.
            RecipeError: an endpoint refuses a parameter, or all requests.
            MachineError: the journal cannot be written.
        """
        first = self.chain[0]
        if isinstance(first, Endpoint) and first.batch:
            from limbeck.generation.batch.sampler import BatchSampler

            requests = list(requests)
            try:
                sampler = BatchSampler(first, self.journal, self.ledger, probed=self.probed, clock=self.clock)
                summary = sampler.write(requests, progress)
                if not summary.left or len(self.chain) == 1:
                    return summary
            except TeacherGoneError:
                if len(self.chain) == 1:
                    raise
        return asyncio.run(self._write(requests, progress))

    async def _write(self, requests: Iterable[Request], progress: Callable[[int, str], None]) -> Summary:
        # One that takes batches does not take calls instead: they cost twice as much.
        teachers = [Asked(endpoint, self.clock, self.probed) for endpoint in self._endpoints if not endpoint.batch]
        sending = Sending(teachers, self._local is not None, self.journal, self.ledger, self.clock)
        reporter = asyncio.create_task(_report(sending, teachers, progress))
        interrupted = False
        try:
            with _interrupts(sending) as signals:
                await sending.run(requests, dict(self.chain[0].identity))
                if sending.for_local and not sending.stopping:
                    await self._write_locally(sending)
                interrupted = bool(signals)
        finally:
            reporter.cancel()
            sending.summary.gone = {teacher.name: teacher.gone for teacher in teachers if teacher.gone}
            progress(sending.summary.done, sending.summary.line())
        if interrupted:
            raise KeyboardInterrupt
        if sending.summary.left and teachers and all(teacher.gone for teacher in teachers) and self._local is None:
            raise _gone(teachers, sending.summary.left)
        return sending.summary

    async def _write_locally(self, sending: Sending) -> None:
        """Let the local model answer what nobody else did."""
        assert self._local is not None
        rows: dict[str, Row] = {row.request.key(self._local.identity): row for row in sending.for_local}
        answers = self._local.write([row.request for row in rows.values()])
        while not sending.stopping and (answer := await asyncio.to_thread(next, answers, None)) is not None:
            request, completion = answer
            row = rows.pop(request.key(self._local.identity))
            attempt = await self.journal.sent(row.key, self._local.identity, b"", 0)
            await self.journal.answered(attempt, b"", completion, 0)
            sending.summary.answered[completion.outcome.value] += 1
            sending.summary.by_teacher["a local model"] += 1
        sending.summary.left += len(rows)


def _gone(teachers: Sequence[Asked], left: int) -> TeacherGoneError:
    reasons = "; ".join(f"{teacher.name}: {teacher.gone}" for teacher in teachers)
    return TeacherGoneError(
        f"no teacher is left for {left:,} requests. {reasons}",
        fix="What was answered is kept. Run the same command again later, or add a teacher to `fallbacks`.",
    )


async def _report(sending: Sending, teachers: Sequence[Asked], progress: Callable[[int, str], None]) -> None:
    before, then = sending.summary.done, time.monotonic()
    while True:
        await asyncio.sleep(PROGRESS_SECONDS)
        done, now = sending.summary.done, time.monotonic()
        parts = [f"{(done - before) / (now - then):,.0f} rows/s", f"{sending.in_flight} in flight"]
        limited = [t for t in teachers if not t.gone and t.pacer.limit < t.pacer.most]
        parts += [f"at most {int(t.pacer.limit)} at {t.endpoint.model}" for t in limited]
        parts.append(f"{usd(sending.summary.nano_usd)} spent")
        if sending.summary.faults:
            parts.append("no answer: " + ", ".join(f"{n:,} {kind}" for kind, n in sending.summary.faults.items()))
        progress(done, ", ".join(parts))
        before, then = done, now


@contextmanager
def _interrupts(sending: Sending) -> Iterator[list[int]]:
    """While the block runs, SIGINT and SIGTERM drain; the list tells whether they came.

    Only where they would interrupt this thread anyway: a worker process leaves them to its parent.
    """
    came: list[int] = []

    def interrupt(number: signal.Signals) -> None:
        came.append(number)
        if len(came) == 1:
            sending.stop()
        else:
            sending.abandon()

    loop = asyncio.get_running_loop()
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler):
                before[number] = handler
                loop.add_signal_handler(number, interrupt, number)
    try:
        yield came
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
