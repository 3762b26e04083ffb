"""A tokenizer's chat template: rendered on a fixed date, and what it writes around an answer."""

from __future__ import annotations

import datetime
import hashlib
import os
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from limbeck.errors import InputError
from limbeck.recipe.data import TEMPLATE_DATE

Messages = Sequence[dict[str, Any]]

DATE = TEMPLATE_DATE
"""What a template that writes today's date is told by default."""

QUESTION, ANSWER, LATER = "\u2983question\u2984", "\u2983answer\u2984", "\u2983another\u2984"

_TAG = r"<[^<>\s]{1,64}>|\[/?[A-Z][A-Z_]{1,30}\]"


def has_template(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def _strftime(date: datetime.date) -> str:
    """A Jinja macro that takes the place of the ``strftime_now`` that transformers hands to templates."""
    midnight = datetime.datetime.combine(date, datetime.time())
    codes = {code: midnight.strftime(f"%{code}") for code in string.ascii_letters}
    codes |= {f"-{code}": midnight.strftime(f"%{code}").lstrip("0") or "0" for code in "dmyHIMSj"}
    return (
        "{%- macro strftime_now(format) -%}{%- set codes = " + repr(codes) + " -%}"
        "{%- for part in format.replace('%%', '\u2983').split('%') -%}"
        "{%- if loop.first -%}{{ part | replace('\u2983', '%') }}"
        "{%- elif part[:1] == '-' -%}{{ (codes.get(part[:2], '') ~ part[2:]) | replace('\u2983', '%') }}"
        "{%- elif part -%}{{ (codes.get(part[0], part[0]) ~ part[1:]) | replace('\u2983', '%') }}{%- endif -%}"
        "{%- endfor -%}{%- endmacro %}\n"  # trim_blocks takes this newline, and no other
    )


@dataclass(frozen=True)
class Surroundings:
    """What a template writes around answers.

    Attributes:
        known: whether the template could be asked.
        header: what it adds to ask for an answer (``<|im_start|>assistant\\n``); empty where it adds nothing.
        closing: the token after the last answer of a conversation; None where there is none.
        closing_before_turn: the first token after an answer that a user's turn follows: the same, or the user's role
            marker where nothing else ends an answer; None where there is none.
        before_turn: what stands between such an answer and the end of that token.
    """

    known: bool = False
    header: str = ""
    closing: str | None = None
    closing_before_turn: str | None = None
    before_turn: str = ""


class Template:
    """A tokenizer's chat template.

    Args:
        tokenizer: has a chat template.
        date: what ``strftime_now`` says.
    """

    def __init__(self, tokenizer: Any, date: datetime.date = DATE) -> None:
        self.tokenizer, self.date = tokenizer, date
        special = sorted(filter(None, tokenizer.all_special_tokens), key=len, reverse=True)
        self._tags = re.compile("|".join([*map(re.escape, special), _TAG]))

    @property
    def name(self) -> str:
        """What the template is called in messages: where its tokenizer is from."""
        where = str(getattr(self.tokenizer, "name_or_path", "") or "")
        return f"the chat template of {os.path.basename(where.rstrip('/')) or 'the tokenizer'}"

    def render(self, messages: Messages, tools: Sequence[dict[str, Any]] = (), *, prompt: bool = False) -> str:
        """A conversation as text; ``prompt``: with the beginning of the answer that is asked for.

        Raises:
            InputError: the template refuses it.
        """
        try:
            source = self.tokenizer.get_chat_template(tools=list(tools) or None)
            if "strftime_now" in source:
                source = _strftime(self.date) + source
            return str(
                self.tokenizer.apply_chat_template(
                    [{k: v for k, v in message.items() if k != "learn"} for message in messages],
                    tools=list(tools) or None,
                    chat_template=source,
                    tokenize=False,
                    add_generation_prompt=prompt,
                )
            )
        except Exception as error:  # templates raise what they like (jinja2.TemplateError and others)
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(f"{self.name} refuses a conversation ({reason})", key="data.corpus") from None

    @property
    def writes_date(self) -> bool:
        """Whether the text depends on the date."""
        asked = [{"role": "user", "content": QUESTION}]
        other = Template(self.tokenizer, self.date + datetime.timedelta(days=400))
        try:
            return self.render(asked) != other.render(asked)
        except InputError:
            return False

    def facts(self) -> dict[str, str | None]:
        """What a corpus depends on: a hash of the template, and the date where it writes one."""
        source = self.tokenizer.chat_template
        digest = hashlib.sha256(repr(source).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return {"chat_template": digest, "date": self.date.isoformat() if self.writes_date else None}

    # ------------------------------------------------------------------------------ what stands around an answer

    def tags(self, text: str) -> Iterator[re.Match[str]]:
        """Special tokens, and what looks like one, in ``text``."""
        return self._tags.finditer(text)

    def first_tag(self, text: str) -> tuple[int, int] | None:
        """Where the first of them stands."""
        return next((found.span() for found in self.tags(text)), None)

    def last_tag(self, text: str) -> tuple[int, int] | None:
        """Where the last of them stands."""
        return max((found.span() for found in self.tags(text)), default=None)

    def _closing(self, tail: str, gap: str) -> tuple[int, int] | None:
        """Of what follows a last answer (``tail``), the token that ends it: the last one, but where more follows than
        before a user's turn (``gap``), such as the header of a next answer or an EOS token, the first."""
        if gap.startswith(tail.rstrip()):
            return self.last_tag(tail)
        return self.first_tag(tail[: self.common(tail, gap)]) or self.last_tag(tail)

    def common(self, text: str, other: str) -> int:
        """How many characters both begin with, not counting a tag of ``text`` that is not whole among them."""
        same = len(os.path.commonprefix([text, other]))  # noqa: RUF071 - characters are meant
        return min([same, *(found.start() for found in self.tags(text) if found.start() < same < found.end())])

    def pieces(self, text: str) -> list[str]:
        """``text`` in tags, words and spaces."""
        return re.findall(f"{self._tags.pattern}|\\s+|[^\\s<\\[]+|.", text, re.DOTALL)

    @cached_property
    def surroundings(self) -> Surroundings:
        question = [{"role": "user", "content": QUESTION}]
        told = [{"role": "system", "content": "-"}, *question]
        # Some templates want a system message, and some read lists of parts only.
        for asked, as_given in ((question, list), (told, list), (question, in_parts), (told, in_parts)):
            answered = [*asked, {"role": "assistant", "content": ANSWER}]
            later = [*answered, {"role": "user", "content": LATER}]
            try:
                before, after = (self.render(as_given(asked), prompt=prompt) for prompt in (False, True))
                tail = self.render(as_given(answered)).partition(ANSWER)
                gap = self.render(as_given(later)).partition(ANSWER)
            except InputError:
                continue
            if tail[1] and gap[1]:
                same = self.common(after, before)
                last, first = self._closing(tail[2], gap[2]), self.first_tag(gap[2].partition(LATER)[0])
                return Surroundings(
                    True,
                    after[same:],
                    tail[2][slice(*last)] if last else None,
                    gap[2][slice(*first)] if first else None,
                    gap[2][: first[1]] if first else "",
                )
        return Surroundings()

    def opening_of_next(self, messages: Messages, tools: Sequence[dict[str, Any]]) -> str:
        """What the next turn begins with after ``messages``, up to its role marker: it ends the last of them where the
        template writes no end of its own. A call is followed by its result, an answer by the user."""
        calls = messages[-1].get("tool_calls")
        if not calls:
            return self.surroundings.before_turn
        follow = {"role": "tool", "content": LATER, "tool_call_id": calls[0].get("id", "0"), "name": "tool"}
        try:
            now, then = self.render(messages, tools), self.render([*messages, follow], tools)
        except InputError:
            return ""
        rest = then[len(now) :] if then.startswith(now) else ""
        tag = self.first_tag(rest.partition(LATER)[0])
        return rest[: tag[1]] if tag else ""


def in_parts(messages: Messages) -> list[dict[str, Any]]:
    """Messages whose content is a list of parts, as templates of models that also see pictures want it."""
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
