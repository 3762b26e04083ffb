"""What a chat template writes around an answer: the header that asks for it, and what ends it.

The template is asked, with conversations of questions and answers; where it refuses those, with the real conversation,
cut or gone on with. A template that refuses them all is refused: what it writes would have to be guessed.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.data.chat.templates import Messages, Template, in_parts
from limbeck.errors import InputError

Span = tuple[int, int]

QUESTION, ANSWER, LATER = "71~001~7", "82~002~8", "93~003~9"
"""No letters: templates change their case, or escape what is not ASCII. No number either: templates look for those."""
_TOOL = {
    "type": "function",
    "function": {"name": "look", "description": "-", "parameters": {"type": "object", "properties": {}}},
}
_END = "-"


@dataclass(frozen=True)
class Surroundings:
    """What a template writes around answers.

    Attributes:
        header: what it adds to ask for an answer (``<|im_start|>assistant\\n``); empty where it adds nothing, or
            refuses to ask.
        closing: the token after the last answer of a conversation; None where there is none.
        closing_before_turn: the first token after an answer that a user's turn follows: the same, or the user's role
            marker where nothing else ends an answer; None where there is none.
        before_turn: what stands between such an answer and the end of that token.
        was_asked: False where the template refuses to ask for an answer.
        has_more: more tags stand before an answer than before a question: not all of them may be a header's.
        answer_mark: what stands directly before an answer, from the last tag on.
        before_answer: all that stands between a question's words and an answer's.
        question_mark: what stands before the first question and before another one.
        lead: what stands between the header and an answer's words; without a header, the spaces that the template
            writes before them and does not ask with.
        opens_next: what follows an answer in the middle ends none, but opens a user's turn; only the last has an end.
    """

    header: str = ""
    closing: str | None = None
    closing_before_turn: str | None = None
    before_turn: str = ""
    was_asked: bool = True
    has_more: bool = False
    answer_mark: str = ""
    before_answer: str = ""
    question_mark: str = ""
    lead: str = ""
    opens_next: bool = False


def surroundings_of(template: Template, messages: Messages, tools: Sequence[dict[str, Any]]) -> Surroundings:
    """What the template writes around the answers of a conversation.

    Raises:
        InputError: it refuses every conversation that it could be asked with, or writes answers several times.
    """
    source, refused = template.source(tools), template.refused
    if source not in template.known:
        template.known[source] = _first(_Trial(template, *made) for made in _made(template, bool(tools)))
    found = template.known[source]
    if found is None or not found.was_asked:
        found = _first(_Trial(template, *given) for given in _given(messages, tools)) or found
    if found is None:
        raise refusal(template, "what it writes around an answer", refused)
    return found


def writes_thoughts(template: Template, tools: Sequence[dict[str, Any]] = ()) -> bool:
    """Whether the template writes the thoughts (``reasoning_content``) of a last answer."""
    known = f"thoughts: {template.source(tools)}"
    if known not in template.known:
        texts = (_thinking(template, *made) for made in _made(template, bool(tools)))
        template.known[known] = any(LATER in text for text in itertools.islice(filter(None, texts), 1))
    return bool(template.known[known])


def _thinking(template: Template, before: list[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> str:
    """An answer with thoughts as the template writes it; empty where it does not."""
    try:
        text = template.render([*before, {**says("assistant", ANSWER, before), "reasoning_content": LATER}], tools)
    except InputError:
        return ""
    return text if ANSWER in text else ""


def refusal(template: Template, what: str, refused: int) -> InputError:
    """Of a template that does not take the conversations by which it would be found out what is to be learned, or
    writes something else. ``refused``: how often it had raised an exception before it was asked."""
    raised = template.refused > refused
    return InputError(
        f"{template.name} {'refuses to be asked' if raised else 'does not show'} {what}: "
        "what is to be learned would be a guess",
        key="data.corpus",
        fix="Take out what it raises an exception for, or use another template"
        if raised
        else "Leave those conversations out, or use another template",
    )


def misplaced(template: Template) -> InputError:
    return InputError(
        f"{template.name} writes an answer of this conversation where a question stands otherwise",
        key="data.corpus",
        fix="Remove what shifts it (a system message, where a template pairs messages by position; an answer before "
        "any question), or use another one",
    )


def unclear(template: Template) -> InputError:
    return InputError(
        f"{template.name} writes an answer several times, and which of them is its turn cannot be told",
        key="data.corpus",
        fix="Use a template that writes it once, or leave those conversations out",
    )


def says(role: str, content: str, like: Messages) -> dict[str, Any]:
    """A message, in parts where those of ``like`` are."""
    message = {"role": role, "content": content}
    return in_parts([message])[0] if any(isinstance(m["content"], list) for m in like) else message


_Asked = tuple[list[dict[str, Any]], Sequence[dict[str, Any]]]
"""What stands before an answer, and tools."""


def _made(template: Template, has_tools: bool) -> Iterator[_Asked]:
    """Some templates want a system message, some read lists of parts only, and some want tools."""
    question = [{"role": "user", "content": QUESTION}]
    told = [{"role": "system", "content": "-"}, *question]
    several = isinstance(template.tokenizer.chat_template, dict)  # then the tools choose between them
    for tools in ((), (_TOOL,)):
        if several and bool(tools) != has_tools:
            continue
        for asked, as_given in ((question, list), (told, list), (question, in_parts), (told, in_parts)):
            yield as_given(asked), tools


def _given(messages: Messages, tools: Sequence[dict[str, Any]]) -> Iterator[_Asked]:
    """The real conversation, cut before its last answer; or gone on with."""
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=0)
    yield list(messages[:last]), tools
    yield [*messages, says("user", QUESTION, messages)], tools


def _first(trials: Iterator[_Trial]) -> Surroundings | None:
    """The first that the template takes, better one that it also asks for an answer in."""
    kept = None
    for trial in trials:
        found = trial.found()
        if found is not None and found.was_asked:
            return found
        kept = kept or found
    return kept


class _Trial:
    """A conversation by which a template is asked."""

    def __init__(self, template: Template, before: list[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> None:
        self.template, self.before, self.tools = template, before, tools

    def found(self) -> Surroundings | None:
        answered = [*self.before, says("assistant", ANSWER, self.before)]
        later = [*answered, says("user", LATER, self.before)]
        tail = self._rendered(answered)
        gap = self._rendered(later) or self._rendered([*later, says("assistant", _END, self.before)])
        if tail is None or gap is None or ANSWER not in tail or ANSWER not in gap:
            return None
        header = self._header(self.before)
        if header is None:
            header = self._header(answered)
        own, then = self._own(tail, header or ""), self._own(gap, header or "")
        behind = tail[own[1] :], gap[then[1] :]
        last, first = self._closing(tail[: own[0]], *behind), self._first(behind[1].partition(LATER)[0])
        asked, _, answered_with = gap[: then[0]].rpartition(QUESTION)
        between = behind[1].partition(LATER)[0]
        opening = os.path.commonprefix([gap.partition(QUESTION)[0][::-1], between[::-1]])[::-1]  # noqa: RUF071
        return Surroundings(
            header or "",
            behind[0][slice(*last)] if last else None,
            behind[1][slice(*first)] if first else None,
            self._opening(*behind, first),
            header is not None,
            bool(asked) and self._tags(answered_with) > self._tags(between),
            self._mark(answered_with),
            answered_with if asked else "",
            opening if QUESTION in gap else "",
            answered_with.rpartition(header)[2]
            if header and header in answered_with
            else self._unasked(tail[: own[0]]),
            last is not None and first is not None and self._opens(behind, last, first, gap, answered_with),
        )

    def _unasked(self, before: str) -> str:
        """Spaces before an answer's words that do not stand where it is asked for."""
        asked = self._rendered(self.before, prompt=True)
        rest = before[len(asked) :] if asked is not None and before.startswith(asked) else ""
        return "" if rest.strip() else rest

    def _opens(self, behind: tuple[str, str], last: Span, first: Span, gap: str, answered_with: str) -> bool:
        """Whether what follows stands before the first question too, and ends no question."""
        name = behind[1][slice(*first)]
        ends_question = self.template.first_tag(answered_with)
        return (
            QUESTION in gap
            and name != behind[0][slice(*last)]
            and any(found[0] == name for found in self.template.tags(gap.partition(QUESTION)[0]))
            and (ends_question is None or name != answered_with[slice(*ends_question)])
        )

    def _opening(self, tail: str, gap: str, first: Span | None) -> str:
        """What a user's turn begins with, after all that stands behind a last answer."""
        if first is None:
            return ""
        opening = gap[len(tail) if gap.startswith(tail) else 0 : first[1]]
        return "" if any(said in opening for said in (QUESTION, ANSWER)) else opening

    def _mark(self, before: str) -> str:
        tag = self.template.last_tag(before)
        return before[tag[0] :] if tag else before.rpartition("\n\n")[2].lstrip()

    def _first(self, text: str) -> Span | None:
        return next(iter(self._ends(text)), None)

    def _ends(self, text: str) -> list[Span]:
        """Tags that may end an answer: no BOS, and none around a quotation (``<about>…</about>``)."""
        tags = [found.span() for found in self.template.tags(text)]
        names = [text[slice(*tag)] for tag in tags]
        around: set[int] = set()
        for n in range(len(tags) - 1):
            inside = text[tags[n][1] : tags[n + 1][0]]
            if any(said in inside for said in (QUESTION, ANSWER)) and is_closing(names[n + 1], names[n]):
                around |= {n, n + 1}
        begin, end = (getattr(self.template.tokenizer, f"{name}_token", None) for name in ("bos", "eos"))
        return [tag for n, tag in enumerate(tags) if n not in around and (names[n] != begin or begin == end)]

    def _tags(self, text: str) -> int:
        return sum(1 for _ in self.template.tags(text))

    def _rendered(self, messages: Messages, *, prompt: bool = False) -> str | None:
        try:
            return self.template.render(messages, self.tools, prompt=prompt)
        except InputError:
            return None

    def _header(self, messages: Messages) -> str | None:
        before, after = (self._rendered(messages, prompt=prompt) for prompt in (False, True))
        if before is None or after is None:
            return None
        return after[self.template.common(after, before) :]

    def _own(self, text: str, header: str) -> Span:
        """Where the answer stands, which the template may also quote."""
        spots = {said: occurrences(text, said) for said in (QUESTION, ANSWER, LATER)}
        borders = sorted(span for found in spots.values() for span in found)
        own = own_copy(self.template, text, spots[ANSWER], borders, Surroundings(header))
        if own is None:
            raise unclear(self.template)
        return own

    def _closing(self, before: str, tail: str, gap: str) -> Span | None:
        """Of what follows a last answer (``tail``), the token that ends it: the EOS token, the one that ends a
        question, or the first; but none that closes what is opened before (``</answer>``). Where more follows than
        before a user's turn (``gap``), such as the header of a next answer or an EOS token, the first."""
        if not gap.startswith(tail.rstrip()):
            found = self._first(tail[: self.template.common(tail, gap)])
            if found is not None:
                return found
        tags = self._ends(tail)
        noted = tail.find(QUESTION)  # a note that quotes comes after the end
        tags = [tag for tag in tags if noted < 0 or tag[1] <= noted] or tags
        question_end = self.template.first_tag(before.rpartition(QUESTION)[2] if QUESTION in before else "")
        asked_end = before.rpartition(QUESTION)[2][slice(*question_end)] if question_end else None
        known = [tag for end in (self.template.end, asked_end) for tag in tags if tail[slice(*tag)] == end]
        unopened = [tag for tag in tags if not is_closing(tail[slice(*tag)], before)]
        return next(iter(known or unopened or tags), None)


