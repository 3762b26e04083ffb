"""The head and the divergence in one operation that never holds all the logits.

Positions are taken in chunks: the chunk's logits are made by the head's matmul, compared with the target,
overwritten by their gradient, and multiplied back into the gradients of the hidden states and the head,
before the next chunk is begun. So the gradients are made during the forward pass, and what is held at any
time is the logits of one chunk (of the teacher too).

Shape suffixes: N positions; n positions of a chunk; D width of the learner; V vocabulary (the shared part
of it); W rows of the learner's head, V and padding; m = n + 1; r entries of a chunk.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.objectives.chunks import Job, Totals, run_job
from limbeck.objectives.gradients import fit
from limbeck.objectives.targets import Dense, Labels, Sparse, check_softcap
from limbeck.objectives.terms import Term, prepare

__all__ = ["Outcome", "Term", "TermStats", "fused_divergence"]


@dataclass(frozen=True)
class TermStats:
    """What one term says of each position: detached, [N], zero (False) where the position is left out.

    Args:
        divergence_N: in nats, without any weight.
        cross_entropy_N: ``Labels`` only, the same as ``divergence_N``.
        student_entropy_N: nats, of the student's distribution at the term's temperature.
        teacher_entropy_N: nats, of the teacher's at the term's temperature; not for ``Labels``. Over
            entries and tail bucket for ``Sparse`` without a stored entropy.
        agreement_N: bool, a likeliest token of the teacher (the label) is a likeliest of the student.
    """

    divergence_N: Tensor
    cross_entropy_N: Tensor | None = None
    student_entropy_N: Tensor | None = None
    teacher_entropy_N: Tensor | None = None
    agreement_N: Tensor | None = None


@dataclass(frozen=True)
class Outcome:
    """What :func:`fused_divergence` returns; lists have one item a term, in order.

    Args:
        loss_sum: scalar, float32 (float64 for float64 inputs), attached to the graph:
            ``sum over terms of weight * sum over n of weight_N[n] * D_n``.
        sums: scalars, detached: ``sum over n of weight_N[n] * D_n``, without the term's ``weight``.
        counts: int64 scalars: positions that took part.
        stats: per-position statistics.
    """

    loss_sum: Tensor
    sums: list[Tensor] = field(default_factory=list)
    counts: list[Tensor] = field(default_factory=list)
    stats: list[TermStats] = field(default_factory=list)


def fused_divergence(
    hidden_ND: Tensor,
    head_VD: Tensor,
    terms: Sequence[Term],
    *,
    bias_V: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    precise: bool | None = None,
    stats: bool = True,
) -> Outcome:
    """Divergences of a language model's head from one or more targets, summed, with gradients.

    The learner's logits are ``softcap * tanh(x / softcap)`` of ``x = scale * (hidden @ head.T + bias)``;
    all terms share them. Gradients flow to ``hidden_ND``, ``head_VD`` and ``bias_V``, whichever require
    them, and what needs none costs nothing (a frozen head skips its matmul). With grad disabled only
    values and statistics are computed. The result may be part of a larger graph but can be
    back-propagated once: its gradients are made here and handed over.

    Args:
        hidden_ND: floating [N, D], the last hidden states, after the final norm.
        head_VD: [W, D], the head (``lm_head.weight``), of the same dtype. Under ``torch.autocast`` both
            are taken in its dtype, teachers' too, and their gradients come in their own.
        terms: what to learn; at least one.
        bias_V: [W], the head's bias.
        softcap: soft cap of the logits (Gemma 2).
        scale: factor of the logits (Cohere's ``logit_scale``; one over Granite's ``logits_scaling``).
        vocab_size: how many rows the vocabulary really has. Rows beyond it, in either head, are padding
            and take no part. Needed where two heads have different numbers of rows.
        chunk_tokens: positions per chunk; chosen from the shapes if left out.
        precise: for 16-bit inputs, keep the logits in float32 instead of rounding them to 16 bits.
        stats: whether to compute entropies and agreement.

    Returns:
        An :class:`Outcome`. If no position takes part its loss is a zero that is attached to the graph.

    Raises:
        ValueError: where shapes, dtypes, vocabularies or settings do not fit; the message says which.
    """
    call = _eager() if "torch._dynamo" in sys.modules else _fused_divergence
    return call(
        hidden_ND,
        head_VD,
        terms,
        bias_V=bias_V,
        softcap=softcap,
        scale=scale,
        vocab_size=vocab_size,
        chunk_tokens=chunk_tokens,
        precise=precise,
        stats=stats,
    )


@functools.cache
def _eager() -> Callable[..., Outcome]:
    """The operation, kept out of torch.compile's graphs: made late, for the decorator imports the compiler."""
    return torch.compiler.disable(_fused_divergence)


