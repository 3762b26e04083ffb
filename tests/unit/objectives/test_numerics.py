"""Every divergence on every target under everything that goes wrong, against float64."""

from __future__ import annotations

import dataclasses

import pytest
import reference
import torch
from problems import CONDITIONS, DIVERGENCES, TARGETS, Problem, make, sparse

from limbeck.objectives import Dense, Labels, Sparse, Term, fused_divergence
from limbeck.objectives.divergences import ForwardKL


def call(problem: Problem, **more):
    return fused_divergence(
        problem.hidden, problem.head, problem.terms, bias_V=problem.bias, **{**problem.options, **more}
    )


def error(got: torch.Tensor, want: torch.Tensor, floor: float) -> float:
    """Relative error in the norm; against ``floor`` for what is smaller than that."""
    return float((got.double() - want).norm() / want.norm().clamp_min(floor))


def check(problem: Problem, **more) -> None:
    outcome = call(problem, **more)
    value, grads = reference.gradients(problem.hidden, problem.head, problem.terms, problem.bias, **problem.options)
    assert error(outcome.loss_sum.detach(), value, max(problem.floor, 0.1)) <= 2 * problem.tolerance
    outcome.loss_sum.backward()
    every = [t for t in (problem.hidden, problem.head, problem.bias) if t is not None]
    for leaf, grad in zip(every, grads, strict=True):
        if leaf.requires_grad:
            assert leaf.grad.dtype == leaf.dtype
            assert error(leaf.grad, grad, problem.floor) <= problem.tolerance
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_value_and_gradients_are_those_of_float64(backend: str, divergence: str, target: str, condition: str) -> None:
    check(make(divergence, target, condition), chunk_tokens=3)


@pytest.mark.parametrize("condition", ["plain", "wide", "two_terms"])
@pytest.mark.parametrize("divergence", ["forward_kl", "jsd", "skew_reverse_kl"])
def test_precise_keeps_what_rounded_logits_lose(backend: str, divergence: str, condition: str) -> None:
    problem = make(divergence, "hidden", condition, V=301, D=64)
    dtype = torch.bfloat16
    problem.hidden = problem.hidden.detach().to(dtype).requires_grad_()
    problem.head = problem.head.detach().to(dtype).requires_grad_()
    term = problem.terms[0]
    teacher = Dense(term.target.hidden_NE.to(dtype), term.target.head_VE.to(dtype))
    problem.terms[0] = Term(teacher, term.divergence, weight=term.weight, weight_N=term.weight_N)
    problem.tolerance = 5e-3
    check(problem, precise=True)


