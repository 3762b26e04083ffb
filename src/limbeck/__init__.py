"""limbeck: distil a large language model into a small one that people can run.

The public API is small; names are imported when they are used, so that ``import limbeck`` is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck.commands.run import run
    from limbeck.objectives import Dense, Labels, Sparse, Term, fused_divergence
    from limbeck.recipe import load_recipe

_WHERE = {
    "load_recipe": "limbeck.recipe",
    "run": "limbeck.commands.run",
    "fused_divergence": "limbeck.objectives",
    "Term": "limbeck.objectives",
    "Labels": "limbeck.objectives",
    "Dense": "limbeck.objectives",
    "Sparse": "limbeck.objectives",
}
__all__ = ["Dense", "Labels", "Sparse", "Term", "fused_divergence", "load_recipe", "run"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(import_module(_WHERE[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'limbeck' has no attribute {name!r}")
