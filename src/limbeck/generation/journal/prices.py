"""What a call costs, in whole nano-USD: by the recipe, or by what the package genai-prices knows, offline."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any

from limbeck.errors import MachineError, RecipeError
from limbeck.generation.request import Usage
from limbeck.recipe.served import Endpoint

BATCH = "batch"


@dataclass(frozen=True)
class Rates:
    """Half pico-USD a token (so that half of a price is exact); ``request``: a request, beside its tokens."""

    input: int
    output: int
    cached: int
    cache_write: int
    request: int = 0

    def halved(self) -> Rates:
        return Rates(*(-(-rate // 2) for rate in astuple(self)))


@dataclass(frozen=True)
class PriceList:
    """Prices of a model.

    Attributes:
        tiers: by service tier; "" is the standard one. Each has its rates by the length of the prompt: from how many
            tokens on they hold, ascending from 0.
        source: where the prices are from.
        date: how new they are at least; None: not known.
        asked: the tier that is asked for.
    """

    tiers: Mapping[str, tuple[tuple[int, Rates], ...]]
    source: str
    date: datetime.date | None = None
    asked: str = ""

    def rates(self, tier: str | None, tokens: int) -> Rates:
        """What holds for a prompt of so many tokens. A tier without prices of its own costs as much as the standard."""
        steps = self.tiers.get(tier or "", self.tiers[""])
        return [rates for start, rates in steps if start == 0 or tokens > start][-1]

    def line(self) -> str:
        """For people: prices a million tokens, and where they are from."""
        rates = self.rates(self.asked, 0)
        prices = f"${_usd_per_million(rates.input)} in, ${_usd_per_million(rates.output)} out per million tokens"
        batch = " (batch)" if self.asked == BATCH else ""
        return f"{prices}{batch}, by {self.source}{f' of {self.date}' if self.date else ''}"


def prices_of(endpoint: Endpoint) -> PriceList:
    """The prices of an endpoint: the recipe's, else those of genai-prices, whose data are part of the package.

    Raises:
        RecipeError: nothing is known of the model; the recipe must say what it costs.
    """
    asked = BATCH if endpoint.batch else str(endpoint.extra.get("service_tier") or "")
    asked = "" if asked in ("auto", "default", "standard", "standard_only") else asked
    if (own := endpoint.prices) is not None:
        rates = Rates(
            input=_rate(own.input),
            output=_rate(own.output),
            cached=_rate(own.input if own.cached_input is None else own.cached_input),
            cache_write=_rate(own.input if own.cache_write is None else own.cache_write),
            request=_rate(own.request) * 1_000_000,
        )
        return PriceList({"": ((0, rates),), BATCH: ((0, rates.halved()),)}, "the recipe", asked=asked)
    return _known(endpoint, asked)


def cost(usage: Usage, prices: PriceList) -> int:
    """Nano-USD of a call, by the tier that its answer names; rounded up."""
    rates = prices.rates(usage.tier, usage.input)
    plain = usage.input - usage.cached - usage.cache_write
    return _nano(
        plain * rates.input
        + usage.cached * rates.cached
        + usage.cache_write * rates.cache_write
        + usage.output * rates.output
        + rates.request
    )


def bound(input_tokens: int, output_tokens: int, prices: PriceList) -> int:
    """The most that a call of at most so many tokens can cost, in nano-USD, by any tier that may answer."""
    most = 0
    for tier in {"" if prices.asked != BATCH else BATCH, prices.asked}:
        for start, rates in prices.tiers.get(tier, prices.tiers[""]):
            if start == 0 or input_tokens > start:
                dearest = max(rates.input, rates.cache_write, rates.cached)
                most = max(most, input_tokens * dearest + output_tokens * rates.output + rates.request)
    return _nano(most)


def _known(endpoint: Endpoint, asked: str) -> PriceList:
    try:
        import genai_prices
        from genai_prices.data_snapshot import get_snapshot
    except ImportError:
        raise MachineError(
            "the prices of an API need the package genai-prices",
            key=".prices",
            fix="Install it with `pip install 'limbeck[api]'`, or write the prices",
        ) from None
    try:
        _, model = get_snapshot().find_provider_model(endpoint.model, None, None, endpoint.api)
    except LookupError:
        raise RecipeError(
            f"what {endpoint.model} costs at {endpoint.api} is not known",
            key=".prices",
            fix="Write `prices: {input: ..., output: ...}` in USD per million tokens; 0 for a server of your own",
        ) from None
    now = datetime.datetime.now(tz=datetime.UTC)
    tiers: dict[str, tuple[tuple[int, Rates], ...]] = {}
    for tier, context in (
        ("", None),
        (BATCH, {"processing": "batch"}),
        *((name, {"service_tier": name}) for name in ("flex", "priority")),
    ):
        found = list(_in_force(model, now, context))
        if found:
            tiers[tier] = _dearest(found)
    if "" not in tiers:
        raise RecipeError(
            f"what the tokens of {endpoint.model} cost is not known", key=".prices", fix="Write `prices` of it"
        )
    return PriceList(tiers, f"genai-prices {genai_prices.__version__}", _newest(), asked)


def _in_force(model: Any, now: datetime.datetime, context: Mapping[str, str] | None) -> Iterator[Any]:
    """Prices of today. Of those that depend on the hour all hold: which one a call gets is seen too late."""
    hours = [now.replace(hour=hour, minute=30) for hour in range(24)] if isinstance(model.prices, list) else [now]
    for hour in hours:
        prices = model.get_prices(hour, context)
        if getattr(prices, "input_mtok", None) is not None and getattr(prices, "output_mtok", None) is not None:
            yield prices


def _dearest(found: list[Any]) -> tuple[tuple[int, Rates], ...]:
    """Rates by the length of the prompt; the highest of several prices."""
    starts = {0}
    for prices in found:
        for value in vars(prices).values():
            starts |= {tier.start for tier in getattr(value, "tiers", ())}
    steps = []
    for start in sorted(starts):
        each = [_rates(prices, start) for prices in found]
        steps.append((start, Rates(*map(max, zip(*map(astuple, each), strict=True)))))
    return tuple(steps)


def _rates(prices: Any, start: int) -> Rates:
    def rate(name: str, other: int) -> int:
        value = getattr(prices, name, None)
        if value is None:
            return other
        tiers = [tier.price for tier in getattr(value, "tiers", ()) if tier.start <= start]
        return _rate(tiers[-1] if tiers else getattr(value, "base", value))

    plain = rate("input_mtok", 0)
    each = getattr(prices, "requests_kcount", None)
    return Rates(
        input=plain,
        output=rate("output_mtok", 0),
        cached=rate("cache_read_mtok", plain),
        cache_write=rate("cache_write_mtok", plain),
        request=0 if each is None else _rate(getattr(each, "base", each)) * 1000,
    )


def _newest() -> datetime.date | None:
    """The last day that the data of genai-prices name: they are at least as new."""
    from genai_prices.data_snapshot import get_snapshot

    today = datetime.datetime.now(tz=datetime.UTC).date()
    days = [
        day
        for provider in get_snapshot().providers
        for model in provider.models
        if isinstance(model.prices, list)
        for price in model.prices
        if isinstance(day := getattr(price.constraint, "start_date", None), datetime.date) and day <= today
    ]
    return max(days, default=None)


def _rate(usd_per_million: float | Decimal) -> int:
    value = Decimal(str(usd_per_million)) * 2_000_000
    return int(value.to_integral_value(rounding=ROUND_CEILING))


def _usd_per_million(rate: int) -> str:
    return f"{(Decimal(rate) / 2_000_000).normalize():f}"


def _nano(half_pico: int) -> int:
    return -(-half_pico // 2000)
