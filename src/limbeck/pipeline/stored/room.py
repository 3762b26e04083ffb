"""Where stored signals are, and how much disk they take, before anything is captured. No torch: ``limbeck check`` asks
here."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from limbeck.errors import RecipeError
from limbeck.recipe import Signals, Soft, Technique
from limbeck.report.numbers import size
from limbeck.workflow.lock import is_run

BESIDE = 8.0
"""Bytes of a token beside its entries: their number, the entropy, the tail, and its part of the span's columns."""


def home_of(section: Signals, run: Path) -> Path:
    """The folder of stores: the recipe's, else beside the run folder."""
    return Path(section.folder).expanduser() if section.folder else run.absolute().parent / "signals"


def bytes_a_token(section: Signals) -> float:
    """About so many bytes of a store a token.

    Those of ``threshold`` and of the drawn schemes are what language models of 0.1 to 0.3B parameters give on text
    (`make bench-signals`): surer ones take less.
    """
    words = {
        "threshold": 0.22 / section.threshold,
        "top_k": float(section.k),
        "top_k_renormalised": float(section.k),
        "multinomial": 0.4 * section.draws,
        "gemma": 0.25 * section.draws,
    }[section.scheme]
    return 4 * words + BESIDE


def free_bytes(folder: Path) -> int:
    """Of the disk that a folder is on, or would be."""
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    return shutil.disk_usage(there).free


def check_homes(techniques: Iterable[Technique], run: Path) -> None:
    """Refuse folders that cannot be."""
    for place, _, section in stored(techniques):
        home = home_of(section, run)
        there = next(each for each in (home.absolute(), *home.absolute().parents) if each.exists())
        if not there.is_dir():
            raise RecipeError(f"{there} is a file, not a folder", key=f"{place}.folder", fix="Name a folder")
        if section.folder is None:
            continue
        for each in (home.resolve(), *home.resolve().parents):
            if is_run(each) and each != run.resolve():
                raise RecipeError(
                    f"{home} is in the run folder {each}", key=f"{place}.folder", fix="Name a folder outside of runs"
                )
        if not home.exists():
            _require_makeable(home, there, f"{place}.folder")


def _require_makeable(home: Path, there: Path, key: str) -> None:
    """Refuse a folder that cannot be made in ``there``. Permissions do not tell: `/proc` refuses also root."""
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".limbeck-", dir=there))
    except OSError as error:
        raise RecipeError(
            f"{home} cannot be made ({error.strerror})", key=key, fix="Name a folder you may write to"
        ) from None


def room_of_signals(techniques: Iterable[Technique], tokens: int, run: Path) -> list[str]:
    """Lines on the disk that signals take, and where.

    Args:
        tokens: that are learned by all seeds together.
        run: the run folder.
    """
    lines = []
    for _, technique, section in stored(techniques):
        home, each = home_of(section, run), bytes_a_token(section)
        takes, free = each * tokens, free_bytes(home)
        if_stored = "if they are stored, " if technique.signals == "auto" else ""
        more = ", more where parts of documents are read" if section.context == "document" else ""
        least = "" if takes <= free else ": a capture stops where the disk is full, and goes on with more room"
        lines.append(
            f"{technique.label}: {if_stored}{section.scheme} of {section.context}s, about {each:.0f} bytes a token: "
            f"up to {size(takes)}{more}, in {home}; {size(free)} are free{least}"
        )
    return lines


def stored(techniques: Iterable[Technique]) -> Iterator[tuple[str, Soft, Signals]]:
    """Techniques that read signals from disk, or may (`auto`), with the places of their settings in the recipe."""
    for i, technique in enumerate(techniques):
        if isinstance(technique, Soft) and technique.stored is not None:
            yield f"techniques.{i}.signals", technique, technique.stored
