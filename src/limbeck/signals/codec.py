"""Entries in four bytes each, and what a position has beside them in two.

A number x >= 0 (a negative logarithm, an entropy) is stored as code = round(scale * sqrt(x)) and read as
(code / scale)**2, so that the steps are finest where probabilities are large:

    |error of x| <= sqrt(x) / scale + 1 / (2 * scale)**2

| what | bits | scale | largest x | error |
|---|---|---|---|---|
| -log p of an entry | 14 | 2,048 | 63.98 | 2.2e-4 of 1 in p at most (at p = .61), .1% of p at p = 1/50 |
| -log of the tail | 16 | 8,192 | 63.99 | 5.4e-5 in the tail at most |
| entropy | 16 | 16,384 | 15.99 | 6.2e-5 nats at 1 nat, 2.2e-4 at 12.5 |

Larger x are read as the largest: a label with p = 1e-20 (x = 46.05) keeps its logarithm to .0034, one with
p = 1e-40 is read as 1.6e-28. The highest code stands for p = 0 exactly and is read as -inf. Nothing changes in a
second round: what was decoded, encoded again, is decoded to the same numbers. The highest code of an entropy is NaN: it
is not known, as of a served teacher.

An entry is a uint32, id + code * 2**18, for vocabularies of up to 262,144 tokens. The wide layout above that is a
uint64: id in the lower half, the float32 log-probability itself in the upper one, without error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from limbeck.signals.scheme import Decoded, Draw

CODEC = 1
"""Version, part of what a store is: to be raised when the same words would be read otherwise."""

ID_BITS = 18
LOGPROB_BITS = 32 - ID_BITS
NARROW = 1 << ID_BITS
"""Tokens of the largest vocabulary with entries of four bytes."""

LOGPROB_SCALE, TAIL_SCALE, ENTROPY_SCALE = 2048, 8192, 16384


@dataclass(frozen=True)
class Encoded:
    """Entries of n positions as they lie on disk.

    Attributes:
        words: uint32 [R]; uint64 where the vocabulary has more than 262,144 tokens.
        counts: uint16 [n], entries of each position; 0: nothing is known of it.
        entropy: uint16 [n].
        tail: uint16 [n]; None where the scheme has none.
    """

    words: np.ndarray
    counts: np.ndarray
    entropy: np.ndarray
    tail: np.ndarray | None

    def __len__(self) -> int:
        return len(self.counts)


def encode(draw: Draw | Decoded, vocab_size: int) -> Encoded:
    """Entries in words.

    Raises:
        ValueError: an id is not in the vocabulary, a log-probability is NaN or above 0 (by more than rounding: 1e-4),
            or a position has more than 65,535 entries.
    """
    if isinstance(draw, Draw):
        tail_n = None if draw.tail_n is None else _numpy(draw.tail_n)
        numbers = (_numpy(part) for part in (draw.counts_n, draw.ids, draw.logprobs, draw.entropy_n))
        counts, ids, logprobs, entropy = numbers
    else:
        counts, ids, logprobs, entropy, tail_n = draw.counts, draw.ids, draw.logprobs, draw.entropy, draw.tail
    if len(ids) and not (ids.min() >= 0 and ids.max() < vocab_size):
        raise ValueError(f"token ids must be in [0, {vocab_size}), they run from {ids.min()} to {ids.max()}")
    # The comparison is false for NaN.
    if not bool((logprobs <= 1e-4).all()):
        raise ValueError("log-probabilities must be numbers of 0 or less")
    if len(counts) and counts.max() > 0xFFFF:
        raise ValueError(f"a position has {counts.max():,} entries, more than 65,535")
    if vocab_size <= NARROW:
        codes = _codes(-logprobs.astype(np.float64), LOGPROB_SCALE, LOGPROB_BITS)
        words = ids.astype(np.uint32) | (codes << np.uint32(ID_BITS))
    else:
        bits = np.minimum(logprobs, 0.0, dtype=np.float32).view(np.uint32).astype(np.uint64)
        words = ids.astype(np.uint64) | (bits << np.uint64(32))
    return Encoded(
        words=words,
        counts=counts.astype(np.uint16),
        entropy=_codes(entropy.astype(np.float64), ENTROPY_SCALE, 16).astype(np.uint16),
        tail=None if tail_n is None else _codes(_minus_log(tail_n), TAIL_SCALE, 16).astype(np.uint16),
    )


def decode(encoded: Encoded, vocab_size: int) -> Decoded:
    """Entries out of their words; ``vocab_size`` says in which layout they are."""
    words = encoded.words
    if vocab_size <= NARROW:
        ids = (words & np.uint32(NARROW - 1)).astype(np.int64)
        logprobs = _LOGPROBS[words >> np.uint32(ID_BITS)]
    else:
        ids = (words & np.uint64(0xFFFFFFFF)).astype(np.int64)
        logprobs = (words >> np.uint64(32)).astype(np.uint32).view(np.float32)
    return Decoded(
        counts=encoded.counts.astype(np.int64),
        ids=ids,
        logprobs=logprobs,
        entropy=_ENTROPIES[encoded.entropy],
        tail=None if encoded.tail is None else _TAILS[encoded.tail],
    )


def bound(x: np.ndarray, scale: int) -> np.ndarray:
    """How far a number x that is not above the largest can be from what is read of it."""
    return np.sqrt(x) / scale + 1 / (2 * scale) ** 2


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _minus_log(p: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return -np.log(p.astype(np.float64))


def _codes(x: np.ndarray, scale: int, bits: int) -> np.ndarray:
    """uint32: the highest for infinity, the one before it for whatever else is too large."""
    largest = (1 << bits) - 2
    finite = np.isfinite(x)
    codes = np.rint(np.sqrt(np.where(finite, x, 0.0).clip(0.0)) * scale).clip(max=largest)
    return np.where(finite, codes, largest + 1).astype(np.uint32)


def _logs(scale: int, bits: int) -> np.ndarray:
    """What each code of a negative logarithm is read as, float64: the logarithm."""
    logs = -np.square(np.arange(1 << bits) / scale)
    logs[-1] = -np.inf
    return logs


def _entropies() -> np.ndarray:
    nats = np.square(np.arange(1 << 16) / ENTROPY_SCALE)
    nats[-1] = np.nan
    return nats


_ENTROPIES = _entropies().astype(np.float32)
_LOGPROBS = _logs(LOGPROB_SCALE, LOGPROB_BITS).astype(np.float32)
_TAILS = np.exp(_logs(TAIL_SCALE, 16)).astype(np.float32)
