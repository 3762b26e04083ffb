"""A tokenizer's chat template, rendered on a fixed date."""

from __future__ import annotations

import datetime
import hashlib
import os
import re
import string
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from limbeck.errors import InputError
from limbeck.recipe.data import TEMPLATE_DATE

Messages = Sequence[dict[str, Any]]

DATE = TEMPLATE_DATE
"""What a template that writes today's date is told by default."""
DATE_FUNCTION = "strftime_now"
"""The one way in which transformers tells a template the date."""

_TAG = r"<[^<>\s]{1,64}>|\[/?[A-Z][A-Z_]{1,30}\]|\[\|[^\[\]|\s]{1,64}\|\]"


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
        self.known: dict[str, Any] = {}
        """What was found out about it, by its source."""
        self.refused = 0
        """How often it raised an exception."""

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
            source = self.source(tools)
            if DATE_FUNCTION in source:
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
            self.refused += 1
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(f"{self.name} refuses a conversation ({reason})", key="data.corpus") from None

    @cached_property
    def asks_for_date(self) -> bool:
        """Whether what it writes can depend on the date: it may write one in some conversations only."""
        return DATE_FUNCTION in repr(self.tokenizer.chat_template)

    @cached_property
    def another_day(self) -> Template:
        """The same on a date of which every part differs: what it writes otherwise is a date."""
        return Template(self.tokenizer, self.date + datetime.timedelta(days=400))

    def facts(self) -> dict[str, str | None]:
        """What a corpus depends on: a hash of the template, and the date where it can write one."""
        source = self.tokenizer.chat_template
        digest = hashlib.sha256(repr(source).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return {"chat_template": digest, "date": self.date.isoformat() if self.asks_for_date else None}

    def source(self, tools: Sequence[dict[str, Any]] = ()) -> str:
        """The text of the template; a tokenizer may have one of its own for conversations with tools."""
        source: str = self.tokenizer.get_chat_template(tools=list(tools) or None)
        return source

    # ------------------------------------------------------------------------------ tags

    @property
    def end(self) -> str | None:
        """The EOS token."""
        return getattr(self.tokenizer, "eos_token", None)

    def tags(self, text: str) -> Iterator[re.Match[str]]:
        """Special tokens, and what looks like one, in ``text``."""
        return self._tags.finditer(text)

    def first_tag(self, text: str) -> tuple[int, int] | None:
        """Where the first of them stands."""
        return next((found.span() for found in self.tags(text)), None)

    def last_tag(self, text: str) -> tuple[int, int] | None:
        """Where the last of them stands."""
        return max((found.span() for found in self.tags(text)), default=None)

    def common(self, text: str, other: str) -> int:
        """How many characters both begin with, not counting a tag of ``text`` that is not whole among them."""
        same = len(os.path.commonprefix([text, other]))  # noqa: RUF071 - characters are meant
        return min([same, *(found.start() for found in self.tags(text) if found.start() < same < found.end())])


def in_parts(messages: Messages) -> list[dict[str, Any]]:
    """Messages whose content is a list of parts, as templates of models that also see pictures want it."""
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
