"""OpenAI's chat completions, and what is compatible with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from limbeck.generation.api.protocols.base import (
    MalformedError,
    WireFormat,
    clean,
    ended,
    host,
    mapping,
    merged,
    number,
    objects,
    sample_seed,
)
from limbeck.generation.api.protocols.reasoning import reasoning_field, split_reasoning
from limbeck.generation.journal.usage import usage_of
from limbeck.generation.request import Completion, Outcome, Request, TokenLogprobs
from limbeck.recipe.served import Endpoint

OUTCOMES = {
    "stop": Outcome.COMPLETE,
    "eos": Outcome.COMPLETE,
    "eos_token": Outcome.COMPLETE,
    "end_turn": Outcome.COMPLETE,
    "stop_sequence": Outcome.COMPLETE,
    "length": Outcome.LENGTH,
    "max_tokens": Outcome.LENGTH,
    "model_length": Outcome.LENGTH,
    "content_filter": Outcome.FILTERED,
    "refusal": Outcome.REFUSED,
    "tool_calls": Outcome.TOOL_CALL,
    "tool_use": Outcome.TOOL_CALL,
    "function_call": Outcome.TOOL_CALL,
}

OPENROUTER = {"provider": {"enforce_distillable_text": True, "allow_fallbacks": False}}
"""Only models whose text may be distilled, and only the one that was asked for."""


def sampling_fields(request: Request) -> dict[str, Any]:
    """Settings of the sampling, as OpenAI's protocols name them; what is left to the endpoint is absent."""
    named: dict[str, Any] = {name: getattr(request, name) for name in ("temperature", "top_p", "top_k")}
    named |= {"seed": sample_seed(request), "stop": list(request.stop) or None}
    return {name: value for name, value in named.items() if value is not None}


def first_choice(plain: Mapping[str, Any]) -> Mapping[str, Any]:
    """The answer among ``choices``.

    Raises:
        MalformedError: there is none, or a provider behind the endpoint failed.
    """
    choices = objects(plain.get("choices"))
    if not choices:
        raise MalformedError("no choices")
    choice = choices[0]
    if choice.get("finish_reason") == "error" or choice.get("error"):
        raise MalformedError(f"the provider failed: {choice.get('error')}")
    return choice


class ChatCompletions(WireFormat):
    """``POST /chat/completions``."""

    name: ClassVar[str] = "chat"
    takes: ClassVar[frozenset[str]] = frozenset(
        {"temperature", "top_p", "top_k", "seed", "stop", "tools", "top_logprobs"}
    )

    def url(self, endpoint: Endpoint) -> str:
        return f"{endpoint.api}/chat/completions"

    def authorization(self, key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"}

    def length_field(self, endpoint: Endpoint) -> str:
        where = host(endpoint)
        openai = where == "api.openai.com" or where.endswith((".openai.azure.com", ".api.openai.com"))
        return "max_completion_tokens" if openai else "max_tokens"

    def fields(self, endpoint: Endpoint, request: Request, length: str) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": endpoint.model,
            "messages": [dict(message) for message in request.messages]
            or [{"role": "user", "content": request.text or ""}],
            length: request.max_new_tokens,
        }
        body |= sampling_fields(request)
        if request.tools:
            body["tools"] = [dict(tool) for tool in request.tools]
        if request.top_logprobs:
            body["logprobs"], body["top_logprobs"] = True, request.top_logprobs
        return merged(body, OPENROUTER) if is_openrouter(endpoint) else body

    def completion(self, plain: Mapping[str, Any], request: Request) -> Completion:
        choice = first_choice(plain)
        message = mapping(choice.get("message"), "the message")
        content, thought = _content(message.get("content"))
        named = reasoning_field(message)
        reasoning: str | None
        if named or thought:
            reasoning, text = clean(named[1] if named else thought), clean(content)
        else:
            reasoning, text = split_reasoning(clean(content))
        calls = tuple(objects(message.get("tool_calls")))
        usage = usage_of(self.name, plain)
        reason = choice.get("finish_reason")
        outcome = ended(OUTCOMES.get(str(reason)), usage.output if usage else None, request)
        if outcome is Outcome.COMPLETE and isinstance(message.get("refusal"), str) and message["refusal"]:
            outcome, text = Outcome.REFUSED, text or clean(message["refusal"])
        elif outcome is Outcome.COMPLETE and calls:
            outcome = Outcome.TOOL_CALL
        return Completion(
            outcome,
            text,
            reasoning=reasoning,
            message=message,
            tool_calls=calls,
            usage=usage,
            model=str(plain.get("model") or ""),
            logprobs=_logprobs(choice, request),
            ids=token_ids(choice),
        )


def is_openrouter(endpoint: Endpoint) -> bool:
    where = host(endpoint)
    return where == "openrouter.ai" or where.endswith(".openrouter.ai")


def _content(content: Any) -> tuple[Any, str | None]:
    """Text and thoughts of a content that may be a list of parts, as Mistral has it."""
    if not isinstance(content, list):
        return content, None
    said, thought = [], []
    for part in objects(content):
        if part.get("type") in ("text", "output_text"):
            said.append(clean(part.get("text")))
        elif part.get("type") in ("thinking", "reasoning"):
            inner = part.get("thinking") or part.get("text")
            inner = objects(inner) if isinstance(inner, list) else [{"text": inner}]
            thought += [clean(each.get("text")) for each in inner]
    return "".join(said), "".join(thought) or None


def _logprobs(choice: Mapping[str, Any], request: Request) -> tuple[TokenLogprobs, ...] | None:
    found = choice.get("logprobs")
    if not request.top_logprobs or not isinstance(found, dict):
        return None
    tokens = [*objects(found.get("reasoning_content")), *objects(found.get("content"))]
    result = []
    for token in tokens:
        value = number(token.get("logprob"))
        if value is None:
            return None
        text = str(token.get("token", ""))
        raw = token.get("bytes")
        result.append(
            TokenLogprobs(
                text,
                value,
                top=tuple(
                    (str(each.get("token", "")), lp)
                    for each in objects(token.get("top_logprobs"))
                    if (lp := number(each.get("logprob"))) is not None
                ),
                bytes=bytes(raw) if isinstance(raw, list) and all(_is_byte(b) for b in raw) else None,
                id=token_id(text),
            )
        )
    return tuple(result) or None


def token_id(text: str) -> int | None:
    """The id in ``token_id:123``, as vLLM writes tokens when it is asked for ids."""
    number_ = text.removeprefix("token_id:")
    return int(number_) if number_ != text and number_.isdecimal() else None


def _is_byte(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 256


def token_ids(choice: Mapping[str, Any]) -> tuple[int, ...] | None:
    """``token_ids``, of servers that are asked for them with ``return_token_ids``."""
    ids = choice.get("token_ids")
    return tuple(ids) if isinstance(ids, list) and ids and all(isinstance(each, int) for each in ids) else None
