"""What a learner is compared with: labels, whole distributions, or a few stored probabilities.

Everything here is already shifted: row ``n`` of a target belongs to row ``n`` of the learner's
hidden states.

Shape suffixes: N positions; V vocabulary; E width of the teacher's hidden states; R entries of all
positions together (ragged); M = N + 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

IGNORED = -100

Scheme = Literal["top_k_tail", "threshold_sampling"]


@dataclass(frozen=True)
class Labels:
    """One token a position: the text itself. Compared by cross-entropy.

    Args:
        ids_N: int64 token ids; ``-100`` marks a position that does not count.
    """

    ids_N: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.ids_N, Tensor):
            raise ValueError(f"Labels need a tensor of token ids, got a {type(self.ids_N).__name__}")
        if self.ids_N.ndim != 1 or self.ids_N.dtype != torch.int64:
            raise ValueError(
                f"Labels need a one-dimensional int64 tensor, got {_describe(self.ids_N)}; "
                "flatten batch and time, shift before, and make them .long()"
            )

    def __len__(self) -> int:
        return self.ids_N.shape[0]


@dataclass(frozen=True)
class Restriction:
    """How a smaller vocabulary lies in the teacher's: its tokens, and one bucket for all the others.

    Args:
        kept_K: int64, teacher ids of the smaller vocabulary's first K tokens, in its order.
        of_size: tokens of the teacher's vocabulary; further rows of its head are padding.
        tail: the smaller vocabulary has one more token, which stands for all that were left out. Its
            probability is theirs together, so nothing of the distribution is lost. Without it, the
            distribution is the teacher's given that the token is a kept one.
    """

    kept_K: Tensor
    of_size: int
    tail: bool

    @property
    def size(self) -> int:
        """Tokens of the smaller vocabulary."""
        return len(self.kept_K) + self.tail

    def apply(self, logits_nV: Tensor) -> Tensor:
        """The teacher's final logits [n, >= of_size] over the smaller vocabulary [n, size].

        The bucket's logit is the log of the dropped tokens' summed exponentials. At a temperature
        other than 1 the bucket is softened as one outcome.
        """
        kept_K = self.kept_K.to(logits_nV.device)
        kept_nK = logits_nV.index_select(1, kept_K)
        if not self.tail:
            return kept_nK
        rest_nV = logits_nV[:, : self.of_size].index_fill(1, kept_K, float("-inf"))
        return torch.cat([kept_nK, rest_nV.logsumexp(1, keepdim=True)], 1)


@dataclass(frozen=True)
class Dense:
    """The teacher's whole distribution, as its last hidden states and its head, or as logits.

    Logits are ``softcap * tanh(x / softcap)`` of ``x = scale * (hidden @ head.T + bias)``, or ``x``
    itself without a soft cap. They are made chunk by chunk and never receive a gradient.

    Args:
        hidden_NE: floating; what the teacher feeds its head, of any width E.
        head_VE: floating, of the same dtype; rows beyond the shared vocabulary are cropped.
        bias_V: added by the teacher's head, if it has a bias.
        softcap: the teacher's soft cap (Gemma 2), in logits.
        scale: the teacher's logit scale (Cohere; 1/``logits_scaling`` for Granite).
        logits_NV: the logits themselves, final, instead of hidden states and head
            (see :meth:`from_logits`).
        restriction: the learner's vocabulary is a part of the teacher's; None: it is the same.
    """

    hidden_NE: Tensor | None
    head_VE: Tensor | None
    bias_V: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0
    logits_NV: Tensor | None = None
    restriction: Restriction | None = None

    def __post_init__(self) -> None:
        if self.logits_NV is not None:
            if self.hidden_NE is not None or self.head_VE is not None or self.bias_V is not None:
                raise ValueError("Dense takes hidden states and a head, or logits, not both")
            if self.logits_NV.ndim != 2 or not self.logits_NV.is_floating_point():
                raise ValueError(f"logits must be floating [N, V], got {_describe(self.logits_NV)}")
            return
        hidden, head = self.hidden_NE, self.head_VE
        if hidden is None or head is None:
            raise ValueError("Dense needs hidden states and a head, or Dense.from_logits(logits)")
        if hidden.ndim != 2 or head.ndim != 2 or hidden.shape[1] != head.shape[1]:
            raise ValueError(
                "the teacher's hidden states [N, E] and head [V, E] do not fit: "
                f"{_describe(hidden)} and {_describe(head)}"
            )
        if hidden.dtype != head.dtype or not hidden.is_floating_point():
            raise ValueError(
                "the teacher's hidden states and head must share a floating dtype, got "
                f"{hidden.dtype} and {head.dtype}; cast one"
            )
        if self.bias_V is not None and self.bias_V.shape != (head.shape[0],):
            raise ValueError(f"the teacher's bias must be [V={head.shape[0]}], got {_describe(self.bias_V)}")
        check_softcap(self.softcap)

    @classmethod
    def from_logits(cls, logits_NV: Tensor) -> Dense:
        """The teacher's final logits, where they are already in hand. They are read, never written."""
        return cls(hidden_NE=None, head_VE=None, logits_NV=logits_NV)

    def multiplied_in(self, dtype: torch.dtype) -> Dense:
        """The same with hidden states and head in ``dtype``; finished logits and float64 stay as they are."""
        if self.hidden_NE is None or self.head_VE is None or self.hidden_NE.dtype in (dtype, torch.float64):
            return self
        return replace(self, hidden_NE=self.hidden_NE.detach().to(dtype), head_VE=self.head_VE.detach().to(dtype))

    def __len__(self) -> int:
        source = self.logits_NV if self.logits_NV is not None else self.hidden_NE
        assert source is not None
        return source.shape[0]

    @property
    def vocab_size(self) -> int:
        """Rows of the teacher's head, padding included; of a restricted one, of what is left."""
        if self.restriction is not None:
            return self.restriction.size
        if self.logits_NV is not None:
            return self.logits_NV.shape[1]
        assert self.head_VE is not None
        return self.head_VE.shape[0]


