"""The objective again, the slow and obvious way, in float64 with autograd: what the fast one is held to.

Written from the papers' equations on whole probability vectors and sharing no code with
``limbeck.objectives``: only its data classes are read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.objectives import Dense, Divergence, Labels, Term, resolve

ZERO = -1e4
"""What the logarithm of nothing counts as, by the objective's contract."""


def log_softmax(logits_NV: Tensor) -> Tensor:
    return torch.log_softmax(logits_NV, dim=-1).clamp_min(ZERO)


def kl(logp: Tensor, logq: Tensor) -> Tensor:
    return (logp.exp() * (logp - logq)).sum(-1)


def mixture(logp: Tensor, logq: Tensor, share: float) -> Tensor:
    if share == 0.0:
        return logq
    return torch.logaddexp(logp + math.log(share), logq + math.log1p(-share))


def divergence(kind: Divergence, logp: Tensor, logq: Tensor, entropy_N: Tensor | None = None) -> Tensor:
    """[N] from log-probabilities [N, V], by the textbook formula of each."""
    p, q = logp.exp(), logq.exp()
    match kind.name:
        case "forward_kl":
            return kl(logp, logq)
        case "cross_entropy":
            return -(p * logq).sum(-1)
        case "reverse_kl":
            return kl(logq, logp)
        case "jsd":
            if kind.beta in (0.0, 1.0):
                return kl(logp, logq) if kind.beta == 0.0 else kl(logq, logp)
            m = mixture(logp, logq, kind.beta)
            return kind.beta * kl(logp, m) + (1 - kind.beta) * kl(logq, m)
        case "skew_kl":
            return kl(logp, mixture(logp, logq, kind.alpha))
        case "skew_reverse_kl":
            return kl(logq, mixture(logq, logp, kind.alpha))
        case "tvd":
            return 0.5 * (p - q).abs().sum(-1)
        case "alpha_beta":
            a, b = kind.alpha, kind.beta
            if b == 0:
                return ((p**a) * a * (logp - logq) - p**a + (a * logq).exp()).sum(-1) / a**2
            if a == 0:
                return ((q**b) * b * (logq - logp) - q**b + p**b).sum(-1) / b**2
            cross = (a * logp + b * logq).exp()
            s = a + b
            return -(cross - a / s * (s * logp).exp() - b / s * (s * logq).exp()).sum(-1) / (a * b)
        case "entropy_switched":
            entropy_N = -(p * logp).sum(-1) if entropy_N is None else entropy_N
            return torch.where(entropy_N > kind.threshold_nats, kl(logp, logq), kl(logq, logp))
    raise AssertionError(kind)


def logits(
    hidden: Tensor, head: Tensor, bias: Tensor | None, softcap: float | None, scale: float, vocab: int
) -> Tensor:
    out = hidden @ head[:vocab].T
    if bias is not None:
        out = out + bias[:vocab]
    out = out * scale
    return out if softcap is None else softcap * torch.tanh(out / softcap)


def term_divergence(term: Term, student_NV: Tensor) -> Tensor:
    """[N] float64; positions that take no part may hold anything."""
    kind, target, vocab = resolve(term.divergence), term.target, student_NV.shape[1]
    logq = log_softmax(student_NV / term.temperature)
    if isinstance(target, Labels):
        return -logq.gather(1, target.ids_N.clamp_min(0).unsqueeze(1)).squeeze(1)
    if isinstance(target, Dense):
        if target.logits_NV is not None:
            teacher = target.logits_NV.double()[:, :vocab]
        else:
            bias = None if target.bias_V is None else target.bias_V.double()
            teacher = logits(
                target.hidden_NE.double(), target.head_VE.double(), bias, target.softcap, target.scale, vocab
            )
        return divergence(kind, log_softmax(teacher / term.temperature), logq)
    return torch.stack([_sparse_row(kind, target, logq[n], n) for n in range(len(target))])


def _sparse_row(kind, target, logq_V: Tensor, n: int) -> Tensor:
    begin, end = int(target.offsets[n]), int(target.offsets[n + 1])
    ids, logp = target.ids[begin:end].long(), target.logprobs[begin:end].double()
    entropy = None if target.entropy_N is None else target.entropy_N[n : n + 1].double()
    drawn = target.scheme == "threshold_sampling"
    if drawn and kind.name in ("forward_kl", "cross_entropy"):
        cross = -(logp.exp() * logq_V[ids]).sum()
        if kind.name == "cross_entropy":
            return cross
        return cross - (-(logp.exp() * logp).sum() if entropy is None else entropy[0])
    if drawn:
        exact = logp > math.log(target.threshold * 1.01)
        ids, logp = ids[exact], logp[exact]
    mass = 1 - logp.exp().sum()
    if target.tail_N is not None and not drawn:
        mass = target.tail_N[n].double()
    outside = torch.ones_like(logq_V, dtype=torch.bool)
    outside[ids] = False
    tail_q = logq_V[outside].logsumexp(-1) if outside.any() else logq_V.new_tensor(ZERO)
    tail_p = mass.clamp_min(0).log().clamp_min(ZERO)
    merged_p = torch.cat([logp.clamp_min(ZERO), tail_p[None]])
    merged_q = torch.cat([logq_V[ids], tail_q[None].clamp_min(ZERO)])
    return divergence(kind, merged_p[None], merged_q[None], entropy)[0]


def loss(
    hidden: Tensor, head: Tensor, terms: Sequence[Term], *, bias: Tensor | None = None,
    softcap: float | None = None, scale: float = 1.0, vocab_size: int | None = None,
) -> Tensor:  # fmt: skip
    """The loss in float64, differentiable by whatever is a leaf."""
    vocab = len(head) if vocab_size is None else vocab_size
    bias = None if bias is None else bias.double()
    student_NV = logits(hidden.double(), head.double(), bias, softcap, scale, vocab)
    total = student_NV.new_zeros(())
    for term in terms:
        weight = torch.ones(len(hidden), dtype=torch.float64)
        if term.weight_N is not None:
            weight = term.weight_N.double()
        if isinstance(term.target, Labels):
            weight = weight.masked_fill(term.target.ids_N == -100, 0.0)
        each = term_divergence(term, student_NV)
        total = total + term.weight * (weight * each)[weight != 0].sum()
    return total


def gradients(hidden: Tensor, head: Tensor, terms, bias: Tensor | None = None, **kw):
    """Loss and gradients of hidden, head (and bias), all float64."""
    leaves = [t.detach().double().requires_grad_() for t in (hidden, head, bias) if t is not None]
    value = loss(leaves[0], leaves[1], terms, bias=leaves[2] if bias is not None else None, **kw)
    return value.detach(), torch.autograd.grad(value, leaves)
