"""Where the assistant's words stand in a rendered conversation, whatever the chat template does to it.

The conversation is rendered twice: as it is, and with a numbered mark at both ends of every piece of text, which no
template knows. Taken out again, the marks must leave the first rendering; then they say where each piece went. What the
template wrote around an answer is between the marks of two turns: the header that asks for it, and what ends it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from limbeck.data.chat.rendering.forms import FORMS, doubles_thoughts, prints_python
from limbeck.data.chat.rendering.marks import MARKINGS, REASONING, Marked, is_mixed, markings_of
from limbeck.data.chat.templates import Template, in_parts
from limbeck.data.chat.turns.remarks import (
    ASKED_NOTHING,
    DATED,
    DOUBLED_THOUGHTS,
    DROPPED_MESSAGE,
    DROPPED_PART,
    DROPPED_TEXT,
    DROPPED_THOUGHTS,
    EMPTY,
    ENDLESS,
    HEADED,
    NOWHERE,
    SECOND_THOUGHT,
)
from limbeck.data.chat.turns.surroundings import (
    ANSWER,
    LATER,
    PAIRS,
    Span,
    headers,
    is_closing,
    misplaced,
    refusal,
    says,
    surroundings_of,
    writes_thoughts,
)
from limbeck.data.documents.document import Document
from limbeck.errors import InputError

_NO_THOUGHT = re.compile(r"\s*(?:(?:<think>)?\s*</think>)?\s*")
_BEGUN_THOUGHT = re.compile(r"<think>\s*(?:</think>\s*)?\Z")
_WORD = re.compile(r"\w")


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
    said = said if any(said) else [str(m["content"]).strip() for m in document.messages]
    as_it_is = ""
    second_best: _Finder | None = None
    doubles = False
    for form in FORMS:
        messages = form(document.messages)
        # Parts are for templates that write nothing of a string.
        if messages is None or (form is in_parts and as_it_is and all(words in as_it_is for words in said)):
            continue
        try:
            text = template.render(messages, document.tools)
        except InputError as error:
            failure = failure or (error if form is list else None)
            continue
        as_it_is = as_it_is or text
        partial: _Finder | None = None
        for marking in markings_of(messages):
            marked = Marked.of(document, messages, template, marking, text)
            if marked is not None and not marked.lost_content:
                if prints_python(marked, messages):
                    break
                finder = _Finder(document, messages, template, marked)
                if doubles_thoughts(marked, messages):  # another form may write them in their place
                    finder.rendered.remarks.add(DOUBLED_THOUGHTS)
                    second_best, doubles = second_best or finder, True
                    break
                if doubles and not (marked.beside or writes_thoughts(template, document.tools)):
                    break
                if marked.lost_place:  # of an empty answer: another form may show it
                    second_best = second_best or finder
                    break
                if marked.lost_part:  # another marking may show it
                    partial = partial or finder
                    continue
                return finder.found()
        if partial is not None:
            return partial.found()
    if second_best is not None:
        return second_best.found()
    if failure is not None and not as_it_is:
        raise failure
    raise InputError(
        f"{template.name} rewrites conversations: the assistant's words cannot be found in them",
        key="data.corpus",
        fix=f"Look at the document that begins {document.beginning()!a}, or use another template",
    )


# ------------------------------------------------------------------------------------------------------ finding


class _Finder:
    """From where the pieces stand to what is learned."""

    def __init__(self, document: Document, messages: list[dict[str, Any]], template: Template, marked: Marked) -> None:
        self.document, self.messages, self.template, self.marked = document, messages, template, marked
        self.text = marked.text
        self.rendered = Rendered(marked.text, [])
        self.around = surroundings_of(template, messages, document.tools)
        blind = list(self.text)
        for spans in marked.everywhere.values():
            for start, end in spans:
                blind[start:end] = " " * (end - start)
        self._foreign_to: tuple[int, list[Span]] = (-1, [])
        self.blind = "".join(blind)
        """The text without what was said: a tag in it is the template's own."""

    def found(self) -> Rendered:
        self._check_tools()
        self._remark_dropped()
        self._remark_date()
        asked = max((i for i, m in enumerate(self.messages) if m["role"] == "user"), default=-1)
        ends: list[int] = []
        for i, message in enumerate(self.messages):
            if message["role"] == "assistant":
                self._check_call(i)
                spans = self.marked.own(i) or self._place_of_nothing(i)
                group = _together(spans, self._others(i))
                first = _first(group, self.text)
                others = [end for j in range(len(self.messages)) if j != i for _, end in self.marked.own(j)]
                answers = self._answers(i, group, max((end for end in [*ends, *others] if end <= first), default=0))
                ends += [answer.end for answer in answers]
                if message.get("learn", True):
                    for answer in answers:
                        self.rendered.answers += self._carved(i, answer)
                    self._remark(i, is_last=i > asked, is_somewhere=bool(spans or message.get("tool_calls")))
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

    def _remark_dropped(self) -> None:
        if any(m["role"] == "user" and not str(m["content"]).strip() for m in self.messages):
            self.rendered.remarks.add(ASKED_NOTHING)
        """An answer is learned without what it answers to, where the template does not know a role."""
        written = "".join(self.text.split())
        for i, message in enumerate(self.messages):
            content = message.get("content")
            if message["role"] == "assistant" or not isinstance(content, str) or not content.strip():
                continue
            if self.marked.marking.others:
                lost = "content" in self.marked.lost.get(i, ())
            else:
                lost = "".join(content.split()) not in written
            if lost:
                self.rendered.remarks.add(DROPPED_MESSAGE.format(message["role"]))

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
        missing = lost & ({"argument"} if by_id else {"name", "argument"})
        missing |= {"name"} if unmarked else set()
        missing |= {"argument"} if any(key not in self.text for key in keys) else set()
        if not missing:
            return
        what = "writes nothing of a tool call, and would teach to say nothing in its place"
        if self.marked.calls.get(i) and missing == {"name"}:
            what = "writes a tool call without the name of its function"
        elif self.marked.calls.get(i) and missing == {"argument"}:
            what = "leaves out arguments of a tool call"
        raise InputError(
            f"{self.template.name} {what}",
            key="data.corpus",
            fix="Use a tokenizer whose template writes `tool_calls`, or leave those conversations out",
        )

    def _remark_date(self) -> None:
        """A template may write the date in some conversations only."""
        if not self.template.asks_for_date:
            return
        try:
            same = self.template.another_day.render(self.messages, self.document.tools) == self.marked.text
        except InputError:
            same = False
        if not same:
            self.rendered.remarks.add(DATED.format(self.template.date))

    def _remark(self, i: int, *, is_last: bool, is_somewhere: bool) -> None:
        message, lost = self.messages[i], self.marked.lost.get(i, set())
        if "content" in lost and message.get("tool_calls"):
            self.rendered.remarks.add(DROPPED_TEXT)
        has_thoughts = bool(self.marked.thoughts.get(i))
        if is_last and lost & {"thoughts", "inner"} and not has_thoughts:
            self.rendered.remarks.add(DROPPED_THOUGHTS)
        if not message.get("tool_calls") and not self.marked.content.get(i) and not has_thoughts:
            self.rendered.remarks.add(EMPTY if is_somewhere else NOWHERE)
        given = self.document.messages[i]
        if "part" in lost or ("inner" in lost and is_mixed(given)):
            self.rendered.remarks.add(DROPPED_PART)
        elif str(given["content"]).count("</think>") > 1 and self.marked.content.get(i):
            self.rendered.remarks.add(SECOND_THOUGHT)

    # where an answer begins and ends

    def _others(self, i: int) -> list[int]:
        return sorted(start for j in range(len(self.messages)) if j != i for start, _ in self.marked.own(j))

    def _answers(self, i: int, group: list[list[tuple[int, int]]], previous: int) -> list[Answer]:
        others = self._others(i)
        found: list[Answer] = []
        if not group and not self.messages[i].get("tool_calls"):
            return found  # nothing, and it is not to be learned, or nobody knows where
        self._check_place(i, group, previous)
        for n, spans in enumerate(group or [[]]):
            limit = spans[0][0] if spans else next((s for s in others if s >= previous), len(self.text))
            start = self._start(i, previous, limit, has_words=bool(spans)) if n == 0 else spans[0][0]
            body_end = spans[-1][1] if spans else start
            stop = self._stop(i, body_end)
            goes_on = n + 1 < len(group)
            end = (
                self._end_by_what_follows(i, start, body_end, self.text[body_end:stop], goes_on=True)
                if goes_on
                else self._end(i, start, body_end, stop)
            )
            said = {*self.marked.content.get(i, ()), *self.marked.thoughts.get(i, ())}
            words = self._joined(i, [span for span in spans if span in said])
            found.append(Answer(start, end, (*words, *self._call_words(i, spans, (start, end), words))))
            previous = end
        return found

    def _stop(self, i: int, body_end: int) -> int:
        """Where the words of the next turn begin, at the latest."""
        later = [s for j in range(i + 1, len(self.messages)) for s, _ in self.marked.everywhere.get(j, ())]
        stop = min((s for s in [*self._others(i), *later] if s >= body_end), default=len(self.text))
        for j in range(i + 1, len(self.messages)):
            if self.marked.everywhere.get(j):
                break
            said = self._where_said(i, j, body_end)
            if said is not None:
                return min(stop, said)
        return stop

    def _where_said(self, i: int, j: int, body_end: int) -> int | None:
        """Where the words of message j would stand behind those of message i, of which no mark tells it: it has no
        words, or the template does not take marks in it. None where that cannot be found."""
        filled = [
            *self.messages[:j],
            {**self.messages[j], **says(self.messages[j]["role"], LATER, self.messages[j : j + 1])},
        ]
        filled = [*filled, *self.messages[j + 1 :]]
        try:
            text = self.template.render(filled, self.document.tools)
        except InputError:
            return None
        if text == self.text:
            return None
        same = self.template.common(self.text, text)
        if same >= body_end:
            return same
        # It also writes something before: what stands between the two is compared.
        number = self.marked.number_of(i, body_end)
        marked = Marked.of(self.document, filled, self.template, self.marked.marking, text)
        span = marked.where.get((i, number)) if marked is not None and number is not None else None
        at = text.find(LATER, span[1]) if span else -1
        return body_end + self.template.common(self.text[body_end:], text[span[1] : at]) if span and at >= 0 else None

    def _check_place(self, i: int, group: list[list[Span]], previous: int) -> None:
        """An answer may stand in another's turn: a template may pair messages by their position, or put the first one
        into a question."""
        if not group:
            return
        around = self.around
        question, answer = around.question_mark.rstrip(), around.answer_mark.rstrip()
        lead = self.text[previous : group[0][0][0]].rstrip()
        asks = [header.rstrip() for header in headers(around)]
        marks = [mark for mark in (*asks, answer) if mark and not question.endswith(mark)]
        asked = max((lead.rfind(mark) + len(mark) for mark in marks if mark in lead), default=0)
        is_told = bool(_WORD.search(question))
        # Where the words before have no known place, a question's mark may be theirs.
        is_next = lead.endswith(question) or i == 0 or bool(self.marked.everywhere.get(i - 1))
        if is_told and not answer.endswith(question) and is_next and lead.rfind(question) >= asked:
            raise misplaced(self.template)
        is_usual = bool(asked or (around.before_answer and lead.endswith(around.before_answer.rstrip())))
        if not is_usual and (asks or is_told) and self._is_anybody_s(i):
            raise misplaced(self.template)

    def _is_anybody_s(self, i: int) -> bool:
        """Whether the template writes plain words in the place of message i in the same way where a user says them: it
        does not know them for an answer."""
        words, written = self.messages[i]["content"], []
        for role in ("assistant", "user"):
            messages = [*self.messages[:i], {"role": role, "content": words}, *self.messages[i + 1 :]]
            try:
                written.append(self.template.render(messages, self.document.tools))
            except InputError:
                return False
        return written[0] == written[1]

    def _carved(self, i: int, answer: Answer) -> list[Answer]:
        """An answer without what others said: templates quote it inside a turn."""
        others = sorted(
            span
            for span in [*self._foreign(i), *((other.start, other.end) for other in self.rendered.answers)]
            if answer.start < span[1] and span[0] < answer.end and span[0] < span[1]
        )
        parts: list[Answer] = []
        at = answer.start
        for start, end in [*others, (answer.end, answer.end)]:
            if at < start:
                words = tuple((max(w[0], at), min(w[1], start)) for w in answer.words if w[0] < start and at < w[1])
                parts.append(Answer(at, start, words))
            at = max(at, end)
        return parts

    def _foreign(self, i: int) -> list[Span]:
        """Where stands what other messages say, their quotations among it."""
        if self._foreign_to[0] != i:
            everywhere = self.marked.everywhere.items()
            self._foreign_to = i, [span for j, spans in everywhere if j not in (i, -1) for span in spans]
        return self._foreign_to[1]

    def _place_of_nothing(self, i: int) -> list[Span]:
        """Where the words of an answer would stand of which the template writes nothing; none where that cannot be
        found, as in a template that leaves out such turns, or writes them otherwise."""
        if self.messages[i].get("tool_calls") or not self.messages[i].get("learn", True):
            return []
        refused, is_written = self.template.refused, False
        for messages, text in self._answered_otherwise(i):
            at = self._of_plain(messages, text)
            is_written |= at is not None and len(messages) == len(self.messages)
            if at is None or self.text[: at[0]] != text[: at[0]]:
                continue
            behind, rest = text[at[1] :], self.text[at[0] :]
            if len(messages) == len(self.messages) and rest.endswith(behind) and len(behind) <= len(rest):
                place = (at[0], len(self.text) - len(behind))
                tags = [found[0] for found in self.template.tags(self.text[slice(*place)])]
                others = any(place[0] <= other < place[1] for other, _ in self._foreign(i))
                if not others and all("think" in tag for tag in tags):
                    return [place]
            # What follows is not the same; what ends the turn must be, right here.
            tag = self.template.first_tag(behind.partition(LATER)[0])
            blank = len(rest) - len(rest.lstrip())
            spaces = next((n for n in range(blank + 1) if tag and rest.startswith(behind[: tag[1]], n)), None)
            if spaces is not None:
                return [(at[0], at[0] + spaces)]
        if not is_written:
            raise refusal(self.template, "where an answer without words would stand", refused)
        return []

    def _of_plain(self, messages: list[dict[str, Any]], text: str) -> Span | None:
        """Where the plain answer stands in its turn."""
        n = next(n for n, message in enumerate(messages) if ANSWER in str(message["content"]))
        marked = Marked.of(self.document, messages, self.template, MARKINGS[1], text)
        if marked is not None:
            return marked.where.get((n, 0))
        at = text.find(ANSWER)
        return (at, at + len(ANSWER)) if text.count(ANSWER) == 1 else None

    def _answered_otherwise(self, i: int) -> Iterator[tuple[list[dict[str, Any]], str]]:
        """The conversation with a plain answer in the place of one of its turns: as it is, cut after it, and gone on
        with."""
        own = {name: value for name, value in self.messages[i].items() if name not in ("tool_calls", *REASONING)}
        plain = {**own, **says("assistant", ANSWER, self.messages)}
        cut = [*self.messages[:i], plain]
        follow = [says("user", LATER, self.messages), says("assistant", "-", self.messages)]
        for messages in ([*cut, *self.messages[i + 1 :]], cut, [*cut, *follow]):
            try:
                yield messages, self.template.render(messages, self.document.tools)
            except InputError:
                continue

    def _start(self, i: int, previous: int, limit: int, *, has_words: bool) -> int:
        """After the header that asks for the answer."""
        region = self.text[previous:limit]
        refused = self.template.refused
        quoted = max((end - previous for _, end in self._foreign(i) if previous < end <= limit), default=0)
        for header in headers(self.around):
            for part in dict.fromkeys((header, header.rstrip())):
                at = region.rfind(part) if has_words else region.find(part)
                rest = region[at + len(part) :]
                # Cut, it must be followed by nothing that could be more of a header: a name, or a number.
                # What another message said is no answer's: a header may quote it.
                if at + len(part) < quoted:
                    continue
                if at >= 0 and (part == header or not rest.strip() or self._begins_with_tag(rest)):
                    return self._asked_longer(i, previous + at + len(part), limit)
        # No such header: a template that goes on in the same turn, asks for nothing, or writes headers of many kinds.
        asked, before = (self._rendered_before(i, prompt=prompt) for prompt in (True, False))
        if i and asked is not None and self.text.startswith(asked) and previous + quoted <= len(asked) <= limit:
            rest = _unthinking(self.text[len(asked) : limit])
            if asked != before or not (_WORD.search(rest) or self.template.first_tag(rest)):
                return len(asked)
        spaces = self._spaces_before(i, region, limit)
        if spaces is not None:
            return previous + spaces
        plain = [*self.marked.content.get(i, ()), *self.marked.empty.get(i, ())]
        is_plain = has_words and (limit in {span[0] for span in plain} or not self.marked.own(i))
        if is_plain:
            if self.around.has_more and not self.around.header.strip():
                self.rendered.remarks.add(HEADED)
            if not self._said(i)[:1].isspace():
                return limit - len(region) + len(_unthinking(region))
        for _, text in self._answered_otherwise(i):
            if text[:previous] == self.text[:previous] and (at := text.find(ANSWER)) >= previous:
                return previous + self.template.common(region, _unthinking(text[previous:at]))
        if is_plain:
            return limit - len(region) + len(_unthinking(region))
        raise refusal(self.template, "where a turn begins that is no plain answer", refused)

    def _spaces_before(self, i: int, region: str, limit: int) -> int | None:
        """Where in ``region`` the spaces begin that stand before any answer and are not asked with: they are learned,
        also where the conversation cannot be asked, or is written otherwise when it is cut."""
        lead, said = self.around.lead, self._said(i)
        if self.around.header.strip() or not lead or any(span[0] == limit for span in self.marked.calls.get(i, ())):
            return None
        before = _unthinking(region)
        own = said[: len(said) - len(said.lstrip())]
        return next((len(before) - len(s) for s in (lead + own, lead) if before.endswith(s)), None)

    def _asked_longer(self, i: int, start: int, limit: int) -> int:
        """After the whole header, where this one is longer than the one of a first answer."""
        region = self.text[start:limit]
        if region == self.around.lead or not _WORD.search(_unthinking(region)):
            return start
        asked = self._rendered_before(i, prompt=True) if i else None
        is_longer = asked is not None and start < len(asked) <= limit and self.text.startswith(asked)
        return len(asked) if asked is not None and is_longer else start

    def _said(self, i: int) -> str:
        content = self.messages[i]["content"]
        return str(content[0]["text"] if isinstance(content, list) else content)

    def _begins_with_tag(self, text: str) -> bool:
        tag = self.template.first_tag(text.lstrip())
        return tag is not None and tag[0] == 0

    def _rendered_before(self, i: int, *, prompt: bool) -> str | None:
        try:
            return self.template.render(self.messages[:i], self.document.tools, prompt=prompt)
        except InputError:
            return None

    def _end(self, i: int, start: int, body_end: int, stop: int) -> int:
        """After the token that ends the turn, which stands before any other turn."""
        end = self._end_in(i, start, body_end, stop)
        after = self.blind[body_end : min(end, len(self.blind))]
        quoted = min((at - body_end for at, _ in self._foreign(i) if body_end <= at < end), default=len(after))
        tag = self.template.last_tag(after)
        inner = after[: tag[0]] if tag else after
        around = self.around
        generic = around.answer_mark.endswith(around.question_mark)
        opened = [*headers(around), *([] if generic else [around.question_mark])]
        opened = [mark for mark in opened if self.template.first_tag(mark)]
        crossed = [inner.find(mark.rstrip()) for mark in opened if mark.rstrip() in inner]
        if tag and after[slice(*tag)] != around.closing:  # the end that a role gives is the one of another's turn
            asks = [header.rstrip() for header in headers(around) or [around.answer_mark]]
            asks = [mark for mark in asks if self._begins_with_tag(mark) and not around.question_mark.endswith(mark)]
            crossed += [tag[0] for mark in asks if self.text.startswith(mark, body_end + tag[0])]
        if self.template.first_tag(after[:quoted]) and quoted < len(after):
            crossed.append(quoted)
        return self._endless(body_end, self._rest_of_call(i, body_end, after[: min(crossed)])) if crossed else end

    def _rest_of_call(self, i: int, body_end: int, region: str) -> str:
        """What is written of a call behind its last argument; nothing of an answer."""
        if not self.messages[i].get("tool_calls"):
            return ""
        return region[: self.template.common(region, self._alone(i, body_end))].rstrip()

    def _end_in(self, i: int, start: int, body_end: int, stop: int) -> int:
        around, region = self.around, self.blind[body_end:stop]
        is_last = i == len(self.messages) - 1
        if around.closing is not None and (at := region.find(around.closing)) >= 0:
            return body_end + at + len(around.closing)
        if is_last and around.closing is not None:
            return self._end_of_tag(start, body_end, self.template.last_tag(region), region)
        if is_last:
            opening = self._opening_of_next()
            if not opening:
                return self._endless(body_end, region)
            self.text += opening
            self.rendered.text = self.text
            return len(self.text)
        if self.messages[i + 1]["role"] == "assistant" and not region.strip():
            return stop  # one turn of two messages: the spaces between them are written by the model
        if around.opens_next and not self.messages[i].get("tool_calls"):
            said = self._said(i)
            spaces = said[len(said.rstrip()) :]
            return self._endless(body_end, spaces if region.startswith(spaces) else "")
        if around.closing_before_turn is not None and not self.messages[i].get("tool_calls"):
            at = region.find(around.closing_before_turn)
            if at >= 0:
                return body_end + at + len(around.closing_before_turn)
        return self._end_by_what_follows(i, start, body_end, self.text[body_end:stop])

    def _opening_of_next(self) -> str:
        """What the next turn begins with, up to its role marker: it ends the last one where the template writes no end
        of its own. A call is followed by its result, an answer by the user."""
        refused, calls = self.template.refused, self.messages[-1].get("tool_calls")
        if not calls:
            return self.around.before_turn
        result = says("tool", LATER, self.messages)
        follow = {**result, "tool_call_id": calls[0].get("id", "0"), "name": calls[0]["function"]["name"]}
        try:
            then = self.template.render([*self.messages, follow], self.document.tools)
        except InputError:
            raise refusal(self.template, "what follows a tool call", refused) from None
        rest = then[len(self.text) :] if then.startswith(self.text) else ""
        tag = self.template.first_tag(rest.partition(LATER)[0])
        return rest[: tag[1]] if tag else ""

    def _end_by_what_follows(self, i: int, start: int, body_end: int, region: str, *, goes_on: bool = False) -> int:
        """Where the conversation that ends with this turn and the one that goes on part. ``goes_on``: a result stands
        inside the turn, and the model stops where it begins."""
        same = self.template.common(region, self._alone(i, body_end))
        seen = self.blind[body_end : body_end + len(region)]
        inside = seen[:same]
        if not goes_on and self.around.closing is not None:
            tag = self.template.last_tag(inside)
            return self._end_of_tag(start, body_end, tag, "" if tag else self._rest_of_call(i, body_end, inside))
        for found in self.template.tags(seen):
            if found.end() > same:
                return body_end + found.end()
        return self._endless(body_end, inside)

    def _end_of_tag(self, start: int, body_end: int, tag: Span | None, region: str) -> int:
        """After a tag that ends a turn, which one that ends a call does not: ``</tool_call>``."""
        if tag is None:
            return self._endless(body_end, region)
        name = self.text[body_end + tag[0] : body_end + tag[1]]
        if is_closing(name, self.text[start:body_end], PAIRS):
            self.rendered.remarks.add(ENDLESS)
        return body_end + tag[1]

    def _alone(self, i: int, body_end: int) -> str:
        """What follows the same words where the conversation ends with their turn: cut after it, or as it is with that
        turn in the place of the last answer, for templates that refuse to be cut."""
        last = max(j for j, message in enumerate(self.messages) if message["role"] == "assistant")
        was_taken, refused = False, self.template.refused
        for messages in (self.messages[: i + 1], [*self.messages[:last], self.messages[i]]):
            try:
                alone = self.template.render(messages, self.document.tools)
            except InputError:
                continue
            was_taken = True
            number = self.marked.number_of(i, body_end)
            marked = Marked.of(self.document, messages, self.template, self.marked.marking, alone)
            if number is not None and marked is not None:
                span = marked.where.get((len(messages) - 1, number))
                if span:
                    return alone[span[1] :]
            elif alone[:body_end] == self.text[:body_end]:
                return alone[body_end:]
        if not was_taken:
            raise refusal(self.template, "how a turn ends that something else than a question follows", refused)
        return ""

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


def _unthinking(text: str) -> str:
    """What stands before an answer, without the thought that is begun there, or is empty."""
    begun = _BEGUN_THOUGHT.search(text)
    return text[: begun.start()] if begun else text


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
