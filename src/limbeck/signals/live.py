"""A teacher whose weights are in hand, and who is asked about every batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch

from limbeck.data.packing import IGNORED, Batch
from limbeck.models.causal_lm import CausalLM
from limbeck.models.load import weights_fingerprint
from limbeck.signals.source import Access, HiddenShape, Signal


class LiveTeacher:
    """A frozen model that answers every batch, at all positions that have a label.

    Args:
        lm: the model. It is put into evaluation mode and its parameters need no gradient any more; under ``bf16``
            its linear layers are rounded, once.
        precision: ``fp32``, or ``bf16`` for autocast.
    """

    access = Access.LOGITS

    def __init__(self, lm: CausalLM, precision: str = "fp32") -> None:
        self.lm, self.precision = lm, precision
        lm.model.eval()
        lm.model.requires_grad_(False)
        if precision == "bf16":
            lm.hold_in_bfloat16()

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights that answer: under ``bf16``, of the rounded ones."""
        return weights_fingerprint(self.lm.model)

    @property
    def hidden_shape(self) -> HiddenShape:
        return HiddenShape(self.lm.n_layers, self.lm.config.hidden_size)

    def count(self, batch: Batch) -> int:
        return batch.count()

    def signal(self, batch: Batch, layers: Sequence[int] = ()) -> Signal:
        """One forward pass, without gradients.

        Returns:
            A ``Dense`` target of N = :meth:`count` positions: last hidden states and head, never logits.

        Raises:
            RecipeError: ``layers`` are asked for, and are not found or have states of another shape.
        """
        learned_BT = batch.labels_BT != IGNORED
        with torch.no_grad(), self.lm.autocast(self.precision):
            if layers:
                last_BTD, states = self.lm.hidden_of_layers(batch.ids_BT, batch.positions_BT, list(layers))
            else:
                last_BTD, states = self.lm.hidden(batch.ids_BT, batch.positions_BT), []
            return Signal(
                self.lm.as_target(last_BTD[learned_BT]),
                layers={layer: x_BTD[learned_BT] for layer, x_BTD in zip(layers, states, strict=True)},
            )
