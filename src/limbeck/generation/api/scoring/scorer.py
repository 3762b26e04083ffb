"""Texts on their way to a server that says what it thinks of them: several at once, each until it is answered."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from limbeck.errors import LimbeckError, RecipeError, TeacherGoneError
from limbeck.generation.api.protocols import MalformedError, encode
from limbeck.generation.api.scoring.forms import form_of
from limbeck.generation.api.scoring.probe import Reveals
from limbeck.generation.api.scoring.scores import Scores, read_scores
from limbeck.generation.api.teacher import WHY, Asked
from limbeck.generation.api.transport.asking import as_error
from limbeck.generation.api.transport.client import Client, Reply
from limbeck.generation.api.transport.clock import Clock, SystemClock
from limbeck.generation.api.transport.faults import Fault, FaultKind, of_reply, one_line, parse
from limbeck.generation.api.transport.headers import exhausted_for
from limbeck.generation.api.transport.pacing import backoff
from limbeck.generation.journal.budget import Ledger
from limbeck.generation.journal.usage import usage_of
from limbeck.generation.request import Usage
from limbeck.recipe.served import Endpoint

BAD_ANSWERS = 4
"""So often an answer to one text may be unusable; then the capture ends."""

_T = TypeVar("_T")


class Scorer:
    """Has texts scored by one server.

    Args:
        endpoint: who is asked. What stands behind it as a fallback is another teacher, and is never asked.
        reveals: what the probe found.
        temperature: at which probabilities are taken.
        vocab_size: tokens of the run's tokenizer.
        ledger: what may be spent.
        clock: the time; tests bring their own.

    Raises:
        RecipeError: the key is missing, or a price is not known.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        reveals: Reveals,
        temperature: float,
        vocab_size: int,
        ledger: Ledger,
        clock: Clock | None = None,
    ) -> None:
        self.clock: Clock = clock or SystemClock()
        self.endpoint, self.reveals, self.temperature, self.vocab_size = endpoint, reveals, temperature, vocab_size
        self.ledger = ledger
        self.form = form_of(reveals.form)
        self.tokens = 0
        self._random = random.Random(0)

    def run(self, prompts: Iterable[tuple[_T, Sequence[int]]], use: Callable[[_T, Scores], None]) -> None:
        """Score texts, in any order.

        What was handed to ``use`` before an error stays with it. Requests in flight at an error are abandoned.

        Args:
            prompts: what ``use`` is told, and token ids.
            use: takes an answer. Called in this thread, one at a time.

        Raises:
            TeacherGoneError: the server is down, limited past its patience, or never gives a usable answer.
            BudgetError: the next text could cost more than is left.
            RecipeError: the key, the model or a parameter is refused; a text is too long.
        """
        asyncio.run(self._run(prompts, use))

    async def _run(self, prompts: Iterable[tuple[_T, Sequence[int]]], use: Callable[[_T, Scores], None]) -> None:
        asked = Asked(self.endpoint, self.clock)
        room = asyncio.Semaphore(self.endpoint.concurrency + 8)
        tasks: set[asyncio.Task[None]] = set()

        async def one(name: _T, prompt: Sequence[int]) -> None:
            try:
                use(name, await self._score(client, asked, prompt))
            finally:
                room.release()

        async with Client() as client:
            try:
                for name, prompt in prompts:
                    await room.acquire()
                    for task in [task for task in tasks if task.done()]:
                        tasks.discard(task)
                        task.result()
                    tasks.add(asyncio.create_task(one(name, prompt)))
                while tasks:
                    done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
            finally:
                for task in tasks:
                    task.cancel()
                for task in tasks:
                    with suppress(BaseException):
                        await task

    async def _score(self, client: Client, asked: Asked, prompt: Sequence[int]) -> Scores:
        body = encode(self.form.body(self.endpoint, prompt, self.reveals.entries, self.temperature))
        deadline: float | None = None  # of all tries together; waiting for the first turn does not count
        tries = unusable = 0
        while True:
            if not await asked.pacer.acquire():
                raise self._left(asked)
            deadline = deadline or self.clock.now() + self.endpoint.deadline_seconds
            try:
                fault = await self._send(client, asked, body, prompt)
            finally:
                asked.pacer.release()
            if isinstance(fault, Scores):
                return fault
            if fault.stops:
                asked.leave(WHY[fault.kind], fault)
            if asked.gone is not None:
                raise self._left(asked)
            if not fault.passing:
                raise RecipeError(
                    f"{asked.name} does not take a text of {len(prompt):,} tokens: {fault.message}",
                    key=".model",
                    fix="Start the server with room for longer texts, or lower data.seq_len",
                )
            tries, unusable = tries + 1, unusable + (fault.kind is FaultKind.MALFORMED)
            pause = fault.wait if fault.wait is not None else backoff(tries) * self._random.uniform(0.5, 1.0)
            if unusable >= BAD_ANSWERS or self.clock.now() + pause >= deadline:
                raise self._gone(fault.message)
            await self.clock.sleep(pause)

    async def _send(self, client: Client, asked: Asked, body: bytes, prompt: Sequence[int]) -> Scores | Fault:
        """Send a text once."""
        reservation = self.ledger.reserve(len(prompt) + 1, 1, asked.prices)
        began = self.clock.now()
        usage, served = None, True
        try:
            url, seconds = self.form.url(self.endpoint), self.endpoint.deadline_seconds
            reply = await client.post(url, asked.headers, body, seconds)
            answer = reply if isinstance(reply, Fault) else self._read(asked, reply, prompt)
            if isinstance(answer, Fault):
                served = answer.maybe_served
                answer = replace(answer, message=asked.redact(answer.message))
                crowded = answer.kind in (FaultKind.LIMITED, FaultKind.OVERLOADED, FaultKind.SERVER)
                asked.pacer.failed(began, crowded=crowded, wait=answer.wait)
                if asked.pacer.exhausted:
                    asked.leave(f"{WHY.get(answer.kind, 'down')} ({answer.message})", answer)
                return answer
            asked.pacer.succeeded()
            scores, usage = answer
            self.tokens += usage.input + usage.output if usage is not None else reservation.tokens
            return scores
        finally:
            if served:
                self.ledger.settle(reservation, usage)
            else:
                self.ledger.release(reservation)

    def _read(self, asked: Asked, reply: Reply, prompt: Sequence[int]) -> tuple[Scores, Usage | None] | Fault:
        wall = self.clock.wall()
        fault = of_reply(reply.status, reply.headers, reply.raw, wall)
        if fault is not None:
            return fault
        if wait := exhausted_for(reply.headers, wall):
            asked.pacer.hold(wait)
        plain = parse(reply.raw)
        try:
            positions = self.form.positions(plain)
            scores = read_scores(positions, prompt, self.reveals.entries, self.vocab_size)
        except MalformedError as error:
            return Fault(FaultKind.MALFORMED, one_line(f"an answer that cannot be used: {error}"), maybe_served=True)
        return scores, usage_of("completions", self.form.usage(plain))

    def _left(self, asked: Asked) -> LimbeckError:
        """Why a server is not asked any more: texts that wait for their turn may be told before the one that met it."""
        if asked.fault is not None and asked.fault.stops:
            return as_error(self.endpoint, asked.fault)
        return self._gone(asked.gone or "stopped")

    def _gone(self, why: str) -> TeacherGoneError:
        return TeacherGoneError(
            f"{self.endpoint.model} at {self.endpoint.api} answers no more: {why}",
            fix="What was answered is kept. Run the same command again later.",
        )
