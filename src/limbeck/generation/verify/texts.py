"""Where in a text the answer stands, and when two texts are the same."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.IGNORECASE)
_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+-]*)[^\n`]*\n(.*?)^[ \t]*\1[ \t]*$", re.DOTALL | re.MULTILINE)


def normalise(text: str, ignore: Collection[str]) -> str:
    """A text in Unicode's composed form (NFC), without what is to be ignored.

    Args:
        ignore: ``case``, ``whitespace``, ``punctuation``, ``articles``.
    """
    text = unicodedata.normalize("NFC", text)
    if "case" in ignore:
        text = text.casefold()
    if "punctuation" in ignore:
        text = "".join(character for character in text if not unicodedata.category(character).startswith("P"))
    if "articles" in ignore:
        text = _ARTICLES.sub(" ", text)
    if "whitespace" in ignore:
        text = " ".join(text.split())
    return text


def after_mark(text: str, mark: str | None) -> str | None:
    """What follows the last ``mark``, up to the end of its line. None: the mark is not there."""
    if mark is None:
        return text
    _, found, rest = text.rpartition(mark)
    return rest.partition("\n")[0] if found else None


def code_blocks(text: str, languages: Collection[str]) -> list[str]:
    """Fenced blocks in one of these languages, or, where there are none, in no language."""
    blocks = [(match[2].lower(), match[3]) for match in _FENCE.finditer(f"{text}\n")]
    return [block for name, block in blocks if name in languages] or [block for name, block in blocks if not name]
