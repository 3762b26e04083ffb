"""Small problems with everything that goes wrong in them, for tests to share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from limbeck.objectives import Dense, Labels, Sparse, Target, Term

DIVERGENCES: dict[str, Any] = {
    "forward_kl": "forward_kl",
    "cross_entropy": "cross_entropy",
    "reverse_kl": "reverse_kl",
    "jsd": {"name": "jsd", "beta": 0.5},
    "jsd_.1": {"name": "jsd", "beta": 0.1},
    "skew_kl": {"name": "skew_kl", "alpha": 0.1},
    "skew_reverse_kl": {"name": "skew_reverse_kl", "alpha": 0.1},
    "alpha_beta": {"name": "alpha_beta", "alpha": 0.2, "beta": 0.7},
    "alpha_beta_.001_.8": {"name": "alpha_beta", "alpha": 0.001, "beta": 0.8},
    "alpha_beta_.6_0": {"name": "alpha_beta", "alpha": 0.6, "beta": 0.0},
    "alpha_beta_0_.5": {"name": "alpha_beta", "alpha": 0.0, "beta": 0.5},
    "tvd": "tvd",
    "entropy_switched": {"name": "entropy_switched", "threshold_nats": 2.0},
}
TARGETS = ("hidden", "logits", "top_k_tail", "threshold_sampling")
CONDITIONS = (
    "plain", "padding", "ignored", "one_entry", "masked", "wide", "bfloat16", "softcap", "bias",
    "frozen_head", "cool", "warm", "two_terms",
)  # fmt: skip


@dataclass
class Problem:
    """What to call ``fused_divergence`` with, and how near to float64 it must come."""

    hidden: Tensor
    head: Tensor
    terms: list[Term]
    bias: Tensor | None = None
    options: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-5
    floor: float = 1e-2

    def leaves(self) -> list[Tensor]:
        return [t for t in (self.hidden, self.head, self.bias) if t is not None and t.requires_grad]


def sparse(scheme: str, logits_NV: Tensor, *, entries: int, temperature: float = 1.0, threshold: float = 0.1) -> Sparse:
    """A sparse target of a teacher with these logits; ragged: the rows differ in length by up to two."""
    logp_NV = torch.log_softmax(logits_NV.double() / temperature, dim=-1)
    ids, logprobs, lengths, tails = [], [], [], []
    for n, logp_V in enumerate(logp_NV):
        keep = max(1, min(len(logp_V), entries - n % 3))
        top = logp_V.topk(keep)
        chosen, kept = top.indices, top.values
        if scheme == "threshold_sampling":
            # Exact where p > threshold; of the rest every second kept one, as if drawn, at the threshold.
            exact = kept.exp() > threshold
            drawn = ~exact & (torch.arange(keep) % 2 == 0)
            kept = torch.where(exact, kept, torch.full_like(kept, threshold).log())
            chosen, kept = chosen[exact | drawn], kept[exact | drawn]
        ids.append(chosen)
        logprobs.append(kept)
        lengths.append(len(chosen))
        tails.append((1 - kept.exp().sum()).clamp_min(0))
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    is_top_k = scheme == "top_k_tail"
    return Sparse(
        offsets,
        torch.cat(ids),
        torch.cat(logprobs).float(),
        scheme,
        tail_N=torch.stack(tails) if is_top_k else None,
        entropy_N=None if is_top_k else -(logp_NV.exp() * logp_NV.clamp_min(-1e4)).sum(-1),
        threshold=None if is_top_k else threshold,
        temperature=temperature,
    )


def make(divergence: str, target: str, condition: str, *, N: int = 7, D: int = 6, E: int = 9, V: int = 19) -> Problem:
    """The problem of that divergence, target and difficulty; seeded, so the same every time."""
    torch.manual_seed(len(divergence) + 10 * len(target) + 100 * CONDITIONS.index(condition))
    dtype = torch.bfloat16 if condition == "bfloat16" else torch.float32
    student_size = teacher_size = 1.5
    if condition == "wide":
        student_size = teacher_size = 30.0
    hidden = (torch.randn(N, D) * student_size / D**0.5).to(dtype)
    head = torch.randn(V, D).to(dtype)
    t_hidden = (torch.randn(N, E) * teacher_size / E**0.5).to(dtype)
    t_head = torch.randn(V, E).to(dtype)
    problem = Problem(hidden.requires_grad_(), head.requires_grad_(condition != "frozen_head"), [])
    temperature = {"cool": 0.5, "warm": 4.0}.get(condition, 1.0)
    t_bias = None
    if condition == "masked":
        # The last two tokens are forbidden on both sides, one more by the teacher alone.
        t_bias = torch.zeros(V)
        t_bias[-3:] = -torch.inf
        problem.bias = torch.zeros(V)
        problem.bias[-2:] = -torch.inf
    if condition == "bias":
        t_bias, problem.bias = torch.randn(V), torch.randn(V).requires_grad_()
    if condition == "softcap":
        problem.options.update(softcap=3.0, scale=1.7)
    rows = V
    if condition == "padding":
        rows = V - 4
        problem.options["vocab_size"] = rows
        t_head = torch.cat([t_head, 100 * torch.ones(2, E, dtype=dtype)])
    t_softcap = 4.0 if condition == "softcap" else None
    made: Target = Dense(t_hidden, t_head, bias_V=t_bias, softcap=t_softcap, scale=0.9)
    logits_NV = 0.9 * (t_hidden.double() @ t_head.double().T)
    if t_bias is not None:
        logits_NV = 0.9 * (t_hidden.double() @ t_head.double().T + t_bias.double())
    if target == "logits":
        made = Dense.from_logits(logits_NV.to(dtype))
    elif target != "hidden":
        made = sparse(
            target, logits_NV[:, :rows], entries=1 if condition == "one_entry" else 6, temperature=temperature
        )
    weight_N = None
    if condition in ("ignored", "two_terms"):
        weight_N = torch.rand(N)
        weight_N[[1, 4]] = 0.0
    problem.terms.append(Term(made, DIVERGENCES[divergence], temperature, weight=0.7, weight_N=weight_N))
    if condition == "two_terms":
        labels = torch.randint(0, V, (N,))
        labels[[2, 4]] = -100
        problem.terms.append(Term(Labels(labels), "cross_entropy", temperature=2.0, weight=0.4))
        problem.terms.append(Term(Labels(labels), weight=0.1))
    if condition == "wide":
        # Logits up to 80 carry a rounding error of 4e-6 in float32, which is relative in a probability;
        # and where a softmax is saturated the gradient is a small difference of large numbers.
        problem.tolerance, problem.floor = 2e-4, 1.0
    if condition == "bfloat16":
        problem.tolerance = 3e-2
    return problem
