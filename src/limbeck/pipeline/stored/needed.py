"""What the trainings of a run read of a store, and what it lacks of that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from limbeck.data.packing import Rows
from limbeck.errors import StoreError, under
from limbeck.signals.capture import Captured
from limbeck.signals.spans import Reading, lacking, readings, shared
from limbeck.signals.store import Identity, Store, StoreWriter
from limbeck.signals.store.manifest import is_store


@dataclass(frozen=True)
class Missing:
    """What a store lacks.

    Attributes:
        found: what is to be read for it.
        longest: tokens that the teacher reads at a time.
        writer: of the store.
        progress: told of what was captured so far.
    """

    found: Iterator[Reading]
    longest: int
    writer: StoreWriter
    progress: Callable[[Captured], None]


@dataclass(frozen=True)
class Survey:
    """What is needed of a store.

    Attributes:
        positions: with a label.
        missing: of them, those that it lacks.
        longest: tokens that the teacher reads at a time for these.
    """

    positions: int
    missing: int
    longest: int


@dataclass(frozen=True)
class Needed:
    """What the arms of a run read, and the store that is to hold it.

    Attributes:
        rows: of the corpus; ``chosen``: numbers of those that are read.
        identity: whose signals.
        folder: of the store, which need not be there; ``key``: where the recipe names it.
    """

    rows: Rows
    chosen: list[int]
    identity: Identity
    folder: Path
    key: str

    def store(self) -> Store | None:
        """The store as it is now.

        Raises:
            StoreError: it holds other signals, or is damaged.
        """
        with under(self.key, StoreError):
            return Store(self.folder, self.identity) if is_store(self.folder) else None

    def all(self, part: tuple[int, int] | None = None) -> Iterator[Reading]:
        found = readings(self.rows, self.chosen, self.identity.context, self.identity.window)
        return found if part is None else shared(found, *part)

    def missing(self, part: tuple[int, int] | None = None) -> Iterator[Reading]:
        return lacking(self.all(part), self.store())

    def survey(self, part: tuple[int, int] | None = None) -> Survey:
        positions = sum(reading.count() for reading in self.all(part))
        missing = longest = 0
        for reading in self.missing(part):
            missing += reading.count()
            longest = max(longest, len(reading.row))
        return Survey(positions, missing, longest)
