"""Markup that is safe by construction: every string is escaped unless it is already :class:`Html`.

Text from a model may hold anything: tags, control characters, marks that turn the direction of what follows,
invisible letters, halves of surrogate pairs that cannot be written to a file. :func:`visible` turns what
could deceive a reader or break a parser into something seen; :func:`el` escapes what is left.
"""

from __future__ import annotations

import html
import re


class Html(str):
    """Finished markup. Only :func:`el`, :func:`join` and literals in this room make it."""

    __slots__ = ()


Child = str | None

# C0 and C1 controls but tab and newline; zero-width space, word joiner and BOM; bidirectional embeddings,
# overrides and isolates; interlinear marks; tag letters; surrogates and non-characters (of no plane allowed
# in XML).
_ODD = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b\u2028\u2029\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff"
    "\ufff9-\ufffb\ufdd0-\ufdef\ufffe\uffff\U000e0000-\U000e007f\ud800-\udfff]"
)


def _seen(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code in (0x2028, 0x2029):
        return "\n"
    if code == 0xAD:
        return ""
    if 0xD800 <= code <= 0xDFFF or 0xFDD0 <= code <= 0xFDEF or code in (0xFFFE, 0xFFFF):
        return "\ufffd"
    return f"\u27e6U+{code:04X}\u27e7"


def visible(text: str) -> str:
    """``text`` with control, invisible and direction-turning characters made visible, but newline and tab."""
    return _ODD.sub(_seen, text.replace("\r\n", "\n"))


def one_line(text: str, limit: int = 200) -> str:
    """:func:`visible` text on one line, cut with an ellipsis at ``limit`` characters."""
    line = " ".join(visible(text).split())
    return line if len(line) <= limit else line[: max(0, limit - 1)].rstrip() + "…"


def escape(text: str) -> Html:
    """Visible text, escaped for element content and quoted attributes."""
    return text if isinstance(text, Html) else Html(html.escape(visible(text), quote=True))


def join(*children: Child, sep: str = "") -> Html:
    """Children one after another, each escaped unless it is markup; None is skipped."""
    return Html(sep.join(escape(child) for child in children if child is not None))


def el(name: str, /, *children: Child, **attributes: str | float | bool | None) -> Html:
    """An element. ``class_`` is the class; other underscores in names become hyphens.

    An attribute of None or False is left out, of True stands alone. The names of elements and attributes are
    ours, never data.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(key if value is True else f'{key}="{escape(_plain(value))}"')
    opening = " ".join(parts)
    if name in _VOID:
        return Html(f"<{opening}>")
    return Html(f"<{opening}>{join(*children)}</{name}>")


_VOID = frozenset({"meta", "br", "hr", "link", "input", "img", "wbr"})


def _plain(value: str | float) -> str:
    if isinstance(value, str):
        return value
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text
