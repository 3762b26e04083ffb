"""Run by test_triton.py in a process of its own, with TRITON_INTERPRET=1: prints the worst error of each case.

The Triton backend gets the same chunks as the eager one, on the CPU, and both are compared.
"""

from __future__ import annotations

import dataclasses
import json
import sys

import torch
from problems import DIVERGENCES, make

from limbeck.objectives import chunks, fused_divergence
from limbeck.objectives.kernels import cuda, eager


def outcomes(backend, divergence: str, target: str, condition: str, **options):
    problem = make(divergence, target, condition, **options)
    chunks.choose = lambda *_: backend
    outcome = fused_divergence(
        problem.hidden, problem.head, problem.terms, bias_V=problem.bias, chunk_tokens=3, **problem.options
    )
    outcome.loss_sum.backward()
    grads = [leaf.grad.float() for leaf in problem.leaves()]
    stats = [getattr(term, field.name) for term in outcome.stats for field in dataclasses.fields(term)]
    return [outcome.loss_sum.detach(), *grads, *[s.float() for s in stats if s is not None]]


def error(case: dict) -> float:
    case = dict(case)
    names = [case.pop(key) for key in ("divergence", "target", "condition")]
    pairs = zip(outcomes(cuda.run, *names, **case), outcomes(eager.run, *names, **case), strict=True)
    return max(float((one - other).norm() / other.norm().clamp_min(1e-1)) for one, other in pairs)


def cases() -> list[dict]:
    made = [
        {"divergence": divergence, "target": target, "condition": "bias"}
        for divergence in DIVERGENCES
        for target in ("hidden", "top_k_tail", "threshold_sampling")
    ]
    hard = ("masked", "wide", "bfloat16", "softcap", "ignored", "warm", "two_terms", "one_entry", "padding")
    made += [
        {"divergence": "jsd", "target": target, "condition": condition}
        for condition in hard
        for target in ("hidden", "top_k_tail")
    ]
    # Several blocks a row, the last one broken off.
    made += [
        {"divergence": "forward_kl", "target": t, "condition": "plain", "V": 9001} for t in ("hidden", "top_k_tail")
    ]
    return made


if __name__ == "__main__":
    torch.set_num_threads(1)
    json.dump([[case, error(case)] for case in cases()], sys.stdout)
