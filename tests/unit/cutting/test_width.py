from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.errors import RecipeError, under
from limbeck.pruning.width import Importance, check_width, cut_width, measure_importance
from tests.unit.cutting import reference
from tests.unit.cutting.conftest import BY_HAND, Batch, batch_of, check_lives, logits, make


def importance_of(model: Any, seed: int = 1) -> Importance:
    """Made-up scores, so that what is kept is no run of indices."""
    config, g = model.config, torch.Generator().manual_seed(seed)
    n = config.num_hidden_layers
    return Importance(
        torch.rand(n, config.intermediate_size, generator=g).double(),
        torch.rand(n, config.num_attention_heads, generator=g).double(),
        torch.rand(config.hidden_size, generator=g).double(),
    )


def greatest(scores: Tensor, count: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda i: -float(scores[i]))[:count])


def silenced(model: Any, module: str, kept: list[list[int]]) -> Any:
    """The teacher with the inputs of a linear module zeroed but for the kept ones of each layer."""
    quiet = copy.deepcopy(model)
    for layer, keep in zip(quiet.model.layers, kept, strict=True):
        weight = layer.get_submodule(module).weight
        mask = torch.zeros(weight.shape[1])
        mask[keep] = 1
        weight.data.mul_(mask)
    return quiet


def test_fewer_neurons_are_the_others_silenced(model: Any, ids: Tensor, tmp_path: Path) -> None:
    importance = importance_of(model)
    cut = cut_width(model, importance, ffn=20)
    assert cut.config.intermediate_size == 20
    assert cut.model.layers[0].mlp.up_proj.weight.shape[0] == 20
    expected = silenced(model, "mlp.down_proj", [greatest(row, 20) for row in importance.ffn_LF])
    torch.testing.assert_close(logits(cut, ids), logits(expected, ids), rtol=1e-4, atol=1e-4)
    check_lives(cut, tmp_path, ids)


def heads_kept(row: Tensor, group: int, kv_heads: int, each: int) -> list[int]:
    """Query heads kept, by hand: the best of each group, in the groups whose best add up to most."""
    groups = [list(range(g, g + group)) for g in range(0, len(row), group)]
    best = [sorted(g, key=lambda h: -float(row[h]))[:each] for g in groups]
    chosen = sorted(sorted(range(len(best)), key=lambda g: -sum(float(row[h]) for h in best[g]))[:kv_heads])
    return [h for g in chosen for h in sorted(best[g])]


CUTS = [
    ({"heads": 2}, 1, 2),  # a whole group
    ({"kv_heads": 1}, 1, 2),  # the same, said the other way
    ({"heads": 2, "kv_heads": 2}, 2, 1),  # every group, thinner
    ({"heads": 1, "kv_heads": 1}, 1, 1),
]


@pytest.mark.parametrize(("sizes", "kv_heads", "each"), CUTS)
def test_fewer_heads_are_the_others_silenced(
    model: Any, kind: str, ids: Tensor, tmp_path: Path, sizes: dict[str, int], kv_heads: int, each: int
) -> None:
    if kind == "qwen2":
        pytest.skip("heads and hidden size are bound together there; tested below")
    importance = importance_of(model)
    cut = cut_width(model, importance, **sizes)
    assert (cut.config.num_key_value_heads, cut.config.num_attention_heads) == (kv_heads, kv_heads * each)
    assert cut.config.head_dim == model.model.layers[0].self_attn.head_dim
    kept = [heads_kept(row, 2, kv_heads, each) for row in importance.heads_LQ]
    assert len({tuple(k) for k in kept}) > 1, "layers choose for themselves"
    channels = [[8 * h + c for h in heads for c in range(8)] for heads in kept]
    expected = silenced(model, "self_attn.o_proj", channels)
    torch.testing.assert_close(logits(cut, ids), logits(expected, ids), rtol=1e-4, atol=1e-4)
    check_lives(cut, tmp_path, ids)