PAIRS = (("end", "begin"), ("end", "start"), ("END", "BEGIN"), ("END", "START"))
"""What a tag that closes something has in its name, and the one that opens it."""


def is_closing(name: str, before: str, pairs: Sequence[tuple[str, str]] = ()) -> bool:
    """Whether a tag closes what is opened before it: ``</tool_call>``. ``pairs``: more than the slash tells so."""
    openings = [name.replace("/", "", 1).rstrip(">]")] if "/" in name[:3] else []
    openings += [name.replace(end, begin).rstrip(">]") for end, begin in pairs if end in name]
    return any(re.search(re.escape(opening) + r"[\s>\]=]", before) for opening in openings)


def occurrences(text: str, said: str) -> list[Span]:
    found, at = [], text.find(said)
    while at >= 0:
        found.append((at, at + len(said)))
        at = text.find(said, at + len(said))
    return found


def headers(around: Surroundings) -> list[str]:
    """The header, and as much of it as stands in a turn without the thoughts that it asks for."""
    cut = around.header.partition("<think>")[0]
    return [header for header in dict.fromkeys((around.header, cut)) if header.strip()]


def lead(text: str, span: Span, borders: Sequence[Span]) -> str:
    """What stands between a piece and the one before it."""
    return text[max((end for start, end in borders if end <= span[0] and (start, end) != span), default=0) : span[0]]


