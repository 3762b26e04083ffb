"""What is proven of a model when it is loaded: its head, its causality, and whether it can read packed rows.

A row holds several documents where ``data.pack`` is on. A model may read such rows if the states of a document do
not depend on its neighbours. Only an exact test shows this: a leak that a training would pick up can be small in
a model with fresh weights. Therefore a neighbour is replaced, and no state may move.

Shape letters: B rows, T tokens, D width.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.models.causal_lm import CausalLM

EXACT = 1e-5
"""The greatest relative movement of a float32 state that counts as rounding."""

_ROUNDING = 8.0
"""How far rounding may exceed what another shape of the same computation shows: a few times, as maxima vary."""

_LENGTHS = (5, 21, 17)
_SHORT_WINDOW = 6
_WINDOWS = ("sliding_window", "attention_chunk_size")
_SMALL = 50_000_000
"""Models with fewer parameters are also tried with enlarged weights: that takes a copy of them."""


@torch.no_grad()
def prove(lm: CausalLM, *, fresh: bool = False) -> None:
    """Verify ``lm.traits`` with real forward passes, and find out whether it may read packed rows (``traits.packs``).

    Args:
        lm: the model; its weights and mode are left as they were.
        fresh: its weights were just initialised. They are small, and some are zero, so that they hide leaks.

    Raises:
        RecipeError: its weights or logits are not finite, it is not causal, or its head does not make its logits.
    """
    with lm.evaluating():
        _prove_finite(lm)
        _prove_causal(lm)
        _prove_head(lm)
        with _short_windows(lm.config) as shortened:
            found = _stays_apart(lm)
        if found and shortened:
            found = _stays_apart(lm)
        small = sum(p.numel() for p in lm.model.parameters()) < _SMALL
        if found and (fresh or small):
            with _enlarged(lm.model), _short_windows(lm.config):
                found = _stays_apart(lm)
    lm.traits = dataclasses.replace(lm.traits, packs=found)


def _prove_finite(lm: CausalLM) -> None:
    """Refuse weights with NaN or infinity. One token's may be all that is wrong: no other text would show it."""
    for name, p in lm.model.named_parameters():
        if not p.is_floating_point() or bool(torch.linalg.vector_norm(p, float("inf")).isfinite()):
            continue
        row = int((~p.isfinite()).flatten(1).any(1).nonzero()[0]) if p.dim() > 1 else None
        where = f" (row {row})" if row is not None else ""
        if p is lm.core.get_input_embeddings().weight:
            where = f" (token {row}, {lm.own_tokenizer.convert_ids_to_tokens(row)!r})"
        raise RecipeError(f"the weights hold NaN or infinity in {name}{where}", fix="Use whole weights")


def _prove_causal(lm: CausalLM) -> None:
    """Refuse a model whose states depend on tokens that come later."""
    ids_BT, positions_BT = _ids(lm, (7, 7))[:1], torch.arange(14, device=lm.device)[None]
    later_BT = ids_BT.clone()
    later_BT[:, 7:] = (later_BT[:, 7:] + 1) % lm.vocab_size
    before_BTD, after_BTD = (lm.hidden(x, positions_BT)[:, :7] for x in (ids_BT, later_BT))
    if bool(before_BTD.isfinite().all()) and _moved(before_BTD, after_BTD) > 100 * _epsilon(before_BTD):
        raise RecipeError(
            f"{type(lm.core).__name__} is not a causal language model: its states depend on later tokens",
            fix="Use a model that reads from left to right",
        )


def _prove_head(lm: CausalLM) -> None:
    """Refuse a model whose logits are not its head applied to its last hidden states."""
    ids_BT = torch.arange(7, device=lm.device)[None] % lm.vocab_size
    positions_BT = torch.arange(7, device=lm.device)[None]
    logits = lm.head().logits(lm.hidden(ids_BT, positions_BT))
    theirs = lm.model(input_ids=ids_BT, position_ids=positions_BT, use_cache=False).logits
    if not bool(torch.isfinite(theirs).all()):
        half = theirs.dtype == torch.float16
        raise RecipeError(
            "its logits are not finite: "
            + ("float16 overflows, or the weights hold NaN" if half else "the weights hold NaN or infinity"),
            fix="Write `dtype: float32`" if half else "Use whole weights",
        )
    tolerance = 1e-4 if theirs.dtype == torch.float32 else 0.02
    spread = float((theirs - theirs.mean()).abs().max()) + 1e-6
    if logits.shape != theirs.shape or float((logits - theirs).abs().max()) > tolerance * spread:
        raise RecipeError(
            f"the logits of {type(lm.core).__name__} are not one linear head applied to its last hidden states, "
            "scaled or soft-capped",
            fix="Use another architecture for this model",
        )


