"""A model's shape without its weights: what can be refused before anything large is read."""

from __future__ import annotations

import copy
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from limbeck.errors import RecipeError
from limbeck.models.folders.configuration import configuration, impossible
from limbeck.models.folders.headers import require_fitting
from limbeck.models.folders.saved import one_line, quiet, whole_model
from limbeck.recipe import ConfigModel, PathModel

LARGE = 30_000_000
"""Parameters above which a small copy is narrowed."""

FEW_TOKENS = 512
_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")


def skeleton(spec: PathModel | ConfigModel, tokenizer: Any = None, seq_len: int | None = None) -> Any:
    """The transformers model that a recipe section describes, on the meta device: shapes and no numbers.

    Raises:
        RecipeError: there is no such model, or its sizes are impossible.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    quiet()
    config = configuration(spec, tokenizer, seq_len)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # impossible sizes, no such class, ...
        if isinstance(spec, ConfigModel):
            raise impossible(error) from None
        raise RecipeError(
            f"{spec.path} cannot be loaded ({one_line(error)})",
            key=".path",
            fix="Name a folder that from_pretrained loads",
        ) from None
    if isinstance(spec, PathModel):
        whole, said = whole_model(spec)
        if Path(whole.path).is_dir():
            require_fitting(Path(whole.path), model, said or spec.path)
        with suppress(OSError):  # most base models have none
            model.generation_config = GenerationConfig.from_pretrained(spec.path, revision=spec.revision)
    return model


def rows_of(spec: PathModel) -> int:
    """Token embeddings of a model: its vocabulary with its padding."""
    return int(skeleton(spec).get_input_embeddings().weight.shape[0])


def small_copy(spec: PathModel | ConfigModel, tokenizer: Any = None, *, narrow: bool = False) -> Any:
    """A model of the same architecture with random weights: as it is where it is small, else with two layers.

    Args:
        spec: the recipe's section.
        tokenizer: sizes the vocabulary of a model from a config.
        narrow: make a large one narrower too; widths are kept otherwise.

    Raises:
        RecipeError: it cannot be built.
    """
    from transformers import AutoModelForCausalLM

    quiet()
    config = copy.deepcopy(configuration(spec, tokenizer))
    config.dtype = torch.float32

    def built(device: str) -> Any:
        with torch.device(device):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)

    def is_large() -> bool:
        return bool(sum(p.numel() for p in built("meta").parameters()) > LARGE)

    try:
        text = config.get_text_config()
        if is_large():
            _shorten(text, 2)
            text.vocab_size = min(text.vocab_size, FEW_TOKENS)
            for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
                setattr(text, name, None)
            if narrow and is_large():
                _narrow(text)
        torch.manual_seed(0)
        return built("cpu")
    except Exception as error:
        raise RecipeError(f"no small copy of it can be built ({one_line(error)})") from None


def _shorten(config: Any, layers: int) -> None:
    """Fewer layers; lists that have an entry a layer follow."""
    depth = config.num_hidden_layers
    if depth <= layers:
        return
    for name, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == depth:
            setattr(config, name, value[:layers])
    config.num_hidden_layers = layers


def _narrow(config: Any) -> None:
    """Two groups of heads, and all else in proportion."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    kept_kv = min(2, kv_heads)
    kept = heads // kv_heads * kept_kv
    hidden, head_dim = config.hidden_size, getattr(config, "head_dim", None) or config.hidden_size // heads
    narrow = kept * head_dim if hidden == heads * head_dim else max(hidden * kept // heads // 64, 1) * 64
    for name, value in config.to_dict().items():
        if name.endswith("intermediate_size") and isinstance(value, int):
            setattr(config, name, max(value * narrow // hidden // 64, 1) * 64)
        if name in _COUNTS and isinstance(value, int):
            setattr(config, name, min(value, 4))
    config.num_attention_heads = kept
    if hasattr(config, "num_key_value_heads"):
        config.num_key_value_heads = kept_kv
    if hasattr(config, "head_dim"):
        config.head_dim = head_dim
    config.hidden_size = narrow
