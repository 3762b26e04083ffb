"""What a server thinks at the positions of a text, checked and as arrays.

Shape letters: P positions; R entries of all positions together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from limbeck.generation.api.protocols import MalformedError
from limbeck.generation.api.scoring.forms import Entries

LOWEST = -1000.0
"""Servers write -9999 for the logarithm of 0."""
ROUNDING = 2e-3
"""A sum of probabilities may be above 1 by so much: half precision on its way to a logarithm."""


@dataclass(frozen=True)
class Scores:
    """Entries at P positions: position ``p`` predicts token ``p + 1`` of the text.

    Attributes:
        counts_P: int64, entries of each position: the most probable tokens first, and at last the text's own token
            where it is not one of them.
        ids: int64 [R].
        logprobs: float32 [R], at most 0.
        own_P: float32, log-probability of the text's own token; -inf where it cannot be.
        mass_P: float64, probability of a position's entries together, at most 1.
    """

    counts_P: np.ndarray
    ids: np.ndarray
    logprobs: np.ndarray
    own_P: np.ndarray
    mass_P: np.ndarray

    def __len__(self) -> int:
        return len(self.counts_P)


def read_scores(positions: Sequence[Entries | None], prompt: Sequence[int], k: int, vocab_size: int) -> Scores:
    """The answer to a prompt as arrays.

    Tokens beyond the vocabulary are left out: padding of the server's head, which nothing predicts.

    Args:
        positions: by a :class:`~limbeck.generation.api.scoring.forms.ScoringForm`.
        prompt: T token ids that were sent.
        k: how many entries were asked for. A vocabulary that is smaller gives no more than it has.
        vocab_size: of the tokenizer.

    Returns:
        P = T - 1 positions.

    Raises:
        MalformedError: another number of tokens; a token of the prompt is not the one that was sent; fewer entries than
            were asked for; what is no distribution.
    """
    if len(positions) != len(prompt):
        raise MalformedError(f"log-probabilities of {len(positions):,} tokens, where {len(prompt):,} were sent")
    counts: list[int] = []
    ids: list[int] = []
    values: list[float] = []
    own: list[float] = []
    least = min(k, vocab_size)
    for at, (entries, token) in enumerate(zip(positions[1:], prompt[1:], strict=True), start=1):
        if not entries:
            raise MalformedError(f"nothing on token {at:,}")
        said = entries.get(token)
        if said is None:
            raise MalformedError(f"token {at:,} of the text, {token}, is not among the entries on it")
        known = [(each, value) for each, value in entries.items() if 0 <= each < vocab_size]
        if len(known) < least:
            raise MalformedError(f"{len(known)} entries on token {at:,}, where {least} were asked for")
        # Python's sort keeps the order of equal values: the same answer gives the same entries.
        top = sorted(known, key=_by_value)[:least]
        if all(each != token for each, _ in top):
            top.append((token, said))
        top = [(each, value) for each, value in top if not value <= LOWEST]  # NaN stays, and is refused below
        counts.append(len(top))
        ids += [each for each, _ in top]
        values += [value for _, value in top]
        own.append(said if said > LOWEST else -np.inf)
    return _checked(counts, np.asarray(ids, np.int64), np.asarray(values, np.float64), np.asarray(own, np.float32))


def _by_value(entry: tuple[int, float]) -> float:
    return -entry[1]


def _checked(counts: list[int], ids: np.ndarray, values: np.ndarray, own_P: np.ndarray) -> Scores:
    counts_P = np.asarray(counts, np.int64)
    place_R = np.repeat(np.arange(len(counts_P)), counts_P)
    if np.isnan(values).any():
        raise MalformedError(f"a log-probability on token {int(place_R[np.isnan(values)][0]) + 1:,} is NaN")
    with np.errstate(over="ignore"):
        mass_P = np.bincount(place_R, np.exp(values), minlength=len(counts_P))
    if (wrong := np.flatnonzero(mass_P > 1 + ROUNDING)).size:
        raise MalformedError(f"probabilities on token {int(wrong[0]) + 1:,} sum to {mass_P[wrong[0]]:.3g}")
    values = np.minimum(values, 0.0)
    return Scores(counts_P, ids, values.astype(np.float32), np.minimum(own_P, 0), np.minimum(mass_P, 1.0))
