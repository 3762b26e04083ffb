"""Rows that only ask: questions for teachers, whose answers are still to be written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from limbeck.data.documents.document import Document
from limbeck.data.documents.messages.place import Place, is_list
from limbeck.data.documents.messages.turns import ROLES
from limbeck.data.documents.rows import CONVERSATIONS, SHAPES, RowReader
from limbeck.data.documents.seen import Seen
from limbeck.data.documents.sources import documents
from limbeck.recipe import Columns, Source

PLACE = "data.prompts"
_ANSWER = "\0 the answer that the row lacks \0"


def questions(sources: tuple[Source, ...], seen: dict[str, Seen] | None = None) -> Iterator[Document]:
    """What the rows of ``data.prompts`` ask, in the order of the files.

    A row has any shape that a conversation of the corpus may have, and its answer may be missing. A document ends with
    the question, or with the row's own answer where it has one.

    Args:
        seen: filled, by the source's key in the recipe, with what was recognised and left out there.

    Raises:
        RecipeError, InputError: a source is missing, unreadable, or asks nothing; a row is plain text.
    """
    yield from documents(sources, seen, PLACE, QuestionReader)


class QuestionReader(RowReader):
    """Reads rows as the corpus is read: an answer that a row lacks is filled in before, and taken out again."""

    def __init__(self, key: str, columns: Columns, text: str, seen: Seen) -> None:
        own = Seen(unread=seen.unread, keys=seen.keys, notices=seen.notices, nulls=seen.nulls, roles=seen.roles)
        super().__init__(key, columns, text, own)
        self.told = seen

    def document(self, row: Any, where: str) -> Document | None:
        filled = self._filled(row) if isinstance(row, dict) else row
        document = super().document(filled, where)
        self.told.empty, self.told.silent = self.seen.empty, self.seen.silent
        if document is None:
            return None
        if document.text is not None:
            Place(self.key, where).refuse(
                "is plain text, which asks nothing", 'Write {"prompt": "..."}, or put it into `data.corpus`'
            )
        *asked, last = document.messages
        answered = last.get("content") != _ANSWER
        self.told.kinds["questions with an answer" if answered else "questions"] += 1
        if answered:
            return document
        return Document(messages=tuple(asked), chat=document.chat, tools=document.tools)

    def _filled(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row with an answer."""
        given = {str(name): value for name, value in row.items() if value is not None and not _blank(value)}
        named = self.columns
        conversations = (named.messages,) if named.messages else CONVERSATIONS if self.guesses else ()
        if name := next((name for name in conversations if is_list(given.get(str(name)))), None):
            return {**given, str(name): _ended(given[str(name)])}
        pairs = [(str(named.prompt), str(named.response))] if named.prompt else [*SHAPES] if self.guesses else []
        pairs.sort(key=lambda pair: pair[0] != "instruction")  # with an `input` beside it, a row asks by both
        if any(pair[0] in given and pair[1] in given for pair in pairs):
            return given
        for there in (given, row):  # one whose question is blank is left out by the reader, and counted
            if pair := next((pair for pair in pairs if pair[0] in there), None):
                return {**there, pair[1]: _ANSWER}
        return row


def _ended(messages: Any) -> Any:
    """Messages that end with an answer."""
    found = messages
    if isinstance(messages, str):
        try:
            found = json.loads(messages)
        except (ValueError, RecursionError):
            return messages  # the reader says what is wrong with it
    last = found[-1] if isinstance(found, list) and found else None
    if not isinstance(last, dict):
        return messages
    speaker = last.get("role", last.get("from"))
    if isinstance(speaker, str) and ROLES.get(speaker.strip().lower()) == "assistant":
        return messages
    end = {"role": "assistant", "content": _ANSWER} if "role" in last else {"from": "gpt", "value": _ANSWER}
    return [*found, end]


def _blank(value: Any) -> bool:
    return isinstance(value, str) and (not value or value.isspace())
