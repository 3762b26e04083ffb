"""Tokens in one convention, prices that are never guessed, and a budget that is never overrun."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import BudgetError, RecipeError
from limbeck.generation.journal.budget import Ledger, input_bound, usd
from limbeck.generation.journal.prices import BATCH, bound, cost, prices_of
from limbeck.generation.journal.rows import Spent
from limbeck.generation.journal.usage import usage_of
from limbeck.generation.request import Usage
from limbeck.recipe.served import Budget, Endpoint, Prices

OWN = Prices(input=2.5, output=10, cached_input=1.25, cache_write=3.125)


def endpoint(**more: Any) -> Endpoint:
    return Endpoint(**{"api": "https://api.openai.com/v1", "model": "gpt-4o", "prices": OWN, **more})


# One call: 1,000 tokens of a prompt, of which 600 were cached, and 300 tokens of answer, of which 200 were thoughts.
CALL = Usage(1000, 300, cached=600, reasoning=200)
GOLDEN: list[tuple[str, str, dict[str, Any]]] = [
    (
        "openai",
        "chat",
        {
            "service_tier": "default",
            "usage": {
                "prompt_tokens": 1000,
                "completion_tokens": 300,
                "total_tokens": 1300,
                "prompt_tokens_details": {"cached_tokens": 600, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 200, "audio_tokens": 0},
            },
        },
    ),
    (
        "openrouter",
        "chat",
        {
            "provider": "Azure",
            "usage": {
                "prompt_tokens": 1000,
                "completion_tokens": 300,
                "total_tokens": 1300,
                "cost": 0.00475,
                "is_byok": False,
                "prompt_tokens_details": {"cached_tokens": 600},
                "completion_tokens_details": {"reasoning_tokens": 200},
            },
        },
    ),
    (
        "xai",
        "chat",
        {
            "usage": {
                "prompt_tokens": 1000,
                "completion_tokens": 100,
                "total_tokens": 1300,
                "prompt_tokens_details": {"cached_tokens": 600},
                "completion_tokens_details": {"reasoning_tokens": 200},
            }
        },
    ),
    (
        "deepseek",
        "chat",
        {
            "usage": {
                "prompt_tokens": 1000,
                "completion_tokens": 300,
                "prompt_cache_hit_tokens": 600,
                "prompt_cache_miss_tokens": 400,
                "prompt_tokens_details": None,
                "completion_tokens_details": {"reasoning_tokens": 200},
            }
        },
    ),
    (
        "anthropic",
        "anthropic",
        {
            "usage": {
                "input_tokens": 400,
                "cache_read_input_tokens": 600,
                "cache_creation_input_tokens": 0,
                "output_tokens": 300,
                "output_tokens_details": {"thinking_tokens": 200},
                "service_tier": "standard",
            }
        },
    ),
    (
        "gemini",
        "gemini",
        {
            "usageMetadata": {
                "promptTokenCount": 1000,
                "cachedContentTokenCount": 600,
                "candidatesTokenCount": 100,
                "thoughtsTokenCount": 200,
                "totalTokenCount": 1300,
                "trafficType": "ON_DEMAND",
            }
        },
    ),
    (
        "gemini with thoughts inside",
        "gemini",
        {
            "usageMetadata": {
                "promptTokenCount": 1000,
                "cachedContentTokenCount": 600,
                "candidatesTokenCount": 300,
                "thoughtsTokenCount": 200,
                "totalTokenCount": 1300,
            }
        },
    ),
]


@pytest.mark.parametrize(("protocol", "plain"), [case[1:] for case in GOLDEN], ids=[case[0] for case in GOLDEN])
def test_the_same_call_is_the_same_everywhere(protocol: str, plain: dict[str, Any]) -> None:
    usage = usage_of(protocol, plain)
    assert usage == CALL
    # 400 × 2.5 + 600 × 1.25 + 300 × 10 = 4,750 millionths of a dollar
    assert cost(usage, prices_of(endpoint())) == 4_750_000


@pytest.mark.parametrize(
    ("protocol", "plain"),
    [
        ("chat", {}),
        ("chat", {"usage": None}),
        ("chat", {"usage": []}),
        ("chat", {"usage": {}}),
        ("chat", {"usage": {"prompt_tokens": -1, "completion_tokens": 3}}),
        ("chat", {"usage": {"prompt_tokens": True, "completion_tokens": 3}}),
        ("chat", {"usage": {"prompt_tokens": "12", "completion_tokens": 3}}),
        ("chat", {"usage": {"prompt_tokens": float("inf"), "completion_tokens": 3}}),
        ("chat", {"usage": {"prompt_tokens": 5.5, "completion_tokens": 3}}),
        (
            "chat",
            {"usage": {"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 6}}},
        ),
        ("anthropic", {"usage": {"prompt_tokens": 5, "completion_tokens": 3}}),
        ("gemini", {"usage": {"prompt_tokens": 5, "completion_tokens": 3}}),
    ],
)
def test_usage_that_cannot_be_is_none(protocol: str, plain: dict[str, Any]) -> None:
    assert usage_of(protocol, plain) is None


def test_the_tier_that_the_answer_names_is_charged() -> None:
    plain = {"service_tier": "flex", "usage": {"prompt_tokens": 1000, "completion_tokens": 100}}
    usage = usage_of("chat", plain)
    assert usage == Usage(1000, 100, tier="flex")
    known = prices_of(endpoint(model="gpt-5-mini", prices=None))
    assert cost(usage, known) * 2 == cost(Usage(1000, 100), known)
    anthropic = {"usage": {"input_tokens": 9, "output_tokens": 1, "service_tier": "batch"}}
    assert usage_of("anthropic", anthropic) == Usage(9, 1, tier="batch")


@pytest.mark.parametrize(
    ("api", "model"),
    [("https://api.openai.com/v1", "gpt-4o"), ("https://api.anthropic.com/v1", "claude-sonnet-4-5")],
)
def test_a_batch_costs_exactly_half(api: str, model: str) -> None:
    for prices in (None, OWN):
        known = prices_of(endpoint(api=api, model=model, prices=prices))
        for usage in (Usage(1000, 300), Usage(12_346, 778)):
            assert 2 * cost(Usage(usage.input, usage.output, tier=BATCH), known) == cost(usage, known)
        half = prices_of(endpoint(api=api, model=model, prices=prices, batch=True))
        assert 2 * bound(1000, 300, half) == bound(1000, 300, known)
        assert "(batch)" in half.line()


def test_prices_come_from_the_package_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    known = prices_of(endpoint(prices=None))
    assert cost(Usage(1_000_000, 100_000, cached=400_000), known) == 3_000_000_000
    assert known.source.startswith("genai-prices ")
    assert known.date is not None
    assert known.line() == f"$2.5 in, $10 out per million tokens, by {known.source} of {known.date}"
    own = prices_of(endpoint())
    assert own.line() == "$2.5 in, $10 out per million tokens, by the recipe"
    free = prices_of(endpoint(prices=Prices(input=0, output=0)))
    assert (bound(10**6, 10**6, free), free.line()) == (0, "$0 in, $0 out per million tokens, by the recipe")
    dear = prices_of(endpoint(prices=Prices(input=1, output=1, request=0.005)))
    assert cost(Usage(1, 1), dear) == 5_000_000 + 2 * 1000


@pytest.mark.parametrize("api", ["https://api.openai.com/v1", "http://localhost:8000/v1"])
def test_an_unknown_model_is_a_question(api: str) -> None:
    with pytest.raises(RecipeError, match=r"prices: what my-model costs at .* is not known\. Write `pr") as caught:
        prices_of(endpoint(api=api, model="my-model", prices=None))
    assert caught.value.key == ".prices"


def test_a_long_prompt_pays_the_price_of_long_prompts() -> None:
    known = prices_of(endpoint(api="https://api.anthropic.com/v1", model="claude-sonnet-4-5", prices=None))
    assert cost(Usage(200_000, 0), known) == 600_000_000
    assert cost(Usage(200_001, 0), known) > 1_200_000_000
    assert bound(200_001, 0, known) >= cost(Usage(200_001, 0, cache_write=200_001), known)


@given(
    st.integers(1, 300_000),
    st.integers(0, 5000),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from(["gpt-4o", "gpt-5-mini"]),
)
def test_no_call_costs_more_than_its_bound(n_in: int, n_out: int, cached: float, written: float, model: str) -> None:
    known = prices_of(endpoint(model=model, prices=None))
    n_cached = int(n_in * cached)
    usage = Usage(n_in, n_out, cached=n_cached, cache_write=int((n_in - n_cached) * written))
    assert cost(usage, known) <= bound(n_in, n_out, known)


def test_a_reservation_is_settled_or_released_once() -> None:
    ledger = Ledger(Budget(usd=0.01), Spent(1_000_000, 50))
    known = prices_of(endpoint())
    held = ledger.reserve(100, 50, known)
    assert held.nano_usd == 100 * 3125 + 50 * 10_000
    assert ledger.spent == Spent(1_812_500, 200, 812_500, 150)
    ledger.release(held)
    assert ledger.spent == Spent(1_000_000, 50)
    with pytest.raises(ValueError, match="settled or released already"):
        ledger.settle(held, None)
    assert ledger.settle(ledger.reserve(100, 50, known), Usage(80, 10)) == 300_000
    assert ledger.spent == Spent(1_300_000, 140)
    assert ledger.settle(ledger.reserve(100, 50, known), None) == 812_500
    assert ledger.spent == Spent(2_112_500, 290)


def test_what_does_not_fit_is_refused() -> None:
    known = prices_of(endpoint())
    with pytest.raises(BudgetError) as caught:
        Ledger(Budget(usd=0.01), Spent(9_500_000)).reserve(100, 50, known)
    assert caught.value.exit_code == 4
    assert caught.value.line() == (
        "budget.usd: the budget of $0.01 is used up: $0.0095 are spent or in flight, and the next answer may cost "
        "$0.000813. Raise it and run again; what was answered is kept"
    )
    with pytest.raises(BudgetError, match=r"budget.tokens: the budget of 1,000 tokens .* the next answer may take 150"):
        Ledger(Budget(tokens=1000), Spent(tokens=851)).reserve(100, 50, known)
    Ledger(Budget(tokens=1000), Spent(tokens=850)).reserve(100, 50, known)
    Ledger(Budget(usd=0.0008125), Spent()).reserve(100, 50, known)
    with pytest.raises(BudgetError):
        Ledger(Budget(usd=0.000812499), Spent()).reserve(100, 50, known)


LIES = [None, Usage(0, 0), Usage(10**9, 3), Usage(50, 10**9), Usage(50, 10, cached=60), Usage(50, 10, cached=-9)]


@pytest.mark.parametrize("limit", [Budget(usd=0.02), Budget(tokens=4000)])
def test_nothing_overruns_with_64_in_flight_and_a_server_that_lies(limit: Budget) -> None:
    known = prices_of(endpoint())
    ledger, chance, served, highest = Ledger(limit, Spent()), random.Random(5), 0, Spent()

    async def lane() -> None:
        nonlocal served, highest
        while True:
            held = ledger.reserve(chance.randint(20, 90), chance.randint(1, 40), known)
            await asyncio.sleep(chance.random() / 1000)
            if chance.random() < 0.2:
                ledger.release(held)
                continue
            served += 1
            ledger.settle(held, chance.choice([*LIES, Usage(held.input_bound, held.output_bound)]))
            highest = max(highest, ledger.spent, key=lambda spent: spent.nano_usd)

    async def way() -> list[Any]:
        return await asyncio.gather(*(lane() for _ in range(64)), return_exceptions=True)

    assert {type(end) for end in asyncio.run(way())} == {BudgetError}
    end = ledger.spent
    assert end.reserved_nano_usd == end.reserved_tokens == 0
    assert ledger.disbelieved > 0
    assert served > 20
    if limit.usd is not None:
        assert highest.nano_usd <= 20_000_000
        assert end.nano_usd > 19_000_000
    else:
        assert highest.tokens <= 4000
        assert end.tokens > 3800


def test_no_limit_counts_all_the_same() -> None:
    ledger = Ledger(None, Spent(5, 5))
    ledger.settle(ledger.reserve(10**9, 10**9, prices_of(endpoint())), Usage(4, 1))
    assert ledger.spent == Spent(5 + 20_000, 10)


def test_a_body_bounds_its_prompt() -> None:
    assert input_bound('{"content": "é"}'.encode()) >= len(b'{"content": "\\u00e9"}')
    assert [usd(n) for n in (0, 10**9, 12_300_000, 1500, 10**13)] == [
        "$0.00",
        "$1.00",
        "$0.0123",
        "$0.000002",
        "$10,000.00",
    ]


@pytest.fixture(autouse=True)
def _no_update() -> Iterator[None]:
    import genai_prices.data_snapshot as snapshot

    yield
    assert snapshot._custom_snapshot is None
