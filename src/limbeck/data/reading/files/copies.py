"""Names that file managers, editors and people give to copies of files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from limbeck.data.reading.containers import COMPRESSED

_FOLDERS = ("backup", "backups", "bak", "old")
_BEFORE = re.compile(r"(?:copy of|copie de|kopie von) (?P<name>.+)", re.IGNORECASE)
_AFTER = re.compile(
    r"(?P<name>.+?)(?:(?:[ _-]+copy)(?: ?\d+| ?\(\d+\))?|[ ._-]+(?:orig|original|backup|bak|old)\d*"
    r"| ?\([^()]*conflicted copy[^()]*\)|\.sync-conflict-.+)",
    re.IGNORECASE,
)
_ROTATED = re.compile(r"(?P<name>.+\.[a-z]+)\.\d{1,3}", re.IGNORECASE)
"""An older state of a file, as tools number them: ``a.jsonl.1``."""
_NUMBERED = re.compile(r"(?P<name>.+?) ?\(\d+\)")
"""What a browser writes beside a file that is there. By itself, files may be numbered so."""


def left_out(folder: Path, files: Sequence[Path]) -> tuple[set[Path], list[Path]]:
    """Of files of a folder, copies that lie beside what they are copies of; and files that are named as copies of what
    is not there."""
    there = {file.relative_to(folder) for file in files}
    copies, alone = set(), []
    for file in files:
        inside = file.relative_to(folder)
        if there & set(_originals(inside, numbered=True)):
            copies.add(file)
        elif any(True for _ in _originals(inside, numbered=False)):
            alone.append(file)
    return copies, alone


def _originals(path: PurePath, *, numbered: bool) -> Iterator[PurePath]:
    """Paths that a path may be a copy of, by each of its names."""
    for at, part in enumerate(path.parts):
        last = at == len(path.parts) - 1
        stem, ending = _cut(part) if last else (part, "")
        if last and numbered and (found := _ROTATED.fullmatch(part)):
            yield PurePath(*path.parts[:at], found["name"])
        for name in _names(stem, numbered=numbered):
            yield PurePath(*path.parts[:at], f"{name}{ending}", *path.parts[at + 1 :])
        if not last and part.lower() in _FOLDERS:
            yield PurePath(*path.parts[:at], *path.parts[at + 1 :])


def _names(stem: str, *, numbered: bool) -> Iterator[str]:
    for pattern in (_BEFORE, _AFTER, *([_NUMBERED] if numbered else [])):
        if (found := pattern.fullmatch(stem)) and (name := found["name"].rstrip(" -_.")):
            yield name


def _cut(name: str) -> tuple[str, str]:
    """A file's name before its ending, and the ending with what names a compression."""
    path = PurePath(name)
    ending = path.suffix
    if ending.lower() in COMPRESSED:
        ending = f"{PurePath(path.stem).suffix}{ending}"
    return name.removesuffix(ending), ending
