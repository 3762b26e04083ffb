"""Sources of signals: what a live teacher says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from limbeck.data.packing import IGNORED, Batch, Rows, collate
from limbeck.models.causal_lm import CausalLM
from limbeck.objectives.targets import Dense
from limbeck.signals.live import LiveTeacher
from limbeck.signals.source import Access, HiddenShape, SignalSource
from tests.unit.test_data import corpus_of
from tests.unit.test_training import ragged_rows

Make = Callable[..., CausalLM]


def some_batch() -> Batch:
    rows = Rows(corpus_of(ragged_rows()), 16, pack=True)
    return collate([rows[0], rows[1]])


def test_a_live_teacher_answers_every_label(make_lm: Make) -> None:
    lm, batch = make_lm(2, attention_dropout=0.5), some_batch()
    teacher: SignalSource = LiveTeacher(lm)
    assert teacher.access == Access.LOGITS
    assert teacher.hidden_shape == HiddenShape(2, 32)
    signal = teacher.signal(batch)
    assert isinstance(signal.target, Dense)
    assert len(signal.target) == teacher.count(batch) == batch.count()
    assert signal.mask_BT is None
    assert signal.weight_N is None
    assert signal.layers == {}
    keep = batch.labels_BT != IGNORED
    expected = lm.model(input_ids=batch.ids_BT, position_ids=batch.positions_BT, use_cache=False).logits[keep]
    torch.testing.assert_close(signal.target.hidden_NE @ signal.target.head_VE.T, expected)
    assert torch.equal(teacher.signal(batch).target.hidden_NE, signal.target.hidden_NE)  # without dropout


def test_a_live_teacher_shows_the_layers_that_are_asked_for(make_lm: Make) -> None:
    lm, batch = make_lm(2), some_batch()
    plain, signal = LiveTeacher(lm).signal(batch), LiveTeacher(lm).signal(batch, [1, 0])
    assert torch.equal(plain.target.hidden_NE, signal.target.hidden_NE)
    last_BTD, states = lm.hidden_of_layers(batch.ids_BT, batch.positions_BT, [0, 1])
    keep = batch.labels_BT != IGNORED
    assert list(signal.layers) == [1, 0]
    for layer, state_BTD in enumerate(states):
        assert torch.equal(signal.layers[layer], state_BTD[keep])
    assert torch.equal(signal.target.hidden_NE, last_BTD[keep])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_live_teacher_is_frozen(make_lm: Make, precision: str) -> None:
    lm = make_lm(2)
    lm.model.train()
    signal = LiveTeacher(lm, precision).signal(some_batch(), [0])
    assert not lm.model.training
    assert not any(p.requires_grad for p in lm.model.parameters())
    assert not signal.target.hidden_NE.requires_grad
    assert not signal.layers[0].requires_grad


def test_a_fingerprint_is_of_what_answers(make_lm: Make) -> None:
    assert LiveTeacher(make_lm(2)).fingerprint == LiveTeacher(make_lm(2)).fingerprint
    assert LiveTeacher(make_lm(2)).fingerprint != LiveTeacher(make_lm(3)).fingerprint
    assert LiveTeacher(make_lm(2)).fingerprint != LiveTeacher(make_lm(2), "bf16").fingerprint
