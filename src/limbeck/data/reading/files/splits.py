"""Names by which people call the splits of a data set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

_SPLITS = {
    "train": "train", "training": "train", "trn": "train", "trainval": "train",
    "test": "test", "tests": "test", "testing": "test", "tst": "test", "devtest": "test", "testdev": "test",
    "validation": "validation", "validations": "validation", "validate": "validation", "valid": "validation",
    "val": "validation", "dev": "validation", "eval": "eval", "evals": "eval", "evaluation": "eval",
    "evaluations": "eval", "heldout": "eval", "holdout": "eval",
}  # fmt: skip
_BESIDE = ("set", "data", "dataset", "split", "files")
"""Words that say no more: ``trainset``, ``TestData``, ``split=train``."""
_NUMBERING = ("of", "part", "shard", "v")
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
FEW = 4
"""Of so few texts of a folder, one that is named as a split is likely one. Names of many say what they are about."""


def _words(name: str) -> list[str]:
    """In lower case; ``held_out`` and its kind are one."""
    words: list[str] = []
    for word in _WORDS.findall(name):
        word = word.lower()
        if word == "out" and words[-1:] in (["held"], ["hold"]):
            words[-1] += word
        else:
            words.append(word)
    return words


def split_named(name: str) -> str | None:
    """The split that a name means as a whole (``train``, ``TrainData``, ``split=train``, ``held-out``)."""
    words = _words(name)
    words = [word for word in words if word not in _BESIDE] or words
    return _split(words[0]) if len(words) == 1 else None


def _split(word: str) -> str | None:
    stems = (word, *(word.removesuffix(end) for end in _BESIDE), *(word.removeprefix(end) for end in _BESIDE))
    return next((_SPLITS[stem] for stem in stems if stem in _SPLITS), None)


@dataclass(frozen=True)
class Named:
    """The split that a path names.

    Attributes:
        whole: a name says nothing else (``test-00000-of-00002``, ``test/``); of others (``web_dev``, ``test_a/``) it is
            the first word or the last.
        file: the name is the file's, not a folder's.
        rest: words of a file's name beside it.
    """

    split: str
    whole: bool
    file: bool
    rest: tuple[str, ...] = ()


def named_split(path: PurePath) -> Named | None:
    """The split that a path inside a folder names: in its name (``train-00000``, ``squad_test``, ``wiki.dev.jsonl``)
    or above it (``test/``, ``split=test/``, ``dev-v2.0/``)."""
    *parents, name = path.parts
    for part in name.split("."):
        if (found := _in_name(part)) is not None:
            split, rest = found
            return Named(split, not rest, True, rest)
    for parent in reversed(parents):
        if (whole := split_named(parent)) is not None:
            return Named(whole, True, False)
    for part in (part for parent in reversed(parents) for part in parent.split(".")):
        if (found := _in_name(part)) is not None:
            return Named(found[0], False, False)
    return None


def _in_name(part: str) -> tuple[str, tuple[str, ...]] | None:
    """The split that the first word or the last one names, and the other words."""
    words = _telling(part)
    for at in (0, -1):
        if words and (split := _split(words[at])) is not None:
            del words[at]
            return split, tuple(words)
    return None


def _telling(part: str) -> list[str]:
    """Its words, but those that say no more and those that number files."""
    return [word for word in _words(part) if word not in (*_BESIDE, *_NUMBERING)]


@dataclass(frozen=True)
class Splits:
    """Splits among the files of a folder.

    Attributes:
        named: files by the split that they name.
        others: files that name none.
        mixed: they should not be read together. False: they may be splits, by a word of a name.
    """

    named: dict[str, list[Path]]
    others: list[Path]
    mixed: bool


def splits_of(folder: Path, files: Sequence[Path], *, texts: bool) -> Splits | None:
    """Splits that files belong to, where there are several, or one that is not to be learned beside other files.

    Args:
        texts: the files are texts, whose names may say what they are about.
    """
    found = {file: named_split(file.relative_to(folder)) for file in files}
    others = [file for file, split in found.items() if split is None]
    named: dict[str, list[Path]] = {}
    for file, split in found.items():
        if split is not None:
            named.setdefault(split.split, []).append(file)
    if len(named) > 1:
        # Folders of texts may say by two words what is in them: `dev-guide/`, `test-plan/`.
        told = any(split.whole or split.file for split in found.values() if split is not None)
        return Splits(named, others, mixed=told or not texts or "train" in named)
    if not named or not others or "train" in named:
        return None

    def is_split(file: Path, split: Named) -> bool:
        if split.file and split.rest:  # faq_test.jsonl beside faq.jsonl
            return any(other.parent == file.parent and _telling(_stem(other)) == [*split.rest] for other in others)
        return split.whole and (not texts or not split.file or len(files) <= FEW)

    sure = any(is_split(file, split) for file, split in found.items() if split is not None)
    return Splits(named, others, mixed=sure)


def _stem(path: Path) -> str:
    return path.name.partition(".")[0]
