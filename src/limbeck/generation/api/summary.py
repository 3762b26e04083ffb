"""What became of the requests that a sampler was given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from limbeck.generation.journal.budget import usd


@dataclass
class Summary:
    """Rows, by what became of them.

    Attributes:
        kept: answered before; nothing was bought.
        answered: by outcome.
        failed: rows that are not sent again unless they are retried, by kind.
        left: rows that stay to do.
        by_teacher: answers of each teacher that wrote.
        gone: teachers that are not asked any more, and why.
        moved: rows that went on to the next teacher, by reason.
        faults: requests that brought no answer, by kind.
        nano_usd: what the answers cost; what may have been served without an answer counts as its bound.
        tokens: of prompts and answers, as the endpoints count them.
        possibly_paid_twice: requests that may have been served, and were sent again.
    """

    kept: int = 0
    answered: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    left: int = 0
    by_teacher: Counter[str] = field(default_factory=Counter)
    gone: dict[str, str] = field(default_factory=dict)
    moved: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    nano_usd: int = 0
    tokens: int = 0
    possibly_paid_twice: int = 0

    @property
    def done(self) -> int:
        """Rows that have an answer, or never will."""
        return self.kept + sum(self.answered.values()) + sum(self.failed.values())

    def line(self) -> str:
        """For people."""
        parts = [f"{sum(self.answered.values()):,} answers"]
        if self.kept:
            parts.append(f"{self.kept:,} kept")
        parts += [f"{n:,} {kind}" for kind, n in _others(self.answered).items()]
        if self.failed:
            parts.append(f"{sum(self.failed.values()):,} failed ({_listed(self.failed)})")
        if self.left:
            parts.append(f"{self.left:,} left to do")
        if self.possibly_paid_twice:
            parts.append(f"{self.possibly_paid_twice:,} possibly paid twice")
        parts.append(f"{self.tokens:,} tokens, {usd(self.nano_usd)}")
        parts += [f"{name}: {reason}" for name, reason in self.gone.items()]
        return "; ".join(parts)


def _others(answered: Mapping[str, int]) -> dict[str, int]:
    return {kind: n for kind, n in sorted(answered.items()) if kind != "complete" and n}


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {kind}" for kind, n in sorted(counts.items()))
