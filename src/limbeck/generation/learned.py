"""Answers that were chosen, as documents of the students' corpus: the answer is learned, all before it is read."""

from __future__ import annotations

from typing import Any, Literal

from limbeck.data.chat.encode import writes_thoughts
from limbeck.data.documents.document import Document
from limbeck.generation.candidate import Candidate


class Learned:
    """Documents of a student's corpus out of candidates.

    Args:
        tokenizer: the student's; its chat template decides how thoughts are written.
        reasoning: ``drop``: without thoughts.
    """

    def __init__(self, tokenizer: Any, reasoning: Literal["keep", "drop"]) -> None:
        self.keeps = reasoning == "keep"
        self.templated = writes_thoughts(tokenizer)

    def document(self, candidate: Candidate) -> Document:
        """A conversation that ends with the answer, or a plain text that was continued."""
        completion = candidate.completion
        if candidate.text is not None:
            asked = {"role": "user", "content": candidate.text}
            said = {"role": "assistant", "content": completion.text}
            return Document(None, (asked, said), chat=False, template=False)
        answer: dict[str, Any] = {"role": "assistant", "content": completion.text}
        if completion.tool_calls:
            answer["tool_calls"] = [dict(call) for call in completion.tool_calls]
        if completion.reasoning and self.keeps:
            if self.templated:
                answer["reasoning_content"] = completion.reasoning
            else:
                answer["content"] = f"<think>\n{completion.reasoning}\n</think>\n\n{completion.text}"
        before = [
            {**message, "learn": False} if message["role"] == "assistant" else dict(message)
            for message in candidate.messages
        ]
        return Document(None, (*before, answer), chat=False, tools=tuple(map(dict, candidate.tools)))
