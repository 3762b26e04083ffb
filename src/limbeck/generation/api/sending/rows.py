"""What one request asks for, and what became of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from limbeck.generation.request import Request


class Fate(Enum):
    """What became of a row at one teacher."""

    DONE = auto()
    """Answered, or failed for good."""
    LEFT = auto()
    """It stays to do."""
    NEXT = auto()
    """The next teacher is asked."""


@dataclass
class Row:
    """What one request asks for, and its places in the journal: one answer, or samples of one prompt (``n``).

    Attributes:
        until: when each teacher's time for it is over, once it was asked.
        busy: it is in flight, or its answer is on its way to the disk; it does not only wait.
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
