"""Calls of tools and definitions of tools, in the one form that ``Document`` holds."""

from __future__ import annotations

from typing import Any

from limbeck.data.documents.messages.place import Place, kind_of, parsed, without_nulls


def calls_of(value: Any, place: Place) -> list[dict[str, Any]]:
    calls = parsed(value, place.inside("`tool_calls`")) if value else []
    calls = [calls] if isinstance(calls, dict) else calls
    if not isinstance(calls, list):
        place.refuse(f"has `tool_calls` that are {kind_of(calls)}, not a list")
    return [_call(call, place.inside(f"call {n}")) for n, call in enumerate(calls, 1)]


def _call(call: Any, place: Place) -> dict[str, Any]:
    call = parsed(call, place)
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        place.refuse("names no function", 'Write {"function": {"name": ..., "arguments": {...}}}')
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        arguments = parsed(arguments, place.inside("`arguments`")) if arguments.strip() else {}
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        place.refuse(f"has `arguments` that are {kind_of(arguments)}, not an object")
    identity = {"id": call["id"]} if call.get("id") is not None and "function" in call else {}
    return {**identity, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def tools_of(value: Any, place: Place) -> tuple[dict[str, Any], ...]:
    """Definitions of tools: a list of them, or JSON in a string; bare functions are wrapped.

    Nulls of JSON in a string are meant (``"default": null``); others may be what a table fills in.

    Raises:
        InputError: no list of definitions, or one without a name.
    """
    meant = isinstance(value, str)
    value = parsed(value, place) if isinstance(value, str) and value.strip() else value
    if not value:
        return ()
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list) or not all(isinstance(tool, dict | str) for tool in value):
        place.refuse("is no list of tools")
    found = []
    for each in value:
        tool: Any = parsed(each, place) if meant or isinstance(each, str) else without_nulls(each)
        if not isinstance(tool, dict):
            place.refuse(f"holds {kind_of(tool)} where a tool is due")
        wrapped: dict[str, Any] = (
            tool if isinstance(tool.get("function"), dict) else {"type": "function", "function": tool}
        )
        if not isinstance(wrapped["function"].get("name"), str):
            place.refuse("holds a tool without a `name`")
        found.append(wrapped)
    return tuple(found)
