"""A causal language model as one module: one forward, hooks that fire, modes and weights of the model inside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from limbeck.data.packing import Batch, Rows, collate
from limbeck.models.causal_lm import CausalLM, Traits
from limbeck.models.load import with_lora
from limbeck.models.restricted import RestrictedModel
from limbeck.pruning.vocabulary import choose_tokens, cut_tokenizer
from limbeck.recipe import Lora
from limbeck.signals.live import LiveTeacher
from limbeck.training.loss_graph import HiddenLossTerm, LossGraph, LossTerm
from tests.unit.test_data import corpus_of

Make = Callable[..., CausalLM]


def batch_of(*documents: int) -> Batch:
    """One row of documents of these lengths."""
    made = [(list(range(5 * i + 1, 5 * i + 1 + n)), [True] * n) for i, n in enumerate(documents)]
    return collate([Rows(corpus_of(made), 32, pack=True)[0]])


def learn(lm: CausalLM, *more: Any, teacher: CausalLM | None = None) -> None:
    terms = [LossTerm("student"), *more]
    sources = {"teacher": LiveTeacher(teacher)} if teacher is not None else {}
    LossGraph({"student": lm}, terms, sources).forward_backward(batch_of(9, 7), {term.name: 1 for term in terms}, 0.0)


@pytest.mark.parametrize("tied", [True, False])
def test_hooks_fire_in_training(tied: bool, make_lm: Make) -> None:
    lm, fired = make_lm(tie_word_embeddings=tied), Counter[str]()
    lm.register_forward_pre_hook(lambda *_: fired.update(["before"]))
    lm.register_forward_hook(lambda *_: fired.update(["after"]))
    names = [name for name, _ in lm.named_parameters()]
    for name, p in lm.named_parameters():
        p.register_hook(lambda _grad, name=name: fired.update([name]))
        p.register_post_accumulate_grad_hook(lambda _p, name=name: fired.update([f"{name} accumulated"]))
    learn(lm)
    once = ["before", "after", *names, *(f"{name} accumulated" for name in names)]
    assert fired == Counter(once)
    assert any("lm_head" in name for name in names) != tied


def test_states_of_layers_come_from_the_same_forward(make_lm: Make) -> None:
    lm, teacher, fired = make_lm(), make_lm(2, hidden_size=48), Counter[str]()
    lm.register_forward_hook(lambda *_: fired.update(["student"]))
    teacher.register_forward_hook(lambda *_: fired.update(["teacher"]))
    learn(lm, HiddenLossTerm("student", "teacher", ((1, 1),)), teacher=teacher)
    assert fired == {"student": 1, "teacher": 1}
    batch = batch_of(9, 7)
    last, (first, again) = lm(batch.ids_BT, batch.positions_BT, [0, 0])
    assert torch.equal(first, again)
    assert torch.equal(last, lm.hidden(batch.ids_BT, batch.positions_BT))
    assert lm(batch.ids_BT, batch.positions_BT)[1] == []
    assert not any(layer._forward_hooks for layer in lm.layers())


def test_modes_are_those_of_the_model_inside(make_lm: Make) -> None:
    lm = make_lm()
    for mode in (True, False):
        lm.model.train(mode)
        assert lm.training is mode
        lm.train(not mode)
        assert lm.model.training is lm.training is not mode
        assert all(module.training is not mode for module in lm.modules())
        with lm.evaluating():
            assert not lm.model.training
        assert lm.training is not mode


def test_the_model_inside_may_be_replaced(make_lm: Make) -> None:
    lm, other = make_lm(1), make_lm(2)
    names = [name for name, _ in lm.named_parameters()]
    lm.model = other.model
    assert [name for name, _ in lm.named_parameters()] == names
    assert {id(p) for p in lm.parameters()} == {id(p) for p in other.model.parameters()}
    batch = batch_of(9)
    assert torch.equal(lm.hidden(batch.ids_BT, batch.positions_BT), other.hidden(batch.ids_BT, batch.positions_BT))
    adapted = with_lora(lm, Lora(rank=2), seed=0)
    assert adapted is lm
    assert any("lora_A" in name for name, _ in lm.named_parameters())
    assert lm.n_parameters() == other.n_parameters() == sum(p.numel() for p in make_lm(2).parameters())


def test_a_view_shares_the_weights(make_lm: Make, tokenizer: Any) -> None:
    lm = make_lm(2)
    kept = choose_tokens(lm.model, tokenizer, dict.fromkeys(range(300), 1), other=True)
    view = RestrictedModel(lm, kept, cut_tokenizer(tokenizer, kept))
    assert {id(p) for p in view.parameters()} == {id(p) for p in lm.parameters()}
    assert view.traits is lm.traits
    view.train()
    assert lm.training


def test_traits_are_read_and_proven(make_lm: Make) -> None:
    lm = make_lm(seq_len=64)
    assert lm.traits == Traits(None, 1.0, 512, packs=True)
    assert not CausalLM(lm.model, lm.tokenizer).packs, "nothing is known before the proof"
    gemma = make_lm(model_type="gemma2", final_logit_softcapping=5.0, head_dim=8)
    assert gemma.traits.softcap == gemma.head().softcap == 5.0
    cohere = make_lm(model_type="cohere", logit_scale=0.25)
    assert cohere.traits.scale == cohere.head().scale == 0.25


def test_an_attribute_that_is_missing_inside_is_the_one_that_is_named(make_lm: Make) -> None:
    lm = make_lm()
    lm.model.get_decoder = lambda: lm.model.trunk
    with pytest.raises(AttributeError, match="'LlamaForCausalLM' object has no attribute 'trunk'"):
        _ = lm.decoder
    with pytest.raises(AttributeError, match="'CausalLM' object has no attribute 'nothing'"):
        _ = lm.nothing


def test_shared_weights_are_not_changed(make_lm: Make) -> None:
    lm = make_lm()
    lm.shared = True
    with pytest.raises(RuntimeError, match="lease it `rounded`"):
        lm.hold_in_bfloat16()
    lm.hold_in_float32()  # they are already
    assert {p.dtype for p in lm.parameters()} == {torch.float32}
    lm.model.to(torch.bfloat16)
    lm.hold_in_bfloat16()
    with pytest.raises(RuntimeError, match="`trainable`"):
        lm.hold_in_float32()
