"""A causal language model from a folder, a hub name, or a configuration."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from limbeck.errors import RecipeError
from limbeck.models.causal_lm import CausalLM, fill_zero_rows, unfreeze_padding
from limbeck.models.folders.configuration import configuration, impossible
from limbeck.models.folders.saved import DTYPES, from_path, one_line, quiet
from limbeck.models.proof import prove
from limbeck.recipe import ConfigModel, Lora, PathModel


def load_model(
    spec: PathModel | ConfigModel,
    tokenizer: Any,
    *,
    seed: int = 0,
    seq_len: int | None = None,
    device: torch.device | str = "cpu",
) -> CausalLM:
    """Build the model that a recipe section describes, with its head proven.

    Args:
        spec: the recipe's section.
        tokenizer: its vocabulary sizes a model from a config; a model from a path must cover it.
        seed: initialises a model from a config.
        seq_len: the longest row it will see.
        device: where it is held; its proofs run there.

    Raises:
        RecipeError: it cannot be loaded, or its sizes are impossible. Keys are relative to the section (``.path``).
    """
    quiet()
    model = from_path(spec) if isinstance(spec, PathModel) else _from_config(spec, tokenizer, seed, seq_len)
    try:
        lm = CausalLM(model.to(device), tokenizer)
    except AttributeError as error:  # no output embeddings, no parameters, ...
        raise RecipeError(
            f"{type(model).__name__} has no language model head ({one_line(error)})",
            fix="Use a causal language model",
        ) from None
    check_positions(lm, seq_len)
    try:
        prove(lm, fresh=isinstance(spec, ConfigModel))
    except RecipeError:
        raise
    except Exception as error:  # an encoder is missing, a kernel is not installed, ...
        raise RecipeError(
            f"{type(model).__name__} does not read plain rows of tokens ({one_line(error)})",
            fix="Use another architecture for this model",
        ) from None
    return lm


def check_positions(lm: CausalLM, seq_len: int | None) -> None:
    """Refuse rows that are longer than a model reads; None: they are not known yet.

    Raises:
        RecipeError: they are longer.
    """
    longest = lm.traits.max_positions
    if seq_len and longest and longest < seq_len:
        raise RecipeError(
            f"data.seq_len is {seq_len}, but this model reads {longest} positions",
            fix=f"Write `seq_len: {longest}` or less",
        )


def _from_config(spec: ConfigModel, tokenizer: Any, seed: int, seq_len: int | None) -> Any:
    from transformers import AutoModelForCausalLM

    config = configuration(spec, tokenizer, seq_len)
    try:
        torch.manual_seed(seed)
        dtype = DTYPES[spec.dtype] if spec.dtype != "auto" else None
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        fill_zero_rows(model, seed)
        return model
    except Exception as error:  # impossible sizes fail in many ways inside the architecture
        raise impossible(error) from None


def with_lora(lm: CausalLM, lora: Lora, seed: int) -> CausalLM:
    """The model with low-rank adapters to train; everything else, the head too, is frozen.

    Raises:
        RecipeError: its modules cannot be adapted (``.targets``).
        RuntimeError: others hold the model too; adapters are put into its modules.
    """
    from peft import LoraConfig, get_peft_model

    lm.require_private()
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
        raise RecipeError(one_line(error), key=".targets", fix="Name linear modules") from None


def prove_adapters(lm: CausalLM) -> None:
    """Check that adapters compute beside the weights what they do merged into them; some architectures read the
    weights of a module past its adapter (Jamba).

    The model's weights are changed: this is for one that is thrown away.

    Raises:
        RecipeError: they do not, or the model does not run with them (``.targets``).
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
            key=".targets",
            fix="Name other modules",
        ) from None
    moved, done = float((merged - beside).abs().max()), float((beside - bare).abs().max())
    if not moved <= 1e-3 * done:
        raise RecipeError(
            f"{type(lm.core).__name__} reads weights past their adapters: merged, they would compute something else",
            key=".targets",
            fix="Name other modules, for example those of the attention",
        )


def reinitialised(lm: CausalLM, seed: int) -> CausalLM:
    """The model with fresh weights of the same shape: it knows nothing yet."""
    torch.manual_seed(seed)
    fresh = type(lm.core)._from_config(lm.core.config, dtype=lm.core.dtype)
    fill_zero_rows(fresh, seed)
    unfreeze_padding(fresh)
    lm.model, lm.shared = fresh.to(lm.device), False
    return lm


def weights_fingerprint(model: torch.nn.Module) -> str:
    """Hash over every weight's name, shape, type and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
