"""The same journal, sent through a batch endpoint: half the price, hours later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from limbeck.errors import BudgetError, RunFolderError, TeacherGoneError
from limbeck.generation.api.protocols import MalformedError
from limbeck.generation.api.summary import Summary
from limbeck.generation.api.teacher import Asked, Probed
from limbeck.generation.api.transport.client import import_aiohttp
from limbeck.generation.api.transport.clock import Clock, SystemClock
from limbeck.generation.batch.provider import AmbiguousError, Provider, Result, State, provider_of
from limbeck.generation.journal.batches import Batch, Batches, Sending
from limbeck.generation.journal.budget import Ledger, Reservation
from limbeck.generation.journal.journal import Journal
from limbeck.generation.journal.rows import RowState
from limbeck.generation.request import Completion, Request
from limbeck.recipe.served import Endpoint

ROUNDS = 3
"""How often a request is part of a batch in one call."""
LONGEST_WAIT = 300.0
PATIENCE = 8
"""How often a batch that has ended is asked again for answers that it counts and does not show."""
TOGETHER = 128


class BatchSampler:
    """Has requests answered in batches.

    A batch that was sent by a process that ended is taken up by the next one: its name is in the journal. Only requests
    without a success are sent again.

    Args:
        endpoint: with ``batch: true``.
        journal: open for writing.
        ledger: what may be spent.
        probed: what was found of the endpoint: a batch with a wrong name for the length fails as a whole.
        clock: the time; tests bring their own.

    Raises:
        RecipeError: a key is missing, or a price is not known.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        journal: Journal,
        ledger: Ledger,
        *,
        probed: Sequence[Probed] = (),
        clock: Clock | None = None,
    ) -> None:
        import_aiohttp()
        self.endpoint, self.journal, self.ledger, self.probed = endpoint, journal, ledger, probed
        self.clock: Clock = clock or SystemClock()
        provider_of(Asked(endpoint, self.clock), self.clock)

    def write(self, requests: Iterable[Request], progress: Callable[[int, str], None]) -> Summary:
        """Have requests answered; see :meth:`~limbeck.generation.api.served.ServedSampler.write`.

        It may be stopped at any time: the batches go on at the provider, and the next call reads them.

        Raises:
            BudgetError: the next request could cost more than is left. What was sent is read first.
            TeacherGoneError: the endpoint takes no batch.
            RunFolderError: a batch was sent with the key of another project.
        """
        return asyncio.run(_Run(self, progress).write(requests))


