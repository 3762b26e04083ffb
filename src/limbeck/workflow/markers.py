"""Markers of stages: from what each was made, what came of it, and how large the files are that it left."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from limbeck.files import write_whole
from limbeck.workflow.stage import UNKNOWN, Plain, Stage

FOLDER = "stages"


@dataclass(frozen=True)
class Marker:
    """A stage that was begun or finished.

    Attributes:
        key, version: what it was made from, and by which version of the stage.
        result: of a finished one.
        made: size in bytes of every file that it left, by path below the run folder.
        before: the last result of a stage that is being run again.
        unsure: the marker before this one was lost while later stages existed, so it is not known from which key the
            files were made. The stage is then run with any key, and later stages check whether their keys still fit.
    """

    key: dict[str, Plain]
    version: int = 1
    result: dict[str, Plain] | None = None
    made: dict[str, int] = field(default_factory=dict)
    before: dict[str, Plain] | None = None
    unsure: bool = False
    finished: str | None = None

    @property
    def last(self) -> dict[str, Plain] | None:
        """The result of the last time that it was finished."""
        return self.result if self.result is not None else self.before


class Markers:
    """The markers of a run folder. Reading never writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str) -> Marker | None:
        """None also for a torn marker: it marks nothing."""
        try:
            raw = json.loads((self.folder / FOLDER / f"{name}.json").read_text(encoding="utf-8"))
            return Marker(**raw) if isinstance(raw.get("key"), dict) else None
        except (OSError, ValueError, TypeError, AttributeError):
            return None

    def names(self) -> list[str]:
        return sorted(path.stem for path in (self.folder / FOLDER).glob("*.json"))

    def begin(self, stage: Stage, key: dict[str, Plain], *, unsure: bool) -> None:
        """Mark a stage as begun; what a finished one came to is remembered."""
        before = self.read(stage.name)
        self._write(
            stage.name, Marker(key, stage.version, unsure=unsure, before=before.last if before is not None else None)
        )

    def finish(self, stage: Stage, result: dict[str, Plain]) -> None:
        marker = self.read(stage.name)
        assert marker is not None  # it was begun
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        made = {str(file.relative_to(self.folder)): file.stat().st_size for file in self._files(stage)}
        self._write(stage.name, replace(marker, result=result, made=made, finished=now, before=None))

    def adopt(self, stage: Stage, key: dict[str, Plain]) -> None:
        """Say that a finished stage would have come out the same with this key, from this version."""
        marker = self.read(stage.name)
        assert marker is not None
        self._write(stage.name, replace(marker, key=key, version=stage.version))

    def missing(self, stage: Stage, marker: Marker) -> str | None:
        """A piece of a finished stage that is gone or has not the size with which it was left; None: all are there."""
        for path in stage.outputs():
            if not (self.folder / path).exists() or not _covers(marker.made, path):
                return path
        for path, size in marker.made.items():
            file = self.folder / path
            if not file.is_file() or file.stat().st_size != size:
                return path
        return None

    def present(self, paths: Sequence[str]) -> list[Path]:
        return [self.folder / path for path in paths if (self.folder / path).exists()]

    def _files(self, stage: Stage) -> Iterator[Path]:
        for output in stage.outputs():
            path = self.folder / output
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file() and file.name not in stage.untouched():
                    yield file

    def _write(self, name: str, marker: Marker) -> None:
        kept = {key: value for key, value in vars(marker).items() if value not in (None, False)}
        write_whole(self.folder / FOLDER / f"{name}.json", json.dumps(kept, indent=1))


def _covers(made: Mapping[str, int], output: str) -> bool:
    return any(path == output or path.startswith(f"{output}/") for path in made)


def plain(value: Any) -> Plain:
    """As it would come back from JSON."""
    return json.loads(json.dumps(value))


def filled(now: Plain, was: Plain) -> Plain:
    """A key in which what is not known yet is taken to be as it was."""
    if now is UNKNOWN:
        return was
    if isinstance(now, dict):
        before = was if isinstance(was, dict) else {}
        return {
            name: filled(value, before.get(name))
            for name, value in now.items()
            if value is not UNKNOWN or name in before
        }
    return now


def first_difference(was: Plain, now: Plain, path: str = "") -> tuple[str, str, str]:
    """Where two keys differ first, and both values there as JSON."""
    if isinstance(was, dict) and isinstance(now, dict):
        # Keys that both have come first: they were changed, and the others follow from them.
        for key in sorted(was.keys() | now.keys(), key=lambda key: (key not in was or key not in now, key)):
            if was.get(key) != now.get(key):
                return first_difference(was.get(key), now.get(key), f"{path}.{key}".strip("."))
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for i, (a, b) in enumerate(zip(was, now, strict=True)):
            if a != b:
                return first_difference(a, b, f"{path}.{i}")
    return path, json.dumps(was), json.dumps(now)
