"""The Triton backend in Triton's interpreter (no GPU needed), and on a GPU where there is one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import reference
import torch
from problems import DIVERGENCES, TARGETS, make

from limbeck.objectives import Dense, Labels, Sparse, Term, fused_divergence

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton")


def test_the_interpreter_gives_the_numbers_of_plain_torch() -> None:
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(here / "triton_cases.py")],
        capture_output=True,
        text=True,
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(here), *sys.path])},
        check=False,
    )
    if "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip("the interpreter of this Triton does not run with this numpy (3.6 with 2.5)")
    assert done.returncode == 0, done.stderr[-2000:]
    measured = json.loads(done.stdout)
    assert len(measured) > 50
    loose = {"bfloat16": 2e-2, "wide": 2e-4}
    wrong = [(case, error) for case, error in measured if not error <= loose.get(case["condition"], 2e-5)]
    assert not wrong


def test_the_kernels_compile_for_a_gpu_that_is_not_here() -> None:
    """The interpreter accepts more than the compiler does."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "triton_compiles.py")],
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    sizes = json.loads(done.stdout)
    assert len(sizes) == 9
    assert all(size > 1000 for size in sizes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("condition", ["plain", "bfloat16", "softcap", "two_terms", "masked"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_on_a_gpu_value_and_gradients_are_those_of_float64(divergence: str, target: str, condition: str) -> None:
    problem = make(divergence, target, condition)
    value, grads = reference.gradients(problem.hidden, problem.head, problem.terms, problem.bias, **problem.options)
    leaves = [t.detach().cuda().requires_grad_() for t in (problem.hidden, problem.head)]
    bias = None if problem.bias is None else problem.bias.detach().cuda()
    outcome = fused_divergence(
        *leaves, [_cuda(term) for term in problem.terms], bias_V=bias, chunk_tokens=3, **problem.options
    )
    assert outcome.loss_sum.item() == pytest.approx(float(value), rel=2 * problem.tolerance, abs=1e-4)
    outcome.loss_sum.backward()
    for leaf, grad in zip(leaves, grads, strict=False):
        assert (leaf.grad.cpu().double() - grad).norm() <= problem.tolerance * 3 * grad.norm().clamp_min(1e-2)


def _cuda(term: Term) -> Term:
    def moved(value):
        return value.cuda() if isinstance(value, torch.Tensor) else value

    target = term.target
    assert isinstance(target, Dense | Labels | Sparse)
    on_gpu = type(target)(**{name: moved(value) for name, value in vars(target).items()})
    return Term(on_gpu, term.divergence, term.temperature, term.weight, moved(term.weight_N))
