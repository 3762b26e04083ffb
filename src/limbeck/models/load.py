"""A causal language model from a folder, a hub name, or a configuration."""

from __future__ import annotations

import difflib
import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import torch

from limbeck.errors import RecipeError
from limbeck.files import cache_folder, whole_folder
from limbeck.models.language_model import LanguageModel, fill_zero_rows, unfreeze_padding
from limbeck.models.saved import DTYPES, from_path, one_line
from limbeck.recipe import ConfigModel, Lora, PackageModel, PathModel


def load_model(
    spec: PathModel | ConfigModel, tokenizer: Any, *, key: str, seed: int = 0, seq_len: int | None = None
) -> LanguageModel:
    """Build the model that a recipe section describes, with its head proven.

    Args:
        spec: the recipe's section.
        tokenizer: its vocabulary sizes a model from a config; a model from a path must cover it.
        key: the section's place in the recipe, for errors.
        seed: initialises a model from a config.
        seq_len: the longest row it will see.

    Raises:
        RecipeError: it cannot be loaded, or its sizes are impossible.
    """
    quiet()
    model = from_path(spec, key) if isinstance(spec, PathModel) else _from_config(spec, tokenizer, key, seed, seq_len)
    try:
        lm = LanguageModel(model.to(device()), tokenizer)
    except AttributeError as error:  # no output embeddings, no parameters, ...
        raise RecipeError(
            f"{type(model).__name__} has no language model head ({one_line(error)})",
            key=key,
            fix="Use a causal language model",
        ) from None
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if seq_len and longest and longest < seq_len:
        raise RecipeError(
            f"data.seq_len is {seq_len}, but this model reads {longest} positions",
            key=key,
            fix=f"Write `seq_len: {longest}` or less",
        )
    try:
        lm.prove(key, fresh=isinstance(spec, ConfigModel))
    except RecipeError:
        raise
    except Exception as error:  # an encoder is missing, a kernel is not installed, ...
        raise RecipeError(
            f"{type(model).__name__} does not read plain rows of tokens ({one_line(error)})",
            key=key,
            fix="Use another architecture for this model",
        ) from None
    return lm


def localised(spec: PathModel | PackageModel, key: str) -> tuple[PathModel, str | None]:
    """A model as a folder or hub name. A GGUF file, on disk or in an installed package, is
    de-quantised once into the user's cache, in float32.

    Returns:
        Where it is, and for a GGUF file a line that says how coarsely its weights were stored.

    Raises:
        RecipeError, InputError: the file is missing, torn, or of an architecture that is not proven.
    """
    from limbeck.models.gguf import inspect_gguf, load_gguf, package_file

    if isinstance(spec, PackageModel):
        file = package_file(spec.package, key=f"{key}.package")
    elif spec.path.lower().endswith(".gguf"):
        file = Path(spec.path).expanduser()
        if not file.is_file():
            raise RecipeError(f"there is no {spec.path}", key=f"{key}.path", fix="Check the path")
    else:
        return spec, None
    inspect_gguf(file, key)  # also of a file that was read before: an older limbeck may have kept what lacks tensors
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()[:16]
    home = cache_folder() / "models" / f"{file.stem}-{digest}"
    facts = home / "gguf.json"
    if not facts.exists():
        read = load_gguf(file, key=key)
        with whole_folder(home, shared=True) as scratch:
            read.model.save_pretrained(scratch)
            read.tokenizer.save_pretrained(scratch)
            (scratch / facts.name).write_text(json.dumps(read.facts.line()))
    return PathModel(path=str(home), dtype=spec.dtype), json.loads(facts.read_text())


def device() -> torch.device:
    """CUDA where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def quiet() -> None:
    """No progress bars and advice from the libraries below: limbeck has its own."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", message=".*(generation flags|pad_token_id|lora_dropout).*")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|torch)\.")


