"""What the objective's functions and classes accept, refuse and report."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
import reference
import torch
from hypothesis import given, settings
from problems import DIVERGENCES, sparse

from limbeck.objectives import (
    JSD,
    Dense,
    ForwardKL,
    Labels,
    Sparse,
    Term,
    fused_divergence,
    memory,
    resolve,
)
from limbeck.objectives.kernels import build


def small(N: int = 6, D: int = 5, V: int = 11) -> tuple[torch.Tensor, torch.Tensor, Dense]:
    torch.manual_seed(N + D + V)
    hidden, head = torch.randn(N, D).requires_grad_(), torch.randn(V, D).requires_grad_()
    return hidden, head, Dense(torch.randn(N, 7), torch.randn(V, 7))


# ---- any shape ----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    N=st.integers(0, 6),
    D=st.integers(1, 5),
    V=st.integers(1, 40),
    chunk=st.integers(1, 7),
    name=st.sampled_from(sorted(DIVERGENCES)),
    target=st.sampled_from(["hidden", "top_k_tail", "threshold_sampling"]),
    ignored=st.integers(0, 2**6 - 1),
)
def test_every_shape_is_right(N: int, D: int, V: int, chunk: int, name: str, target: str, ignored: int) -> None:
    torch.manual_seed(N * 41 + V)
    hidden, head = torch.randn(N, D), torch.randn(V, D)
    teacher = Dense(torch.randn(N, 3), torch.randn(V, 3))
    made = teacher
    if target != "hidden":
        if N == 0:
            return
        made = sparse(target, teacher.hidden_NE @ teacher.head_VE.T, entries=min(3, V))
    weight_N = torch.tensor([float(not ignored >> n & 1) for n in range(N)])
    terms = [Term(made, DIVERGENCES[name], weight_N=weight_N)]
    value, (grad_hidden, grad_head) = reference.gradients(hidden, head, terms) if N else (0.0, (hidden, head))
    hidden.requires_grad_()
    head.requires_grad_()
    outcome = fused_divergence(hidden, head, terms, chunk_tokens=chunk)
    outcome.loss_sum.backward()
    if N == 0:
        assert outcome.loss_sum.item() == 0.0
        assert not head.grad.any()
        return
    assert outcome.loss_sum.item() == pytest.approx(float(value), rel=1e-4, abs=1e-4)
    torch.testing.assert_close(hidden.grad.double(), grad_hidden, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(head.grad.double(), grad_head, rtol=1e-4, atol=2e-5)


# ---- what comes back ----------------------------------------------------------------------------------------


def test_statistics_are_those_of_the_distributions(backend: str) -> None:
    hidden, head, teacher = small()
    labels, weight_N = torch.tensor([1, -100, 3, 4, 0, 10]), torch.tensor([1.0, 1, 0, 2, 1, 1])
    outcome = fused_divergence(
        hidden,
        head,
        [Term(teacher, temperature=2.0, weight_N=torch.tensor([1.0, 1, 0, 2, 1, 1])), Term(Labels(labels))],
    )
    student = (hidden @ head.T).detach()
    logits = teacher.hidden_NE @ teacher.head_VE.T
    p, q = torch.softmax(logits / 2, -1), torch.softmax(student / 2, -1)
    soft, hard = outcome.stats
    counted = torch.tensor([True, True, False, True, True, True])
    zero = torch.zeros(())
    torch.testing.assert_close(soft.student_entropy_N, torch.where(counted, -(q * q.log()).sum(-1), zero))
    torch.testing.assert_close(soft.teacher_entropy_N, torch.where(counted, -(p * p.log()).sum(-1), zero))
    kl = (p * (p / q).log()).sum(-1)
    torch.testing.assert_close(soft.divergence_N, torch.where(counted, kl, zero))
    assert soft.cross_entropy_N is None
    assert torch.equal(soft.agreement_N, (student.argmax(-1) == logits.argmax(-1)) & counted)
    ce = torch.nn.functional.cross_entropy(student, labels, reduction="none")
    torch.testing.assert_close(hard.cross_entropy_N, ce)
    assert torch.equal(hard.agreement_N, (student.argmax(-1) == labels) & (labels != -100))
    torch.testing.assert_close(outcome.sums[0], (kl * weight_N).sum())
    assert [int(count) for count in outcome.counts] == [5, 5]


def test_agreement_of_tied_tops_is_any_shared_one(backend: str) -> None:
    head = torch.eye(20)
    hidden, logits = torch.zeros(2, 20), torch.zeros(2, 20)
    hidden[:, [3, 17]] = 1.0
    logits[0, [17, 18]] = 2.0
    logits[1, [4, 18]] = 2.0
    stats = fused_divergence(hidden, head, [Term(Dense.from_logits(logits))]).stats[0]
    assert stats.agreement_N.tolist() == [True, False]


def test_without_statistics_only_divergences_come_back(backend: str) -> None:
    hidden, head, teacher = small()
    with_all = fused_divergence(hidden, head, [Term(teacher)])
    outcome = fused_divergence(hidden, head, [Term(teacher)], stats=False)
    assert outcome.stats[0].agreement_N is None
    assert outcome.stats[0].student_entropy_N is None
    torch.testing.assert_close(outcome.stats[0].divergence_N, with_all.stats[0].divergence_N)
    assert torch.equal(outcome.loss_sum, with_all.loss_sum)


def test_evaluation_computes_the_same_without_a_graph(backend: str) -> None:
    hidden, head, teacher = small()
    trained = fused_divergence(hidden, head, [Term(teacher, "jsd")])
    with torch.no_grad():
        outcome = fused_divergence(hidden, head, [Term(teacher, "jsd")])
    assert not outcome.loss_sum.requires_grad
    torch.testing.assert_close(outcome.loss_sum, trained.loss_sum.detach())


def test_terms_add_up_and_share_weights(backend: str) -> None:
    """One call with two terms is two calls with one, weights included."""
    hidden, head, teacher = small()
    labels = Labels(torch.tensor([1, 2, 3, 4, 0, 10]))
    terms = [Term(teacher, "reverse_kl", 2.0, weight=0.25), Term(labels, weight=3.0)]
    both = fused_divergence(hidden, head, terms)
    both_grads = torch.autograd.grad(both.loss_sum, (hidden, head))
    alone = [fused_divergence(hidden, head, [term]) for term in terms]
    grads = [torch.autograd.grad(one.loss_sum, (hidden, head)) for one in alone]
    torch.testing.assert_close(both.loss_sum, alone[0].loss_sum + alone[1].loss_sum)
    torch.testing.assert_close(both.sums[0], alone[0].sums[0])
    for whole, one, other in zip(both_grads, *grads, strict=True):
        torch.testing.assert_close(whole, one + other)


def test_micro_batches_accumulate_to_the_whole(backend: str) -> None:
    hidden, head, teacher = small()
    fused_divergence(hidden, head, [Term(teacher, weight=0.1)]).loss_sum.backward()
    whole = head.grad.clone()
    head.grad = None
    for rows in (slice(0, 2), slice(2, 6)):
        part = Dense(teacher.hidden_NE[rows], teacher.head_VE)
        (2 * fused_divergence(hidden[rows], head, [Term(part, weight=0.05)]).loss_sum).backward()
    torch.testing.assert_close(head.grad, whole)


def test_targets_are_read_and_never_written(backend: str) -> None:
    hidden, head, _ = small()
    logits = torch.randn(6, 11)
    before = logits.clone()
    for divergence in DIVERGENCES.values():
        fused_divergence(hidden, head, [Term(Dense.from_logits(logits), divergence)], softcap=2.0).loss_sum.backward()
    assert torch.equal(logits, before)


def test_a_loss_is_back_propagated_once_and_says_so() -> None:
    hidden, head, teacher = small()
    loss = fused_divergence(hidden, head, [Term(teacher)]).loss_sum
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="back-propagated once"):
        loss.backward()


def test_bfloat16_sums_over_chunks_do_not_lose_precision(backend: str) -> None:
    """Sixty-four chunks of bfloat16: summed in bfloat16 the head's gradient would be off by several percent."""
    torch.manual_seed(0)
    hidden, head = torch.randn(512, 16).bfloat16(), torch.randn(64, 16).bfloat16()
    teacher = Dense.from_logits(torch.randn(512, 64).bfloat16())
    terms = [Term(teacher)]
    _, (_, expected) = reference.gradients(hidden, head, terms)
    head.requires_grad_()
    fused_divergence(hidden, head, terms, chunk_tokens=8, precise=True).loss_sum.backward()
    assert float((head.grad.double() - expected).norm() / expected.norm()) < 5e-3


