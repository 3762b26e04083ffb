"""Asking the servers of a recipe whether they take what it asks for."""

from __future__ import annotations

from limbeck.pipeline.checks_served import check_servers
from limbeck.pipeline.sections import verifiers_of
from limbeck.recipe import Recipe, ServedTeacher
from limbeck.recipe.verify import Judge


def ask_servers(recipe: Recipe, *, offline: bool) -> list[str]:
    """Lines on what the servers of a recipe take and reveal; none where it names no server.

    Args:
        offline: ask none.

    Raises:
        RecipeError: a server refuses a setting, the key or the model.
        BudgetError: an account has no credit.
    """
    judged = any(isinstance(section, Judge) for section in verifiers_of(recipe).values())
    if not isinstance(recipe.teacher, ServedTeacher) and not judged:
        return []
    from limbeck.pipeline.build import askings, run_tokenizer, signal_askings  # torch

    tokenizer = None
    if any(getattr(technique, "stored", None) is not None for technique in recipe.techniques):
        tokenizer = run_tokenizer(recipe)
    return check_servers([*askings(recipe), *signal_askings(recipe, tokenizer)], offline=offline)