def test_labels_are_cross_entropy(backend: str) -> None:
    problem = make("forward_kl", "hidden", "bias")
    labels = torch.tensor([3, -100, 0, 18, -100, 5, 7])
    problem.terms = [Term(Labels(labels), weight=2.0)]
    outcome = call(problem)
    logits = problem.hidden @ problem.head.T + problem.bias
    naive = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    torch.testing.assert_close(outcome.loss_sum, 2 * naive)
    torch.testing.assert_close(outcome.sums[0], naive.detach())
    assert int(outcome.counts[0]) == 5
    got = torch.autograd.grad(outcome.loss_sum, problem.leaves())
    for mine, theirs in zip(got, torch.autograd.grad(2 * naive, problem.leaves()), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_all_ignored_is_a_zero_attached_to_the_graph(backend: str, divergence: str, target: str) -> None:
    problem = make(divergence, target, "bias")
    term = problem.terms[0]
    problem.terms = [
        Term(term.target, term.divergence, weight_N=torch.zeros(7)),
        Term(Labels(torch.full((7,), -100))),
    ]
    outcome = call(problem)
    assert outcome.loss_sum.item() == 0.0
    assert outcome.loss_sum.requires_grad
    outcome.loss_sum.backward()
    for leaf in problem.leaves():
        assert leaf.grad.shape == leaf.shape
        assert not leaf.grad.any()
    assert [int(count) for count in outcome.counts] == [0, 0]


@pytest.mark.parametrize("target", ["hidden", "top_k_tail", "threshold_sampling"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_constant_added_to_all_logits_changes_nothing(backend: str, divergence: str, target: str) -> None:
    problem = make(divergence, target, "bias")
    before = call(problem)
    grads = torch.autograd.grad(before.loss_sum, problem.leaves())
    with torch.no_grad():
        problem.bias += 8.0
    if target == "hidden":
        term = problem.terms[0]
        moved = Dense(term.target.hidden_NE, term.target.head_VE, term.target.bias_V - 16.0, scale=0.9)
        problem.terms = [Term(moved, term.divergence, weight=term.weight)]
    after = call(problem)
    torch.testing.assert_close(after.loss_sum, before.loss_sum, rtol=3e-5, atol=1e-6)
    for one, other in zip(grads, torch.autograd.grad(after.loss_sum, problem.leaves()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "kl"),
    [
        ({"name": "jsd", "beta": 0.0}, "forward_kl"),
        ({"name": "jsd", "beta": 1.0}, "reverse_kl"),
        ({"name": "skew_kl", "alpha": 0.0}, "forward_kl"),
        ({"name": "skew_reverse_kl", "alpha": 0.0}, "reverse_kl"),
        ({"name": "alpha_beta", "alpha": 1.0, "beta": 0.0}, "forward_kl"),
        ({"name": "alpha_beta", "alpha": 0.0, "beta": 1.0}, "reverse_kl"),
        ({"name": "entropy_switched", "threshold_nats": 0.0}, "forward_kl"),
        ({"name": "entropy_switched", "threshold_nats": 99.0}, "reverse_kl"),
    ],
)
@pytest.mark.parametrize("target", TARGETS)
def test_the_families_end_in_the_two_kls(backend: str, target: str, spec: dict, kl: str) -> None:
    if target == "threshold_sampling" and spec["name"] == "entropy_switched":
        pytest.skip("a switched divergence is not linear in the teacher, so it takes the exact entries only")
    problem = make("jsd", target, "plain")
    term = problem.terms[0]
    results = []
    for divergence in (spec, kl):
        problem.terms = [Term(term.target, divergence)]
        outcome = call(problem)
        results.append([outcome.loss_sum.detach(), *torch.autograd.grad(outcome.loss_sum, problem.leaves())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_jsd_over_beta_tends_to_forward_kl() -> None:
    """The convention for the ends is the limit of the inside."""
    problem = make("jsd", "hidden", "plain")
    target = problem.terms[0].target
    problem.hidden, problem.head = problem.hidden.detach().double(), problem.head.detach().double()
    near = call(Problem(problem.hidden, problem.head, [Term(target, {"name": "jsd", "beta": 1e-5})]))
    limit = call(Problem(problem.hidden, problem.head, [Term(target, "forward_kl")]))
    torch.testing.assert_close(near.loss_sum / 1e-5, limit.loss_sum, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_finite_differences_agree(divergence: str, target: str) -> None:
    """In float64, along one random direction of all inputs at once."""
    problem = make(divergence, target, "bias")
    problem.options.update(softcap=3.0, scale=1.3, chunk_tokens=4)
    leaves = [t.detach().double() for t in (problem.hidden, problem.head, problem.bias)]
    directions = [torch.randn_like(leaf) for leaf in leaves]

    def loss(step: float) -> torch.Tensor:
        moved = [(t + step * d).requires_grad_() for t, d in zip(leaves, directions, strict=True)]
        outcome = call(Problem(moved[0], moved[1], problem.terms, moved[2], problem.options))
        if step:
            return outcome.loss_sum.detach()
        grads = torch.autograd.grad(outcome.loss_sum, moved)
        return sum((g * d).sum() for g, d in zip(grads, directions, strict=True))

    numeric = (loss(1e-6) - loss(-1e-6)) / 2e-6
    torch.testing.assert_close(loss(0.0), numeric, rtol=1e-5, atol=1e-6)


def test_a_token_only_the_student_forbids_still_has_a_finite_loss(backend: str) -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(3, 4).requires_grad_(), torch.randn(8, 4)
    bias = torch.zeros(8)
    bias[2] = -torch.inf
    teacher = torch.randn(3, 8)
    outcome = fused_divergence(hidden, head, [Term(Dense.from_logits(teacher))], bias_V=bias)
    assert torch.isfinite(outcome.loss_sum)
    assert outcome.loss_sum > 100, "what the teacher allows and the student forbids costs much"
    (grad,) = torch.autograd.grad(outcome.loss_sum, hidden)
    q, p = torch.softmax(hidden.detach() @ head.T + bias, -1), torch.softmax(teacher, -1)
    torch.testing.assert_close(grad, (q - p) @ head, rtol=1e-4, atol=1e-5)


def test_nan_is_not_hidden(backend: str) -> None:
    problem = make("forward_kl", "hidden", "plain")
    with torch.no_grad():
        problem.hidden[2, 1] = torch.nan
    assert torch.isnan(call(problem).loss_sum)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd", "tvd", "skew_kl", "skew_reverse_kl"])
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(backend: str, divergence: str, target: str) -> None:
    """Also from one entry and a tail bucket: nothing is renormalised away."""
    torch.manual_seed(1)
    hidden, head = torch.randn(5, 6).requires_grad_(), torch.randn(11, 6).requires_grad_()
    logits = hidden.detach() @ head.detach().T
    made = {
        "hidden": lambda: Dense(hidden.detach(), head.detach()),
        "logits": lambda: Dense.from_logits(logits),
        "top_k_tail": lambda: sparse("top_k_tail", logits, entries=1),
        "threshold_sampling": lambda: sparse("threshold_sampling", logits, entries=11, threshold=0.2),
    }[target]()
    if target == "threshold_sampling" and divergence == "forward_kl":
        pytest.skip("a single draw is right on average only; see the test of unbiasedness")
    outcome = fused_divergence(hidden, head, [Term(made, DIVERGENCES[divergence])])
    assert abs(outcome.loss_sum.item()) < 1e-5
    for grad in torch.autograd.grad(outcome.loss_sum, (hidden, head)):
        assert grad.abs().max() < 2e-5 if divergence != "tvd" else grad.abs().max() < 1.0


def test_one_stored_entry_teaches() -> None:
    """K = 1: the top token's probability is pulled to the teacher's, and not to 1."""
    torch.manual_seed(0)
    logits = torch.randn(1, 12)
    top = torch.softmax(logits, -1).max().item()
    target = sparse("top_k_tail", logits, entries=1)
    bias = torch.zeros(12, requires_grad=True)
    hidden, head = torch.ones(1, 1), torch.zeros(12, 1)
    for _ in range(300):
        outcome = fused_divergence(hidden, head, [Term(target)], bias_V=bias)
        (grad,) = torch.autograd.grad(outcome.loss_sum, bias)
        bias.data -= 2.0 * grad
    assert torch.softmax(bias, -1)[target.ids[0]].item() == pytest.approx(top, abs=1e-4)


def test_threshold_sampling_gives_an_unbiased_value_and_gradient(backend: str) -> None:
    """The mean over every draw that systematic sampling can make is the dense forward KL itself."""
    torch.manual_seed(3)
    V, threshold, draws = 40, 0.05, 2000
    hidden, head = torch.randn(1, 8).requires_grad_(), torch.randn(V, 8)
    teacher = torch.randn(1, V)
    p = torch.softmax(teacher, -1)[0].double()
    exact = p >= threshold
    edges = torch.cat([torch.zeros(1), p.masked_fill(exact, 0.0).cumsum(0)]).double()
    # One draw for each offset of the comb: a token is hit by every tooth between its edges.
    starts = (torch.arange(draws).double() + 0.5) / draws * threshold
    hits = torch.ceil((edges[1:] - starts[:, None]) / threshold) - torch.ceil(
        (edges[:-1] - starts[:, None]) / threshold
    )
    kept = exact | (hits > 0)
    weights = torch.where(exact, p, hits * threshold)
    lengths = kept.sum(-1)
    entropy = -(p * p.log()).sum().expand(draws)
    target = Sparse(
        torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        kept.nonzero()[:, 1],
        weights[kept].log().float(),
        "threshold_sampling",
        entropy_N=entropy.float(),
        threshold=threshold,
    )
    many = hidden.detach().expand(draws, -1).contiguous().requires_grad_()
    drawn = fused_divergence(many, head, [Term(target, weight=1 / draws)])
    whole = fused_divergence(hidden, head, [Term(Dense.from_logits(teacher))])
    torch.testing.assert_close(drawn.loss_sum, whole.loss_sum, rtol=1e-3, atol=1e-4)
    (got,) = torch.autograd.grad(drawn.loss_sum, many)
    (want,) = torch.autograd.grad(whole.loss_sum, hidden)
    torch.testing.assert_close(got.sum(0), want[0], rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize(("alpha", "beta"), [(1e-3, 1.0), (1e-4, 0.7), (1.0, 1e-3), (0.7, 1e-4), (1e-2, 1e-2)])
def test_alpha_beta_near_its_limits_keeps_its_digits(backend: str, alpha: float, beta: float) -> None:
    """In float32 the terms cancel in all but their last digits; in float64 they can be added up as written."""
    torch.manual_seed(0)
    student, teacher = 3 * torch.randn(16, 50), 3 * torch.randn(16, 50)
    teacher[:8] = student[:8] + 0.05 * torch.randn(8, 50)  # rows that nearly agree, as after a training
    hidden, head = student.clone().requires_grad_(), torch.eye(50)
    term = Term(Dense.from_logits(teacher), {"name": "alpha_beta", "alpha": alpha, "beta": beta})
    outcome = fused_divergence(hidden, head, [term])
    (grad,) = torch.autograd.grad(outcome.loss_sum, hidden)

    exact = student.double().requires_grad_()
    logp, logq = torch.log_softmax(teacher.double(), -1), torch.log_softmax(exact, -1)
    s = alpha + beta
    terms = alpha / s * (s * logp).exp() + beta / s * (s * logq).exp() - (alpha * logp + beta * logq).exp()
    right_N = terms.sum(-1) / (alpha * beta)
    (right_grad,) = torch.autograd.grad(right_N.sum(), exact)
    torch.testing.assert_close(outcome.stats[0].divergence_N.double(), right_N.detach(), rtol=2e-4, atol=1e-7)
    torch.testing.assert_close(grad.double(), right_grad, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("target", ["logits", "top_k_tail"])
def test_a_divergence_of_the_users_own_runs_on_every_backend(backend: str, target: str) -> None:
    class HalfKL(ForwardKL):
        name = "half_kl"

        def pointwise(self, logp: torch.Tensor, logq: torch.Tensor, entropy: torch.Tensor) -> tuple:
            share, weight = super().pointwise(logp, logq, entropy)
            return share / 2, weight / 2

    problem = make("forward_kl", target, "plain")
    whole = call(problem).loss_sum.detach()
    problem.terms = [dataclasses.replace(problem.terms[0], divergence=HalfKL())]
    torch.testing.assert_close(call(problem).loss_sum.detach(), whole / 2)
