from __future__ import annotations

import math
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from limbeck.data.packing import IGNORED, Batch, Piece, Row, Rows, collate
from limbeck.errors import DivergedError, InputError, RecipeError, under
from limbeck.evaluation.heldout import Heldout
from limbeck.models.causal_lm import CausalLM
from limbeck.objectives.schedules import Schedule
from limbeck.recipe import Co, Soft, Training, parse_recipe
from limbeck.signals.live import LiveTeacher
from limbeck.training.checkpoint import Checkpoints
from limbeck.training.diagnosis import faulty_teacher
from limbeck.training.learner import Learner
from limbeck.training.loop import TrainingJob, train
from limbeck.training.loss_graph import HiddenLossTerm, LossGraph, LossTerm, Tally
from limbeck.training.metrics import Meter, loss_said, read_metrics
from limbeck.training.sources import ONE_PROCESS, CorpusBatches
from limbeck.training.techniques import loss_terms_of, matched_layers
from tests.unit.test_data import corpus_of

Make = Callable[..., CausalLM]


def ragged_rows(n: int = 16, seed: int = 0) -> list[tuple[list[int], list[bool]]]:
    """Documents of many lengths, each with a prompt that is not learned."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        length = int(rng.integers(3, 14))
        prompt = int(rng.integers(1, length))
        rows.append((rng.integers(1, 300, length).tolist(), [i >= prompt for i in range(length)]))
    return rows


def naive(student: CausalLM, teacher: CausalLM | None, batch: Any, soft: float, hard: float) -> torch.Tensor:
    """The same loss as anyone would write it, in float64: sums over tokens."""
    keep = batch.labels_BT != IGNORED
    logits = student.model(input_ids=batch.ids_BT, position_ids=batch.positions_BT, use_cache=False).logits[keep]
    logq = F.log_softmax(logits[:, : student.vocab_size].double(), -1)
    loss = hard * F.nll_loss(logq, batch.labels_BT[keep], reduction="sum")
    if teacher is not None:
        with torch.no_grad():
            theirs = teacher.model(input_ids=batch.ids_BT, position_ids=batch.positions_BT, use_cache=False).logits
        logp = F.log_softmax(theirs[keep][:, : student.vocab_size].double(), -1)
        loss = loss + soft * (logp.exp() * (logp - logq)).sum()
    return loss


def grads(lm: CausalLM) -> dict[str, torch.Tensor]:
    """The gradient of every parameter that has one; at least one has, and it is not zero."""
    found = {name: p.grad.clone() for name, p in lm.model.named_parameters() if p.grad is not None}
    assert any(bool(grad.any()) for grad in found.values())
    return found


def assert_same_grads(
    got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], rtol: float = 0, atol: float = 0
) -> None:
    assert got.keys() == expected.keys()
    for name, grad in got.items():
        torch.testing.assert_close(
            grad, expected[name], rtol=rtol, atol=atol, msg=lambda why, name=name: f"{name}: {why}"
        )


def test_a_loss_graphs_gradient_is_the_naive_formulas(make_lm: Make) -> None:
    batch = collate([Rows(corpus_of(ragged_rows()), 16, pack=True)[r] for r in range(3)])
    count = batch.count()
    student, twin, teacher = make_lm(1), make_lm(1), make_lm(2, hidden_size=48)
    loss_terms = loss_terms_of(Soft(kd_weight=0.7, ce_weight=0.3), ["student"])
    graph = LossGraph({"student": student}, loss_terms, {"teacher": LiveTeacher(teacher)})
    tallies = graph.forward_backward(batch, {loss_term.name: count for loss_term in loss_terms}, 0.5)
    (naive(twin, teacher, batch, 0.7, 0.3) / count).backward()
    assert_same_grads(grads(student), grads(twin), rtol=2e-4, atol=2e-6)
    assert all(p.grad is None for p in teacher.model.parameters())
    kl = naive(twin, teacher, batch, 1.0, 0.0)
    assert float(tallies["student<teacher"].loss) == pytest.approx(float(kl.detach()), rel=1e-4)
    assert int(tallies["student<teacher"].count) == count


def test_temperature_enters_with_its_square(make_lm: Make) -> None:
    batch = collate([Rows(corpus_of(ragged_rows()), 16, pack=True)[0]])
    student, teacher = make_lm(1), make_lm(2)
    graph = LossGraph(
        {"student": student},
        [LossTerm("student", "teacher", temperature=3.0)],
        {"teacher": LiveTeacher(teacher)},
    )
    graph.forward_backward(batch, {"student<teacher": 1}, 0.0)
    got = grads(student)
    student.model.zero_grad()
    keep = batch.labels_BT != IGNORED
    logits = [m.model(input_ids=batch.ids_BT, position_ids=batch.positions_BT).logits[keep] for m in (student, teacher)]
    logq, logp = (F.log_softmax(x / 3.0, -1) for x in (logits[0], logits[1].detach()))
    (9 * (logp.exp() * (logp - logq)).sum()).backward()
    assert_same_grads(got, grads(student), rtol=1e-3, atol=1e-5)


def test_in_co_both_learn_and_nothing_flows_back_into_the_teacher(make_lm: Make) -> None:
    batch = collate([Rows(corpus_of(ragged_rows()), 16, pack=True)[0]])
    count = batch.count()
    loss_terms = loss_terms_of(Co(kd_weight=1.0, ce_weight=0.5), ["a", "b"])
    teacher, twin = make_lm(2), make_lm(2)
    members = {"a": make_lm(1), "b": make_lm(3), "teacher": teacher}
    LossGraph(members, loss_terms).forward_backward(batch, {loss_term.name: count for loss_term in loss_terms}, 0.0)
    (naive(twin, None, batch, 0.0, 1.0) / count).backward()
    assert_same_grads(grads(teacher), grads(twin), rtol=2e-4, atol=2e-6)
    assert grads(members["a"])
    assert grads(members["b"])


@pytest.mark.parametrize("tied", [False, True])
def test_a_frozen_teacher_is_rounded_once_to_what_autocast_rounds_it_to(
    make_lm: Make, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = collate([Rows(corpus_of(ragged_rows()), 16, pack=True)[r] for r in range(3)])
    loss_terms = loss_terms_of(Soft(), ["student"])
    found = []
    for rounded in (True, False):
        if not rounded:
            monkeypatch.setattr(CausalLM, "hold_in_bfloat16", lambda lm: None)
        student, teacher = make_lm(1), make_lm(2, tie_word_embeddings=tied)
        graph = LossGraph({"student": student}, loss_terms, {"teacher": LiveTeacher(teacher, "bf16")}, "bf16")
        graph.forward_backward(batch, {loss_term.name: batch.count() for loss_term in loss_terms}, 0.0)
        found.append(grads(student))
        assert _a_linear(teacher).weight.dtype == (torch.bfloat16 if rounded else torch.float32)
        assert teacher.head().weight_VD.dtype == torch.float32
    assert_same_grads(*found)


def _a_linear(lm: CausalLM) -> torch.nn.Linear:
    return next(m for m in lm.model.modules() if isinstance(m, torch.nn.Linear))


def test_a_loss_graph_needs_sense(make_lm: Make) -> None:
    lm = make_lm()
    with pytest.raises(ValueError, match="there is no teacher"):
        LossGraph({"student": lm}, [LossTerm("student", "teacher")])
    with pytest.raises(ValueError, match="does not learn"):
        LossGraph({}, [LossTerm("student")], {"student": LiveTeacher(lm)})
    with pytest.raises(ValueError, match="layers 0 and 9"):
        LossGraph(
            {"student": lm},
            [LossTerm("student"), HiddenLossTerm("student", "teacher", ((0, 9),))],
            {"teacher": LiveTeacher(make_lm(2))},
        )
    with pytest.raises(ValueError, match="nothing to learn"):
        LossGraph({"student": lm, "other": lm}, [LossTerm("student")])


# ---------------------------------------------------------------------------------- hidden states


def test_states_after_the_last_layer_compare_with_those_after_any(make_lm: Make) -> None:
    """A teacher without its last layer agrees with the whole one after the layers that it has."""
    from limbeck.pruning.depth import cut_depth

    teacher = make_lm(2, num_hidden_layers=3)
    student = CausalLM(cut_depth(teacher.model, [0, 1]), teacher.tokenizer)
    ids, positions = torch.tensor([[3, 4, 5, 6]]), torch.arange(4)[None]
    ours, theirs = (lm.hidden_of_layers(ids, positions, [0, 1])[1] for lm in (student, teacher))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("distance", ["cosine", "mse"])
@pytest.mark.parametrize("width", [32, 48])
def test_a_loss_term_on_hidden_states_is_the_naive_formula(make_lm: Make, distance: Any, width: int) -> None:
    batch = collate([Rows(corpus_of(ragged_rows()), 16, pack=True)[r] for r in range(2)])
    count = batch.count()
    student, teacher = make_lm(1), make_lm(2, hidden_size=width, num_hidden_layers=3)
    loss_terms = [
        LossTerm("student"),
        HiddenLossTerm("student", "teacher", ((0, 1), (1, 2)), distance, Schedule.constant(0.5)),
    ]
    graph = LossGraph({"student": student}, loss_terms, {"teacher": LiveTeacher(teacher)})
    size = student.n_parameters()
    tallies = graph.forward_backward(batch, {loss_term.name: count for loss_term in loss_terms}, 0.0)
    got = grads(student)
    assert any("limbeck_projections" in name for name in got) == (width != 32)
    assert size == make_lm(1).n_parameters()

    student.model.zero_grad()
    keep = batch.labels_BT != IGNORED

    def after_layers(m: CausalLM) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        hooks = [layer.register_forward_hook(lambda _, __, out: found.append(out)) for layer in m.core.model.layers]
        m.hidden(batch.ids_BT, batch.positions_BT)
        for hook in hooks:
            hook.remove()
        return found

    mine, theirs = after_layers(student), after_layers(teacher)
    total = torch.zeros(())
    for i, (a, b) in enumerate(((0, 1), (1, 2))):
        x, y = mine[a][keep], theirs[b][keep].detach()
        if width != 32:
            x = x @ student.model.limbeck_projections[f"teacher_{i}"].weight.T
        d = 1 - (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1)) if distance == "cosine" else ((x - y) ** 2).mean(-1)
        total = total + d.sum() / 2
    assert float(tallies["student<teacher.hidden"].loss) == pytest.approx(float(total.detach()), rel=1e-4)
    (0.5 * total / count + naive(student, None, batch, 0.0, 1.0) / count).backward()
    assert_same_grads(got, grads(student), rtol=1e-3, atol=1e-5)


def test_every_student_is_asked_for_its_own_layers_only(make_lm: Make) -> None:
    batch = collate([Rows(corpus_of(ragged_rows()), 16, pack=True)[0]])
    deep, shallow, teacher = (
        make_lm(1, num_hidden_layers=2),
        make_lm(3, num_hidden_layers=1),
        make_lm(2, num_hidden_layers=3),
    )
    members = {"deep": deep, "shallow": shallow}
    loss_terms = [HiddenLossTerm("deep", "teacher", ((0, 0), (1, 2))), HiddenLossTerm("shallow", "teacher", ((0, 1),))]
    tallies = LossGraph(members, loss_terms, {"teacher": LiveTeacher(teacher)}).forward_backward(
        batch, {loss_term.name: 1 for loss_term in loss_terms}, 0.0
    )
    assert set(tallies) == {"deep<teacher.hidden", "shallow<teacher.hidden"}
    assert grads(deep)
    assert grads(shallow)


def test_layers_are_matched_evenly_or_with_their_origin() -> None:
    assert matched_layers(2, 6) == [(0, 2), (1, 5)]
    assert matched_layers(3, 6, kept=[0, 3, 5]) == [(0, 0), (1, 3), (2, 5)]


# ------------------------------------------------------------------------------------ invariance


@pytest.mark.parametrize("technique", [Soft(), Co()], ids=["soft", "co"])
@pytest.mark.parametrize("pack", [True, False], ids=["packed", "padded"])
def test_batch_and_accumulation_change_nothing(tmp_path: Path, make_lm: Make, technique: Any, pack: bool) -> None:
    """8×1, 4×2 and 2×4 give the same parameters after three steps: ragged padding, prompt masks."""
    rows = Rows(corpus_of(ragged_rows(40)), 12, pack=pack)
    results = []
    for micro_batch_size, accumulation in ((8, 1), (4, 2), (2, 4)):
        section = Training(
            tokens=10_000,
            micro_batch_size=micro_batch_size,
            gradient_accumulation_steps=accumulation,
            lr=1e-2,
            warmup=0,
        )
        batches = CorpusBatches(
            rows, tokens=10_000, micro_batch_size=micro_batch_size, gradient_accumulation_steps=accumulation, seed=5
        )
        batches.steps = 3
        student, teacher = make_lm(1), make_lm(2, hidden_size=48)
        co = isinstance(technique, Co)
        members = {"student": student, "teacher": teacher} if co else {"student": student}
        sources = {} if co else {"teacher": LiveTeacher(teacher)}
        graph = LossGraph(members, loss_terms_of(technique, ["student"]), sources)
        train(graph, batches, TrainingJob(section, tmp_path / f"{micro_batch_size}", seed=0))
        results.append({name: p.detach() for name, p in student.model.named_parameters()})
    start = dict(make_lm(1).model.named_parameters())
    for name, p in results[0].items():
        assert float((p - start[name]).detach().abs().max()) > 1e-3
        for other in results[1:]:
            # A step of AdamW is 1e-2 whatever the gradient's size, so rounding of the smallest shows at 1e-5.
            torch.testing.assert_close(other[name], p, rtol=1e-3, atol=1e-4)


def test_gradient_reaches_the_first_response_token_and_not_past_the_end(make_lm: Make) -> None:
    """Prompt 5 6 7, response 8 9: only the positions of 7 and 8 carry loss, and so gradient."""
    lm = make_lm()
    row = Row((Piece(np.array([5, 6, 7, 8, 9]), np.array([False, False, False, True, True]), 0, 0),))
    longer = Row((Piece(np.array([5, 6, 7, 8, 9, 10, 11]), np.array([True] * 7), 1, 0),))
    batch = collate([row, longer])
    assert batch.labels_BT[0].tolist() == [IGNORED, IGNORED, 8, 9, IGNORED, IGNORED]
    held: list[torch.Tensor] = []
    inner = lm.hidden

    def hidden(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        out = inner(ids, positions)
        out.retain_grad()
        held.append(out)
        return out

    lm.hidden = hidden  # type: ignore[method-assign]
    LossGraph({"student": lm}, [LossTerm("student")]).forward_backward(batch, {"student<labels": 1}, 0.0)
    size_BT = held[0].grad.abs().sum(-1)
    assert (size_BT[0] > 0).tolist() == [False, False, True, True, False, False]
    assert (size_BT[1] > 0).all()


def test_packed_documents_teach_as_if_apart(make_lm: Make) -> None:
    corpus = corpus_of(ragged_rows(6))
    losses = []
    for pack in (True, False):
        rows = Rows(corpus, 64, pack=pack)
        lm = make_lm(1)
        batch = collate([rows[r] for r in range(len(rows))])
        graph = LossGraph({"student": lm}, [LossTerm("student")])
        losses.append(float(graph.forward_backward(batch, {"student<labels": 1}, 0.0)["student<labels"].loss))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# ------------------------------------------------------------------------- budget and schedules


@pytest.mark.parametrize("tokens", [1, 50, 400, 1234])
def test_a_budget_is_met_to_a_step(tokens: int) -> None:
    rows = Rows(corpus_of(ragged_rows(40)), 12, pack=False)
    batches = CorpusBatches(rows, tokens=tokens, micro_batch_size=2, gradient_accumulation_steps=2, seed=1)
    seen = [sum(batch.count() for batch in batches.step(n, ONE_PROCESS)) for n in range(len(batches))]
    assert len(seen) == len(batches)
    assert sum(seen) >= tokens
    assert sum(seen[:-1]) < tokens
    again = CorpusBatches(rows, tokens=tokens, micro_batch_size=2, gradient_accumulation_steps=2, seed=1)
    resumed = [sum(batch.count() for batch in again.step(n, ONE_PROCESS)) for n in range(len(seen) // 2, len(seen))]
    assert resumed == seen[len(seen) // 2 :]


def test_weights_move_as_the_recipe_says() -> None:
    ramp = Schedule(0.2, 0.8, begin=0.25, until=0.75)
    assert [ramp.at(x) for x in (0, 0.25, 0.5, 0.75, 1)] == pytest.approx([0.2, 0.2, 0.5, 0.8, 0.8])
    assert Schedule(1, 0, cosine=True).at(0.5) == pytest.approx(0.5)
    loss_terms = loss_terms_of(Soft(kd_weight=0.4, ce_weight=0), ["s"])
    assert [loss_term.name for loss_term in loss_terms] == ["s<teacher"]
    with pytest.raises(RecipeError, match=r"techniques\.2\.divergence.*foward_kl"), under("techniques.2"):
        loss_terms_of(Soft(divergence="foward_kl"), ["s"])


@pytest.mark.parametrize("name", ["cosine", "wsd", "linear", "constant"])
def test_schedules_warm_up_and_end_where_they_should(name: Any, make_lm: Make) -> None:
    section = Training(tokens=1, lr=1.0, schedule=name, warmup=0.1, min_lr_ratio=0.1)
    lm = make_lm()
    learner = Learner(lm, section, 100)
    lrs = []
    for _ in range(100):
        lrs.append(learner.lr)
        for p in learner.parameters:
            p.grad = torch.zeros_like(p)
        learner.step()
    assert lrs[0] <= 0.1
    assert max(lrs) == pytest.approx(1.0)
    assert lrs[5] == pytest.approx(0.5, abs=0.06)
    end = {"cosine": 0.1, "wsd": 0.1, "linear": 0.0, "constant": 1.0}[name]
    assert learner.lr == pytest.approx(end, abs=0.02)


def test_norms_are_not_decayed_and_matrices_are(make_lm: Make) -> None:
    learner = Learner(make_lm(), Training(tokens=1, weight_decay=0.3), 10)
    decays = {group["weight_decay"]: {p.ndim for p in group["params"]} for group in learner.adamw.param_groups}
    assert decays == {0.3: {2}, 0.0: {1}}


# ------------------------------------------------------------------------ checkpoints and meters


def toy_training(make_lm: Make, folder: Path, tokens: int = 600, **changes: Any) -> tuple[CausalLM, dict[str, float]]:
    section = Training(
        tokens=tokens, micro_batch_size=4, checkpoint_every_steps=4, log_every_steps=3, **{"lr": 1e-2, **changes}
    )
    rows = Rows(corpus_of(ragged_rows(40)), 12, pack=True)
    lm = make_lm(1, attention_dropout=0.1)
    batches = CorpusBatches(rows, tokens=tokens, micro_batch_size=4, gradient_accumulation_steps=1, seed=2)
    with under("training", DivergedError):
        graph = LossGraph({"student": lm}, [LossTerm("student")])
        return lm, train(graph, batches, TrainingJob(section, folder, seed=3))


class Stop(Exception):  # noqa: N818
    pass


def stopped_training(make_lm: Make, folder: Path, after: int) -> None:
    rows = Rows(corpus_of(ragged_rows(40)), 12, pack=True)
    section = Training(tokens=600, micro_batch_size=4, checkpoint_every_steps=4, log_every_steps=3, lr=1e-2)
    batches = CorpusBatches(rows, tokens=600, micro_batch_size=4, gradient_accumulation_steps=1, seed=2)
    graph = LossGraph({"student": make_lm(1, attention_dropout=0.1)}, [LossTerm("student")])

    def stop(step: int, *_: Any) -> None:
        if step == after:
            raise Stop

    with pytest.raises(Stop):
        train(graph, batches, TrainingJob(section, folder, seed=3), on_step=stop)


def same(a: CausalLM, b: CausalLM) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True))


def records(folder: Path) -> list[dict[str, Any]]:
    timeless = ("tokens_per_second", "seconds")
    return [{k: v for k, v in r.items() if k not in timeless} for r in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.parametrize("after", [3, 5, 9])
def test_a_resumed_training_ends_with_the_same_bytes(tmp_path: Path, make_lm: Make, after: int) -> None:
    whole, facts = toy_training(make_lm, tmp_path / "whole")
    assert facts["steps"] > 10
    stopped_training(make_lm, tmp_path / "cut", after)
    resumed, _ = toy_training(make_lm, tmp_path / "cut")
    assert same(whole, resumed)
    assert records(tmp_path / "whole") == records(tmp_path / "cut")


def test_a_torn_checkpoint_is_passed_over(tmp_path: Path, make_lm: Make) -> None:
    whole, _ = toy_training(make_lm, tmp_path / "whole")
    stopped_training(make_lm, tmp_path / "cut", 9)
    kept = sorted((tmp_path / "cut" / "checkpoints").iterdir())
    assert [path.name for path in kept] == ["step-00000004", "step-00000008"]
    weights = kept[-1] / "student.weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    resumed, _ = toy_training(make_lm, tmp_path / "cut")
    assert same(whole, resumed)


def test_checkpoints_hold_nothing_that_can_run(tmp_path: Path, make_lm: Make) -> None:
    stopped_training(make_lm, tmp_path / "cut", 5)
    files = [path for path in (tmp_path / "cut" / "checkpoints").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    assert Checkpoints(tmp_path / "absent", {}).restore() is None


class Accidents(LossGraph):
    """Infinite gradients at given steps of a training whose seed is 3; they follow the step, as real ones do."""

    def __init__(self, *args: Any, at: set[int]) -> None:
        super().__init__(*args)
        self.at = at

    def forward_backward(self, batch: Batch, denominators: Any, progress: float) -> dict[str, Tally]:
        step = torch.initial_seed() - 3 * 1_000_003
        tallies = super().forward_backward(batch, denominators, progress)
        if step in self.at:
            gradient = next(p.grad for p in self.trainable["student"].model.parameters() if p.grad is not None)
            gradient.view(-1)[0] = math.inf
        return tallies


def accidental(make_lm: Make, folder: Path, at: set[int], stop: int | None = None) -> tuple[CausalLM, Any]:
    rows = Rows(corpus_of(ragged_rows(40)), 12, pack=True)
    section = Training(tokens=600, micro_batch_size=4, checkpoint_every_steps=4, log_every_steps=3, lr=1e-2)
    batches = CorpusBatches(rows, tokens=600, micro_batch_size=4, gradient_accumulation_steps=1, seed=2)
    lm = make_lm(1, attention_dropout=0.1)
    graph = Accidents({"student": lm}, [LossTerm("student")], at=at)

    def on_step(step: int, *_: Any) -> None:
        if step == stop:
            raise Stop

    with under("training", DivergedError):
        return lm, train(graph, batches, TrainingJob(section, folder, seed=3), on_step=on_step)


def test_an_infinite_gradient_costs_one_update(tmp_path: Path, make_lm: Make) -> None:
    quiet, facts = accidental(make_lm, tmp_path / "quiet", set())
    assert "skipped" not in facts
    skipped, facts = accidental(make_lm, tmp_path / "accidents", {1, 5, 8, 9})
    assert facts["skipped"] == {"student": 4}
    assert not same(quiet, skipped)
    assert all(bool(torch.isfinite(p).all()) for p in skipped.model.parameters())
    lines = records(tmp_path / "accidents")
    assert [line.get("skipped/student") for line in lines[:5]] == [1, 1, 2, 3, 4]  # at steps 3, 4, 6, 8 and 9
    assert "NaN" not in (tmp_path / "accidents" / "metrics.jsonl").read_text()
    assert "Infinity" not in (tmp_path / "accidents" / "metrics.jsonl").read_text()
    rates = [[line["lr/student"] for line in records(tmp_path / name)] for name in ("quiet", "accidents")]
    assert rates[0] == rates[1]  # of the step's number


@pytest.mark.parametrize("stop", [5, 6, 9, 10])
def test_skips_are_resumed_to_the_same_bytes(tmp_path: Path, make_lm: Make, stop: int) -> None:
    at = {1, 5, 8, 9}  # a checkpoint is due at 8, in a series: it is not written
    whole, facts = accidental(make_lm, tmp_path / "whole", at)
    with pytest.raises(Stop):
        accidental(make_lm, tmp_path / "cut", at, stop)
    assert [p.name for p in (tmp_path / "cut" / "checkpoints").iterdir()] == ["step-00000004"]
    resumed, found = accidental(make_lm, tmp_path / "cut", at)
    assert same(whole, resumed)
    assert found["skipped"] == facts["skipped"]
    assert records(tmp_path / "whole") == records(tmp_path / "cut")


def test_a_training_that_diverges_keeps_and_names_its_last_good_checkpoint(tmp_path: Path, make_lm: Make) -> None:
    kept = tmp_path / "checkpoints"
    with pytest.raises(DivergedError) as caught:
        accidental(make_lm, tmp_path, set(range(9, 99)))  # made at 8: nobody knows yet whether it is good
    assert caught.value.key == "training.lr"
    assert "the gradient of student was not finite in the 5 steps to step 13" in caught.value.what
    assert caught.value.what.endswith(f"the last good checkpoint is {kept / 'step-00000004'}")
    assert "another `run:` folder" in caught.value.line()
    assert sorted(path.name for path in kept.iterdir()) == ["step-00000004", "step-00000008"]
    with pytest.raises(DivergedError, match="step-00000004"):  # again the same
        accidental(make_lm, tmp_path, set(range(9, 99)))


def test_a_learning_rate_that_blows_up_is_named(tmp_path: Path, make_lm: Make) -> None:
    with pytest.raises(DivergedError, match=r"training\.lr: the gradient of student was not finite in the 5 steps"):
        toy_training(make_lm, tmp_path, lr=1e30, clip=0.0)
    lines = records(tmp_path)
    assert lines
    assert all(math.isfinite(value) for line in lines for value in line.values())


@pytest.mark.parametrize("tokens", [40, 100])
def test_too_few_steps_for_a_series_do_not_hide_a_divergence(tmp_path: Path, make_lm: Make, tokens: int) -> None:
    with pytest.raises(
        DivergedError, match=r"training\.lr: the gradient of student was not finite (after|in the \d steps? to) step"
    ):
        toy_training(make_lm, tmp_path, tokens=tokens, lr=1e30, clip=0.0)


def test_an_accident_in_the_last_step_is_only_counted(tmp_path: Path, make_lm: Make) -> None:
    _, facts = accidental(make_lm, tmp_path / "whole", set())
    lm, facts = accidental(make_lm, tmp_path / "cut", {int(facts["steps"])})
    assert facts["skipped"] == {"student": 1}
    assert all(bool(torch.isfinite(p).all()) for p in lm.model.parameters())


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd", "tvd"])
@pytest.mark.parametrize("pack", [True, False])
def test_a_teacher_of_nan_is_blamed_with_its_token_and_text(
    tmp_path: Path, make_lm: Make, divergence: str, pack: bool
) -> None:
    student, teacher = make_lm(1), make_lm(2, tie_word_embeddings=False)
    documents = ragged_rows(40)
    ids = [*documents[7][0][:4], 310, *documents[7][0][4:]]
    documents[7] = (ids, [True] * len(ids))
    with torch.no_grad():
        teacher.model.get_input_embeddings().weight[310] = math.nan
    assert not any(310 in other for i, (other, _) in enumerate(documents) if i != 7)
    rows = Rows(corpus_of(documents), 64, pack=pack)
    section = Training(tokens=2000, micro_batch_size=4)
    batches = CorpusBatches(rows, tokens=2000, micro_batch_size=4, gradient_accumulation_steps=1, seed=2)
    loss_terms = loss_terms_of(Soft(divergence=divergence), ["student"])
    graph = LossGraph({"student": student}, loss_terms, {"teacher": LiveTeacher(teacher)})
    with pytest.raises(InputError) as caught:
        train(graph, batches, TrainingJob(section, tmp_path, seed=0))
    assert caught.value.key == "teacher"
    assert "are not finite at token 310 (" in caught.value.what
    at = ids.index(310) + 1
    begins = teacher.tokenizer.decode(ids[:-1][:20])[:60]  # the last token is never read
    assert f"number {at} of the text that begins {begins!r}" in caught.value.what
    assert "training.lr" not in caught.value.line()
    assert all(bool(torch.isfinite(p).all()) for p in student.model.parameters())


def test_a_teacher_of_nan_is_blamed_where_it_is_measured(make_lm: Make) -> None:
    documents = ragged_rows(12)
    ids = [5, 6, 310, 7, 8]
    documents[3] = (ids, [True] * 5)
    corpus = corpus_of(documents)
    teacher = make_lm(2, tie_word_embeddings=False)
    text = Heldout(corpus, Rows(corpus, 12, pack=False), None)
    assert np.isfinite(text.measure(teacher).nats).all()
    with torch.no_grad():
        teacher.model.get_input_embeddings().weight[310] = math.nan
    says = r"teacher: the logits of .* are not finite at token 310 .* number 3 of the"
    with pytest.raises(InputError, match=says), under("teacher"):
        text.measure(teacher)
    with pytest.raises(InputError, match="alone-seed0-student: the logits"), under("alone-seed0-student"):
        text.measure(teacher, make_lm(1))


def test_a_teacher_whose_head_alone_overflows_is_blamed(make_lm: Make) -> None:
    batch = collate([Rows(corpus_of(ragged_rows()), 16, pack=True)[0]])
    student, teacher = make_lm(1), make_lm(2)
    graph = LossGraph({"student": student}, [LossTerm("student", "teacher")], {"teacher": LiveTeacher(teacher)})
    assert faulty_teacher(graph, [batch]) is None
    with torch.no_grad():
        teacher.model.get_output_embeddings().weight[5] = math.inf
    fault = faulty_teacher(graph, [batch])
    assert fault is not None
    assert fault.key == "teacher"


def test_the_loss_shown_is_what_is_minimised(tmp_path: Path, make_lm: Make) -> None:
    batch = collate([Rows(corpus_of(ragged_rows()), 16, pack=True)[r] for r in range(3)])
    count = batch.count()
    student, twin, teacher = make_lm(1), make_lm(1), make_lm(2, hidden_size=48)
    ramp = {"start": 0.2, "end": 0.8}
    loss_terms: list[LossTerm | HiddenLossTerm] = [
        *loss_terms_of(Soft(temperature=2.0, kd_weight=ramp, ce_weight=0.3), ["student"]),
        HiddenLossTerm("student", "teacher", ((0, 1),), weight=Schedule.constant(0.4)),
    ]
    graph = LossGraph({"student": student}, loss_terms, {"teacher": LiveTeacher(teacher)})
    denominators = {loss_term.name: count for loss_term in loss_terms}
    tallies = graph.forward_backward(batch, denominators, 0.5)
    found = float(graph.objectives(tallies, denominators, 0.5)["student"])
    means = {name: float(tally.loss) / count for name, tally in tallies.items()}
    keep = batch.labels_BT != IGNORED
    ids, positions = batch.ids_BT, batch.positions_BT
    logits = [m.model(input_ids=ids, position_ids=positions, use_cache=False).logits[keep] for m in (twin, teacher)]
    logq, logp = (F.log_softmax(x.double() / 2.0, -1) for x in logits)
    kl = float((logp.exp() * (logp - logq)).sum().detach()) / count
    labels = float(naive(twin, None, batch, 0.0, 1.0).detach()) / count
    assert means["student<teacher"] == pytest.approx(kl, rel=1e-4)
    assert found == pytest.approx(4 * 0.5 * kl + 0.3 * labels + 0.4 * means["student<teacher.hidden"], rel=1e-4)
    assert loss_said({**means, "student": found}) == (
        f"loss {found:.3f} (teacher {kl:.3f}, labels {labels:.3f}, teacher.hidden "
        f"{means['student<teacher.hidden']:.3f})"
    )


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ({"student<labels": 2.0, "student": 2.0}, "loss 2.000"),
        ({"a<teacher": 1.0, "a<labels": 2.0, "a": 1.1, "teacher<labels": 3.0, "teacher": 3.0},
         "loss a 1.100, teacher 3.000"),
        ({}, ""),
    ],
)  # fmt: skip
def test_losses_are_said_by_name(losses: dict[str, float], said: str) -> None:
    assert loss_said(losses) == said


def test_a_training_logs_what_each_learner_minimises(tmp_path: Path, make_lm: Make) -> None:
    toy_training(make_lm, tmp_path)
    lines = records(tmp_path)
    assert lines
    for line in lines:
        assert line["loss/student"] == pytest.approx(line["loss/student<labels"], rel=1e-6)


def seen(events: Path) -> list[Any]:
    """The events of a TensorBoard file: length, its checksum, the event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    content, at, found = events.read_bytes(), 0, []
    while at < len(content):
        (size,) = struct.unpack_from("<Q", content, at)
        found.append(Event.FromString(content[at + 12 : at + 12 + size]))
        at += 16 + size
    return found


