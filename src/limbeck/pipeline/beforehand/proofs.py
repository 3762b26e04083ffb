"""What was proven of a recipe's models, kept in the user's cache: the same proof need not be made twice.

To prove that a model can be trained needs torch and the model's class, which take seconds to import. What is proven
depends on files, on sections of the recipe and on versions. All of that is in the key of a proof, read anew every
time; a proof that is not there, torn, or of anything else is made anew. Only success is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from limbeck.errors import RecipeError
from limbeck.files import cache_folder
from limbeck.formats.package import package_file
from limbeck.models.folders.headers import LONGEST_HEADER
from limbeck.recipe import PackageModel, PathModel

LIBRARIES = (
    "torch", "transformers", "tokenizers", "safetensors", "accelerate", "peft", "gguf", "numpy", "Jinja2",
    "huggingface_hub", "sentencepiece", "tiktoken", "kernels",
)  # fmt: skip
"""Packages on whose versions a proof depends."""

HASHED = 256 << 20
"""Bytes of a folder that are hashed. Of files that do not go into it, the beginning and the stamp are."""
BEGINNING = 8 << 20
MANY_FILES = 2_000
KEPT = 500
"""Proofs that are kept, the newest."""


class NotKeptError(Exception):
    """Why a proof is not kept: something that it depends on is not on this machine, or cannot be read."""


def proof_key(sections: Any, models: Iterable[PathModel | PackageModel], said: Iterable[str]) -> str | None:
    """The key of a proof; None: it depends on what is not known here, and has to be made every time.

    Args:
        sections: of the recipe that it depends on, as plain data. Every text in it that names a file or folder stands
            for what is in there.
        models: models of the recipe whose weights exist.
        said: whatever else it depends on.
    """
    files: dict[str, str] = {}
    try:
        for model in models:
            for place in _places(model):
                files[str(place)] = fingerprint_of(place)
        for named in set(_texts(sections)) - files.keys():
            if _is_there(named):
                files[named] = fingerprint_of(Path(named).expanduser())
    except (NotKeptError, RecipeError, OSError):  # what is wrong is said by who makes the proof
        return None
    parts = [sections, files, list(said), _versions()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _texts(plain: Any) -> Iterator[str]:
    if isinstance(plain, str):
        yield plain
    elif isinstance(plain, Mapping):
        for value in plain.values():
            yield from _texts(value)
    elif isinstance(plain, list | tuple):
        for value in plain:
            yield from _texts(value)


def _is_there(named: str) -> bool:
    try:
        return 0 < len(named) < 4096 and Path(named).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # a text that can be no path
        return False


def _places(model: PathModel | PackageModel) -> Iterator[Path]:
    """Files and folders of a model; of an adapter, of its base too.

    Raises:
        NotKeptError: it is on the hub, or brings code of its own.
    """
    if isinstance(model, PackageModel):
        yield package_file(model.package)
        return
    if model.trust_remote_code:
        raise NotKeptError(model.path)
    place = Path(model.path).expanduser() if model.path.lower().endswith(".gguf") else Path(model.path)
    while True:
        if not place.exists():
            raise NotKeptError(str(place))
        yield place
        adapter = place / "adapter_config.json"
        if not adapter.is_file():
            return
        try:
            base = Path(json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"])
        except (ValueError, KeyError, TypeError):
            raise NotKeptError(str(adapter)) from None
        if base == place:
            raise NotKeptError(str(base))
        place = base


# ---------------------------------------------------------------------------------------- files


def fingerprint_of(place: Path) -> str:
    """A hash of all that is read of a file or folder without its weights.

    Of safetensors files it is their header and size, of other files their content; of large ones, which hold weights,
    the beginning, the size, the inode and the times of change.

    Raises:
        NotKeptError: there are too many files.
        OSError: one cannot be read.
    """
    digest, left = hashlib.sha256(), HASHED
    for name, file in _files(place):
        what, size, *more = _of_file(file, left)
        left -= size if what == "content" else 0
        digest.update(json.dumps([name, what, size, *more]).encode())
    return digest.hexdigest()


def _files(place: Path) -> list[tuple[str, Path]]:
    if not place.is_dir():
        return [("", place)]
    found: list[tuple[str, Path]] = []
    for folder, inside, names in os.walk(place):
        inside.sort()
        found += [(str(Path(folder, name).relative_to(place)), Path(folder, name)) for name in sorted(names)]
        if len(found) > MANY_FILES:
            raise NotKeptError(str(place))
    return found


def _of_file(file: Path, left: int) -> tuple[Any, ...]:
    stat = file.stat()
    with file.open("rb") as handle:
        if file.suffix == ".safetensors":
            start = handle.read(8)
            header = handle.read(min(int.from_bytes(start, "little"), LONGEST_HEADER))
            return "header", stat.st_size, hashlib.sha256(start + header).hexdigest()
        if stat.st_size <= left:
            return "content", stat.st_size, hashlib.file_digest(handle, "sha256").hexdigest()
        stamp = (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns)
        return "stamp", stat.st_size, *stamp, hashlib.sha256(handle.read(BEGINNING)).hexdigest()


def _versions() -> dict[str, str]:
    found = {"python": sys.version, "machine": platform.machine(), "limbeck": _source()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def _source() -> str:
    """A hash of limbeck itself."""
    digest, root = hashlib.sha256(), Path(__file__).parents[2]
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


# --------------------------------------------------------------------------------------- the cache


def read_proof(key: str) -> dict[str, Any] | None:
    """A proof that was kept; None: there is none, it is torn, or a folder made of a model has changed since."""
    try:
        kept = json.loads(_file(key).read_text(encoding="utf-8"))
        if kept["sum"] != _sum(kept["proof"], kept["made"]):
            return None
        if any(fingerprint_of(Path(folder)) != was for folder, was in kept["made"].items()):
            return None
        proof: dict[str, Any] = kept["proof"]
        return proof
    except (OSError, ValueError, KeyError, TypeError, AttributeError, NotKeptError):
        return None


def keep_proof(key: str, proof: Mapping[str, Any], made: Iterable[Path]) -> None:
    """Keep a proof, if the cache can be written.

    Args:
        key: of the proof.
        proof: plain data.
        made: folders that it was made from, beside what is in its key (GGUF files that were read into the cache).
    """
    path = _file(key)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        folders = {str(folder): fingerprint_of(folder) for folder in made}
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(json.dumps({"sum": _sum(proof, folders), "proof": proof, "made": folders}), encoding="utf-8")
        os.replace(scratch, path)
        for old in sorted(path.parent.glob("*.json"), key=lambda file: file.stat().st_mtime)[:-KEPT]:
            old.unlink()
    except (OSError, NotKeptError):
        pass


def _file(key: str) -> Path:
    return cache_folder() / "proofs" / f"{key[:32]}.json"


def _sum(proof: Mapping[str, Any], made: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps([proof, made], sort_keys=True).encode()).hexdigest()
