"""Reasoning apart from the answer, under any of the names that servers and models have for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIELDS = ("reasoning_content", "reasoning", "reasoning_text", "thinking")
"""Names of the field of a message."""

TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
)
_LONE = ("</think>", "[/THINK]", "◁/think▷")
"""Ends whose beginning some chat templates write themselves."""


def reasoning_field(message: Mapping[str, Any]) -> tuple[str, str] | None:
    """The name and the text of a message's reasoning, where it has a field for it."""
    for name in FIELDS:
        value = message.get(name)
        if isinstance(value, str) and value:
            return name, value
    return None


def split_reasoning(text: str) -> tuple[str | None, str]:
    """Reasoning and answer of a text.

    ``<think>a</think>b`` gives a and b. So does ``a</think>b``, of models whose template opens the tag. ``<think>a``,
    which was cut, is reasoning without an answer. The line breaks between both belong to neither.
    """
    begun = text.lstrip()
    for start, end in TAGS:
        if begun.startswith(start):
            thought, found, said = begun[len(start) :].partition(end)
            return thought.strip("\n") or None, said.lstrip("\n") if found else ""
    for end in _LONE:
        thought, found, said = text.partition(end)
        # A text that only speaks of tags opens them before it closes them.
        if found and end.replace("/", "") not in thought:
            return thought.strip("\n") or None, said.lstrip("\n")
    return None, text
