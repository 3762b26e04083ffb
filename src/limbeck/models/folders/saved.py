"""Models that exist as files: ``save_pretrained`` folders, hub names, and adapters, which are merged into their base.

Nothing here runs code that a folder brings along, unless the recipe says ``trust_remote_code``.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from limbeck.errors import RecipeError
from limbeck.models.folders.headers import bytes_by_dtype
from limbeck.recipe import PathModel

DTYPES: dict[str, Any] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "auto": "auto"}

_NATIVE_ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4")
_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def from_path(spec: PathModel) -> Any:
    """The transformers model at a folder or hub name; an adapter comes merged into its base.

    Raises:
        RecipeError: it cannot be loaded, lacks weights, or wants to run code of its own (``.path``).
    """
    whole, said = whole_model(spec)
    model = _whole(whole, said)
    return model if said is None else _merged(model, spec)


def whole_model(spec: PathModel) -> tuple[PathModel, str | None]:
    """The model itself; of an adapter, its base, and how that is called in errors.

    Raises:
        RecipeError: the adapter is not whole, or names no base that is (``.path``).
    """
    adapter = _adapter_config(spec)
    if adapter is None:
        return spec, None
    base = adapter.get("base_model_name_or_path")
    if not base:
        raise RecipeError(
            f"{spec.path} holds an adapter that does not name its base model", key=".path", fix="Merge it first"
        )
    # The revision is of the adapter; the base has its own.
    whole = spec.model_copy(update={"path": str(base), "revision": adapter.get("revision")})
    if _adapter_config(whole) is not None:
        raise RecipeError(
            f"the base model of the adapter {spec.path} is an adapter itself", key=".path", fix="Merge them first"
        )
    folder = Path(spec.path)
    if folder.is_dir() and not (folder / "adapter_model.safetensors").is_file():
        raise RecipeError(
            f"{spec.path} holds an adapter without adapter_model.safetensors",
            key=".path",
            fix="Save it as safetensors (nothing else is loaded)",
        )
    return whole, f"{base}, the base model of the adapter {spec.path},"


def model_places(path: str, revision: str | None = None) -> list[tuple[str, str | None]]:
    """Path and revision of a model's files, its tokenizer among them; for an adapter, of its base's too."""
    adapter = _adapter_config(PathModel(path=path, revision=revision))
    base = adapter.get("base_model_name_or_path") if adapter else None
    return [(path, revision), *([(str(base), adapter.get("revision"))] if adapter and base else [])]


def stored_dtype(spec: PathModel) -> str | None:
    """The dtype that most weights of a model are stored in; of an adapter, those of its base. None: not known."""
    adapter = _adapter_config(spec)
    if adapter is not None:
        base = {"path": str(adapter.get("base_model_name_or_path")), "revision": adapter.get("revision")}
        return stored_dtype(spec.model_copy(update=base))
    if not Path(spec.path).is_dir():
        return _configured_dtype(spec)
    counts = bytes_by_dtype(Path(spec.path))
    return _STORED.get(counts.most_common(1)[0][0]) if counts else None


def _configured_dtype(spec: PathModel) -> str | None:
    """What the configuration of a hub name says; None without one."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(spec.path, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    except Exception:  # the model was loaded before: no connection any more, at worst
        return None
    named = str(config.dtype).removeprefix("torch.")
    return named if named in _STORED.values() else None


def _adapter_config(spec: PathModel) -> dict[str, Any] | None:
    """The ``adapter_config.json`` at a folder or hub name; None for a model that is whole."""
    from transformers.utils import find_adapter_config_file

    if (Path(spec.path) / "config.json").is_file() and not (Path(spec.path) / "adapter_config.json").is_file():
        return None
    try:
        found = find_adapter_config_file(spec.path, revision=spec.revision)
        return json.loads(Path(found).read_text()) if found else None
    except (OSError, ValueError):
        return None  # no such place: loading the model says so


