"""A budget that is never overrun: the most that a call can cost is reserved before it is sent."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from decimal import Decimal

from limbeck.errors import BudgetError
from limbeck.generation.journal.prices import PriceList, bound, cost
from limbeck.generation.journal.rows import Spent
from limbeck.generation.request import Usage
from limbeck.recipe.served import Budget

OVERHEAD_TOKENS = 512
"""What a server may put around a prompt: marks of its chat template, a system text of its own, how tools are called."""


def input_bound(body: bytes) -> int:
    """No prompt has more tokens than this: a token of text takes a byte at least. It holds for bodies of text."""
    return len(body) + OVERHEAD_TOKENS


@dataclass(frozen=True, eq=False)
class Reservation:
    """What one call can cost at most.

    Attributes:
        nano_usd, tokens: the bound.
        input_bound, output_bound: tokens of the prompt and of the answer at most.
    """

    nano_usd: int
    tokens: int
    input_bound: int
    output_bound: int
    prices: PriceList


class Ledger:
    """What is spent and reserved, against a budget.

    Args:
        budget: None: no limit; everything is counted all the same.
        spent: what the journal's attempts cost so far.
    """

    def __init__(self, budget: Budget | None, spent: Spent) -> None:
        self._most_nano_usd = None if budget is None or budget.usd is None else int(Decimal(str(budget.usd)) * 10**9)
        self._most_tokens = None if budget is None else budget.tokens
        self._nano_usd, self._tokens = spent.nano_usd, spent.tokens
        self._open: dict[Reservation, None] = {}
        self._lock = threading.Lock()
        self.disbelieved = 0
        """Answers whose usage was not credible; each counts as its bound."""

    @property
    def spent(self) -> Spent:
        """All that is spent or reserved."""
        with self._lock:
            held = sum(each.nano_usd for each in self._open), sum(each.tokens for each in self._open)
            return Spent(self._nano_usd, self._tokens, *held)

    def reserve(self, input_bound: int, output_bound: int, prices: PriceList) -> Reservation:
        """Set aside what a call can cost.

        Raises:
            BudgetError: the budget does not hold it beside what is spent and in flight.
        """
        wanted = Reservation(
            bound(input_bound, output_bound, prices), input_bound + output_bound, input_bound, output_bound, prices
        )
        with self._lock:
            if self._most_nano_usd is not None and self._nano_usd + wanted.nano_usd > self._most_nano_usd:
                raise BudgetError(
                    f"the budget of {usd(self._most_nano_usd)} is used up: {usd(self._nano_usd)} are spent or in "
                    f"flight, and the next answer may cost {usd(wanted.nano_usd)}",
                    key=".budget.usd",
                    fix="Raise it and run again; what was answered is kept",
                )
            if self._most_tokens is not None and self._tokens + wanted.tokens > self._most_tokens:
                raise BudgetError(
                    f"the budget of {self._most_tokens:,} tokens is used up: {self._tokens:,} are spent or in flight, "
                    f"and the next answer may take {wanted.tokens:,}",
                    key=".budget.tokens",
                    fix="Raise it and run again; what was answered is kept",
                )
            self._nano_usd += wanted.nano_usd
            self._tokens += wanted.tokens
            self._open[wanted] = None
        return wanted

    def resume(self, input_bound: int, output_bound: int, prices: PriceList) -> Reservation:
        """The reservation of a call that another process sent: it is part of what the journal says is spent."""
        nano_usd = bound(input_bound, output_bound, prices)
        held = Reservation(nano_usd, input_bound + output_bound, input_bound, output_bound, prices)
        with self._lock:
            self._open[held] = None
        return held

    def settle(self, reservation: Reservation, usage: Usage | None) -> int:
        """Count what a call did cost in place of its bound.

        Args:
            usage: by the answer. Where it is None, or cannot be (more than was asked for, or no prompt), the whole
                bound counts: a server that lies moves nothing beyond what was reserved.

        Returns:
            Nano-USD.
        """
        nano_usd, tokens = reservation.nano_usd, reservation.tokens
        if usage is not None:
            parts = usage.cached, usage.cache_write, usage.reasoning
            credible = (
                0 < usage.input <= reservation.input_bound
                and 0 <= usage.output <= reservation.output_bound
                and min(parts) >= 0
                and usage.cached + usage.cache_write <= usage.input
            )
            if credible:
                nano_usd, tokens = min(nano_usd, cost(usage, reservation.prices)), usage.input + usage.output
            else:
                self.disbelieved += 1
        self._end(reservation, nano_usd, tokens)
        return nano_usd

    def release(self, reservation: Reservation) -> None:
        """Give back what a call reserved that was surely not served."""
        self._end(reservation, 0, 0)

    def _end(self, reservation: Reservation, nano_usd: int, tokens: int) -> None:
        with self._lock:
            if reservation not in self._open:
                raise ValueError("the reservation is settled or released already")
            del self._open[reservation]
            self._nano_usd += nano_usd - reservation.nano_usd
            self._tokens += tokens - reservation.tokens


def usd(nano_usd: int) -> str:
    """``$0.000012``: for people, rounded up to six digits behind the point, trailing zeros beyond cents left out."""
    whole, _, part = f"{Decimal(-(-nano_usd // 1000)) / 10**6:,.6f}".partition(".")
    return f"${whole}.{part[:2]}{part[2:].rstrip('0')}"
