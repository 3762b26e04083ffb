"""Answers that are compared as strings."""

from __future__ import annotations

import re
from collections.abc import Callable

from limbeck.generation.candidate import Candidate, Verdict
from limbeck.generation.verify.texts import after_mark, normalise
from limbeck.recipe.verify import Exact, Regex


def reference_of(candidate: Candidate, mark: str | None) -> str | None:
    """The reference, cut at the mark if it holds the mark. None: there is no reference."""
    if candidate.reference is None:
        return None
    cut = after_mark(candidate.reference, mark)
    return candidate.reference if cut is None else cut


def exact_check(section: Exact) -> Callable[[Candidate], Verdict]:
    """The verifier for answers that must be the reference."""

    def check(candidate: Candidate) -> Verdict:
        wanted = reference_of(candidate, section.after)
        if wanted is None:
            return Verdict.UNDECIDED
        answer = after_mark(candidate.completion.text, section.after)
        if answer is None:
            return Verdict.WRONG
        return (
            Verdict.CORRECT if normalise(answer, section.ignore) == normalise(wanted, section.ignore) else Verdict.WRONG
        )

    return check


def regex_check(section: Regex) -> Callable[[Candidate], Verdict]:
    """The verifier for answers that must match a regular expression. It may take for ever."""
    pattern = re.compile(section.pattern)

    def check(candidate: Candidate) -> Verdict:
        wanted = reference_of(candidate, section.after)
        if section.reference and wanted is None:
            return Verdict.UNDECIDED
        answer = after_mark(candidate.completion.text, section.after)
        match = pattern.search(answer) if answer is not None else None
        if match is None:
            return Verdict.WRONG
        if not section.reference or wanted is None:
            return Verdict.CORRECT
        found = match[1] if pattern.groups else match[0]
        same = found is not None and normalise(found, ("whitespace",)) == normalise(wanted, ("whitespace",))
        return Verdict.CORRECT if same else Verdict.WRONG

    return check
