"""The sampler over HTTP, against a server with faults on demand."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from limbeck.errors import BudgetError, LimbeckError, MachineError, RecipeError, TeacherGoneError
from limbeck.generation.api.served import ServedSampler
from limbeck.generation.api.summary import Summary
from limbeck.generation.api.teacher import Probed
from limbeck.generation.api.transport.clock import SystemClock
from limbeck.generation.journal.budget import Ledger
from limbeck.generation.journal.journal import Journal
from limbeck.generation.journal.rows import RowState, Spent
from limbeck.generation.request import Completion, Outcome, Request
from limbeck.recipe.served import Budget, Endpoint, Prices
from tests.servers.clock import JumpingClock
from tests.servers.faulty import Fault, FaultyServer
from tests.servers.sender import question

ROOT = Path(__file__).parents[3]
SECRET = "sk-not-to-be-seen-1234567890"


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.sqlite") as opened:
        yield opened


def endpoint(server: FaultyServer, model: str = "m", **more: Any) -> Endpoint:
    usual = {"api": f"{server.url}/v1", "prices": Prices(input=1, output=2), "concurrency": 16}
    return Endpoint(model=model, **{**usual, **more})


def send(
    journal: Journal, *chain: Any, rows: int | Iterable[Request] = 60, budget: Budget | None = None, clock: Any = None
) -> Summary:
    requests = map(question, range(rows)) if isinstance(rows, int) else rows
    sampler = ServedSampler(chain, journal, Ledger(budget, journal.spent()), clock=clock)
    return sampler.write(requests, lambda done, line: None)


def repeats(server: FaultyServer) -> int:
    return sum(n - 1 for n in server.billed.values())


def test_answers_are_kept_and_bought_once(journal: Journal) -> None:
    with FaultyServer() as server:
        teacher = endpoint(server)
        assert send(journal, teacher).answered == {"complete": 60}
        again = send(journal, teacher, rows=70)
        assert (again.kept, dict(again.answered)) == (60, {"complete": 10})
    assert sum(server.asked.values()) == 70
    key = question(3).key(teacher.identity)
    answer = journal.get(key)
    assert answer is not None
    assert answer.text == "The answer to Question 3"
    sent, raw = journal.exchange(key) or (None, None)
    assert sent == b'{"model":"m","messages":[{"role":"user","content":"Question 3"}],"max_tokens":64}'
    assert b"The answer to Question 3" in (raw or b"")
    assert journal.spent().nano_usd == sum(row.cost for row in journal.rows())


@pytest.mark.parametrize(
    ("protocol", "path"), [("chat", "/v1"), ("completions", "/v1"), ("anthropic", ""), ("gemini", "/v1beta")]
)
def test_every_protocol(journal: Journal, protocol: str, path: str) -> None:
    rows = [Request(messages=({"role": "user", "content": f"Q {i}"},), text=f"Q {i}") for i in range(5)]
    with FaultyServer(reasoning="reasoning") as server:
        teacher = endpoint(server, protocol=protocol, api=f"{server.url}{path}")
        assert send(journal, teacher, rows=rows).answered == {"complete": 5}
    found = journal.get(rows[2].key(teacher.identity))
    assert found is not None
    assert found.text == "The answer to Q 2"
    assert found.reasoning == (None if protocol == "completions" else "First I think.")
    assert found.usage is not None


FORMS = ("none", "seconds", "float", "milliseconds", "date", "unit", "ratelimit", "unknown")
PASSING = [
    *(Fault("429", 0.3, tries=2, retry_after=form) for form in FORMS),
    Fault("gemini_429", 0.3, tries=2),
    Fault("500", 0.3, tries=2, retry_after="float"),
    Fault("503", 0.3, tries=2, retry_after="float"),
    Fault("529", 0.3, tries=2, retry_after="float"),
    Fault("error_body", 0.3, tries=2),
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: f"{fault.kind}-{fault.retry_after}")
def test_what_was_refused_is_sent_again_and_paid_once(journal: Journal, fault: Fault) -> None:
    with FaultyServer(faults=[fault]) as server:
        summary = send(journal, endpoint(server), rows=30, clock=JumpingClock())
    assert summary.answered == {"complete": 30}
    assert sum(summary.faults.values()) > 3
    assert sum(server.asked.values()) == 30 + sum(summary.faults.values())
    assert repeats(server) == 0
    assert journal.spent().reserved_nano_usd == 0
    assert journal.counts().possibly_paid_twice == 0


@pytest.mark.parametrize("kind", ["502", "cut", "reset", "malformed"])
def test_what_may_have_been_served_is_counted_twice(journal: Journal, kind: str) -> None:
    with FaultyServer(faults=[Fault(kind, 0.2, tries=1)]) as server:
        summary = send(journal, endpoint(server), rows=30, clock=JumpingClock())
    lost = sum(summary.faults.values())
    assert summary.answered == {"complete": 30}
    assert lost > 1
    assert journal.counts().possibly_paid_twice == summary.possibly_paid_twice == lost
    assert "possibly paid twice" in summary.line()
    assert repeats(server) <= lost
    assert journal.spent().reserved_nano_usd > 0


def test_what_never_answers_is_sent_a_few_times_only(journal: Journal) -> None:
    with FaultyServer(faults=[Fault("reset")]) as server:
        for _ in range(8):
            send(journal, endpoint(server, concurrency=1), rows=1, clock=JumpingClock())
    assert 1 < sum(server.asked.values()) <= 5
    assert journal.counts().failed == {"unknown": 1}


def test_a_hang_ends_with_the_deadline(journal: Journal) -> None:
    with FaultyServer(faults=[Fault("hang", seconds=30, tries=1)]) as server:
        teacher = endpoint(server, deadline_seconds=0.3)
        summary = send(journal, teacher, rows=4)
        assert (summary.left, summary.faults["late"]) == (4, 4)
        assert journal.counts().unknown == 4
        server.settings.faults = []
        assert send(journal, teacher, rows=4).answered == {"complete": 4}


@pytest.mark.parametrize("kind", ["length", "filtered", "refusal", "tool_call"])
def test_the_four_other_endings_are_states_and_not_tried_again(journal: Journal, kind: str) -> None:
    with FaultyServer(faults=[Fault(kind)]) as server:
        summary = send(journal, endpoint(server), rows=5)
        assert send(journal, endpoint(server), rows=5).kept == 5
    outcome = {"refusal": "refused"}.get(kind, kind)
    assert summary.answered == {outcome: 5}
    assert sum(server.asked.values()) == 5


def test_a_prompt_that_is_filtered_costs_nothing(journal: Journal) -> None:
    with FaultyServer(faults=[Fault("content_filter")]) as server:
        summary = send(journal, endpoint(server), rows=3)
    assert (dict(summary.answered), summary.nano_usd) == ({"filtered": 3}, 0)


@pytest.mark.parametrize("kind", ["bad_utf8", "surrogate", "nul", "huge"])
def test_odd_answers_are_kept(journal: Journal, kind: str) -> None:
    with FaultyServer(faults=[Fault(kind)]) as server:
        teacher = endpoint(server)
        assert send(journal, teacher, rows=2).answered == {"complete": 2}
    key = question(0).key(teacher.identity)
    text = journal.get(key).text  # type: ignore[union-attr]
    text.encode("utf-8")
    _, raw = journal.exchange(key) or (None, b"")
    if kind == "bad_utf8":
        assert b"\xff\xfe" in raw
        assert "\ufffd" in text
    elif kind == "surrogate":
        assert "\ufffd" in text
    elif kind == "nul":
        assert "\x00" in text
    else:
        assert len(text) > 5_000_000


@pytest.mark.parametrize("kind", ["402", "insufficient_quota", "error_body_402", "key", "withdrawn", "terms"])
def test_what_every_request_would_meet_stops_at_the_first(journal: Journal, kind: str) -> None:
    with FaultyServer(faults=[Fault(kind)], latency=0.01) as server:
        with pytest.raises(TeacherGoneError) as error:
            send(journal, endpoint(server, concurrency=2), rows=100)
        assert sum(server.asked.values()) <= 2
        assert error.value.exit_code == 3
        counts = journal.counts()
        assert counts.todo == counts.total > 0
        assert journal.spent().nano_usd == 0
        server.settings.faults = []
        assert send(journal, endpoint(server), rows=100).answered == {"complete": 100}


def test_a_refusal_for_the_sake_of_its_terms_stops_a_teacher(journal: Journal) -> None:
    faulty = FaultyServer(faults=[Fault("terms_text")], latency=0.01)
    with faulty as server, pytest.raises(TeacherGoneError, match="its terms"):
        send(journal, endpoint(server, concurrency=2), rows=100)
    assert sum(server.asked.values()) <= 3
    assert set(journal.counts().answered) == {"refused"}


def test_rows_that_are_wrong_fail_alone(journal: Journal) -> None:
    with FaultyServer(faults=[Fault("too_long", 0.3)]) as server:
        summary = send(journal, endpoint(server), rows=30)
        assert send(journal, endpoint(server), rows=30).failed == {"before": summary.failed["too_long"]}
    assert summary.failed["too_long"] + summary.answered["complete"] == 30
    assert 0 < summary.failed["too_long"] < 30
    assert sum(server.asked.values()) == 30


def test_requests_that_are_all_wrong_are_an_error(journal: Journal) -> None:
    with (
        FaultyServer(faults=[Fault("bad_request")]) as server,
        pytest.raises(RecipeError, match="refuses the requests"),
    ):
        send(journal, endpoint(server, concurrency=2), rows=1000)
    assert sum(server.asked.values()) < 20


def test_the_server_may_say_not_to_try_again(journal: Journal) -> None:
    with FaultyServer(faults=[Fault("no_retry", 0.3)]) as server:
        summary = send(journal, endpoint(server), rows=20)
    assert summary.failed["server"] > 0
    assert sum(server.asked.values()) == 20


def test_a_refused_parameter_is_an_error_and_not_dropped(journal: Journal) -> None:
    rows = [Request(messages=question(i).messages, temperature=0.5) for i in range(50)]
    with FaultyServer(refuses=("temperature",)) as server, pytest.raises(RecipeError) as error:
        send(journal, endpoint(server, concurrency=2), rows=rows)
    assert error.value.key == ".temperature"
    assert sum(server.billed.values()) == 0
    assert journal.counts().todo == journal.counts().total


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_name_of_the_length_is_learned(journal: Journal, name: str) -> None:
    with FaultyServer(length_field=name) as server:
        assert send(journal, endpoint(server, concurrency=2), rows=10).answered == {"complete": 10}
    assert sum(server.asked.values()) <= 12


def test_the_next_teacher_answers_for_one_that_is_gone(journal: Journal) -> None:
    with FaultyServer(faults=[Fault("402")]) as server, FaultyServer() as other:
        first, second = endpoint(server, "first"), endpoint(other, "second")
        summary = send(journal, first, second, rows=20)
    assert summary.answered == {"complete": 20}
    assert summary.moved["billing"] >= 1
    assert "billing" in next(iter(summary.gone.values()))
    key = question(0).key(first.identity)
    assert journal.who_wrote(key) == second.identity


def test_a_request_that_stands_twice_is_bought_once(journal: Journal) -> None:
    with FaultyServer(latency=0.02) as server:
        summary = send(journal, endpoint(server), rows=[question(i % 4) for i in range(40)])
    assert (summary.answered, summary.kept) == ({"complete": 4}, 36)
    assert sum(server.asked.values()) == 4


def samples(prompts: int, each: int, **more: Any) -> list[Request]:
    return [replace(question(i), sample=n, temperature=0.7, **more) for i in range(prompts) for n in range(each)]


def send_together(
    journal: Journal, server: FaultyServer, rows: list[Request], *, budget: Budget | None = None, **more: Any
) -> Summary:
    teacher = endpoint(server, **more)
    sampler = ServedSampler(
        [teacher], journal, Ledger(budget, journal.spent()), probed=[Probed(teacher.identity, True, "max_tokens")]
    )
    return sampler.write(rows, lambda done, line: None)


def test_samples_of_a_prompt_are_asked_for_together_and_paid_once(journal: Journal, tmp_path: Path) -> None:
    rows = samples(10, 4)
    with FaultyServer() as server:
        summary = send_together(journal, server, rows)
        identity = endpoint(server).identity
        assert sum(server.asked.values()) == 10
        assert {body["n"] for body in server.bodies} == {4}
        with Journal(tmp_path / "one.sqlite") as other:
            send(other, endpoint(server), rows=rows)
            alone = other.spent()
        again = send_together(journal, server, [*rows, *samples(1, 6)])
        assert (again.kept, dict(again.answered)) == (44, {"complete": 2}), "keys are those of single requests"
    assert summary.answered == {"complete": 40}
    answers = [journal.get(row.key(identity)) for row in rows[:4]]
    assert [answer.text for answer in answers if answer] == [
        "The answer to Question 0", *(f"The answer to Question 0, sample {n}" for n in range(1, 4)),
    ]  # fmt: skip
    exchanges = [journal.exchange(row.key(identity)) for row in rows[:4]]
    assert len(set(exchanges)) == 1
    assert b"sample 3" in ((exchanges[3] or (None, None))[1] or b"")
    assert summary.nano_usd == sum(row.cost for row in journal.rows()) - again.nano_usd
    assert 0 < summary.nano_usd < alone.nano_usd, "the prompt is paid once"
    assert journal.spent().reserved_nano_usd == 0


@pytest.mark.parametrize("settings", [{"most_choices": 3}, {"refuses_over": 1}, {"refuses_over": 3}])
def test_samples_that_do_not_come_together_are_asked_for_one_by_one(journal: Journal, settings: dict[str, int]) -> None:
    with FaultyServer(**settings) as server:
        summary = send_together(journal, server, samples(6, 4), concurrency=1)
        most = sum(server.asked.values())
    assert summary.answered == {"complete": 24}
    assert not summary.failed
    assert most <= 6 + 24
    assert journal.spent() == Spent(summary.nano_usd, summary.tokens)


@pytest.mark.parametrize(
    "fault",
    [Fault("429", tries=1), Fault("500", share=0.5, tries=2), Fault("reset", share=0.5, tries=1),
     Fault("cut", share=0.5, tries=1), Fault("malformed", share=0.5, tries=1),
     Fault("bad_request", share=0.3, tries=1)],
    ids=lambda fault: fault.kind,
)  # fmt: skip
def test_faults_of_several_samples_lose_none_and_buy_none_twice(journal: Journal, fault: Fault) -> None:
    with FaultyServer(faults=[fault]) as server:
        summary = send_together(journal, server, samples(12, 4))
        billed = sum(server.billed.values())
    if fault.kind == "bad_request":
        assert summary.answered["complete"] + summary.failed["bad_request"] == 48
    else:
        assert summary.answered == {"complete": 48}
    counts = journal.counts()
    assert (counts.todo, counts.sent, counts.unknown) == (0, 0, 0)
    assert counts.possibly_paid_twice == summary.possibly_paid_twice
    if fault.kind in ("429", "500"):
        assert (billed, counts.possibly_paid_twice) == (12, 0)


def test_equal_samples_are_not_asked_for_together(journal: Journal) -> None:
    rows = [*samples(2, 3, seed=7), *(replace(row, temperature=0.0) for row in samples(2, 3))]
    with FaultyServer() as server:
        assert send_together(journal, server, rows).answered == {"complete": 12}
        assert not [body for body in server.bodies if "n" in body]


def test_a_budget_for_fewer_samples_is_used(journal: Journal) -> None:
    with FaultyServer() as server, pytest.raises(BudgetError):
        send_together(journal, server, samples(4, 8), budget=Budget(tokens=1_000))
    assert sum(journal.counts().answered.values()) > 0
    assert journal.spent().tokens <= 1_000


def test_other_fields_of_the_body_buy_anew_and_a_new_key_does_not(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "another")
    with FaultyServer() as server:
        assert send(journal, endpoint(server), rows=3).answered == {"complete": 3}
        assert send(journal, endpoint(server, api_key_env="SOME_KEY"), rows=3).kept == 3
        assert send(journal, endpoint(server, extra={"reasoning_effort": "low"}), rows=3).answered == {"complete": 3}
    assert server.bodies[-1]["reasoning_effort"] == "low"


def test_the_package_that_is_missing_is_named(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(MachineError, match=r"limbeck\[api\]"):
        ServedSampler([], journal, Ledger(None, journal.spent()))


def test_a_server_that_is_not_there_is_left_after_its_patience(journal: Journal) -> None:
    with FaultyServer() as server:
        gone = Endpoint(api="http://127.0.0.1:9/v1", model="x", prices=Prices(input=0, output=0), patience_seconds=20.0)
        summary = send(journal, gone, endpoint(server), rows=10, clock=JumpingClock())
    assert summary.answered == {"complete": 10}
    assert summary.moved["down"] >= 1
    assert journal.spent().reserved_nano_usd == 0


def test_an_answer_over_price_goes_to_the_next(journal: Journal) -> None:
    with FaultyServer() as dear, FaultyServer() as cheap:
        first = endpoint(dear, "dear", prices=Prices(input=1000, output=1000), max_usd_per_answer=0.01)
        summary = send(journal, first, endpoint(cheap, "cheap"), rows=10)
    assert summary.moved == {"over price": 10}
    assert (sum(dear.asked.values()), sum(cheap.asked.values())) == (0, 10)


class Parrot:
    """A local model that repeats."""

    identity: ClassVar[dict[str, str]] = {"model": "parrot"}

    def write(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Completion]]:
        for request in reversed(list(requests)):
            yield request, Completion(Outcome.COMPLETE, str(request.messages[-1]["content"]))


def test_a_local_model_may_be_the_last(journal: Journal) -> None:
    with FaultyServer(faults=[Fault("402")]) as server:
        first = endpoint(server)
        summary = send(journal, first, Parrot(), rows=20)
    assert summary.answered == {"complete": 20}
    key = question(7).key(first.identity)
    assert journal.get(key).text == "Question 7"  # type: ignore[union-attr]
    assert journal.who_wrote(key) == Parrot.identity


def test_twenty_minutes_of_429_are_borne(journal: Journal) -> None:
    clock = JumpingClock()
    with FaultyServer(when=lambda: "429" if clock.time < 1200 else None) as server:
        teacher = endpoint(server, patience_seconds=3600.0, deadline_seconds=7200.0)
        summary = send(journal, teacher, rows=40, clock=clock)
    assert summary.answered == {"complete": 40}
    assert clock.time >= 1200
    assert sum(server.asked.values()) < 200
    assert repeats(server) == 0


def test_twenty_minutes_of_429_end_a_patience_of_five(journal: Journal) -> None:
    clock = JumpingClock()
    with FaultyServer(when=lambda: "429") as server, FaultyServer() as other:
        teacher = endpoint(server, patience_seconds=300.0)
        with pytest.raises(TeacherGoneError, match="limited") as error:
            send(journal, teacher, rows=40, clock=clock)
        assert error.value.exit_code == 3
        assert 300 <= clock.time < 500
        assert journal.counts().todo == 40
        summary = send(journal, teacher, endpoint(other, "other"), rows=40, clock=JumpingClock())
        assert summary.answered == {"complete": 40}
        assert summary.moved["limited"] >= 1


def test_a_budget_is_never_overrun_and_is_resumed_with_more(journal: Journal) -> None:
    with FaultyServer(latency=0.005, usage="lie") as server:
        teacher = endpoint(server, concurrency=64)
        most = Budget(usd=0.02)
        with pytest.raises(BudgetError) as error:
            send(journal, teacher, rows=500, budget=most)
        assert error.value.exit_code == 4
        bought = sum(journal.counts().answered.values())
        assert bought > 3
        assert journal.spent().nano_usd <= 20_000_000
        assert journal.counts().sent == journal.counts().unknown == 0
        server.settings.usage = "true"
        assert send(journal, teacher, rows=50, budget=Budget(usd=1)).kept == bought
        assert repeats(server) == 0


def test_what_turns_out_cheaper_makes_room(journal: Journal) -> None:
    """Reservations are far above real costs: waiting for those in flight buys more than the reservations allow."""
    with FaultyServer(latency=0.005) as server, pytest.raises(BudgetError):
        send(journal, endpoint(server, concurrency=64), rows=500, budget=Budget(tokens=2_500))
    spent = journal.spent()
    assert 1_500 < spent.tokens <= 2_500


def test_no_key_is_written_anywhere(journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", f" {SECRET}\n")
    lines: list[str] = []
    with FaultyServer(faults=[Fault("key", 0.5)], text=f"You sent {SECRET}") as server:
        teacher = endpoint(server, api_key_env="SOME_KEY", concurrency=1)
        sampler = ServedSampler([teacher], journal, Ledger(None, journal.spent()))
        with pytest.raises(TeacherGoneError) as error:
            sampler.write(map(question, range(50)), lambda done, line: lines.append(line))
        server.settings.faults = []
        ServedSampler([teacher], journal, Ledger(None, journal.spent())).write(map(question, range(3)), lambda *_: None)
        assert all(headers["Authorization"] == f"Bearer {SECRET}" for headers in server.headers)
    written = [repr(row) for row in journal.rows()]
    written += [repr(journal.exchange(row.key)) for row in journal.rows(RowState.ANSWERED)]
    assert any("***" in each for each in written)
    for text in (*lines, str(error.value), repr(error.value), *written):
        assert SECRET not in text
    for path in tmp_path.iterdir():
        assert SECRET.encode() not in path.read_bytes()


@pytest.mark.parametrize("value", [None, "", "two words", "a\x00b", "schlüssel"])
def test_a_key_that_cannot_be_one_is_an_error_without_it(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is not None and "\x00" not in value:
        monkeypatch.setenv("SOME_KEY", value)
    teacher = Endpoint(api="http://localhost", model="m", api_key_env="SOME_KEY", prices=Prices(input=0, output=0))
    with pytest.raises(RecipeError, match="SOME_KEY") as error:
        ServedSampler([teacher], journal, Ledger(None, journal.spent()))
    assert not value or value not in str(error.value)


def test_an_error_of_the_requests_themselves_is_raised(journal: Journal) -> None:
    def broken() -> Iterator[Request]:
        yield from map(question, range(300))
        raise LimbeckError("no more")

    with FaultyServer() as server, pytest.raises(LimbeckError, match="no more"):
        send(journal, endpoint(server), rows=broken())
    assert journal.counts().sent == 0


class ServerProcess:
    """The server in a process of its own."""

    def __init__(self, settings: str = "{}") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.servers.faulty", settings],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    def counts(self) -> dict[str, int]:
        import json
        import urllib.request

        with urllib.request.urlopen(f"{self.url}/counts") as answer:
            return dict(json.load(answer))

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def start(url: str, path: Path, rows: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.servers.sender", f"{url}/v1", str(path), str(rows)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment,
        # A job in the background of a shell ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )  # fmt: skip


def until(ready: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


@pytest.mark.parametrize(("kills", "rows"), [(1, 100), pytest.param(10, 2000, marks=pytest.mark.slow)])
def test_killed_at_any_moment_nothing_is_bought_again_but_what_was_in_flight(
    tmp_path: Path, kills: int, rows: int
) -> None:
    path = tmp_path / "journal.sqlite"
    moments = random.Random(1)
    in_flight = 0
    with ServerProcess('{"latency": 0.02}') as server:
        for kill in range(kills):
            process = start(server.url, path, rows)
            target = (kill + moments.random()) * rows / (kills + 1)
            until(
                lambda process=process, target=target: server.counts()["asked"] >= target or process.poll() is not None
            )
            process.kill()
            process.communicate()
            with Journal(path) as journal:  # what was sent becomes unknown
                counts = journal.counts()
                assert counts.sent == 0
                in_flight += counts.unknown
                assert counts.unknown <= 16 + 16 // 4 + 64, "in flight, ahead of it, and answers of one commit"
        process = start(server.url, path, rows)
        process.communicate()
        assert process.returncode == 0
        counted = server.counts()
    assert counted["bodies"] == rows
    assert counted["repeats"] <= in_flight
    with Journal(path, read_only=True) as journal:
        assert journal.counts().answered == {"complete": rows}
        assert journal.counts().possibly_paid_twice == in_flight


def test_few_rows_are_written_ahead_of_their_slots(journal: Journal) -> None:
    most = 0

    class Clock(SystemClock):
        def now(self) -> float:  # asked before and after each request
            nonlocal most
            most = max(most, journal.counts().sent)
            return super().now()

    with FaultyServer(latency=0.05) as server:
        assert send(journal, endpoint(server, concurrency=8), clock=Clock()).answered == {"complete": 60}
        assert server.most_in_flight <= 8
    assert 8 < most <= 8 + 8 // 4 + 64, "slots, those ahead of them, and answers of one commit"


def test_ctrl_c_drains(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with ServerProcess('{"latency": 0.1}') as server:
        process = start(server.url, path, 5000)
        until(lambda: server.counts()["asked"] >= 40 or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == 130
        counted = server.counts()
    with Journal(path) as journal:
        counts = journal.counts()
        assert (counts.sent, counts.unknown, counts.possibly_paid_twice) == (0, 0, 0)
        assert counts.answered == {"complete": counted["billed"]}
        assert counted["asked"] == counted["billed"] < 5000


MIXED = [
    *(Fault("429", 0.05 / 8, retry_after=form) for form in FORMS),
    Fault("500", 0.01, retry_after="float"),
    Fault("502", 0.01),
    Fault("529", 0.01),
    Fault("error_body", 0.01),
    Fault("cut", 0.005),
    Fault("reset", 0.005),
    Fault("malformed", 0.005),
    Fault("hang", 0.002, tries=1, seconds=1),
    Fault("length", 0.02),
    Fault("filtered", 0.01),
    Fault("refusal", 0.01),
    Fault("bad_utf8", 0.01),
    Fault("surrogate", 0.01),
    Fault("nul", 0.01),
    Fault("huge", 0.001),
]


@pytest.mark.parametrize("rows", [150, pytest.param(2000, marks=pytest.mark.slow)])
def test_all_faults_at_once_lose_and_repeat_nothing(journal: Journal, rows: int) -> None:
    with FaultyServer(faults=MIXED, latency=0.005) as server:
        summary = send(journal, endpoint(server, concurrency=64), rows=rows)
    counts = journal.counts()
    assert sum(summary.answered.values()) == rows
    assert counts.total == sum(counts.answered.values()) == rows
    assert repeats(server) <= counts.possibly_paid_twice
    assert (counts.todo, counts.sent, counts.unknown) == (0, 0, 0)
