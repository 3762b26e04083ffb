"""The codec: error bounds as stated, idempotent, both layouts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from limbeck.objectives import Sparse
from limbeck.signals import codec
from limbeck.signals.codec import (
    ENTROPY_SCALE,
    LOGPROB_SCALE,
    NARROW,
    TAIL_SCALE,
    Encoded,
    bound,
    decode,
    encode,
)
from limbeck.signals.sampling import Decoded, Scheme, draw, to_sparse

FLOAT32 = 1e-6
"""What float32 adds to the bound, relative."""


def decoded(
    logprobs: list[float], ids: list[int] | None = None, entropy: float = 1.0, tail: float | None = None
) -> Decoded:
    """One position."""
    return Decoded(
        counts=np.array([len(logprobs)]),
        ids=np.array(ids if ids is not None else range(len(logprobs)), np.int64),
        logprobs=np.array(logprobs, np.float32),
        entropy=np.array([entropy], np.float32),
        tail=None if tail is None else np.array([tail], np.float32),
    )


def in_order(one: Decoded, vocab_size: int) -> Decoded:
    """One position's entries as they are stored: of falling p, and of rising ids where it rounds to the same."""
    if vocab_size > NARROW:
        return one
    codes = np.rint(np.sqrt(np.minimum(-one.logprobs.astype(np.float64), 1e4).clip(0)) * LOGPROB_SCALE).clip(max=8190)
    order = np.lexsort((one.ids, np.where(np.isinf(one.logprobs), 8191, codes)))
    return replace(one, ids=one.ids[order], logprobs=one.logprobs[order])


def values_equal(one: Decoded, other: Decoded) -> bool:
    parts = ("counts", "ids", "logprobs", "entropy", "tail")
    return all(np.array_equal(getattr(one, part), getattr(other, part)) for part in parts)


logprob = st.one_of(
    st.floats(-120, 0, width=32),
    st.floats(1e-30, 1).map(lambda p: float(np.float32(math.log(p)))),
    st.floats(0, 2**-10, width=32).map(lambda x: -x),
    st.just(-math.inf),
)
vocabulary = st.sampled_from([1, 2, 49_152, NARROW - 1, NARROW, NARROW + 1, 500_000, 2**31])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(logprob, max_size=30),
    vocabulary,
    st.floats(0, 15.75, width=32),
    st.one_of(st.none(), st.floats(0, 1, width=32)),
    st.integers(0, 2**32),
)
@example([math.log(1e-20), -math.inf, -0.0, math.log(1e-40), 5e-5], NARROW, 12.48, 1e-30, 0)
def test_what_is_read_is_within_the_bound(
    logprobs: list[float], vocab_size: int, entropy: float, tail: float | None, seed: int
) -> None:
    random = np.random.default_rng(seed)
    ids = np.unique(random.integers(0, min(vocab_size, random.choice([100, 20_000, 2**31])), len(logprobs)))
    before = in_order(
        decoded(random.permutation(logprobs)[: len(ids)].tolist(), ids.tolist(), entropy, tail), vocab_size
    )
    encoded = encode(before, vocab_size)
    after = decode(encoded, vocab_size)
    assert encoded.words.dtype == (np.uint32 if vocab_size <= NARROW else np.uint64)
    assert encoded.counts.dtype == encoded.entropy.dtype == np.uint16
    assert (after.ids.dtype, after.logprobs.dtype, after.entropy.dtype) == (np.int64, np.float32, np.float32)
    assert np.array_equal(after.ids, before.ids)
    assert np.array_equal(after.counts, before.counts)
    assert len(encoded.words) == encoded.counts.sum() <= len(ids)
    x = -np.minimum(before.logprobs.astype(np.float64), 0)
    impossible = np.isinf(x)
    assert bool(np.isneginf(after.logprobs[impossible]).all())
    y = -after.logprobs.astype(np.float64)
    if vocab_size > NARROW:
        assert np.array_equal(y, x)
    else:
        x = np.minimum(x, (8190 / LOGPROB_SCALE) ** 2)[~impossible]
        error = np.abs(y[~impossible] - x)
        assert bool((error <= bound(x, LOGPROB_SCALE) * (1 + FLOAT32) + FLOAT32 * x).all())
        assert bool((np.abs(np.exp(-y[~impossible]) - np.exp(-x)) <= 4.3e-4).all())
    h = float(before.entropy[0])
    assert abs(float(after.entropy[0]) - h) <= float(bound(np.float64(h), ENTROPY_SCALE)) + FLOAT32 * h
    if tail is None:
        assert after.tail is None
    else:
        assert after.tail is not None
        mass, read = float(before.tail[0]), float(after.tail[0])  # type: ignore[index]
        assert (mass == 0) == (read == 0), "a small tail is not none"
        assert abs(read - mass) <= 5.4e-5
        if mass > 1e-27:
            t = -math.log(mass)
            assert abs(-math.log(read) - t) <= float(bound(np.float64(t), TAIL_SCALE)) + FLOAT32 * (t + 1)
    # Nothing is lost by a second time.
    assert values_equal(decode(encode(after, vocab_size), vocab_size), after)


