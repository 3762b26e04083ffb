"""Draws: unbiased, reproducible, the same whatever surrounds them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from limbeck.errors import RecipeError
from limbeck.objectives import Dense, Term, fused_divergence
from limbeck.objectives.kernels import blocks
from limbeck.signals import sampling
from limbeck.signals.sampling import Draw, LogitsError, Scheme, draw, to_sparse, uniforms
from tests.kernels import choose_kernel

GRID = 16
"""Uniform numbers of an exhaustive test: the middles of as many equal parts of [0, 1)."""


@pytest.fixture(autouse=True, params=["eager", "cpu"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The sums over the vocabulary, in torch and in C++."""
    choose_kernel(request.param, monkeypatch)
    return str(request.param)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def middles(count: int = GRID) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def weights(drawn: Draw, vocab_size: int) -> Tensor:
    """The entries as whole distributions, float64 [n, V]."""
    count = len(drawn.counts_n)
    row_r = torch.arange(count).repeat_interleave(drawn.counts_n)
    dense_nV = torch.zeros(count, vocab_size, dtype=torch.float64)
    return dense_nV.index_put_((row_r, drawn.ids), drawn.logprobs.double().exp(), accumulate=True)


def everywhere(p_V: Tensor, scheme: Scheme, label: int, dtype: torch.dtype = torch.float64) -> Draw:
    """Draws of one distribution at all uniform numbers of the grid."""
    logits_nV = p_V.log().to(dtype).expand(GRID, -1)
    return draw(logits_nV, scheme, torch.full((GRID,), label), middles())


@st.composite
def distributions(draw_from: Any) -> tuple[Tensor, float, int]:
    """p in units of threshold / GRID, so that the mean over the grid is the expectation; a threshold, a label."""
    per_threshold = draw_from(st.sampled_from([2, 5, 8, 50]))
    units = per_threshold * GRID
    vocab_size = draw_from(st.integers(1, 200))
    cuts = draw_from(st.lists(st.integers(0, units), min_size=0, max_size=min(vocab_size - 1, 60)))
    # Many tokens just below the threshold, many at it, or whatever hypothesis likes.
    size = draw_from(st.sampled_from([None, GRID - 1, GRID, GRID + 1, 1]))
    if size is not None:
        cuts = list(range(size, units, size))[: vocab_size - 1]
    parts = np.diff([0, *sorted(cuts), units])
    places = np.random.default_rng(draw_from(st.integers(0, 2**16))).permutation(vocab_size)[: len(parts)]
    p_V = torch.zeros(vocab_size, dtype=torch.float64)
    p_V[torch.from_numpy(places)] = torch.from_numpy(parts / units)
    return p_V, 1.0 / per_threshold, draw_from(st.integers(0, vocab_size - 1))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(distributions(), st.sampled_from([torch.float64, torch.float32]))
def test_threshold_draws_are_unbiased_for_every_token(case: tuple[Tensor, float, int], dtype: torch.dtype) -> None:
    p_V, threshold, label = case
    drawn = everywhere(p_V, Scheme("threshold", threshold=threshold), label, dtype)
    dense_nV = weights(drawn, len(p_V))
    # Rounding of the logits may bring a p at the threshold to either side, with (nearly) the same weight.
    torch.testing.assert_close(dense_nV.mean(0), p_V, rtol=2e-6, atol=1e-7)
    row_r = torch.arange(GRID).repeat_interleave(drawn.counts_n)
    keys = row_r * len(p_V) + drawn.ids
    assert bool((keys.diff() > 0).all()), "in ascending order, each once"
    assert int((drawn.ids == label).sum()) == GRID, "the label at every position"
    torch.testing.assert_close(dense_nV[:, label], p_V[label].expand(GRID), rtol=2e-6, atol=1e-7)
    exact = p_V >= threshold * (1 + 1e-6)
    torch.testing.assert_close(dense_nV[:, exact], p_V[exact].expand(GRID, -1), rtol=2e-6, atol=1e-7)
    assert bool((dense_nV[:, p_V == 0] == 0).all()), "what is impossible is never drawn"
    assert int(drawn.counts_n.max()) <= math.floor(1 / threshold + 1e-9) + 1


