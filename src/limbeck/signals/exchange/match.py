"""Which document of a corpus a text in somebody's file is: by its tokens.

Shape letters: T tokens of a text.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from limbeck.data.corpus import Corpus

FIRST = 8
"""Tokens by which candidates are found."""


class Documents:
    """The documents of a corpus, found by their first tokens."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._by_beginning: dict[bytes, list[int]] = defaultdict(list)
        for d in range(len(corpus)):
            ids, _ = corpus.document(d)
            if len(ids) > 1:
                self._by_beginning[_beginning(ids, FIRST)].append(d)

    def find(self, ids_T: np.ndarray) -> list[tuple[int, int]]:
        """The documents that a text is, or is the beginning of, and how many tokens of each it holds.

        A text may have one token more than the document: padding that a sampler appended.
        """
        found = []
        for size in range(min(FIRST, len(ids_T)), 0, -1):
            for d in self._by_beginning.get(_beginning(ids_T, size), ()):
                ids, _ = self._corpus.document(d)
                common = _common(ids, ids_T)
                if common > 1 and (common == len(ids_T) or (common == len(ids) and len(ids_T) <= len(ids) + 1)):
                    found.append((d, common))
        return found


def _beginning(ids: np.ndarray, size: int) -> bytes:
    return np.ascontiguousarray(ids[:size], np.uint32).tobytes()


def _common(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n
