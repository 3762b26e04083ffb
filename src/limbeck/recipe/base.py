"""What every section of the recipe is made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _no_truth(value: Any) -> Any:
    """``lr: yes`` would be a learning rate of 1."""
    if isinstance(value, bool):
        raise ValueError(f"got {str(value).lower()}, where a number belongs")
    return value


_Number = BeforeValidator(_no_truth)
Share = Annotated[float, _Number, Field(ge=0, le=1)]
PartOf = Annotated[float, _Number, Field(ge=0, lt=1)]
Positive = Annotated[float, _Number, Field(gt=0)]
NonNegative = Annotated[float, _Number, Field(ge=0)]
Count = Annotated[int, _Number, Field(ge=1)]
Seed = Annotated[int, _Number, Field(ge=0, lt=2**32)]

PLAIN_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$"
"""What a name may be that becomes part of a file's name and a row of a table."""
LONGEST_NAME = 60


class Section(BaseModel):
    """A frozen part of the recipe that refuses keys it does not know."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), serialize_by_alias=True, allow_inf_nan=False
    )


def by_key(*names: str) -> Callable[[Any], str | None]:
    """A union member is recognised by the one key that only it has (``path:`` or ``config:``)."""

    def tag(value: Any) -> str | None:
        if not isinstance(value, dict | BaseModel):
            return None
        given = set(value) if isinstance(value, dict) else {name.rstrip("_") for name in value.model_fields_set}
        found = [name for name in names if name in given]
        return found[0] if len(found) == 1 else None

    return tag
