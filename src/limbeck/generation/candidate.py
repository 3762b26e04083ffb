"""Answers on their way from the journal to the students: verified, filtered, chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from limbeck.generation.request import Completion


class Verdict(StrEnum):
    """What a verifier says of an answer. ``UNDECIDED`` is not ``WRONG``: there was no way to tell."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Candidate:
    """An answer that may be learned.

    Attributes:
        prompt: hash of the prompt; all samples of a prompt share it.
        messages: the conversation up to the answer; empty where ``text`` was continued.
        text: plain text that was continued.
        tools: definitions of tools.
        reference: the answer that the data has; None: it has none.
        sample: number among the samples of the prompt.
        completion: the answer.
        teacher: who wrote it.
        key: its row in the journal.
        verdict: None: not verified.
    """

    prompt: str
    messages: tuple[Mapping[str, Any], ...]
    text: str | None
    tools: tuple[Mapping[str, Any], ...]
    reference: str | None
    sample: int
    completion: Completion
    teacher: str
    key: str
    verdict: Verdict | None = None
