from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.errors import RecipeError, under
from limbeck.pruning.architectures import architecture_of, llama_cpp_reads_windows, window_period
from limbeck.pruning.depth import choose_layers, cut_depth, layer_cosines
from tests.unit.cutting import reference
from tests.unit.cutting.conftest import BY_HAND, Batch, batch_of, check_lives, logits, make

S, F = "sliding_attention", "full_attention"


@pytest.mark.parametrize("kind", BY_HAND)
def test_the_reference_is_the_model(kind: str, ids: Tensor) -> None:
    """Everything below leans on the decoder written by hand: it agrees with transformers on each whole toy."""
    model = make(kind)
    torch.testing.assert_close(reference.of_model(model, ids[0]), logits(model, ids)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", BY_HAND)
@pytest.mark.parametrize("keep", [[0, 2, 5], [1, 3, 4], [2], [0, 1, 2, 3, 4, 5]])
def test_a_cut_is_the_kept_layers_in_their_order(kind: str, keep: list[int], ids: Tensor) -> None:
    model = make(kind)
    names = reference.HF_GEMMA if kind == "gemma3_text" else reference.HF
    whole = reference.shape_of(model.config)
    shape = copy.copy(whole)
    shape.layers = len(keep)
    shape.theta, shape.window = [whole.theta[i] for i in keep], [whole.window[i] for i in keep]
    state = model.state_dict()

    def sliced(name: str) -> Tensor | None:
        for new, old in enumerate(keep):
            if name.startswith(f"model.layers.{new}."):
                return state.get(name.replace(f"layers.{new}.", f"layers.{old}.", 1))
        return state.get(name)

    cut = cut_depth(model, keep)
    torch.testing.assert_close(
        logits(cut, ids)[0], reference.forward(sliced, names, shape, ids[0]), rtol=1e-4, atol=1e-4
    )


def test_the_cut_lives_on_its_own(model: Any, ids: Tensor, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cut = cut_depth(model, [0, 2, 3, 5])
    assert cut.config.num_hidden_layers == 4
    assert [layer.self_attn.layer_idx for layer in cut.model.layers] == [0, 1, 2, 3]
    check_lives(cut, tmp_path, ids)
    with torch.no_grad():
        for parameter in cut.parameters():
            parameter.zero_()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} is shared with the teacher"
    assert model.config.num_hidden_layers == 6


def test_every_layer_keeps_its_kind_of_attention() -> None:
    cut = cut_depth(make("gemma3_text"), [0, 2, 4, 5])
    assert cut.config.layer_types == [S, F, S, F]
    assert cut.config._sliding_window_pattern == 2  # what formats without layer_types read
    irregular = cut_depth(make("gemma3_text"), [2, 3, 5])
    assert irregular.config.layer_types == [F, S, F]
    assert window_period(irregular.config.layer_types) is None
    qwen = cut_depth(make("qwen2"), [0, 3, 5])
    assert (qwen.config.layer_types, qwen.config.max_window_layers) == ([F, S, S], 1)


@pytest.mark.parametrize(
    ("types", "period"),
    [([F, F], 1), ([S, S, F], 3), ([S, F, S, F, S], 2), ([S, S], 3), ([S, F, F], None), ([F, S, F], None), (None, 1)],
)
def test_window_period(types: list[str] | None, period: int | None) -> None:
    assert window_period(types) == period


# ------------------------------------------------------------------------------------- choosing


@pytest.mark.parametrize(
    ("kind", "pattern", "right"),
    [
        ("gemma3_text", "sssssfsssssf", True),
        ("gemma3_text", "sssssfsss", True),
        ("gemma3_text", "ssfssf", False),
        ("gemma3_text", "sssfssssf", False),
        ("gemma3_text", "ff", False),
        ("qwen3", "ff", True),
    ],
)
def test_windows_that_llama_cpp_would_misread(kind: str, pattern: str, right: bool) -> None:
    config = SimpleNamespace(model_type=kind, layer_types=[{"s": S, "f": F}[c] for c in pattern])
    assert llama_cpp_reads_windows(config) == right


def test_even_spacing() -> None:
    assert choose_layers(30, 15) == [0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29]
    assert choose_layers(6, 6) == [0, 1, 2, 3, 4, 5]
    assert choose_layers(9, 3, keep_ends=False) == [1, 4, 7]
    for n in range(1, 14):
        for count in range(min(2, n), n + 1):
            chosen = choose_layers(n, count)
            assert len(set(chosen)) == count
            assert chosen == sorted(chosen)
            assert (chosen[0], chosen[-1]) == (0, n - 1)
            gaps = [b - a for a, b in pairwise(chosen)] or [0]
            assert max(gaps) - min(gaps) <= 1


def test_the_pattern_of_windows_is_kept_where_it_can_be() -> None:
    types = ([S] * 5 + [F]) * 3
    chosen = choose_layers(18, 12, layer_types=types)
    assert [types[i] for i in chosen] == ([S] * 5 + [F]) * 2
    assert (chosen[0], chosen[-1]) == (0, 17)
    # 9 layers would end on a window, and the last one has none: spacing alone decides
    assert choose_layers(18, 9, layer_types=types) == choose_layers(18, 9)
    assert choose_layers(18, 12) != chosen


def cosines_of(stream: Tensor) -> Tensor:
    """[L + 1, N, D] → mean cosines, one pair at a time."""
    n = len(stream)
    pairs = [[torch.cosine_similarity(stream[i], stream[j], dim=-1).mean() for j in range(n)] for i in range(n)]
    return torch.tensor(pairs, dtype=torch.float64)


def test_choosers_on_measured_influence() -> None:
    """Of six layers, 1 and 4 do nothing, and 3 undoes what 2 did."""
    east, north, up = torch.eye(3)
    cosines = cosines_of(torch.stack([east, north, north, up, north, north, east])[:, None])
    assert choose_layers(6, 4, "block_influence", cosines=cosines) == [0, 2, 3, 5]
    assert choose_layers(6, 5, "block_influence", cosines=cosines) == [0, 1, 2, 3, 5]  # 1 and 4 tie
    assert choose_layers(6, 4, "contiguous", cosines=cosines) == [0, 1, 4, 5]
    assert choose_layers(6, 3, "contiguous", cosines=cosines) == [0, 4, 5]
    assert choose_layers(6, 6, "contiguous", cosines=cosines) == list(range(6))


def test_ends_may_go_when_told_so() -> None:
    east, north = torch.eye(2)
    cosines = cosines_of(torch.stack([east, east, north, east, east])[:, None])  # layers 0 and 3 do nothing
    assert choose_layers(4, 2, "block_influence", cosines=cosines, keep_ends=False) == [1, 2]
    assert choose_layers(4, 2, "block_influence", cosines=cosines) == [0, 3]
    assert choose_layers(4, 3, "contiguous", cosines=cosines, keep_ends=False) == [1, 2, 3]
    assert choose_layers(4, 1, "contiguous", cosines=cosines, keep_ends=False) == [3]
    assert choose_layers(4, 2, "contiguous", cosines=cosines) == [0, 3]


def test_cosines_are_those_of_the_residual_stream(model: Any) -> None:
    """Measured with hooks and one matrix product, against hidden states asked from transformers, padding left out."""
    lengths = [12, 7]
    ids = torch.randint(3, 101, (2, 12), generator=torch.Generator().manual_seed(3))
    cosines = layer_cosines(model, [batch_of(ids, lengths)])
    with torch.no_grad():
        states = model(ids, output_hidden_states=True, use_cache=False).hidden_states
        last = []
        handle = model.model.layers[-1].register_forward_hook(lambda m, a, out: last.append(out))
        model(ids, use_cache=False)
        handle.remove()
    stream = torch.stack([*states[:-1], last[0] if torch.is_tensor(last[0]) else last[0][0]])
    stream = torch.cat([stream[:, b, :n] for b, n in enumerate(lengths)], 1)
    torch.testing.assert_close(cosines, cosines_of(stream), rtol=1e-4, atol=1e-5)
    assert not model.model.layers[0]._forward_pre_hooks, "hooks are left behind"
    assert not model.training


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: choose_layers(30, 40), "student.layers: got 40, but the teacher has 30 layers. Write 2 to 30"),
        (lambda: choose_layers(30, 1), "student.layers: got 1, but first and last are kept. Write 2 to 30"),
        (lambda: choose_layers(30, 0), "student.layers: got 0, but a model needs a layer. Write 2 to 30"),
        (lambda: cut_depth(make("llama"), [0, 6]), "there is no layer 6: the teacher has 6. Write 0 to 5"),
        (lambda: cut_depth(make("llama"), [0, -1]), "there is no layer -1"),
        (lambda: cut_depth(make("llama"), [3, 1]), "got [3, 1]. Write each layer once, from the first to the last"),
        (lambda: cut_depth(make("llama"), [3, 3]), "got [3, 3]. Write each layer once"),
        (lambda: cut_depth(make("llama"), []), "got []. Write each layer once"),
        (lambda: layer_cosines(make("llama"), []), "there is no text to measure the teacher's layers on"),
    ],
)
def test_bad_input_is_one_line(call: Callable[[], Any], line: str) -> None:
    with pytest.raises(RecipeError) as caught, under("student"):
        call()
    assert line in caught.value.line()
    assert "student.layers" in caught.value.line()


def test_what_is_not_described_is_refused_by_name() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    gpt2 = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", n_embd=8, n_layer=2, n_head=2, vocab_size=20))
    with pytest.raises(RecipeError, match=r"^limbeck cannot cut the architecture `gpt2` \(GPT2LMHeadModel\)"):
        architecture_of(gpt2)
    odd = make("llama")
    odd.model.layers[0].self_attn.register_parameter("sink", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(RecipeError, match=r"a weight that limbeck does not know, model.layers.0.self_attn.sink"):
        architecture_of(odd)


def test_calibration_iterates_once(batches: Iterator[Batch]) -> None:
    """A generator is enough: one pass."""
    cosines = layer_cosines(make("llama"), batches)
    assert cosines.shape == (7, 7)
    torch.testing.assert_close(
        cosines.diagonal(), torch.ones(7, dtype=torch.float64), rtol=0, atol=2e-6
    )  # float32 inside
