"""A document as every source gives it and every tokenizer reads it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

MESSAGE_FIELDS = (
    "role", "content", "name", "reasoning_content", "reasoning", "thinking", "tool_calls", "tool_call_id", "learn",
)  # fmt: skip
"""What is kept of a message. The rest (ids, dates) says nothing: it must not tell two documents apart that are the
same to every model, or one could be trained on and the other held out."""


@dataclass(frozen=True)
class Document:
    """Plain ``text``, or a conversation.

    Attributes:
        text: plain text; None for a conversation.
        messages: dicts with ``role`` and ``content`` (a string), and what else of ``MESSAGE_FIELDS`` there is.
            ``tool_calls`` is a list of ``{"type": "function", "function": {"name": str, "arguments": dict}}``.
            ``learn: False`` on an assistant's message: it is read and not learned; absent otherwise.
        chat: False for a pair of a prompt and an answer, which a tokenizer without a chat template can read too.
        template: False for a pair that no chat template is put around: the answer follows the prompt as it is.
        tools: definitions of the tools of the conversation, as the template's ``tools`` takes them.
        key: hash of all that; a document that stands twice has one key.
    """

    text: str | None = None
    messages: tuple[dict[str, Any], ...] = ()
    chat: bool = True
    template: bool = True
    tools: tuple[dict[str, Any], ...] = ()
    key: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.text is not None:
            content = self.text
        else:
            said: Any = [self.messages, self.tools] if self.tools else self.messages
            if not self.template:
                said = {"continued": said}
            content = json.dumps(said, sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
        object.__setattr__(self, "key", digest)

    def texts(self) -> Iterator[str]:
        """Every piece of text in it."""
        if self.text is not None:
            yield self.text
        for message in self.messages:
            yield message["content"]

    def beginning(self) -> str:
        """Its first characters, for messages."""
        return next((text for text in self.texts() if text), "")[:40]
