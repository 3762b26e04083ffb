"""What faults mean, how long a server asks to wait, and the pace that follows."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from multidict import CIMultiDict

from limbeck.generation.api.transport.faults import FaultKind, of_reply, terms_refused
from limbeck.generation.api.transport.headers import duration, exhausted_for, retry_after
from limbeck.generation.api.transport.pacing import BREAKS_AFTER, Pacer, backoff
from tests.servers.clock import JumpingClock

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1", 1.0), ("1.5", 1.5), ("20s", 20.0), ("6m0s", 360.0), ("1h2m3s", 3723.0), ("120ms", 0.12), ("0", 0.0),
        ("-1", None), ("", None), ("nan", None), ("inf", None), ("soon", None), (None, None),
    ],
)  # fmt: skip
def test_durations(text: str | None, seconds: float | None) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "3"}, 3.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"Retry-After": "Fri, 15 Jan 2027 08:00:07 GMT"}, 7.0),
        ({"Retry-After": "Fri, 15 Jan 2027 08:00:07 GMT", "Date": "Fri, 15 Jan 2027 08:00:05 GMT"}, 2.0),
        ({"Retry-After": "Fri, 15 Jan 2021 08:00:00 GMT"}, 0.0),
        ({"retry-after-ms": "1500", "Retry-After": "2"}, 1.5),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": "tomorrow"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m1s"}, 61.0),
        ({"x-ratelimit-remaining-requests": "-1", "x-ratelimit-reset-requests": "5s"}, None),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "-1"}, None),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(NOW + 9) * 1000)}, 9.0),
        (
            {
                "anthropic-ratelimit-requests-remaining": "0",
                "anthropic-ratelimit-requests-reset": "2027-01-15T08:00:04Z",
            },
            4.0,
        ),
        ({}, None),
    ],
)
def test_how_long_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    found = retry_after(CIMultiDict(headers), None, NOW)
    assert found == (None if seconds is None else pytest.approx(seconds))


def test_gemini_writes_the_wait_into_the_body() -> None:
    plain = {"error": {"details": [{"reason": "x"}, {"retryDelay": "13s"}]}}
    assert retry_after({}, plain, NOW) == 13.0


def test_a_limit_with_something_left_is_not_empty() -> None:
    assert exhausted_for(CIMultiDict({"x-ratelimit-remaining": "3", "x-ratelimit-reset": "9"}), NOW) is None


def fault(status: int, said: Any = None, headers: dict[str, str] | None = None) -> Any:
    raw = said.encode() if isinstance(said, str) else json.dumps(said if said is not None else {}).encode()
    return of_reply(status, CIMultiDict(headers or {}), raw, NOW)


def openai(message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "code": code, "param": param, "type": "invalid_request_error"}}


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (402, {}, FaultKind.BILLING),
        (429, openai("You exceeded your current quota, see your billing.", "insufficient_quota"), FaultKind.BILLING),
        (400, {"error": {"message": "Your credit balance is too low to access the Anthropic API."}}, FaultKind.BILLING),
        (
            429,
            openai("Rate limit reached. Add a payment method: platform.openai.com/account/billing", "rate_limit"),
            FaultKind.LIMITED,
        ),
        (
            429,
            {"error": {"code": 429, "message": "You exceeded your current quota", "status": "RESOURCE_EXHAUSTED"}},
            FaultKind.LIMITED,
        ),
        (401, openai("Incorrect API key provided"), FaultKind.KEY),
        (400, {"error": {"message": "API key not valid.", "status": "INVALID_ARGUMENT"}}, FaultKind.KEY),
        (403, openai("Our terms do not allow training competing models."), FaultKind.TERMS),
        (404, openai("The model `x` does not exist", "model_not_found"), FaultKind.WITHDRAWN),
        (410, {}, FaultKind.WITHDRAWN),
        (301, "", FaultKind.WITHDRAWN),
        (503, {}, FaultKind.OVERLOADED),
        (529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, FaultKind.OVERLOADED),
        (500, {}, FaultKind.SERVER),
        (502, "<html>Bad Gateway</html>", FaultKind.SERVER),
        (400, openai("maximum context length is 8192 tokens", "context_length_exceeded"), FaultKind.TOO_LONG),
        (400, openai("filtered", "content_filter"), FaultKind.FILTERED),
        (400, openai("'temperature' is not supported", "unsupported_parameter"), FaultKind.PARAMETER),
        (400, openai("Invalid image", None, "messages[0].content"), FaultKind.BAD_REQUEST),
        (422, {"detail": [{"loc": ["body"], "msg": "field required"}]}, FaultKind.BAD_REQUEST),
        (200, {"error": {"code": 402, "message": "Insufficient credits"}}, FaultKind.BILLING),
        (200, {"error": {"code": 429, "message": "slow down"}}, FaultKind.LIMITED),
        (200, {"error": "it broke"}, FaultKind.SERVER),
    ],
)  # fmt: skip
def test_kinds(status: int, said: Any, kind: FaultKind) -> None:
    assert fault(status, said).kind is kind


@pytest.mark.parametrize(
    ("message", "param", "name"),
    [
        ("Unsupported value: 'temperature' does not support 0.2 with this model.", "temperature", "temperature"),
        ("Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens'.", None, "max_tokens"),
        ("`temperature` is deprecated for this model.", None, "temperature"),
        ("temperature is not supported for this model", None, "temperature"),
        ("Unrecognized request argument supplied: top_k", None, "top_k"),
        ("top_k: Extra inputs are not permitted", None, "top_k"),
        ("Argument not supported: logit_bias is unsupported", None, "logit_bias"),
    ],
)
def test_a_refused_parameter_is_named(message: str, param: str | None, name: str) -> None:
    found = fault(400, {"error": {"message": message, "param": param, "code": "unsupported_value" if param else None}})
    assert (found.kind, found.parameter) == (FaultKind.PARAMETER, name)


def test_a_success_is_no_fault() -> None:
    assert fault(200, {"choices": []}) is None
    assert fault(200, {"error": None, "choices": []}) is None
    assert fault(200, {"choices": [{"message": {"content": 'the key "error"'}}]}) is None


def test_the_server_has_the_last_word_on_trying_again() -> None:
    assert not fault(500, {}, {"x-should-retry": "false"}).passing
    assert fault(400, openai("odd"), {"x-should-retry": "true"}).passing
    assert not fault(402, {}, {"x-should-retry": "true"}).passing


def test_only_gateways_may_have_served() -> None:
    assert {status for status in (400, 429, 500, 502, 503, 504, 524, 529) if fault(status).maybe_served} == {
        502,
        504,
        524,
    }


def test_messages_are_a_short_line() -> None:
    message = fault(500, openai("a\n\x1b[31mb" + "x" * 5000)).message
    assert message.isprintable()
    assert len(message) < 330


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I can't help with building a model that competes with our products.", True),
        ("Sorry, our terms prohibit using outputs to train competing AI models.", True),
        ("Our terms say that distillation of my answers is not allowed, so I cannot do this.", True),
        ("The lawyer wrote: you cannot train competing models on it.", False),
        ("Two firms sell competing products in the same market.", False),
        ("I cannot answer that.", False),
        ("Competing models exist. " * 60 + "I cannot say.", False),
    ],
)
def test_terms(text: str, refused: bool) -> None:
    assert terms_refused(text) is refused


def pacer(most: int = 8, patience: float = 100.0) -> tuple[Pacer, JumpingClock]:
    clock = JumpingClock()
    return Pacer(most, patience, clock), clock


def test_a_crowd_of_refusals_lowers_the_limit_once() -> None:
    pace, clock = pacer(64)
    clock.time = 5.0
    for _ in range(5):
        pace.failed(4.0, crowded=True, wait=None)
    assert pace.limit == 48
    clock.time = 6.0
    pace.failed(5.5, crowded=True, wait=None)
    assert pace.limit == 36
    for _ in range(200):
        pace.succeeded()
    assert pace.limit > 50


def test_slots_are_never_more_than_the_limit() -> None:
    async def work() -> int:
        pace, _ = pacer(3)
        most = 0

        async def one() -> None:
            nonlocal most
            assert await pace.acquire()
            most = max(most, pace.in_flight)
            await asyncio.sleep(0)
            pace.succeeded()
            pace.release()

        await asyncio.gather(*(one() for _ in range(30)))
        assert pace.in_flight == 0
        return most

    assert asyncio.run(work()) == 3


def test_a_slot_is_not_lost_with_a_waiter_that_is_cancelled() -> None:
    async def work() -> None:
        pace, _ = pacer(1)
        await pace.acquire()
        waiting = [asyncio.create_task(pace.acquire()) for _ in range(3)]
        await asyncio.sleep(0)
        pace.release()
        waiting[0].cancel()
        waiting[1].cancel()
        assert await asyncio.wait_for(waiting[2], 5)

    asyncio.run(work())


def test_the_circuit_opens_and_is_tried_by_one() -> None:
    async def work() -> None:
        pace, clock = pacer(8)
        for _ in range(BREAKS_AFTER):
            assert await pace.acquire()
            pace.failed(clock.now(), crowded=False, wait=7.0)
            pace.release()
        tasks = [asyncio.create_task(pace.acquire()) for _ in range(5)]
        await asyncio.sleep(0.1)
        assert clock.time >= 7.0
        assert pace.in_flight == 1  # the trial
        pace.succeeded()
        pace.release()
        assert await asyncio.gather(*tasks) == [True] * 5

    asyncio.run(work())


def test_patience_ends_with_faults_alone() -> None:
    async def work() -> None:
        pace, clock = pacer(8, patience=10.0)
        await pace.acquire()
        clock.time = 100.0
        pace.failed(0.0, crowded=False, wait=None)
        assert not pace.exhausted, "a single fault of a slow server"
        for _ in range(4):
            pace.failed(0.0, crowded=False, wait=None)
        assert pace.exhausted
        pace.succeeded()
        assert not pace.exhausted

    asyncio.run(work())


def test_backoff_doubles_up_to_a_minute() -> None:
    assert [backoff(i) for i in (0, 1, 2, 7, 50)] == [0.5, 1.0, 2.0, 60.0, 60.0]
