"""Texts as words, for filters that compare them."""

from __future__ import annotations

import re

from limbeck.generation.candidate import Candidate
from limbeck.generation.prompts import Prompt

# Scripts that write no spaces (kana, CJK, Thai, Lao, Khmer) count by the character.
_WORD = re.compile(r"[\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_]+")
_PIECE = re.compile(rf"{_WORD.pattern}|[^\w\s]|_")


def words(text: str) -> list[str]:
    """Words in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def pieces(text: str) -> list[str]:
    """Words and punctuation marks, as they stand."""
    return _PIECE.findall(text)


def shingles(text: str, size: int) -> set[str]:
    """All runs of ``size`` words; the whole text where it is shorter."""
    found = words(text)
    if len(found) <= size:
        return {" ".join(found)}
    return {" ".join(found[i : i + size]) for i in range(len(found) - size + 1)}


def jaccard(one: set[str], other: set[str]) -> float:
    """Shared share of two sets."""
    union = len(one | other)
    return len(one & other) / union if union else 1.0


def asked(candidate: Candidate | Prompt) -> str:
    """The text of a prompt: plain text, or what its user and tools said."""
    if candidate.text is not None:
        return candidate.text
    return "\n".join(
        content
        for message in candidate.messages
        if message.get("role") not in ("system", "developer") and (content := content_text(message.get("content")))
    )


def content_text(content: object) -> str:
    """The text of a message's content, which is a string or a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list | tuple):
        return "".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    return ""
