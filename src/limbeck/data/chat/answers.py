"""Where the assistant's words stand in a rendered conversation, whatever the chat template does to it.

The conversation is rendered twice: as it is, and with a numbered mark at both ends of every piece of text, which no
template knows. Taken out again, the marks must leave the first rendering; then they say where each piece went. What the
template wrote around an answer is between the marks of two turns: the header that asks for it, and what ends it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from limbeck.data.chat.marks import MARKINGS, THOUGHT, Marked, Span
from limbeck.data.chat.templates import Template, in_parts
from limbeck.data.documents.document import Document
from limbeck.errors import InputError

_NO__TWO_THOUGHTS = re.compile(r"<think>\s*</think>\s*<think>")

DROPPED_TEXT = "the chat template writes nothing of the text that stands beside a tool call"
DROPPED_THOUGHTS = "the chat template writes nothing of the thoughts in a last answer, so they are not learned"
_TWO_THOUGHTS = re.compile(r"<think>\s*</think>\s*<think>")
_NO_THOUGHT = re.compile(r"\s*(?:(?:<think>)?\s*</think>)?\s*")
EMPTY = "an answer is empty: it teaches to say nothing"
ENDLESS = "the chat template writes nothing that ends an answer, so no end is learned"


@dataclass(frozen=True)
class Answer:
    """An answer in a rendered conversation, in characters.

    Attributes:
        start, end: what is learned, from after the header to the end of the token that ends the turn.
        words: within it, the text itself: thoughts, content, and calls as the template writes them.
    """

    start: int
    end: int
    words: tuple[tuple[int, int], ...]


@dataclass
class Rendered:
    """A conversation as text, with its answers. ``remarks``: what should be said of the corpus once."""

    text: str
    answers: list[Answer]
    remarks: set[str] = field(default_factory=set)


def find_answers(document: Document, template: Template) -> Rendered:
    """Render a conversation and find what is learned of it.

    Raises:
        InputError: the template refuses the conversation, writes nothing of a call or of the tools, or its answers
            cannot be found.
    """
    failure: InputError | None = None
    said = [str(m["content"]).strip() for m in document.messages if m["role"] == "assistant"]
    as_it_is = ""
    for form in _FORMS:
        messages = form(document.messages)
        # Parts are for templates that write nothing of a string.
        if messages is None or (form is _parts and as_it_is and all(words in as_it_is for words in said)):
            continue
        try:
            text = template.render(messages, document.tools)
        except InputError as error:
            failure = failure or (error if form is list else None)
            continue
        as_it_is = as_it_is or text
        for marking in MARKINGS:
            marked = Marked.of(document, messages, template, marking, text)
            if marked is not None and not marked.lost_content:
                if _is_misread(marked, messages):
                    break
                return _Finder(document, messages, template, marked).found()
    if failure is not None and not as_it_is:
        raise failure
    raise InputError(
        f"{template.name} rewrites conversations: the assistant's words cannot be found in them",
        key="data.corpus",
        fix=f"Look at the document that begins {document.beginning()!a}, or use another template",
    )


# --------------------------------------------------------------------------------------- forms of a conversation


def _with_arguments(messages: Any, change: Callable[[Any], Any]) -> list[dict[str, Any]]:
    def called(call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        return {**call, "function": {**function, "arguments": change(function.get("arguments", {}))}}

    return [{**m, "tool_calls": [called(c) for c in m["tool_calls"]]} if m.get("tool_calls") else m for m in messages]


def _arguments_as_text(messages: Any) -> list[dict[str, Any]] | None:
    if not any(message.get("tool_calls") for message in messages):
        return None
    return _with_arguments(messages, lambda value: json.dumps(value, ensure_ascii=False))


def _parts(messages: Any) -> list[dict[str, Any]]:
    return in_parts(messages)


def _thoughts_apart(messages: Any) -> list[dict[str, Any]] | None:
    def apart(message: dict[str, Any]) -> dict[str, Any]:
        found = THOUGHT.match(message["content"]) if message["role"] == "assistant" else None
        return {**message, "reasoning_content": found[2].strip(), "content": found[4].lstrip()} if found else message

    changed = [apart(message) for message in messages]
    return changed if changed != list(messages) else None


_FORMS: tuple[Callable[[Any], list[dict[str, Any]] | None], ...] = (list, _arguments_as_text, _thoughts_apart, _parts)
"""A call's arguments are an object to most templates and text to some; thoughts may stand in the content or beside it;
content is text to most and parts to some."""


def _is_misread(marked: Marked, messages: list[dict[str, Any]]) -> bool:
    """Whether the template wants another form: it printed arguments or parts as Python prints them, or wrote an empty
    thought before the thought that stands in the content."""
    text = marked.text
    others = [span for i, m in enumerate(messages) if m["role"] != "assistant" for span in marked.own(i)]
    if any(not _inside(found.span(), others) for found in _TWO_THOUGHTS.finditer(text)):
        return True
    for i, message in enumerate(messages):
        if isinstance(message["content"], list) and repr(message["content"]) in text:
            return True
        called = min((start for start, _ in marked.calls.get(i, ())), default=0)
        region = text[called : min((start for start, _ in others if start > called > 0), default=len(text))]
        for call in message.get("tool_calls") or ():
            arguments = call["function"].get("arguments")
            if isinstance(arguments, dict) and arguments and repr(arguments) in region:
                return True
    return False


def _inside(span: Span, others: list[Span]) -> bool:
    return any(start <= span[0] and span[1] <= end for start, end in others)


# ------------------------------------------------------------------------------------------------------ finding


class _Finder:
    """From where the pieces stand to what is learned."""

    def __init__(self, document: Document, messages: list[dict[str, Any]], template: Template, marked: Marked) -> None:
        self.document, self.messages, self.template, self.marked = document, messages, template, marked
        self.text = marked.text
        self.rendered = Rendered(marked.text, [])

    def found(self) -> Rendered:
        self._check_tools()
        asked = max((i for i, m in enumerate(self.messages) if m["role"] == "user"), default=-1)
        before = 0
        for i, message in enumerate(self.messages):
            if message["role"] == "assistant":
                self._check_call(i)
                group = _together(self.marked.own(i), self._others(i))
                previous = max(
                    [before, *(e for j in range(i) for _, e in self.marked.own(j) if e <= _first(group, self.text))]
                )
                answers = self._answers(i, group, previous)
                before = max([before, *(answer.end for answer in answers)])
                if message.get("learn", True):
                    self.rendered.answers += answers
                    self._remark(i, is_last=i > asked)
            else:
                before = max([before, *(end for _, end in self.marked.own(i))])
        return self.rendered

    # what is refused, and what is said

    def _check_tools(self) -> None:
        tools = [t["function"]["name"] for t in self.document.tools if isinstance(t.get("function"), dict)]
        if "tool" in self.marked.lost.get(-1, ()) or any(str(name) not in self.text for name in tools):
            raise InputError(
                f"{self.template.name} writes nothing of the conversation's `tools`",
                key="data.corpus",
                fix="Use a tokenizer whose template writes them, or remove them from the data",
            )

    def _check_call(self, i: int) -> None:
        calls = self.messages[i].get("tool_calls") or ()
        if not calls:
            return
        lost = self.marked.lost.get(i, set())
        names = [str(call["function"]["name"]) for call in calls]
        unmarked = not self.marked.marking.calls and any(name not in self.text for name in names)
        # Kimi writes a call's id, which holds its name.
        ids = [str(call.get("id", "")) for call in calls]
        by_id = all(name in each and each in self.text for name, each in zip(names, ids, strict=True))
        arguments = [call["function"].get("arguments") for call in calls]
        keys = [str(key) for given in arguments if isinstance(given, dict) for key in given]
        missing = bool(lost & ({"argument"} if by_id else {"name", "argument"}))
        if missing or unmarked or any(key not in self.text for key in keys):
            raise InputError(
                f"{self.template.name} writes nothing of a tool call, and would teach to say nothing in its place",
                key="data.corpus",
                fix="Use a tokenizer whose template writes `tool_calls`, or leave those conversations out",
            )

    def _remark(self, i: int, *, is_last: bool) -> None:
        message, lost = self.messages[i], self.marked.lost.get(i, set())
        if "content" in lost and message.get("tool_calls"):
            self.rendered.remarks.add(DROPPED_TEXT)
        has_thoughts = bool(self.marked.thoughts.get(i))
        if is_last and lost & {"thoughts", "inner"} and not has_thoughts:
            self.rendered.remarks.add(DROPPED_THOUGHTS)
        if not message.get("tool_calls") and not self.marked.content.get(i) and not has_thoughts:
            self.rendered.remarks.add(EMPTY)

    # where an answer begins and ends

    def _others(self, i: int) -> list[int]:
        return sorted(start for j in range(len(self.messages)) if j != i for start, _ in self.marked.own(j))

    def _answers(self, i: int, group: list[list[tuple[int, int]]], previous: int) -> list[Answer]:
        others = self._others(i)
        found: list[Answer] = []
        if not group and not self.messages[i].get("tool_calls"):
            return found  # no words, and no place for them: nothing can be learned
        for n, spans in enumerate(group or [[]]):
            limit = spans[0][0] if spans else next((s for s in others if s >= previous), len(self.text))
            start = self._start(i, previous, limit, has_words=bool(spans)) if n == 0 else spans[0][0]
            body_end = spans[-1][1] if spans else start
            stop = next((s for s in others if s >= body_end), len(self.text))
            goes_on = n + 1 < len(group)
            end = (
                self._end_by_what_follows(i, body_end, self.text[body_end:stop], goes_on=True)
                if goes_on
                else self._end(i, body_end, stop)
            )
            said = {*self.marked.content.get(i, ()), *self.marked.thoughts.get(i, ())}
            words = self._joined(i, [span for span in spans if span in said])
            found.append(Answer(start, end, (*words, *self._call_words(i, spans, (start, end), words))))
            previous = end
        return found

    def _start(self, i: int, previous: int, limit: int, *, has_words: bool) -> int:
        """After the header that asks for the answer, or as much of it as stands here: a template may ask for thoughts
        (``<|im_start|>assistant\\n<think>\\n``) and then write none."""
        region = self.text[previous:limit]
        pieces = self.template.pieces(self.template.surroundings.header)
        while pieces:
            header = "".join(pieces)
            at = region.rfind(header) if has_words else region.find(header)
            if at >= 0 and header.strip():
                return previous + at + len(header)
            pieces.pop()
            if "<think>" in pieces:  # what was asked for is not what stands here: thoughts are learned from their mark
                pieces = pieces[: pieces.index("<think>")]
        # No such header: a template that goes on in the same turn, or asks for nothing.
        try:
            prompt = self.template.render(self.messages[:i], self.document.tools, prompt=True)
        except InputError:
            prompt = ""
        if i and self.text.startswith(prompt) and previous <= len(prompt) <= limit:
            return len(prompt)
        if has_words and not self.messages[i].get("tool_calls"):
            return limit
        tag = self.template.last_tag(region) if has_words else None
        return previous + tag[0] if tag and not region[tag[1] :].strip() else previous

    def _end(self, i: int, body_end: int, stop: int) -> int:
        """After the token that ends the turn."""
        around, region = self.template.surroundings, self.text[body_end:stop]
        is_last = i == len(self.messages) - 1
        if around.closing is not None and (at := region.find(around.closing)) >= 0:
            return body_end + at + len(around.closing)
        if is_last and (around.closing is not None or not around.known):
            tag = self.template.last_tag(region) if around.known else self.template.first_tag(region)
            return body_end + tag[1] if tag else self._endless(body_end, region)
        if is_last:
            opening = self.template.opening_of_next(self.messages, self.document.tools)
            if not opening:
                return self._endless(body_end, region)
            self.text += opening
            self.rendered.text = self.text
            return len(self.text)
        if self.messages[i + 1]["role"] == "assistant" and self.template.first_tag(region) is None:
            return stop  # one turn of two messages: what stands between them is written by the model
        if around.closing_before_turn is not None and not self.messages[i].get("tool_calls"):
            at = region.find(around.closing_before_turn)
            if at >= 0:
                return body_end + at + len(around.closing_before_turn)
        return self._end_by_what_follows(i, body_end, region)

    def _end_by_what_follows(self, i: int, body_end: int, region: str, *, goes_on: bool = False) -> int:
        """Where the conversation that ends with this turn and the one that goes on part. ``goes_on``: a result stands
        inside the turn, and the model stops where it begins."""
        own = self._alone(i, body_end)
        same = self.template.common(region, own)
        inside = region[:same]
        around = self.template.surroundings
        if not goes_on and (around.closing is not None or not around.known):
            tag = self.template.last_tag(inside) if around.known else self.template.first_tag(region)
            return body_end + tag[1] if tag else self._endless(body_end, "")
        for found in self.template.tags(region):
            if found.end() > same:
                return body_end + found.end()
        return self._endless(body_end, inside)

    def _alone(self, i: int, body_end: int) -> str:
        """What follows the same words where the conversation ends with their turn."""
        messages = self.messages[: i + 1]
        try:
            alone = self.template.render(messages, self.document.tools)
        except InputError:
            return ""
        last = next((span for span in self.marked.own(i) if span[1] == body_end), None)
        marked = Marked.of(self.document, messages, self.template, self.marked.marking, alone)
        if last is not None and marked is not None:
            number = self.marked.number_of(last)
            span = marked.where.get(number) if number is not None else None
            return alone[span[1] :] if span else ""
        return alone[body_end:] if alone[:body_end] == self.text[:body_end] else ""

    def _joined(self, i: int, words: list[Span]) -> list[Span]:
        """Words in which a literal ``</think>`` stands were no thought, where the template leaves it in its place."""
        content = str(self.messages[i].get("content"))
        if "</think>" in content and "<think>" not in content and len(words) == 2:
            whole = self.text[words[0][0] : words[1][1]]
            if whole in content:
                return [(words[0][0], words[1][1])]
        return words

    def _endless(self, body_end: int, region: str) -> int:
        self.rendered.remarks.add(ENDLESS)
        return body_end + len(region)

    def _call_words(
        self, i: int, spans: list[tuple[int, int]], whole: tuple[int, int], words: list[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        """Calls as the template writes them, without an empty thought before and the token that ends the turn after."""
        calls = sorted(set(self.marked.calls.get(i, ())) & set(spans))
        if not self.messages[i].get("tool_calls") or (self.marked.marking.calls and not calls):
            return []
        first, last = (calls[0][0], calls[-1][1]) if calls else (whole[1], max([whole[0], *(e for _, e in words)]))
        low = max([whole[0], *(end for _, end in words if end <= first)])
        tags = [found.span() for found in self.template.tags(self.text[last : whole[1]])]
        high = min([last + tags[-1][0] if tags else whole[1], *(start for start, _ in words if start >= last)])
        low += len(_NO_THOUGHT.match(self.text[low:high])[0])  # type: ignore[index]
        written = self.text[low:high].rstrip()
        return [(low, low + len(written))] if written else []


def _together(spans: list[tuple[int, int]], others: list[int]) -> list[list[tuple[int, int]]]:
    """Spans in groups with nothing of another message between them: Gemma 4 writes the result of a call inside the
    turn that called."""
    groups: list[list[tuple[int, int]]] = []
    for span in spans:
        if groups and not any(groups[-1][-1][1] <= other < span[0] for other in others):
            groups[-1].append(span)
        else:
            groups.append([span])
    return groups


def _first(groups: list[list[tuple[int, int]]], text: str) -> int:
    return groups[0][0][0] if groups else len(text)
