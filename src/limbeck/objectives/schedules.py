"""How the weight of a loss term moves during training.

A weight is a function of progress (0: the first step, 1: the last), so that it means the same for
any number of steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """From ``start`` to ``end`` while progress goes from ``begin`` to ``until``; constant outside."""

    start: float
    end: float
    begin: float = 0.0
    until: float = 1.0
    cosine: bool = False

    @staticmethod
    def constant(value: float) -> Schedule:
        return Schedule(value, value)

    def at(self, progress: float) -> float:
        share = min(max((progress - self.begin) / (self.until - self.begin), 0.0), 1.0)
        if self.cosine:
            share = 0.5 - 0.5 * math.cos(math.pi * share)
        return self.start + (self.end - self.start) * share