@pytest.mark.parametrize("kind", BY_HAND)
@pytest.mark.parametrize("tied", [True, False])
def test_a_smaller_hidden_size_is_the_slice_of_every_weight(kind: str, tied: bool, ids: Tensor, tmp_path: Path) -> None:
    """By hand: every weight sliced where it meets the residual stream, embeddings scaled as the teacher's are."""
    model = make(kind, tie_word_embeddings=tied)
    importance = importance_of(model)
    heads = {"heads": 2} if kind == "qwen2" else {}  # hidden size / heads is the heads' width there
    cut = cut_width(model, importance, hidden=16, **heads)
    keep = greatest(importance.hidden_D, 16)
    channels = [
        [8 * h + c for h in heads_kept(row, 2, 1, 2) for c in range(8)] if heads else list(range(32))
        for row in importance.heads_LQ
    ]
    state = model.state_dict()

    def sliced(name: str) -> Tensor | None:
        if name not in state:
            return None
        tensor, layer = state[name], int(name.split(".")[2]) if ".layers." in name else -1
        if "q_norm" in name or "k_norm" in name:
            return tensor
        if heads and ".q_proj." in name:
            tensor = tensor[channels[layer]]
        if heads and (".k_proj." in name or ".v_proj." in name):
            group = channels[layer][0] // 16
            tensor = tensor[8 * group : 8 * group + 8]
        if name.endswith("bias"):
            return tensor
        if ".o_proj." in name:
            return tensor[keep][:, channels[layer]]
        return tensor[keep] if tensor.ndim == 1 or ".down_proj." in name else tensor[:, keep]

    shape = reference.shape_of(model.config)
    if heads:
        shape.heads, shape.kv_heads = 2, 1
    names = reference.HF_GEMMA if kind == "gemma3_text" else reference.HF
    expected = reference.forward(sliced, names, shape, ids[0])
    torch.testing.assert_close(logits(cut, ids)[0], expected, rtol=1e-4, atol=1e-4)
    embeddings = cut.get_input_embeddings().weight, cut.get_output_embeddings().weight
    assert (embeddings[0] is embeddings[1]) == tied
    assert cut.config.hidden_size == 16
    check_lives(cut, tmp_path, ids)


def test_all_at_once(model: Any, ids: Tensor, tmp_path: Path) -> None:
    cut = cut_width(model, importance_of(model), ffn=24, heads=2, hidden=16)
    assert sum(p.numel() for p in cut.parameters()) < 0.5 * sum(p.numel() for p in model.parameters())
    check_lives(cut, tmp_path, ids)
    assert (model.config.hidden_size, model.config.intermediate_size) == (32, 48)


def test_nothing_cut_is_the_teacher(model: Any, ids: Tensor) -> None:
    same = cut_width(model, importance_of(model))
    torch.testing.assert_close(logits(same, ids), logits(model, ids), rtol=0, atol=0)


# ------------------------------------------------------------------------------------ importance


