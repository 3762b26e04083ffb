"""Where the weights of a model are on disk, and how many bytes they take there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from limbeck.errors import under
from limbeck.formats.package import package_file
from limbeck.models.folders.headers import bytes_by_dtype
from limbeck.recipe import PackageModel, PathModel


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
    by_type = bytes_by_dtype(folder)
    total = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return Stored(total, by_type.most_common(1)[0][0] if by_type else "")


def stored_teacher(section: PathModel | PackageModel | None, teacher: PathModel) -> Stored:
    """The teacher as its owner has it: of a GGUF file that was read into the cache, the GGUF file.

    Args:
        section: the recipe's; None for one that was trained in the run.
        teacher: where its weights are.
    """
    if not (Path(teacher.path) / "gguf.json").exists():
        return stored(folder_of(teacher))
    if isinstance(section, PackageModel):
        with under("teacher.package"):
            return Stored(package_file(section.package).stat().st_size, "GGUF")
    assert section is not None  # only these two are read from a GGUF file
    return Stored(Path(section.path).expanduser().stat().st_size, "GGUF")
