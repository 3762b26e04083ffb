"""Cutting a student from its teacher, with what has to be measured for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch

from limbeck.data.packing import Batch, Rows, collate, row_order
from limbeck.errors import under
from limbeck.evaluation.gap import mean_kl, taught
from limbeck.models.causal_lm import CausalLM
from limbeck.models.restricted import KeptTokens
from limbeck.pruning.depth import Chooser, choose_layers, cut_depth, layer_cosines
from limbeck.pruning.vocabulary import cut_vocabulary
from limbeck.pruning.width import cut_width, measure_importance
from limbeck.recipe import CutStudent


def calibration_rows(spec: CutStudent, rows: Rows) -> int:
    """How many rows are read for a cut at most, each time counted."""
    chosen = isinstance(spec.layers, int) and spec.chooser != "even"
    passes = 2 if chosen and spec.chooser == "auto" else int(chosen)
    passes += any((spec.ffn, spec.heads, spec.kv_heads, spec.hidden))
    passes += spec.vocabulary is not None
    return passes * _rows_of_a_pass(spec, rows)


def _rows_of_a_pass(spec: CutStudent, rows: Rows) -> int:
    return min(max(spec.calibration_tokens // rows.seq_len, 1), len(rows))


def cut_student(
    lm: CausalLM,
    spec: CutStudent,
    rows: Rows,
    kept: KeptTokens | None,
    progress: Callable[[int], None] = lambda more: None,
) -> tuple[Any, list[int]]:
    """The cut transformers model, and which of the teacher's layers it keeps.

    Args:
        lm: the teacher.
        spec: what is cut.
        rows: of the training data; importance is measured on some of them, in the teacher's ids.
        kept: which tokens the student has; None: all.
        progress: told of rows that were read, of ``calibration_rows`` at most.

    Raises:
        RecipeError: the cut is impossible; keys are relative to the student's section.
    """
    model = lm.model

    def calibration() -> Iterator[Batch]:
        chosen = list(islice(row_order(len(rows), 0), _rows_of_a_pass(spec, rows)))
        for start in range(0, len(chosen), 4):
            batch = collate([rows[r] for r in chosen[start : start + 4]])
            yield replace(batch, ids_BT=lm.own_ids(batch.ids_BT))
            progress(len(chosen[start : start + 4]))

    layers = list(range(lm.n_layers))
    if spec.layers is not None:
        layers = list(spec.layers) if not isinstance(spec.layers, int) else choose_kept(lm, spec, calibration)
        with under(".layers"):
            model = cut_depth(model, layers)
    narrower = {"ffn": spec.ffn, "heads": spec.heads, "kv_heads": spec.kv_heads, "hidden": spec.hidden}
    if any(narrower.values()):
        model = cut_width(model, measure_importance(model, calibration()), **narrower)
    if kept is not None:
        counts = dict.fromkeys(kept.ids_K.tolist(), 1)
        with under(".vocabulary"):
            found = cut_vocabulary(model, lm.own_tokenizer, counts, other=True, added="used", calibration=calibration())
        if not torch.equal(found.kept.ids_K, kept.ids_K):
            raise AssertionError("the vocabulary of the data and of the student are not the same")
        model = found.model
    return model, layers


def choose_kept(lm: CausalLM, spec: CutStudent, calibration: Callable[[], Iterator[Batch]]) -> list[int]:
    """Which layers to keep, ascending. Of ``auto``'s two choices, those whose cut is nearer to the teacher (KL on the
    calibration set) before any training; one that keeps the pattern of Gemma's sliding windows comes first.

    Args:
        lm: the teacher.
        spec: with a number of layers.
        calibration: batches in the teacher's own ids, anew at each call.
    """
    assert isinstance(spec.layers, int)
    types: list[str] | None = getattr(lm.config, "layer_types", None)
    with under(".layers"):
        cosines = None if spec.chooser == "even" else layer_cosines(lm.model, calibration())
    choosers: list[Chooser] = ["block_influence", "contiguous"] if spec.chooser == "auto" else [spec.chooser]
    found = [
        choose_layers(lm.n_layers, spec.layers, chooser, cosines=cosines, keep_ends=spec.keep_ends, layer_types=types)
        for chooser in choosers
    ]
    if len(found) == 1 or found[0] == found[1]:
        return found[0]
    targets = taught(CausalLM(lm.model, lm.own_tokenizer), calibration())

    def worse(layers: list[int]) -> tuple[bool, float]:
        cut = CausalLM(cut_depth(lm.model, layers), lm.own_tokenizer)
        irregular = types is not None and [types[i] for i in layers] != types[: len(layers)]
        return irregular, mean_kl(cut, targets)

    return min(found, key=worse)
