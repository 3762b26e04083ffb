"""Rows on their way: each is sent until it is answered, fails for good, or its time is over."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TypeVar

from limbeck.errors import BudgetError, RecipeError
from limbeck.generation.api.probe import refused_parameter
from limbeck.generation.api.protocols import MalformedError
from limbeck.generation.api.sending.rows import Fate, Prepared, Row
from limbeck.generation.api.summary import Summary
from limbeck.generation.api.teacher import WHY, Asked
from limbeck.generation.api.transport.client import Client, Reply
from limbeck.generation.api.transport.clock import Clock
from limbeck.generation.api.transport.faults import Fault, FaultKind, of_reply, one_line, parse, terms_refused
from limbeck.generation.api.transport.headers import exhausted_for
from limbeck.generation.api.transport.pacing import backoff
from limbeck.generation.journal.budget import Ledger, Reservation
from limbeck.generation.journal.journal import Journal
from limbeck.generation.journal.rows import RowState
from limbeck.generation.request import Completion, Outcome, Request

CHUNK = 256
"""Requests that become rows at a time."""
BAD_AT_FIRST = 8
"""Requests refused as wrong, without one success, after which the recipe is at fault and not a row."""

_T = TypeVar("_T")


class Sending:
    """The rows of one call.

    Args:
        teachers: in the order in which they are asked.
        local: whether a local model comes after them.
        journal, ledger, clock: see :class:`~limbeck.generation.api.served.ServedSampler`.
    """

    def __init__(self, teachers: Sequence[Asked], local: bool, journal: Journal, ledger: Ledger, clock: Clock) -> None:
        self.teachers, self.local, self.journal, self.ledger, self.clock = teachers, local, journal, ledger, clock
        self.summary = Summary()
        self.for_local: list[Row] = []
        self.problem: BaseException | None = None
        self.stopping = False
        self._tasks: dict[asyncio.Task[None], Row] = {}
        self._under_way: dict[str, Row] = {}
        self._withdrawn: list[asyncio.Future[None]] = []
        self._busy = 0
        self._settled = asyncio.Condition()
        self._poor = 0
        self._random = random.Random(0)
        self._bad = 0
        self._succeeded = False

    @property
    def in_flight(self) -> int:
        return self._busy

    async def run(self, requests: Iterable[Request], identity: dict[str, str]) -> None:
        """Send all rows that have no answer. Errors that stop the sending are raised after what is in flight ended."""
        most = max((teacher.endpoint.concurrency for teacher in self.teachers), default=1)
        room = asyncio.Semaphore(2 * most + 64)
        async with Client() as client:
            try:
                for chunk in _chunks(requests, CHUNK):
                    if self._over():
                        self.summary.left += len(chunk)  # and whatever comes after it
                        break
                    await asyncio.to_thread(self.journal.add, chunk, identity)
                    new: dict[str, Request] = {}
                    for request in chunk:
                        if self._to_do(key := request.key(identity), new):
                            new[key] = request
                    to_do = [(request, key) for key, request in new.items()]
                    while to_do:
                        row = self._together(to_do)
                        if self._over():
                            self.summary.left += len(row)
                        else:
                            await room.acquire()
                            self._start(client, row, room)
            except BaseException:
                self.stop()
                raise
            finally:
                while self._tasks:
                    await asyncio.wait(list(self._tasks))
                await asyncio.gather(*self._withdrawn)
        if self.problem is not None:
            raise self.problem

    def stop(self, problem: BaseException | None = None) -> None:
        """Send nothing more. What is in flight goes on; what waits is left."""
        if problem is not None and self.problem is None:
            self.problem = problem
        self.stopping = True
        for task, row in self._tasks.items():
            if not row.busy:
                task.cancel()

    def abandon(self) -> None:
        """Do not even wait for what is in flight."""
        self.stopping = True
        for task in self._tasks:
            task.cancel()

    def _over(self) -> bool:
        return self.stopping or (not self.local and all(teacher.gone for teacher in self.teachers))

    def _together(self, to_do: list[tuple[Request, str]]) -> Row:
        """Take the next row: as many samples of the first prompt as one request may ask for."""
        first = to_do[0][0]
        teacher = next((teacher for teacher in self.teachers if teacher.gone is None), None)
        most = 1
        # Samples of one seed would be equal, as greedy ones are.
        if teacher is not None and first.seed is None and first.temperature != 0:
            most = teacher.several
        count = 1
        while count < min(most, len(to_do)) and replace(first, sample=to_do[count][0].sample) == to_do[count][0]:
            count += 1
        taken, to_do[:count] = to_do[:count], []
        return Row(tuple(request for request, _ in taken), tuple(key for _, key in taken))

    def _to_do(self, key: str, new: Mapping[str, Request]) -> bool:
        state = self.journal.state(key)
        if state is RowState.ANSWERED or key in self._under_way or key in new:
            self.summary.kept += 1
        elif state is RowState.FAILED:
            self.summary.failed["before"] += 1
        else:
            return True
        return False

    def _start(self, client: Client, row: Row, room: asyncio.Semaphore | None = None) -> None:
        task = asyncio.create_task(self._row(client, row))
        self._tasks[task] = row
        self._under_way |= dict.fromkeys(row.keys, row)

        def ended(task: asyncio.Task[None]) -> None:
            if room is not None:
                room.release()
            del self._tasks[task]
            if not (self.for_local and self.for_local[-1] is row):
                for key in row.keys:
                    if self._under_way.get(key) is row:  # and not a part of it that goes on alone
                        del self._under_way[key]
            if task.cancelled():
                self.summary.left += len(row)
            elif (problem := task.exception()) is not None:
                self.summary.left += len(row)
                self.stop(problem)

        task.add_done_callback(ended)

    async def _several(self, client: Client, row: Row) -> None:
        """Ask for several samples at once. Those that are still to do go on one by one."""
        teacher = next((teacher for teacher in self.teachers if teacher.gone is None), None)
        if teacher is not None and teacher.several >= len(row):
            await self._ask(client, teacher, row)
        for one in row.alone():
            state = self.journal.state(one.key)
            if state is RowState.FAILED:
                self.summary.failed["unknown"] += 1
            elif state is not RowState.ANSWERED and self._over():
                self.summary.left += 1
            elif state is not RowState.ANSWERED:
                self._start(client, one)

    async def _row(self, client: Client, row: Row) -> None:
        if len(row) > 1:
            await self._several(client, row)
            return
        for teacher in self.teachers:
            if teacher.gone is not None:
                continue
            fate = await self._ask(client, teacher, row)
            if fate is Fate.DONE:
                return
            if fate is Fate.LEFT:
                break
        else:
            if self.local:
                self.for_local.append(row)
                return
        self.summary.left += 1

    async def _ask(self, client: Client, teacher: Asked, row: Row) -> Fate:
        """Ask one teacher until it answers; all tries share one deadline."""
        tries = 0
        while True:
            prepared = await self._prepare(teacher, row)
            if isinstance(prepared, Fate):
                return prepared
            deadline = row.until[teacher.name]
            try:
                sent = await self._send(client, teacher, row, prepared)
            finally:
                row.busy = False
                self._busy -= 1
                _give_back(teacher, row)
            if isinstance(sent, Fate):
                return sent
            if sent.wait is None and sent.kind is FaultKind.PARAMETER:
                continue  # the length has another name here
            tries += 1
            pause = sent.wait if sent.wait is not None else backoff(tries) * self._random.uniform(0.5, 1.0)
            if self.clock.now() + pause >= deadline:
                return self._move("late") if self._another(teacher) else Fate.LEFT
            if self.stopping:
                return Fate.LEFT
            await self.clock.sleep(pause)

    async def _prepare(self, teacher: Asked, row: Row) -> Prepared | Fate:
        """A row that is on disk as sent, with a slot to send it in.

        It is written before it has the slot: an endpoint need not wait for the disk. Few rows are ahead of their slots
        (``Asked.ahead``): those that get none are withdrawn, and those of a process that is killed count as sent.
        """
        async with teacher.ahead:
            used = teacher.length
            body = teacher.body(row.request, len(row))
            bound = teacher.bound(body, row.request, len(row))
            try:
                reservation = await self._reserve(teacher, bound)
            except BudgetError:
                if len(row) > 1:
                    return Fate.LEFT  # there may be money for fewer
                raise
            most = teacher.endpoint.max_usd_per_answer
            if most is not None and reservation.nano_usd > len(row) * most * 1e9:
                await self._free(reservation)
                return self._move("over price")
            if (instead := self._not_now(teacher, row)) is not None:
                await self._free(reservation)
                return instead
            self._busy += 1
            attempts: list[int] = []
            try:
                row.busy = True  # it is not cancelled on its way to the disk
                attempts = await self.journal.sent_together(
                    row.keys, teacher.identity, body, reservation.nano_usd, reservation.tokens
                )
                row.busy = False
                instead = self._not_now(teacher, row)
                if instead is None:
                    row.slot = await teacher.pacer.acquire()
                    instead = self._not_now(teacher, row)
            except BaseException:
                row.busy = False
                self._withdraw(attempts, reservation)
                raise
            if instead is None:
                row.busy = True
                return Prepared(attempts, reservation, body, used)
            _give_back(teacher, row)
            self._withdraw(attempts, reservation)
            await self._wake()
            return instead

    def _not_now(self, teacher: Asked, row: Row) -> Fate | None:
        """What becomes of a row that is not to be sent; None: it is."""
        if self.stopping or teacher.gone is not None:
            return self._move(teacher.gone or "stopped")
        now = self.clock.now()
        if now >= row.until.setdefault(teacher.name, now + teacher.endpoint.deadline_seconds):
            return self._move("late") if self._another(teacher) else Fate.LEFT
        return None

    def _withdraw(self, attempts: list[int], reservation: Reservation) -> None:
        """A row that was prepared is not sent."""
        self._withdrawn += self.journal.withdraw(attempts)
        self.ledger.release(reservation)
        self._busy -= 1

    async def _send(self, client: Client, teacher: Asked, row: Row, prepared: Prepared) -> Fate | Fault:
        """Send a row once. A fault that is returned is to be tried again."""
        began = self.clock.now()
        reply = await client.post(teacher.url, teacher.headers, prepared.body, row.until[teacher.name] - began)
        answer = reply if isinstance(reply, Fault) else self._read(teacher, reply, row.requests)
        if isinstance(answer, Fault):
            return await self._failed(teacher, row, prepared, began, answer)
        for completion in answer[1]:
            if completion.outcome is Outcome.REFUSED and _against_terms(completion):
                self._leave(teacher, Fault(FaultKind.TERMS, one_line(_refusal(completion))))
        _give_back(teacher, row)  # the endpoint need not wait for the disk
        await self._answered(teacher, prepared, *answer)
        return Fate.DONE

    def _read(
        self, teacher: Asked, reply: Reply, requests: tuple[Request, ...]
    ) -> tuple[bytes, list[Completion]] | Fault:
        """An answer: its bytes, without the key should the server send that back, and what it says."""
        wall = self.clock.wall()
        raw = teacher.redact_bytes(reply.raw)
        fault = of_reply(reply.status, reply.headers, raw, wall)
        if fault is not None and fault.kind is FaultKind.FILTERED:
            message = {"role": "assistant", "refusal": fault.message}
            return raw, [Completion(Outcome.FILTERED, "", message=message)]
        if fault is not None:
            return fault
        if wait := exhausted_for(reply.headers, wall):
            teacher.pacer.hold(wait)
        plain = parse(raw)
        try:
            if not isinstance(plain, dict):
                raise MalformedError(f"no JSON object: {one_line(raw[:200].decode('utf-8', errors='replace'), 80)}")
            found = teacher.format.completions(plain, requests)
        except (MalformedError, KeyError, TypeError, ValueError, AttributeError) as error:
            return Fault(FaultKind.MALFORMED, one_line(str(error) or type(error).__name__), maybe_served=True)
        return raw, [
            replace(each, outcome=Outcome.REFUSED)
            if each.outcome is Outcome.COMPLETE and _against_terms(each)
            else each
            for each in found
        ]

    async def _answered(self, teacher: Asked, prepared: Prepared, raw: bytes, completions: list[Completion]) -> None:
        attempts, reservation = prepared.attempts, prepared.reservation
        usage = completions[0].usage  # of all of them
        if completions[0].outcome is Outcome.FILTERED and usage is None:
            self.ledger.release(reservation)  # refused before anything was written
            cost = 0
        else:
            cost = self.ledger.settle(reservation, usage)
        teacher.pacer.succeeded()
        self._succeeded = True
        if len(completions) < len(attempts):
            teacher.several = len(completions)
        await self.journal.answered_together(attempts, raw, completions, cost)
        await self._wake()
        self.summary.answered.update(completion.outcome.value for completion in completions)
        self.summary.by_teacher[teacher.name] += len(completions)
        self.summary.nano_usd += cost
        if usage is not None:
            self.summary.tokens += usage.input + usage.output

    async def _failed(self, teacher: Asked, row: Row, prepared: Prepared, began: float, fault: Fault) -> Fate | Fault:
        attempts, reservation, used = prepared.attempts, prepared.reservation, prepared.length
        if fault.maybe_served:
            self.summary.nano_usd += self.ledger.settle(reservation, None)
        else:
            self.ledger.release(reservation)
        renamed = teacher.learns(fault, used)
        stops = fault.stops and not renamed and not (len(row) > 1 and fault.parameter == "n")
        # Of several samples that fail, each has a try of its own.
        final = len(row) == 1 and not (fault.passing or stops or renamed)
        message = teacher.redact(fault.message)
        for attempt in attempts:
            await self.journal.failed(attempt, fault.kind.value, message, final=final, maybe_served=fault.maybe_served)
        await self._wake()
        if renamed:
            return Fault(FaultKind.PARAMETER, message)
        self.summary.faults[fault.kind.value] += 1
        if len(row) > 1 and not (stops or fault.passing):
            if fault.parameter == "n":
                teacher.several = 1
            teacher.pacer.succeeded()
            return Fate.LEFT
        if stops:
            return self._leave(teacher, fault)
        if final:
            # The server is up, and this row is wrong.
            teacher.pacer.succeeded()
            self.summary.failed[fault.kind.value] += 1
            if fault.kind is FaultKind.BAD_REQUEST and not self._succeeded:
                self._bad += 1
                if self._bad >= BAD_AT_FIRST:
                    raise RecipeError(
                        f"{teacher.name} refuses the requests: {message}",
                        fix="Change what is asked; nothing was bought.",
                    )
            return Fate.DONE
        crowded = fault.kind in (FaultKind.LIMITED, FaultKind.OVERLOADED, FaultKind.SERVER)
        teacher.pacer.failed(began, crowded=crowded, wait=fault.wait)
        if teacher.pacer.exhausted:
            teacher.leave(WHY.get(fault.kind, "down") + f" ({message})", fault)
            return self._move(WHY.get(fault.kind, "down"))
        if fault.maybe_served and len(row) > 1:
            self.summary.possibly_paid_twice += len(row)
            return Fate.LEFT
        if fault.maybe_served and self.journal.state(row.key) is RowState.FAILED:
            self.summary.failed["unknown"] += 1
            return Fate.DONE
        if fault.maybe_served:
            self.summary.possibly_paid_twice += 1
        return fault

    def _leave(self, teacher: Asked, fault: Fault) -> Fate:
        """A fault that every further request would meet."""
        message = teacher.redact(fault.message)
        reason = WHY[fault.kind]
        if fault.kind is FaultKind.PARAMETER:
            # Another teacher would hide it: the recipe is to be changed.
            raise refused_parameter(teacher.name, fault.parameter or "", message, teacher.endpoint.extra)
        teacher.leave(f"{reason} ({message})", fault)
        return self._move(reason)

    def _move(self, reason: str) -> Fate:
        if self.stopping:
            return Fate.LEFT
        self.summary.moved[reason.partition(" (")[0]] += 1
        return Fate.NEXT

    def _another(self, teacher: Asked) -> bool:
        """Whether somebody comes after a teacher."""
        after = self.teachers[list(self.teachers).index(teacher) + 1 :]
        return self.local or any(each.gone is None for each in after)

    async def _reserve(self, teacher: Asked, bound: tuple[int, int]) -> Reservation:
        """Money for a request. Where it does not fit, what is in flight may turn out cheaper."""
        while True:
            try:
                return self.ledger.reserve(*bound, teacher.prices)
            except BudgetError:
                if not self._busy:
                    raise
                self._poor += 1
                try:
                    async with self._settled:
                        await self._settled.wait()
                finally:
                    self._poor -= 1

    async def _free(self, reservation: Reservation) -> None:
        self.ledger.release(reservation)
        await self._wake()

    async def _wake(self) -> None:
        if self._poor:
            async with self._settled:
                self._settled.notify_all()


def _give_back(teacher: Asked, row: Row) -> None:
    if row.slot:
        row.slot = False
        teacher.pacer.release()


def _refusal(completion: Completion) -> str:
    said = completion.message.get("refusal")
    return said if isinstance(said, str) and said else completion.text


def _against_terms(completion: Completion) -> bool:
    return terms_refused(_refusal(completion), declared=completion.outcome is Outcome.REFUSED)


def _chunks(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    left = iter(items)
    while chunk := list(islice(left, size)):
        yield chunk
