"""From a row of a table to a document, in the shapes that people have.

``messages``; ShareGPT's ``conversations``; Alpaca's ``instruction``, ``input`` and ``output``; pairs of a prompt and an
answer, as strings or lists of messages; plain text. What a row asks for and limbeck does not do is refused by its name.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, NoReturn

from limbeck.data.documents.document import Document
from limbeck.data.documents.messages import (
    Message,
    Place,
    is_list,
    kind_of,
    messages_of,
    printable,
    says_messages,
    tools_of,
)
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
UNLEARNED = "assistant marked as not to be learned"
NAMED = 8  # unread columns that are named

Found = tuple[str, Document, set[str]]
"""What was recognised, the document, and the columns that were read."""


@dataclass
class Seen:
    """What was recognised in a source.

    Attributes:
        kinds: how many rows of which shape.
        unread: columns that nothing was read from.
        keys: keys of messages that nothing was read from.
        files: of a folder, files that are not read.
        empty: rows whose text, question or answer is empty; they are left out.
        silent: conversations in which there is nothing to learn; they are left out.
        roles: who speaks in those.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    unread: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)
    empty: int = 0
    silent: int = 0
    roles: set[str] = field(default_factory=set)

    def line(self) -> str:
        """What was read, in a line."""
        kinds = "; ".join(f"{count:,} {kind}" for kind, count in self.kinds.most_common()) or "nothing"
        columns = {name or "a column without a name" for name in self.unread}
        unread = ", ".join(listed for listed in (_listed(columns), _files(self.files)) if listed)
        said = [kinds, f"not read: {unread}" if unread else "", _listed(self.keys, "not read in messages: ")]
        return printable("; ".join(filter(None, said)))

    def left_out(self) -> str | None:
        """What was left out, in a line; None: nothing."""
        parts = []
        if self.silent:
            roles = ", ".join(sorted(self.roles)[:5])
            what = "that are to be learned " if UNLEARNED in self.roles else ""
            parts.append(f"{self.silent:,} of its conversations hold no words of an `assistant` {what}(roles: {roles})")
        if self.empty:
            parts.append(f"{self.empty:,} of its rows hold no text, no question or no answer")
        return printable(", and ".join(parts)) or None


def _listed(names: set[str], before: str = "") -> str:
    if not names:
        return ""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{before}{', '.join(sorted(names)[:NAMED])}{more}"


def _files(names: set[str]) -> str:
    if len(names) <= 3:
        return ", ".join(sorted(names))
    endings = Counter(PurePath(name).suffix or PurePath(name).name for name in names)
    shown = ", ".join(sorted(endings, key=lambda ending: (-endings[ending], ending))[:NAMED])
    return f"{len(names):,} files ({shown}{', …' if len(endings) > NAMED else ''})"


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
        self.guesses = not (columns.messages or columns.prompt or columns.text)

    def document(self, row: Any, where: str) -> Document | None:
        """The document of a row; None where there is nothing to learn.

        Raises:
            InputError: no known shape, or something in it that limbeck does not do; names the place.
        """
        place = Place(self.key, where, self.seen.keys)
        if isinstance(row, str):  # of a text file
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
        if all(isinstance(row.get(name), str) for name in FIRST_PAIR):
            self._check_pair(row, place)
            return self._pair(row, FIRST_PAIR, place)
        if isinstance(row.get(self.text), str):
            return self._plain(row, self.text)
        if conversation := next((name for name in CONVERSATIONS if is_list(row.get(name))), None):
            return self._conversation(row, conversation, place)
        if isinstance(row.get("instruction"), str) and any(isinstance(row.get(name), str) for name in OUTPUTS):
            return self._alpaca(row, place)
        if pair := next((pair for pair in PAIRS if pair[0] in row and pair[1] in row), None):
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
        output = next(name for name in OUTPUTS if isinstance(row.get(name), str))
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
        said = [*self._history(row, used, place), *_says("user", question), *_says("assistant", row[output])]
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
        # An answer may be JSON itself: it is taken for messages only after a prompt that is.
        if isinstance(prompt, list) or isinstance(answer, list) or says_messages(prompt):
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
            if isinstance(value, str) and not says_messages(value):
                return _says(role, value)
            return messages_of(value, place.inside(f"`{name}`"))

        asked, said = turns(prompt, pair[0], "user"), turns(answer, pair[1], "assistant")
        if said and said[0]["role"] in ("system", "user"):
            place.refuse(
                f"has a `{pair[1]}` that begins with a turn of `{said[0]['role']}`",
                f"If it is the whole conversation, write `columns: {{messages: {pair[1]}}}`",
            )
        return [*({**m, "learn": False} if m["role"] == "assistant" else m for m in asked), *said]


def _blank(value: Any) -> bool:
    return isinstance(value, str) and (not value or value.isspace())


def _says(role: str, content: str) -> list[Message]:
    return [{"role": role, "content": content}]


def _system(value: Any, name: str, place: Place) -> str:
    """The text of a column that stands for a system message: a text, or messages or parts of one."""
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
