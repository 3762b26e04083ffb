"""Where the weights of a model are on disk, and how many bytes they take there."""

from __future__ import annotations

import json
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from limbeck.models.gguf import package_file
from limbeck.recipe import PackageModel, PathModel, Recipe


@dataclass(frozen=True)
class Stored:
    """Size of a model's weight files in bytes, and in which type: ``BF16``, ``F32``, ``GGUF``, …."""

    bytes: int
    dtype: str


def folder_of(spec: PathModel) -> Path:
    """The folder of a model, also of one that the hub's cache holds."""
    if Path(spec.path).is_dir():
        return Path(spec.path)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(spec.path, revision=spec.revision, local_files_only=True))


def stored(folder: Path) -> Stored:
    """The safetensors files of a folder; the type is that of most of their bytes."""
    total, by_type = 0, Counter[str]()
    for file in sorted(folder.glob("*.safetensors")):
        total += file.stat().st_size
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(length))
        for name, tensor in header.items():
            if name != "__metadata__":
                start, end = tensor["data_offsets"]
                by_type[tensor["dtype"]] += end - start
    return Stored(total, by_type.most_common(1)[0][0] if by_type else "")


def stored_teacher(recipe: Recipe, teacher: PathModel) -> Stored:
    """The teacher as its owner has it: of a GGUF file that was read into the cache, the GGUF file."""
    if not (Path(teacher.path) / "gguf.json").exists():
        return stored(folder_of(teacher))
    own = recipe.teacher
    if isinstance(own, PackageModel):
        return Stored(package_file(own.package, key="teacher.package").stat().st_size, "GGUF")
    assert isinstance(own, PathModel)  # only these two are read from a GGUF file
    return Stored(Path(own.path).expanduser().stat().st_size, "GGUF")
