"""What safetensors files say of themselves: names, types and sizes, without the weights."""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from pathlib import Path
from typing import Any

from limbeck.errors import RecipeError

LONGEST_HEADER = 100_000_000
"""Bytes, as in the safetensors library."""


def read_header(file: Path) -> dict[str, dict[str, Any]]:
    """Tensors of a file by name: ``{"dtype": ..., "shape": ..., "data_offsets": [start, end]}``.

    Raises:
        ValueError: it is no safetensors file, or a torn one.
    """
    size = file.stat().st_size
    with file.open("rb") as handle:
        start = handle.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(LONGEST_HEADER, size - 8):
            raise ValueError("has no header")
        header = json.loads(handle.read(length))
    tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
    held = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    if size != 8 + length + held:
        raise ValueError(f"holds {size:,} bytes, but its header says {8 + length + held:,}")
    return tensors


def bytes_by_dtype(folder: Path) -> Counter[str]:
    """Bytes of a folder's tensors by type: ``BF16``, ``F32``, …."""
    found = Counter[str]()
    for file in sorted(folder.glob("*.safetensors")):
        for tensor in read_header(file).values():
            start, end = tensor["data_offsets"]
            found[tensor["dtype"]] += end - start
    return found


def require_whole_files(folder: Path) -> None:
    """Refuse a folder of which a weight file is missing or torn; only headers are read.

    Raises:
        RecipeError: names the file.
    """
    files = sorted(folder.glob("*.safetensors"))
    for index in folder.glob("*.safetensors.index.json"):
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError):
            raise RecipeError(f"{index} is no index of weight files", key=".path", fix="Download it again") from None
        for name in sorted(named - {file.name for file in files}):
            raise RecipeError(f"{folder} lacks {name}", key=".path", fix="Download it again")
    for file in files:
        try:
            read_header(file)
        except (ValueError, KeyError, TypeError) as error:
            raise RecipeError(
                f"{folder} cannot be loaded ({file.name} {error})",
                key=".path",
                fix="Name a folder that from_pretrained loads",
            ) from None


def require_fitting(folder: Path, model: Any, said: str) -> None:
    """Refuse weight files that lack a tensor of a model, or have another shape for one; only headers are read.

    Where most names are others than the model's, transformers converts them, and says itself what is missing.

    Args:
        folder: with safetensors files.
        model: a transformers model, on any device.
        said: how the folder is called.

    Raises:
        RecipeError: names the first tensor.
    """
    stored = {name: t["shape"] for file in folder.glob("*.safetensors") for name, t in read_header(file).items()}
    ours = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    if len(stored.keys() & ours.keys()) < len(ours) / 2:
        return
    tied = set(getattr(model, "all_tied_weights_keys", None) or getattr(model, "_tied_weights_keys", None) or ())
    ignored = tuple(getattr(model, "_keys_to_ignore_on_load_missing", None) or ())
    lacks = sorted(
        name for name in ours.keys() - stored.keys() - tied if not any(re.search(each, name) for each in ignored)
    )
    other = sorted(name for name in ours.keys() & stored.keys() if ours[name] != stored[name])
    for what, names in (("lack", lacks), ("have another shape for", other)):
        if names:
            raise RecipeError(
                f"the weights of {said} {what} {names[0]} and {len(names) - 1} others",
                key=".path",
                fix="The files do not fit the config.json beside them",
            )
