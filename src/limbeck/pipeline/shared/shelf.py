"""Trained models in the user's cache, so that the next run takes them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from limbeck.files import cache_folder, whole_folder

SUMS = "limbeck.json"


class Shelf:
    """A place for one model folder in the user's cache.

    Args:
        kind: what stands beside it.
        key: of what it was made from.
    """

    def __init__(self, kind: str, key: str) -> None:
        self.folder = cache_folder() / kind / key

    def is_whole(self) -> bool:
        """Whether a model is there, byte for byte as it was put there."""
        try:
            return bool(json.loads((self.folder / SUMS).read_text()) == _sums(self.folder))
        except (OSError, ValueError):
            return False

    def take(self, target: Path) -> None:
        """Copy it to ``target``."""
        with whole_folder(target) as scratch:
            shutil.copytree(self.folder, scratch, dirs_exist_ok=True)

    def put(self, model: Path) -> None:
        """Keep a copy of ``model``.

        Raises:
            OSError: the cache cannot be written.
        """
        with whole_folder(self.folder, shared=True) as scratch:
            shutil.copytree(model, scratch, dirs_exist_ok=True)
            (scratch / SUMS).write_text(json.dumps(_sums(scratch)))


def _sums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.safetensors"))}
