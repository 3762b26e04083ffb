"""Where the signal of a position is: sorted arrays over the spans of a store.

Shape letters: S spans; N positions that are looked up.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from limbeck.signals.store.shards import COLUMNS, Shard

_BITS = np.int64(32)
"""Offsets have 31 bits, so that a group and an offset are one sortable number."""


class SpanIndex:
    """The spans of a store, each once.

    Of equal spans with equal digests the first counts. Where digests differ, the tokens of the document have changed:
    the newest counts.

    Args:
        columns: ``key``, ``start``, ``length``, ``context``, ``digest`` [S], oldest first.

    Attributes:
        arrival: int64, which of ``columns`` count, in the order of key, start, context and length.
        key, start, length, context, digest: of those.
    """

    def __init__(self, columns: dict[str, np.ndarray]) -> None:
        names = ("length", "context", "start", "key")
        order = np.lexsort([columns[name] for name in names])  # stable: equal spans stay in the order of arrival
        different = np.zeros(max(len(order) - 1, 0), bool)
        for name in names:
            values = columns[name][order]
            different |= values[1:] != values[:-1]
        firsts = np.flatnonzero(np.concatenate([[True], different])) if len(order) else np.zeros(0, np.int64)
        self.arrival = order[firsts]
        self._newest_tokens(columns["digest"], order, firsts)
        self.key, self.start, self.length, self.context, self.digest = (
            columns[name][self.arrival].astype(dtype if dtype == np.uint64 else np.int64)
            for name, dtype in COLUMNS.items()
        )
        self.keys = np.unique(self.key)
        self._document = np.searchsorted(self.keys, self.key)

    @classmethod
    def of(cls, shards: Sequence[Shard]) -> SpanIndex:
        """Of all rows of shards, oldest first."""
        return cls(
            {
                name: np.concatenate([shard.index[name] for shard in shards] or [np.zeros(0, dtype)])
                for name, dtype in COLUMNS.items()
            }
        )

    def _newest_tokens(self, digest: np.ndarray, order: np.ndarray, firsts: np.ndarray) -> None:
        """Where equal spans have several digests, take the first span with the newest digest."""
        ends = np.append(firsts[1:], len(order))
        for group in np.flatnonzero(ends - firsts > 1):
            members = order[firsts[group] : ends[group]]
            self.arrival[group] = members[np.argmax(digest[members] == digest[members[-1]])]

    def __len__(self) -> int:
        return len(self.arrival)

    def has(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        """bool [N]: which spans are there, with equal digests."""
        document, found = _lookup(self.keys, columns["key"])
        place = _joined(document, columns["start"])
        places = _joined(self._document, self.start)
        low, high = np.searchsorted(places, place, "left"), np.searchsorted(places, place, "right")
        there = np.zeros(len(place), bool)
        for step in range(int((high - low).max(initial=0))):  # spans that begin at the same place: few
            candidate = np.minimum(low + step, len(self) - 1)
            equal = (low + step < high) & found
            for name in ("length", "context", "digest"):
                equal &= getattr(self, name)[candidate] == columns[name]
            there |= equal
        return there

    def locate(self, keys_N: np.ndarray, offsets_N: np.ndarray, contexts_N: np.ndarray | None) -> np.ndarray:
        """int64 [N]: the span (its number in this index) that holds each position; -1: there is none.

        Args:
            keys_N: uint64.
            offsets_N: int64.
            contexts_N: int64, where the teacher's context must have begun; None: anywhere.
        """
        group, found = _lookup(self.keys, keys_N)
        if contexts_N is None:
            return self._any_context.locate(group, found, offsets_N)
        pair, there = _lookup(self._pairs, _joined(group, contexts_N))
        return self._same_context.locate(pair, found & there, offsets_N)

    @cached_property
    def _pairs(self) -> np.ndarray:
        """Documents with a context, as joined numbers, ascending."""
        return np.unique(_joined(self._document, self.context))

    @cached_property
    def _any_context(self) -> _Coverage:
        return _Coverage(self._document, self.start, self.length)

    @cached_property
    def _same_context(self) -> _Coverage:
        return _Coverage(np.searchsorted(self._pairs, _joined(self._document, self.context)), self.start, self.length)


class _Coverage:
    """Which span of a group holds an offset, where spans may overlap."""

    def __init__(self, group: np.ndarray, start: np.ndarray, length: np.ndarray) -> None:
        self._order = np.lexsort((start, group))
        self._group = group[self._order]
        self._starts = _joined(self._group, start[self._order])
        ends = _joined(self._group, (start + length)[self._order])
        # Of the spans of a group that begin at or before a place, the one that reaches furthest. The group leads the
        # joined numbers, so the running maximum begins anew with each.
        furthest = np.maximum.accumulate(ends)
        risen = np.concatenate([[True], furthest[1:] > furthest[:-1]]) if len(ends) else np.zeros(0, bool)
        self._owner = np.maximum.accumulate(np.where(risen, np.arange(len(ends)), 0))
        self._ends = ends

    def locate(self, group: np.ndarray, found: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        if not len(self._starts):
            return np.full(len(group), -1)
        place = _joined(group, offsets)
        last = np.searchsorted(self._starts, place, "right") - 1
        owner = self._owner[np.maximum(last, 0)]
        held = found & (last >= 0) & (self._group[owner] == group) & (place < self._ends[owner])
        return np.where(held, self._order[owner], -1)


def _joined(group: np.ndarray, offset: np.ndarray) -> np.ndarray:
    joined: np.ndarray = (group.astype(np.int64) << _BITS) | offset.astype(np.int64)
    return joined


def _lookup(sorted_values: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each value is in ascending ones, and whether it is there."""
    if not len(sorted_values):
        return np.zeros(len(values), np.int64), np.zeros(len(values), bool)
    place = np.minimum(np.searchsorted(sorted_values, values), len(sorted_values) - 1)
    return place, sorted_values[place] == values