@pytest.mark.parametrize("chunks", [2, 16, 17])
def test_a_few_bfloat16_chunks_may_be_summed_rounded(chunks: int) -> None:
    """The logits are rounded anyway: the whole gradient, and that of the commonest token, are hardly further off."""
    torch.manual_seed(0)
    hidden = (torch.randn(chunks * 32, 64) + 0.5).bfloat16()
    head = (torch.randn(500, 64) * 0.3).bfloat16()
    labels = torch.where(torch.rand(len(hidden)) < 0.5, 7, torch.randint(0, 500, (len(hidden),)))
    terms = [Term(Labels(labels)), Term(Dense.from_logits(torch.randn(len(hidden), 500).bfloat16()), weight=0.5)]
    _, (_, expected) = reference.gradients(hidden, head, terms)
    errors = []
    for precise in (False, True):  # which sums in float32
        own = head.clone().requires_grad_()
        fused_divergence(hidden, own, terms, chunk_tokens=32, precise=precise).loss_sum.backward()
        assert own.grad is not None
        off = own.grad.double() - expected
        errors.append((float(off.norm() / expected.norm()), float(off[7].norm() / expected[7].norm())))
    assert errors[0][0] < errors[1][0] + 1e-2
    assert errors[0][1] < errors[1][1] + 1e-2


