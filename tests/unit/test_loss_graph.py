"""The loss graph: who answers when, and that gradients are the naive formulas' whoever teaches whom."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data.packing import IGNORED, Batch, Rows, collate
from limbeck.models.causal_lm import CausalLM
from limbeck.objectives.schedules import Schedule
from limbeck.objectives.targets import Dense
from limbeck.signals.live import LiveTeacher
from limbeck.signals.source import Access, HiddenShape, Signal
from limbeck.training.loss_graph import HiddenLossTerm, LossGraph, LossTerm
from limbeck.training.loss_graph.ordering import components_in_order
from tests.unit.test_data import corpus_of
from tests.unit.test_training import assert_same_grads, grads, naive, ragged_rows

Make = Callable[..., CausalLM]


def batches(n: int = 1) -> list[Batch]:
    rows = Rows(corpus_of(ragged_rows(40)), 16, pack=True)
    return [collate([rows[3 * i + r] for r in range(3)]) for i in range(n)]


def of(weight: float) -> Schedule:
    return Schedule.constant(weight)


def both(learner: str, teacher: str, kd: float, ce: float) -> list[LossTerm | HiddenLossTerm]:
    return [LossTerm(learner, teacher, weight=of(kd)), LossTerm(learner, weight=of(ce))]


def step(graph: LossGraph, batch: Batch) -> dict[str, float]:
    tallies = graph.forward_backward(batch, graph.denominators(graph.count_labels([batch])), 0.0)
    return {name: float(tally.loss) for name, tally in tallies.items()}


# ------------------------------------------------------------------------------------------ order


@given(st.dictionaries(st.sampled_from("abcdefg"), st.sets(st.sampled_from("abcdefg"))))
def test_components_are_in_topological_order(drawn: dict[str, set[str]]) -> None:
    needs = {**drawn, **{name: set() for found in drawn.values() for name in found if name not in drawn}}
    reach = {name: {name} for name in needs}
    for _ in needs:
        reach = {name: found.union(*(needs[other] for other in found)) for name, found in reach.items()}
    order = components_in_order(needs)
    assert sorted(name for component in order for name in component) == sorted(needs)
    for i, component in enumerate(order):
        before = {name for earlier in order[: i + 1] for name in earlier}
        for name in component:
            assert needs[name] <= before
            assert {other for other in reach[name] if name in reach[other]} == set(component)


def test_components_keep_the_order_that_they_are_given() -> None:
    assert components_in_order({"b": [], "a": [], "c": ["a"]}) == [("b",), ("a",), ("c",)]
    assert components_in_order({"s": ["a"], "a": ["t"], "t": []}) == [("t",), ("a",), ("s",)]
    assert components_in_order({"s": ["b"], "a": ["b"], "b": ["a", "t"], "t": []}) == [("t",), ("a", "b"), ("s",)]


# ------------------------------------------------------------------------------ chains and mutual


def test_a_chain_of_teacher_assistant_and_student_learns_in_one_step(make_lm: Make) -> None:
    (batch,) = batches()
    teacher = make_lm(3, hidden_size=48)
    assistant, student, twin_assistant, twin_student = make_lm(2), make_lm(1), make_lm(2), make_lm(1)
    terms = [*both("student", "assistant", 0.7, 0.3), *both("assistant", "teacher", 0.9, 0.2)]
    graph = LossGraph({"student": student, "assistant": assistant}, terms, {"teacher": LiveTeacher(teacher)})
    assert graph.order == [("teacher",), ("assistant",), ("student",)]
    tallies = step(graph, batch)
    (naive(twin_assistant, teacher, batch, 0.9, 0.2) / batch.count()).backward()
    (naive(twin_student, twin_assistant, batch, 0.7, 0.3) / batch.count()).backward()
    assert_same_grads(grads(assistant), grads(twin_assistant), rtol=2e-4, atol=2e-6)
    assert_same_grads(grads(student), grads(twin_student), rtol=2e-4, atol=2e-6)
    assert all(p.grad is None for p in teacher.model.parameters())
    assert set(tallies) == {term.name for term in terms}
    kl = float(naive(twin_student, twin_assistant, batch, 1.0, 0.0).detach())
    assert tallies["student<assistant"] == pytest.approx(kl, rel=1e-4)


def test_models_that_teach_each_other_learn_from_what_both_said_before_the_step(make_lm: Make) -> None:
    (batch,) = batches()
    a, b, twin_a, twin_b = make_lm(1), make_lm(2, hidden_size=48), make_lm(1), make_lm(2, hidden_size=48)
    graph = LossGraph({"a": a, "b": b}, [*both("a", "b", 0.7, 0.3), *both("b", "a", 0.4, 0.6)])
    assert graph.order == [("a", "b")]
    step(graph, batch)
    (naive(twin_a, twin_b, batch, 0.7, 0.3) / batch.count()).backward()
    (naive(twin_b, twin_a, batch, 0.4, 0.6) / batch.count()).backward()
    assert_same_grads(grads(a), grads(twin_a), rtol=2e-4, atol=2e-6)
    assert_same_grads(grads(b), grads(twin_b), rtol=2e-4, atol=2e-6)


def test_a_ring_under_a_teacher_teaches_a_student(make_lm: Make) -> None:
    """a learns from b, b from c, c from a and from a frozen teacher; a student learns from two of them."""
    (batch,) = batches()
    names = {"student": 1, "a": 2, "b": 3, "c": 4}
    models, twins = ({name: make_lm(seed) for name, seed in names.items()} for _ in range(2))
    teacher = make_lm(5)
    terms = [
        LossTerm("student", "a"), LossTerm("student", "c"), LossTerm("a", "b"), LossTerm("b", "c"), LossTerm("c", "a"),
        LossTerm("c", "teacher"),
    ]  # fmt: skip
    graph = LossGraph(models, terms, {"teacher": LiveTeacher(teacher)})
    assert graph.order == [("teacher",), ("a", "b", "c"), ("student",)]
    step(graph, batch)
    for learner, teachers in {"student": "ac", "a": "b", "b": "c", "c": "a"}.items():
        for name in teachers:
            (naive(twins[learner], twins[name], batch, 1.0, 0.0) / batch.count()).backward()
    (naive(twins["c"], teacher, batch, 1.0, 0.0) / batch.count()).backward()
    for name, lm in models.items():
        assert_same_grads(grads(lm), grads(twins[name]), rtol=5e-4, atol=2e-6)


def counted(lm: CausalLM, calls: list[str], name: str) -> CausalLM:
    """Notes every forward pass of a model."""
    lm.core.model.register_forward_hook(lambda *_: calls.append(name))
    return lm


def test_every_model_answers_once(make_lm: Make) -> None:
    (batch,) = batches()
    calls: list[str] = []
    models = {name: counted(make_lm(i), calls, name) for i, name in enumerate(("student", "a", "b"))}
    terms = [*both("student", "a", 1.0, 1.0), LossTerm("student", "b"), LossTerm("a", "b"), LossTerm("b", "a")]
    step(LossGraph(models, terms), batch)
    assert calls == ["a", "b", "student"]


def test_activations_are_freed_before_the_next_model_answers(make_lm: Make) -> None:
    (batch,) = batches()
    alive: dict[str, list[str]] = {}
    kept: dict[str, Any] = {}

    def watched(name: str, lm: CausalLM) -> CausalLM:
        def note(_module: Any, _args: Any, out: torch.Tensor) -> None:
            alive[name] = [other for other, ref in kept.items() if ref() is not None]
            kept[name] = weakref.ref(out)  # the next layer's backward pass needs it

        lm.core.model.layers[0].register_forward_hook(note)
        return lm

    models = {name: watched(name, make_lm(i)) for i, name in enumerate(("student", "assistant", "teacher"))}
    terms = [*both("student", "assistant", 1, 1), *both("assistant", "teacher", 1, 1), LossTerm("teacher")]
    step(LossGraph(models, terms), batch)
    assert alive == {"teacher": [], "assistant": [], "student": []}
    kept.clear()
    step(LossGraph({"a": models["student"], "b": models["teacher"]}, [LossTerm("a", "b"), LossTerm("b", "a")]), batch)
    assert alive["teacher"] == ["student"]  # there, both forward passes come first


# ---------------------------------------------------------------------------------- hidden states


def states_of(lm: CausalLM, batch: Batch, layer: int) -> torch.Tensor:
    return lm.hidden_of_layers(batch.ids_BT, batch.positions_BT, [layer])[1][0][batch.labels_BT != IGNORED]


def mse(own: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    return (own - theirs.detach()).square().mean(-1).sum()


def test_hidden_states_follow_the_order_of_a_chain(make_lm: Make) -> None:
    """A student learns those of its assistant, of its own width, and those of the teacher, through a projection."""
    (batch,) = batches()
    teacher = make_lm(3, hidden_size=48)
    assistant, student, twin_assistant, twin_student = make_lm(2), make_lm(1), make_lm(2), make_lm(1)
    terms = [
        HiddenLossTerm("student", "assistant", ((0, 1),), "mse"),
        HiddenLossTerm("student", "teacher", ((1, 0),), "mse", of(0.5)),
        *both("assistant", "teacher", 1.0, 0.0),
        HiddenLossTerm("assistant", "teacher", ((1, 1),), "mse"),
    ]
    graph = LossGraph({"student": student, "assistant": assistant}, terms, {"teacher": LiveTeacher(teacher)})
    assert graph.order == [("teacher",), ("assistant",), ("student",)]
    tallies = step(graph, batch)
    weights = {
        lm: dict(lm.model.named_parameters())["limbeck_projections.teacher_0.weight"] for lm in (student, assistant)
    }

    near = mse(states_of(twin_student, batch, 0), states_of(twin_assistant, batch, 1))
    weight = weights[student].detach().clone().requires_grad_()
    far = mse(states_of(twin_student, batch, 1) @ weight.T, states_of(teacher, batch, 0))
    ((near + 0.5 * far) / batch.count()).backward()
    found = grads(student)
    torch.testing.assert_close(found.pop("limbeck_projections.teacher_0.weight"), weight.grad, rtol=2e-4, atol=2e-6)
    # The last states are made, but nothing is learned from them: a gradient of zero, for the weight decay.
    assert not found.pop("model.norm.weight").any()
    assert_same_grads(found, grads(twin_student), rtol=2e-4, atol=2e-6)
    assert tallies["student<assistant.hidden"] == pytest.approx(float(near.detach()), rel=1e-4)
    assert tallies["student<teacher.hidden"] == pytest.approx(float(far.detach()), rel=1e-4)

    weight = weights[assistant].detach().clone().requires_grad_()
    inner = mse(states_of(twin_assistant, batch, 1) @ weight.T, states_of(teacher, batch, 1))
    ((naive(twin_assistant, teacher, batch, 1.0, 0.0) + inner) / batch.count()).backward()
    found = grads(assistant)
    torch.testing.assert_close(found.pop("limbeck_projections.teacher_0.weight"), weight.grad, rtol=2e-4, atol=2e-6)
    assert_same_grads(found, grads(twin_assistant), rtol=2e-4, atol=2e-6)


def test_models_learn_each_others_hidden_states(make_lm: Make) -> None:
    (batch,) = batches()
    a, b, twin_a, twin_b = make_lm(1), make_lm(2), make_lm(1), make_lm(2)
    terms = [
        HiddenLossTerm("a", "b", ((0, 1),), "mse"), HiddenLossTerm("b", "a", ((1, 0),), "mse"), LossTerm("a"),
        LossTerm("b", "a"),
    ]  # fmt: skip
    step(LossGraph({"a": a, "b": b}, terms), batch)
    distances = [
        mse(states_of(twin_a, batch, 0), states_of(twin_b, batch, 1)),
        mse(states_of(twin_b, batch, 1), states_of(twin_a, batch, 0)),
    ]
    losses = [naive(twin_a, None, batch, 0.0, 1.0), naive(twin_b, twin_a, batch, 1.0, 0.0)]
    (sum([*distances, *losses]) / batch.count()).backward()
    assert_same_grads(grads(a), grads(twin_a), rtol=2e-4, atol=2e-6)
    assert_same_grads(grads(b), grads(twin_b), rtol=2e-4, atol=2e-6)


def test_a_model_may_learn_from_its_own_deeper_layers(make_lm: Make) -> None:
    (batch,) = batches()
    lm, twin = make_lm(1), make_lm(1)
    graph = LossGraph({"lm": lm}, [LossTerm("lm"), HiddenLossTerm("lm", "lm", ((0, 1),), "mse")])
    step(graph, batch)
    distance = mse(states_of(twin, batch, 0), states_of(twin, batch, 1))
    ((naive(twin, None, batch, 0.0, 1.0) + distance) / batch.count()).backward()
    assert_same_grads(grads(lm), grads(twin), rtol=2e-4, atol=2e-6)


# ---------------------------------------------------------------------------------------- sources


class Partial:
    """Knows a model's logits at every third label, and weighs them: as a source on disk might."""

    fingerprint = "partial"

    def __init__(self, lm: CausalLM, access: Access = Access.LOGITS, hidden_shape: HiddenShape | None = None) -> None:
        self.lm, self.access, self.hidden_shape = lm, access, hidden_shape

    def mask(self, batch: Batch) -> torch.Tensor:
        keep = batch.labels_BT != IGNORED
        return keep & (batch.ids_BT % 3 == 0)

    def count(self, batch: Batch) -> int:
        return int(self.mask(batch).sum())

    def weights(self, batch: Batch) -> torch.Tensor:
        return 0.5 + (batch.ids_BT[self.mask(batch)] % 5).float()

    @torch.no_grad()
    def signal(self, batch: Batch, layers: Sequence[int] = ()) -> Signal:
        mask = self.mask(batch)
        logits = self.lm.model(input_ids=batch.ids_BT, position_ids=batch.positions_BT, use_cache=False).logits[mask]
        _, states = self.lm.hidden_of_layers(batch.ids_BT, batch.positions_BT, list(layers))
        inside = {layer: state[mask] for layer, state in zip(layers, states, strict=True)}
        return Signal(Dense.from_logits(logits), mask, self.weights(batch), inside)