def _whole(spec: PathModel, said: str | None = None) -> Any:
    from transformers import AutoModelForCausalLM

    said = said or spec.path
    try:
        config = read_config(spec, said)
        model, info = AutoModelForCausalLM.from_pretrained(
            spec.path,
            config=config,
            revision=spec.revision,
            dtype=DTYPES[spec.dtype],
            use_safetensors=True,
            trust_remote_code=spec.trust_remote_code,
            output_loading_info=True,
        )
    except RecipeError:
        raise
    except Exception as error:  # from_pretrained raises OSError, ValueError, SafetensorError, ...
        raise _unloadable(said, error) from None
    wrong = {"lack": info["missing_keys"], "have another shape for": info.get("mismatched_keys", ())}
    for what, names in wrong.items():
        if names:
            first, *others = sorted(name if isinstance(name, str) else name[0] for name in names)
            raise RecipeError(
                f"the weights of {said} {what} {first} and {len(others)} others",
                key=".path",
                fix="The files do not fit the config.json beside them",
            )
    return model


def read_config(spec: PathModel, said: str | None = None) -> Any:
    """The transformers configuration of a whole model at a folder or hub name; weights are not read.

    Raises:
        RecipeError: there is none, no weights that would be loaded, or code of its own (``.path``).
    """
    from transformers import AutoConfig

    said, folder = said or spec.path, Path(spec.path)
    if folder.is_dir() and not list(folder.glob("*.safetensors")):
        held = "only pickled weights" if list(folder.glob("*.bin")) else "no weights"
        raise RecipeError(
            f"{said} holds {held}",
            key=".path",
            fix="Name a folder with *.safetensors (nothing else is loaded)",
        )
    if folder.is_file():
        raise RecipeError(f"{said} is a file", key=".path", fix="Name the folder that holds config.json")
    _refuse_own_code(spec)
    try:
        config = AutoConfig.from_pretrained(spec.path, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    except Exception as error:
        raise _unloadable(said, error) from None
    _refuse_hub_kernels(config, said)
    return config


def _unloadable(said: str, error: Exception) -> RecipeError:
    return RecipeError(
        f"{said} cannot be loaded ({one_line(error)})", key=".path", fix="Name a folder that from_pretrained loads"
    )


def _refuse_own_code(spec: PathModel) -> None:
    """Say in one line that a folder wants to run code of its own, before transformers asks about it."""
    if spec.trust_remote_code:
        return
    from transformers import CONFIG_MAPPING

    try:
        config = json.loads((Path(spec.path) / "config.json").read_text())
    except (OSError, ValueError):
        return  # not local, or broken: from_pretrained says what it is
    kind = config.get("model_type")
    if "auto_map" in config and kind not in CONFIG_MAPPING:
        raise RecipeError(
            f"{spec.path} is of the architecture `{kind}`, which only code of its own reads (auto_map)",
            key=".path",
            fix="Write `trust_remote_code: true` in a recipe if you trust it",
        )
    if kind not in CONFIG_MAPPING:
        raise RecipeError(
            f"{spec.path} is of the architecture `{kind}`, which transformers does not know",
            key=".path",
            fix="Use a newer transformers, or another model",
        )


def _refuse_hub_kernels(config: Any, said: str) -> None:
    """An attention or experts implementation that is a hub kernel would be downloaded and run."""
    configs = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))]
    for part in configs:
        for what in ("_attn_implementation", "_experts_implementation"):
            named = getattr(part, what, None)
            if isinstance(named, str) and ("/" in named or (what[1] == "a" and named not in _NATIVE_ATTENTION)):
                raise RecipeError(
                    f"the config.json of {said} names {named!r} as its {what[1:]}, which is code that is not here",
                    key=".path",
                    fix="Remove that entry from config.json",
                )


def _merged(model: Any, spec: PathModel) -> Any:
    from peft import PeftModel

    try:
        adapted = PeftModel.from_pretrained(model, spec.path, revision=spec.revision, use_safetensors=True)
        return adapted.merge_and_unload(safe_merge=True)
    except Exception as error:  # another shape, an unknown method, one that cannot be merged, ...
        raise RecipeError(
            f"the adapter {spec.path} cannot be merged into its base model ({one_line(error)})",
            key=".path",
            fix="Merge it with peft, and name the folder of the merged model",
        ) from None


def one_line(error: Exception) -> str:
    """The first line of what a library raised, cut to a readable length."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def quiet() -> None:
    """No progress bars and advice from the libraries below: limbeck has its own."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", message=".*(generation flags|pad_token_id|lora_dropout).*")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|torch)\.")