def _fused_divergence(
    hidden_ND: Tensor,
    head_VD: Tensor,
    terms: Sequence[Term],
    *,
    bias_V: Tensor | None,
    softcap: float | None,
    scale: float,
    vocab_size: int | None,
    chunk_tokens: int | None,
    precise: bool | None,
    stats: bool,
) -> Outcome:
    terms = [terms] if isinstance(terms, Term) else list(terms)
    if not terms:
        raise ValueError("fused_divergence needs at least one term")
    for term in terms:
        if not isinstance(term, Term):
            raise ValueError(f"terms must be a list of Term(target, ...), got a {type(term).__name__} in it")
    for name, tensor in (("hidden_ND", hidden_ND), ("head_VD", head_VD)):
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} must be a tensor, got a {type(tensor).__name__}; of a module take its .weight")
    for name, number in (("vocab_size", vocab_size), ("chunk_tokens", chunk_tokens)):
        if number is not None and not isinstance(number, int):
            raise ValueError(f"{name} must be a whole number (an int), got {number!r}")
    if not math.isfinite(scale):
        raise ValueError(f"scale must be a finite number, got {scale}")
    if hidden_ND.ndim != 2 or head_VD.ndim != 2 or hidden_ND.shape[1] != head_VD.shape[1]:
        raise ValueError(
            f"hidden states [N, D] and head [V, D] do not fit: {list(hidden_ND.shape)} and "
            f"{list(head_VD.shape)}; flatten batch and time first"
        )
    if hasattr(head_VD, "full_tensor"):
        raise ValueError(
            "the head is a sharded DTensor: leave it unsharded (fully_shard with reshard_after_forward=False "
            "on the module that owns it), and call this inside that module's forward"
        )
    check_softcap(softcap)
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    vocab_size = _vocab_size(head_VD, terms, vocab_size)
    matmul_dtype = _matmul_dtype(hidden_ND, head_VD)
    compute = torch.promote_types(matmul_dtype, torch.float32)
    if torch.is_autocast_enabled(hidden_ND.device.type):
        # A teacher in float32 would be multiplied so: four times the time on a CPU, more on a GPU.
        terms = [
            replace(term, target=term.target.multiplied_in(matmul_dtype)) if isinstance(term.target, Dense) else term
            for term in terms
        ]
    if bias_V is not None and bias_V.shape != (len(head_VD),):
        raise ValueError(f"the head's bias must be [V={len(head_VD)}], got {list(bias_V.shape)}")
    job = Job(
        hidden_ND=hidden_ND.detach().to(matmul_dtype),
        head_VD=head_VD.detach()[:vocab_size].to(matmul_dtype),
        head_dtype=head_VD.dtype,
        bias_V=None if bias_V is None else bias_V.detach()[:vocab_size],
        terms=[prepare(term, len(hidden_ND), vocab_size, compute) for term in terms],
        softcap=softcap,
        scale=scale,
        chunk_tokens=chunk_tokens,
        precise=bool(precise),
        statistics=stats,
    )
    # Made here and not in the function's forward, where grad mode is always off.
    enabled = torch.is_grad_enabled()
    box: list[Totals] = []
    with torch.autocast(hidden_ND.device.type, enabled=False):
        loss_sum = _Fused.apply(hidden_ND, head_VD, bias_V, job, enabled, box)
    totals = box[0]
    return Outcome(
        loss_sum=loss_sum,
        sums=totals.sums,
        counts=totals.counts,
        stats=[
            TermStats(
                divergence_N=result.divergence_n,
                cross_entropy_N=result.divergence_n if isinstance(term.target, Labels) else None,
                student_entropy_N=result.student_entropy_n,
                teacher_entropy_N=None if isinstance(term.target, Labels) else result.teacher_entropy_n,
                agreement_N=result.agreement_n,
            )
            for term, result in zip(terms, totals.results, strict=True)
        ],
    )


