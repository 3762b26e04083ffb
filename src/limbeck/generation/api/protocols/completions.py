"""OpenAI's older completions: a text is continued."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from limbeck.errors import RecipeError
from limbeck.generation.api.protocols.base import MalformedError, WireFormat, clean, ended, number
from limbeck.generation.api.protocols.chat import OUTCOMES, first_choice, sampling_fields, token_id, token_ids
from limbeck.generation.journal.usage import usage_of
from limbeck.generation.request import Completion, Request, TokenLogprobs
from limbeck.recipe.served import Endpoint


class Completions(WireFormat):
    """``POST /completions``."""

    name: ClassVar[str] = "completions"
    takes: ClassVar[frozenset[str]] = frozenset({"temperature", "top_p", "top_k", "seed", "stop", "top_logprobs"})

    def url(self, endpoint: Endpoint) -> str:
        return f"{endpoint.api}/completions"

    def authorization(self, key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"}

    def fields(self, endpoint: Endpoint, request: Request, length: str) -> dict[str, Any]:
        if request.text is None:
            raise RecipeError(
                "the protocol `completions` continues a text, and this prompt is a conversation",
                key=".protocol",
                fix="Write `protocol: chat`.",
            )
        body: dict[str, Any] = {"model": endpoint.model, "prompt": request.text, length: request.max_new_tokens}
        body |= sampling_fields(request)
        if request.top_logprobs:
            body["logprobs"] = request.top_logprobs
        return body

    def completion(self, plain: Mapping[str, Any], request: Request) -> Completion:
        choice = first_choice(plain)
        if not isinstance(choice.get("text"), str):
            raise MalformedError("no text")
        usage = usage_of(self.name, plain)
        reason = OUTCOMES.get(str(choice.get("finish_reason")))
        return Completion(
            ended(reason, usage.output if usage else None, request),
            clean(choice["text"]),  # what continues a text is not split
            message={"role": "assistant", "content": choice["text"]},
            usage=usage,
            model=str(plain.get("model") or ""),
            logprobs=_logprobs(choice, request),
            ids=token_ids(choice),
        )


def _logprobs(choice: Mapping[str, Any], request: Request) -> tuple[TokenLogprobs, ...] | None:
    found = choice.get("logprobs")
    if not request.top_logprobs or not isinstance(found, dict) or not isinstance(found.get("tokens"), list):
        return None
    tokens = [str(token) for token in found["tokens"]]
    values = found.get("token_logprobs") or []
    tops = found.get("top_logprobs") or [{}] * len(tokens)
    if not len(tokens) == len(values) == len(tops) or any(number(value) is None for value in values):
        return None
    return (
        tuple(
            TokenLogprobs(
                token,
                float(value),
                top=tuple((str(name), float(lp)) for name, lp in (top or {}).items() if number(lp) is not None),
                id=token_id(token),
            )
            for token, value, top in zip(tokens, values, tops, strict=True)
        )
        or None
    )
