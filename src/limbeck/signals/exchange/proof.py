"""That a file holds what the teacher says: positions are scored again, and compared.

What can be wrong is named: positions that are shifted by one, another temperature, entries that were renormalised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from limbeck.errors import InputError
from limbeck.models.causal_lm import CausalLM
from limbeck.objectives.dense import logits_of
from limbeck.signals.exchange.scored import Scored

POSITIONS = 32
"""That are compared, where a file has as many."""

A_TEXT = 4
"""Positions that are compared of one text."""

TOLERANCE = 0.06
"""Mean over positions of sum |p of the file - p of the teacher| over the file's entries. Half precision and
DistillKit's packing are to stay below it; a shift by one is far above it in any language model."""

TEMPERATURES = (0.5, 0.6, 0.7, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)


@dataclass(frozen=True)
class Proof:
    """How well a file and a teacher agree.

    Attributes:
        shift: position p of the file says what position p + shift says.
        error: as ``TOLERANCE`` is.
        positions: that were compared.
    """

    shift: int
    error: float
    positions: int


def prove(lm: CausalLM, texts: Sequence[Scored], temperature: float) -> Proof:
    """Score positions of texts with the teacher.

    Args:
        lm: the teacher.
        texts: at least one that has entries; eight are enough.
        temperature: at which the file's log-probabilities are said to be.

    Raises:
        InputError: the file does not say what this teacher says.
    """
    scored = [(text, _logits(lm, text)) for text in texts]
    shifts = {shift: _error(scored, shift, temperature) for shift in (0, -1, 1)}
    best = min(shifts, key=lambda shift: shifts[shift])
    positions = sum(len(places(text)) for text, _ in scored)
    if shifts[best] <= TOLERANCE:
        return Proof(best, shifts[best], positions)
    raise InputError(
        f"the file does not say what the teacher says: at {positions} positions the probabilities of its entries "
        f"differ by {shifts[best]:.2f} in sum{_why(scored, best, temperature)}",
        fix="Name the teacher, tokenizer and temperature that it was made with",
    )


def _why(scored: Sequence[tuple[Scored, torch.Tensor]], shift: int, temperature: float) -> str:
    """What would explain the difference, if anything that is known does."""
    others = {t: _error(scored, shift, t) for t in TEMPERATURES if t != temperature}
    nearest = min(others, key=lambda t: others[t])
    if others[nearest] <= TOLERANCE:
        return f"; at temperature {nearest} they agree"
    if _error(scored, shift, temperature, renormalised=True) <= TOLERANCE:
        return "; they were renormalised, so that their tail is lost"
    return ""


def places(text: Scored) -> list[int]:
    """Positions that are compared: spread over those with entries, and not the last, which a shift would lose."""
    there = np.flatnonzero(text.counts[1 : len(text.ids) - 2]) + 1
    return there[np.unique(np.linspace(0, len(there) - 1, A_TEXT).astype(int))].tolist() if len(there) else []


@torch.no_grad()
def _logits(lm: CausalLM, text: Scored) -> torch.Tensor:
    """float32 [T, V]; a text of a few hundred tokens is enough for its places."""
    last = max(places(text), default=0) + 3
    ids_BT = torch.from_numpy(text.ids[:last])[None].to(lm.device)
    positions_BT = torch.arange(ids_BT.shape[1], device=lm.device)[None]
    target = lm.as_target(lm.hidden(ids_BT, positions_BT)[0])
    return torch.cat([logits_nV.float().cpu().clone() for _, logits_nV in logits_of(target, vocab_size=lm.vocab_size)])


def _error(
    scored: Sequence[tuple[Scored, torch.Tensor]], shift: int, temperature: float, *, renormalised: bool = False
) -> float:
    errors = list(_errors(scored, shift, temperature, renormalised))
    return float(np.mean(errors)) if errors else float("inf")


def _errors(
    scored: Sequence[tuple[Scored, torch.Tensor]], shift: int, temperature: float, renormalised: bool
) -> Iterator[float]:
    for text, logits_TV in scored:
        for p in places(text):
            tokens, logprobs = text.at(p - shift)
            if not len(tokens):
                continue
            theirs = torch.log_softmax(logits_TV[p] / temperature, -1)[torch.from_numpy(tokens)].exp().numpy()
            if renormalised:
                theirs = theirs / theirs.sum()
            yield float(np.abs(np.exp(logprobs, dtype=np.float64) - theirs).sum())
