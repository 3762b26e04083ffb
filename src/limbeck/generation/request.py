"""What is asked of a teacher, and what it answers, whatever the protocol."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


def canonical(plain: Any) -> bytes:
    """JSON of plain data: equal data gives equal bytes, whatever the order of its keys. Lone surrogates are kept."""
    return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode("ascii")


@dataclass(frozen=True)
class Request:
    """One answer that is asked for.

    Attributes:
        messages: the conversation so far, in OpenAI's form; empty where ``text`` is continued.
        text: plain text to go on from.
        tools: definitions of tools, in OpenAI's form.
        max_new_tokens: length of the answer, reasoning included.
        temperature, top_p, top_k, seed: None: left to the endpoint.
        stop: strings that end an answer.
        top_logprobs: how many alternatives a token are asked for; 0: none.
        extra: more fields of the body.
        sample: its number among the samples of this prompt.
    """

    messages: tuple[Mapping[str, Any], ...] = ()
    text: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    max_new_tokens: int = 256
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)
    sample: int = 0

    def plain(self) -> dict[str, Any]:
        """As plain data, for the journal; :meth:`of` reads it."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        lists = {name: [dict(each) for each in plain[name]] for name in ("messages", "tools")}
        return {**plain, **lists, "stop": list(self.stop), "extra": dict(self.extra)}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Request:
        tuples = {name: tuple(plain[name]) for name in ("messages", "tools", "stop")}
        return cls(**{**plain, **tuples})

    def prompt_key(self) -> str:
        """A hash (hex) of what all samples of a prompt have in common: its text, tools and settings."""
        return hashlib.sha256(canonical({**self.plain(), "sample": None})).hexdigest()

    def key(self, teacher: Mapping[str, str]) -> str:
        """A hash (hex): equal requests to the same teacher are bought once. It depends on no secret.

        Args:
            teacher: who is asked (``Endpoint.identity``, or the fingerprint of a local model).
        """
        return hashlib.sha256(canonical([self.plain(), dict(teacher)])).hexdigest()


class Outcome(StrEnum):
    """How an answer ended. Only ``COMPLETE`` is learned, unless the recipe says otherwise."""

    COMPLETE = "complete"
    LENGTH = "length"
    FILTERED = "filtered"
    REFUSED = "refused"
    TOOL_CALL = "tool_call"


@dataclass(frozen=True)
class Usage:
    """Tokens of one call, in one convention for all providers: parts are inside their totals.

    Attributes:
        input: all tokens of the prompt; ``cached`` and ``cache_write`` are parts of them.
        output: all tokens written; ``reasoning`` is a part of them.
        tier: the service tier that the answer names ("batch", "flex", "priority"); None: the standard one.
    """

    input: int
    output: int
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0
    tier: str | None = None


@dataclass(frozen=True)
class TokenLogprobs:
    """What a teacher revealed of one token: the token, its log-probability, and alternatives (token, log-probability).

    Tokens are strings, with their bytes where the endpoint gives them, and ids where it gives those.
    """

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
    bytes: bytes | None = None
    id: int | None = None


@dataclass(frozen=True)
class Completion:
    """An answer.

    Attributes:
        outcome: how it ended.
        text: what was said; reasoning is not part of it.
        reasoning: what was thought before, where it is revealed.
        message: the whole message of the assistant as the endpoint gave it, signatures of thoughts included.
        tool_calls: in OpenAI's form.
        usage: None where the endpoint does not say.
        model: who answered, by the answer itself.
        logprobs: of the tokens of ``text`` and ``reasoning``, where they were asked for and are revealed.
        ids: token ids, of a local model.
    """

    outcome: Outcome
    text: str
    reasoning: str | None = None
    message: Mapping[str, Any] = field(default_factory=dict)
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    usage: Usage | None = None
    model: str = ""
    logprobs: tuple[TokenLogprobs, ...] | None = None
    ids: tuple[int, ...] | None = None