class _Run:
    """One call."""

    def __init__(self, sampler: BatchSampler, progress: Callable[[int, str], None]) -> None:
        self.journal, self.ledger, self.clock = sampler.journal, sampler.ledger, sampler.clock
        self.asked = Asked(sampler.endpoint, sampler.clock, sampler.probed)
        self.provider: Provider = provider_of(self.asked, sampler.clock)
        self.batches, self.progress, self.summary = Batches(sampler.journal), progress, Summary()
        self.held: dict[int, Reservation] = {}
        self.poor: BudgetError | None = None

    async def write(self, requests: Iterable[Request]) -> Summary:
        identity = dict(self.asked.identity)
        left = iter(requests)
        rows: dict[str, Request] = {}
        while some := list(islice(left, 1000)):
            self.journal.add(some, identity)
            rows |= {request.key(identity): request for request in some}
        for key in list(rows):
            if self.journal.state(key) is RowState.ANSWERED:
                self.summary.kept += 1
                del rows[key]
        for batch in self.batches.unfinished(identity):
            await self._take_up(batch)
        for _ in range(ROUNDS):
            todo = {key: request for key, request in rows.items() if self._is_to_do(key)}
            if not todo or self.poor:
                break
            for batch in self._begin(todo, identity):
                named = await self._submit(batch)
                if named is not None:
                    await self._finish(named)
        states = [self.journal.state(key) for key in rows]
        self.summary.left = sum(state is not RowState.ANSWERED and state is not RowState.FAILED for state in states)
        self.summary.possibly_paid_twice = self.journal.counts().possibly_paid_twice
        self.progress(self.summary.done, self.summary.line())
        if self.poor is not None and self.summary.left:
            raise self.poor
        return self.summary

    def _is_to_do(self, key: str) -> bool:
        return self.journal.state(key) in (RowState.TODO, RowState.UNKNOWN)

    def _begin(self, todo: Mapping[str, Request], identity: Mapping[str, str]) -> Iterable[Batch]:
        """Batches of what the budget holds, each on disk before it is handed over."""
        sendings: list[Sending] = []
        reservations: list[Reservation] = []
        size = 0
        for key, request in todo.items():
            body = self.asked.body(request)
            if sendings and (len(sendings) == self.provider.most_rows or size + len(body) > self.provider.most_bytes):
                yield self._begun(sendings, reservations, identity)
                sendings, reservations, size = [], [], 0
            try:
                held = self.ledger.reserve(*self.asked.bound(body, request), self.asked.prices)
            except BudgetError as error:
                self.poor = error
                break
            sendings.append(Sending(key, request, body, held.nano_usd, held.tokens))
            reservations.append(held)
            size += len(body) + 200
        if sendings:
            yield self._begun(sendings, reservations, identity)

    def _begun(self, sendings: list[Sending], held: list[Reservation], identity: Mapping[str, str]) -> Batch:
        batch = self.batches.begin(sendings, identity)
        self.held |= {each.attempt: one for each, one in zip(batch.sendings, held, strict=True)}
        return batch

    async def _submit(self, batch: Batch) -> Batch | None:
        """Hand a batch over; its name is on disk at once. None: it is not known whether there is one."""
        try:
            name = await self.provider.submit(batch.sendings, batch.tag)
        except AmbiguousError as error:
            found = await self.provider.find(batch.tag)
            if found is None:
                await self._give_up(batch, "no answer", str(error), maybe_served=True)
                return None
            name = found
        except TeacherGoneError as error:
            await self._give_up(batch, "batch refused", error.what, maybe_served=False)
            raise
        return self.batches.name(batch, name, self.provider.project)

    async def _take_up(self, batch: Batch) -> None:
        """Go on with a batch of a process that ended."""
        for each in batch.sendings:
            bounds = self.asked.bound(each.body, each.request)
            self.held[each.attempt] = self.ledger.resume(*bounds, self.asked.prices)
        if batch.name is None:
            found = await self.provider.find(batch.tag)
            if found is None:
                await self._give_up(batch, "interrupted", "the process ended while it was sent", maybe_served=True)
                return
            batch = self.batches.name(batch, found, self.provider.project)
        elif batch.project != self.provider.project:
            raise RunFolderError(
                f"the batch {batch.name} was sent with the key of another project",
                key=".api_key_env",
                fix="Set that key until the batch has ended",
            )
        await self._finish(batch)

    async def _finish(self, batch: Batch) -> None:
        """Wait for a batch, and keep what it brings."""
        assert batch.name is not None
        results: dict[str, Result] = {}
        wait, asked_again = 5.0, 0
        while True:
            state = await self.provider.state(batch.name)
            if state.over or asked_again >= PATIENCE:
                results = await self._read(batch, state, fresh=asked_again > 0)
                found = sum(result.answer is not None for result in results.values())
                if found >= min(state.served or 0, len(batch.sendings)) or asked_again >= PATIENCE:
                    break
            if state.over or state.said in ("completed", "expired", "failed", "cancelled"):
                asked_again += 1
            self.progress(
                self.summary.done, f"{batch.name}: {state.said}, {state.served or 0:,} of {state.total or '?'}"
            )
            await self.clock.sleep(wait)
            wait = min(wait * 1.5, LONGEST_WAIT)
        await self._settle(batch, results, state)
        self.batches.end(batch)

    async def _read(self, batch: Batch, state: State, *, fresh: bool) -> dict[str, Result]:
        """The best line of each request. Files are kept as they came before they are read."""
        assert batch.name is not None
        known = {each.key for each in batch.sendings}
        best: dict[str, Result] = {}
        for kind, name in state.files.items():
            content = None if fresh else self.batches.file(batch, kind)
            if content is None:
                content = self.asked.redact_bytes(await self.provider.read(batch.name, name))
                if content.strip():
                    self.batches.keep_file(batch, kind, content)
            for result in self.provider.results(content):
                old = best.get(result.id)
                if result.id in known and (old is None or (old.answer is None and result.answer is not None)):
                    best[result.id] = result
        return best

    async def _settle(self, batch: Batch, results: Mapping[str, Result], state: State) -> None:
        """Every request of a batch is answered, failed, or to do again."""
        found = sum(result.answer is not None for result in results.values())
        # More answers are counted than were seen: those that are missing may have been paid for.
        maybe_served = state.served is None or state.served > found
        jobs = [self._row(each, results.get(each.key), maybe_served) for each in batch.sendings]
        for first in range(0, len(jobs), TOGETHER):
            await asyncio.gather(*jobs[first : first + TOGETHER])

    async def _row(self, sending: Sending, result: Result | None, maybe_served: bool) -> None:
        held = self.held.pop(sending.attempt)
        if result is None:
            await self._fail(sending, held, ("batch", "no result came"), final=False, maybe_served=maybe_served)
        elif result.answer is None:
            why = ("bad_request" if result.wrong else "batch", result.problem)
            await self._fail(sending, held, why, final=result.wrong, maybe_served=False)
        else:
            try:
                completion: Completion = self.asked.format.completion(result.answer, sending.request)
            except (MalformedError, KeyError, TypeError, ValueError, AttributeError) as error:
                why = ("malformed", str(error) or type(error).__name__)
                await self._fail(sending, held, why, final=False, maybe_served=True)
                return
            if completion.usage is not None and completion.usage.tier is None:
                completion = replace(completion, usage=replace(completion.usage, tier="batch"))
            cost = self.ledger.settle(held, completion.usage)
            await self.journal.answered(sending.attempt, result.raw, completion, cost)
            self.summary.answered[completion.outcome.value] += 1
            self.summary.by_teacher[self.asked.name] += 1
            self.summary.nano_usd += cost
            if completion.usage is not None:
                self.summary.tokens += completion.usage.input + completion.usage.output

    async def _fail(
        self, sending: Sending, held: Reservation, why: tuple[str, str], *, final: bool, maybe_served: bool
    ) -> None:
        if maybe_served:
            self.summary.nano_usd += self.ledger.settle(held, None)
        else:
            self.ledger.release(held)
        kind, message = why[0], self.asked.redact(why[1])
        await self.journal.failed(sending.attempt, kind, message, final=final, maybe_served=maybe_served)
        self.summary.faults[kind] += 1
        if final:
            self.summary.failed[kind] += 1

    async def _give_up(self, batch: Batch, kind: str, message: str, *, maybe_served: bool) -> None:
        await asyncio.gather(
            *(
                self._fail(each, self.held.pop(each.attempt), (kind, message), final=False, maybe_served=maybe_served)
                for each in batch.sendings
            )
        )
        self.batches.end(batch)
