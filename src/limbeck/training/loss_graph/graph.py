"""The loss graph: trainable models, the sources that teach them, and the loss terms that tie them.

The loop above knows no technique: a technique is a list of loss terms, and sources of batches and signals.

Shape letters: B rows of a batch, T tokens of a row, N positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.data.packing import IGNORED, Batch
from limbeck.models.causal_lm import CausalLM
from limbeck.objectives.fused import Term
from limbeck.objectives.targets import Labels
from limbeck.signals.source import Access, HiddenShape, Signal, SignalSource
from limbeck.training.loss_graph.ordering import components_in_order
from limbeck.training.loss_graph.terms import LABELS, HiddenLossTerm, LossTerm, add_projections, distance_of, weight_of


@dataclass
class Tally:
    """Sums over positions, on the learner's device; counts make means of them."""

    loss: Tensor
    count: Tensor
    agreement: Tensor | None = None

    def __add__(self, other: Tally) -> Tally:
        both = self.agreement is not None and other.agreement is not None
        return Tally(
            self.loss.double() + other.loss.double(),
            self.count + other.count,
            self.agreement + other.agreement if both else None,  # type: ignore[operator]
        )

    def over(self, total: Callable[[Tensor], Tensor]) -> Tally:
        """The sums of all ranks, by what sums a tensor over them."""
        return Tally(total(self.loss), total(self.count), None if self.agreement is None else total(self.agreement))


class States(NamedTuple):
    """A trainable model's hidden states [N, D] at some positions, attached to the graph.

    Attributes:
        last_ND: what it feeds its head.
        layers: those after the layers that loss terms ask for, by layer.
    """

    last_ND: Tensor
    layers: dict[int, Tensor]


