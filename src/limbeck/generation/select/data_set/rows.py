"""Chosen answers as rows of a table that TRL, axolotl and limbeck read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from limbeck.generation.candidate import Candidate
from limbeck.generation.select.words import content_text

MESSAGE_COLUMNS = ("role", "content", "reasoning_content", "name", "tool_call_id", "tool_calls")

_SURROGATES = re.compile("[\ud800-\udfff]")
# Valid in JSON, but line ends to readers that split text by Unicode's rules.
_LINE_ENDS = str.maketrans({"\u2028": "\\u2028", "\u2029": "\\u2029", "\x85": "\\u0085"})


def conversation(candidate: Candidate) -> dict[str, Any]:
    """A row of ``messages``: the prompt, then the answer with its reasoning."""
    said = candidate.completion
    answer: dict[str, Any] = {"role": "assistant", "content": said.text}
    if said.reasoning:
        answer["reasoning_content"] = said.reasoning
    if said.tool_calls:
        answer["tool_calls"] = said.tool_calls
    messages = [_message(message) for message in (*candidate.messages, answer)]
    tools = json.dumps([*candidate.tools], ensure_ascii=False, sort_keys=True) if candidate.tools else None
    return _clean({"messages": messages, "tools": tools, **_about(candidate)})


def continuation(candidate: Candidate) -> dict[str, Any]:
    """A row of ``prompt`` and ``completion``: plain text that goes on."""
    return _clean({"prompt": candidate.text, "completion": candidate.completion.text, **_about(candidate)})


def _about(candidate: Candidate) -> dict[str, Any]:
    said = candidate.completion
    return {
        "prompt_id": candidate.prompt,
        "sample": candidate.sample,
        "teacher": candidate.teacher,
        "model": said.model,
        "outcome": said.outcome.value,
        "verdict": candidate.verdict.value if candidate.verdict else None,
        "reference": candidate.reference,
        "key": candidate.key,
    }


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(MESSAGE_COLUMNS)
    row["role"] = str(message.get("role", ""))
    row["content"] = content_text(message.get("content"))
    for name in ("reasoning_content", "reasoning", "thinking"):
        if isinstance(message.get(name), str) and message[name]:
            row["reasoning_content"] = message[name]
            break
    for name in ("name", "tool_call_id"):
        if message.get(name) is not None:
            row[name] = str(message[name])
    if message.get("tool_calls"):
        row["tool_calls"] = [_call(call) for call in message["tool_calls"]]
    return row


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call in OpenAI's form, with its arguments as JSON: rows of one table need one schema."""
    function = call.get("function", call)
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments or {}, ensure_ascii=False, sort_keys=True)
    identity = None if call.get("id") is None else str(call["id"])
    return {"id": identity, "type": "function", "function": {"name": str(function["name"]), "arguments": arguments}}


def _clean(value: Any) -> Any:
    """Halves of surrogate pairs cannot be written as UTF-8; each becomes U+FFFD. The journal keeps what was said."""
    if isinstance(value, str):
        return _SURROGATES.sub("\ufffd", value)
    if isinstance(value, dict):
        return {name: _clean(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_clean(inner) for inner in value]
    return value


def is_repaired(candidate: Candidate) -> bool:
    """Whether an answer holds halves of surrogate pairs."""
    return bool(_SURROGATES.search(candidate.completion.text + (candidate.completion.reasoning or "")))


def json_lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """A line of JSON for each row; keys whose value is null are left out."""
    for row in rows:
        yield json.dumps(_without_nulls(row), ensure_ascii=False).translate(_LINE_ENDS) + "\n"


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value