def test_every_word_reads_and_writes_as_itself() -> None:
    codes = np.arange(1 << 13, dtype=np.uint32)
    every = Encoded(
        (codes << np.uint32(18)) | np.uint32(3), np.full(1, 1 << 13, np.uint16), np.zeros(1, np.uint16), None
    )
    after = decode(every, NARROW)
    assert bool((np.diff(after.logprobs) < 0).all()), "higher codes are less likely, each another number"
    assert after.logprobs[0] == 0
    assert np.array_equal(encode(after, NARROW).words, every.words)
    every_16 = np.arange(1 << 16, dtype=np.uint16)
    wide = Encoded(np.zeros(0, np.uint32), np.zeros(1 << 16, np.uint16), every_16[:-1].repeat(2)[: 1 << 16], every_16)
    after = decode(wide, NARROW)
    assert after.tail is not None
    assert (float(after.tail[0]), float(after.tail[-1])) == (1.0, 0.0)
    # float32 cannot tell all tails near 1 from each other; what is read stays what is read.
    assert values_equal(decode(encode(after, NARROW), NARROW), after)
    again = encode(after, NARROW)
    assert np.array_equal(again.entropy, wide.entropy)
    assert np.array_equal(again.tail[8:], wide.tail[8:])  # type: ignore[index]


def test_the_stated_figures() -> None:
    p = np.linspace(1e-6, 1, 200_001)
    assert 4.15e-4 < (p * bound(-np.log(p), LOGPROB_SCALE)).max() < 4.3e-4
    assert bound(-np.log(1 / 50), LOGPROB_SCALE) < 2e-3
    assert bound(-np.log(1e-20), LOGPROB_SCALE) < 6.7e-3
    assert (p * bound(-np.log(p), TAIL_SCALE)).max() < 5.4e-5
    assert bound(np.float64(1), ENTROPY_SCALE) < 6.2e-5
    assert bound(np.float64(12.5), ENTROPY_SCALE) < 2.2e-4


def by_id(target: Sparse) -> Sparse:
    row_r = torch.arange(len(target)).repeat_interleave(target.offsets.diff())
    order = (row_r * 10**6 + target.ids).argsort()
    return replace(target, ids=target.ids[order], logprobs=target.logprobs[order])


