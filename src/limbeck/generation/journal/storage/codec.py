"""Answers and requests as bytes."""

from __future__ import annotations

import json
import zlib
from typing import Any

from limbeck.generation.request import Completion, Outcome, TokenLogprobs, Usage, canonical

WINDOW = 32_768
"""Bytes. How far back zlib looks."""


def pack(data: bytes, similar: bytes = b"") -> bytes:
    """Compress ``data``. What it shares with ``similar`` takes next to no room; :func:`unpack` needs the same."""
    packer = zlib.compressobj(6, zdict=similar[-WINDOW:]) if similar else zlib.compressobj(6)
    return packer.compress(data) + packer.flush()


def unpack(packed: bytes, similar: bytes = b"") -> bytes:
    """The bytes that :func:`pack` was given.

    Raises:
        zlib.error: the bytes are damaged.
    """
    opener = zlib.decompressobj(zdict=similar[-WINDOW:]) if similar else zlib.decompressobj()
    data = opener.decompress(packed) + opener.flush()
    if not opener.eof:
        raise zlib.error("incomplete")
    return data


def completion_to_bytes(completion: Completion) -> bytes:
    """As canonical JSON; what has its default value is left out."""
    plain: dict[str, Any] = {"outcome": completion.outcome.value, "text": completion.text}
    if completion.reasoning is not None:
        plain["reasoning"] = completion.reasoning
    if completion.message:
        plain["message"] = completion.message
    if completion.tool_calls:
        plain["tool_calls"] = completion.tool_calls
    if completion.model:
        plain["model"] = completion.model
    if (usage := completion.usage) is not None:
        plain["usage"] = [usage.input, usage.output, usage.cached, usage.cache_write, usage.reasoning, usage.tier]
    if completion.logprobs is not None:
        plain["logprobs"] = [
            [each.token, each.logprob, each.top, None if each.bytes is None else list(each.bytes), each.id]
            for each in completion.logprobs
        ]
    if completion.ids is not None:
        plain["ids"] = completion.ids
    return canonical(plain)


def completion_from_bytes(data: bytes) -> Completion:
    plain = json.loads(data)
    usage, logprobs, ids = plain.get("usage"), plain.get("logprobs"), plain.get("ids")
    return Completion(
        outcome=Outcome(plain["outcome"]),
        text=plain["text"],
        reasoning=plain.get("reasoning"),
        message=plain.get("message", {}),
        tool_calls=tuple(plain.get("tool_calls", ())),
        usage=None if usage is None else Usage(*usage),
        model=plain.get("model", ""),
        logprobs=None if logprobs is None else tuple(_token(*each) for each in logprobs),
        ids=None if ids is None else tuple(ids),
    )


def _token(
    token: str, logprob: float, top: list[tuple[str, float]], raw: list[int] | None, number: int | None
) -> TokenLogprobs:
    pairs = tuple((text, value) for text, value in top)
    return TokenLogprobs(token, logprob, pairs, None if raw is None else bytes(raw), number)
