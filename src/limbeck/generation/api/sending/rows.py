"""What one request asks for, and what became of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from limbeck.generation.journal.budget import Reservation
from limbeck.generation.request import Request


class Fate(Enum):
    """What became of a row at one teacher."""

    DONE = auto()
    """Answered, or failed for good."""
    LEFT = auto()
    """It stays to do."""
    NEXT = auto()
    """The next teacher is asked."""


@dataclass(frozen=True)
class Prepared:
    """A row that is on disk as sent.

    Attributes:
        attempts: its numbers in the journal.
        reservation: what it can cost.
        body: the exact bytes to send; ``length``: the name in it for the longest answer.
    """

    attempts: list[int]
    reservation: Reservation
    body: bytes
    length: str


@dataclass
class Row:
    """What one request asks for, and its places in the journal: one answer, or samples of one prompt (``n``).

    Attributes:
        until: when each teacher's time for it is over, once it was asked.
        busy: it is in flight, or on its way to the disk, as its answer may be; it does not only wait.
        slot: it holds a slot of its endpoint.
    """

    requests: tuple[Request, ...]
    keys: tuple[str, ...]
    until: dict[str, float] = field(default_factory=dict)
    busy: bool = False
    slot: bool = False

    @property
    def request(self) -> Request:
        """The first."""
        return self.requests[0]

    @property
    def key(self) -> str:
        """Of the first."""
        return self.keys[0]

    def __len__(self) -> int:
        return len(self.keys)

    def alone(self) -> Iterator[Row]:
        """Each sample as a row of its own."""
        for request, key in zip(self.requests, self.keys, strict=True):
            yield Row((request,), (key,), dict(self.until))
