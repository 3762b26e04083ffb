"""Batches of a step: a function of its number alone, shared by all ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from limbeck.data.packing import Batch, Rows, collate, epoch_order, row_order
from limbeck.errors import InputError
from limbeck.models.causal_lm import CausalLM
from limbeck.recipe import Soft, Training
from limbeck.signals.live import LiveTeacher
from limbeck.training.loop import TrainingJob, train
from limbeck.training.loss_graph import LossGraph, LossTerm
from limbeck.training.metrics import read_metrics
from limbeck.training.sources import ONE_PROCESS, CorpusBatches
from limbeck.training.techniques import loss_terms_of
from tests.unit.test_data import corpus_of
from tests.unit.test_training import assert_same_grads, grads, ragged_rows

Make = Callable[..., CausalLM]


@dataclass(frozen=True)
class Rank:
    """One of several processes, as far as batches are concerned."""

    rank: int
    size: int

    def sum(self, x: Tensor) -> Tensor:
        raise AssertionError("batches need no communication")


def source(accumulation: int = 3, tokens: int = 900) -> CorpusBatches:
    rows = Rows(corpus_of(ragged_rows(20)), 12, pack=False)
    return CorpusBatches(rows, tokens=tokens, micro_batch_size=2, gradient_accumulation_steps=accumulation, seed=4)


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


def test_rows_come_in_the_seeded_order_epoch_by_epoch() -> None:
    batches = source()
    order = row_order(len(batches.usable), 4)
    for n in range(len(batches)):
        for found in batches.step(n, ONE_PROCESS):
            assert same(found, collate([batches.rows[batches.usable[r]] for r in islice(order, 2)]))
    assert len(batches) * 6 > 2 * len(batches.usable)  # several epochs, and steps across their borders
    epochs = [epoch_order(7, 4, epoch).tolist() for epoch in range(2)]
    assert list(islice(row_order(7, 4), 14)) == [*epochs[0], *epochs[1]]
    assert sorted(epochs[0]) == list(range(7))
    assert epochs[0] != epochs[1]


def test_steps_may_be_asked_for_in_any_order() -> None:
    first, other = source(), source()
    wanted = [first.step(n, ONE_PROCESS) for n in range(len(first))]
    for n in [*reversed(range(len(first))), 0, len(first) - 1, 0]:
        assert all(same(a, b) for a, b in zip(other.step(n, ONE_PROCESS), wanted[n], strict=True))
    for n in (-1, len(first)):
        with pytest.raises(IndexError, match=f"step {n} of {len(first)}"):
            first.step(n, ONE_PROCESS)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_ranks_share_the_micro_batches_of_a_step(size: int) -> None:
    batches = source()
    for n in range(len(batches)):
        whole = batches.step(n, ONE_PROCESS)
        shares = [batches.step(n, Rank(rank, size)) for rank in range(size)]
        assert {len(share) for share in shares} == {-(-len(whole) // size)}
        labelled = [[batch for batch in share if batch.count()] for share in shares]
        assert sum(map(len, labelled)) == len(whole)
        for i, batch in enumerate(whole):
            assert same(labelled[i % size][i // size], batch)
        fill = [batch for share in shares for batch in share if not batch.count()]
        assert not any(bool(batch.words_BT.any()) for batch in fill)


@pytest.mark.parametrize("size", [2, 3])
def test_the_gradients_of_all_ranks_add_up_to_those_of_one_process(make_lm: Make, size: int) -> None:
    batches, terms = source(accumulation=4), loss_terms_of(Soft(kd_weight=0.7, ce_weight=0.3), ["student"])
    found = []
    for worlds in ([ONE_PROCESS], [Rank(rank, size) for rank in range(size)]):
        student = make_lm(1)
        graph = LossGraph({"student": student}, terms, {"teacher": LiveTeacher(make_lm(2))})
        shares = [batches.step(1, world) for world in worlds]
        counts = torch.stack([graph.count_labels(share) for share in shares]).sum(0)
        for share in shares:
            for batch in share:
                graph.forward_backward(batch, graph.denominators(counts), 0.0)
        found.append(grads(student))
    assert_same_grads(found[0], found[1], rtol=1e-4, atol=1e-7)


class Twins:
    """Two ranks that see the same batches: every sum is twice the own."""

    rank, size = 0, 1

    def sum(self, x: Tensor) -> Tensor:
        return 2 * x


def test_the_loop_counts_over_all_ranks_before_it_divides(tmp_path: Path, make_lm: Make) -> None:
    section = Training(tokens=200, micro_batch_size=2, log_every_steps=1)
    lines, tokens = [], []
    for name, world in (("one", ONE_PROCESS), ("twins", Twins())):
        graph = LossGraph({"student": make_lm(1)}, [LossTerm("student")])
        facts = train(graph, source(1, tokens=200), TrainingJob(section, tmp_path / name, seed=0), world=world)
        tokens.append(facts["tokens"])
        lines.append(read_metrics(tmp_path / name / "metrics.jsonl")[0])
    assert tokens[1] == 2 * tokens[0]
    assert lines[1]["grad_norm/student"] == pytest.approx(lines[0]["grad_norm/student"] / 2, rel=1e-5)
    for key in ("loss/student", "loss/student<labels", "agreement/student<labels"):
        assert lines[1][key] == pytest.approx(lines[0][key], rel=1e-6)


def test_a_corpus_without_labels_is_refused() -> None:
    rows = Rows(corpus_of([([1, 2, 3], [False] * 3)]), 12, pack=False)
    with pytest.raises(InputError, match="the corpus holds no token to learn"):
        CorpusBatches(rows, tokens=10, micro_batch_size=2, gradient_accumulation_steps=1, seed=0)
