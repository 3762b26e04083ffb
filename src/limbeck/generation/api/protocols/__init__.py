"""Wire formats: the body of a request, and what an answer says."""

from __future__ import annotations

from limbeck.generation.api.protocols.anthropic import AnthropicMessages
from limbeck.generation.api.protocols.base import MalformedError, WireFormat, encode
from limbeck.generation.api.protocols.chat import ChatCompletions
from limbeck.generation.api.protocols.completions import Completions
from limbeck.generation.api.protocols.gemini import Gemini

__all__ = ["MalformedError", "WireFormat", "encode", "wire_format"]

_FORMATS: dict[str, type[WireFormat]] = {
    "chat": ChatCompletions,
    "completions": Completions,
    "anthropic": AnthropicMessages,
    "gemini": Gemini,
}


def wire_format(protocol: str) -> WireFormat:
    """The wire format of ``Endpoint.protocol``."""
    return _FORMATS[protocol]()
