"""Answers that are mathematics."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from limbeck.errors import RecipeError
from limbeck.generation.candidate import Candidate, Verdict
from limbeck.generation.verify.strings import reference_of
from limbeck.generation.verify.texts import after_mark
from limbeck.recipe.verify import Maths

_DELIMITED = re.compile(r"\$|\\\(|\\\[|\\boxed")
_WORDS = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{2,}")


def as_latex(text: str) -> str:
    """A bare formula (``x^2+1``) with the dollar signs that mark it as one; text stays as it is."""
    bare = text.strip()
    if not bare or "\n" in bare or _DELIMITED.search(bare) or _WORDS.search(bare):
        return text
    return f"${bare}$"


def maths_check(section: Maths) -> Callable[[Candidate], Verdict]:
    """The verifier for mathematics. It may take for ever, or all memory.

    An answer without any number or formula is wrong. A formula that cannot be read is undecided, unless it is the
    reference letter by letter.

    Raises:
        RecipeError: the package math-verify is missing.
    """
    try:
        from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
    except ImportError:
        raise RecipeError(
            "needs the package math-verify", key=".kind", fix="Run `pip install 'limbeck[api]'`"
        ) from None
    forms = (LatexExtractionConfig(), ExprExtractionConfig())

    def read(text: str) -> list[Any]:
        found: list[Any] = parse(as_latex(text), extraction_config=forms, parsing_timeout=None)
        return found

    def check(candidate: Candidate) -> Verdict:
        reference = reference_of(candidate, section.after)
        if reference is None or not (wanted := read(reference)):
            return Verdict.UNDECIDED
        text = after_mark(candidate.completion.text, section.after)
        if text is None or not (answer := read(text)):
            return Verdict.WRONG
        if verify(wanted, answer, float_rounding=section.digits, timeout_seconds=None, raise_on_error=True):
            return Verdict.CORRECT
        unread = all(isinstance(each, str) for each in wanted) or all(isinstance(each, str) for each in answer)
        return Verdict.UNDECIDED if unread else Verdict.WRONG

    return check
