"""What a journal says: its rows, and counts of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from limbeck.generation.request import Completion, Request

Teacher: TypeAlias = Mapping[str, str]
"""``Endpoint.identity``, or the fingerprint of a local model."""


class RowState(StrEnum):
    """Where a request stands.

    ``SENT``: in flight. ``UNKNOWN``: it may have been served, and no answer came; it may be sent again.
    ``FAILED``: it is not sent again, unless it is retried by hand.
    """

    TODO = "todo"
    SENT = "sent"
    ANSWERED = "answered"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Row:
    """A request, and what became of it.

    Attributes:
        key: ``request.key(teacher)``.
        teacher: the first teacher that is asked.
        written_by: the teacher that answered; None: there is no answer.
        attempts: how often it was sent.
        unknown: attempts that may have been served although no answer came.
        failure, message: the kind of the last failure, and its text.
        cost: nano-USD of all its attempts; what was reserved counts where the cost is not known.
    """

    key: str
    request: Request
    teacher: Teacher
    state: RowState
    completion: Completion | None = None
    written_by: Teacher | None = None
    attempts: int = 0
    unknown: int = 0
    failure: str | None = None
    message: str | None = None
    cost: int = 0


@dataclass(frozen=True)
class Counts:
    """Rows of a journal.

    Attributes:
        answered: by outcome.
        failed: by kind.
        possibly_paid_twice: attempts without an answer that were followed by another attempt, although they may have
            been served.
    """

    todo: int = 0
    sent: int = 0
    unknown: int = 0
    answered: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[str, int] = field(default_factory=dict)
    possibly_paid_twice: int = 0

    @property
    def total(self) -> int:
        return self.todo + self.sent + self.unknown + sum(self.answered.values()) + sum(self.failed.values())


@dataclass(frozen=True)
class Spent:
    """What a journal's attempts cost, at most.

    Attributes:
        nano_usd: settled costs, and what is reserved for attempts that are in flight or whose outcome is unknown.
        tokens: likewise.
        reserved_nano_usd, reserved_tokens: the reserved part of them.
    """

    nano_usd: int = 0
    tokens: int = 0
    reserved_nano_usd: int = 0
    reserved_tokens: int = 0
