"""The configuration of a model: from its files, or from the recipe."""

from __future__ import annotations

import difflib
from typing import Any

from limbeck.errors import RecipeError
from limbeck.models.folders.saved import read_config, whole_model
from limbeck.models.tokenizer import vocabulary_size
from limbeck.recipe import ConfigModel, PathModel


def configuration(spec: PathModel | ConfigModel, tokenizer: Any = None, seq_len: int | None = None) -> Any:
    """The transformers configuration of a recipe's model. Weights are not read.

    Args:
        spec: the recipe's section; of an adapter, it is that of its base.
        tokenizer: sizes the vocabulary of a model from a config; None: as the architecture has it.
        seq_len: the longest row it will see; it sizes the positions of a model from a config.

    Raises:
        RecipeError: there is no such model; keys are relative to the section.
    """
    if isinstance(spec, ConfigModel):
        return _of_config(spec, tokenizer, seq_len)
    whole, said = whole_model(spec)
    return read_config(whole, said)


def _of_config(spec: ConfigModel, tokenizer: Any, seq_len: int | None) -> Any:
    from transformers import AutoConfig

    sizes = dict(spec.config)
    kind = sizes.pop("model_type")
    try:
        default = AutoConfig.for_model(kind)
    except (ValueError, KeyError):
        from transformers import CONFIG_MAPPING

        near = difflib.get_close_matches(str(kind), list(CONFIG_MAPPING), 1)
        fix = f"Did you mean `{near[0]}`?" if near else "Write one that transformers knows, for example llama"
        raise RecipeError(f"there is no architecture `{kind}`", key=".config.model_type", fix=fix) from None
    known = set(default.to_dict()) | set(getattr(default, "attribute_map", {}))
    for name in sizes:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            fix = f"Did you mean `{near[0]}`?" if near else f"Known: see {type(default).__name__}"
            raise RecipeError(f"a {kind} configuration has no such key", key=f".config.{name}", fix=fix)
    if tokenizer is not None:
        _fit_tokenizer(sizes, tokenizer)
    if seq_len and "max_position_embeddings" in known:
        sizes.setdefault("max_position_embeddings", max(seq_len, 512))
    if "num_attention_heads" in sizes and "num_key_value_heads" in known:
        sizes.setdefault("num_key_value_heads", sizes["num_attention_heads"])
    try:
        return AutoConfig.for_model(kind, **sizes)
    except Exception as error:
        raise impossible(error) from None


def _fit_tokenizer(sizes: dict[str, Any], tokenizer: Any) -> None:
    """Size the vocabulary, and name the tokenizer's special tokens."""
    vocab = vocabulary_size(tokenizer)
    if not isinstance(sizes.get("vocab_size", vocab), int):
        raise RecipeError(
            f"got {sizes['vocab_size']!r}", key=".config.vocab_size", fix="Leave it out: it follows the tokenizer"
        )
    if sizes.get("vocab_size", vocab) < vocab:
        raise RecipeError(
            f"got {sizes['vocab_size']}, but the tokenizer has {vocab} tokens",
            key=".config.vocab_size",
            fix="Leave it out: it follows the tokenizer",
        )
    sizes.setdefault("vocab_size", vocab)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        sizes.setdefault(name, getattr(tokenizer, name, None))


def impossible(error: Exception) -> RecipeError:
    """What an architecture raises on sizes that make no model, in a line."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[-1][:200]
    return RecipeError(f"these sizes make no model ({reason})", key=".config", fix="Check them")