def zipf(vocab_size: int, seed: int, exponent: float = 1.2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.randperm(vocab_size, generator=generator).double() + 1
    return torch.softmax(-exponent * ranks.log(), 0)


@pytest.mark.parametrize(("vocab_size", "label"), [(3_000, "head"), (3_000, "tail"), (49_152, "tail")])
def test_large_draws_are_unbiased_to_statistical_precision(vocab_size: int, label: str) -> None:
    p_V, count = zipf(vocab_size, 1), 2_000 if vocab_size < 10_000 else 200
    token = int(p_V.argmax() if label == "head" else p_V.argmin())
    uniform_n = torch.from_numpy(uniforms(0, np.full(count, 7, np.uint64), np.arange(count)))
    logits_nV = p_V.log().float().expand(count, -1)
    drawn = draw(logits_nV, Scheme("threshold", threshold=0.02), torch.full((count,), token), uniform_n)
    mean_V = weights(drawn, vocab_size).mean(0)
    rest = (p_V < 0.02) & (torch.arange(vocab_size) != token)
    torch.testing.assert_close(mean_V[~rest], p_V[~rest], rtol=1e-5, atol=0)
    # Each count is binomial; together the squared deviations are nearly chi-squared of as many tokens.
    variance_V = (p_V * (0.02 - p_V) / count)[rest]
    deviations = (mean_V[rest] - p_V[rest]) / variance_V.sqrt()
    likely = p_V[rest] * count > 0.02 * 5
    assert float(deviations[likely].abs().max()) < 5
    assert abs(float(deviations[likely].square().mean()) - 1) < 6 * math.sqrt(2 / int(likely.sum()))
    # Also where no single token is drawn often: in sums over many.
    groups = torch.arange(int(rest.sum())) % 7
    for group in range(7):
        of = groups == group
        error = (mean_V[rest][of] - p_V[rest][of]).sum()
        assert abs(float(error)) < 5 * float(variance_V[of].sum().sqrt())


def test_multinomial_is_unbiased_and_the_renormalised_kinds_are_not() -> None:
    p_V, count = zipf(500, 2, 0.9), 3_000
    logits_nV, labels_n = p_V.log().expand(count, -1), torch.zeros(count, dtype=torch.int64)
    uniform_n = torch.from_numpy(uniforms(1, np.arange(count, dtype=np.uint64), np.zeros(count, np.int64)))
    means = {}
    for kind in ("multinomial", "gemma", "top_k_renormalised"):
        scheme = Scheme(kind, samples=20, k=20)  # type: ignore[arg-type]
        dense_nV = weights(draw(logits_nV, scheme, labels_n, uniform_n), 500)
        torch.testing.assert_close(dense_nV.sum(1), torch.ones(count, dtype=torch.float64))
        means[kind] = dense_nV.mean(0)
    deviation = (p_V * (1 - p_V) / (20 * count)).sqrt()
    assert float(((means["multinomial"] - p_V) / deviation).abs().max()) < 5
    # Both put too much on the likeliest tokens: the equation of the docstring, and about as much.
    top = p_V.topk(20)
    torch.testing.assert_close(means["top_k_renormalised"][top.indices], top.values / top.values.sum())
    assert float(means["gemma"][top.indices].sum()) > 1.3 * float(top.values.sum())


def test_top_k_is_exact_and_knows_a_small_tail() -> None:
    p_V = torch.tensor([0.5, 0.25, 0.25 - 1e-9, 6e-10, 4e-10], dtype=torch.float64)
    drawn = draw(p_V.log().expand(2, -1).float(), Scheme("top_k", k=3), torch.zeros(2).long(), torch.rand(2).double())
    assert drawn.ids.tolist() == [0, 1, 2] * 2
    assert drawn.tail_n is not None
    torch.testing.assert_close(drawn.tail_n, torch.full((2,), 1e-9), rtol=1e-5, atol=0)
    # More than there are; forbidden tokens are no entries.
    p_V[1] = 0.0
    drawn = draw(p_V.log()[None], Scheme("top_k", k=64), torch.ones(1).long(), torch.zeros(1).double())
    assert drawn.ids.tolist() == [0, 2, 3, 4]
    assert drawn.tail_n is not None
    assert drawn.tail_n.tolist() == [0.0]
    torch.testing.assert_close(drawn.logprobs.exp().sum(), torch.tensor(1.0))


@pytest.mark.parametrize("temperature", [1.0, 0.5, 4.0])
@pytest.mark.parametrize("divergence", ["forward_kl", "cross_entropy"])
def test_the_mean_gradient_is_that_of_the_whole_distribution(temperature: float, divergence: str) -> None:
    """Over the grid, in float64: of the loss's value too, by the stored entropy."""
    generator = torch.Generator().manual_seed(3)
    units = torch.multinomial(torch.rand(90, generator=generator) ** 4, 50 * GRID, True, generator=generator)
    p_V = torch.bincount(units, minlength=90).double() / len(units)
    logits_nV = (p_V.log() * temperature).expand(GRID, -1)
    scheme = Scheme("threshold", temperature=temperature)
    drawn = draw(logits_nV, scheme, torch.full((GRID,), 5), middles())
    hidden, head = torch.randn(1, 8, dtype=torch.float64), torch.randn(90, 8, dtype=torch.float64)
    found = []
    for target in (Dense.from_logits(logits_nV.clamp_min(-1e4)), to_sparse(drawn, scheme)):
        student_ND = hidden.expand(GRID, -1).clone().requires_grad_()
        head_VD = head.clone().requires_grad_()
        outcome = fused_divergence(student_ND, head_VD, [Term(target, divergence, temperature)])
        outcome.loss_sum.backward()
        assert student_ND.grad is not None
        found.append((outcome.loss_sum.detach(), student_ND.grad.sum(0), head_VD.grad))
    # float32 log-probabilities of the entries: 1e-7.
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-6)


