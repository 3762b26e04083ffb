"""Numbered marks around every piece of text of a conversation: they tell where a chat template writes each.

The conversation is rendered twice: as it is, and with marks that no template knows. Taken out again, they must leave
the first rendering.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from limbeck.data.chat.templates import Messages, Template
from limbeck.data.chat.turns.copies import Copies, Cut
from limbeck.data.chat.turns.surroundings import Span
from limbeck.data.documents.document import Document
from limbeck.errors import InputError

THOUGHT = re.compile(r"\A(\s*(?:<think>)?)(.*?)(</think>)(.*)\Z", re.DOTALL)
_THINK_TAG = re.compile(r"(</?think>)")
REASONING = ("reasoning_content", "reasoning", "thinking")
BRACKETS = (("\u2983", "\u2984"), ("\u27e6", "\u27e7"), ("\u2997", "\u2998"), ("\u27ea", "\u27eb"))
"""Around the number of a mark."""
PLAIN_BRACKETS = (("@@", "@@"), ("##", "##"), ("~~", "~~"))
"""The same in ASCII, for templates that escape or drop everything else."""


@dataclass(frozen=True)
class Marking:
    """What is marked: templates that look at what they are given (does it begin with ``<tool_response>``?) may write
    something else where it is.

    Attributes:
        empties: answers without words, which otherwise leave no trace.
        others: what others than the assistant say.
        calls: names and arguments of calls.
        tools: names of the tools that are defined.
        thoughts: each of several thoughts in a content, and what stands before or between them, by itself: a template
            may leave some of it out.
    """

    empties: bool = True
    others: bool = True
    calls: bool = True
    tools: bool = True
    thoughts: bool = False


MARKINGS = (
    Marking(),
    Marking(empties=False),
    Marking(empties=False, tools=False),
    Marking(empties=False, tools=False, calls=False),
    Marking(empties=False, tools=False, others=False),
    Marking(empties=False, tools=False, calls=False, others=False),
)


def markings_of(messages: Messages) -> Iterator[Marking]:
    """All that can be tried of a conversation, the fullest first."""
    yield from MARKINGS
    if any(message["role"] == "assistant" and is_mixed(message) for message in messages):
        yield from (replace(marking, thoughts=True) for marking in MARKINGS)


def is_mixed(message: dict[str, Any]) -> bool:
    """Whether a content holds several thoughts, or words before one."""
    content = str(message["content"])
    thought = THOUGHT.match(content)
    return thought is not None and ("<think>" in thought[2] or "</think>" in thought[4])


class Marked:
    """Where the pieces of each message stand in a rendered text.

    Attributes:
        text: the rendered text.
        content: by message, spans of its pieces of content (thoughts inside it are a piece of their own).
        thoughts: by message, spans of its reasoning.
        calls: by message, spans of names and arguments of its calls.
        empty: by message, where the words of an answer would stand that has none.
        where: by its message and number in it, the span of a piece.
        everywhere: by message, where its pieces stand, quotations among them.
        lost: by message, kinds of pieces that are not in the text.
        lost_content: an assistant's content of which no piece is in the text, with no call to excuse it.
        lost_place: the place of an answer without words is not in the text.
        lost_part: a thought, and what stands before or behind it, that are marked as one are not in the text.
        beside: thoughts that stand beside a content are in the text.
    """

    def __init__(self, text: str, marking: Marking) -> None:
        self.text, self.marking = text, marking
        self.content: dict[int, list[Span]] = {}
        self.thoughts: dict[int, list[Span]] = {}
        self.calls: dict[int, list[Span]] = {}
        self.empty: dict[int, list[Span]] = {}
        self.where: dict[tuple[int, int], Span] = {}
        self.everywhere: dict[int, list[Span]] = {}
        self.lost: dict[int, set[str]] = {}
        self.lost_content = self.lost_place = self.lost_part = self.beside = False

    def own(self, i: int) -> list[Span]:
        kinds = (self.content, self.thoughts, self.calls, self.empty)
        return sorted(span for kind in kinds for span in kind.get(i, ()))

    def number_of(self, i: int, end: int) -> int | None:
        """The number, among the pieces of message i, of the one that ends there."""
        return next((n for (j, n), span in self.where.items() if j == i and span[1] == end), None)

    @classmethod
    def of(
        cls, document: Document, messages: list[dict[str, Any]], template: Template, marking: Marking, text: str
    ) -> Marked | None:
        """None where the marks change what the template writes."""
        given = text + str(messages)
        for kind in (BRACKETS, PLAIN_BRACKETS):
            brackets = next((pair for pair in kind if not any(mark in given for mark in pair)), None)
            found = cls._with(brackets, document, messages, template, marking, text) if brackets else None
            if found is not None:
                return found
        return None

    @classmethod
    def _with(
        cls,
        brackets: tuple[str, str],
        document: Document,
        messages: list[dict[str, Any]],
        template: Template,
        marking: Marking,
        text: str,
    ) -> Marked | None:
        marker = Marker(*brackets)
        marked_messages = [marker.message(i, m, marking) for i, m in enumerate(messages)]
        tools = [marker.tool(t) for t in document.tools] if marking.tools else list(document.tools)
        try:
            rendered = template.render(marked_messages, tools)
        except InputError:
            return None
        copies, plain = marker.copies(rendered)
        if plain != text:
            return None
        found = cls(text, marking)

        def cut(end: int, *, prompt: bool) -> Cut | None:
            try:
                return marker.copies(template.render(marked_messages[:end], tools, prompt=prompt))
            except InputError:
                return None

        spans = Copies(copies, marker.pieces, text).chosen(messages, document.tools, template, cut)
        for n, places in copies.items():
            found.everywhere.setdefault(marker.pieces[n][0], []).extend(places)
        kinds = {
            **dict.fromkeys(("content", "part"), found.content),
            **dict.fromkeys(("inner", "thoughts"), found.thoughts),
            **dict.fromkeys(("name", "argument"), found.calls),
            "empty": found.empty,
        }
        counts: Counter[int] = Counter()
        for n, (i, kind) in enumerate(marker.pieces):
            span = spans.get(n)
            if span is None:
                found.lost.setdefault(i, set()).add(kind)
            elif kind in kinds:
                kinds[kind].setdefault(i, []).append(span)
                found.where[i, counts[i]] = span
            counts[i] += 1
        found.beside = any(marker.pieces[n][1] == "thoughts" for n in spans)
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                lost = found.lost.get(i, ())
                found.lost_part |= "inner" in lost and is_mixed(message) and not marking.thoughts
                found.lost_place |= "empty" in lost and not found.own(i)
                is_there = any((i, "content") == marker.pieces[n] for n in spans)
                found.lost_content |= "content" in lost and not is_there and not message.get("tool_calls")
        return found


class Marker:
    """Puts marks around pieces of text, and reads them back."""

    def __init__(self, left: str, right: str) -> None:
        self.left, self.right = left, right
        self.pieces: list[tuple[int, str]] = []

    def _around(self, i: int, kind: str, text: str) -> str:
        """Marks go inside the spaces at both ends, which templates strip; nothing is put into an empty text."""
        core = text.strip()
        if not core:
            return text
        at = text.index(core)
        n = len(self.pieces)
        self.pieces.append((i, kind))
        begin, end = (f"{self.left}{2 * n + is_end}{self.right}" for is_end in (0, 1))
        return text[:at] + begin + core + end + text[at + len(core) :]

    def _content(self, i: int, text: str, *, empties: bool, thoughts: bool) -> str:
        thought = THOUGHT.match(text)
        if thought is None:
            return self._words(i, text, empties=empties)
        opening, inner, closing, rest = thought.groups()
        before, tag, inner = inner.rpartition("<think>") if thoughts else ("", "", inner)
        marked = opening + self._around(i, "part", before) + tag + self._around(i, "inner", inner) + closing
        *parts, last = _THINK_TAG.split(rest) if thoughts else [rest]
        marked += "".join(part if n % 2 else self._around(i, "part", part) for n, part in enumerate(parts))
        return marked + self._words(i, last, empties=empties)

    def _words(self, i: int, text: str, *, empties: bool) -> str:
        """What was said. Of nothing the place is marked, after its spaces: templates strip those before more often."""
        if text.strip() or not empties:
            return self._around(i, "content", text)
        n = len(self.pieces)
        self.pieces.append((i, "empty"))
        return f"{text}{self.left}{2 * n}{self.right}{self.left}{2 * n + 1}{self.right}"

    def message(self, i: int, message: dict[str, Any], marking: Marking) -> dict[str, Any]:
        own = message["role"] == "assistant"
        if not (own or marking.others):
            return message
        marked = dict(message)
        content = message.get("content")
        empties = marking.empties and not message.get("tool_calls")

        def inside(text: str) -> str:
            if not own:
                return self._around(i, "content", text)
            return self._content(i, text, empties=empties, thoughts=marking.thoughts)

        if isinstance(content, str):
            marked["content"] = inside(content)
        elif isinstance(content, list):
            marked["content"] = [{"type": "text", "text": inside(content[0]["text"])}]
        for key in REASONING:
            if isinstance(message.get(key), str):
                marked[key] = self._around(i, "thoughts", message[key])
        if message.get("tool_calls") and marking.calls:
            marked["tool_calls"] = [self._call(i, call) for call in message["tool_calls"]]
        return marked

    def _call(self, i: int, call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        arguments = function.get("arguments", {})
        marked = self._around(i, "argument", arguments) if isinstance(arguments, str) else self._leaves(i, arguments)
        return {
            **call,
            "function": {**function, "name": self._around(i, "name", function["name"]), "arguments": marked},
        }

    def _leaves(self, i: int, value: Any) -> Any:
        if isinstance(value, str):
            return self._around(i, "argument", value)
        if isinstance(value, dict):
            return {key: self._leaves(i, inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._leaves(i, inner) for inner in value]
        return value

    def tool(self, tool: dict[str, Any]) -> dict[str, Any]:
        function = tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return tool
        return {**tool, "function": {**function, "name": self._around(-1, "tool", function["name"])}}

    def copies(self, rendered: str) -> tuple[dict[int, list[Span]], str]:
        """Of each piece where it stands in the text without marks, as often as it does. Where one of its ends is
        missing it is nowhere."""
        begun: dict[int, int] = {}
        found: dict[int, list[Span]] = {}
        plain: list[str] = []
        length = at = 0
        for mark in re.finditer(f"{re.escape(self.left)}(\\d+){re.escape(self.right)}", rendered):
            plain.append(rendered[at : mark.start()])
            length += mark.start() - at
            at = mark.end()
            n, is_end = divmod(int(mark[1]), 2)
            if not is_end:
                begun[n] = length
            elif n in begun:
                found.setdefault(n, []).append((begun.pop(n), length))
        plain.append(rendered[at:])
        return found, "".join(plain)
