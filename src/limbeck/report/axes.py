"""Scales, ticks and the thinning of long curves: the arithmetic under the charts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from limbeck.report.numbers import compact, number

# Beyond this a number is no measurement, and the arithmetic of scales would overflow.
_HUGE = 1e100

Point = tuple[float, float]


def drawable(value: float, *, log: bool = False) -> bool:
    """Whether an axis can place ``value``: finite, and positive on a logarithmic axis."""
    return abs(value) < _HUGE and (not log or value > 1e-100)  # NaN compares false


@dataclass(frozen=True)
class Scale:
    """Maps ``low..high`` (data) to ``start..end`` (pixels), linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, *, log: bool = False, pad: float = 0.04) -> Scale:
        """A scale that holds all drawable ``values`` with some air; any domain where there are none."""
        kept = [value for value in values if drawable(value, log=log)]
        if not kept:
            return cls(1, 10, start, end, log) if log else cls(0, 1, start, end, log)
        low, high = min(kept), max(kept)
        if log:
            if high / low < 1 + 1e-9:
                low, high = low / 2, high * 2
            air = (high / low) ** pad
            return cls(low / air, high * air, start, end, log)
        if high - low <= 1e-9 * max(abs(low), abs(high)):
            half = 0.1 * abs(low) or 1.0
            low, high = low - half, high + half
        span = high - low
        return cls(low - pad * span, high + pad * span, start, end, log)

    def __call__(self, value: float) -> float:
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Round values inside the domain, about ``wanted`` of them."""
        return _log_ticks(self.low, self.high, wanted) if self.log else _ticks(self.low, self.high, wanted)


def _ticks(low: float, high: float, wanted: int) -> list[float]:
    raw = (high - low) / max(1, wanted)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(magnitude * nice for nice in (1, 2, 2.5, 5, 10) if magnitude * nice >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, min(last, first + 50) + 1)]


def _log_ticks(low: float, high: float, wanted: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, math.ceil((last - first) / max(1, wanted)))
    for steps in ((1,), (1, 3), (1, 2, 5)):
        inside = [
            step * 10.0**power
            for power in range(first, last + 1, every)
            for step in steps
            if low <= step * 10.0**power <= high
        ]
        if len(inside) >= min(3, wanted):
            return inside
    return _ticks(low, high, wanted)


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Labels of equal decimals, shortened ("20k") where the numbers are large."""
    largest = max((abs(tick) for tick in ticks), default=0)
    if largest >= 10_000 or (largest and largest < 1e-4):
        return [compact(tick, 4) if largest >= 1 else f"{tick:.0e}" for tick in ticks]
    if len(ticks) < 2:
        return [number(tick, 2 if largest < 100 else 0) for tick in ticks]
    decimals = next((d for d in range(7) if all(abs(round(t, d) - t) <= 1e-9 * max(1, largest) for t in ticks)), 6)
    return [number(tick, decimals) for tick in ticks]


def runs(points: Sequence[Point | None]) -> list[list[Point]]:
    """The unbroken stretches of a curve; None is a gap."""
    stretches: list[list[Point]] = [[]]
    for point in points:
        if point is None:
            stretches.append([])
        else:
            stretches[-1].append(point)
    return [stretch for stretch in stretches if stretch]


def extremes(points: Sequence[Point], limit: int) -> list[Point]:
    """At most ``limit`` points that keep both ends and every spike (lowest and highest of a bucket)."""
    if len(points) <= limit:
        return list(points)
    buckets = max(1, (limit - 2) // 2)
    inner = points[1:-1]
    kept = [points[0]]
    for index in range(buckets):
        bucket = inner[index * len(inner) // buckets : (index + 1) * len(inner) // buckets]
        if not bucket:
            continue
        low = min(range(len(bucket)), key=lambda i: bucket[i][1])
        high = max(range(len(bucket)), key=lambda i: bucket[i][1])
        kept += [bucket[i] for i in sorted({low, high})]
    return [*kept, points[-1]]


def means(points: Sequence[Point], buckets: int) -> list[Point]:
    """The mean of each of ``buckets`` equal stretches of the horizontal axis, ends kept in place."""
    if len(points) <= buckets:
        return list(points)
    left, right = min(p[0] for p in points), max(p[0] for p in points)
    if right <= left:
        return [points[0], points[-1]]
    sums: dict[int, tuple[float, float, int]] = {}
    for x, y in points:
        index = min(buckets - 1, int((x - left) / (right - left) * buckets))
        sum_x, sum_y, count = sums.get(index, (0.0, 0.0, 0))
        sums[index] = (sum_x + x, sum_y + y, count + 1)
    averaged = [(sum_x / count, sum_y / count) for _, (sum_x, sum_y, count) in sorted(sums.items())]
    averaged[0] = (left, averaged[0][1])
    averaged[-1] = (right, averaged[-1][1])
    return averaged


def roughness(points: Sequence[Point]) -> float:
    """How far a line travels up and down."""
    return sum(abs(b[1] - a[1]) for a, b in pairwise(points))


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions moved as little as needed to lie ``gap`` apart inside ``low..high``, in the order given.

    Where there is not enough room the gap shrinks.
    """
    if not positions:
        return []
    gap = min(gap, (high - low) / max(1, len(positions) - 1))
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    # Groups that touch are merged and centred on the mean of where their members want to be.
    groups: list[tuple[float, list[int]]] = []
    for index in order:
        centre, members = min(max(positions[index], low), high), [index]
        while groups and centre - groups[-1][0] < gap * (len(members) + len(groups[-1][1])) / 2 - 1e-9:
            before, earlier = groups.pop()
            total = len(earlier) + len(members)
            centre = (before * len(earlier) + centre * len(members)) / total
            members = earlier + members
            half = gap * (total - 1) / 2
            centre = min(max(centre, low + half), high - half)
        groups.append((centre, members))
    placed = [0.0] * len(positions)
    for centre, members in groups:
        for place, index in enumerate(members):
            placed[index] = centre + gap * (place - (len(members) - 1) / 2)
    return placed