def _stays_apart(lm: CausalLM) -> bool:
    """Whether packed documents do not see each other; in low precision judged in float32 where rounding blurs it."""
    if lm.core.dtype == torch.float32:
        return _judge(lm, strict=True)
    if _judge(lm, strict=False):
        return True
    if sum(p.numel() for p in lm.model.parameters()) > 20 * _SMALL:
        return False  # a copy in float32 would not fit beside it
    return _judge(CausalLM(copy.deepcopy(lm.model).float(), lm.tokenizer), strict=True)


def _judge(lm: CausalLM, *, strict: bool) -> bool:
    """Replace a document, and compare the others with what they were, and with themselves alone in a row.

    ``strict``: movements up to ``EXACT`` are rounding. Otherwise, in low precision, none is: masked positions
    add exact zeros there too.
    """
    lengths = _fitting(lm)
    ids_BT, positions_BT = _ids(lm, lengths), _positions(lm, lengths)
    whole_BTD = lm.hidden(ids_BT, positions_BT)
    starts = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    # The second row packs the same documents in the reverse order: its borders lie elsewhere.
    spans = [
        [slice(starts[i], starts[i + 1]) for i in range(len(lengths))],
        [slice(starts[-1] - starts[i + 1], starts[-1] - starts[i]) for i in range(len(lengths))],
    ]
    for changed in range(len(lengths)):
        other_BT = ids_BT.clone()
        for row in range(2):
            other_BT[row, spans[row][changed]] = (other_BT[row, spans[row][changed]] + 1) % lm.vocab_size
        moved_BTD = lm.hidden(other_BT, positions_BT)
        for row in range(2):
            for kept in set(range(len(lengths))) - {changed}:
                span = spans[row][kept]
                if _moved(whole_BTD[row, span], moved_BTD[row, span]) > (EXACT if strict else 0.0):
                    return False
    for document, length in enumerate(lengths):
        span, last = spans[0][document], spans[1][document]
        alone_BTD = lm.hidden(ids_BT[:1, span], positions_BT[:1, span])
        # What another shape of the same computation changes is rounding.
        rows_BTD = lm.hidden(ids_BT[:1, span].expand(3, length), positions_BT[:1, span].expand(3, length))
        allowed = max(EXACT if strict else 10 * _epsilon(whole_BTD), _ROUNDING * _moved(alone_BTD[0], rows_BTD[2]))
        if max(_moved(alone_BTD[0], whole_BTD[0, span]), _moved(alone_BTD[0], whole_BTD[1, last])) > allowed:
            return False
    return True


def _moved(before: Tensor, after: Tensor) -> float:
    """The greatest difference over the greatest state; infinity where one is NaN."""
    before, after = before.float(), after.float()
    moved = float((before - after).abs().max() / before.abs().max().clamp_min(1e-30))
    return moved if moved == moved else float("inf")


def _epsilon(states: Tensor) -> float:
    return float(torch.finfo(states.dtype).eps)


def _fitting(lm: CausalLM) -> tuple[int, ...]:
    """Lengths of three documents that together fit the positions that the model has."""
    room = lm.traits.max_positions or sum(_LENGTHS)
    if room >= sum(_LENGTHS):
        return _LENGTHS
    return (max(room // 6, 1), max(room // 3, 1), max(room // 3, 1))


def _ids(lm: CausalLM, lengths: tuple[int, ...]) -> Tensor:
    """Two rows [2, T] of the same pseudo-random documents, in the second one in the reverse order."""
    generator = torch.Generator().manual_seed(0)
    documents = [torch.randint(0, lm.vocab_size, (length,), generator=generator) for length in lengths]
    return torch.stack([torch.cat(documents), torch.cat(documents[::-1])]).to(lm.device)


def _positions(lm: CausalLM, lengths: tuple[int, ...]) -> Tensor:
    documents = [torch.arange(length) for length in lengths]
    return torch.stack([torch.cat(documents), torch.cat(documents[::-1])]).to(lm.device)


@contextmanager
def _short_windows(config: Any) -> Iterator[bool]:
    """Windows shorter than the documents of the proof; masks are made from the configuration at every pass.

    Yields:
        Whether there was a window to shorten.
    """
    was = {name: getattr(config, name, None) for name in _WINDOWS}
    long = {name: value for name, value in was.items() if isinstance(value, int) and value > _SHORT_WINDOW}
    for name in long:
        setattr(config, name, _SHORT_WINDOW)
    try:
        yield bool(long)
    finally:
        for name, value in long.items():
            setattr(config, name, value)


@contextmanager
def _enlarged(model: torch.nn.Module) -> Iterator[None]:
    """Matrices of unit gain, and nothing zero: every path through the model carries something. Undone at the end."""
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    try:
        for p in model.parameters():
            zero = not bool(p.any())
            if not p.is_floating_point() or (p.dim() < 2 and not zero):
                continue
            if zero:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
            if p.dim() > 1:
                p.mul_(1.0 / (p.float().pow(2).mean().sqrt() * p.shape[-1] ** 0.5).to(p.dtype))
        yield
    finally:
        for name, p in model.named_parameters():
            p.copy_(kept[name])