def test_every_divergence_takes_what_it_can_of_a_draw() -> None:
    p_V = zipf(300, 5)
    logits_nV, scheme = p_V.log().expand(4, -1), Scheme("threshold")
    for kind in ("threshold", "top_k", "top_k_renormalised", "gemma"):
        scheme = Scheme(kind)  # type: ignore[arg-type]
        target = to_sparse(draw(logits_nV, scheme, torch.arange(4) * 70, middles(4)), scheme)
        for divergence in ("reverse_kl", "jsd", "forward_kl"):
            outcome = fused_divergence(
                torch.randn(4, 8).double(), torch.randn(300, 8).double(), [Term(target, divergence)]
            )
            assert bool(outcome.loss_sum.isfinite())


def many(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Peaked and flat distributions of 70 positions over 500 tokens, some forbidden."""
    generator = torch.Generator().manual_seed(0)
    logits_nV = torch.randn(70, 500, generator=generator) * torch.linspace(0.1, 12, 70).unsqueeze(1)
    logits_nV = (logits_nV * 16).round() / 16
    logits_nV[torch.rand(70, 500, generator=generator) < 0.1] = -torch.inf
    uniform_n = torch.from_numpy(uniforms(0, np.arange(70, dtype=np.uint64), np.arange(70)))
    return logits_nV.to(dtype), torch.randint(0, 500, (70,), generator=generator), uniform_n


def same(one: Draw, other: Draw) -> bool:
    parts = ("counts_n", "ids", "logprobs", "tail_n", "entropy_n")
    pairs = [(getattr(one, part), getattr(other, part)) for part in parts]
    return all(a is b is None or torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("kind", ["threshold", "top_k", "top_k_renormalised", "multinomial", "gemma"])
def test_a_position_depends_on_nothing_around_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme = Scheme(kind, k=9, temperature=1.5)  # type: ignore[arg-type]
    logits_nV, labels_n, uniform_n = many()
    before = logits_nV.clone()
    whole = draw(logits_nV, scheme, labels_n, uniform_n)
    assert torch.equal(logits_nV, before), "logits are read, never written"
    order = torch.randperm(70, generator=torch.Generator().manual_seed(1))
    shuffled = draw(logits_nV[order], scheme, labels_n[order], uniform_n[order])
    assert torch.equal(shuffled.counts_n, whole.counts_n[order])
    assert torch.equal(weights(shuffled, 500), weights(whole, 500)[order])
    monkeypatch.setattr(sampling, "PART", 3 * 500)
    assert same(draw(logits_nV, scheme, labels_n, uniform_n), whole)
    # A constant added to the logits, that loses no bit of them.
    assert same(draw(logits_nV + 32, scheme, labels_n, uniform_n), whole)
    assert not draw(logits_nV.clone().requires_grad_(), scheme, labels_n, uniform_n).logprobs.requires_grad
    # Rows of a wider matrix, as a cropped head gives them.
    padded = torch.nn.functional.pad(logits_nV, (0, 12), value=50.0)[:, :500]
    assert same(draw(padded, scheme, labels_n, uniform_n), whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_of_any_precision(dtype: torch.dtype) -> None:
    logits_nV, labels_n, uniform_n = many(dtype)
    scheme = Scheme("threshold")
    drawn = draw(logits_nV, scheme, labels_n, uniform_n)
    exact = draw(logits_nV.double(), scheme, labels_n, uniform_n)
    assert drawn.logprobs.dtype == drawn.entropy_n.dtype == torch.float32
    assert torch.equal(drawn.counts_n, exact.counts_n)
    assert torch.equal(drawn.ids, exact.ids)
    torch.testing.assert_close(drawn.logprobs, exact.logprobs, rtol=0, atol=2e-6)
    p_nV = logits_nV.double().softmax(1)
    torch.testing.assert_close(drawn.entropy_n, torch.special.entr(p_nV).sum(1).float(), rtol=1e-5, atol=1e-5)


def test_a_label_is_an_entry_however_unlikely() -> None:
    logits_nV = torch.zeros(3, 200)
    logits_nV[:, 150] = 46.0 + math.log(199)
    logits_nV[1, 7], logits_nV[2, 7] = -200.0, -torch.inf
    drawn = draw(logits_nV, Scheme("threshold"), torch.full((3,), 7), torch.full((3,), 0.5).double())
    assert drawn.ids.tolist() == [7, 150] * 3
    lowest = float(torch.log_softmax(logits_nV[0].double(), 0)[7])
    torch.testing.assert_close(drawn.logprobs[::2], torch.tensor([lowest, lowest - 200, -torch.inf]))
    # 1e-23 of mass: the objective counts p = 0 as exp(-10,000).
    target = to_sparse(drawn, Scheme("threshold"))
    head = torch.randn(200, 4, requires_grad=True)
    fused_divergence(torch.randn(3, 4), head, [Term(target)]).loss_sum.backward()
    assert bool(head.grad.isfinite().all())  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["threshold", "top_k", "multinomial", "gemma", "top_k_renormalised"])
def test_certain_and_uniform_teachers(kind: str) -> None:
    scheme = Scheme(kind)  # type: ignore[arg-type]
    certain_nV = torch.full((4, 1000), -torch.inf)
    certain_nV[:, 999] = 3.0
    drawn = draw(certain_nV, scheme, torch.full((4,), 999), middles(4))
    assert drawn.ids.tolist() == [999] * 4
    torch.testing.assert_close(drawn.logprobs, torch.zeros(4), rtol=0, atol=1e-7)
    assert drawn.entropy_n.tolist() == [0.0] * 4
    # 51 tokens, each just below 1/50.
    flat = draw(torch.zeros(4, 51), scheme, torch.zeros(4).long(), middles(4))
    torch.testing.assert_close(flat.entropy_n, torch.full((4,), math.log(51)))
    if kind == "threshold":
        assert flat.counts_n.min() >= 50
        torch.testing.assert_close(weights(flat, 51).sum(1), torch.ones(4).double(), rtol=0, atol=0.02)
    if kind == "top_k":
        assert flat.counts_n.tolist() == [51] * 4
    single = draw(torch.zeros(2, 1), scheme, torch.zeros(2).long(), middles(2))
    assert single.ids.tolist() == [0, 0]


def test_no_positions() -> None:
    for kind in ("threshold", "top_k"):
        drawn = draw(torch.zeros(0, 9), Scheme(kind), torch.zeros(0).long(), torch.zeros(0).double())  # type: ignore[arg-type]
        assert len(drawn.ids) == len(drawn.counts_n) == len(to_sparse(drawn, Scheme(kind))) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(("value", "what"), [(math.nan, "NaN"), (math.inf, "+inf"), (-math.inf, "all -inf")])
def test_broken_logits_are_named(value: float, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "PART", 80)
    logits_nV = torch.zeros(5, 40)
    logits_nV[3, 9 if value > 0 or math.isnan(value) else slice(None)] = value
    with pytest.raises(LogitsError, match="position 3") as error:
        draw(logits_nV, Scheme("threshold"), torch.zeros(5).long(), torch.zeros(5).double())
    assert error.value.position == 3
    assert what in str(error.value)


def test_what_does_not_fit_is_refused() -> None:
    for settings_ in (
        {"kind": "top_p"},
        {"threshold": 0.0},
        {"threshold": 1.0},
        {"k": 0},
        {"samples": 10**6},
        {"temperature": 0.0},
    ):
        with pytest.raises(RecipeError) as error:
            Scheme(**{"kind": "threshold", **settings_})  # type: ignore[arg-type]
        assert error.value.key in {".scheme", *(f".{name}" for name in settings_)}
    with pytest.raises(ValueError, match=r"labels must be in \[0, 9\)"):
        draw(torch.zeros(2, 9), Scheme("top_k"), torch.tensor([0, -100]), torch.zeros(2).double())
    with pytest.raises(ValueError, match=r"\[n=2\]"):
        draw(torch.zeros(2, 9), Scheme("top_k"), torch.tensor([0]), torch.zeros(2).double())


def test_a_scheme_is_known_by_what_matters() -> None:
    assert Scheme("top_k", k=3, seed=4, threshold=0.5).plain() == {"kind": "top_k", "temperature": 1.0, "k": 3}
    assert Scheme("threshold", seed=4).plain() == {
        "kind": "threshold", "temperature": 1.0, "threshold": 0.02, "seed": 4,
    }  # fmt: skip
    assert set(Scheme("gemma", samples=256).plain()) == {"kind", "temperature", "samples", "seed"}


class _Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns, views aside."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            known = {id(leaf) for leaf in tree_leaves((args, kwargs))}
            for leaf in tree_leaves(out):
                if isinstance(leaf, Tensor) and id(leaf) not in known:
                    self.elements = max(self.elements, leaf.numel())
        return out


@pytest.mark.parametrize("kind", ["threshold", "top_k", "multinomial"])
def test_no_more_than_a_part_is_held(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "PART", 2 * 2**16)
    logits_nV = torch.randn(16, 2**16) * 6
    with _Largest() as largest:
        draw(logits_nV, Scheme(kind), torch.zeros(16).long(), middles(16))  # type: ignore[arg-type]
    # The torch version's part, or blocks that are looked at again.
    assert largest.elements <= 2 * 2**16


def test_uniforms_are_a_function_of_seed_document_and_offset() -> None:
    keys_n, offsets_n = np.array([0, 1, 2**64 - 1, 1], np.uint64), np.array([0, 0, 5, 1])
    numbers = uniforms(3, keys_n, offsets_n)
    assert numbers.dtype == np.float64
    for i in range(4):
        assert uniforms(3, keys_n[i : i + 1], offsets_n[i : i + 1])[0] == numbers[i]
    # Stores on disks depend on them: these never change.
    assert [f"{number:.15f}" for number in numbers] == [
        "0.329821945658676", "0.333572031464663", "0.707803677788295", "0.158890075994368",
    ]  # fmt: skip
    assert not set(uniforms(4, keys_n, offsets_n)) & set(numbers)


def test_uniforms_are_uniform_and_independent_of_their_neighbours() -> None:
    count = 40_000
    for keys_n, offsets_n in (
        (np.full(count, 12345, np.uint64), np.arange(count)),
        (np.arange(count, dtype=np.uint64), np.zeros(count, np.int64)),
        (np.arange(count, dtype=np.uint64) << np.uint64(40), np.arange(count)),
    ):
        numbers = uniforms(0, keys_n, offsets_n)
        assert 0 <= numbers.min() < numbers.max() < 1
        # Kolmogorov-Smirnov, at one in a million.
        assert np.abs(np.sort(numbers) - (np.arange(count) + 0.5) / count).max() < 2.7 / math.sqrt(count)
        for lag in (1, 2, 64):
            assert abs(np.corrcoef(numbers[:-lag], numbers[lag:])[0, 1]) < 5 / math.sqrt(count)
        assert abs(np.corrcoef(numbers, uniforms(1, keys_n, offsets_n))[0, 1]) < 5 / math.sqrt(count)
