"""JSON in which no key stands twice in an object: of two, Python would keep the last without a word."""

from __future__ import annotations

import json
from typing import Any


class TwiceError(ValueError):
    """A key that stands twice in an object."""

    def __init__(self, name: str) -> None:
        self.msg = f"the key {name!r} stands twice in an object"
        super().__init__(self.msg)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise TwiceError(next(name for name in names if names.count(name) > 1))
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_object)
"""Raises TwiceError beside what ``json.loads`` raises."""
