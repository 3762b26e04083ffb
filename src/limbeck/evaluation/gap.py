"""How far a student is from its teacher, on held-out documents.

Everything is measured per document, so that it can be resampled and compared in pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from limbeck.data.packing import IGNORED, Batch, Rows, collate
from limbeck.models.causal_lm import CausalLM
from limbeck.models.restricted import RestrictedModel
from limbeck.objectives.fused import Outcome, Term
from limbeck.objectives.targets import Labels, Target
from limbeck.statistics import Interval, bootstrap


@dataclass(frozen=True)
class Measured:
    """Sums over each held-out document's labels; float64 [D].

    Attributes:
        nats: negative log-likelihood of all labels.
        kl: KL(teacher ‖ student) in nats, summed over positions; None without a teacher.
        agreement: positions at which teacher and student find the same token most probable.
        tokens: labels.
        n_bytes: UTF-8 bytes that the words stand for.
        nats_words: negative log-likelihood of the words alone, without marks that end or surround them.
        tokens_words: labels that are words.
    """

    nats: np.ndarray
    kl: np.ndarray | None
    agreement: np.ndarray | None
    tokens: np.ndarray
    n_bytes: np.ndarray
    nats_words: np.ndarray
    tokens_words: np.ndarray


@torch.no_grad()
def measure(
    lm: CausalLM,
    rows: Rows,
    teacher: CausalLM | None = None,
    *,
    batch_size: int = 8,
    progress: Callable[[int], None] = lambda n: None,
) -> Measured:
    """Measure a model, and its distance to ``teacher``, over unpacked rows of held-out documents."""
    documents = len(rows.corpus)
    sums = {name: np.zeros(documents) for name in ("nats", "kl", "agreement", "tokens", "nats_words", "tokens_words")}
    lengths = [len(rows[r]) for r in range(len(rows))]
    order = np.argsort(lengths, kind="stable").tolist()  # like lengths together: less padding
    with lm.evaluating(), teacher.evaluating() if teacher is not None else nullcontext():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = collate([rows[r] for r in chosen]).to(lm.device)
            learned = batch.labels_BT != IGNORED
            of_row = torch.tensor([rows.document_of(r) for r in chosen])[:, None].expand(learned.shape)
            document_N = of_row[learned.cpu()].numpy()
            targets: list[Target] = [Labels(lm.own_ids(batch.labels_BT[learned]))]
            if teacher is not None:
                theirs_ND = teacher.hidden(batch.ids_BT, batch.positions_BT)[learned]
                # A teacher that learned along has the teacher's whole vocabulary: it is compared over that.
                targets.append(teacher.as_target(theirs_ND, own=lm.own_tokenizer is not lm.tokenizer))
            outcome = _against(lm, batch, learned, targets)
            nats_N, words_N = _numpy(outcome.stats[0].divergence_N), batch.words_BT[learned].cpu().numpy()
            np.add.at(sums["nats"], document_N, nats_N)
            np.add.at(sums["tokens"], document_N, 1.0)
            np.add.at(sums["nats_words"], document_N[words_N], nats_N[words_N])
            np.add.at(sums["tokens_words"], document_N[words_N], 1.0)
            if teacher is not None:
                np.add.at(sums["kl"], document_N, _numpy(outcome.stats[1].divergence_N))
                np.add.at(sums["agreement"], document_N, _numpy(outcome.stats[1].agreement_N))
            progress(len(chosen))
    with_teacher = teacher is not None
    return Measured(
        nats=sums["nats"],
        kl=sums["kl"] if with_teacher else None,
        agreement=sums["agreement"] if with_teacher else None,
        tokens=sums["tokens"],
        n_bytes=rows.corpus.n_bytes.astype(np.float64),
        nats_words=sums["nats_words"],
        tokens_words=sums["tokens_words"],
    )


@torch.no_grad()
def taught(teacher: CausalLM, batches: Iterable[Batch]) -> list[tuple[Batch, Target]]:
    """A teacher's targets at all positions of ``batches``, for several models to be measured against: its last hidden
    states are kept, as many bytes as positions times its width."""
    found: list[tuple[Batch, Target]] = []
    with teacher.evaluating():
        for batch in batches:
            batch = batch.to(teacher.device)
            hidden_BTE = teacher.hidden(batch.ids_BT, batch.positions_BT)
            found.append((batch, teacher.as_target(hidden_BTE[batch.segments_BT >= 0])))
    return found


@torch.no_grad()
def mean_kl(lm: CausalLM, targets: list[tuple[Batch, Target]]) -> float:
    """KL(teacher ‖ model) in nats per token over what ``taught`` found, in the ids of both."""
    with lm.evaluating():
        total = sum(float(_against(lm, batch, batch.segments_BT >= 0, [target]).loss_sum) for batch, target in targets)
    return total / sum(len(target) for _, target in targets)


@torch.no_grad()
def dropped_share(teacher: RestrictedModel, rows: Rows, *, batch_size: int = 8, chunk: int = 256) -> float:
    """The mean probability that a teacher gives to all tokens that its students do not have, over all labels."""
    restriction, head, total, positions = teacher.kept.restriction, teacher.head(), 0.0, 0
    for start in range(0, len(rows), batch_size):
        batch = collate([rows[r] for r in range(start, min(start + batch_size, len(rows)))]).to(teacher.device)
        with teacher.evaluating():
            hidden_ND = teacher.hidden(batch.ids_BT, batch.positions_BT)[batch.labels_BT != IGNORED]
        for part_nD in hidden_ND.split(chunk):
            restricted_nK = restriction.apply(head.logits(part_nD).float())
            total += float(restricted_nK.softmax(-1)[:, -1].double().sum())
        positions += len(hidden_ND)
    return total / max(positions, 1)


def _against(lm: CausalLM, batch: Batch, read_BT: torch.Tensor, targets: list[Target]) -> Outcome:
    """What the objective says of a model at the positions ``read_BT``."""
    hidden_BTD = lm.hidden(batch.ids_BT, batch.positions_BT)
    return lm.compare(hidden_BTD[read_BT], [Term(target) for target in targets])


def _numpy(values_N: torch.Tensor | None) -> np.ndarray:
    assert values_N is not None
    return values_N.double().cpu().numpy()


# ------------------------------------------------------------------------- estimates, with intervals

_BITS = 1 / math.log(2)

Quantity = Literal["bits_per_byte", "cross_entropy", "cross_entropy_words", "kl", "agreement"]
"""What is estimated: bits that the model needs for a byte of the words (comparable across tokenizers); nats per token
over all labels, and over the words alone; KL(teacher ‖ student) in nats per token; the share of positions at which
teacher and student find the same token most probable."""

_MADE_OF: dict[Quantity, tuple[str, str, float]] = {
    "bits_per_byte": ("nats_words", "n_bytes", _BITS),
    "cross_entropy": ("nats", "tokens", 1.0),
    "cross_entropy_words": ("nats_words", "tokens_words", 1.0),
    "kl": ("kl", "tokens", 1.0),
    "agreement": ("agreement", "tokens", 1.0),
}


def mean(quantity: Quantity, runs: list[Measured], resamples: int) -> Interval:
    """A quantity over all documents; ``runs`` are the same model from several seeds."""
    name, unit, scale = _MADE_OF[quantity]
    return bootstrap(
        lambda a, n: _ratio(a, n) * scale, _stack(runs, name), getattr(runs[0], unit)[None], resamples=resamples
    )


def difference(quantity: Quantity, runs: list[Measured], control: list[Measured], resamples: int) -> Interval:
    """A quantity of a student less that of the control, on the same documents: in bits per byte, below zero,
    the teacher helped."""
    name, unit, scale = _MADE_OF[quantity]
    return bootstrap(
        lambda a, b, n: _ratio(a - b, n) * scale,
        _stack(runs, name),
        _stack(control, name),
        getattr(runs[0], unit)[None],
        resamples=resamples,
    )


def gap_closed(runs: list[Measured], control: list[Measured], teacher: Measured, resamples: int) -> Interval | None:
    """Share of the way from the control to the teacher that the student went, in bits per byte.

    None where the control is as good as the teacher: there is no gap to close.
    """
    if float(_stack(control, "nats_words").mean(0).sum()) <= float(teacher.nats_words.sum()):
        return None
    return bootstrap(
        lambda s, c, t: _ratio(c - s, c - t),
        _stack(runs, "nats_words"),
        _stack(control, "nats_words"),
        teacher.nats_words[None],
        resamples=resamples,
    )


def _ratio(amount: np.ndarray, of: np.ndarray) -> np.ndarray:
    """NaN where there is nothing to divide by: documents without words, a gap that is not there."""
    return amount / np.where(of > 0, of, np.nan)


def _stack(runs: list[Measured], name: str) -> np.ndarray:
    return np.stack([getattr(run, name) for run in runs])
