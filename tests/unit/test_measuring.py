from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from limbeck.data.chat.encode import MARK, WORDS
from limbeck.data.packing import Rows
from limbeck.evaluation import gap, speed
from limbeck.evaluation.gap import Measured, measure
from limbeck.evaluation.heldout import bits_per_byte
from limbeck.evaluation.speed import generation_speed
from limbeck.models.causal_lm import CausalLM
from limbeck.statistics import bootstrap
from tests.unit.test_data import corpus_of
from tests.unit.test_training import ragged_rows


def test_measured_sums_are_the_naive_ones(make_lm: Callable[..., CausalLM]) -> None:
    documents = [(ids, [*learn[:-1], MARK]) for ids, learn in ragged_rows(9)]  # each ends with an end token
    rows = Rows(corpus_of(documents), 6, pack=False)  # long documents are measured in pieces
    student, teacher = make_lm(1), make_lm(2, hidden_size=48, vocab_size=384)
    found = measure(student, rows, teacher, batch_size=4)
    student.model.eval()
    teacher.model.eval()
    for d, (ids, learn) in enumerate(documents):
        nats = kl = agreed = tokens = nats_words = tokens_words = 0.0
        for start in range(0, len(ids) - 1, 6):
            piece, flags = torch.tensor([ids[start : start + 7]]), learn[start : start + 7]
            with torch.no_grad():
                logq, logp = (F.log_softmax(m.model(piece).logits[0, :, :320].double(), -1) for m in (student, teacher))
            for i in range(piece.shape[1] - 1):
                if flags[i + 1]:
                    nats -= float(logq[i, piece[0, i + 1]])
                    if flags[i + 1] == WORDS:
                        nats_words -= float(logq[i, piece[0, i + 1]])
                        tokens_words += 1
                    kl += float((logp[i].exp() * (logp[i] - logq[i])).sum())
                    agreed += int(logq[i].argmax() == logp[i].argmax())
                    tokens += 1
        assert found.nats[d] == pytest.approx(nats, rel=1e-4)
        assert found.kl is not None
        assert found.kl[d] == pytest.approx(kl, rel=1e-3)
        assert found.agreement is not None
        assert found.agreement[d] == agreed
        assert found.tokens[d] == tokens
        assert found.nats_words[d] == pytest.approx(nats_words, rel=1e-4)
        assert found.tokens_words[d] == tokens_words
    assert 0 < found.tokens_words.sum() < found.tokens.sum()  # marks are there, and told apart


def test_a_model_is_its_own_perfect_student(make_lm: Callable[..., CausalLM]) -> None:
    lm = make_lm(1)
    found = measure(lm, Rows(corpus_of(ragged_rows(9)), 16, pack=False), lm)
    assert found.kl is not None
    np.testing.assert_allclose(found.kl, 0, atol=1e-4)
    np.testing.assert_array_equal(found.agreement, found.tokens)


def fake(nats: np.ndarray, rng: np.random.Generator) -> Measured:
    d = len(nats)
    return Measured(
        nats, np.full(d, 0.5), np.full(d, 1.0), np.full(d, 2.0), np.full(d, 10.0), nats - 0.5, np.full(d, 1.5)
    )


def test_estimates() -> None:
    rng = np.random.default_rng(0)
    base = rng.gamma(9.0, 1.0, 200)
    teacher, student, control = (fake(base + shift, rng) for shift in (0.0, 1.0, 4.0))
    assert gap.mean("bits_per_byte", [teacher], 200).value == pytest.approx((base.mean() - 0.5) / 10 / math.log(2))
    assert gap.mean("cross_entropy", [teacher], 200).value == pytest.approx(base.mean() / 2)
    assert gap.mean("cross_entropy_words", [teacher], 200).value == pytest.approx((base.mean() - 0.5) / 1.5)
    assert gap.mean("kl", [student], 200).value == pytest.approx(0.25)
    assert gap.mean("agreement", [student], 200).value == pytest.approx(0.5)
    closed = gap.gap_closed([student], [control], teacher, 200)
    assert closed is not None
    assert closed.value == pytest.approx(0.75)
    assert gap.gap_closed([student], [teacher], control, 200) is None
    # Paired: what all models find hard cancels, so a constant difference has no width.
    difference = gap.difference("bits_per_byte", [student], [control], 200)
    assert difference.value == pytest.approx(-3 / 10 / math.log(2))
    assert difference.high - difference.low < 1e-9
    own = gap.mean("bits_per_byte", [student], 200)
    assert own.high - own.low > 0.05


def test_documents_without_words_break_nothing() -> None:
    rng = np.random.default_rng(0)
    one, other = fake(rng.gamma(9.0, 1.0, 20), rng), fake(rng.gamma(9.0, 1.0, 20), rng)
    some = np.arange(20) % 2
    silent = [dataclasses.replace(m, n_bytes=m.n_bytes * some, nats_words=m.nats_words * some) for m in (one, other)]
    assert math.isfinite(gap.mean("bits_per_byte", [silent[0]], 200).high)
    none = [dataclasses.replace(m, n_bytes=m.n_bytes * 0, nats_words=m.nats_words * 0) for m in (one, other)]
    assert math.isnan(gap.mean("bits_per_byte", [none[0]], 200).value)
    assert math.isnan(gap.difference("bits_per_byte", [none[0]], [none[1]], 200).value)
    assert gap.gap_closed([none[0]], [none[1]], none[0], 200) is None
    assert math.isnan(bits_per_byte(none[0]))


def test_intervals_cover_what_they_promise() -> None:
    """95% intervals over documents of a ratio hold the truth in about 95 of 100 samples."""
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        size = rng.gamma(4.0, 1.0, 80)
        nats = size * 0.7 + rng.normal(0, 1.0, 80)
        found = bootstrap(lambda a, b: a / b, nats[None], size[None], resamples=300, seed=trial)
        covered += found.low <= 0.7 <= found.high
    assert 178 <= covered <= 199


def test_seeds_widen_an_interval() -> None:
    rng = np.random.default_rng(2)
    one = rng.normal(10, 1, 100)
    tight = bootstrap(lambda a: a, np.stack([one, one, one]))
    wide = bootstrap(lambda a: a, np.stack([one - 1, one, one + 1]))
    assert tight.value == pytest.approx(wide.value)
    assert wide.high - wide.low > 2 * (tight.high - tight.low)


def test_unpaired_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="same documents"):
        bootstrap(lambda a, b: a - b, np.zeros((1, 3)), np.zeros((1, 4)))


def test_speed_is_measured_on_as_many_tokens_as_asked_for(
    make_lm: Callable[..., CausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = make_lm(1)
    written: list[int] = []
    own = lm.core.generate

    def counted(ids: torch.Tensor, **more: Any) -> torch.Tensor:
        out = own(ids, **more)
        written.append(out.shape[1] - ids.shape[1])
        return out

    monkeypatch.setattr(lm.core, "generate", counted)
    monkeypatch.setattr(speed.time, "perf_counter", iter([0.0, 2.0]).__next__)
    assert generation_speed(lm, [3, 4], 5) == 2.5
    assert written == [5]


def test_models_are_timed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(speed, "generation_speed", lambda lm, prompt, tokens: float(len(asked)))

    def load(name: str) -> Any:
        asked.append(name)
        return name

    found = speed.speeds_in_turn({name: partial(load, name) for name in "ab"}, [3], 8, rounds=3)
    assert asked == ["a", "b"] * 3
    assert found == {"a": [1.0, 3.0, 5.0], "b": [2.0, 4.0, 6.0]}
