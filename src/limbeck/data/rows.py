"""From a row of a table to a document, in the shapes that people have.

``messages``; ShareGPT's ``conversations``; Alpaca's ``instruction``, ``input`` and ``output``; pairs of a prompt and an
answer, as strings or lists of messages; plain text. What a row asks for and limbeck does not do is refused by its name.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NoReturn

from limbeck.data.document import Document
from limbeck.data.messages import Message, Place, is_list, kind_of, messages_of, tools_of
from limbeck.recipe import Columns

CONVERSATIONS = ("messages", "conversations", "conversation", "dialogue", "dialog")
PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("query", "response"),
    ("instruction", "response"), ("inputs", "targets"), ("input", "output"),
)  # fmt: skip
CONTINUED = ("prompt", "completion")
"""As in TRL, a completion goes on from its prompt as it is; the other pairs are turns of a conversation."""
TOOLS = ("tools", "functions")
ROW_WEIGHTS = ("weight", "loss_weight", "sample_weight")
MEDIA = ("images", "image", "audio", "audios", "videos", "video")
NAMED = 8  # unread columns that are named

Found = tuple[str, Document, set[str]]
"""What was recognised, the document, and the columns that were read."""


@dataclass
class Seen:
    """What was recognised in a source.

    Attributes:
        kinds: how many rows of which shape.
        unread: columns that nothing was read from.
        empty: rows whose text or answer is empty; they are left out.
        silent: conversations in which there is nothing to learn; they are left out.
        roles: who speaks in those.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    unread: set[str] = field(default_factory=set)
    empty: int = 0
    silent: int = 0
    roles: set[str] = field(default_factory=set)

    def line(self) -> str:
        """What was read, in a line."""
        kinds = "; ".join(f"{count:,} {kind}" for kind, count in self.kinds.most_common()) or "nothing"
        unread = sorted(self.unread)
        more = f" and {len(unread) - NAMED} more" if len(unread) > NAMED else ""
        return kinds + (f"; not read: {', '.join(unread[:NAMED])}{more}" if unread else "")

    def left_out(self) -> str | None:
        """What was left out, in a line; None: nothing."""
        parts = []
        if self.silent:
            roles = ", ".join(sorted(self.roles)[:5])
            parts.append(f"{self.silent:,} of its conversations hold no words of an `assistant` (roles: {roles})")
        if self.empty:
            parts.append(f"{self.empty:,} of its rows hold no text or no answer")
        return ", and ".join(parts) or None


