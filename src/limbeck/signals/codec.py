"""Entries in four bytes or less each, and what a position has beside them in two.

A number x >= 0 (a negative logarithm, an entropy) is stored as code = round(scale * sqrt(x)) and read as
(code / scale)**2, so that the steps are finest where probabilities are large:

    |error of x| <= sqrt(x) / scale + 1 / (2 * scale)**2

| what | bits | scale | largest x | error |
|---|---|---|---|---|
| -log p of an entry | 13 | 1,024 | 63.97 | 4.3e-4 of 1 in p at most (at p = .61), .2% of p at p = 1/50 |
| -log of the tail | 16 | 8,192 | 63.99 | 5.4e-5 in the tail at most |
| entropy | 16 | 16,384 | 15.99 | 6.2e-5 nats at 1 nat, 2.2e-4 at 12.5 |

Larger x are read as the largest: a label with p = 1e-20 (x = 46.05) keeps its logarithm to .0067, one with
p = 1e-40 is read as 1.7e-28. The highest code stands for p = 0 exactly and is read as -inf. Nothing changes in a
second round: what was decoded, encoded again, is decoded to the same numbers. The highest code of an entropy is NaN: it
is not known, as of a served teacher.

An entry is a uint32, for vocabularies of up to 262,144 tokens:

| bits | of one entry | of a pair |
|---|---|---|
| 0 to 17 | id | id of the first |
| 18 to 30 | code of -log p | id of the second, less the first |
| 31 | 0 | 1 |

A pair has the code of the last word before it that is none. Entries of a position lie in the order of falling p, and
of rising ids where it is the same, so that drawn tokens, which share one weight, stand together: they take two bytes
or little more each. The wide layout above 262,144 tokens is a uint64: id in the lower half, the float32
log-probability itself in the upper one, without error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from limbeck.signals.scheme import Decoded, Draw

CODEC = 1
"""Version, part of what a store is: to be raised when the same words would be read otherwise."""

ID_BITS, LOGPROB_BITS = 18, 13
NARROW = 1 << ID_BITS
"""Tokens of the largest vocabulary with words of four bytes."""

PAIR = np.uint32(1 << 31)
FARTHEST = 1 << LOGPROB_BITS
"""Ids of a pair are less than this apart."""

TOGETHER = 2048
"""Positions that are decoded at a time."""

LOGPROB_SCALE, TAIL_SCALE, ENTROPY_SCALE = 1024, 8192, 16384


@dataclass(frozen=True)
class Encoded:
    """Entries of n positions as they lie on disk.

    Attributes:
        words: uint32, of all positions together; uint64 where the vocabulary has more than 262,144 tokens.
        counts: uint16 [n], words of each position; 0: nothing is known of it.
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
        words, counts = _narrow(counts, ids, logprobs)
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
    words, counts = encoded.words, encoded.counts.astype(np.int64)
    if vocab_size <= NARROW:
        ids, logprobs, counts = _from_narrow(words, counts)
    else:
        ids = (words & np.uint64(0xFFFFFFFF)).astype(np.int64)
        logprobs = (words >> np.uint64(32)).astype(np.uint32).view(np.float32)
    return Decoded(
        counts=counts,
        ids=ids,
        logprobs=logprobs,
        entropy=_ENTROPIES[encoded.entropy],
        tail=None if encoded.tail is None else _TAILS[encoded.tail],
    )


def entries_in(words: np.ndarray) -> int:
    """How many entries words hold: a pair has two."""
    return len(words) + (int(np.count_nonzero(words & PAIR)) if words.dtype == np.uint32 else 0)


def _narrow(counts: np.ndarray, ids: np.ndarray, logprobs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Words of entries, and how many each position has."""
    codes = _codes(-logprobs.astype(np.float64), LOGPROB_SCALE, LOGPROB_BITS).astype(np.int64)
    # Position, code, id: sorted, entries of one position and one code stand together.
    keys = np.repeat(np.arange(len(counts), dtype=np.int64) << 31, counts) | (codes << ID_BITS) | ids
    keys.sort()
    groups = keys >> ID_BITS
    first = np.ones(len(keys), bool)
    first[1:] = groups[1:] != groups[:-1]
    # A chain of entries each near enough to the one before. The first of a group stands alone, to say their code.
    chain = first.copy()
    chain[1:] |= first[:-1] | (np.diff(keys) >= FARTHEST)
    places = np.arange(len(keys))
    second = ((places - np.maximum.accumulate(np.where(chain, places, 0))) & 1).astype(bool)
    words = (keys & 0x7FFFFFFF).astype(np.uint32)
    begin = np.flatnonzero(second) - 1
    words[begin] = PAIR | ((keys[begin + 1] - keys[begin]) << ID_BITS | keys[begin] & (NARROW - 1)).astype(np.uint32)
    return words[~second], np.bincount((keys >> 31)[~second], minlength=len(counts))


def _from_narrow(words: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, log-probabilities, and how many each position has."""
    pairs_before = np.zeros(len(words) + 1, np.int32)
    np.cumsum(words >= PAIR, out=pairs_before[1:])
    ends = np.cumsum(counts)
    total = len(words) + int(pairs_before[-1])
    ids, logprobs = np.empty(total, np.int64), np.empty(total, np.float32)
    begin = at = 0
    # A batch is read in a few milliseconds, if what is made on the way stays in the cache.
    for end in [*ends[TOGETHER - 1 :: TOGETHER].tolist(), len(words)]:
        at += _unpack(words[begin:end], ids[at:], logprobs[at:])
        begin = end
    return ids, logprobs, counts + pairs_before[ends] - pairs_before[ends - counts]


def _unpack(words: np.ndarray, ids: np.ndarray, logprobs: np.ndarray) -> int:
    """Write the entries of whole positions; how many they are."""
    pair = words >= PAIR
    fields = (words >> np.uint32(ID_BITS)) & np.uint32(FARTHEST - 1)
    # Two places a word, of which the second is only taken of a pair.
    both, taken = np.empty((len(words), 2), np.uint32), np.ones((len(words), 2), bool)
    both[:, 0] = words & np.uint32(NARROW - 1)
    both[:, 1] = both[:, 0] + fields
    taken[:, 1] = pair
    places = np.flatnonzero(taken)
    # The word that says the code: the last that is no pair.
    says = np.maximum.accumulate(np.arange(len(words)) * ~pair)
    ids[: len(places)] = both.ravel().take(places)
    logprobs[: len(places)] = _LOGPROBS.take(fields.take(says)).take(places >> 1)
    return len(places)


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