def naive_partial(student: CausalLM, source: Partial, batch: Batch) -> torch.Tensor:
    """Two sums over the positions of a partial source: of KL, and of the distance between states after layer 0."""
    mask, weight_N = source.mask(batch), source.weights(batch).double()
    inputs = {"input_ids": batch.ids_BT, "position_ids": batch.positions_BT, "use_cache": False}
    logits = [lm.model(**inputs).logits[mask].double() for lm in (student, source.lm)]
    logq, logp = (F.log_softmax(x, -1) for x in (logits[0], logits[1].detach()))
    kl = (weight_N * (logp.exp() * (logp - logq)).sum(-1)).sum()
    own, theirs = (lm.hidden_of_layers(batch.ids_BT, batch.positions_BT, [0])[1][0] for lm in (student, source.lm))
    distance = (weight_N * (own[mask] - theirs[mask].detach()).square().mean(-1)).sum()
    return torch.stack([kl, distance])


def test_every_loss_term_is_divided_by_its_own_count(make_lm: Make) -> None:
    """A source that answers some positions only, with weights: in one batch or in three, the naive formula."""
    parts = batches(3)
    source = Partial(make_lm(2), hidden_shape=HiddenShape(2, 32))
    terms = [*both("student", "partial", 0.7, 0.3), HiddenLossTerm("student", "partial", ((0, 0),), "mse", of(0.4))]
    student, twin = make_lm(1), make_lm(1)
    graph = LossGraph({"student": student}, terms, {"partial": source})
    labels, answered = sum(part.count() for part in parts), sum(source.count(part) for part in parts)
    assert graph.count_labels(parts).tolist() == [answered, labels, answered]
    assert len({source.count(part) / part.count() for part in parts}) > 1
    denominators = graph.denominators(graph.count_labels(parts))
    assert denominators == {"student<partial": answered, "student<labels": labels, "student<partial.hidden": answered}
    kl = distance = 0.0
    for part in parts:
        tallies = graph.forward_backward(part, denominators, 0.0)
        assert int(tallies["student<partial"].count) == source.count(part)
        both_sums = naive_partial(twin, source, part)
        kl, distance = kl + float(both_sums[0].detach()), distance + float(both_sums[1].detach())
        (
            0.3 * naive(twin, None, part, 0.0, 1.0) / labels + (0.7 * both_sums[0] + 0.4 * both_sums[1]) / answered
        ).backward()
    assert_same_grads(grads(student), grads(twin), rtol=5e-4, atol=2e-6)
    found = {name: float(tally.loss) for name, tally in tallies.items()}
    assert found["student<partial"] == pytest.approx(float(both_sums[0].detach()), rel=1e-4)
    assert found["student<partial.hidden"] == pytest.approx(float(both_sums[1].detach()), rel=1e-4)
    assert kl > 0
    assert distance > 0


