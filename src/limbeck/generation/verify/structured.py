"""Answers in JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from limbeck.errors import RecipeError
from limbeck.generation.candidate import Candidate, Verdict
from limbeck.generation.verify.texts import code_blocks, normalise
from limbeck.recipe.verify import Json

_TYPES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: _is_number(value) and float(value).is_integer(),
    "number": lambda value: _is_number(value),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "any": lambda value: True,
}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large")
    return value


def _whole_number(text: str) -> int:
    value = int(text)  # ValueError above 4,300 digits
    float(value)  # OverflowError where no float is as large
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def parse_json(text: str) -> Any:
    """Strict JSON: no NaN, no number beyond a float's range, no key twice. Raises ValueError."""
    try:
        return json.loads(
            text,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_whole_number,
            object_pairs_hook=_unique,
        )
    except (RecursionError, OverflowError) as error:
        raise ValueError(str(error)) from None


def find_json(text: str, fenced: bool) -> Any:
    """The JSON of an answer: its whole text, or, if ``fenced``, its last code block. Raises ValueError."""
    if fenced:
        blocks = code_blocks(text, ("json", "jsonc", "json5"))
        text = blocks[-1] if blocks else text
    return parse_json(text)


def same(left: Any, right: Any, ignore: Collection[str] = ()) -> bool:
    """Whether two values are equal as JSON: 1 is 1.0, and true is not 1."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(value, right[key], ignore) for key, value in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(same(a, b, ignore) for a, b in zip(left, right, strict=True))
    if isinstance(left, str) and isinstance(right, str):
        return normalise(left, ignore) == normalise(right, ignore)
    if _is_number(left) and _is_number(right):
        return bool(left == right)
    return type(left) is type(right) and left == right


def has_keys(value: Any, keys: Collection[str] | Mapping[str, str] | None, others: bool) -> bool:
    """Whether a value is an object with these keys (of these types), and no ``others`` unless they are allowed."""
    if keys is None:
        return True
    if not isinstance(value, dict) or not set(keys) <= value.keys() or (not others and len(value) > len(set(keys))):
        return False
    return not isinstance(keys, Mapping) or all(_TYPES[kind](value[key]) for key, kind in keys.items())


def schema_validator(schema: Mapping[str, Any]) -> Callable[[Any], bool]:
    """Whether a value fits a JSON Schema.

    Raises:
        RecipeError: it is no schema, refers to another document, or the package jsonschema is missing.
    """
    try:
        import jsonschema
        from referencing import Registry
        from referencing.exceptions import Unresolvable
    except ImportError:
        raise RecipeError(
            "a JSON Schema needs the package jsonschema", key=".schema", fix="Run `pip install 'limbeck[api]'`"
        ) from None
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise RecipeError(f"is no JSON Schema ({error.message})", key=".schema", fix="Correct it") from None
    registry: Registry[Any] = Registry()  # without it, references to URLs would be fetched
    validator = kind(schema, registry=registry)
    _resolve_references(schema, validator, Unresolvable)

    def fits(value: Any) -> bool:
        return bool(validator.is_valid(value))

    return fits


def _resolve_references(schema: Any, validator: Any, unresolvable: type[Exception]) -> None:
    for reference in _references(schema):
        try:
            validator._resolver.lookup(reference)
        except unresolvable:
            raise RecipeError(
                f"refers to {reference!r}, which is not in it", key=".schema", fix="Put the definition under `$defs`"
            ) from None


def _references(node: Any) -> list[str]:
    if isinstance(node, Mapping):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [
            each for key, value in node.items() if key not in ("const", "enum") for each in _references(value)
        ]
    return [each for item in node for each in _references(item)] if isinstance(node, list | tuple) else []


def json_check(section: Json) -> Callable[[Candidate], Verdict]:
    """The verifier for answers in JSON. What is no JSON is wrong, with a reference or without."""
    fits = schema_validator(section.schema_) if section.schema_ is not None else None

    def check(candidate: Candidate) -> Verdict:
        try:
            value = find_json(candidate.completion.text, section.fenced)
        except ValueError:
            return Verdict.WRONG
        if not has_keys(value, section.keys, section.other_keys) or (fits is not None and not fits(value)):
            return Verdict.WRONG
        if not section.reference:
            return Verdict.CORRECT
        if candidate.reference is None:
            return Verdict.UNDECIDED
        try:
            wanted = find_json(candidate.reference, fenced=True)
        except ValueError:
            return Verdict.UNDECIDED
        return Verdict.CORRECT if same(value, wanted, section.ignore) else Verdict.WRONG

    return check
