"""Tiny configurations of the causal language models of transformers, each with what makes its family special."""

from __future__ import annotations

from typing import Any

_BASE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_DEEPER: dict[str, Any] = {**_BASE, "num_hidden_layers": 4}
_HEADS: dict[str, Any] = {**_BASE, "head_dim": 8}
_GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4}
_NO_GROUPS: dict[str, Any] = {name: value for name, value in _BASE.items() if name != "num_key_value_heads"}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_MAMBA2: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
_DELTA: dict[str, Any] = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_MLA: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}

CASES: dict[str, dict[str, Any]] = {
    "llama": _BASE,
    "mistral": {**_BASE, "sliding_window": 8},
    "mixtral": {**_BASE, "num_local_experts": 4, "sliding_window": 8},
    "ministral": {**_HEADS, "sliding_window": 8},
    "qwen2": _BASE,
    "qwen2_moe": {**_BASE, **_EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3": _HEADS,
    "qwen3_moe": {**_BASE, **_EXPERTS},
    "qwen3_next": {**_HEADS, **_EXPERTS, **_DELTA, "num_hidden_layers": 4, "shared_expert_intermediate_size": 16},
    "qwen3_5_text": {**_HEADS, **_DELTA, "num_hidden_layers": 4},
    "gemma": _HEADS,
    "gemma2": {**_HEADS, "sliding_window": 8},
    "gemma3_text": {**_HEADS, "sliding_window": 8, "num_hidden_layers": 6},
    "gemma3n_text": {
        **_HEADS,
        "sliding_window": 8,
        "num_hidden_layers": 5,
        "layer_types": ["sliding_attention"] * 4 + ["full_attention"],
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 320,
        "laurel_rank": 4,
    },
    "phi": _BASE,
    "phi3": _BASE,
    "phimoe": {**_BASE, "num_local_experts": 4},
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gpt_neox": _NO_GROUPS,
    "gptj": {**_GPT2, "rotary_dim": 4},
    "codegen": {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8},
    "openai-gpt": _GPT2,
    "opt": {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 32},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "xglm": {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48},
    "biogpt": _NO_GROUPS,
    "olmo": _BASE,
    "olmo2": _BASE,
    "olmo3": {**_DEEPER, "sliding_window": 8},
    "olmoe": {**_BASE, "num_experts": 4, "num_experts_per_tok": 2},
    "granite": {**_BASE, "logits_scaling": 4.0, "embedding_multiplier": 3.0},
    "granitemoe": {**_BASE, "num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoehybrid": {
        **_BASE, **_MAMBA2, "num_local_experts": 4, "num_experts_per_tok": 2,
        "layer_types": ["mamba", "attention"], "shared_intermediate_size": 16,
    },
    "cohere": _BASE,
    "cohere2": {**_HEADS, "num_hidden_layers": 4, "sliding_window": 8},
    "starcoder2": {**_BASE, "sliding_window": 8},
    "stablelm": _BASE,
    "smollm3": _DEEPER,
    "exaone4": {**_DEEPER, "sliding_window": 8, "sliding_window_pattern": 4},
    "glm": _HEADS,
    "glm4": _HEADS,
    "glm4_moe": {
        **_BASE, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    },
    "helium": _HEADS,
    "nemotron": _BASE,
    "persimmon": _NO_GROUPS,
    "arcee": _BASE,
    "apertus": _BASE,
    "bitnet": _BASE,
    "diffllama": _BASE,
    "ernie4_5": _HEADS,
    "hunyuan_v1_dense": _HEADS,
    "seed_oss": _HEADS,
    "deepseek_v2": {**_NO_GROUPS, **_MLA, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1},
    "deepseek_v3": {
        **_NO_GROUPS, **_MLA, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
    },
    "gpt_oss": {**_HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    "llama4_text": {
        **_HEADS, "num_hidden_layers": 4, "num_local_experts": 4, "num_experts_per_tok": 1,
        "intermediate_size_mlp": 48, "attention_chunk_size": 8, "interleave_moe_layer_step": 2,
    },
    "dbrx": {
        "d_model": 32, "n_heads": 4, "n_layers": 2,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0}, "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    },
    "minimax": {**_HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "block_size": 8},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "falcon_mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "mamba2": {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    "jamba": {**_DEEPER, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 4, "mamba_d_state": 8, "use_mamba_kernels": False},
    "bamba": {**_BASE, **_MAMBA2, "attn_layer_indices": [1]},
    "falcon_h1": {**_BASE, **_MAMBA2, "mamba_d_ssm": 64},
    "zamba2": {
        **_BASE, "num_hidden_layers": 4, "num_key_value_heads": 4, "mamba_d_state": 8, "mamba_headdim": 8, "mamba_ngroups": 1,
        "n_mamba_heads": 8, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "num_mem_blocks": 1, "use_shared_attention_adapter": False, "adapter_rank": 4,
    },
    "nemotron_h": {
        **{k: v for k, v in _BASE.items() if k != "num_hidden_layers"}, "mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1,
        "layers_block_type": ["mamba", "attention"],
    },
    "recurrent_gemma": {**_DEEPER, "lru_width": 32, "attention_window_size": 8, "block_types": ["recurrent", "attention"], "head_dim": 8},
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "intermediate_size": 48},
    "xlstm": {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4, "chunk_size": 8},
    "lfm2": {**_DEEPER, "block_auto_adjust_ff_dim": False, "full_attn_idxs": [1, 3]},
    "bert": _NO_GROUPS,
}  # fmt: skip
