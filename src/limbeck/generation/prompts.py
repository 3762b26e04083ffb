"""What a teacher is asked: prompts out of documents, and requests out of prompts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from limbeck.data.documents.document import Document
from limbeck.data.tokenise import plain_ids_and_offsets
from limbeck.errors import RecipeError
from limbeck.generation.request import Request
from limbeck.recipe import Example, Generation


@dataclass(frozen=True)
class Prompt:
    """What is asked, and what the data answers.

    Attributes:
        messages: a conversation up to its last answer; empty where ``text`` is continued.
        text: the beginning of a plain text.
        tools: definitions of tools.
        reference: the data's own answer, or how the text goes on.
        document: the hash of the document that it is from.
    """

    messages: tuple[Mapping[str, Any], ...]
    text: str | None
    tools: tuple[Mapping[str, Any], ...]
    reference: str | None
    document: str

    def after(self, system: str | None) -> Prompt:
        """The same with a system text before it, where it is a conversation that has none."""
        has = any(message["role"] in ("system", "developer") for message in self.messages)
        if system is None or has or not self.messages:
            return self
        return replace(self, messages=({"role": "system", "content": system}, *self.messages))

    def plain(self) -> dict[str, Any]:
        """As plain data; :meth:`of` reads it."""
        return asdict(self)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Prompt:
        return cls(**{**plain, "messages": tuple(plain["messages"]), "tools": tuple(plain["tools"])})


def prompts_among(
    found: Iterable[Document], keys: np.ndarray, tokenizer: Any, *, prompt_tokens: int, system: str | None = None
) -> list[Prompt]:
    """The prompts of those documents that a part of the corpus holds, each once, by their hash.

    Args:
        found: documents of a corpus, in any order.
        keys: uint64 [D], ascending: the first 64 bits of the hashes of the part's documents.
        tokenizer: of the run: it says where the first ``prompt_tokens`` tokens of a plain text end.
        prompt_tokens: of a plain text, how much is given.
        system: put before conversations that have no system text.
    """
    by_hash: dict[str, Prompt] = {}
    for document in found:
        if document.key in by_hash or not _is_among(int(document.key[:16], 16), keys):
            continue
        prompt = prompt_of(document, tokenizer, prompt_tokens=prompt_tokens, system=system)
        if prompt is not None:
            by_hash[document.key] = prompt
    return [by_hash[key] for key in sorted(by_hash)]


def prompt_of(document: Document, tokenizer: Any, *, prompt_tokens: int, system: str | None = None) -> Prompt | None:
    """What a document asks: a conversation up to its last answer, the beginning of a plain text; None: nothing."""
    if document.text is not None:
        ids, offsets = plain_ids_and_offsets([document.text], tokenizer)[0]
        if len(ids) <= prompt_tokens:
            return None
        cut = int(offsets[prompt_tokens - 1, 1])
        return Prompt((), document.text[:cut], (), document.text[cut:], document.key)
    if not document.template:  # a pair whose answer follows the prompt as it is
        *before_it, answer = document.messages
        start = "".join(message["content"] for message in before_it)
        return Prompt((), start, (), answer["content"], document.key) if start else None
    last = max((i for i, message in enumerate(document.messages) if message["role"] == "assistant"), default=0)
    if not last:
        return None
    reference = document.messages[last]["content"]
    return Prompt(_clean(document.messages[:last]), None, document.tools, reference, document.key).after(system)


def question_of(document: Document) -> Prompt:
    """What a document of ``data.prompts`` asks: all of it, or all before its last answer where it ends with one."""
    *before, last = document.messages
    answered = last["role"] == "assistant"
    reference = last["content"] if answered else None
    return Prompt(_clean(before if answered else document.messages), None, document.tools, reference, document.key)


def _clean(messages: Iterable[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    return tuple({name: value for name, value in message.items() if name != "learn"} for message in messages)


def requests_for(
    prompt: Prompt, generation: Generation, max_new_tokens: int, *, samples: int | None = None
) -> Iterator[Request]:
    """One request for each sample of a prompt; ``samples``: how many, if not as many as the recipe says.

    Raises:
        RecipeError: there are examples, and the prompt is no conversation.
    """
    messages = shown(prompt, generation.examples)
    settings = sampling_of(generation)
    for sample in range(generation.samples if samples is None else samples):
        yield replace(
            settings,
            messages=messages,
            text=prompt.text,
            tools=prompt.tools,
            max_new_tokens=generation.max_new_tokens or max_new_tokens,
            # Samples of one seed would be equal.
            seed=generation.seed + sample if generation.seed else None,
            sample=sample,
        )


def sampling_of(generation: Generation) -> Request:
    """A request without a prompt: what a section sends beside it."""
    return Request(
        temperature=generation.temperature,
        top_p=generation.top_p if generation.top_p < 1 else None,
        top_k=generation.top_k or None,
        seed=generation.seed or None,
        stop=generation.stop,
    )


def shown(prompt: Prompt, examples: Sequence[Example]) -> tuple[Mapping[str, Any], ...]:
    """The messages that a teacher sees: the prompt's, with examples after its system text.

    Raises:
        RecipeError: there are examples, and the prompt is no conversation.
    """
    if not examples:
        return prompt.messages
    if prompt.text is not None:
        raise RecipeError(
            "examples stand before conversations, and the data holds plain text or pairs without a template",
            key=".generation.examples",
            fix="Leave them out, or add conversations to data.corpus",
        )
    first = next((i for i, each in enumerate(prompt.messages) if each["role"] not in ("system", "developer")), 0)
    turns = [
        {"role": role, "content": content}
        for each in examples
        for role, content in (("user", each.prompt), ("assistant", each.answer))
    ]
    return (*prompt.messages[:first], *turns, *prompt.messages[first:])


def _is_among(key: int, keys: np.ndarray) -> bool:
    at = int(np.searchsorted(keys, np.uint64(key)))
    return at < len(keys) and int(keys[at]) == key
