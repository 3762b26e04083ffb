"""Control tokens that stand in documents as text: a tokenizer reads them as the tokens that they name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from limbeck.data.documents.document import Document

WRITTEN = (
    "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>",
    "<end_of_turn>", "<|user|>", "<|assistant|>", "<|begin_of_text|>", "<|endoftext|>", "[INST]", "[/INST]",
)  # fmt: skip
"""What chat templates of other models write: to a tokenizer that does not know them they are words."""
SHOWN = 4
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_TAG = r"<[^<>\s]{1,64}>|\[[^\[\]\s]{1,64}\]"


class Control:
    """Counts the documents in which control tokens stand.

    Args:
        tokenizer: whose control tokens; None for one that is still to be trained.
    """

    def __init__(self, tokenizer: Any) -> None:
        added = tokenizer.added_tokens_decoder.values() if tokenizer is not None else ()
        own = {*(tokenizer.all_special_tokens if tokenizer is not None else ())}
        own |= {token.content for token in added if token.special}
        self.own = {token for token in own if token.strip()}
        self.known = {*self.own, *WRITTEN}
        # A tokenizer may have thousands; nearly all look like tags.
        odd = sorted((token for token in self.known if not re.fullmatch(_TAG, token)), key=len, reverse=True)
        self._any = re.compile("|".join([*map(re.escape, odd), _TAG]))
        self.found: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        self.typed = self.foreign = 0

    def counting(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The same documents, counted as they pass."""
        for document in documents:
            self.count(document)
            yield document

    def count(self, document: Document) -> None:
        thoughts = (message.get(name) for message in document.messages for name in THOUGHTS)
        texts = (*document.texts(), *filter(None, thoughts))
        marks = {mark for text in texts for mark in self._any.findall(text) if mark in self.known}
        if marks:
            typed = bool(marks & self.own)
            self.typed += typed
            self.foreign += not typed
            self.found[typed].update(marks & self.own if typed else marks)

    def remarks(self) -> Iterator[str]:
        """What is to be said of them, a line each."""
        if self.typed:
            yield (
                f"{self.typed:,} documents hold the tokenizer's control tokens as text ({self._named(typed=True)}): "
                "they are read and learned as control tokens, beside those that limbeck writes around every document; "
                "conversations that a template has written already belong into `messages`"
            )
        if self.foreign:
            yield (
                f"{self.foreign:,} documents hold what another model's template writes ({self._named(typed=False)}), "
                "which is learned as words; conversations belong into `messages`"
            )

    def _named(self, *, typed: bool) -> str:
        names = sorted(self.found[typed], key=lambda mark: (-self.found[typed][mark], mark))
        return f"{', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''}"
