"""Which answers are left out, and which of a prompt's are kept."""

from __future__ import annotations

from typing import Literal

from limbeck.recipe.base import Count, Section


class Filters(Section):
    """Which answers are left out."""


class Keep(Section):
    """Which of a prompt's answers are learned."""

    policy: Literal["all_correct", "shortest_correct", "diverse", "majority", "all"] = "all_correct"
    at_most: Count | None = None