def test_a_batch_without_labels_teaches_nothing_and_reaches_every_parameter(make_lm: Make) -> None:
    (batch,) = batches()
    empty = replace(batch, labels_BT=torch.full_like(batch.labels_BT, IGNORED))
    student, full = make_lm(1), make_lm(1)
    terms = [*both("student", "teacher", 0.7, 0.3), HiddenLossTerm("student", "teacher", ((0, 0),))]
    for lm, data in ((student, empty), (full, batch)):
        graph = LossGraph({"student": lm}, terms, {"teacher": LiveTeacher(make_lm(2))})
        tallies = graph.forward_backward(data, {term.name: 7 for term in terms}, 0.0)
        assert all(int(tally.count) == data.count() for tally in tallies.values())
    found = {name: p.grad for name, p in student.model.named_parameters() if p.grad is not None}
    assert found.keys() == grads(full).keys()
    assert not any(bool(grad.any()) for grad in found.values())


# ----------------------------------------------------------------------------------------- errors


def test_nothing_can_be_learned_from_oneself(make_lm: Make) -> None:
    lm = make_lm()
    for term in (LossTerm("lm", "lm"), HiddenLossTerm("lm", "lm", ((0, 1), (1, 1)))):
        with pytest.raises(ValueError, match="nothing can be learned from oneself"):
            LossGraph({"lm": lm}, [LossTerm("lm"), term])


