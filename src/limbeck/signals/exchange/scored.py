"""Top log-probabilities of texts in other people's files, in one form.

Shape letters: T tokens of a text; n positions; R entries of all of them together; k entries a position.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from limbeck.errors import InputError
from limbeck.signals.scheme import Decoded


@dataclass(frozen=True)
class Scored:
    """What a file says of one text.

    Attributes:
        where: file and row, for errors.
        ids: int64 [T].
        counts: int64 [n], entries of each position; position p predicts token p + 1, if the file is as it is meant.
        tokens: int64 [R].
        logprobs: float32 [R], natural logarithms.
    """

    where: str
    ids: np.ndarray
    counts: np.ndarray
    tokens: np.ndarray
    logprobs: np.ndarray

    def shifted(self, by: int) -> Scored:
        """As if position p of the file said what position p + by says."""
        if by >= 0:  # nothing is known of the first positions
            counts = np.concatenate([np.zeros(by, np.int64), self.counts])
            return Scored(self.where, self.ids, counts, self.tokens, self.logprobs)
        lost = int(self.counts[:-by].sum())  # the first of the file belong to no position
        return Scored(self.where, self.ids, self.counts[-by:], self.tokens[lost:], self.logprobs[lost:])

    def at(self, p: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and log-probabilities of position p; empty where the file says nothing of it."""
        if not 0 <= p < len(self.counts):
            return self.tokens[:0], self.logprobs[:0]
        start = int(self.counts[:p].sum())
        part = slice(start, start + int(self.counts[p]))
        return self.tokens[part], self.logprobs[part]

    def part(self, start: int, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Counts [n], tokens and log-probabilities of the positions from ``start`` on.

        Args:
            keep: bool [n]; of other positions nothing is taken.
        """
        known = self.counts[start : start + len(keep)]
        counts = np.zeros(len(keep), np.int64)
        counts[: len(known)] = known
        kept = keep[np.repeat(np.arange(len(known)), known)]
        first = int(self.counts[:start].sum())
        entries = slice(first, first + len(kept))
        return np.where(keep, counts, 0), self.tokens[entries][kept], self.logprobs[entries][kept]

    def check(self, vocab_size: int) -> None:
        """Raise InputError if these are no log-probabilities of different tokens of the vocabulary."""
        if not len(self.tokens):
            return
        if not 0 <= int(self.tokens.min()) <= int(self.tokens.max()) < vocab_size:
            raise InputError(
                f"{self.where} has token {int(self.tokens.max())}, and the vocabulary {vocab_size} tokens",
                fix="Import what a teacher with the same tokenizer said",
            )
        position = np.repeat(np.arange(len(self.counts)), self.counts)
        if len(np.unique(position * vocab_size + self.tokens)) < len(self.tokens):
            raise InputError(f"{self.where} has a token twice at a position")
        mass = np.zeros(len(self.counts))
        np.add.at(mass, position, np.exp(np.minimum(self.logprobs, 1.0), dtype=np.float64))
        if not (self.logprobs <= 1e-3).all() or (mass > 1.02).any():
            raise InputError(
                f"{self.where} holds numbers that are no log-probabilities: raw or centred logits have no tail",
                fix="Export `log_softmax` of the whole vocabulary, cut to the likeliest tokens",
            )


def top_k(counts: np.ndarray, tokens: np.ndarray, logprobs: np.ndarray, k: int) -> Decoded:
    """The k likeliest entries of each position, likeliest first, and the tail that they leave.

    The entropy is that of the entries with the tail as one outcome: a lower bound, since a file does not say more.

    Args:
        counts: int64 [n]; 0 stays 0.
        tokens, logprobs: [R].
    """
    position = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((-logprobs, position))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = order[rank < k]
    kept = np.minimum(counts, k)
    logprobs = np.minimum(logprobs[order], 0.0).astype(np.float32)
    p = np.exp(logprobs, dtype=np.float64)
    mass, entropy = np.zeros(len(counts)), np.zeros(len(counts))
    np.add.at(mass, position[order], p)
    np.add.at(entropy, position[order], -p * logprobs)
    tail = np.clip(1.0 - mass, 0.0, 1.0)  # of nothing it is all
    entropy -= tail * np.log(np.where(tail > 0, tail, 1.0))
    return Decoded(kept, tokens[order], logprobs, entropy.astype(np.float32), tail.astype(np.float32))
