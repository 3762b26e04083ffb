"""``limbeck capture``: have a teacher's signals captured, and nothing else done of a recipe."""

from __future__ import annotations

from limbeck.commands.run import carry_out
from limbeck.display import Display
from limbeck.errors import RecipeError
from limbeck.pipeline.build import build
from limbeck.pipeline.stages.capture import Capture
from limbeck.recipe import Recipe


def capture(recipe: Recipe, display: Display | None = None, *, workers: int = 1, keep_stale: bool = False) -> list[str]:
    """Run a recipe's stages up to those that capture signals, or go on with them.

    Args:
        recipe: from :func:`limbeck.load_recipe`.
        display: where progress is shown; default: the terminal.
        workers: processes that write one store.
        keep_stale: as for :func:`limbeck.commands.run.run`.

    Returns:
        A line on each store.

    Raises:
        LimbeckError: what the user can mend; a recipe without stored signals.
    """
    stages = build(recipe, workers=workers)
    wanted = [stage.name for stage in stages if isinstance(stage, Capture) and stage.part is None]
    if not wanted:
        raise RecipeError(
            "no technique reads stored signals", key="techniques", fix="Write `signals: stored` in a `soft` technique"
        )
    facts = carry_out(
        recipe,
        stages,
        display or Display(),
        jobs=workers if workers > 1 else None,
        keep_stale=keep_stale,
        wanted=wanted,
    )
    return [note for name in wanted for note in facts[name]["notes"]]
