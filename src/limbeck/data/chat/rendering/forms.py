"""A conversation in the forms that chat templates read, and how it shows that one wants another form."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from limbeck.data.chat.rendering.marks import THOUGHT, Marked
from limbeck.data.chat.templates import in_parts
from limbeck.data.chat.turns.surroundings import Span

_TWO_THOUGHTS = re.compile(r"<think>\s*</think>\s*<think>")


def _with_arguments(messages: Any, change: Callable[[Any], Any]) -> list[dict[str, Any]]:
    def called(call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        return {**call, "function": {**function, "arguments": change(function.get("arguments", {}))}}

    return [{**m, "tool_calls": [called(c) for c in m["tool_calls"]]} if m.get("tool_calls") else m for m in messages]


def _arguments_as_text(messages: Any) -> list[dict[str, Any]] | None:
    if not any(message.get("tool_calls") for message in messages):
        return None
    return _with_arguments(messages, lambda value: json.dumps(value, ensure_ascii=False))


def _thoughts_apart(messages: Any) -> list[dict[str, Any]] | None:
    def apart(message: dict[str, Any]) -> dict[str, Any]:
        found = THOUGHT.match(message["content"]) if message["role"] == "assistant" else None
        if found and not found[1].strip() and "<think>" in found[2]:
            return message  # it does not begin with a thought
        return {**message, "reasoning_content": found[2].strip(), "content": found[4].lstrip()} if found else message

    changed = [apart(message) for message in messages]
    return changed if changed != list(messages) else None


FORMS: tuple[Callable[[Any], list[dict[str, Any]] | None], ...] = (list, _arguments_as_text, _thoughts_apart, in_parts)
"""A call's arguments are an object to most templates and text to some; thoughts may stand in the content or beside it;
content is text to most and parts to some."""


def doubles_thoughts(marked: Marked, messages: list[dict[str, Any]]) -> bool:
    """Whether the template wrote an empty thought before one that stands in the content: it may want that beside it."""
    others = _of_others(marked, messages)
    own = [str(message["content"]) for message in messages if message["role"] == "assistant"]
    return any(
        not _inside(found.span(), others) and not any(found[0] in content for content in own)
        for found in _TWO_THOUGHTS.finditer(marked.text)
    )


def prints_python(marked: Marked, messages: list[dict[str, Any]]) -> bool:
    """Whether the template printed arguments or parts as Python prints them: it wants another form."""
    text, others = marked.text, _of_others(marked, messages)
    for i, message in enumerate(messages):
        if isinstance(message["content"], list) and repr(message["content"]) in text:
            return True
        called = min((start for start, _ in marked.calls.get(i, ())), default=0)
        region = text[called : min((start for start, _ in others if start > called > 0), default=len(text))]
        for call in message.get("tool_calls") or ():
            arguments = call["function"].get("arguments")
            if isinstance(arguments, dict) and arguments and repr(arguments) in region:
                return True
    return False


def _of_others(marked: Marked, messages: list[dict[str, Any]]) -> list[Span]:
    return [span for i, m in enumerate(messages) if m["role"] != "assistant" for span in marked.own(i)]


def _inside(span: Span, others: list[Span]) -> bool:
    return any(start <= span[0] and span[1] <= end for start, end in others)