def _from_config(spec: ConfigModel, tokenizer: Any, key: str, seed: int, seq_len: int | None) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    from limbeck.models.tokenizer import vocabulary_size

    sizes = dict(spec.config)
    kind = sizes.pop("model_type")
    try:
        default = AutoConfig.for_model(kind)
    except (ValueError, KeyError):
        from transformers import CONFIG_MAPPING

        near = difflib.get_close_matches(str(kind), list(CONFIG_MAPPING), 1)
        fix = f"Did you mean `{near[0]}`?" if near else "Write one that transformers knows, for example llama"
        raise RecipeError(f"there is no architecture `{kind}`", key=f"{key}.config.model_type", fix=fix) from None
    known = set(default.to_dict()) | set(getattr(default, "attribute_map", {}))
    for name in sizes:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            fix = f"Did you mean `{near[0]}`?" if near else f"Known: see {type(default).__name__}"
            raise RecipeError(f"a {kind} configuration has no such key", key=f"{key}.config.{name}", fix=fix)
    vocab = vocabulary_size(tokenizer)
    if not isinstance(sizes.get("vocab_size", vocab), int):
        raise RecipeError(
            f"got {sizes['vocab_size']!r}", key=f"{key}.config.vocab_size", fix="Leave it out: it follows the tokenizer"
        )
    if sizes.get("vocab_size", vocab) < vocab:
        raise RecipeError(
            f"got {sizes['vocab_size']}, but the tokenizer has {vocab} tokens",
            key=f"{key}.config.vocab_size",
            fix="Leave it out: it follows the tokenizer",
        )
    sizes.setdefault("vocab_size", vocab)
    if seq_len and "max_position_embeddings" in known:
        sizes.setdefault("max_position_embeddings", max(seq_len, 512))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        sizes.setdefault(name, getattr(tokenizer, name, None))
    if "num_attention_heads" in sizes and "num_key_value_heads" in known:
        sizes.setdefault("num_key_value_heads", sizes["num_attention_heads"])
    try:
        config = AutoConfig.for_model(kind, **sizes)
        torch.manual_seed(seed)
        dtype = DTYPES[spec.dtype] if spec.dtype != "auto" else None
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        fill_zero_rows(model, seed)
        return model
    except Exception as error:  # impossible sizes fail in many ways inside the architecture
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1][:200]
        raise RecipeError(f"these sizes make no model ({reason})", key=f"{key}.config", fix="Check them") from None


def with_lora(lm: LanguageModel, lora: Lora, seed: int, key: str = "student.lora") -> LanguageModel:
    """The model with low-rank adapters to train; everything else, the head too, is frozen."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        task_type="CAUSAL_LM",
    )
    try:
        lm.model = get_peft_model(lm.model, config)
        return lm
    except Exception as error:  # no such modules, or of a kind that peft does not adapt
        raise RecipeError(one_line(error), key=f"{key}.targets", fix="Name linear modules") from None


def prove_adapters(lm: LanguageModel, key: str) -> None:
    """Check that adapters compute beside the weights what they do merged into them; some architectures read the
    weights of a module past its adapter (Jamba).

    The model's weights are changed: this is for one that is thrown away.

    Raises:
        RecipeError: they do not, or the model does not run with them.
    """
    ids_BT = torch.arange(24, device=lm.device)[None] % lm.vocab_size
    positions_BT = torch.arange(24, device=lm.device)[None]
    generator = torch.Generator().manual_seed(0)
    try:
        lm.model.float()  # in low precision, merging rounds
        with lm.evaluating(), torch.no_grad():
            bare = lm.hidden(ids_BT, positions_BT)
            for name, parameter in lm.model.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
            beside = lm.hidden(ids_BT, positions_BT)
            lm.model.merge_adapter()
            merged = lm.hidden(ids_BT, positions_BT)
    except Exception as error:  # a router that returns a tuple, ...
        raise RecipeError(
            f"{type(lm.core).__name__} does not run with adapters on these modules ({one_line(error)})",
            key=f"{key}.targets",
            fix="Name other modules",
        ) from None
    moved, done = float((merged - beside).abs().max()), float((beside - bare).abs().max())
    if not moved <= 1e-3 * done:
        raise RecipeError(
            f"{type(lm.core).__name__} reads weights past their adapters: merged, they would compute something else",
            key=f"{key}.targets",
            fix="Name other modules, for example those of the attention",
        )


def reinitialised(lm: LanguageModel, seed: int) -> LanguageModel:
    """The model with fresh weights of the same shape: it knows nothing yet."""
    torch.manual_seed(seed)
    fresh = type(lm.core)._from_config(lm.core.config, dtype=lm.core.dtype)
    fill_zero_rows(fresh, seed)
    unfreeze_padding(fresh)
    lm.model = fresh.to(lm.device)
    return lm


def weights_fingerprint(model: torch.nn.Module) -> str:
    """Hash over every weight's name, shape, type and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
