"""From a row of a table to a document, in the shapes that people have.

``messages``; ShareGPT's ``conversations``; Alpaca's ``instruction``, ``input`` and ``output``; pairs of a prompt and an
answer, as strings or lists of messages; plain text. What a row asks for and limbeck does not do is refused by its name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NoReturn

from limbeck.data.documents.document import Document
from limbeck.data.documents.messages.calls import tools_of
from limbeck.data.documents.messages.place import Place, is_list, kind_of, parsed
from limbeck.data.documents.messages.turns import (
    TEXTUAL,
    Message,
    lists_only,
    messages_of,
    said_turns,
    says_messages,
    says_turns,
)
from limbeck.data.documents.seen import UNLEARNED, Seen
from limbeck.errors import InputError
from limbeck.recipe import Columns

CONVERSATIONS = ("messages", "conversations", "conversation", "dialogue", "dialog")
FIRST_PAIR = ("prompt", "response")
PAIRS = (
    FIRST_PAIR, ("prompt", "completion"), ("question", "answer"), ("question", "response"), ("query", "response"),
    ("inputs", "targets"), ("input", "output"),
)  # fmt: skip
CONTINUED = ("prompt", "completion")
"""As in TRL, a completion goes on from its prompt as it is; the other pairs are turns of a conversation."""
TOOLS = ("tools", "functions")
SYSTEM = ("system", "system_prompt")
INPUTS = ("input", "context")
NOTHING: tuple[Any, ...] = (None, "", "[]", [], {})
SHAPES = (*PAIRS, ("instruction", "output"), ("instruction", "response"))
NO_INPUT = ("", "<noinput>", "<no input>", "<No input>")
OUTPUTS = ("output", "response")
ROW_WEIGHTS = ("weight", "loss_weight", "sample_weight")
ROW_FLAGS = ("loss_mask", "train", "trainable", "mask", "train_mask", "completion_mask", "assistant_masks")
WANTED = ("label", "kto_tag")
ROW_ASKS = ("mask_history", "train_on_inputs", "train_on_input", "train_on_prompt", "history_mask")
"""Keys by which a row asks to be learned in another way than limbeck does."""
MEDIA = ("images", "image", "audio", "audios", "videos", "video")

ABOVE = frozenset((
    *SYSTEM, "system_message", "system_instruction", "instruction", "instructions", "preamble", "persona", "history",
    "tools", "functions", "input", "inputs", "context", "contexts", "document", "documents", "passage", "passages",
    "article", "body", "definition", "story", "background", "attachments", "files",
))  # fmt: skip
"""Keys beside a list of rows that say something to a model, and of which each row would have to say it."""
ONE_CONVERSATION = re.compile(r"(dialog(ue)?|conv(ersation)?|thread|session|chat)_?id")
TURNS = frozenset((
    "turns", "utterances", "exchanges", "rounds", "comments", "replies", "chat", "thread", "dialog_turns", "dialogs",
    "dialogues", "posts",
))  # fmt: skip
"""Names of lists of what is said one after another."""
PARTS = frozenset((
    "paragraphs", "sections", "segments", "chunks", "lines", "pages", "steps", "sentences", "parts", "cells",
))  # fmt: skip
"""Names of lists of parts of one text, where something stands beside them."""

Found = tuple[str, Document, set[str]]
"""What was recognised, the document, and the columns that were read."""


class RowReader:
    """Reads the rows of one source.

    Args:
        key: its place in the recipe, for errors.
        columns: names that the recipe gives; with one of a text, of messages or of a pair, no others are looked for.
        text: the column of plain text where `columns` names none.
        seen: filled with what is recognised.
    """

    def __init__(self, key: str, columns: Columns, text: str, seen: Seen) -> None:
        self.key, self.columns, self.text, self.seen = key, columns, text, seen
        self.headers: list[tuple[Path, list[str]]] = []
        self.without_rows: list[tuple[Path, list[str]]] = []
        self.guesses = not (columns.messages or columns.prompt or columns.text)

    def document(self, row: Any, where: str) -> Document | None:
        """The document of a row; None where there is nothing to learn.

        Raises:
            InputError: no known shape, or something in it that limbeck does not do; names the place.
        """
        place = Place(self.key, where, self.seen.keys)
        if isinstance(row, str):  # of a text file
            if not self.guesses or self.columns.tools:
                place.refuse("is plain text, without columns", "Leave `columns` out, or name files of rows")
            self.seen.kinds["plain texts"] += 1
            return Document(text=row)
        if not isinstance(row, dict):
            place.refuse("is no object", 'Write {"text": "..."}')
        nulls = {str(name) for name, value in row.items() if value is None}
        row = {str(name): value for name, value in row.items() if value is not None}
        self._check(row, place)
        absent = self._absent(row)
        found = self._recognised(
            {name: value for name, value in row.items() if name not in absent}, nulls | absent, place
        )
        if found is None:
            self.seen.empty += 1
            return None
        kind, document, used = found
        self.seen.kinds[kind] += 1
        self.seen.unread |= set(row) - used - absent
        said = [m for m in document.messages if m["role"] == "assistant" and m.get("learn", True)]
        if document.text is None:
            self._check_flags(row, used, place)
        if document.text is None and not said:
            self.seen.silent += 1
            self.seen.roles.update(UNLEARNED if m["role"] == "assistant" else m["role"] for m in document.messages)
            return None
        return document

    def doubt(self, what: str) -> None:
        """As ``Told``."""
        self.seen.notices.doubt(what)

    def null(self, column: str, cell: str) -> None:
        """As ``Told``."""
        self.seen.nulls[cell, column] += 1

    def header(self, path: Path, names: list[str], *, rows: bool) -> None:
        """As ``Told``."""
        (self.headers if rows else self.without_rows).append((path, names))

    def finish(self) -> None:
        """All files were read.

        Raises:
            InputError: of several CSV files, one is a single line that is no header of the others.
        """
        for path, names in self.without_rows:
            if self.headers and all({*names} != {*other} for _, other in self.headers):
                raise InputError(
                    f"{path} is a single line, read as names of columns that no other file has",
                    key=self.key,
                    fix=f"Write the header before it, as in {self.headers[0][0]}; or leave the file out",
                )

    def beside(self, listed: str, keys: dict[str, Any], where: str) -> None:
        """As ``Told``: what refuses a row refuses a list of rows beside it, and other keys are not read.

        Raises:
            InputError: the rows would be without something that is said to a model, or are parts of one document.
        """
        place = Place(self.key, where, self.seen.keys)
        given = {name: value for name, value in keys.items() if value not in NOTHING and not _blank(value)}
        if listed.lower() in TURNS or (given and listed.lower() in PARTS):
            place.refuse(
                f"holds one document in parts (`{listed}`), which would be read as rows that have nothing to do with "
                "each other",
                "Write each document as one row (`messages` or `text`), or independent rows as a list by itself",
            )
        self._check(given, place)
        self._check_flags(given, set(), place)
        named = self.columns
        read = {*ABOVE, named.text, named.messages, named.prompt, named.response, named.tools, self.text}
        for name, value in given.items():
            said = not isinstance(value, int | float) and (name.lower() in read or name in read)
            if said or ONE_CONVERSATION.fullmatch(name.lower()):
                place.refuse(
                    f"has `{name}` beside its list of rows (`{listed}`), which would be left out",
                    "Write it into each row where it says something, or remove it",
                )
        self.seen.unread |= given.keys()

    def _check(self, row: dict[str, Any], place: Place) -> None:
        if {"chosen", "rejected"} <= set(row) and self.guesses:
            place.refuse(
                "holds a preference (`chosen` and `rejected`), from which limbeck does not learn",
                "Name what to learn: `columns: {messages: chosen}` or `columns: {prompt: prompt, response: chosen}`",
            )
        for name in ROW_WEIGHTS:
            if _number(row.get(name)) not in (None, 1):
                place.refuse(f"has `{name}: {row[name]}`; limbeck weighs all rows alike", f"Remove `{name}`")
        for name in ROW_ASKS:
            if row.get(name):
                place.refuse(f"has `{name}`; limbeck learns every answer, and no question", f"Remove `{name}`")
        for name in MEDIA:
            if row.get(name):
                place.refuse(f"has `{name}`; limbeck learns from text only", "Use data without it")

    def _absent(self, row: dict[str, Any]) -> set[str]:
        """Columns that are blank because the row has another shape, in a table of several."""
        blank = {name for name, value in row.items() if value in NOTHING or _blank(value)} if self.guesses else set()
        if not blank:
            return blank
        absent = {name for name in CONVERSATIONS if row.get(name) in NOTHING} & blank
        absent |= {self.text} & blank if _blank(row.get(self.text)) else set()
        pairs = [pair for pair in PAIRS if blank >= {*pair} and _blank(row[pair[0]]) and _blank(row[pair[1]])]
        return absent.union(*pairs)

    def _check_flags(self, row: dict[str, Any], used: set[str], place: Place) -> None:
        """Of a conversation: what says that not all of it is learned."""
        for name in WANTED:
            if name not in used and _number(row.get(name)) == 0:
                flag = f"`{name}: {row[name]}`".lower()
                place.refuse(
                    f"is an answer that is not wanted ({flag}), from which limbeck does not learn",
                    f"Leave such rows out; remove `{name}` where it says something else",
                )
        for name in ROW_FLAGS:
            value = row.get(name)
            if name not in used and (isinstance(value, list | dict) or _number(value) not in (None, 1)):
                place.refuse(
                    f"has `{name}`, and limbeck learns every answer of a row",
                    "Remove it, or write `train: false` into the messages that are not to be learned",
                )

    def _recognised(self, row: dict[str, Any], lacks: set[str], place: Place) -> Found | None:
        """``lacks``: columns that are null, or blank."""
        named = self.columns
        if not self.guesses:
            if named.messages in row:
                return self._conversation(row, str(named.messages), place)
            if named.prompt in row and named.response in row:
                return self._pair(row, (str(named.prompt), str(named.response)), place)
            if isinstance(row.get(str(named.text)), str):
                return self._plain(row, str(named.text))
            names = (named.messages, named.prompt, named.response, named.text)
            asked = [name for name in names if name and (name == named.text or name not in {*row, *lacks})]
            if {named.messages, named.text} & lacks or (named.prompt and not asked):
                return None
            self._unknown(row, asked, place)
        if isinstance(row.get("messages"), list) and row["messages"]:
            return self._conversation(row, "messages", place)
        half = _is_half(row, lacks)
        if half and not _whole_pair(row, lacks):
            return None
        if not half and all(isinstance(row.get(name), str) for name in FIRST_PAIR):
            self._check_pair(row, place)
            return self._pair(row, FIRST_PAIR, place)
        if isinstance(row.get(self.text), str) and not half:
            return self._plain(row, self.text)
        if conversation := next((name for name in CONVERSATIONS if is_list(row.get(name))), None):
            return self._conversation(row, conversation, place)
        if isinstance(row.get("instruction"), str) and any(isinstance(row.get(name), str) for name in OUTPUTS):
            return self._alpaca(row, place)
        if pair := _pair_in(row, lacks):
            row = {pair[0]: "", **row}
            self._check_pair(row, place)
            return self._pair(row, pair, place)
        if {self.text, *CONVERSATIONS} & lacks or any(
            lacks & {*pair} and lacks | row.keys() >= {*pair} for pair in SHAPES
        ):
            return None
        self._unknown(row, [], place)

    @staticmethod
    def _plain(row: dict[str, Any], name: str) -> Found | None:
        text = row[name]
        return (f"plain texts (`{name}`)", Document(text=text), {name}) if text.strip() else None

    def _tools(self, row: dict[str, Any], used: set[str], place: Place) -> tuple[dict[str, Any], ...]:
        column = self.columns.tools or next((name for name in TOOLS if name in row), None)
        if column is None or column not in row:
            return ()
        used.add(column)
        return tools_of(row[column], place.inside(f"`{column}`"))

    @staticmethod
    def _check_pair(row: dict[str, Any], place: Place) -> None:
        if row.get("context"):
            place.refuse(
                "has a `context`, which would be left out",
                "Put it into the question; or name the columns, `columns: {prompt: ..., response: ...}`",
            )

    def _unknown(self, row: dict[str, Any], asked: list[str], place: Place) -> NoReturn:
        has = ", ".join(f"`{name}` ({kind_of(value)})" for name, value in list(row.items())[:12]) or "nothing"
        lacks = " and no ".join(f"text in `{name}`" if name == self.columns.text else f"`{name}`" for name in asked)
        place.refuse(
            f"has no {lacks}; it has {has}"
            if asked
            else f"holds no document in a shape that limbeck knows; it has {has}",
            "Name its columns: `columns: {text: ...}`, `{messages: ...}` or `{prompt: ..., response: ...}`"
            + ("; questions without answers go into `data.prompts`" if any(q in row for q, _ in SHAPES) else ""),
        )

    @staticmethod
    def _told(row: dict[str, Any], messages: list[Message], used: set[str], place: Place) -> list[Message]:
        """The messages, after what stands for a system message in a column of its own."""
        columns = [name for name in SYSTEM if name in row and name not in used]
        said = {f"`{name}`": text for name in columns if (text := _system(row[name], name, place))}
        used.update({*SYSTEM} & set(row))
        if not said:
            return messages
        own = messages[:1] if messages and messages[0]["role"] == "system" else []
        if own:
            said = {"`system` message": own[0]["content"], **said}
        first, *others = said
        if other := next((name for name in others if said[name].strip() != said[first].strip()), None):
            place.refuse(f"has a {first} and a {other} that differ", "Keep one of them")
        return messages if own else [*_says("system", said[first]), *messages]

    def _kind(self, kind: str, row: dict[str, Any], used: set[str]) -> str:
        """With the columns beside it that are read."""
        names = dict.fromkeys((*SYSTEM, "history", *TOOLS, self.columns.tools)) if len(used) > 1 else ()
        read = [name for name in names if name in used and row.get(str(name)) not in NOTHING]
        beside = [f"`{name}`" for name in read if f"`{name}`" not in kind]
        return f"{kind} with {', '.join(beside)}" if beside else kind

    def _conversation(self, row: dict[str, Any], name: str, place: Place) -> Found:
        used = {name}
        messages = self._told(row, messages_of(row[name], place.inside(f"`{name}`")), used, place)
        tools = self._tools(row, used, place)
        shared = '"from"' in row[name] if isinstance(row[name], str) else any("from" in m for m in row[name])
        kind = f"{'ShareGPT ' if shared else ''}conversations (`{name}`)"
        self._refuse_history(row, place)
        return self._kind(kind, row, used), Document(messages=tuple(messages), tools=tools), used

    def _history(self, row: dict[str, Any], used: set[str], place: Place) -> list[Message]:
        """Earlier questions and answers in a column of their own, as Alpaca's and ms-swift's rows have them."""
        history = row.get("history") or []
        if "history" in used or (history and not isinstance(history, list) and not self.guesses):
            return []
        if not isinstance(history, list):
            place.refuse(f"has a `history` that is {kind_of(history)}, not a list")
        used |= {"history"} & set(row)
        messages: list[Message] = []
        for turn in history:
            if not (isinstance(turn, list | tuple) and len(turn) == 2 and all(isinstance(t, str) for t in turn)):
                place.refuse("has a turn in `history` that is no list of a question and an answer")
            messages += [*_says("user", turn[0]), *_says("assistant", turn[1])]
        return messages

    def _refuse_history(self, row: dict[str, Any], place: Place) -> None:
        if self.guesses and isinstance(row.get("history"), list) and row["history"]:
            place.refuse(
                "has a `history` beside messages, which would be left out", "Put it into the messages, or remove it"
            )

    def _alpaca(self, row: dict[str, Any], place: Place) -> Found | None:
        outputs = [name for name in OUTPUTS if isinstance(row.get(name), str)]
        output = next((name for name in outputs if not _blank(row[name])), outputs[0])
        used = {"instruction", output} | ({*INPUTS} & set(row))
        asked = [row["instruction"]]
        for name in INPUTS:
            given = row.get(name, "")
            if not isinstance(given, str):
                place.refuse(f"has an `{name}` that is {kind_of(given)}, not text")
            asked += [given] if given.strip() not in NO_INPUT else []
        question = "\n\n".join(part for part in asked if part.strip())
        if not row[output].strip() or not question:
            return None
        said = [*self._history(row, used, place), *_says("user", question), *_answered(row[output], output, place)]
        messages = self._told(row, said, used, place)
        tools = self._tools(row, used, place)
        shown = ("instruction", *(name for name in INPUTS if name in row), output)
        kind = f"Alpaca rows ({', '.join(f'`{name}`' for name in shown)})"
        return self._kind(kind, row, used), Document(messages=tuple(messages), tools=tools), used

    def _pair(self, row: dict[str, Any], pair: tuple[str, str], place: Place) -> Found | None:
        prompt, answer = row[pair[0]], row[pair[1]]
        used = {*pair}
        kind = f"pairs (`{pair[0]}`, `{pair[1]}`)"
        for name, value in zip(pair, (prompt, answer), strict=True):
            if not isinstance(value, str | list):
                place.refuse(f"has a `{name}` that is {kind_of(value)}, not text and no list of messages")
        tools = self._tools(row, used, place)
        if not isinstance(prompt, str) or not isinstance(answer, str) or _says_turns(prompt) or says_turns(answer):
            self._refuse_history(row, place)
            messages = self._told(row, self._turns(prompt, answer, pair, place), used, place)
            kind = self._kind(f"{kind} of messages", row, used)
            return kind, Document(messages=tuple(messages), tools=tools), used
        if not answer.strip():
            return None
        turns = [*self._history(row, used, place), *_says("user", prompt), *_says("assistant", answer)]
        messages = self._told(row, turns, used, place)
        # Without a template, a prompt and its response are joined as they are; other pairs would run together.
        chat = len(messages) > 2 or (self.guesses and pair not in (FIRST_PAIR, CONTINUED))
        template = chat or pair != CONTINUED
        if template and not prompt.strip():
            return None
        if tools and not template:
            place.refuse("has tools beside a `completion` that no template is put around", "Write lists of messages")
        if pair == CONTINUED:
            kind += " in a chat template" if template else " as they are"
        kind = self._kind(kind, row, used)
        return kind, Document(messages=tuple(messages), chat=chat, template=template, tools=tools), used

    @staticmethod
    def _turns(prompt: Any, answer: Any, pair: tuple[str, str], place: Place) -> list[Message]:
        """Only the answer is learned: what an assistant says in the prompt is given."""

        def turns(value: Any, name: str, role: str) -> list[Message]:
            if isinstance(value, str) and says_turns(value):
                return said_turns(value, place.inside(f"`{name}`"))
            # An answer may be JSON itself: with speakers that are not known only after a prompt that is messages.
            if isinstance(value, str) and not says_messages(value):
                return _says(role, value)
            return messages_of(value, place.inside(f"`{name}`"))

        asked, said = turns(prompt, pair[0], "user"), turns(answer, pair[1], "assistant")
        _check_answer(said, pair[1], place)
        return [*({**m, "learn": False} if m["role"] == "assistant" else m for m in asked), *said]


def _blank(value: Any) -> bool:
    return isinstance(value, str) and (not value or value.isspace())


def _is_half(row: dict[str, Any], lacks: set[str]) -> bool:
    """Whether a row has a prompt or its response and lacks the other, or has a blank there. No text beside it stands
    for both; another pair may."""
    said = [name for name in FIRST_PAIR if isinstance(row.get(name), str) and not _blank(row[name])]
    return len(said) == 1 and all(name in said or name in lacks or _blank(row.get(name)) for name in FIRST_PAIR)


def _whole_pair(row: dict[str, Any], lacks: set[str]) -> tuple[str, str] | None:
    """The first pair that a row has without blanks; null is blank, and the prompt of a completion may be."""
    if CONTINUED[0] in lacks and isinstance(row.get(CONTINUED[1]), str):
        row = {CONTINUED[0]: "", **row}

    def is_whole(pair: tuple[str, str]) -> bool:
        return not any(_blank(row[name]) for name in (pair[1:] if pair == CONTINUED else pair))

    return next((pair for pair in PAIRS if pair[0] in row and pair[1] in row and is_whole(pair)), None)


def _pair_in(row: dict[str, Any], lacks: set[str]) -> tuple[str, str] | None:
    """The first pair that a row has; one without blanks before others."""
    there = (pair for pair in PAIRS if pair[0] in row and pair[1] in row)
    return _whole_pair(row, lacks) or next(there, None)


def _says_turns(prompt: str) -> bool:
    return says_messages(prompt) or says_turns(prompt)


def _check_answer(said: list[Message], name: str, place: Place) -> None:
    if said and said[0]["role"] in ("system", "user"):
        place.refuse(
            f"has a `{name}` that begins with a turn of `{said[0]['role']}`",
            f"If it is the whole conversation, write `columns: {{messages: {name}}}`",
        )


def _answered(text: str, name: str, place: Place) -> list[Message]:
    """An answer that is text, or messages in JSON."""
    if not says_turns(text):
        return _says("assistant", text)
    said = said_turns(text, place.inside(f"`{name}`"))
    _check_answer(said, name, place)
    return said


def _says(role: str, content: str) -> list[Message]:
    return [{"role": role, "content": content}]


def _system(value: Any, name: str, place: Place) -> str:
    """The text of a column that stands for a system message: a text, or messages or parts of one."""
    if isinstance(value, str) and (says_turns(value) or _says_parts(value)):
        value = parsed(value, place.inside(f"`{name}`"))
    if value in NOTHING or isinstance(value, str):
        return value if isinstance(value, str) and value.strip() else ""
    inside = place.inside(f"`{name}`")
    given = [value] if isinstance(value, dict) else value
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        place.refuse(f"has a `{name}` that is {kind_of(value)}, not text", "Write its text")
    if not any("role" in each or "from" in each for each in given):
        given = [{"role": "system", "content": given}]
    messages = messages_of(given, inside)
    if any(message["role"] != "system" for message in messages) or len(messages) != 1:
        place.refuse(f"has a `{name}` that is not one message of the `system`", "Write its text")
    return str(messages[0]["content"])


def _says_parts(text: str) -> bool:
    """Whether a text is JSON of parts of text."""
    return lists_only(text, lambda part: part.get("type") in TEXTUAL)


def _number(value: Any) -> float | None:
    """A number, also in a string as CSV has it; None for anything else."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return {"true": 1.0, "false": 0.0}.get(value.strip().lower())
    if not isinstance(value, bool | int | float) or value != value:  # NaN is what is missing in pandas
        return None
    return float(value)
