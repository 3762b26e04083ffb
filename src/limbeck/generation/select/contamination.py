"""Overlap with evaluation texts, by runs of words (13-grams as in GPT-3's appendix C)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from limbeck.generation.select.words import words

REPORTED = (8, 13)
"""Sizes that are always counted: what 13 words miss, and what 8 words take for nothing, differs much."""
SHORTEST = 5
"""Words. A shorter evaluation text is not looked for."""

_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class EvaluationIndex:
    """All runs of words of evaluation texts, of several sizes.

    A text with fewer words than a run is looked for as a whole.

    Args:
        texts: questions and answers of evaluation sets.
        sizes: words of a run.
        common: runs that stand in more texts than this are templates, and are ignored.
    """

    def __init__(self, texts: Iterable[str], sizes: Iterable[int] = REPORTED, common: int = 10) -> None:
        self.sizes, self.common = tuple(sorted(set(sizes))), common
        self._ids: dict[str, int] = {}  # words from 1; 0: a word of no evaluation text
        in_texts: dict[tuple[int, int], Counter[int]] = {}
        for text in texts:
            ids = np.array([self._ids.setdefault(word, len(self._ids) + 1) for word in words(text)], np.uint64)
            for size in self.sizes:
                length = min(size, len(ids))
                if length >= SHORTEST:
                    in_texts.setdefault((size, length), Counter()).update(np.unique(_runs(ids, length)).tolist())
        self._runs = {
            place: np.sort(np.array([run for run, n in found.items() if n <= common], np.uint64))
            for place, found in in_texts.items()
        }

    def __bool__(self) -> bool:
        return bool(self._ids)

    def shared(self, text: str, size: int) -> dict[int, str]:
        """Runs of a text that stand in an evaluation text, by their hash."""
        found = words(text)
        ids = np.array([self._ids.get(word, 0) for word in found], np.uint64)
        known = np.concatenate(([0], np.cumsum(ids != 0)))
        shared: dict[int, str] = {}
        for (of_size, length), runs in self._runs.items():
            if of_size != size or len(ids) < length or not len(runs):
                continue
            whole = known[length:] - known[:-length] == length  # every word is known
            starts = np.flatnonzero(whole)
            if len(starts):
                hashes = _runs(ids, length)[starts]
                nearest = runs[np.minimum(np.searchsorted(runs, hashes), len(runs) - 1)]  # runs are sorted
                for i in np.flatnonzero(nearest == hashes):
                    start = int(starts[i])
                    shared.setdefault(int(hashes[i]), " ".join(found[start : start + length]))
        return shared

    def hits(self, texts: Sequence[str], size: int, groups: Sequence[str] | None = None) -> list[str | None]:
        """Of every text, a run that it shares with an evaluation text; None: it shares none.

        Args:
            texts: prompts or answers.
            size: words of a run.
            groups: what a text belongs to (its prompt). A run that stands in more than ``common`` groups is a
                template. Default: every text is its own.
        """
        found = [self.shared(text, size) for text in texts]
        groups = groups if groups is not None else [str(i) for i in range(len(texts))]
        owners: dict[int, set[str]] = {}
        for group, shared in zip(groups, found, strict=True):
            for run in shared:
                if len(owned := owners.setdefault(run, set())) <= self.common:
                    owned.add(group)
        return [
            next((text for run, text in shared.items() if len(owners[run]) <= self.common), None) for shared in found
        ]


def _runs(ids: np.ndarray, length: int) -> np.ndarray:
    """A hash of every run of ``length`` ids."""
    with np.errstate(over="ignore"):
        mixed = (ids + np.uint64(1)) * _FACTOR
        total = np.zeros(len(ids) - length + 1, np.uint64)
        for i in range(length):
            total = (total ^ (total >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) + mixed[
                i : len(ids) - length + 1 + i
            ]
        return total
