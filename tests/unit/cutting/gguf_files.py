"""Toy GGUF files, written with the ``gguf`` package, and the reading of one by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.unit.cutting import reference
from tests.unit.cutting.tokenizers import byte_level, sentencepiece


def write(path: Path, kind: str = "llama", *, tensors: dict[str, Any] | None = None, **fields: Any) -> Path:
    """A file of a random toy: some matrices in 8 bits, norms away from one.

    Args:
        tensors: more tensors, or others instead.
        fields: settings to add or replace, by their name with ``__`` for a dot.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, quantize

    gemma = kind == "gemma3"
    heads, kv_heads, head_dim, hidden, ffn, layers = (2, 1, 256, 64, 96, 7) if gemma else (4, 2, 16, 64, 96, 2)
    tokenizer = sentencepiece() if gemma else byte_level()
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    named = {
        f"{kind}__context_length": 64,
        f"{kind}__block_count": layers,
        f"{kind}__embedding_length": hidden,
        f"{kind}__feed_forward_length": ffn,
        f"{kind}__attention__head_count": heads,
        f"{kind}__attention__head_count_kv": kv_heads,
        f"{kind}__attention__layer_norm_rms_epsilon": 1e-5,
        f"{kind}__rope__freq_base": 1000000.0 if gemma else 10000.0,
        "general__name": "toy",
        "tokenizer__ggml__bos_token_id": tokenizer.bos_token_id,
        "tokenizer__ggml__eos_token_id": tokenizer.eos_token_id,
        "tokenizer__ggml__padding_token_id": tokenizer.pad_token_id,
        "tokenizer__ggml__model": "llama" if gemma else "gpt2",
        "tokenizer__ggml__pre": "default" if gemma else "smollm",
    }
    if gemma:
        named |= {f"{kind}__attention__key_length": 256, f"{kind}__attention__value_length": 256}
        named |= {f"{kind}__attention__sliding_window": 4, "tokenizer__ggml__unknown_token_id": 3}
    else:
        named |= {f"{kind}__rope__dimension_count": head_dim, f"{kind}__vocab_size": len(tokens)}
    writer = GGUFWriter(path, kind)
    for name, value in (named | fields).items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(name.replace("__", "."), value)
    writer.add_token_list(tokens)
    specials = set(tokenizer.all_special_tokens) | {t for t in tokens if t.startswith(("<unused", "<|"))}
    writer.add_token_types([3 if t in specials else 6 if t.startswith("<0x") else 1 for t in tokens])
    if gemma:
        writer.add_token_scores([float(-i) for i in range(len(tokens))])
    else:
        import json

        merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
        writer.add_token_merges([" ".join(pair) for pair in merges])

    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(tokens), hidden), "output_norm": (hidden,)}
    for i in range(layers):
        q, kv = heads * head_dim, kv_heads * head_dim
        block: dict[str, tuple[int, ...]] = {"attn_norm": (hidden,), "ffn_norm": (hidden,)}
        block |= {"attn_q": (q, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden), "attn_output": (hidden, q)}
        block |= {"ffn_gate": (ffn, hidden), "ffn_up": (ffn, hidden), "ffn_down": (hidden, ffn)}
        if gemma:
            block |= {"attn_q_norm": (head_dim,), "attn_k_norm": (head_dim,)}
            block |= {"post_attention_norm": (hidden,), "post_ffw_norm": (hidden,)}
        shapes |= {f"blk.{i}.{name}": shape for name, shape in block.items()}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape).astype(np.float32)
        values = 1 + 0.2 * values if len(shape) == 1 else 0.15 * values
        if len(shape) == 2 and "attn" not in name:
            eight = GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{name}.weight", quantize(values, eight), raw_dtype=eight)
        else:
            writer.add_tensor(f"{name}.weight", values)
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def by_hand(path: Path, ids: Tensor) -> Tensor:
    """Logits [T, V] (float32) of a file's model from its tensors as they lie there, read by the ``gguf`` package
    alone: its own de-quantiser, llama.cpp's conventions (rotary on neighbouring channels for llama, norms with
    Gemma's 1 already added), none of transformers' loading."""
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(path)
    kind = reader.get_field("general.architecture").contents()

    def said(name: str, default: Any = None) -> Any:
        field = reader.get_field(f"{kind}.{name}")
        return default if field is None else field.contents()

    stored = {t.name: t for t in reader.tensors}

    def weights(name: str) -> Tensor | None:
        tensor = stored.get(name)
        return None if tensor is None else torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())

    gemma, layers, hidden = kind == "gemma3", said("block_count"), said("embedding_length")
    windowed = [gemma and (i + 1) % 6 != 0 for i in range(layers)]  # llama.cpp: set_swa_pattern(6)
    shape = reference.Shape(
        layers=layers,
        heads=said("attention.head_count"),
        kv_heads=said("attention.head_count_kv"),
        head_dim=said("attention.key_length", hidden // said("attention.head_count")),
        eps=said("attention.layer_norm_rms_epsilon"),
        theta=[10000.0 if w else said("rope.freq_base") for w in windowed],
        window=[said("attention.sliding_window") if w else None for w in windowed],
        gelu=gemma,
        embed_scale=hidden**0.5 if gemma else 1.0,
        pairs=kind == "llama",
    )
    with torch.no_grad():
        return reference.forward(weights, reference.GGUF, shape, ids)
