"""How answers are checked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from limbeck.recipe.base import Section


class Exact(Section):
    """Equal to the reference, white space at both ends aside."""

    kind: Literal["exact"] = "exact"


class Json(Section):
    """A JSON value equal to the reference."""

    kind: Literal["json"] = "json"


Verify = Annotated[Exact | Json, Field(discriminator="kind")]
