"""What limbeck knows about the inside of a model that it cuts: one description per architecture.

A description names every weight and what runs along each of its axes. Cutting is then the same
for all of them: depth drops and renumbers layers, width and vocabulary select along an axis.
An architecture, or a weight of one, that is not described here is refused, never guessed.

Axes: ``vocab`` tokens, ``hidden`` residual width, ``ffn`` neurons of the feed-forward layer,
``query`` query heads × head_dim, ``kv`` key-value heads × head_dim, ``head_dim`` one head's width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.models.folders.saved import quiet

Axis = Literal["vocab", "hidden", "ffn", "query", "kv", "head_dim"]
Axes = tuple[Axis, ...]

_PROJECTIONS: dict[str, Axes] = {
    "self_attn.q_proj.weight": ("query", "hidden"),
    "self_attn.k_proj.weight": ("kv", "hidden"),
    "self_attn.v_proj.weight": ("kv", "hidden"),
    "self_attn.o_proj.weight": ("hidden", "query"),
    "mlp.gate_proj.weight": ("ffn", "hidden"),
    "mlp.up_proj.weight": ("ffn", "hidden"),
    "mlp.down_proj.weight": ("hidden", "ffn"),
    "input_layernorm.weight": ("hidden",),
    "post_attention_layernorm.weight": ("hidden",),
}
_QKV_BIASES: dict[str, Axes] = {
    "self_attn.q_proj.bias": ("query",),
    "self_attn.k_proj.bias": ("kv",),
    "self_attn.v_proj.bias": ("kv",),
}
_O_BIAS: dict[str, Axes] = {"self_attn.o_proj.bias": ("hidden",)}
_MLP_BIASES: dict[str, Axes] = {
    "mlp.gate_proj.bias": ("ffn",),
    "mlp.up_proj.bias": ("ffn",),
    "mlp.down_proj.bias": ("hidden",),
}
_QK_NORMS: dict[str, Axes] = {
    "self_attn.q_norm.weight": ("head_dim",),
    "self_attn.k_norm.weight": ("head_dim",),
}
_OUTER: dict[str, Axes] = {
    "model.embed_tokens.weight": ("vocab", "hidden"),
    "model.norm.weight": ("hidden",),
    "lm_head.weight": ("vocab", "hidden"),
}


@dataclass(frozen=True)
class Architecture:
    """Where everything of one architecture lives.

    Attributes:
        model_type: as its configuration says it.
        layer: axes of each weight of a layer, by its name within the layer; those that a
            configuration switches off (biases) are listed too.
        outer: axes of each weight outside the layers, by its full name.
        layers: module that holds the layers.
        embedding, final_norm, head: full names of weights that a cut of the width treats alike.
        attention_norm, ffn_norm: the norms whose outputs enter a layer's two halves.
        attention_out, ffn_out: the linear modules whose inputs are the heads' outputs and the
            neurons' activations.
        per_layer: configuration keys that hold one entry a layer.
        window_from: configuration key that counts the layers before the first with a sliding window.
        window_period: configuration attribute for the period of the sliding pattern.
        own_head_dim: whether the configuration has a ``head_dim`` of its own; where not, it is
            ``hidden_size / num_attention_heads`` for whoever loads the model.
        hidden_in_heads: its configuration insists that the number of heads divides the hidden size,
            whatever ``head_dim`` is.
        embedding_scaled: embeddings are multiplied by the square root of the hidden size.
        norm_offset: RMSNorm multiplies by ``norm_offset + weight`` (Gemma: 1).
    """

    model_type: str
    layer: Mapping[str, Axes]
    outer: Mapping[str, Axes] = field(default_factory=lambda: _OUTER)
    layers: str = "model.layers"
    embedding: str = "model.embed_tokens.weight"
    final_norm: str = "model.norm.weight"
    head: str = "lm_head.weight"
    attention_norm: str = "input_layernorm"
    ffn_norm: str = "post_attention_layernorm"
    attention_out: str = "self_attn.o_proj"
    ffn_out: str = "mlp.down_proj"
    per_layer: tuple[str, ...] = ("layer_types",)
    window_from: str | None = None
    window_period: str | None = None
    own_head_dim: bool = True
    hidden_in_heads: bool = False
    embedding_scaled: bool = False
    norm_offset: float = 0.0

    def axes(self, name: str) -> Axes | None:
        """Axes of the weight with this full name; None for one that is not described."""
        layer = self.split(name)
        return self.outer.get(name) if layer is None else self.layer.get(layer[1])

    def split(self, name: str) -> tuple[int, str] | None:
        """``model.layers.3.mlp.up_proj.weight`` → ``(3, "mlp.up_proj.weight")``; None outside the layers."""
        if not name.startswith(self.layers + "."):
            return None
        number, _, rest = name[len(self.layers) + 1 :].partition(".")
        return int(number), rest

    def join(self, number: int, rest: str) -> str:
        return f"{self.layers}.{number}.{rest}"


ARCHITECTURES: Mapping[str, Architecture] = {
    a.model_type: a
    for a in (
        Architecture("llama", {**_PROJECTIONS, **_QKV_BIASES, **_O_BIAS, **_MLP_BIASES}, hidden_in_heads=True),
        Architecture("qwen2", {**_PROJECTIONS, **_QKV_BIASES}, window_from="max_window_layers", own_head_dim=False),
        Architecture("qwen3", {**_PROJECTIONS, **_QKV_BIASES, **_O_BIAS, **_QK_NORMS}, window_from="max_window_layers"),
        Architecture(
            "gemma3_text",
            {
                **_PROJECTIONS,
                **_QKV_BIASES,
                **_O_BIAS,
                **_QK_NORMS,
                "pre_feedforward_layernorm.weight": ("hidden",),
                "post_feedforward_layernorm.weight": ("hidden",),
            },
            ffn_norm="pre_feedforward_layernorm",
            window_period="_sliding_window_pattern",
            hidden_in_heads=True,
            embedding_scaled=True,
            norm_offset=1.0,
        ),
    )
}


@dataclass(frozen=True)
class Sizes:
    """Counts that a cut changes. ``heads`` are query heads, ``group`` of them share a key-value head."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads


def architecture_of(model: Any) -> Architecture:
    """The description that fits a transformers causal language model.

    Raises:
        RecipeError: its architecture, or one of its weights, is not described; the line names it.
    """
    kind = model.config.model_type
    found = ARCHITECTURES.get(kind)
    if found is None:
        raise RecipeError(
            f"limbeck cannot cut the architecture `{kind}` ({type(model).__name__})",
            fix=f"It knows {', '.join(ARCHITECTURES)}; give the student a `path` or a `config` instead",
        )
    for name in model.state_dict():
        if found.axes(name) is None:
            raise RecipeError(
                f"this {kind} model has a weight that limbeck does not know, {name}",
                fix="Merge adapters into the model first; otherwise give the student a `path` or a `config`",
            )
    return found


def sizes_of(model: Any) -> Sizes:
    """The sizes of a described model."""
    config = model.config
    heads = config.num_attention_heads
    return Sizes(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        ffn=config.intermediate_size,
        heads=heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocab=model.get_input_embeddings().weight.shape[0],
    )


def parameters_of(model: Any, sizes: Sizes) -> int:
    """How many parameters a described model has once it is cut to ``sizes``. Tied ones count once."""
    architecture = architecture_of(model)
    lengths: dict[Axis, int] = {
        "vocab": sizes.vocab,
        "hidden": sizes.hidden,
        "ffn": sizes.ffn,
        "query": sizes.heads * sizes.head_dim,
        "kv": sizes.kv_heads * sizes.head_dim,
        "head_dim": sizes.head_dim,
    }
    total = 0
    for name, _ in model.named_parameters():
        inside, axes = architecture.split(name), architecture.axes(name)
        assert axes is not None  # architecture_of refused the model otherwise
        if inside is None or inside[0] < sizes.layers:  # layers have equal shapes
            total += math.prod(lengths[axis] for axis in axes)
    return total


def layers_of(model: Any, architecture: Architecture) -> list[torch.nn.Module]:
    """The layers of a described model, first to last."""
    return list(model.get_submodule(architecture.layers))


def llama_cpp_reads_windows(config: Any) -> bool:
    """Whether sliding windows lie as llama.cpp takes for granted of Gemma 3: every sixth layer sees everything.

    Its converter writes no pattern, so of any other one it makes a file that is silently wrong.
    """
    kinds = getattr(config, "layer_types", None)
    if not kinds or not str(config.model_type).startswith("gemma3"):
        return True
    return all((kind == "full_attention") == (i % 6 == 5) for i, kind in enumerate(kinds))


def window_period(layer_types: list[str] | None) -> int | None:
    """The p of a pattern in which every p-th layer attends to everything and the others to a window.

    1 where no layer has a window, ``len + 1`` where all have one. None: the pattern is irregular,
    so formats that store only its period (GGUF) cannot hold the model.
    """
    full = [i for i, kind in enumerate(layer_types or []) if kind == "full_attention"]
    if not layer_types or len(full) == len(layer_types):
        return 1
    period = full[0] + 1 if full else len(layer_types) + 1
    regular = [i for i in range(len(layer_types)) if (i + 1) % period == 0]
    return period if regular == full else None


def select(
    state: Mapping[str, Tensor],
    architecture: Architecture,
    kept: Mapping[Axis, Tensor],
    kept_in_layer: Sequence[Mapping[Axis, Tensor]] = (),
) -> dict[str, Tensor]:
    """The weights with only the kept indices (int64 [n]) along the named axes.

    Args:
        kept: for every weight that has the axis.
        kept_in_layer: for the weights of layer i only, entry i.
    """
    out = {}
    for name, tensor in state.items():
        axes, inside = architecture.axes(name), architecture.split(name)
        assert axes is not None, name  # architecture_of refused the model otherwise
        here = {**kept, **kept_in_layer[inside[0]]} if inside and kept_in_layer else kept
        for dim, axis in enumerate(axes):
            if axis in here:
                tensor = tensor.index_select(dim, here[axis].to(tensor.device))
        out[name] = tensor
    return out


def rebuild(model: Any, config: Any, state: Mapping[str, Tensor], *, copies: bool = True) -> Any:
    """A new model of ``model``'s class, dtype and device from a configuration and all its weights.

    The weights are copied, so that nothing is shared with ``model``, unless ``copies`` is false.
    Tied embeddings are tied again.
    """
    quiet()
    config.dtype = model.dtype
    own = {name: tensor.detach().clone() if copies else tensor.detach() for name, tensor in state.items()}
    new, info = type(model).from_pretrained(
        None, config=config, state_dict=own, dtype=model.dtype, output_loading_info=True
    )
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if wrong:  # a description that does not fit its class is a bug here, not the user's
        raise AssertionError(f"weights do not fit the new configuration: {wrong[:3]}")
    new.generation_config = copy.deepcopy(model.generation_config)
    new.name_or_path = new.config._name_or_path = ""
    return new.to(model.device).train(model.training)