class _Fused(torch.autograd.Function):
    """Makes the gradients in forward and hands them over in backward, scaled by what arrives there."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        head_WD: Tensor,
        bias_W: Tensor | None,
        job: Job,
        enabled: bool,
        box: list[Totals],
    ) -> Tensor:
        hidden, head, bias = (enabled and needed for needed in ctx.needs_input_grad[:3])
        totals = run_job(job, hidden=hidden, head=head, bias=bias)
        box.append(totals)
        made = totals.gradients
        ctx.grads = [
            None if grad is None or like is None else fit(grad, like)
            for grad, like in (
                (made.hidden_ND, hidden_ND),
                (made.head.take() if made.head is not None else None, head_WD),
                (made.bias_V, bias_W),
            )
        ]
        # Only backward needs them; whoever keeps the outcome must not keep the gradients alive.
        del totals.gradients
        ctx.unit = totals.unit
        return totals.loss_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError(
                "the loss of fused_divergence can be back-propagated once: its gradients were made in the "
                "forward pass and have been handed over; call fused_divergence again"
            )
        # Handed over, not kept, so that autograd can put them into .grad without a copy.
        grads, ctx.grads = ctx.grads, None
        if ctx.unit != 1.0 or grad_output.device.type != "cpu" or float(grad_output) != 1.0:
            for grad in grads:
                if grad is not None:
                    grad.mul_(grad_output * ctx.unit)
        return (*grads, None, None, None)


def shared_vocabulary(vocab_size: int, terms: Sequence[Term]) -> int:
    """The tokens that a learner of ``vocab_size`` shares with its teachers: a tokenizer may have more tokens than a
    teacher has rows."""
    known = (term.target.vocab_size for term in terms if isinstance(term.target, Dense | Sparse))
    return min([vocab_size, *(size for size in known if size is not None)])


def _vocab_size(head_WD: Tensor, terms: Sequence[Term], vocab_size: int | None) -> int:
    rows = [len(head_WD)] + [term.target.vocab_size for term in terms if isinstance(term.target, Dense)]
    if vocab_size is None:
        if len(set(rows)) > 1:
            raise ValueError(
                f"the heads have {', '.join(map(str, rows))} rows; if the rest is padding, say how many "
                "tokens both vocabularies really have: vocab_size=..."
            )
        return rows[0]
    if not 0 < vocab_size <= min(rows):
        raise ValueError(f"vocab_size must be in [1, {min(rows)}], the rows of the smallest head, got {vocab_size}")
    return vocab_size


def _matmul_dtype(hidden_ND: Tensor, head_WD: Tensor) -> torch.dtype:
    """The dtype of the matmuls: autocast's where it is on, as for any other linear layer."""
    device = hidden_ND.device.type
    if torch.is_autocast_enabled(device) and hidden_ND.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    if hidden_ND.dtype != head_WD.dtype or not hidden_ND.is_floating_point():
        raise ValueError(
            f"hidden states and head must share a floating dtype, got {hidden_ND.dtype} and {head_WD.dtype}; "
            "cast one, or use torch.autocast"
        )
    return hidden_ND.dtype