def test_loss_terms_and_sources_must_fit(make_lm: Make) -> None:
    lm, teacher = make_lm(), make_lm(2)
    hidden = HiddenLossTerm("student", "teacher", ((0, 0),))
    with pytest.raises(ValueError, match="loss term student<labels stands 2 times"):
        LossGraph({"student": lm}, [LossTerm("student"), LossTerm("student")])
    with pytest.raises(ValueError, match="teacher is trainable and a source of signals"):
        LossGraph({"teacher": lm}, [LossTerm("teacher")], {"teacher": LiveTeacher(teacher)})
    with pytest.raises(ValueError, match="student<teacher: teacher reveals text only"):
        LossGraph({"student": lm}, [LossTerm("student", "teacher")], {"teacher": Partial(teacher, Access.TEXT)})
    with pytest.raises(ValueError, match=r"student<teacher\.hidden: teacher gives no hidden states"):
        LossGraph({"student": lm}, [hidden], {"teacher": Partial(teacher)})
    with pytest.raises(ValueError, match=r"student<labels\.hidden: there is no labels"):
        LossGraph({"student": lm}, [HiddenLossTerm("student", "labels", ((0, 0),))])
    with pytest.raises(ValueError, match="loss term a<b: there is no b"):
        LossGraph({"a": lm}, [LossTerm("a", "b"), LossTerm("a")])