def own_copy(
    template: Template, text: str, copies: Sequence[Span], borders: Sequence[Span], around: Surroundings
) -> Span | None:
    """Of the places where an answer stands in a text, the one in its own turn: after a header, and before what ends a
    turn. None where several places look like that.

    Args:
        copies: the places, in their order.
        borders: where all pieces of the conversation stand, in their order.
    """
    if len(copies) == 1:
        return copies[0]

    def weight(copy: Span) -> int:
        before = lead(text, copy, borders)
        rest = text[
            copy[1] : min((at for at, end in borders if at >= copy[1] and (at, end) != copy), default=len(text))
        ]
        is_asked = any(
            header.rstrip() in before or text[: copy[0]].rstrip().endswith(header.rstrip())
            for header in headers(around)
        )
        is_ended = around.closing is not None and around.closing in rest
        return (
            2 * is_asked
            + (template.first_tag(before) is not None)
            + (2 if is_ended else template.first_tag(rest) is not None)
        )

    weights = [weight(copy) for copy in copies]
    best, *others = [copy for copy, each in zip(copies, weights, strict=True) if each == max(weights)]
    for other in others:
        between = any(best[1] <= start and end <= other[0] for start, end in borders if (start, end) not in copies)
        if between or template.first_tag(text[best[1] : other[0]]) is not None:
            return None
    return best
