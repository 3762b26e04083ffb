"""What signals cost, on disk: no journal holds the answers, and the budget counts them all the same."""

from __future__ import annotations

import json
from pathlib import Path

from limbeck.files import write_whole
from limbeck.generation.journal.budget import Ledger, Reservation
from limbeck.generation.journal.prices import PriceList
from limbeck.generation.journal.rows import Spent
from limbeck.recipe.served import Budget

AHEAD = 64
"""Requests that are written down as spent before they are sent: a killed process counts so many too much at most."""


def spent_on_signals(path: Path) -> Spent:
    """What the file at ``path`` says; nothing where there is none."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return Spent(int(plain["nano_usd"]), int(plain["tokens"]))
    except FileNotFoundError:
        return Spent()


class KeptLedger(Ledger):
    """A ledger that a file outlives: the file never says less than what was spent.

    A context manager; at its end the file says exactly what was.

    Args:
        budget: None: no limit.
        path: of the file.
        besides: what the same budget was spent on before.
    """

    def __init__(self, budget: Budget | None, path: Path, besides: Spent) -> None:
        self.path, self.besides = path, besides
        before = spent_on_signals(path)
        super().__init__(budget, Spent(besides.nano_usd + before.nano_usd, besides.tokens + before.tokens))
        self._written = before

    def reserve(self, input_bound: int, output_bound: int, prices: PriceList) -> Reservation:
        wanted = super().reserve(input_bound, output_bound, prices)
        own = self.own
        if own.nano_usd > self._written.nano_usd or own.tokens > self._written.tokens:
            self._write(Spent(own.nano_usd + AHEAD * wanted.nano_usd, own.tokens + AHEAD * wanted.tokens))
        return wanted

    def __enter__(self) -> KeptLedger:
        return self

    def __exit__(self, *_: object) -> None:
        self._write(self.own)

    @property
    def own(self) -> Spent:
        """What is spent on signals, or reserved."""
        spent = self.spent
        return Spent(spent.nano_usd - self.besides.nano_usd, spent.tokens - self.besides.tokens)

    def _write(self, spent: Spent) -> None:
        if spent != self._written:
            write_whole(self.path, json.dumps({"nano_usd": spent.nano_usd, "tokens": spent.tokens}))
            self._written = spent
