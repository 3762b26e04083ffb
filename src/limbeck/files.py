"""Files that are whole or absent: written under another name, flushed, then renamed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` (UTF-8), at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.writing")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)
    _fsync(path.parent)


def fsync_tree(folder: Path) -> None:
    """Flush every file below ``folder``, and the folders themselves, to the disk."""
    for path in [*folder.rglob("*"), folder]:
        _fsync(path)


def replace_folder(scratch: Path, target: Path) -> None:
    """Move a finished folder to its place; one that stands there already is removed first."""
    shutil.rmtree(target, ignore_errors=True)
    os.replace(scratch, target)
    _fsync(target.parent)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
