"""Saving a model as a plain folder."""

from __future__ import annotations

from pathlib import Path

import torch

from limbeck.files import whole_folder
from limbeck.models.causal_lm import PROJECTIONS, CausalLM


def save_model(lm: CausalLM, target: Path, dtype: str | None = None) -> None:
    """A plain ``save_pretrained`` folder with its tokenizer; adapters are merged into the weights.

    Args:
        lm: what is saved. It is changed: adapters are merged, and it is left in ``dtype``.
        target: the folder; it is whole or absent.
        dtype: in which the weights are written. None: as they are held.
    """
    if hasattr(lm.model, PROJECTIONS):
        delattr(lm.model, PROJECTIONS)  # they belonged to the loss term, not to the student
    core = lm.model.merge_and_unload() if hasattr(lm.model, "peft_config") else lm.model
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if core.generation_config is not None and getattr(core.generation_config, name, None) is None:
            setattr(core.generation_config, name, getattr(lm.own_tokenizer, name, None))
    if dtype is not None:
        core.to(getattr(torch, dtype))
    with whole_folder(target) as scratch:
        core.save_pretrained(scratch)
        lm.own_tokenizer.save_pretrained(scratch)
