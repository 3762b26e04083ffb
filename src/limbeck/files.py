"""Files that are whole or absent: written under another name, flushed, then renamed."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """What can be made again is kept here: ``$LIMBECK_CACHE``, or ``limbeck`` in the user's cache."""
    if own := os.environ.get("LIMBECK_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "limbeck"


def write_whole(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` (UTF-8), at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.writing")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)
    fsync(path.parent)


@contextmanager
def whole_folder(target: Path, *, shared: bool = False) -> Iterator[Path]:
    """A scratch folder that becomes ``target``, flushed to the disk, when the block ends without error.

    A ``target`` that stands there already is replaced; what a killed process left is removed first.
    ``shared``: other processes may write the same target at the same time; the last one stays.
    """
    scratch = target.with_name(f".{target.name}.writing{f'-{os.getpid()}' if shared else ''}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    yield scratch
    _move(scratch, target)


@contextmanager
def resumable_folder(target: Path, inputs: Mapping[str, Any]) -> Iterator[Path]:
    """As ``whole_folder``, but work that was cut short is handed on to the next process that has the same ``inputs``.

    The caller makes sure that each piece in the scratch folder is whole, or known to be unfinished.
    """
    scratch = target.with_name(f".{target.name}.begun")
    made_from, now = scratch / "inputs.json", json.dumps(inputs, sort_keys=True)
    if not made_from.exists() or made_from.read_text(encoding="utf-8") != now:
        shutil.rmtree(scratch, ignore_errors=True)
        write_whole(made_from, now)
    yield scratch
    made_from.unlink()
    _move(scratch, target)


def _move(scratch: Path, target: Path) -> None:
    for path in [*scratch.rglob("*"), scratch]:
        fsync(path)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(scratch, target)
    fsync(target.parent)


def fsync(path: Path) -> None:
    """Flush a file, or what names the files of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """One process, and one thread of it, at a time: the others wait. The file ``lock`` is made and stays."""
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
