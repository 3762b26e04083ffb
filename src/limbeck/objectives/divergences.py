"""How far a student's distribution q is from a teacher's p, token by token.

Every divergence here is a sum over outcomes of a function of ``log p`` and ``log q``. Each class gives
that function once, together with its derivative, and everything else (the fused op on CPU and CUDA,
sparse targets, a whole distribution at a time) is built from the pair.

With ``w = q * dD/dq``, the gradient by the student's logits z is ``w - q * sum(w)``.

A probability of exactly zero has the logarithm ``LOG_ZERO``, a large finite number: ``0 log 0`` is then 0,
and a zero that only one of the two has costs much and steers, where an infinity would only make NaN.

Shape suffixes: N positions, V outcomes; ``...`` any shape, elementwise.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

LOG_ZERO = -1e4
"""The logarithm of a probability of zero, in nats."""


@dataclass(frozen=True)
class Divergence(ABC):
    """A per-token divergence of student q from teacher p. Call it on log-probabilities."""

    name: ClassVar[str]
    linear_in_teacher: ClassVar[bool] = False
    """Whether an unbiased estimate of p gives an unbiased gradient."""

    @abstractmethod
    def pointwise(self, logp: Tensor, logq: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
        """The share of each outcome in the divergence, and ``q`` times the derivative by ``q``.

        Args:
            logp: teacher's log-probabilities, ``>= LOG_ZERO``, floating [...].
            logq: student's, likewise.
            entropy: the teacher's entropy in nats, broadcastable to [...]; only what switches reads it.
        """

    def canonical(self) -> Divergence:
        """The simpler divergence that this one is at the end of a range; itself anywhere else."""
        return self

    def __call__(self, logp_NV: Tensor, logq_NV: Tensor) -> Tensor:
        """The divergence of each position, in nats, [N]; autograd goes through it. Inputs [N, V]."""
        logp = logp_NV.clamp_min(LOG_ZERO)
        logq = logq_NV.clamp_min(LOG_ZERO)
        entropy = -(logp.exp() * logp).sum(-1, keepdim=True)
        return self.canonical().pointwise(logp, logq, entropy)[0].sum(-1)


@dataclass(frozen=True)
class ForwardKL(Divergence):
    """``sum p log(p/q)``: the student must cover whatever the teacher finds likely.

    Hinton et al., Distilling the Knowledge in a Neural Network, arXiv 1503.02531 (without their factor
    T**2, which is the caller's).
    """

    name: ClassVar[str] = "forward_kl"
    linear_in_teacher: ClassVar[bool] = True

    def pointwise(self, logp: Tensor, logq: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
        p = logp.exp()
        return p * (logp - logq), -p


@dataclass(frozen=True)
class CrossEntropy(Divergence):
    """``-sum p log q``: forward KL plus the teacher's entropy; the same gradient."""

    name: ClassVar[str] = "cross_entropy"
    linear_in_teacher: ClassVar[bool] = True

    def pointwise(self, logp: Tensor, logq: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
        p = logp.exp()
        return -p * logq, -p


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """``sum q log(q/p)``: the student may say only what the teacher finds likely.

    Gu et al., MiniLLM, arXiv 2306.08543, eq. 1.
    """

    name: ClassVar[str] = "reverse_kl"

    def pointwise(self, logp: Tensor, logq: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
        q = logq.exp()
        share = q * (logq - logp)
        # The derivative is log(q/p) + 1; a constant times q drops out of w - q sum(w).
        return share, share + q


@dataclass(frozen=True)
class JSD(Divergence):
    """``beta KL(p || m) + (1 - beta) KL(q || m)`` with ``m = beta p + (1 - beta) q``.

    Agarwal et al., GKD, arXiv 2306.13649, eq. 1; as there and in TRL, ``beta = 0`` is forward KL and
    ``beta = 1`` reverse KL, the limits of the divergence over ``beta (1 - beta)``.

    Args:
        beta: the teacher's share of the mixture, 0 to 1.
    """

    name: ClassVar[str] = "jsd"
    beta: float = 0.5

    def __post_init__(self) -> None:
        _between(self.name, "beta", self.beta, 0.0, 1.0)

    def canonical(self) -> Divergence:
        return {0.0: ForwardKL(), 1.0: ReverseKL()}.get(self.beta, self)

    def pointwise(self, logp: Tensor, logq: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
        beta, rest = self.beta, 1.0 - self.beta
        p, q = logp.exp(), logq.exp()
        logm = _log_mixture(logp, logq, beta)
        student = rest * q * (logq - logm)
        # d/dq of all of it is rest * log(q/m): the other derivatives cancel.
        return beta * p * (logp - logm) + student, student


@dataclass(frozen=True)
class SkewKL(Divergence):
    """``KL(p || alpha p + (1 - alpha) q)``. Ko et al., DistiLLM, arXiv 2402.03898, eq. 4.

    Args:
        alpha: the teacher's share of the mixture, 0 (forward KL) to below 1.
    """

    name: ClassVar[str] = "skew_kl"
    alpha: float = 0.1

    def __post_init__(self) -> None:
        _between(self.name, "alpha", self.alpha, 0.0, 1.0, open_above=True)

    def canonical(self) -> Divergence:
        return ForwardKL() if self.alpha == 0.0 else self

    def pointwise(self, logp: Tensor, logq: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
        p = logp.exp()
        logm = _log_mixture(logp, logq, self.alpha)
        # p/m is at most 1/alpha, and p q/m is taken in logarithms, so nothing overflows.
        return p * (logp - logm), -(1.0 - self.alpha) * (logp + logq - logm).exp()


@dataclass(frozen=True)
class SkewReverseKL(Divergence):
    """``KL(q || (1 - alpha) p + alpha q)``. Ko et al., DistiLLM, arXiv 2402.03898, eq. 5.

    Args:
        alpha: the student's share of the mixture, 0 (reverse KL) to below 1.
    """

    name: ClassVar[str] = "skew_reverse_kl"
    alpha: float = 0.1

    def __post_init__(self) -> None:
        _between(self.name, "alpha", self.alpha, 0.0, 1.0, open_above=True)

    def canonical(self) -> Divergence:
        return ReverseKL() if self.alpha == 0.0 else self

    def pointwise(self, logp: Tensor, logq: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
        q = logq.exp()
        logm = _log_mixture(logp, logq, 1.0 - self.alpha)
        share = q * (logq - logm)
        return share, share + q - self.alpha * (2.0 * logq - logm).exp()


@dataclass(frozen=True)
class AlphaBeta(Divergence):
    """``-1/(ab) sum [p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b)]``, continued to its limits.

    Wang et al., ABKD, arXiv 2505.04560, eq. 5 (Cichocki et al. 2011). ``alpha=1, beta=0`` is forward KL
    and ``alpha=0, beta=1`` reverse KL.

    Args:
        alpha: weight of where the student is wrong (hardness), ``>= 0``.
        beta: weight of where the student is sure (confidence), ``>= 0``; not both zero. Negative
            exponents are refused: they are infinite wherever a probability underflows.
    """

    name: ClassVar[str] = "alpha_beta"
    alpha: float = 0.2
    beta: float = 0.7

    def __post_init__(self) -> None:
        _between(self.name, "alpha", self.alpha, 0.0, 10.0)
        _between(self.name, "beta", self.beta, 0.0, 10.0)
        if self.alpha + self.beta == 0.0:
            raise ValueError("alpha_beta: alpha and beta must not both be 0")

    def canonical(self) -> Divergence:
        return {(1.0, 0.0): ForwardKL(), (0.0, 1.0): ReverseKL()}.get((self.alpha, self.beta), self)

    def pointwise(self, logp: Tensor, logq: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
        # With d = log(p/q) and s = a + b, the share is q^s [(e^(sd) - 1)/s - (e^(ad) - 1)/a] / b. Written so, it
        # has its limits at a = 0 and b = 0 inside; where a term is small it is summed as a series, for the
        # differences would cancel.
        a, b, both = self.alpha, self.beta, self.alpha + self.beta
        d = logp - logq
        p_both, q_both, cross = (both * logp).exp(), (both * logq).exp(), (a * logp + b * logq).exp()
        growth = _growth(a, d, q_both, cross)
        whole = (p_both - q_both) / both
        far = (whole - growth) / b if a <= b else (-whole - _growth(b, -d, p_both, cross)) / a
        near = q_both * d * d * _series(both * d, _alpha_beta_series(a / both))
        return torch.where((both * d).abs() < _NEAR, near, far), -growth


@dataclass(frozen=True)
class TVD(Divergence):
    """``1/2 sum |p - q|``, the total variation distance. Wen et al., f-DISTILL, arXiv 2307.15190, sec. 2."""

    name: ClassVar[str] = "tvd"

    def pointwise(self, logp: Tensor, logq: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
        p, q = logp.exp(), logq.exp()
        return 0.5 * (p - q).abs(), 0.5 * q * torch.sign(q - p)


@dataclass(frozen=True)
class EntropySwitched(Divergence):
    """Forward KL where the teacher is unsure, reverse KL where it is sure.

    After Jin et al., Entropy-Aware On-Policy Distillation, arXiv 2603.07079, who bring in forward KL
    where the teacher's entropy is high; here the two take turns.

    Args:
        threshold_nats: the teacher's entropy above which forward KL is used, in nats. A top-k + tail
            target gives the entropy of the merged distribution unless it stores the teacher's own.
    """

    name: ClassVar[str] = "entropy_switched"
    threshold_nats: float = 1.0

    def __post_init__(self) -> None:
        _between(self.name, "threshold_nats", self.threshold_nats, 0.0, float("inf"))

    def pointwise(self, logp: Tensor, logq: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
        forward = ForwardKL().pointwise(logp, logq, entropy)
        reverse = ReverseKL().pointwise(logp, logq, entropy)
        unsure = entropy > self.threshold_nats
        return torch.where(unsure, forward[0], reverse[0]), torch.where(unsure, forward[1], reverse[1])


DIVERGENCES: Mapping[str, type[Divergence]] = {
    kind.name: kind
    for kind in (
        ForwardKL, CrossEntropy, ReverseKL, JSD, SkewKL, SkewReverseKL, AlphaBeta, TVD, EntropySwitched,
    )
}  # fmt: skip

DivergenceLike: TypeAlias = Divergence | str | Mapping[str, Any]


def resolve(spec: DivergenceLike) -> Divergence:
    """A divergence from its name, from ``{"name": "jsd", "beta": 0.5}``, or as it is.

    Raises:
        ValueError: for an unknown name, an unknown setting, or a value out of its range.
    """
    if isinstance(spec, Divergence):
        return spec
    if not isinstance(spec, str | Mapping):
        raise ValueError(
            f"a divergence is a name, a mapping with a name, or an instance such as JSD(0.5); got {spec!r}"
        )
    settings: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = settings.pop("name", None)
    if not isinstance(name, str) or name not in DIVERGENCES:
        raise ValueError(f"unknown divergence {name!r}; one of {', '.join(DIVERGENCES)}")
    kind = DIVERGENCES[name]
    known = [field.name for field in dataclasses.fields(kind)]
    unknown = [key for key in settings if key not in known]
    if unknown:
        takes = f"it takes {', '.join(known)}" if known else "it takes no settings"
        raise ValueError(f"{name} has no setting {', '.join(map(repr, unknown))}; {takes}")
    return kind(**{key: float(value) for key, value in settings.items()})


_NEAR = 0.5
"""Exponents below this are summed as series."""


def _growth(t: float, d: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``(high - low) / t`` where ``high = low * exp(t d)``; at t = 0 its limit, ``low * d``."""
    near = low * d * _series(t * d, [1 / math.factorial(n + 1) for n in range(_TERMS)])
    return near if t == 0.0 else torch.where((t * d).abs() < _NEAR, near, (high - low) / t)


_TERMS = 14
"""Of a series below ``_NEAR``, for the precision of float64."""


def _alpha_beta_series(ratio: float) -> list[float]:
    """Coefficients in sd of ``[(e^(sd) - 1)/s - (e^(ad) - 1)/a] / (b d^2)``; ``ratio`` is a/s."""
    return [sum(ratio**i for i in range(n + 1)) / math.factorial(n + 2) for n in range(_TERMS)]


def _series(x: Tensor, coefficients: list[float]) -> Tensor:
    """A polynomial near zero; farther out, where nobody reads it, it stays finite for autograd."""
    x = x.clamp(-_NEAR, _NEAR)
    out = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        out = out * x + coefficient
    return out


def _log_mixture(logp: Tensor, logq: Tensor, share_of_p: float) -> Tensor:
    """``log(share p + (1 - share) q)``, without leaving logarithms."""
    return torch.logaddexp(logp + math.log(share_of_p), logq + math.log1p(-share_of_p))


def _between(name: str, key: str, value: float, low: float, high: float, *, open_above: bool = False) -> None:
    inside = low <= value < high if open_above else low <= value <= high
    if not inside:
        closing = ")" if open_above else "]"
        raise ValueError(f"{name}: {key} must be in [{low:g}, {high:g}{closing}, got {value}")
