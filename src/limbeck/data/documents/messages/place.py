"""Where something stands in the data, and what stands there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

from limbeck.data.reading.strict import DECODER, TwiceError
from limbeck.errors import InputError


@dataclass(frozen=True)
class Place:
    """Where something stands: a source's key in the recipe, and a row of a file, for errors."""

    key: str
    where: str
    unread: set[str] = field(default_factory=set, compare=False)
    """Filled with keys of messages that nothing is read from."""

    def inside(self, part: str) -> Place:
        return Place(self.key, f"{self.where}, {part}", self.unread)

    def refuse(self, what: str, fix: str | None = None) -> NoReturn:
        raise InputError(f"{self.where} {printable(what)}", key=self.key, fix=fix)


def printable(text: str) -> str:
    """What a data file says, for a terminal: no control character of it is obeyed."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def is_list(value: Any) -> bool:
    """A list, or a string that holds one of objects, as tables often do."""
    return isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith(("[{", "[ {", "[\n")))


def parsed(value: Any, place: Place) -> Any:
    """What JSON in a string says; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return DECODER.decode(value)
    except TwiceError as error:
        place.refuse(f"is JSON in which {error.msg}", "Keep one of them")
    except (ValueError, RecursionError) as error:
        place.refuse(
            f"is a string that is not JSON ({getattr(error, 'msg', 'nested too deep')})", "Write a list, or JSON"
        )


def kind_of(value: Any) -> str:
    """What a value is, for errors."""
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def without_nulls(value: Any) -> Any:
    """Without the nulls that a table with one schema for all rows fills in for what a nested value lacks."""
    if isinstance(value, dict):
        return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [without_nulls(inner) for inner in value]
    return value
