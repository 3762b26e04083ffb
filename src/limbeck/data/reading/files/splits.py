"""Names by which people call the splits of a data set."""

from __future__ import annotations

import re
from pathlib import PurePath

_SPLITS = {
    "train": "train", "training": "train", "trn": "train", "test": "test", "testing": "test", "tst": "test",
    "validation": "validation", "validate": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "eval": "eval", "evaluation": "eval", "heldout": "eval", "holdout": "eval",
}  # fmt: skip
_BESIDE = ("set", "data", "dataset", "split", "files")
"""Words that say no more: ``trainset``, ``TestData``, ``split=train``."""
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def split_of(path: PurePath) -> str | None:
    """The split that a path inside a folder names: in its name (``train-00000``, ``squad_test``, ``wiki.dev.jsonl``)
    or above it (``test/``, ``split=test/``)."""
    *parents, name = path.parts
    for part in name.split("."):
        words = _WORDS.findall(part)
        for word in (*words[:1], *words[-1:]):
            if (split := split_named(word)) is not None:
                return split
    return next((split for parent in reversed(parents) if (split := split_named(parent)) is not None), None)


def split_named(name: str) -> str | None:
    """The split that a name means as a whole (``train``, ``TrainData``, ``split=train``)."""
    words = [word.lower() for word in _WORDS.findall(name)]
    words = [word for word in words if word not in _BESIDE] or words
    if len(words) != 1:
        return None
    stems = (words[0], *(words[0].removesuffix(end) for end in _BESIDE))
    return next((_SPLITS[stem] for stem in stems if stem in _SPLITS), None)
