"""Gemini's generateContent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from limbeck.generation.api.protocols.anthropic import arguments, plain_text
from limbeck.generation.api.protocols.base import MalformedError, WireFormat, clean, ended, number, objects, sample_seed
from limbeck.generation.journal.usage import usage_of
from limbeck.generation.request import Completion, Outcome, Request, TokenLogprobs
from limbeck.recipe.served import Endpoint

_OUTCOMES = {
    "STOP": Outcome.COMPLETE,
    "MAX_TOKENS": Outcome.LENGTH,
    "SAFETY": Outcome.FILTERED,
    "RECITATION": Outcome.FILTERED,
    "LANGUAGE": Outcome.FILTERED,
    "BLOCKLIST": Outcome.FILTERED,
    "PROHIBITED_CONTENT": Outcome.FILTERED,
    "SPII": Outcome.FILTERED,
    "IMAGE_SAFETY": Outcome.FILTERED,
}


class Gemini(WireFormat):
    """``POST /models/MODEL:generateContent``."""

    name: ClassVar[str] = "gemini"
    takes: ClassVar[frozenset[str]] = frozenset(
        {"temperature", "top_p", "top_k", "seed", "stop", "tools", "top_logprobs"}
    )

    def url(self, endpoint: Endpoint) -> str:
        return f"{endpoint.api}/models/{endpoint.model.removeprefix('models/')}:generateContent"

    def authorization(self, key: str) -> dict[str, str]:
        return {"x-goog-api-key": key}

    def fields(self, endpoint: Endpoint, request: Request, length: str) -> dict[str, Any]:
        system, contents = _conversation(request)
        settings: dict[str, Any] = {
            "maxOutputTokens": request.max_new_tokens,
            "temperature": request.temperature,
            "topP": request.top_p,
            "topK": request.top_k,
            "seed": sample_seed(request),
            "stopSequences": list(request.stop) or None,
        }
        if request.top_logprobs:
            settings |= {"responseLogprobs": True, "logprobs": request.top_logprobs}
        body: dict[str, Any] = {
            "contents": contents,
            "generationConfig": {name: value for name, value in settings.items() if value is not None},
        }
        if system:
            body["systemInstruction"] = {"parts": [{"text": system}]}
        if request.tools:
            functions = [dict(tool.get("function", tool)) for tool in request.tools]
            body["tools"] = [{"functionDeclarations": functions}]
        return body

    def completion(self, plain: Mapping[str, Any], request: Request) -> Completion:
        usage = usage_of(self.name, plain)
        model = str(plain.get("modelVersion") or "")
        candidates = objects(plain.get("candidates"))
        if not candidates:
            feedback = plain.get("promptFeedback")
            if isinstance(feedback, dict) and feedback.get("blockReason"):
                return Completion(Outcome.FILTERED, "", message=feedback, usage=usage, model=model)
            raise MalformedError("no candidates")
        candidate = candidates[0]
        reason = str(candidate.get("finishReason"))
        if reason in ("MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "OTHER"):
            raise MalformedError(f"the model failed: {reason}")
        content = candidate.get("content")
        parts = objects(content.get("parts")) if isinstance(content, dict) else []
        thoughts = "".join(clean(part.get("text")) for part in parts if part.get("thought"))
        calls = tuple(
            {
                "id": str(part["functionCall"].get("id") or f"call_{i}"),
                "type": "function",
                "function": {
                    "name": part["functionCall"].get("name"),
                    "arguments": json.dumps(part["functionCall"].get("args") or {}),
                },
            }
            for i, part in enumerate(parts)
            if isinstance(part.get("functionCall"), dict)
        )
        outcome = ended(_OUTCOMES.get(reason), usage.output if usage else None, request)
        return Completion(
            Outcome.TOOL_CALL if calls and outcome is Outcome.COMPLETE else outcome,
            "".join(clean(part.get("text")) for part in parts if not part.get("thought")),
            reasoning=thoughts or None,
            message=content if isinstance(content, dict) else {},
            tool_calls=calls,
            usage=usage,
            model=model,
            logprobs=_logprobs(candidate, request),
        )


def _conversation(request: Request) -> tuple[str, list[dict[str, Any]]]:
    system: list[str] = []
    contents: list[dict[str, Any]] = []
    names: dict[str, Any] = {}
    for message in request.messages or ({"role": "user", "content": request.text or ""},):
        role = message.get("role")
        if role in ("system", "developer"):
            system.append(plain_text(message.get("content")))
            continue
        parts: list[dict[str, Any]] = []
        if isinstance(message.get("parts"), list):  # Gemini's own message, with the signatures of its thoughts
            parts += message["parts"]
        elif role == "tool":
            name = message.get("name") or names.get(str(message.get("tool_call_id")))
            answer = {"result": plain_text(message.get("content"))}
            parts.append({"functionResponse": {"name": name, "response": answer}})
        else:
            if text := plain_text(message.get("content")):
                parts.append({"text": text})
            for call in objects(list(message.get("tool_calls") or ())):
                function = call["function"]
                names[str(call.get("id"))] = function["name"]
                parts.append({"functionCall": {"name": function["name"], "args": arguments(function.get("arguments"))}})
        contents.append({"role": "model" if role in ("assistant", "model") else "user", "parts": parts})
    return "\n\n".join(system), contents


def _logprobs(candidate: Mapping[str, Any], request: Request) -> tuple[TokenLogprobs, ...] | None:
    found = candidate.get("logprobsResult")
    if not request.top_logprobs or not isinstance(found, dict):
        return None
    chosen = objects(found.get("chosenCandidates"))
    tops = objects(found.get("topCandidates"))
    if not chosen or any(number(each.get("logProbability")) is None for each in chosen):
        return None
    tops = tops if len(tops) == len(chosen) else [{}] * len(chosen)
    return tuple(
        TokenLogprobs(
            str(each.get("token", "")),
            float(each["logProbability"]),
            top=tuple(
                (str(one.get("token", "")), lp)
                for one in objects(top.get("candidates"))
                if (lp := number(one.get("logProbability"))) is not None
            ),
            id=each["tokenId"] if isinstance(each.get("tokenId"), int) else None,
        )
        for each, top in zip(chosen, tops, strict=True)
    )