def test_a_gradient_is_rounded_into_new_memory_and_touches_no_other() -> None:
    """A dimension of one element may have any stride: memory is given back by what is there, not by strides."""
    around = torch.randn(1000, 20_000)
    odd = torch.as_strided(around, (1, 20_000), (10**7, 1))
    before, beyond = odd.clone(), around[1:].clone()
    assert torch.equal(memory.converted(odd, torch.bfloat16), before.bfloat16())
    assert torch.equal(around[1:], beyond)
    whole = torch.randn(40_000, 520)
    before = whole.clone()
    assert torch.equal(memory.converted(whole, torch.bfloat16), before.bfloat16())
    assert memory.converted(torch.empty(3, 0), torch.bfloat16).shape == (3, 0)


def test_the_last_position_of_a_row_under_autocast() -> None:
    states = torch.randn(1, 4096, 512, requires_grad=True)
    beside = torch.randn(1, 4096, 512)
    before, head = beside.clone(), torch.randn(50, 512, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = fused_divergence(states[:, -1], head, [Term(Labels(torch.tensor([3])))]).loss_sum
    loss.backward()
    assert torch.equal(beside, before)
    expected = torch.autograd.grad(torch.nn.functional.cross_entropy(states[:, -1] @ head.T, torch.tensor([3])), head)
    torch.testing.assert_close(head.grad, expected[0], rtol=0.05, atol=0.05 * float(expected[0].abs().max()))


def test_float16_gradients_survive_a_small_weight() -> None:
    """A loss scaler's factor arrives in backward: the weight must not have pushed them to zero before."""
    torch.manual_seed(0)
    hidden, head, teacher = torch.randn(64, 32), torch.randn(5000, 32), Dense.from_logits(torch.randn(64, 5000))
    found = []
    for dtype in (torch.float32, torch.float16):
        h, w = (x.to(dtype, copy=True).requires_grad_() for x in (hidden, head))
        (fused_divergence(h, w, [Term(teacher, weight=1e-5)]).loss_sum * 4096).backward()
        assert h.grad is not None
        assert w.grad is not None
        found.append((h.grad.float(), w.grad.float()))
    for exact, half in zip(*found, strict=True):
        assert float((exact - half).norm() / exact.norm()) < 5e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spec", ["forward_kl", "reverse_kl", {"name": "alpha_beta", "alpha": 0.5, "beta": 0.0}])
def test_a_tail_lost_to_rounding_does_not_take_over(spec: str | dict[str, object], dtype: torch.dtype) -> None:
    """Rounded log-probabilities may add up to 1 and more; where they are all there are, there is no tail."""
    torch.manual_seed(0)
    N, V = 64, 5000
    logits, own = torch.randn(N, V) * 3, torch.randn(N, V) * 3
    for K in (64, V):
        logits[:, :64] += 12.0
        top = torch.log_softmax(logits, -1).topk(K)
        rest_N = (1 - top.values.double().exp().sum(-1)).clamp_min(1e-12) if K < V else torch.zeros(N)
        offsets = torch.arange(N + 1) * K
        known = Sparse(offsets, top.indices.flatten(), top.values.flatten(), "top_k_tail", tail_N=rest_N.float())
        rounded = Sparse(offsets, top.indices.flatten(), top.values.flatten().to(dtype), "top_k_tail")
        right, got = (
            fused_divergence(torch.eye(N), own.T.contiguous(), [Term(target, spec)]).stats[0].divergence_N
            for target in (known, rounded)
        )
        # What was rounded away is gone, so not equal; but 10,000 nats, where it counted as nothing.
        assert float(got.max()) < 1.2 * float(right.max())
        assert float(got.mean()) == pytest.approx(float(right.mean()), rel=0.4)


# ---- what is refused ----------------------------------------------------------------------------------------


def test_names_settings_and_ranges_are_checked() -> None:
    assert resolve("forward_kl") == ForwardKL()
    assert resolve({"name": "jsd", "beta": 0.25}) == JSD(0.25)
    assert resolve(JSD(0.1)) == JSD(0.1)
    for spec, message in [
        ("kl", "unknown divergence 'kl'"),
        ({"beta": 0.5}, "unknown divergence None"),
        ({"name": "jsd", "alpha": 0.5}, "jsd has no setting 'alpha'; it takes beta"),
        ({"name": "tvd", "beta": 1}, "takes no settings"),
        ({"name": "jsd", "beta": 1.5}, "beta must be in"),
        ({"name": "skew_kl", "alpha": 1.0}, "alpha must be in"),
        ({"name": "alpha_beta", "alpha": 0, "beta": 0}, "must not both be 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            resolve(spec)


def test_a_divergence_can_be_called_on_whole_distributions() -> None:
    """Plainly, with autograd, on [N, V]: for evaluation and for other people's code."""
    torch.manual_seed(0)
    logp, logq = torch.log_softmax(torch.randn(2, 4, 9), -1).double()
    for spec in DIVERGENCES.values():
        kind = resolve(spec)
        torch.testing.assert_close(kind(logp, logq), reference.divergence(kind, logp, logq))


def call(**changes):
    hidden, head, teacher = small()
    settings = {"hidden": hidden, "head": head, "terms": [Term(teacher)], **changes}
    return fused_divergence(settings.pop("hidden"), settings.pop("head"), settings.pop("terms"), **settings)


TWICE = Sparse(torch.arange(7) * 2, torch.arange(12) % 2, -torch.ones(12) / 9, "top_k_tail")
K1 = Sparse(torch.arange(7), torch.arange(6), torch.full((6,), -0.5), "top_k_tail")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: call(terms=[]), "at least one term"),
        (lambda: call(hidden=torch.randn(2, 3, 5)), "flatten batch and time"),
        (lambda: call(head=torch.randn(11, 4)), "do not fit"),
        (lambda: call(hidden=torch.randn(6, 5).double()), "share a floating dtype"),
        (lambda: call(head=torch.randn(12, 5)), "vocab_size="),
        (lambda: call(vocab_size=12), "vocab_size must be in"),
        (lambda: call(softcap=-1.0), "soft cap"),
        (lambda: call(bias_V=torch.zeros(10)), "bias must be"),
        (lambda: call(chunk_tokens=0), "chunk_tokens"),
        (lambda: call(hidden=torch.randn(5, 5)), "has 6 positions"),
        (lambda: call(terms=[Term(small()[2], temperature=0.0, name="soft")]), "term 'soft': temperature"),
        (lambda: call(terms=[Term(small()[2], weight_N=torch.ones(5))]), "weight_N must be"),
        (lambda: call(terms=[Term(Labels(torch.full((6,), 11)))]), r"must be in \[0, 11\)"),
        (lambda: call(terms=[Term(Labels(torch.ones(6, dtype=torch.int64)), "jsd")]), "not by jsd"),
        (lambda: call(terms=[Term(K1, temperature=2.0)]), "taken at temperature 1"),
        (lambda: call(terms=[small()[2]]), "a Dense in it"),
        (lambda: call(terms=(t for t in ())), "at least one term"),
        (lambda: call(head=torch.nn.Linear(5, 11)), "take its .weight"),
        (lambda: call(vocab_size=8.0), "whole number"),
        (lambda: call(chunk_tokens=2.5), "whole number"),
        (lambda: call(scale=float("nan")), "scale must be"),
        (lambda: Term(torch.ones(3)), "Labels, Dense or Sparse"),
        (lambda: Term(small()[2], weight=torch.ones(6)), "weights of positions are weight_N"),
        (lambda: Term(small()[2], weight=float("nan")), "weight must be a finite number"),
        (lambda: Term(small()[2], weight="1"), "weight must be a finite number"),
        (lambda: Term(small()[2], temperature=float("inf")), "temperature must be a finite number"),
        (lambda: Term(small()[2], weight_N=[1.0] * 6), "weight_N must be a tensor"),
        (lambda: call(terms=[Term(small()[2], None)]), "a divergence is a name"),
        (lambda: call(terms=[Term(small()[2], JSD)]), "a divergence is a name"),
        (lambda: Labels([1, 2]), "a tensor of token ids"),
        (lambda: Sparse(torch.arange(4), torch.arange(3), torch.ones(3), "top_k_tail"), "log_softmax"),
        (
            lambda: Sparse(torch.arange(4), torch.arange(3), torch.zeros(3), "top_k_tail", tail_N=-torch.ones(3)),
            "not be below 0",
        ),
        (lambda: call(terms=[Term(TWICE)]), "add up to"),
        (lambda: Labels(torch.ones(3, dtype=torch.int32)), "int64"),
        (lambda: Dense(torch.ones(2, 3), None), "from_logits"),
        (lambda: Dense(torch.ones(2, 3), torch.ones(4, 2)), "do not fit"),
        (lambda: Dense(torch.ones(2, 3), torch.ones(4, 3).half()), "share a floating dtype"),
        (lambda: Sparse(torch.arange(3), torch.arange(3), torch.zeros(3), "top_k_tail"), "rise from 0"),
        (lambda: Sparse(torch.tensor([0, 2, 1, 3]), torch.arange(3), torch.zeros(3), "top_k_tail"), "fall"),
        (lambda: Sparse(torch.arange(4), torch.arange(3), torch.zeros(2), "top_k_tail"), "equally long"),
        (lambda: Sparse(torch.arange(4), torch.arange(3), torch.zeros(3), "top_p"), "unknown scheme"),
        (
            lambda: call(terms=[Term(Sparse(K1.offsets, K1.ids, K1.logprobs, "threshold_sampling"), "jsd")]),
            "its threshold",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_reason(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# ---- the kernel's building ----------------------------------------------------------------------------------


def test_without_a_compiler_it_says_so_once_and_computes_the_same(tmp_path: Path) -> None:
    """In a process of its own: an empty PATH has no compiler, and the cache is empty."""
    program = """
import sys, warnings, torch
from limbeck.objectives import Dense, Term, fused_divergence
torch.manual_seed(0)
hidden = torch.randn(4, 3, requires_grad=True)
terms = [Term(Dense.from_logits(torch.randn(4, 9)))]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    head = torch.randn(9, 3)
    losses = [fused_divergence(hidden, head, terms).loss_sum.item() for _ in range(2)]
print(len([w for w in caught if "C++ kernel" in str(w.message)]), losses[0] == losses[1] > 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={"PATH": "", "LIMBECK_CACHE": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
        check=True,
    )
    assert done.stdout.split() == ["1", "True"]


def test_a_failed_build_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "FLAGS", ("--no-such-flag",))
    with pytest.raises(build.CannotBuildError, match=r"no-such-flag|failed"):
        build.compile_to(tmp_path / "rows.so", build.find_compiler())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_processes_may_race_to_build(tmp_path: Path) -> None:
    """Two at once on an empty cache: both get a kernel, one file remains."""
    program = "from limbeck.objectives.kernels import build; assert build.library() is not None"
    environment = {"LIMBECK_CACHE": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    racers = [subprocess.Popen([sys.executable, "-c", program], env=os.environ | environment) for _ in range(2)]
    assert [racer.wait() for racer in racers] == [0, 0]
    assert len(list((tmp_path / "kernels").iterdir())) == 1


def test_importing_the_objective_imports_nothing_heavy() -> None:
    """torch, and none of ours or transformers; no compiler is started."""
    program = """
import sys, limbeck.objectives
names = ("transformers", "triton", "pydantic", "datasets", "torch.utils.cpp_extension", "torch._dynamo")
heavy = [m for m in names if m in sys.modules]
ours = [m for m in sys.modules if m.startswith("limbeck.") and not m.startswith("limbeck.objectives")]
print(heavy, ours)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's peak of resident memory")
@pytest.mark.parametrize(("kernel", "most_mb"), [("0", 230), ("1", 90)])
def test_nobody_holds_all_the_logits(kernel: str, most_mb: float) -> None:
    """2,048 positions by 32,768 tokens are 268 MB of logits a side; chunks of 64 positions are 8 MB, of which
    plain torch makes about twenty copies."""
    program = """
import torch
from pathlib import Path
from limbeck.objectives import Dense, Labels, Term, fused_divergence
torch.set_num_threads(1)
def resident(field):
    return next(int(l.split()[1]) / 1e3 for l in Path("/proc/self/status").read_text().splitlines() if field in l)
def call(N, V):
    hidden, head = torch.randn(N, 8, requires_grad=True), torch.randn(V, 8, requires_grad=True)
    terms = [Term(Dense(torch.randn(N, 8), torch.randn(V, 8)), "jsd"), Term(Labels(torch.zeros(N, dtype=torch.int64)))]
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    fused_divergence(hidden, head, terms, chunk_tokens=64).loss_sum.backward()
    return resident("VmHWM") - before
call(64, 128)
print(call(2048, 32768))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"LIMBECK_CPU_KERNEL": kernel, "PYTHONPATH": ":".join(sys.path)},
        check=True,
    )
    assert float(done.stdout) < most_mb, "megabytes beside the inputs"
