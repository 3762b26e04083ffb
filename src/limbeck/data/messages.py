"""Conversations as data sets of many tools write them, in the one form that ``Document`` holds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn

from limbeck.data.document import MESSAGE_FIELDS
from limbeck.errors import InputError

Message = dict[str, Any]

LEARNED = ("weight", "train", "training", "trainable", "loss_mask", "loss", "learn", "train_on_turn")
"""Keys by which data sets say that a turn is to be learned, or not."""
NOT_LEARNED = ("masked", "ignore", "ignore_loss", "skip_train")
IN_PARTS = ("train_detail", "loss_spans", "token_weights", "loss_weights")

ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "model": "assistant", "bot": "assistant", "system": "system",
    "tool": "tool", "observation": "tool", "function_response": "tool", "function_call": "assistant",
}  # fmt: skip
"""ShareGPT's names of who speaks."""


@dataclass(frozen=True)
class Place:
    """Where something stands: a source's key in the recipe, and a row of a file, for errors."""

    key: str
    where: str

    def inside(self, part: str) -> Place:
        return Place(self.key, f"{self.where}, {part}")

    def refuse(self, what: str, fix: str | None = None) -> NoReturn:
        raise InputError(f"{self.where} {what}", key=self.key, fix=fix)


def is_list(value: Any) -> bool:
    """A list, or a string that holds one of objects, as tables often do."""
    return isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith(("[{", "[ {", "[\n")))


def parsed(value: Any, place: Place) -> Any:
    """What JSON in a string says; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        place.refuse(
            f"is a string that is not JSON ({getattr(error, 'msg', 'nested too deep')})", "Write a list, or JSON"
        )


def kind_of(value: Any) -> str:
    """What a value is, for errors."""
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def messages_of(value: Any, place: Place) -> list[Message]:
    """Messages with ``role`` and ``content``, and with ``learn: False`` on an assistant's that is not to be learned.

    Raises:
        InputError: no list of messages, or something in one that limbeck does not do; names the place.
    """
    value = parsed(value, place)
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        place.refuse("is no list of messages", 'Write [{"role": "user", "content": "..."}, ...]')
    return [_message(message, place.inside(f"message {n}")) for n, message in enumerate(value, 1)]


def _message(message: Message, place: Place) -> Message:
    message = {name: value for name, value in message.items() if value is not None}
    if "from" in message and "role" not in message:
        message = _from_sharegpt(message, place)
    if not isinstance(message.get("role"), str):
        place.refuse("has no `role`", 'Write "role": "user" or "assistant"')
    calls = message.get("tool_calls") or [message[name] for name in ("function_call",) if message.get(name)]
    calls = parsed(calls, place.inside("`tool_calls`"))
    kept = {name: message[name] for name in MESSAGE_FIELDS if name in message and name not in LEARNED}
    kept.pop("tool_calls", None)
    if calls:
        kept["tool_calls"] = [_call(call, place.inside(f"call {n}")) for n, call in enumerate(calls, 1)]
    kept["content"] = _content(message.get("content"), kept, place)
    if not _is_learned(message, place):
        kept["learn"] = False
    return kept


def _from_sharegpt(message: Message, place: Place) -> Message:
    speaker = message["from"]
    said = message.get("value", message.get("content"))
    called = {"tool_calls": [parsed(said, place)], "content": ""} if speaker == "function_call" else {"content": said}
    return {**message, "role": ROLES.get(str(speaker).lower(), speaker), **called}


def _content(content: Any, kept: Message, place: Place) -> str:
    """Text. Parts of text are joined; thoughts among them go into ``kept``."""
    if content is None:
        if kept.get("tool_calls"):
            return ""
        place.refuse(f"(`{kept['role']}`) has no `content`", "Write its text, or remove the message")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        place.refuse(f"has a `content` that is {kind_of(content)}, not text")
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        text = part.get("text", part.get("content")) if isinstance(part, dict) else part
        if kind in ("thinking", "reasoning"):
            kept["reasoning_content"] = str(part.get("thinking", part.get("text", "")))
        elif kind in ("text", "input_text", "output_text") and isinstance(text, str):
            texts.append(text)
        else:
            place.refuse(f"holds a part of type `{kind}`; limbeck learns from text only", "Use data without it")
    return "".join(texts)


def _is_learned(message: Message, place: Place) -> bool:
    """Whether a turn is to be learned, as data sets of several tools say it."""
    for name in IN_PARTS:
        if message.get(name):
            place.refuse(f"has `{name}`; limbeck learns a turn whole or not at all", f"Remove `{name}`")
    asked: set[bool] = set()
    for name in (*LEARNED, *NOT_LEARNED):
        value = message.get(name)
        if value is None:
            continue
        if isinstance(value, str):
            value = {"true": True, "false": False}.get(value.lower(), value)
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            place.refuse(f"has `{name}: {value!r}`; a turn is learned or not", "Write 0 or 1, true or false")
        if value and name in LEARNED and message["role"] != "assistant":
            place.refuse(
                f"has `{name}: {value!r}` on a turn of `{message['role']}`; only the assistant's are learned",
                f"Remove `{name}` there",
            )
        asked.add(bool(value) == (name in LEARNED))
    if len(asked) == 2:
        place.refuse("says both that it is learned and that it is not", "Keep one of its keys")
    return message["role"] != "assistant" or asked != {False}


def _call(call: Any, place: Place) -> dict[str, Any]:
    call = _without_nulls(parsed(call, place))
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        place.refuse("names no function", 'Write {"function": {"name": ..., "arguments": {...}}}')
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = parsed(arguments, place.inside("`arguments`")) if arguments.strip() else {}
    if not isinstance(arguments, dict):
        place.refuse(f"has `arguments` that are {kind_of(arguments)}, not an object")
    identity = {"id": call["id"]} if "id" in call and "function" in call else {}
    return {**identity, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def tools_of(value: Any, place: Place) -> tuple[dict[str, Any], ...]:
    """Definitions of tools: a list of them, or JSON in a string; bare functions are wrapped.

    Raises:
        InputError: no list of definitions, or one without a name.
    """
    value = parsed(value, place) if isinstance(value, str) and value.strip() else value
    if not value:
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, dict | str) for tool in value):
        place.refuse("is no list of tools")
    found = []
    for tool in value:
        tool = _without_nulls(parsed(tool, place))
        wrapped = tool if isinstance(tool.get("function"), dict) else {"type": "function", "function": tool}
        if not isinstance(wrapped["function"].get("name"), str):
            place.refuse("holds a tool without a `name`")
        found.append(wrapped)
    return tuple(found)


def _without_nulls(value: Any) -> Any:
    """Tables fill what a nested value lacks with null; no template should see it."""
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value
