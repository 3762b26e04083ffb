"""Whether the terms of teachers allow that students are trained on their text."""

from __future__ import annotations

from collections.abc import Sequence

from limbeck.errors import RecipeError
from limbeck.recipe.served import Endpoint

READ = "Read its terms and write `terms: {may_train_students: yes, source: URL, date: DATE, quote: SENTENCE}`"


def check_terms(chain: Sequence[Endpoint]) -> list[str]:
    """Refuse teachers whose terms forbid it; returns warnings, a line each, about those of which it is not known.

    Args:
        chain: the teacher, then its fallbacks.

    Raises:
        RecipeError: terms say `no`, and no `override` says why the teacher is used; the key is relative to the
            teacher's section.
    """
    warnings = []
    for number, endpoint in enumerate(chain):
        key = ".terms" if number == 0 else f".fallbacks.{number - 1}.terms"
        terms, name = endpoint.terms, f"{endpoint.model} ({endpoint.api})"
        if terms.verdict == "no":
            if not (terms.override or "").strip():
                raise RecipeError(
                    f"the terms of {name} do not allow training students on its text",
                    key=f"{key}.may_train_students",
                    fix="Use another teacher, or write in `override` why you may; the data set's card records it",
                )
            warnings.append(f"{name}: its terms say `no`; used because: {terms.override}")
        elif terms.verdict == "unknown":
            lacking = [field for field in ("source", "date", "quote") if not getattr(terms, field)]
            said = terms.may_train_students
            what = f"`{said}` lacks {', '.join(lacking)}" if said != "unknown" else "it is not known"
            warnings.append(f"{name}: {what} whether its terms allow training students on its text. {READ}")
    return warnings
