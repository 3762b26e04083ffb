"""The models of one run, frozen and learning, and the lessons that tie them.

The loop below knows no technique: a technique is a list of lessons and a source of batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from limbeck.data.packing import IGNORED, Batch
from limbeck.models.language_model import PROJECTIONS, Head, LanguageModel
from limbeck.objectives.fused import Outcome, Term, fused_divergence, shared_vocabulary
from limbeck.objectives.hidden import HiddenDistance, hidden_distance
from limbeck.objectives.schedules import Schedule
from limbeck.objectives.targets import Labels, Target

LABELS = "labels"


@dataclass(frozen=True)
class Lesson:
    """One thing one learner learns from one source.

    Attributes:
        learner: name of the member that learns.
        source: ``labels`` (the batch's own tokens), or the name of the member that teaches.
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


@dataclass(frozen=True)
class HiddenLesson:
    """What a learner learns from inside its source: hidden states of chosen layers, position by position.

    Attributes:
        learner, source: names of members.
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


@dataclass
class Tally:
    """Sums over tokens, on the learner's device; counts make means of them."""

    loss: torch.Tensor
    count: torch.Tensor
    agreement: torch.Tensor | None = None

    def __add__(self, other: Tally) -> Tally:
        both = self.agreement is not None and other.agreement is not None
        return Tally(
            self.loss.double() + other.loss.double(),
            self.count + other.count,
            self.agreement + other.agreement if both else None,  # type: ignore[operator]
        )


@dataclass
class Member:
    """A model of the cohort. ``learns``: it is updated."""

    lm: LanguageModel
    learns: bool


class Cohort:
    """One forward pass for each member, one backward pass for each learner."""

    def __init__(
        self, members: Mapping[str, Member], lessons: Sequence[Lesson | HiddenLesson], precision: str = "fp32"
    ) -> None:
        self.members, self.lessons, self.precision = dict(members), list(lessons), precision
        for lesson in lessons:
            if lesson.learner not in members or not members[lesson.learner].learns:
                raise ValueError(f"lesson {lesson.name}: {lesson.learner} does not learn here")
            if lesson.source != LABELS and lesson.source not in members:
                raise ValueError(f"lesson {lesson.name}: there is no {lesson.source}")
        for name, member in self.members.items():
            member.lm.model.train(member.learns)
            if member.learns:
                member.lm.hold_in_float32()
            if not member.learns:
                member.lm.model.requires_grad_(False)
                if precision == "bf16":
                    member.lm.hold_in_bfloat16()
            if member.learns and not any(lesson.learner == name for lesson in lessons):
                raise ValueError(f"{name} has nothing to learn")
        for lesson in self.lessons:
            if isinstance(lesson, HiddenLesson):
                _add_projections(members[lesson.learner].lm, members[lesson.source].lm, lesson)

    @property
    def learners(self) -> dict[str, LanguageModel]:
        return {name: member.lm for name, member in self.members.items() if member.learns}

    def _in_order(self) -> list[str]:
        """Sources before those who learn from them."""
        sources = {lesson.source for lesson in self.lessons}
        return sorted(self.members, key=lambda name: name not in sources)

    def forward_backward(self, batch: Batch, denominators: Mapping[str, int], progress: float) -> dict[str, Tally]:
        """Add to every learner's gradients what this batch teaches it.

        Args:
            batch: rows, their labels already shifted.
            denominators: per lesson name, the labels of the whole global batch that it learns from:
                counted before the first backward, so that accumulation changes nothing.
            progress: 0 at the first step, 1 at the last, for the weights.

        Returns:
            Per lesson, sums over this batch's tokens.
        """
        learned = batch.labels_BT != IGNORED
        labels_N = batch.labels_BT[learned]
        taught: dict[str, Target] = {}
        inside: dict[str, dict[int, torch.Tensor]] = {}
        tallies: dict[str, Tally] = {}
        for name in self._in_order():
            member = self.members[name]
            with torch.set_grad_enabled(member.learns), member.lm.autocast(self.precision):
                hidden_ND, inside[name] = self._forward(name, batch, learned)
                head = member.lm.head()
                if any(lesson.source == name for lesson in self.lessons):
                    taught[name] = member.lm.as_target(hidden_ND)
                taught[LABELS] = Labels(member.lm.own_ids(labels_N))
                lessons = [x for x in self.lessons if x.learner == name and isinstance(x, Lesson)]
                if not member.learns:
                    continue
                terms = [self._term(lesson, taught, denominators, progress) for lesson in lessons]
                loss = hidden_ND.sum() * 0.0
                if terms:
                    outcome = compare(hidden_ND, head, terms, member.lm.own_vocab_size)
                    loss = outcome.loss_sum
                    for i, lesson in enumerate(lessons):
                        agreement = outcome.stats[i].agreement_N
                        tallies[lesson.name] = Tally(
                            outcome.sums[i], outcome.counts[i], agreement.sum() if agreement is not None else None
                        )
                for hidden in self.lessons:
                    if hidden.learner == name and isinstance(hidden, HiddenLesson):
                        distance = _distance(member.lm, inside[name], inside[hidden.source], hidden)
                        loss = loss + distance.sum() * _weight(hidden, denominators, progress)
                        tallies[hidden.name] = Tally(distance.sum().detach(), torch.tensor(len(labels_N)))
            loss.backward()
        return tallies

    def _forward(self, name: str, batch: Batch, learned: torch.Tensor) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """A member's last hidden states [N, D] where something is learned, and those of asked layers.

        Padding and prompts need no logits: they are left out before the head.
        """
        lessons = [x for x in self.lessons if isinstance(x, HiddenLesson)]
        own = {own for x in lessons if x.learner == name for own, _ in x.pairs}
        layers = sorted(own | {theirs for x in lessons if x.source == name for _, theirs in x.pairs})
        lm = self.members[name].lm
        if not layers:
            return lm.hidden(batch.ids_BT, batch.positions_BT)[learned], {}
        last_BTD, found = lm.hidden_of_layers(batch.ids_BT, batch.positions_BT, layers)
        return last_BTD[learned], {layer: x[learned] for layer, x in zip(layers, found, strict=True)}

    def _term(
        self, lesson: Lesson, taught: Mapping[str, Target], denominators: Mapping[str, int], progress: float
    ) -> Term:
        return Term(
            taught[lesson.source],
            divergence=lesson.divergence,
            temperature=lesson.temperature if lesson.source != LABELS else 1.0,
            weight=_weight(lesson, denominators, progress),
            name=lesson.name,
        )

    def objectives(
        self, tallies: Mapping[str, Tally], denominators: Mapping[str, int], progress: float
    ) -> dict[str, torch.Tensor]:
        """What each learner minimises in a step: the weighted sum of its lessons, a float64 scalar.

        Args:
            tallies: per lesson name, sums over the whole step.
            denominators, progress: as in :meth:`forward_backward`.
        """
        found = {name: torch.zeros((), dtype=torch.float64, device=lm.device) for name, lm in self.learners.items()}
        for lesson in self.lessons:
            weight = _weight(lesson, denominators, progress)
            found[lesson.learner] = found[lesson.learner] + tallies[lesson.name].loss.double() * weight
        return found


def _weight(lesson: Lesson | HiddenLesson, denominators: Mapping[str, int], progress: float) -> float:
    """What the sum over a lesson's tokens is multiplied by in the learner's loss."""
    softened = isinstance(lesson, Lesson) and lesson.source != LABELS
    scale = lesson.temperature**2 if softened else 1.0  # type: ignore[union-attr]
    return lesson.weight.at(progress) * scale / max(denominators[lesson.name], 1)


def _projection_name(lesson: HiddenLesson, i: int) -> str:
    return f"{lesson.source}_{i}"


def _add_projections(learner: LanguageModel, source: LanguageModel, lesson: HiddenLesson) -> None:
    """Learned projections to the source's width, where it is another; they train with the learner.

    Raises:
        ValueError: a layer that one of the two does not have.
    """
    for own, theirs in lesson.pairs:
        if not (0 <= own < learner.n_layers and 0 <= theirs < source.n_layers):
            raise ValueError(
                f"lesson {lesson.name}: layers {own} and {theirs}, of {learner.n_layers} and {source.n_layers}"
            )
    width, wanted = learner.config.hidden_size, source.config.hidden_size
    if width == wanted:
        return
    projections = torch.nn.ModuleDict()
    for i in range(len(lesson.pairs)):
        linear = torch.nn.Linear(width, wanted, bias=False, device=learner.device, dtype=torch.float32)
        generator = torch.Generator().manual_seed(i)
        with torch.no_grad():
            linear.weight.copy_(torch.randn(wanted, width, generator=generator) / width**0.5)
        projections[_projection_name(lesson, i)] = linear
    learner.model.add_module(PROJECTIONS, projections)


def _distance(
    lm: LanguageModel, own: Mapping[int, torch.Tensor], theirs: Mapping[int, torch.Tensor], lesson: HiddenLesson
) -> torch.Tensor:
    """Distance a position [N], averaged over the lesson's pairs of layers."""
    projections = getattr(lm.model, PROJECTIONS, None)
    total = torch.zeros((), device=lm.device)
    for i, (a, b) in enumerate(lesson.pairs):
        state = own[a]
        if projections is not None:
            state = projections[_projection_name(lesson, i)](state.to(torch.float32))
        total = total + hidden_distance(state, theirs[b], lesson.distance)
    return total / len(lesson.pairs)


def compare(hidden_ND: torch.Tensor, head: Head, terms: list[Term], vocab_size: int) -> Outcome:
    """The objective on a model's hidden states and head."""
    return fused_divergence(
        hidden_ND,
        head.weight_VD,
        terms,
        bias_V=head.bias_V,
        softcap=head.softcap,
        scale=head.scale,
        vocab_size=shared_vocabulary(vocab_size, terms),
    )
