"""A student with some of its teacher's layers.

Which ones: evenly spaced, those with the most influence on the residual stream (ShortGPT, Men et
al. 2024, arXiv 2403.03853, eq. 1), or all but the contiguous block with the least (Gromov et al.
2024, arXiv 2403.17887, §3; Minitron, arXiv 2407.14679, §2.2, uses both views).

Shape letters: L layers, N positions, D hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.errors import RecipeError, under
from limbeck.pruning.architectures import architecture_of, layers_of, rebuild, window_period
from limbeck.pruning.calibration import TokenBatch, forwards

Chooser = Literal["even", "block_influence", "contiguous"]


@under(".layers")
def layer_cosines(model: Any, batches: Iterable[TokenBatch]) -> Tensor:
    """Mean cosine between the residual stream before layer i and before layer j, over all positions.

    ``1 - c[i, i + 1]`` is ShortGPT's Block Influence of layer i, ``1 - c[i, i + n]`` that of the
    block of n layers from i on. Column L is the stream after the last layer, before the final norm.

    Args:
        model: a transformers causal language model whose architecture limbeck knows.
        batches: the calibration set; some ten thousand positions are plenty.

    Returns:
        float64 [L + 1, L + 1] on the CPU, symmetric, 1 on the diagonal.

    Raises:
        RecipeError: unknown architecture, or an empty calibration set.
    """
    layers = layers_of(model, architecture_of(model))
    stream: list[Tensor] = []

    def keep(hidden_BTD: Tensor, mask_BT: Tensor) -> None:
        stream.append(torch.nn.functional.normalize(hidden_BTD[mask_BT].float(), dim=-1).flatten())

    # Every layer's input, and the last one's output.
    total = torch.zeros(len(layers) + 1, len(layers) + 1, dtype=torch.float64)
    count = 0
    for mask_BT in forwards(model, batches, inputs=dict.fromkeys(layers, keep), outputs={layers[-1]: keep}):
        units = torch.stack(stream)  # [L + 1, N * D]: the sum over positions is one matrix product
        stream.clear()
        total += (units @ units.T).double().cpu()
        count += int(mask_BT.sum())
    return total / count


@under(".layers")
def choose_layers(
    n_layers: int,
    count: int,
    how: Chooser = "even",
    *,
    cosines: Tensor | None = None,
    keep_ends: bool = True,
    layer_types: Sequence[str] | None = None,
) -> list[int]:
    """Which layers the student keeps, ascending.

    ``even`` spaces them evenly; ``block_influence`` keeps those with the greatest Block Influence;
    ``contiguous`` removes the one block whose output is nearest to its input.

    Where layers alternate between a sliding window and full attention (Gemma 3), ``even`` and
    ``block_influence`` look among the choices that keep the teacher's pattern, if there are any:
    formats that store only the pattern's period hold no other model.

    Args:
        n_layers: how many the teacher has.
        count: how many the student gets.
        cosines: [n_layers + 1, n_layers + 1] from ``layer_cosines``; all choosers but ``even`` need it.
        keep_ends: the first and the last layer are kept whatever was measured.
        layer_types: the teacher's ``config.layer_types``.

    Raises:
        RecipeError: the count is impossible.
    """
    fewest = min(2, n_layers) if keep_ends else 1
    if not fewest <= count <= n_layers:
        told = "first and last are kept" if keep_ends and count else "a model needs a layer"
        what = f"got {count}, but the teacher has {n_layers} layers"
        raise RecipeError(what if count > n_layers else f"got {count}, but {told}", fix=f"Write {fewest} to {n_layers}")
    if how == "even":
        if keep_ends:
            wanted = [i * (n_layers - 1) / max(count - 1, 1) for i in range(count)]
        else:
            wanted = [(i + 0.5) * n_layers / count - 0.5 for i in range(count)]
        score = [[-((layer - at) ** 2) for layer in range(n_layers)] for at in wanted]
        return _best(score, keep_ends, layer_types)
    if cosines is None:
        raise ValueError(f"the chooser {how!r} needs layer_cosines")
    if how == "block_influence":
        influence = [1 - float(cosines[i, i + 1]) for i in range(n_layers)]
        return _best([influence] * count, keep_ends, layer_types)
    gone = n_layers - count
    starts = range(1, n_layers - gone) if keep_ends else range(n_layers - gone + 1)
    start = max(starts, key=lambda i: float(cosines[i, i + gone])) if gone else 0
    return [i for i in range(n_layers) if not start <= i < start + gone]


def _best(score: list[list[float]], keep_ends: bool, layer_types: Sequence[str] | None) -> list[int]:
    """The ascending layers that make the sum over slots of ``score[slot][layer]`` greatest.

    With the teacher's own pattern of layer types in the slots if that is possible, without otherwise.
    The earlier layer wins a tie.
    """
    count, n_layers = len(score), len(score[0])
    patterns: list[Sequence[str] | None] = [None]
    if layer_types and len(set(layer_types)) > 1 and window_period(list(layer_types)) is not None:
        patterns.insert(0, layer_types[:count])
    never = float("-inf")
    for pattern in patterns:
        # best[slot][layer]: greatest sum of slots 0..slot with `slot` filled from layers up to and with `layer`.
        best = [[never] * n_layers for _ in range(count)]
        for slot in range(count):
            for layer in range(slot, n_layers):
                allowed = pattern is None or layer_types is None or layer_types[layer] == pattern[slot]
                if keep_ends:
                    allowed &= (slot == 0) == (layer == 0) and (slot < count - 1 or layer == n_layers - 1)
                before = 0.0 if not slot else best[slot - 1][layer - 1] if layer else never
                here = before + score[slot][layer] if allowed else never
                best[slot][layer] = max(here, best[slot][layer - 1] if layer else never)
        if best[-1][-1] > never:
            chosen, end = [], n_layers - 1
            for slot in reversed(range(count)):
                while end and best[slot][end - 1] == best[slot][end]:
                    end -= 1
                chosen.append(end)
                end -= 1
            return chosen[::-1]
    raise AssertionError("without a pattern there is always a choice")


@under(".layers")
def cut_depth(model: Any, keep: Sequence[int]) -> Any:
    """A new model of the teacher's layers ``keep``, in their order; the teacher is left as it is.

    Each layer keeps its own kind of attention (``layer_types`` follow), and layers are numbered
    anew, so that caches have a place for each.

    Args:
        model: a transformers causal language model whose architecture limbeck knows.
        keep: ascending numbers of layers, 0 to L - 1.

    Raises:
        RecipeError: unknown architecture; a list that names no layer, a layer that is not there,
            or one twice.
    """
    architecture = architecture_of(model)
    n_layers = model.config.num_hidden_layers
    keep = list(keep)
    for layer in keep:
        if not 0 <= layer < n_layers:
            raise RecipeError(
                f"there is no layer {layer}: the teacher has {n_layers}", fix=f"Write 0 to {n_layers - 1}"
            )
    if not keep or keep != sorted(set(keep)):
        raise RecipeError(f"got {keep}", fix="Write each layer once, from the first to the last")

    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(keep)
    for name in architecture.per_layer:
        values = getattr(config, name, None)
        if values is not None:
            setattr(config, name, [values[layer] for layer in keep])
    if architecture.window_from and (first := getattr(config, architecture.window_from, None)) is not None:
        setattr(config, architecture.window_from, sum(layer < first for layer in keep))
    period = window_period(getattr(config, "layer_types", None))
    if architecture.window_period and period is not None and 1 < period <= len(keep):
        setattr(config, architecture.window_period, period)

    place = {old: new for new, old in enumerate(keep)}
    state = {}
    for name, tensor in model.state_dict().items():
        inside = architecture.split(name)
        if inside is None:
            state[name] = tensor
        elif inside[0] in place:
            state[architecture.join(place[inside[0]], inside[1])] = tensor
    return rebuild(model, config, state)