@dataclass(frozen=True)
class Sparse:
    """A few probabilities a position; ``scheme`` says what the rest of the mass is.

    Position ``n`` owns the entries ``offsets[n] .. offsets[n + 1]`` of ``ids`` and ``logprobs``. An id
    occurs at most once at a position (a token drawn twice has twice the weight); it is not checked.

    ``top_k_tail``: the entries are exact, and everything else is one bucket, which takes part in the
    divergence with the probability that is left. It is the exact divergence between the two
    distributions after merging the tail: for an f-divergence a lower bound on the whole (data
    processing), zero where teacher and student agree, and never renormalised, so ``K = 1`` teaches too.

    ``threshold_sampling``: ``p >= threshold`` is exact and the rest was drawn so that the entries as
    they stand are an unbiased estimate of the distribution (arXiv 2503.16870, with systematic sampling);
    what is missing is zero *in this draw*. The gradient of forward KL and cross-entropy, linear in p, is
    unbiased. Every other divergence is not linear in p, so no plug-in of a draw is right for it: there
    the drawn entries are left out, and the exact ones are used as in ``top_k_tail``.

    Args:
        offsets: int64 [N + 1], rising from 0 to R.
        ids: integer [R], token ids.
        logprobs: floating [R], natural logarithms of probabilities (of weights, where drawn).
        scheme: what the missing mass means, above.
        tail_N: probability mass outside the entries (``top_k_tail``); left out, it is what is missing
            from 1, but no less than rounding ``logprobs`` could have taken.
        entropy_N: the teacher's entropy in nats, if it was stored. With ``threshold_sampling`` it makes
            the value of forward KL an unbiased estimate too.
        threshold: the sampling threshold, a probability; ``threshold_sampling`` needs it for every
            divergence but forward KL and cross-entropy.
        temperature: the one at which ``logprobs`` were taken. It cannot be changed afterwards, so a
            term of another temperature is refused.
        vocab_size: tokens of the teacher's vocabulary, where the learner's may have more; None: it has no more.
    """

    offsets: Tensor
    ids: Tensor
    logprobs: Tensor
    scheme: Scheme
    tail_N: Tensor | None = None
    entropy_N: Tensor | None = None
    threshold: float | None = None
    temperature: float = 1.0
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        if self.scheme not in get_args(Scheme):
            raise ValueError(f"unknown scheme {self.scheme!r}; one of {', '.join(get_args(Scheme))}")
        if self.offsets.ndim != 1 or self.offsets.dtype != torch.int64 or len(self.offsets) < 1:
            raise ValueError(f"offsets must be int64 [N + 1], got {_describe(self.offsets)}")
        if self.ids.ndim != 1 or self.ids.is_floating_point() or self.ids.shape != self.logprobs.shape:
            raise ValueError(
                "ids (integer) and logprobs must be one-dimensional and equally long, got "
                f"{_describe(self.ids)} and {_describe(self.logprobs)}"
            )
        if not self.logprobs.is_floating_point():
            raise ValueError(f"logprobs must be floating, got {self.logprobs.dtype}")
        for name, value in (("tail_N", self.tail_N), ("entropy_N", self.entropy_N)):
            if value is not None and value.shape != (len(self),):
                raise ValueError(f"{name} must be [N={len(self)}], got {_describe(value)}")
        if self.tail_N is not None and self.tail_N.device.type == "cpu" and bool((self.tail_N < 0).any()):
            raise ValueError("tail_N is a probability and must not be below 0")
        probabilities = self.scheme == "top_k_tail" and self.logprobs.device.type == "cpu"
        if probabilities and bool((self.logprobs > 0).any()):
            raise ValueError("logprobs above 0 are no logarithms of probabilities; take torch.log_softmax of logits")
        if self.threshold is not None and not 0.0 < self.threshold < 1.0:
            raise ValueError(f"threshold is a probability between 0 and 1, got {self.threshold}")
        if self.offsets.device.type == "cpu":
            lengths = self.offsets.diff()
            ends = (int(self.offsets[0]), int(self.offsets[-1]))
            if ends != (0, len(self.ids)) or bool((lengths < 0).any()):
                raise ValueError(
                    f"offsets must rise from 0 to the number of entries, {len(self.ids)}; they run from "
                    f"{ends[0]} to {ends[1]}" + ("" if bool((lengths >= 0).all()) else " and fall in between")
                )

    def __len__(self) -> int:
        return self.offsets.shape[0] - 1

    def to(self, device: torch.device) -> Sparse:
        """The same on another device."""
        moved: dict[str, Any] = {n: x.to(device) for n, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **moved)


Target: TypeAlias = Labels | Dense | Sparse


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def check_softcap(softcap: float | None) -> None:
    if softcap is not None and not (softcap > 0 and math.isfinite(softcap)):
        raise ValueError(f"a soft cap is a positive number of logits, got {softcap}")
