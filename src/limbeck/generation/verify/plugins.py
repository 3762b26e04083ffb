"""Verifiers of other packages: entry points of the group ``limbeck.verifiers``.

An entry point is a function ``(candidate, settings) -> Verdict | bool | None``; None is undecided.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

from limbeck.errors import RecipeError
from limbeck.generation.candidate import Candidate, Verdict
from limbeck.recipe.verify import Plugin

GROUP = "limbeck.verifiers"


def find_plugin(name: str) -> EntryPoint:
    """The verifier of this name. Raises RecipeError."""
    known = {each.name: each for each in entry_points(group=GROUP)}
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        fix = (
            f"Did you mean `{near[0]}`?"
            if near
            else f"Install the package that has it (known: {', '.join(known) or 'none'})"
        )
        raise RecipeError(f"no installed package has a verifier {name!r}", key=".name", fix=fix)
    return known[name]


def plugin_check(section: Plugin) -> Callable[[Candidate], Verdict]:
    """The verifier of another package. Raises RecipeError."""
    entry = find_plugin(section.name)
    try:
        verifier = entry.load()
    except Exception as error:
        raise RecipeError(
            f"the verifier {section.name!r} cannot be imported ({type(error).__name__}: {error})", key=".name"
        ) from None

    def check(candidate: Candidate) -> Verdict:
        found = verifier(candidate, section.settings)
        if found is None:
            return Verdict.UNDECIDED
        if isinstance(found, bool):
            return Verdict.CORRECT if found else Verdict.WRONG
        return Verdict(found)

    return check
