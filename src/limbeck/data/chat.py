"""From a document to token ids and the mask of the tokens that are learned.

Plain text is learned whole. Of a conversation only the assistant's words are (and the token that
ends its turn); the tokenizer's own chat template decides how it is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limbeck.data.sources import Document
from limbeck.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """A document in tokens. ``learn[i]``: token ``i`` is a label. ``n_bytes``: UTF-8 bytes learned."""

    ids: list[int]
    learn: list[bool]
    n_bytes: int


def encode(document: Document, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """Tokens of a document, from its beginning mark to its end mark.

    Raises:
        InputError: a conversation for a tokenizer without a chat template, or a template that
            rewrites earlier turns so that the assistant's words cannot be told apart.
    """
    if document.text is not None:
        ids = _plain(document.text, tokenizer)
        before, after = _marks(tokenizer)
        return Encoded(
            [*before, *ids, *after], [False] * len(before) + [True] * (len(ids) + len(after)), _size(document.text)
        )
    text, spans = render(document, tokenizer)
    return _encode_spans(text, spans, tokenizer, marks=not has_template(tokenizer))


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def render(document: Document, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[tuple[int, int]]]:
    """A conversation as one string, and the character spans that the assistant wrote."""
    if not has_template(tokenizer):
        if document.chat:
            raise InputError(
                "the corpus holds conversations, but the tokenizer has no chat template",
                key="data.corpus",
                fix="Use the tokenizer of a chat model, or `prompt`/`response` pairs",
            )
        text, spans = "", []
        for message in document.messages:
            start = len(text)
            text += message["content"]
            if message["role"] == "assistant":
                spans.append((start, len(text)))
        return text, spans
    spans = []
    for i, message in enumerate(document.messages):
        if message["role"] != "assistant":
            continue
        before = _template(tokenizer, document.messages[:i], generation_prompt=True)
        through = _template(tokenizer, document.messages[: i + 1], generation_prompt=False)
        if not through.startswith(before):
            before = _template(tokenizer, document.messages[:i], generation_prompt=False)
        if not through.startswith(before):
            raise InputError(
                "the chat template rewrites what stands before an answer: the assistant's words cannot be told apart",
                key="data.corpus",
                fix="Give one answer a conversation, or a template that only appends",
            )
        spans.append((len(before), len(through)))
    text = _template(tokenizer, document.messages, generation_prompt=False)
    prefix = _template(tokenizer, document.messages[: _last_answer(document) + 1], generation_prompt=False)
    if not text.startswith(prefix):
        raise InputError(
            "the chat template rewrites earlier turns", key="data.corpus", fix="Give one answer a conversation"
        )
    return text, spans


def _last_answer(document: Document) -> int:
    return max(i for i, message in enumerate(document.messages) if message["role"] == "assistant")


def _template(tokenizer: Any, messages: tuple[dict[str, Any], ...], *, generation_prompt: bool) -> str:
    if not messages:
        return ""
    try:
        return str(
            tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=generation_prompt)
        )
    except Exception as error:  # templates raise what they like (jinja2.TemplateError and others)
        raise InputError(f"the chat template refuses a conversation ({error})", key="data.corpus") from None


def _encode_spans(text: str, spans: list[tuple[int, int]], tokenizer: Any, *, marks: bool) -> Encoded:
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    learn = [any(start < high and low < end for low, high in spans) for start, end in coded["offset_mapping"]]
    before, after = _marks(tokenizer) if marks else ([], [])
    return Encoded(
        [*before, *coded["input_ids"], *after],
        [False] * len(before) + learn + [True] * len(after),
        sum(_size(text[low:high]) for low, high in spans),
    )


def _plain(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _marks(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids that open and close a plain document. Without a BOS the end mark opens, as in GPT-2."""
    end = tokenizer.eos_token_id
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else end
    return ([] if begin is None else [begin]), ([] if end is None else [end])


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
