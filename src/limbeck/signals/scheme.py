"""How a teacher's distribution becomes a few weighted tokens, and what a learner makes of them.

Shape suffixes: n positions; R entries of all positions together (ragged); M = n + 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.objectives.targets import Sparse

Kind = Literal["threshold", "top_k", "top_k_renormalised", "multinomial", "gemma"]

SNAP = 4e-3
"""Entries of a threshold draw whose log-probability is so near to the threshold's, in nats, stand for the
threshold itself: rounding on disk (``codec.py``) must not shift the weight that all drawn tokens share."""


@dataclass(frozen=True)
class Scheme:
    """How a distribution p becomes a few entries (token, weight). ``t`` below is the target that they make.

    ``threshold``
        Tokens with p >= threshold are kept with their exact p. The rest is drawn by systematic sampling: its tokens
        in the order of their ids cover the interval [0, their mass), the points (u + k) * threshold, k = 0, 1, ...,
        u uniform in [0, 1), lie on it, and a token that a point falls on gets the weight ``threshold``. A token of
        the rest is shorter than the distance of the points, so it is drawn at most once, with probability
        p / threshold: **E[t] = p for every token**, with at most 1 / threshold + 1 entries. The label is always an
        entry, with its exact p, and takes no part in the drawing. After Sparse Logit Sampling (arXiv 2503.16870),
        which draws with replacement; systematic sampling is Madow's (1949).
    ``top_k``
        The k likeliest tokens with their exact p, and the mass of all others as one outcome. Deterministic. Compared
        after merging the tail, so it is a lower bound of the whole divergence, and not renormalised.
    ``top_k_renormalised``
        t_i = p_i / sum over the k likeliest of p. **Biased**: t_i - p_i = p_i * tail / (1 - tail) for what is kept
        and -p_i for what is not, at every position and whatever the data, which makes students overconfident
        (arXiv 2503.16870, section 3). For comparison.
    ``multinomial``
        t_i = count_i / samples, of independent draws from p. Unbiased, and **noisy**: the variance of t_i is
        p_i (1 - p_i) / samples, for likely tokens too, which ``threshold`` keeps exactly. For comparison.
    ``gemma``
        Draws as above; t_i = p_i / sum over the drawn tokens of p for those that were drawn, 0 for all others
        (Gemma 2, arXiv 2408.00118, and Gemma 3, arXiv 2503.19786: 256 samples). **Biased** as ``top_k_renormalised``
        is, by the mass that was not drawn. The reports do not say whether a token can be drawn twice; here it can.

    Attributes:
        kind: one of the above.
        threshold: a probability (``threshold``).
        k: entries (``top_k``, ``top_k_renormalised``).
        samples: draws (``multinomial``, ``gemma``).
        temperature: divides the logits before the softmax: p is the distribution at this temperature.
        seed: of the draws, see ``sampling.uniforms``.

    Raises:
        RecipeError: a setting is out of its range.
    """

    kind: Kind
    threshold: float = 0.02
    k: int = 64
    samples: int = 50
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise RecipeError(
                f"unknown scheme {self.kind!r}", key=".scheme", fix=f"Write one of {', '.join(get_args(Kind))}"
            )
        if not 0.0 < self.threshold < 1.0:
            raise RecipeError(
                f"{self.threshold} is not a probability between 0 and 1", key=".threshold", fix="0.02 keeps about ten"
            )
        for name, count in (("k", self.k), ("samples", self.samples)):
            # Entries of a position are counted in 16 bits on disk.
            if not 1 <= count <= 65_535:
                raise RecipeError(f"{count} is not between 1 and 65,535", key=f".{name}")
        if not (self.temperature > 0.0 and math.isfinite(self.temperature)):
            raise RecipeError(f"{self.temperature} is not a temperature", key=".temperature", fix="Write one above 0")

    @property
    def drawn(self) -> bool:
        """Whether entries depend on chance, and so on the seed."""
        return self.kind in ("threshold", "multinomial", "gemma")

    def plain(self) -> dict[str, str | int | float]:
        """What its entries depend on, and nothing that is of no effect for its kind."""
        plain: dict[str, str | int | float] = {"kind": self.kind, "temperature": float(self.temperature)}
        if self.kind == "threshold":
            plain["threshold"] = float(self.threshold)
        elif self.kind in ("top_k", "top_k_renormalised"):
            plain["k"] = self.k
        else:
            plain["samples"] = self.samples
        if self.drawn:
            plain["seed"] = self.seed
        return plain


@dataclass(frozen=True)
class Draw:
    """What was kept of n positions; all on the device of the logits.

    Attributes:
        counts_n: int64, entries of each position.
        ids: int64 [R], token ids, each at most once at a position. In ascending order; of top-k, the likeliest first.
        logprobs: float32 [R], natural logarithms of probabilities (of weights, where drawn). Of the label it is exact
            however unlikely it is; -inf where its logit is (p = 0).
        tail_n: float32, probability outside the entries; ``top_k`` only.
        entropy_n: float32, of the whole distribution at the scheme's temperature, nats; NaN: not known.
    """

    counts_n: Tensor
    ids: Tensor
    logprobs: Tensor
    tail_n: Tensor | None
    entropy_n: Tensor


@dataclass(frozen=True)
class Decoded:
    """The same as it is read from disk, in numpy.

    Attributes:
        counts: int64 [n].
        ids: int64 [R].
        logprobs: float32 [R].
        entropy: float32 [n], nats; NaN: not known.
        tail: float32 [n], or None.
    """

    counts: np.ndarray
    ids: np.ndarray
    logprobs: np.ndarray
    entropy: np.ndarray
    tail: np.ndarray | None

    def __len__(self) -> int:
        return len(self.counts)


def to_sparse(source: Draw | Decoded, scheme: Scheme) -> Sparse:
    """The target of a learner.

    ``threshold`` and ``multinomial`` are unbiased estimates (``threshold_sampling``: forward KL and cross-entropy of
    the entries as they stand; the other divergences, which are not linear in p, take the exact entries of
    ``threshold`` and refuse ``multinomial``, which has none). ``top_k`` has its tail as one outcome, and the two
    renormalised kinds are distributions by themselves, whose tail is nothing (``top_k_tail``).

    Positions without entries are to be masked: nothing is known of them.
    """
    if isinstance(source, Decoded):
        tail = None if source.tail is None else torch.from_numpy(source.tail)
        source = Draw(
            counts_n=torch.from_numpy(source.counts),
            ids=torch.from_numpy(source.ids),
            logprobs=torch.from_numpy(source.logprobs),
            tail_n=tail,
            entropy_n=torch.from_numpy(source.entropy),
        )
    entropy_n = None if bool(source.entropy_n.isnan().any()) else source.entropy_n
    offsets_M = torch.cat([source.counts_n.new_zeros(1), source.counts_n.cumsum(0)])
    logprobs = source.logprobs
    if scheme.kind in ("threshold", "multinomial"):
        threshold = None
        if scheme.kind == "threshold":
            threshold, log_threshold = scheme.threshold, math.log(scheme.threshold)
            logprobs = torch.where((logprobs - log_threshold).abs() <= SNAP, log_threshold, logprobs)
        return Sparse(
            offsets_M,
            source.ids,
            logprobs,
            "threshold_sampling",
            entropy_N=entropy_n,
            threshold=threshold,
            temperature=scheme.temperature,
        )
    tail_n = source.tail_n if source.tail_n is not None else torch.zeros_like(source.entropy_n)
    return Sparse(
        offsets_M,
        source.ids,
        logprobs,
        "top_k_tail",
        tail_N=tail_n,
        entropy_N=entropy_n,
        temperature=scheme.temperature,
    )