class RowReader:
    """Reads the rows of one source.

    Args:
        key: its place in the recipe, for errors.
        columns: names that the recipe gives; what it does not name is looked for under the usual names.
        seen: filled with what is recognised.
    """

    def __init__(self, key: str, columns: Columns, seen: Seen) -> None:
        self.key, self.columns, self.seen = key, columns, seen

    def document(self, row: Any, where: str) -> Document | None:
        """The document of a row; None where there is nothing to learn.

        Raises:
            InputError: no known shape, or something in it that limbeck does not do; names the place.
        """
        place = Place(self.key, where)
        if not isinstance(row, dict):
            place.refuse("is no object", 'Write {"text": "..."}')
        row = {str(name): value for name, value in row.items() if value is not None}
        self._check(row, place)
        found = self._recognised(row, place)
        if found is None:
            self.seen.empty += 1
            return None
        kind, document, used = found
        self.seen.kinds[kind] += 1
        self.seen.unread |= set(row) - used
        said = [m for m in document.messages if m["role"] == "assistant" and m.get("learn", True)]
        if document.text is None and not said:
            self.seen.silent += 1
            self.seen.roles.update(m["role"] for m in document.messages)
            return None
        return document

    def _check(self, row: dict[str, Any], place: Place) -> None:
        if {"chosen", "rejected"} <= set(row) and self.columns.response is None and self.columns.messages is None:
            place.refuse(
                "holds a preference (`chosen` and `rejected`), from which limbeck does not learn",
                "Name the answers to learn: `columns: {prompt: prompt, response: chosen}`",
            )
        for name in ROW_WEIGHTS:
            if isinstance(row.get(name), int | float) and row[name] != 1:
                place.refuse(f"has `{name}: {row[name]}`; limbeck weighs all rows alike", f"Remove `{name}`")
        for name in MEDIA:
            if row.get(name):
                place.refuse(f"has `{name}`; limbeck learns from text only", "Use data without it")

    def _recognised(self, row: dict[str, Any], place: Place) -> Found | None:
        named = self.columns
        column = named.tools or next((name for name in TOOLS if name in row), None)
        tools = tools_of(row.get(column), place.inside(f"`{column}`")) if column else ()
        used = {column} & set(row) if column else set()
        conversation = named.messages or next((name for name in CONVERSATIONS if is_list(row.get(name))), None)
        if conversation in row:
            return self._conversation(row, str(conversation), tools, used, place)
        if isinstance(row.get("instruction"), str) and isinstance(row.get("output"), str) and named.prompt is None:
            return self._alpaca(row, tools, used, place)
        pairs = ((named.prompt, named.response),) if named.prompt and named.response else PAIRS
        pair = next(((str(p), str(r)) for p, r in pairs if p in row and r in row), None)
        if pair is not None and (named.text is None or named.text not in row):
            return self._pair(row, pair, tools, used, place)
        text = named.text or "text"
        if isinstance(row.get(text), str):
            return (f"plain texts (`{text}`)", Document(text=row[text]), used | {text}) if row[text].strip() else None
        self._unknown(row, [name for name in (named.messages, named.prompt, named.text) if name], place)

    def _unknown(self, row: dict[str, Any], asked: list[str], place: Place) -> NoReturn:
        has = ", ".join(f"`{name}` ({kind_of(value)})" for name, value in list(row.items())[:12]) or "nothing"
        lacks = " and no ".join(f"text in `{name}`" if name == self.columns.text else f"`{name}`" for name in asked)
        place.refuse(
            f"has no {lacks}; it has {has}"
            if asked
            else f"holds no document in a shape that limbeck knows; it has {has}",
            "Name its columns: `columns: {text: ...}`, `{messages: ...}` or `{prompt: ..., response: ...}`",
        )

    @staticmethod
    def _system(row: dict[str, Any]) -> list[Message]:
        """What stands for a system message in a column of its own."""
        said = row.get("system", row.get("system_prompt"))
        return [{"role": "system", "content": said}] if isinstance(said, str) and said.strip() else []

    def _conversation(self, row: dict[str, Any], name: str, tools: Any, used: set[str], place: Place) -> Found:
        messages = messages_of(row[name], place.inside(f"`{name}`"))
        if messages and messages[0]["role"] != "system":
            messages = [*self._system(row), *messages]
        shared = '"from"' in row[name] if isinstance(row[name], str) else any("from" in m for m in row[name])
        kind = f"{'ShareGPT ' if shared else ''}conversations (`{name}`)"
        used = used | {name} | ({"system", "system_prompt"} & set(row))
        return kind, Document(messages=tuple(messages), tools=tools), used

    def _alpaca(self, row: dict[str, Any], tools: Any, used: set[str], place: Place) -> Found | None:
        if not row["output"].strip():
            return None
        messages = self._system(row)
        for turn in row.get("history") or []:
            if not (isinstance(turn, list | tuple) and len(turn) == 2 and all(isinstance(t, str) for t in turn)):
                place.refuse("has a turn in `history` that is no list of a question and an answer")
            messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
        given = row.get("input", "")
        if not isinstance(given, str):
            place.refuse(f"has an `input` that is {kind_of(given)}, not text")
        asked = f"{row['instruction']}\n\n{given}" if given.strip() else row["instruction"]
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}]
        used = used | {"instruction", "output"} | ({"input", "system", "history"} & set(row))
        document = Document(messages=tuple(messages), chat=len(messages) > 2, tools=tools)
        return "Alpaca rows (`instruction`, `input`, `output`)", document, used

    def _pair(
        self, row: dict[str, Any], pair: tuple[str, str], tools: Any, used: set[str], place: Place
    ) -> Found | None:
        prompt, answer = row[pair[0]], row[pair[1]]
        used = used | set(pair) | ({"system", "system_prompt"} & set(row))
        kind = f"pairs (`{pair[0]}`, `{pair[1]}`)"
        for name, value in zip(pair, (prompt, answer), strict=True):
            if not isinstance(value, str | list):
                place.refuse(f"has a `{name}` that is {kind_of(value)}, not text and no list of messages")
        if is_list(prompt) or is_list(answer):
            asked = messages_of(prompt, place.inside(f"`{pair[0]}`")) if is_list(prompt) else _says("user", prompt)
            said = messages_of(answer, place.inside(f"`{pair[1]}`")) if is_list(answer) else _says("assistant", answer)
            # Only the answer is learned: what an assistant says in the prompt is given.
            given = [{**m, "learn": False} if m["role"] == "assistant" else m for m in asked]
            messages = (*self._system(row), *given, *said)
            return f"{kind} of messages", Document(messages=messages, tools=tools), used
        if not answer.strip():
            return None
        messages = (*self._system(row), *_says("user", prompt), *_says("assistant", answer))
        chat = len(messages) > 2
        return kind, Document(messages=messages, chat=chat, template=chat or pair != CONTINUED, tools=tools), used


def _says(role: str, content: str) -> list[Message]:
    return [{"role": role, "content": content}]