class LossGraph:
    """One forward pass for each model, one backward pass for each trainable one.

    Models answer after those that they learn from (``order``), so a chain of teacher, assistant and student learns
    in one step. Models that learn from each other answer first and learn then, all from what the others said before
    the step. A teacher's signal carries no gradient, so every backward pass is independent of the others.

    Args:
        trainable: the models that are updated, by name. They are put into training mode, and float16 and bfloat16
            weights into float32.
        loss_terms: what they learn; every one learns something. Names of terms are unique.
        sources: what else teaches, by name: frozen models (:class:`~limbeck.signals.live.LiveTeacher`), for example.
        precision: ``fp32``, or ``bf16`` for autocast; of the trainable models.

    Raises:
        ValueError: a loss term names a model, source or layer that is not there, or is one from which nothing can
            be learned; or a trainable model has nothing to learn.
    """

    def __init__(
        self,
        trainable: Mapping[str, CausalLM],
        loss_terms: Sequence[LossTerm | HiddenLossTerm],
        sources: Mapping[str, SignalSource] | None = None,
        precision: str = "fp32",
    ) -> None:
        self.trainable, self.loss_terms, self.precision = dict(trainable), list(loss_terms), precision
        self.sources: dict[str, SignalSource] = dict(sources or {})
        self._check_names()
        for loss_term in self.loss_terms:
            self._check(loss_term)
        for lm in self.trainable.values():
            lm.model.train()
            lm.hold_in_float32()
        for loss_term in self.loss_terms:
            if isinstance(loss_term, HiddenLossTerm):
                shape = self._hidden_shape(loss_term.source)
                if shape is None:
                    raise ValueError(f"loss term {loss_term.name}: {loss_term.source} gives no hidden states")
                add_projections(self.trainable[loss_term.learner], shape, loss_term)
        self._teaching = {loss_term.source for loss_term in self.loss_terms} - {LABELS}
        self.order = self._components()

    @property
    def device(self) -> torch.device:
        """Where the models are, and batches must be."""
        return next(iter(self.trainable.values())).device

    def _check_names(self) -> None:
        names = [loss_term.name for loss_term in self.loss_terms]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"loss term {name} stands {names.count(name)} times")
        for name in self.trainable:
            if name in self.sources:
                raise ValueError(f"{name} is trainable and a source of signals; it can be one of them")
            if not any(loss_term.learner == name for loss_term in self.loss_terms):
                raise ValueError(f"{name} has nothing to learn")

    def _check(self, loss_term: LossTerm | HiddenLossTerm) -> None:
        name, learner, source = loss_term.name, loss_term.learner, loss_term.source
        if learner not in self.trainable:
            raise ValueError(f"loss term {name}: {learner} does not learn here")
        labels = source == LABELS and isinstance(loss_term, LossTerm)
        if not labels and source not in self.trainable and source not in self.sources:
            raise ValueError(f"loss term {name}: there is no {source}")
        if source in self.sources and self.sources[source].access == Access.TEXT:
            raise ValueError(f"loss term {name}: {source} reveals text only")
        # A model is at no distance from itself, but it may learn from its own deeper layers.
        if learner == source and (isinstance(loss_term, LossTerm) or any(a == b for a, b in loss_term.pairs)):
            raise ValueError(f"loss term {name}: nothing can be learned from oneself")

    def _hidden_shape(self, name: str) -> HiddenShape | None:
        if name in self.sources:
            return self.sources[name].hidden_shape
        lm = self.trainable[name]
        return HiddenShape(lm.n_layers, lm.config.hidden_size)

    def _components(self) -> list[tuple[str, ...]]:
        """All that answer in a step, in order: alone, or together with those they learn from and teach."""
        names = [*self.trainable, *(name for name in self.sources if name in self._teaching)]
        # Dropout draws in this order: where it is free, those that teach come first.
        names.sort(key=lambda name: name not in self._teaching)
        return components_in_order(
            {name: {x.source for x in self.loss_terms if x.learner == name} - {LABELS} for name in names}
        )

    def count_labels(self, batches: Sequence[Batch]) -> Tensor:
        """How many positions each loss term learns from in these batches, int64 [loss terms], in their order.

        Summed over all batches of a step, on all ranks, they are the ``denominators`` of its losses.
        """
        totals: dict[str, int] = {}
        for source in {loss_term.source for loss_term in self.loss_terms}:
            count = self.sources[source].count if source in self.sources else Batch.count
            totals[source] = sum(count(batch) for batch in batches)
        return torch.tensor([totals[loss_term.source] for loss_term in self.loss_terms])

    def denominators(self, counts: Tensor) -> dict[str, int]:
        """Counts [loss terms] in the order of :meth:`count_labels`, by name of the loss term."""
        return dict(zip((loss_term.name for loss_term in self.loss_terms), counts.tolist(), strict=True))

    def forward_backward(self, batch: Batch, denominators: Mapping[str, int], progress: float) -> dict[str, Tally]:
        """Add to every trainable model's gradients what this batch teaches it.

        Model m minimises ``Σ over its terms k of w_k(progress) · T_k² / denominators[k] · Σ_n D_k[n]``.

        Args:
            batch: rows, their labels already shifted.
            denominators: by name of the loss term, the positions of the whole global step that it learns from:
                counted before the first backward pass, so that accumulation changes nothing.
            progress: 0 at the first step, 1 at the last, for the weights.

        Returns:
            By name of the loss term, sums over this batch's positions.

        Raises:
            RecipeError: a model's hidden states are asked for, and are not found or have another shape.
        """
        weights = {loss_term.name: weight_of(loss_term, denominators, progress) for loss_term in self.loss_terms}
        signals: dict[str, Signal] = {}
        tallies: dict[str, Tally] = {}
        for component in self.order:
            states: dict[str, dict[str, States]] = {}
            for name in component:
                if name in self.sources:
                    signals[name] = self.sources[name].signal(batch, self._layers_of(name))
                    continue
                states[name] = self._forward(name, batch, signals)
                if name in self._teaching:
                    signals[name] = self._signal(name, states[name][LABELS])
            for name in list(states):
                # Taken out, so that a model's activations are freed with its backward pass.
                loss, found = self._loss(name, states.pop(name), signals, batch, weights)
                loss.backward()
                tallies.update(found)
        return tallies

    def _layers_of(self, name: str) -> list[int]:
        """The layers of a model, or of a source, whose hidden states loss terms ask for."""
        terms = [x for x in self.loss_terms if isinstance(x, HiddenLossTerm)]
        own = {own for x in terms if x.learner == name for own, _ in x.pairs}
        return sorted(own | {theirs for x in terms if x.source == name for _, theirs in x.pairs})

    def _forward(self, name: str, batch: Batch, signals: Mapping[str, Signal]) -> dict[str, States]:
        """A model's hidden states where something is learned: under ``labels`` where there is a label; under a
        source's name, at the positions that its signal is about, if those are others.

        Padding and prompts need no logits: they are left out before the head.
        """
        masks = {LABELS: batch.labels_BT != IGNORED}
        for source in (x.source for x in self.loss_terms if x.learner == name):
            mask_BT = signals[source].mask_BT if source in signals else None  # a model says something of every label
            if mask_BT is not None:
                masks[source] = mask_BT
        lm, layers = self.trainable[name], self._layers_of(name)
        with torch.enable_grad(), lm.autocast(self.precision):
            if layers:
                last_BTD, found = lm.hidden_of_layers(batch.ids_BT, batch.positions_BT, layers)
            else:
                last_BTD, found = lm.hidden(batch.ids_BT, batch.positions_BT), []
            return {
                where: States(last_BTD[mask], {layer: x[mask] for layer, x in zip(layers, found, strict=True)})
                for where, mask in masks.items()
            }

    def _signal(self, name: str, states: States) -> Signal:
        """What a trainable model says to those who learn from it."""
        target = self.trainable[name].as_target(states.last_ND)
        return Signal(target, layers={layer: x_ND.detach() for layer, x_ND in states.layers.items()})

    def _loss(
        self,
        name: str,
        states: Mapping[str, States],
        signals: Mapping[str, Signal],
        batch: Batch,
        weights: Mapping[str, float],
    ) -> tuple[Tensor, dict[str, Tally]]:
        """What a model minimises on this batch, a scalar, and its loss terms' sums."""
        lm, tallies, losses = self.trainable[name], dict[str, Tally](), list[Tensor]()
        labels = Signal(Labels(lm.own_ids(batch.labels_BT[batch.labels_BT != IGNORED])))
        said = {LABELS: labels, **signals}
        terms = [x for x in self.loss_terms if isinstance(x, LossTerm) and x.learner == name]
        with torch.enable_grad(), lm.autocast(self.precision):
            for where, at in states.items():  # all terms of the same positions share the logits
                here = [x for x in terms if _where(x, states) == where]
                if not here:
                    continue
                outcome = lm.compare(at.last_ND, [_term(x, said[x.source], weights[x.name]) for x in here])
                losses.append(outcome.loss_sum)
                for i, loss_term in enumerate(here):
                    agreement_N = outcome.stats[i].agreement_N
                    agreement = agreement_N.sum() if agreement_N is not None else None
                    tallies[loss_term.name] = Tally(outcome.sums[i], outcome.counts[i], agreement)
            # Zero, but of every parameter: one without a gradient would miss its weight decay.
            loss = sum(losses[1:], losses[0]) if losses else states[LABELS].last_ND.sum() * 0.0
            for hidden in (x for x in self.loss_terms if isinstance(x, HiddenLossTerm) and x.learner == name):
                signal = signals[hidden.source]
                distance_N = distance_of(lm, states[_where(hidden, states)].layers, signal.layers, hidden)
                if signal.weight_N is not None:
                    distance_N = distance_N * signal.weight_N
                total = distance_N.sum()
                loss = loss + total * weights[hidden.name]
                tallies[hidden.name] = Tally(total.detach(), torch.tensor(len(distance_N), device=lm.device))
        return loss, tallies

    def objectives(
        self, tallies: Mapping[str, Tally], denominators: Mapping[str, int], progress: float
    ) -> dict[str, Tensor]:
        """What each trainable model minimises in a step: the weighted sum of its loss terms, a float64 scalar.

        Args:
            tallies: by name of the loss term, sums over the whole step.
            denominators, progress: as in :meth:`forward_backward`.
        """
        found = {name: torch.zeros((), dtype=torch.float64, device=lm.device) for name, lm in self.trainable.items()}
        for loss_term in self.loss_terms:
            weight = weight_of(loss_term, denominators, progress)
            found[loss_term.learner] = found[loss_term.learner] + tallies[loss_term.name].loss.double() * weight
        return found


def _where(loss_term: LossTerm | HiddenLossTerm, states: Mapping[str, States]) -> str:
    """Under which key of :meth:`LossGraph._forward` the positions of a loss term are."""
    return loss_term.source if loss_term.source in states else LABELS


def _term(loss_term: LossTerm, signal: Signal, weight: float) -> Term:
    return Term(
        signal.target,
        divergence=loss_term.divergence,
        temperature=loss_term.temperature if loss_term.source != LABELS else 1.0,
        weight=weight,
        weight_N=signal.weight_N,
        name=loss_term.name,
    )