def test_metrics_are_written_by_no_thread(tmp_path: Path) -> None:
    """A thread that an interrupt finds half started is one that closing waits for, for ever."""
    before = threading.enumerate()
    meter = Meter(tmp_path)
    meter.add({"student": Tally(torch.tensor(2.0), torch.tensor(1))})
    meter.line(1, 1, {})
    assert threading.enumerate() == before
    (events,) = (tmp_path / "tensorboard").glob("events*")
    assert seen(events)[-1].step == 1  # on disk already
    meter.close()


def test_metrics_are_means_over_tokens_and_reach_tensorboard(tmp_path: Path, make_lm: Make) -> None:
    _, facts = toy_training(make_lm, tmp_path)
    lines = records(tmp_path)
    assert lines[-1]["step"] == facts["steps"]
    assert lines[-1]["tokens"] == facts["tokens"]
    assert lines[0]["loss/student<labels"] == pytest.approx(math.log(320), rel=0.1)
    (events,) = (tmp_path / "tensorboard").glob("events*")
    shown = [(event.step, {value.tag: value.simple_value for value in event.summary.value}) for event in seen(events)]
    assert [step for step, _ in shown[1:]] == [line["step"] for line in lines]  # the first says the format
    assert shown[-1][1]["loss/student"] == pytest.approx(lines[-1]["loss/student"], rel=1e-6)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "to')
    assert records(tmp_path) == lines


def test_techniques_of_a_recipe_have_loss_terms(raw_recipe: dict[str, Any]) -> None:
    recipe = parse_recipe(raw_recipe)
    names = {t.kind: [loss_term.name for loss_term in loss_terms_of(t, ["student"])] for t in recipe.techniques}
    assert names == {
        "alone": ["student<labels"],
        "hard": ["student<labels"],
        "soft": ["student<teacher", "student<labels"],
        "co": ["teacher<labels", "student<teacher", "student<labels"],
    }
