"""A transformer decoder written out by hand, from nothing but named weights: the other opinion.

Knows pre-norm RMSNorm decoders with rotary positions, grouped queries, optional norms on queries
and keys, after each half layer, sliding windows and gated feed-forward layers. Shares no code with transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

HF = {
    "embed": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
    "layer": "model.layers.{}.",
    "attn_norm": "input_layernorm.weight",
    "ffn_norm": "post_attention_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}
HF_GEMMA = HF | {
    "post_attn": "post_attention_layernorm.weight",
    "ffn_norm": "pre_feedforward_layernorm.weight",
    "post_ffn": "post_feedforward_layernorm.weight",
}
GGUF = {
    "embed": "token_embd.weight",
    "norm": "output_norm.weight",
    "head": "output.weight",
    "layer": "blk.{}.",
    "attn_norm": "attn_norm.weight",
    "ffn_norm": "ffn_norm.weight",
    "q": "attn_q.weight",
    "k": "attn_k.weight",
    "v": "attn_v.weight",
    "o": "attn_output.weight",
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
    "post_attn": "post_attention_norm.weight",
    "post_ffn": "post_ffw_norm.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
}


@dataclass
class Shape:
    """``window[i]`` of a layer: how many positions back it sees, itself included; None: all."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    theta: list[float]
    window: list[int | None]
    gelu: bool = False
    norm_offset: float = 0.0
    embed_scale: float = 1.0
    query_scale: float | None = None
    pairs: bool = False  # rotary on neighbouring channels (ggml's "norm"), not on halves (Hugging Face, "neox")


def shape_of(config: Any) -> Shape:
    """From a Hugging Face configuration."""
    gemma = config.model_type.startswith("gemma3")
    n = config.num_hidden_layers
    types = getattr(config, "layer_types", None) or ["full_attention"] * n
    rope = config.rope_parameters
    return Shape(
        layers=n,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        eps=config.rms_norm_eps,
        theta=[rope[t]["rope_theta"] if gemma else rope["rope_theta"] for t in types],
        window=[config.sliding_window if t == "sliding_attention" else None for t in types],
        gelu=gemma,
        norm_offset=1.0 if gemma else 0.0,
        embed_scale=config.hidden_size**0.5 if gemma else 1.0,
        query_scale=config.query_pre_attn_scalar**-0.5 if gemma else None,
    )


def forward(weights: Callable[[str], Tensor | None], names: dict[str, str], shape: Shape, ids: Tensor) -> Tensor:
    """Logits [T, V] of one sequence of ids [T]."""

    def norm(x: Tensor, weight: Tensor | None) -> Tensor:
        if weight is None:
            return x
        return x / (x.pow(2).mean(-1, keepdim=True) + shape.eps).sqrt() * (weight + shape.norm_offset)

    def rotate(x: Tensor, theta: float) -> Tensor:  # [heads, T, head_dim]
        half = shape.head_dim // 2
        angle = torch.arange(len(ids)).double()[:, None] * theta ** -(torch.arange(half).double() / half)
        cos, sin = angle.cos().to(x), angle.sin().to(x)
        a, b = (x[..., 0::2], x[..., 1::2]) if shape.pairs else (x[..., :half], x[..., half:])
        turned = (a * cos - b * sin, a * sin + b * cos)
        return torch.stack(turned, -1).flatten(-2) if shape.pairs else torch.cat(turned, -1)

    def top(name: str) -> Tensor | None:
        return weights(names[name]) if name in names else None

    embed = top("embed")
    assert embed is not None
    x = embed[ids] * shape.embed_scale
    far = torch.arange(len(ids))[:, None] - torch.arange(len(ids))
    for i in range(shape.layers):

        def w(name: str, i: int = i) -> Tensor | None:
            return weights(names["layer"].format(i) + names[name]) if name in names else None

        def linear(x: Tensor, name: str, w: Callable[[str], Tensor | None] = w) -> Tensor:
            weight, bias = w(name), w(f"{name}_bias")
            assert weight is not None
            return x @ weight.T + (0 if bias is None else bias)

        h = norm(x, w("attn_norm"))
        q = linear(h, "q").unflatten(-1, (shape.heads, shape.head_dim)).transpose(0, 1)
        k = linear(h, "k").unflatten(-1, (shape.kv_heads, shape.head_dim)).transpose(0, 1)
        v = linear(h, "v").unflatten(-1, (shape.kv_heads, shape.head_dim)).transpose(0, 1)
        q, k = rotate(norm(q, w("q_norm")), shape.theta[i]), rotate(norm(k, w("k_norm")), shape.theta[i])
        share = shape.heads // shape.kv_heads
        outs = []
        window = shape.window[i]
        seen = (far >= 0) & (far < (window or len(ids)))
        for head in range(shape.heads):
            score = q[head] @ k[head // share].T * (shape.query_scale or shape.head_dim**-0.5)
            outs.append(score.masked_fill(~seen, float("-inf")).softmax(-1) @ v[head // share])
        x = x + norm(linear(torch.cat(outs, -1), "o"), w("post_attn"))
        h = norm(x, w("ffn_norm"))
        gate = linear(h, "gate")
        gate = torch.nn.functional.gelu(gate, approximate="tanh") if shape.gelu else gate * gate.sigmoid()
        x = x + norm(linear(gate * linear(h, "up"), "down"), w("post_ffn"))
    head = top("head")
    return norm(x, top("norm")) @ (embed if head is None else head).T


def of_model(model: Any, ids: Tensor) -> Tensor:
    """Logits [T, V] of a Hugging Face model by hand, in its dtype."""
    state = model.state_dict()
    names = HF_GEMMA if model.config.model_type.startswith("gemma3") else HF
    return forward(state.get, names, shape_of(model.config), ids)
