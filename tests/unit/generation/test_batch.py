"""Batches: half the price, and every way in which they come back incomplete."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import BudgetError, RecipeError, RunFolderError, TeacherGoneError
from limbeck.generation.api.served import ServedSampler
from limbeck.generation.api.summary import Summary
from limbeck.generation.api.teacher import Probed
from limbeck.generation.batch.provider import OpenAi
from limbeck.generation.batch.sampler import BatchSampler
from limbeck.generation.journal.batches import Batches
from limbeck.generation.journal.budget import Ledger
from limbeck.generation.journal.journal import Journal
from limbeck.generation.journal.rows import Spent
from limbeck.generation.request import Request
from limbeck.recipe.served import Budget, Endpoint, Prices
from tests.servers.batches import BatchServer
from tests.servers.clock import JumpingClock
from tests.servers.faulty import FaultyServer

KEY = "sk-secret-of-the-test-0123456789"
ROWS = 30
ONE = (20 * 1000 + 5 * 2000) // 2
"""Nano-USD of an answer: half of what it costs when it is called."""


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "a.sqlite") as opened:
        yield opened


def endpoint(server: BatchServer, **more: Any) -> Endpoint:
    prices = Prices(input=1, output=2)
    path = "v1beta" if more.get("protocol") == "gemini" else "v1"
    return Endpoint(
        **{"api": f"{server.url}/{path}", "model": "m", "batch": True, "prices": prices, "api_key_env": "K", **more}
    )


def ask(rows: int = ROWS) -> list[Request]:
    return [Request(messages=({"role": "user", "content": f"q{i}"},), max_new_tokens=50) for i in range(rows)]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K", KEY)


def write(teacher: Endpoint, journal: Journal, budget: Budget | None = None, rows: int = ROWS) -> Summary:
    lines: list[str] = []
    sampler = BatchSampler(teacher, journal, Ledger(budget, journal.spent()), clock=JumpingClock())
    summary = sampler.write(ask(rows), lambda done, line: lines.append(line))
    assert lines
    assert KEY not in "".join(lines)
    return summary


def texts(teacher: Endpoint, journal: Journal) -> list[str | None]:
    found = [journal.get(request.key(teacher.identity)) for request in ask()]
    return [each.text if each else None for each in found]


ALL = [f"answer to q{i}" for i in range(ROWS)]


@pytest.mark.parametrize("protocol", ["chat", "anthropic", "gemini"])
def test_a_batch_is_bought_once_and_costs_half(journal: Journal, protocol: str) -> None:
    with BatchServer() as server:
        teacher = endpoint(server, protocol=protocol)
        summary = write(teacher, journal)
        assert texts(teacher, journal) == ALL
        assert summary.nano_usd == ROWS * ONE
        assert journal.spent() == Spent(ROWS * ONE, ROWS * 25)
        again = write(teacher, journal)
        assert (again.kept, again.nano_usd) == (ROWS, 0)
        assert set(server.billed.values()) == {1}
        assert len(server.batches) == 1
        kept = journal.get(ask()[0].key(teacher.identity))
        assert kept is not None
        assert kept.usage is not None
        assert kept.usage.tier == "batch"
    assert KEY.encode() not in journal.path.read_bytes()


@pytest.mark.parametrize(
    ("fault", "batches"),
    [("expired", 2), ("late_output", 1), ("ids", 1), ("lost", 1), ("empty", 2), ("status", 1)],
)
def test_only_what_has_no_answer_is_sent_again(journal: Journal, fault: str, batches: int) -> None:
    with BatchServer(fault) as server:
        teacher = endpoint(server)
        summary = write(teacher, journal)
        assert texts(teacher, journal) == ALL
        assert len(server.batches) == batches
        assert set(server.billed.values()) == {1}
        assert summary.nano_usd == ROWS * ONE
        assert journal.counts().possibly_paid_twice == summary.left == 0
        assert journal.spent().nano_usd == ROWS * ONE


@pytest.mark.parametrize("protocol", ["anthropic", "gemini"])
def test_an_expired_batch_of_messages_is_completed(journal: Journal, protocol: str) -> None:
    with BatchServer("expired") as server:
        teacher = endpoint(server, protocol=protocol)
        write(teacher, journal)
        assert texts(teacher, journal) == ALL
        assert set(server.billed.values()) == {1}
        assert [len(batch["asked"]) for batch in server.batches.values()] == [ROWS, 20]


@pytest.mark.parametrize(("fault", "missing"), [("no_output", ROWS), ("torn", 10)])
def test_answers_that_are_counted_and_not_shown_may_be_paid_twice(journal: Journal, fault: str, missing: int) -> None:
    with BatchServer(fault) as server:
        teacher = endpoint(server)
        summary = write(teacher, journal)
        assert texts(teacher, journal) == ALL
        twice = sum(n - 1 for n in server.billed.values())
        assert abs(twice - missing) <= 1
        assert journal.counts().possibly_paid_twice == summary.possibly_paid_twice == twice
        assert journal.spent().nano_usd > ROWS * ONE + twice * ONE  # what was reserved for them counts


def test_a_batch_of_messages_that_was_perhaps_made_counts_as_unknown(journal: Journal) -> None:
    with BatchServer("lost") as server:
        teacher = endpoint(server, protocol="anthropic")
        write(teacher, journal)
        assert texts(teacher, journal) == ALL
        assert journal.counts().possibly_paid_twice == ROWS == sum(n - 1 for n in server.billed.values())


def test_a_wrong_request_is_not_sent_again(journal: Journal) -> None:
    with BatchServer("errors") as server:
        teacher = endpoint(server)
        summary = write(teacher, journal)
        assert journal.counts().failed == {"bad_request": 1}
        assert summary.failed == {"bad_request": 1}
        assert sum(text is not None for text in texts(teacher, journal)) == ROWS - 1
        assert [len(batch["asked"]) for batch in server.batches.values()] == [ROWS, 19]


@pytest.mark.parametrize("fault", ["refused", "billing"])
def test_a_refused_batch_leaves_its_rows_to_do(journal: Journal, fault: str) -> None:
    with BatchServer(fault) as server:
        teacher = endpoint(server)
        with pytest.raises(TeacherGoneError) as caught:
            write(teacher, journal)
        assert caught.value.exit_code == 3
        assert journal.counts().todo == ROWS
        assert journal.spent() == Spent()
        assert write(teacher, journal).answered == {"complete": ROWS}


class Stopped(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("when", ["before its name is kept", "after"])
def test_another_process_goes_on_with_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    path = tmp_path / "a.sqlite"
    with BatchServer() as server:
        teacher = endpoint(server)
        with monkeypatch.context() as patch, Journal(path) as journal:

            async def stop(*_: object) -> None:
                raise Stopped

            def stop_now(*_: object) -> None:
                raise Stopped

            patch.setattr(*((Batches, "name", stop_now) if when.startswith("before") else (OpenAi, "state", stop)))
            with pytest.raises(Stopped):
                write(teacher, journal)
        with Journal(path) as journal:
            assert journal.counts().sent == ROWS
            reserved = journal.spent()
            assert reserved.reserved_nano_usd == reserved.nano_usd > 0
            if when == "after":
                monkeypatch.setenv("K", f"{KEY}-of-another")
                with pytest.raises(RunFolderError, match="sent with the key of another project"):
                    write(teacher, journal)
                monkeypatch.setenv("K", KEY)
            with pytest.raises(RecipeError, match="part of a batch that has not ended"):
                asyncio.run(journal.sent(ask()[0].key(teacher.identity), teacher.identity, b"", 1))
            ledger = Ledger(None, journal.spent())
            BatchSampler(teacher, journal, ledger, clock=JumpingClock()).write(ask(), lambda *_: None)
            assert texts(teacher, journal) == ALL
            assert ledger.spent == journal.spent() == Spent(ROWS * ONE, ROWS * 25)
        assert len(server.batches) == 1
        assert set(server.billed.values()) == {1}


def test_a_budget_sends_what_it_holds(journal: Journal) -> None:
    with BatchServer() as server:
        teacher = endpoint(server)
        with pytest.raises(BudgetError):
            write(teacher, journal, Budget(usd=0.004))
        first = sum(server.billed.values())
        assert 0 < first < ROWS
        assert journal.spent().nano_usd == first * ONE <= 4_000_000
        write(teacher, journal, Budget(usd=0.1))
        assert texts(teacher, journal) == ALL
        assert set(server.billed.values()) == {1}


def test_the_sampler_of_a_chain_sends_batches_and_falls_back_where_none_is_taken(journal: Journal) -> None:
    with BatchServer("", "refused") as server, FaultyServer() as other:
        teacher = endpoint(server)
        calls = endpoint(server, api=f"{other.url}/v1", batch=False)
        sampler = ServedSampler([teacher, calls], journal, Ledger(None, Spent()), clock=JumpingClock())
        sampler.write(ask(10), lambda *_: None)
        assert sum(other.billed.values()) == 0
        sampler.write(ask(), lambda *_: None)
        assert sum(other.billed.values()) == 20
        wrote = [journal.who_wrote(request.key(teacher.identity)) for request in ask()]
        assert wrote == [teacher.identity] * 10 + [calls.identity] * 20
        server.faults = ["refused"]
        alone = ServedSampler([teacher], journal, Ledger(None, Spent()))
        with pytest.raises(TeacherGoneError):
            alone.write(ask(31), lambda *_: None)


def test_the_name_of_the_length_is_known_before_a_batch_is_sent(journal: Journal) -> None:
    with BatchServer() as server:
        teacher = endpoint(server)
        probed = [Probed(teacher.identity, False, "max_completion_tokens")]
        sampler = BatchSampler(teacher, journal, Ledger(None, Spent()), probed=probed, clock=JumpingClock())
        sampler.write(ask(3), lambda *_: None)
        (batch,) = server.batches.values()
    assert all("max_completion_tokens" in body and "max_tokens" not in body for _, body in batch["asked"])


def test_a_batch_of_geminis_is_found_by_its_name_and_its_wrong_requests_are_not_sent_again(journal: Journal) -> None:
    with BatchServer("lost", "errors") as server:
        teacher = endpoint(server, protocol="gemini")
        write(teacher, journal, rows=20)
        assert len(server.batches) == 1, "it was perhaps made, and is found"
        write(teacher, journal)
        assert journal.counts().failed == {"bad_request": 1}
        assert set(server.billed.values()) == {1}
        assert sum(text is not None for text in texts(teacher, journal)) == ROWS - 1