def test_importance_is_minitrons(model: Any, kind: str) -> None:
    """L2 over rows of the mean over positions, measured another way: by recomputing each module's input."""
    lengths = [[9, 4], [6, 9]]
    ids = [torch.randint(3, 101, (2, 9), generator=torch.Generator().manual_seed(i)) for i in range(2)]
    measured = measure_importance(model, [batch_of(i, n) for i, n in zip(ids, lengths, strict=True)])

    layer, last = model.model.layers[2], model.model.norm
    norms = [
        (n, r)
        for r in model.model.layers
        for n in (r.input_layernorm, getattr(r, "pre_feedforward_layernorm", r.post_attention_layernorm))
    ]
    seen: dict[str, list[Tensor]] = {"ffn": [], "heads": []} | {f"norm{i}": [] for i in range(len(norms) + 1)}
    for batch, counts in zip(ids, lengths, strict=True):
        for row, n in zip(batch, counts, strict=True):  # alone and unpadded: what padding adds would show
            kept: dict[str, Tensor] = {}
            handles = [
                layer.mlp.down_proj.register_forward_hook(lambda m, a, o, k=kept: k.update(ffn=a[0][0].abs())),
                layer.self_attn.o_proj.register_forward_hook(
                    lambda m, a, o, k=kept: k.update(heads=a[0][0].view(-1, 4, 8).pow(2).sum(-1).sqrt())
                ),
            ]
            for i, module in enumerate([n for n, _ in norms] + [last]):
                handles.append(
                    module.register_forward_hook(lambda m, a, o, k=kept, i=i: k.update({f"norm{i}": o[0].abs()}))
                )
            logits(model, row[None, :n])
            for handle in handles:
                handle.remove()
            for name, value in kept.items():
                seen[name].append(value.mean(0))
    over_rows = {name: torch.stack(rows).pow(2).sum(0).sqrt().double() for name, rows in seen.items()}
    torch.testing.assert_close(measured.ffn_LF[2], over_rows["ffn"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(measured.heads_LQ[2], over_rows["heads"], rtol=1e-4, atol=1e-6)
    hidden = sum(value for name, value in over_rows.items() if name.startswith("norm"))
    torch.testing.assert_close(measured.hidden_D, hidden, rtol=1e-4, atol=1e-6)


def test_what_is_never_used_goes_first(batches: Iterator[Batch], ids: Tensor) -> None:
    """Neurons and a head whose outputs are nought are the ones that a measured cut removes: nothing changes."""
    model = make("llama")
    dead, group = [3, 7, 8, 40], 1
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[dead] = 0
            layer.self_attn.v_proj.weight[8 * group : 8 * group + 8] = 0
    cut = cut_width(model, measure_importance(model, batches), ffn=44, heads=2)
    torch.testing.assert_close(logits(cut, ids), logits(model, ids), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("kind", "sizes", "line"),
    [
        ("llama", {"heads": 3}, "student.heads: got 3, but 2 query heads share each key-value head: the groups would"),
        ("llama", {"heads": 8}, "student.heads: got 8, but the teacher has 4. Write 1 to 4, or leave it out"),
        ("llama", {"heads": 0}, "student.heads: got 0"),
        (
            "llama",
            {"heads": 3, "kv_heads": 2},
            "student.heads: 3 query heads cannot be shared out to 2 key-value heads",
        ),
        ("llama", {"heads": 4, "kv_heads": 1}, "with at most 2 each. Write a multiple of 1 up to 2"),
        ("llama", {"kv_heads": 3}, "student.kv_heads: got 3, but the teacher has 2. Write 1 to 2"),
        ("llama", {"ffn": 49}, "student.ffn: got 49, but the teacher has 48. Write 1 to 48"),
        ("llama", {"ffn": 0}, "student.ffn: got 0"),
        ("llama", {"hidden": 64}, "student.hidden: got 64, but the teacher has 32"),
        ("llama", {"hidden": 18}, "student.hidden: llama wants a hidden size that 4 heads divide, got 18. Write 16"),
        ("qwen2", {"heads": 2}, "student.hidden: qwen2 takes its heads' width from hidden size / heads"),
        ("qwen2", {"hidden": 16}, "Cut both: `hidden` has to be 8 times `heads`"),
    ],
)
def test_bad_sizes_are_one_line(kind: str, sizes: dict[str, int], line: str) -> None:
    model = make(kind)
    with pytest.raises(RecipeError) as caught, under("student"):
        cut_width(model, importance_of(model), **sizes)
    assert line in caught.value.line()


def test_heads_that_do_not_divide_the_width_are_told_by_their_key() -> None:
    model = make("llama", num_attention_heads=8, num_key_value_heads=4)
    for sizes in ({"kv_heads": 3}, {"heads": 6}):
        with pytest.raises(RecipeError) as caught, under("student"):
            check_width(model, **sizes)
        key = next(iter(sizes))
        assert caught.value.line().startswith(f"student.{key}: llama wants a hidden size (32) that its heads divide")
        assert caught.value.line().endswith("Cut `hidden` too: 30, say")


def test_an_empty_calibration_set() -> None:
    padding = Batch(torch.zeros(1, 4, dtype=torch.long), torch.arange(4)[None], torch.full((1, 4), -1))
    for batches in ([], [padding]):
        with pytest.raises(RecipeError, match=r"^there is no text to measure"):
            measure_importance(make("llama"), batches)
