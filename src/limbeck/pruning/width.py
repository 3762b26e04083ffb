"""A student whose layers are narrower than its teacher's: fewer neurons, heads, hidden channels.

What is kept is what the teacher uses most on a calibration set, by the activation importance of
Minitron (Muralidharan et al. 2024, arXiv 2407.14679, §2.2), measured for all three axes in one
pass of forwards:

    neuron   |act(gate(x)) · up(x)|, what enters the down projection
    head     L2 norm of the head's output, what enters the output projection
    hidden   |norm(x)| after each norm that opens a half layer and after the final one, summed

Of a row of text the mean over its positions is taken, over the rows of the set the L2 norm: the
paper's (L2 over batch, mean over sequence), the best of those it compares. Neurons and heads are
ranked within their layer, hidden channels once for the whole model, since the residual stream runs
through it.

A cut of ``ffn`` or ``heads`` equals the teacher with the dropped neurons' or heads' outputs set to
zero, exactly. A cut of ``hidden`` has no such equal: RMSNorm divides by the root mean square of
the channels that are left. It is the slice of every weight, and needs training the most.

Shape letters: B rows, T positions, L layers, D hidden size, F neurons, Q query heads.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.pruning.architectures import (
    Architecture,
    Axis,
    Sizes,
    architecture_of,
    layers_of,
    rebuild,
    select,
    sizes_of,
)
from limbeck.pruning.calibration import TokenBatch, Watcher, forwards


@dataclass(frozen=True)
class Importance:
    """How much the teacher uses each part of itself; float64 on the CPU, in the units of its activations."""

    ffn_LF: Tensor
    heads_LQ: Tensor
    hidden_D: Tensor


def measure_importance(model: Any, batches: Iterable[TokenBatch]) -> Importance:
    """Activation importance of neurons, query heads and hidden channels on a calibration set.

    Raises:
        RecipeError: unknown architecture, or an empty calibration set.
    """
    architecture, sizes = architecture_of(model), sizes_of(model)
    layers = layers_of(model, architecture)
    ffn_LF = torch.zeros(sizes.layers, sizes.ffn, dtype=torch.float64)
    heads_LQ = torch.zeros(sizes.layers, sizes.heads, dtype=torch.float64)
    norms_ND = torch.zeros(2 * sizes.layers + 1, sizes.hidden, dtype=torch.float64)

    def watch(into: Tensor, measure: Callable[[Tensor], Tensor]) -> Watcher:
        def add(activation: Tensor, mask_BT: Tensor) -> None:
            size_BTX = measure(activation.float()) * mask_BT[..., None]
            mean_BX = size_BTX.sum(1) / mask_BT.sum(1, keepdim=True).clamp(min=1)
            into.add_(mean_BX.square().sum(0).double().cpu())

        return add

    def norm_of_heads(out_BTX: Tensor) -> Tensor:
        return out_BTX.unflatten(-1, (sizes.heads, sizes.head_dim)).norm(dim=-1)

    inputs, outputs = {}, {}
    for i, layer in enumerate(layers):
        inputs[layer.get_submodule(architecture.ffn_out)] = watch(ffn_LF[i], torch.abs)
        inputs[layer.get_submodule(architecture.attention_out)] = watch(heads_LQ[i], norm_of_heads)
        outputs[layer.get_submodule(architecture.attention_norm)] = watch(norms_ND[2 * i], torch.abs)
        outputs[layer.get_submodule(architecture.ffn_norm)] = watch(norms_ND[2 * i + 1], torch.abs)
    outputs[model.get_submodule(architecture.final_norm.removesuffix(".weight"))] = watch(norms_ND[-1], torch.abs)
    for _ in forwards(model, batches, inputs=inputs, outputs=outputs):
        pass
    return Importance(ffn_LF.sqrt(), heads_LQ.sqrt(), norms_ND.sqrt().sum(0))


def cut_width(
    model: Any,
    importance: Importance,
    *,
    ffn: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    hidden: int | None = None,
) -> Any:
    """A new, narrower model; what is not named stays as it is, and so does the teacher.

    Args:
        model: a transformers causal language model whose architecture limbeck knows.
        importance: from ``measure_importance`` on this model.
        ffn: neurons of each feed-forward layer.
        heads: query heads of each attention layer. Alone, whole groups go with their key-value head.
        kv_heads: key-value heads; with ``heads``, each keeps ``heads / kv_heads`` of its query heads.
        hidden: hidden size. Tied embeddings stay tied; norms follow. Where embeddings are scaled by
            the square root of the hidden size (Gemma), the weights make up for the changed scale.

    Raises:
        RecipeError: unknown architecture, or sizes that are no cut of it (``.heads`` and the like).
    """
    architecture, old = architecture_of(model), sizes_of(model)
    new = _new_sizes(architecture, old, ffn, heads, kv_heads, hidden)
    kept: dict[Axis, Tensor] = {"hidden": _top(importance.hidden_D, new.hidden)}
    in_layer: list[dict[Axis, Tensor]] = []
    for ffn_F, heads_Q in zip(importance.ffn_LF, importance.heads_LQ, strict=True):
        groups, queries = _top_heads(heads_Q, old, new)
        in_layer.append(
            {
                "ffn": _top(ffn_F, new.ffn),
                "query": _channels(queries, old.head_dim),
                "kv": _channels(groups, old.head_dim),
            }
        )
    state = select(model.state_dict(), architecture, kept, in_layer)
    if architecture.embedding_scaled and new.hidden != old.hidden:
        _keep_embedding_scale(state, architecture, old.hidden, new.hidden, model.config.tie_word_embeddings)

    config = copy.deepcopy(model.config)
    config.hidden_size, config.intermediate_size = new.hidden, new.ffn
    config.num_attention_heads, config.num_key_value_heads = new.heads, new.kv_heads
    return rebuild(model, config, state)


def check_width(
    model: Any,
    *,
    ffn: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    hidden: int | None = None,
) -> Sizes:
    """The sizes that ``cut_width`` would leave; raises what it would, without cutting."""
    return _new_sizes(architecture_of(model), sizes_of(model), ffn, heads, kv_heads, hidden)


def _top(scores: Tensor, count: int) -> Tensor:
    """Indices of the greatest, ascending; the earlier wins a tie."""
    return torch.sort(scores, descending=True, stable=True).indices[:count].sort().values


def _top_heads(heads_Q: Tensor, old: Sizes, new: Sizes) -> tuple[Tensor, Tensor]:
    """Key-value heads and query heads to keep: the groups whose kept query heads matter most."""
    by_group = heads_Q.view(old.kv_heads, old.group)
    best = by_group.sort(dim=1, descending=True, stable=True).values[:, : new.group].sum(1)
    groups = _top(best, new.kv_heads)
    queries = [int(g) * old.group + _top(by_group[g], new.group) for g in groups]
    return groups, torch.cat(queries)


def _channels(heads: Tensor, head_dim: int) -> Tensor:
    return (heads[:, None] * head_dim + torch.arange(head_dim)).flatten()


def _keep_embedding_scale(state: dict[str, Tensor], architecture: Architecture, old: int, new: int, tied: bool) -> None:
    """Undo what a smaller hidden size does to embeddings that are multiplied by its square root.

    The table grows by √(old / new); a head tied to it grows too, so the final norm shrinks by as much.
    """
    growth = (old / new) ** 0.5
    state[architecture.embedding] = state[architecture.embedding] * growth
    if tied:
        state[architecture.head] = state[architecture.embedding]
        offset, norm = architecture.norm_offset, state[architecture.final_norm]
        state[architecture.final_norm] = (offset + norm) / growth - offset


def _new_sizes(
    architecture: Architecture,
    old: Sizes,
    ffn: int | None,
    heads: int | None,
    kv_heads: int | None,
    hidden: int | None,
) -> Sizes:
    def check(name: str, count: int, most: int) -> None:
        if not 1 <= count <= most:
            raise RecipeError(
                f"got {count}, but the teacher has {most}",
                key=f".{name}",
                fix=f"Write 1 to {most}, or leave it out",
            )

    named = "kv_heads" if heads is None else "heads"
    if kv_heads is not None:
        check("kv_heads", kv_heads, old.kv_heads)
    if heads is None:
        heads = old.heads if kv_heads is None else kv_heads * old.group
    check("heads", heads, old.heads)
    if kv_heads is None:
        if heads % old.group:
            raise RecipeError(
                f"got {heads}, but {old.group} query heads share each key-value head: the groups would break",
                key=".heads",
                fix=f"Write a multiple of {old.group}, or `kv_heads` as well",
            )
        kv_heads = heads // old.group
    if heads % kv_heads or heads // kv_heads > old.group:
        raise RecipeError(
            f"{heads} query heads cannot be shared out to {kv_heads} key-value heads with at most {old.group} each",
            key=".heads",
            fix=f"Write a multiple of {kv_heads} up to {kv_heads * old.group}",
        )
    own_hidden = hidden is not None
    hidden = old.hidden if hidden is None else hidden
    ffn = old.ffn if ffn is None else ffn
    check("hidden", hidden, old.hidden)
    check("ffn", ffn, old.ffn)
    if not architecture.own_head_dim and hidden != heads * old.head_dim:
        raise RecipeError(
            f"{architecture.model_type} takes its heads' width from hidden size / heads, which would change from "
            f"{old.head_dim} to {hidden / heads:g}",
            key=".hidden",
            fix=f"Cut both: `hidden` has to be {old.head_dim} times `heads`",
        )
    if architecture.hidden_in_heads and hidden % heads and not own_hidden:
        raise RecipeError(
            f"{architecture.model_type} wants a hidden size ({hidden}) that its heads divide, got {heads} of them",
            key=f".{named}",
            fix=f"Cut `hidden` too: {hidden - hidden % heads}, say" if hidden >= heads else "Write fewer",
        )
    if architecture.hidden_in_heads and hidden % heads:
        raise RecipeError(
            f"{architecture.model_type} wants a hidden size that {heads} heads divide, got {hidden}",
            key=".hidden",
            fix=f"Write {hidden - hidden % heads}" if hidden >= heads else f"Write at least {heads}",
        )
    return Sizes(old.layers, hidden, ffn, heads, kv_heads, old.head_dim, old.vocab)
