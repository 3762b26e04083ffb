"""The run folder: one owner at a time, stages in order, a marker for each that is done.

A marker says from what its stage was made. A stage whose marker fits is kept; one that was made, or
begun, from other settings is never silently mixed with new ones.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.errors import RunFolderError
from limbeck.files import write_whole

OWN = (".limbeck", "stages")
"""What a run folder is known by."""

KEPT_BY = ("config.json", "manifest.json", "train/manifest.json", "documents.npz")
"""Of a folder whose marker holds no sizes (of before they were kept), the last file written says that it is whole."""


def run_path(run: str) -> Path:
    """Where a recipe's run folder is.

    Raises:
        RunFolderError: there can be no such folder, or it holds other things. Nothing is made.
    """
    if "\0" in run:
        raise RunFolderError(f"{run!r} is no path", key="run", fix="Name a folder")
    try:
        path = Path(run).expanduser()
        if path.is_dir() and any(path.iterdir()) and not any((path / own).exists() for own in OWN):
            raise RunFolderError(f"{path} is a folder with other things in it", key="run", fix="Name a new one")
        file = next((each for each in (path, *path.parents) if each.exists() and not each.is_dir()), None)
    except OSError as error:
        raise RunFolderError(
            f"{run} cannot be read ({error.strerror})", key="run", fix="Name a folder you may write to"
        ) from None
    except RuntimeError as error:  # a home that is nobody's
        raise RunFolderError(f"{run!r} is no path ({error})", key="run", fix="Name a folder") from None
    if file is not None:
        raise RunFolderError(f"{file} is a file, not a folder", key="run", fix="Name a folder")
    return path


class RunFolder:
    """A run folder that this process owns until it is closed.

    Raises:
        RunFolderError: it cannot be written, is something else, or another process owns it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            run_path(str(path))
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / ".limbeck").open("a+")
        except OSError as error:
            raise RunFolderError(
                f"{path} cannot be written ({error.strerror})", key="run", fix="Name a folder you may write to"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            owner = self._lock.read().strip()
            self._lock.close()
            raise RunFolderError(
                f"{path} is in use by another limbeck{f' (process {owner})' if owner else ''}",
                key="run",
                fix="Wait for it, or name another folder",
            ) from None
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()
        self._made: dict[str, Sequence[Path]] = {}
        (path / "stages").mkdir(exist_ok=True)

    def close(self) -> None:
        self._lock.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def done(
        self,
        stage: str,
        inputs: dict[str, Any],
        *,
        derived: bool = False,
        made: Sequence[Path] = (),
        under_way: Sequence[Path] = (),
        later: Sequence[Path] = (),
        keys: Mapping[str, str] | None = None,
    ) -> dict[str, Any] | None:
        """The result of a finished stage, or None if it is still to do (it is then marked as begun).

        Args:
            stage: its name.
            inputs: plain data it is made from.
            derived: it can be made anew at no loss, so other inputs just make it again.
            made: files and folders that it leaves behind; a finished stage that lacks a piece, or of which a file
                has not the size it was left with, is made again.
            under_way: what it leaves while it goes on: a stage that was begun from other inputs is
                refused if there is any of it, and else begun anew.
            later: what is made from what it leaves. While there is any of that, other inputs are refused.
            keys: how inputs are called in the recipe, for errors.

        Raises:
            RunFolderError: it was made, or begun, from other inputs; names the first that differs.
        """
        inputs = json.loads(json.dumps(inputs))
        marker = self._read(stage)
        self._made[stage] = made
        taken = any(path.exists() for path in later)
        # Whether what is there was made from these inputs nobody knows, once the marker is lost: then it is made
        # anew from whatever is asked for, and later parts say whether they fit.
        unsure = taken if marker is None else bool(marker.get("unsure"))
        if marker is not None:
            finished = "result" in marker and self._is_whole(marker, made)
            if marker["inputs"] == inputs:
                if finished:
                    return dict(marker["result"])
            elif not (derived or unsure) and (finished or taken or any(path.exists() for path in under_way)):
                key, was, now = _first_difference(marker["inputs"], inputs)
                for ours, theirs in (keys or {}).items():
                    key = theirs + key.removeprefix(ours) if key.startswith(ours) else key
                lost = ", ".join(str(path) for path in (made if finished else under_way) if path.exists())
                instead = f"delete {lost or self.path} to make that part anew"
                if taken:
                    instead = "change it back: other parts were made from this one"
                raise RunFolderError(
                    f"{self.path} was run with {_brief(was)}, now it is {_brief(now)}",
                    key=key,
                    fix=f"Name another `run:` folder, or {instead}",
                )
        before = self.last(stage)
        self._write(
            stage, {"inputs": inputs, **({"unsure": True} if unsure else {}), **({"before": before} if before else {})}
        )
        return None

    def last(self, stage: str) -> dict[str, Any] | None:
        """The result of a stage the last time that it was finished, also if it is to be made again."""
        marker = self._read(stage) or {}
        return marker.get("result") or marker.get("before")

    def inputs(self, stage: str) -> dict[str, Any] | None:
        """What a finished stage was made from, if it is finished."""
        marker = self._read(stage)
        return dict(marker["inputs"]) if marker is not None and "result" in marker else None

    def adopt(self, stage: str, inputs: dict[str, Any]) -> None:
        """Say that a finished stage would have come out the same from these inputs."""
        self._write(stage, {**(self._read(stage) or {}), "inputs": json.loads(json.dumps(inputs))})

    def finish(self, stage: str, result: dict[str, Any]) -> dict[str, Any]:
        """Mark a stage as done, with plain data that later stages want to know."""
        marker = self._read(stage) or {}
        left = {str(file.relative_to(self.path)): file.stat().st_size for file in _files(self._made.get(stage, ()))}
        finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._write(stage, {**marker, "result": result, "made": left, "finished": finished})
        return result

    def _is_whole(self, marker: dict[str, Any], made: Sequence[Path]) -> bool:
        def is_as_left(name: str, size: int) -> bool:
            file = self.path / name
            return file.is_file() and file.stat().st_size == size

        if "made" not in marker:
            return all(path.is_file() or any((path / name).exists() for name in KEPT_BY) for path in made)
        return all(path.exists() for path in made) and all(is_as_left(*file) for file in marker["made"].items())

    def _read(self, stage: str) -> dict[str, Any] | None:
        try:
            marker = json.loads((self.path / "stages" / f"{stage}.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # a torn marker marks nothing
            return None
        return marker if isinstance(marker, dict) and isinstance(marker.get("inputs"), dict) else None

    def _write(self, stage: str, marker: dict[str, Any]) -> None:
        write_whole(self.path / "stages" / f"{stage}.json", json.dumps(marker, indent=1))


def _files(made: Sequence[Path]) -> Iterator[Path]:
    """Every file of what was made; not the cards, which are written anew with every report."""
    for path in made:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and file.name != "README.md":
                yield file


def _brief(value: str) -> str:
    return value if len(value) <= 80 else f"{value[:77]}..."


def _first_difference(was: Any, now: Any, path: str = "") -> tuple[str, Any, Any]:
    if isinstance(was, dict) and isinstance(now, dict):
        # What both have comes first: it is what somebody changed, the rest follows from it.
        for key in sorted(was.keys() | now.keys(), key=lambda key: (key not in was or key not in now, key)):
            if was.get(key) != now.get(key):
                return _first_difference(was.get(key), now.get(key), f"{path}.{key}".strip("."))
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for i, (a, b) in enumerate(zip(was, now, strict=True)):
            if a != b:
                return _first_difference(a, b, f"{path}.{i}")
    return path, json.dumps(was), json.dumps(now)
