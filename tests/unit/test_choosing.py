"""Which layers a student keeps where the recipe leaves it open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from limbeck.data.packing import Batch, Rows, collate
from limbeck.evaluation.choosing import calibration_rows, choose_kept, cut_student
from limbeck.evaluation.gap import mean_kl, taught
from limbeck.models.causal_lm import CausalLM
from limbeck.pruning.depth import choose_layers, cut_depth, layer_cosines
from limbeck.recipe import CutStudent
from tests.unit.cutting.conftest import make
from tests.unit.test_data import corpus_of
from tests.unit.test_training import ragged_rows


def calibration() -> Iterator[Batch]:
    rows = Rows(corpus_of(ragged_rows(9)), 16, pack=True)
    for start in range(0, len(rows), 3):
        yield collate([rows[r] for r in range(start, min(start + 3, len(rows)))])


def spec(chooser: str, layers: int, keep_ends: bool = True) -> CutStudent:
    return CutStudent.model_validate({"from": "teacher", "layers": layers, "chooser": chooser, "keep_ends": keep_ends})


def naive_kl(lm: CausalLM, teacher: CausalLM) -> float:
    total, positions = 0.0, 0
    for batch in calibration():
        real = batch.segments_BT >= 0
        with torch.no_grad():
            logq, logp = (
                m.model(input_ids=batch.ids_BT, position_ids=batch.positions_BT, use_cache=False)
                .logits[real][:, :320]
                .double()
                .log_softmax(-1)
                for m in (lm, teacher)
            )
        total += float((logp.exp() * (logp - logq)).sum())
        positions += int(real.sum())
    return total / positions


def test_the_mean_distance_is_the_naive_one(make_lm: Callable[..., CausalLM]) -> None:
    student, teacher = make_lm(1), make_lm(2, hidden_size=48, vocab_size=384)
    assert mean_kl(student, taught(teacher, calibration())) == pytest.approx(naive_kl(student, teacher), rel=1e-4)


def test_auto_keeps_what_is_nearer_to_the_teacher(make_lm: Callable[..., CausalLM]) -> None:
    winners = set()
    for seed in range(10):
        lm = make_lm(seed, num_hidden_layers=8)
        layers = lm.model.model.layers
        scales = 12 * torch.rand(8, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            for layer, scale in zip(layers, scales, strict=True):
                for matrix in (p for p in layer.parameters() if p.ndim > 1):
                    matrix.mul_(scale)  # layers that matter, some more than others
            if seed % 2:  # each of two changes much, the second nearly undoes the first: only a block sees it
                layers[3].mlp.down_proj.weight.mul_(20 / scales[3])
                layers[4].load_state_dict(layers[3].state_dict())
                layers[4].mlp.down_proj.weight.mul_(-1)
                layers[4].self_attn.o_proj.weight.mul_(-1)
        cosines = layer_cosines(lm.model, calibration())
        both = [choose_layers(8, 6, how, cosines=cosines) for how in ("block_influence", "contiguous")]
        kls = [naive_kl(CausalLM(cut_depth(lm.model, kept), lm.tokenizer), lm) for kept in both]
        nearer = int(kls[1] < kls[0])
        assert choose_kept(lm, spec("auto", 6), calibration) == both[nearer]
        assert choose_kept(lm, spec("contiguous", 6), calibration) == both[1]
        if both[0] != both[1]:
            winners.add(nearer)
    assert winners == {0, 1}


def test_auto_keeps_the_windows_regular(tokenizer: object) -> None:
    """Gemma's layers with full attention stay where other programs expect them, though the other cut be nearer."""
    lm = CausalLM(make("gemma3_text", num_hidden_layers=12, vocab_size=320), tokenizer)
    layers = lm.model.model.layers
    with torch.no_grad():  # every layer adds a little; two add twice as much, and the second undoes the first
        layers[4].load_state_dict(layers[3].state_dict())
        for i, layer in enumerate(layers):
            adds = {3: 0.06, 4: -0.06}.get(i, 0.03)
            for norm in (layer.post_feedforward_layernorm, layer.post_attention_layernorm):
                norm.weight.fill_(adds - 1)  # it multiplies by one and the weight
    regular, block, auto = (
        choose_kept(lm, spec(how, 10, keep_ends=False), calibration)
        for how in ("block_influence", "contiguous", "auto")
    )
    assert block == [0, 1, 2, 5, 6, 7, 8, 9, 10, 11]
    near, nearer = (naive_kl(CausalLM(cut_depth(lm.model, kept), tokenizer), lm) for kept in (regular, block))
    assert nearer < near
    assert auto == regular


@pytest.mark.parametrize(
    ("section", "passes"),
    [
        ({"layers": 2, "chooser": "even"}, 0),
        ({"layers": 2, "chooser": "block_influence"}, 1),
        ({"layers": [0, 1], "ffn": 32}, 1),
        ({"layers": 2, "chooser": "contiguous", "ffn": 32, "heads": 2}, 2),
        ({"layers": 2}, 2),
    ],
)
def test_of_a_cut_is_known_how_much_is_read(
    make_lm: Callable[..., CausalLM], section: dict[str, Any], passes: int
) -> None:
    rows = Rows(corpus_of(ragged_rows(9)), 16, pack=True)
    told: list[int] = []
    cut = CutStudent.model_validate({"from": "teacher", "calibration_tokens": 5 * 16, **section})
    cut_student(make_lm(1, num_hidden_layers=4), cut, rows, None, told.append)
    assert calibration_rows(cut, rows) == passes * 5
    # Where `auto`'s two choices are one, the second pass is not needed.
    assert sum(told) in ((5, 10) if section == {"layers": 2} else (passes * 5,))