def position(*ids: int, p: float = 0.02) -> Decoded:
    return decoded([math.log(p)] * len(ids), list(ids))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (position(5), 1),
        (position(5, 9), 2),  # the first says the weight
        (position(5, 9, 11), 2),
        (position(5, 9, 11, 8202), 3),
        (position(5, 9, 11, 8202, 8203), 3),
        (position(5, 9, 8200), 2),  # 8,191 apart
        (position(5, 9, 8201), 3),  # 8,192 apart
        (position(5, 9, 262_000, 262_143), 3),
        (position(0, 1, 2, 3, 4, 5, 6), 4),
        (position(6, 5, 4, 3, 2, 1, 0), 4),
        (decoded([-1.0, -2.0, -1.0, -2.0, -1.0, -2.0], [3, 4, 5, 6, 7, 8]), 4),
    ],
)
def test_entries_of_one_weight_share_words(entry: Decoded, words: int) -> None:
    two = Decoded(
        np.concatenate([entry.counts, [0], entry.counts]),
        np.concatenate([entry.ids, entry.ids]),
        np.concatenate([entry.logprobs, entry.logprobs]),
        np.zeros(3, np.float32),
        None,
    )
    encoded = encode(two, NARROW)
    assert encoded.counts.tolist() == [words, 0, words]
    after = decode(encoded, NARROW)
    assert after.counts.tolist() == two.counts.tolist()
    expected = in_order(entry, NARROW)
    assert after.ids.tolist() == expected.ids.tolist() * 2
    assert np.abs(after.logprobs - np.tile(expected.logprobs, 2)).max() < 2e-3
    # Each position can be read by itself.
    alone = decode(Encoded(encoded.words[-words:], encoded.counts[2:], encoded.entropy[2:], None), NARROW)
    assert alone.ids.tolist() == expected.ids.tolist()


def test_a_draw_and_what_is_read_of_it_teach_the_same() -> None:
    torch.manual_seed(0)
    for kind in ("threshold", "top_k", "gemma", "multinomial", "top_k_renormalised"):
        scheme = Scheme(kind, threshold=0.03)  # type: ignore[arg-type]
        drawn = draw(torch.randn(40, 600) * 3, scheme, torch.randint(0, 600, (40,)), torch.rand(40).double())
        live, stored = (by_id(to_sparse(one, scheme)) for one in (drawn, decode(encode(drawn, 600), 600)))
        assert stored.scheme == live.scheme
        assert torch.equal(stored.offsets, live.offsets)
        assert torch.equal(stored.ids, live.ids)
        torch.testing.assert_close(stored.logprobs.exp(), live.logprobs.exp(), rtol=0, atol=4.3e-4)
        torch.testing.assert_close(stored.entropy_N, live.entropy_N, rtol=0, atol=1.5e-4)
        if kind == "threshold":
            # All drawn tokens have the same weight, so rounding it would shift all of them one way.
            weight = math.log(0.03)
            near = (live.logprobs - weight).abs() < 1e-6
            assert int(near.sum()) > 40
            assert stored.logprobs[near].unique().tolist() == pytest.approx([weight], rel=1e-7)


def test_many_positions_are_decoded_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    counts = random.integers(0, 12, 700)
    ids = np.concatenate([random.choice(30_000, count, replace=False) for count in counts])
    logprobs = np.where(random.random(len(ids)) < 0.7, np.log(0.02), -random.random(len(ids))).astype(np.float32)
    zeros = np.zeros(700, np.float32)
    encoded = encode(Decoded(counts, ids, logprobs, zeros, zeros), NARROW)
    whole = decode(encoded, NARROW)
    assert len(encoded.words) < 0.85 * len(ids)
    assert np.array_equal(whole.counts, counts)
    for together in (1, 7, 700):
        monkeypatch.setattr(codec, "TOGETHER", together)
        assert values_equal(decode(encoded, NARROW), whole)


def test_positions_of_which_nothing_is_known() -> None:
    nothing = Decoded(
        np.zeros(3, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(3, np.float32), None
    )
    after = decode(encode(nothing, 100), 100)
    assert after.counts.tolist() == [0, 0, 0]
    assert len(after) == len(to_sparse(after, Scheme("threshold"))) == 3


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (decoded([-1.0], [100]), r"\[0, 100\)"),
        (decoded([-1.0], [-1]), r"\[0, 100\)"),
        (decoded([0.1]), "0 or less"),
        (decoded([math.nan]), "0 or less"),
        (decoded([-1.0] * 65_536, [0] * 65_536), "65,536"),
    ],
)
def test_what_cannot_be_stored_is_refused(entry: Decoded, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode(entry, 100)
