"""Loss terms: one trainable model learning one thing from one source.

Shape letters: N positions; D width of hidden states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from limbeck.models.causal_lm import PROJECTIONS, CausalLM
from limbeck.objectives.hidden import HiddenDistance, hidden_distance
from limbeck.objectives.schedules import Schedule
from limbeck.signals.source import HiddenShape

LABELS = "labels"


@dataclass(frozen=True)
class LossTerm:
    """What a trainable model learns from a source's labels or probabilities.

    Attributes:
        learner: name of the trainable model that learns.
        source: ``labels`` (the batch's own tokens), or the name of the model or signal source that teaches.
        divergence: how the two distributions are compared (a name, or a typed divergence);
            unused for labels, whose divergence is the cross-entropy.
        temperature: softens both distributions; the term is scaled by its square, so that its
            gradient keeps its size (Hinton et al. 2015, section 2.1).
        weight: of this term in the learner's loss.
    """

    learner: str
    source: str = LABELS
    divergence: Any = "forward_kl"
    temperature: float = 1.0
    weight: Schedule = field(default_factory=lambda: Schedule.constant(1.0))

    @property
    def name(self) -> str:
        return f"{self.learner}<{self.source}"

    @property
    def scale(self) -> float:
        """T² for a source's probabilities; 1 for labels, which no temperature softens."""
        return self.temperature**2 if self.source != LABELS else 1.0


@dataclass(frozen=True)
class HiddenLossTerm:
    """What a trainable model learns from inside its source: hidden states of chosen layers, position by position.

    Attributes:
        learner, source: as in :class:`LossTerm`.
        pairs: (learner's layer, source's layer), from 0; their distances are averaged.
        distance: ``cosine`` or ``mse``.
        weight: of this term in the learner's loss.
    """

    learner: str
    source: str
    pairs: tuple[tuple[int, int], ...]
    distance: HiddenDistance = "cosine"
    weight: Schedule = field(default_factory=lambda: Schedule.constant(1.0))

    @property
    def name(self) -> str:
        return f"{self.learner}<{self.source}.hidden"

    @property
    def scale(self) -> float:
        return 1.0


def weight_of(loss_term: LossTerm | HiddenLossTerm, denominators: Mapping[str, int], progress: float) -> float:
    """What the sum over a loss term's positions is multiplied by in the learner's loss:
    weight(progress) · T² / positions of the whole step.

    Args:
        denominators: by name of the loss term, the positions that it learns from in the whole step.
        progress: 0 at the first step, 1 at the last.
    """
    return loss_term.weight.at(progress) * loss_term.scale / max(denominators[loss_term.name], 1)


def add_projections(learner: CausalLM, source: HiddenShape, loss_term: HiddenLossTerm) -> None:
    """Learned projections to the source's width, where it is another; they train with the learner.

    Raises:
        ValueError: a layer that one of the two does not have.
    """
    for own, theirs in loss_term.pairs:
        if not (0 <= own < learner.n_layers and 0 <= theirs < source.layers):
            raise ValueError(
                f"loss term {loss_term.name}: layers {own} and {theirs}, of {learner.n_layers} and {source.layers}"
            )
    width = learner.config.hidden_size
    if width == source.width:
        return
    projections = getattr(learner.model, PROJECTIONS, None)
    if projections is None:
        projections = torch.nn.ModuleDict()
        learner.model.add_module(PROJECTIONS, projections)
    for i in range(len(loss_term.pairs)):
        linear = torch.nn.Linear(width, source.width, bias=False, device=learner.device, dtype=torch.float32)
        generator = torch.Generator().manual_seed(i)
        with torch.no_grad():
            linear.weight.copy_(torch.randn(source.width, width, generator=generator) / width**0.5)
        projections[_projection_name(loss_term, i)] = linear


def distance_of(
    learner: CausalLM, own: Mapping[int, Tensor], theirs: Mapping[int, Tensor], loss_term: HiddenLossTerm
) -> Tensor:
    """The distance at each position, float32 [N]: the mean over the loss term's pairs of layers.

    Args:
        own: the learner's hidden states [N, D], by layer; gradients flow to these.
        theirs: the source's, at the same positions.
    """
    projections = getattr(learner.model, PROJECTIONS, {})
    total_N = torch.zeros((), device=learner.device)
    for i, (a, b) in enumerate(loss_term.pairs):
        state_ND, name = own[a], _projection_name(loss_term, i)
        if name in projections:
            state_ND = projections[name](state_ND.to(torch.float32))
        total_N = total_N + hidden_distance(state_ND, theirs[b], loss_term.distance)
    return total_N / len(loss_term.pairs)


def _projection_name(loss_term: HiddenLossTerm, i: int) -> str:
    return f"{loss_term.source}_{i}"
