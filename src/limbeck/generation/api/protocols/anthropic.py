"""Anthropic's Messages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from limbeck.generation.api.protocols.base import MalformedError, WireFormat, clean, ended, objects
from limbeck.generation.journal.usage import usage_of
from limbeck.generation.request import Completion, Outcome, Request
from limbeck.recipe.served import Endpoint

VERSION = "2023-06-01"

_OUTCOMES = {
    "end_turn": Outcome.COMPLETE,
    "stop_sequence": Outcome.COMPLETE,
    "max_tokens": Outcome.LENGTH,
    "model_context_window_exceeded": Outcome.LENGTH,
    "pause_turn": Outcome.LENGTH,
    "tool_use": Outcome.TOOL_CALL,
    "refusal": Outcome.REFUSED,
}


class AnthropicMessages(WireFormat):
    """``POST /v1/messages``. It has no seed and no logprobs."""

    name: ClassVar[str] = "anthropic"
    takes: ClassVar[frozenset[str]] = frozenset({"temperature", "top_p", "top_k", "stop", "tools"})

    def url(self, endpoint: Endpoint) -> str:
        base = endpoint.api if endpoint.api.endswith("/v1") else f"{endpoint.api}/v1"
        return f"{base}/messages"

    def authorization(self, key: str) -> dict[str, str]:
        return {"x-api-key": key}

    def headers(self, key: str | None) -> dict[str, str]:
        return {"anthropic-version": VERSION, **super().headers(key)}

    def fields(self, endpoint: Endpoint, request: Request, length: str) -> dict[str, Any]:
        system, messages = _conversation(request)
        body: dict[str, Any] = {"model": endpoint.model, "max_tokens": request.max_new_tokens, "messages": messages}
        if system:
            body["system"] = system
        for name in ("temperature", "top_p", "top_k"):
            if (value := getattr(request, name)) is not None:
                body[name] = value
        if request.stop:
            body["stop_sequences"] = list(request.stop)
        if request.tools:
            body["tools"] = [_tool(tool) for tool in request.tools]
        return body

    def completion(self, plain: Mapping[str, Any], request: Request) -> Completion:
        if not isinstance(plain.get("content"), list):
            raise MalformedError("no content")
        blocks = objects(plain["content"])
        usage = usage_of(self.name, plain)
        thoughts = [clean(block.get("thinking")) for block in blocks if block.get("type") == "thinking"]
        calls = tuple(
            {
                "id": str(block.get("id", "")),
                "type": "function",
                "function": {"name": block.get("name"), "arguments": json.dumps(block.get("input") or {})},
            }
            for block in blocks
            if block.get("type") == "tool_use"
        )
        return Completion(
            ended(_OUTCOMES.get(str(plain.get("stop_reason"))), usage.output if usage else None, request),
            "".join(clean(block.get("text")) for block in blocks if block.get("type") == "text"),
            reasoning="\n\n".join(thought for thought in thoughts if thought) or None,
            message={"role": "assistant", "content": plain["content"]},
            tool_calls=calls,
            usage=usage,
            model=str(plain.get("model") or ""),
        )


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    if not isinstance(function, Mapping):
        return dict(tool)  # in Anthropic's own form
    result = {"name": function.get("name"), "input_schema": function.get("parameters") or {"type": "object"}}
    return {**result, "description": function["description"]} if function.get("description") else result


def _conversation(request: Request) -> tuple[str, list[dict[str, Any]]]:
    """System text and turns. Results of tools are a user's blocks here, and roles take turns."""
    system: list[str] = []
    turns: list[dict[str, Any]] = []
    for message in request.messages or ({"role": "user", "content": request.text or ""},):
        role, content = message.get("role"), message.get("content")
        if role in ("system", "developer"):
            system.append(plain_text(content))
            continue
        if role == "tool":
            role = "user"
            content = [{"type": "tool_result", "tool_use_id": message.get("tool_call_id"), "content": content}]
        elif role == "assistant" and message.get("tool_calls"):
            content = [*_blocks(content), *_calls(message["tool_calls"])]
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] = [*_blocks(turns[-1]["content"]), *_blocks(content)]
        else:
            turns.append({"role": role, "content": content})
    return "\n\n".join(system), turns


def plain_text(content: Any) -> str:
    """The text of a content that may be a list of parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in objects(content))
    return str(content or "")


def _blocks(content: Any) -> list[Any]:
    if isinstance(content, list):
        return content
    return [{"type": "text", "text": content}] if content else []


def _calls(calls: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "type": "tool_use",
            "id": call.get("id"),
            "name": call["function"]["name"],
            "input": arguments(call["function"].get("arguments")),
        }
        for call in calls
    ]


def arguments(value: Any) -> Any:
    """Arguments of a call as an object: OpenAI has them as a text."""
    if not isinstance(value, str):
        return value or {}
    try:
        return json.loads(value)
    except ValueError:
        return {}
