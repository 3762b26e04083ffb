"""Several stores of one identity into one; or one into another, in full shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from limbeck.errors import StoreError
from limbeck.signals.store import Store, StoreWriter
from limbeck.signals.store.identity import Identity, SpanSignal
from limbeck.signals.store.manifest import FILE

AT_A_TIME = 4_096
"""Spans that are looked up together."""


@dataclass(frozen=True)
class Copied:
    """What came of copying spans.

    Attributes:
        spans: that were added.
        there: that the target had already.
    """

    spans: int = 0
    there: int = 0

    def __add__(self, other: Copied) -> Copied:
        return Copied(self.spans + other.spans, self.there + other.there)


def copy_into(
    target: Path,
    identity: Identity,
    signals: Iterable[SpanSignal],
    progress: Callable[[int], None] = lambda n: None,
    teacher: str = "",
) -> Copied:
    """Add signals to a store, made if it is not there. Spans that it has are not added again.

    Args:
        progress: is told of spans.
        teacher: a name of the teacher for people.
    """
    added = there = 0
    with StoreWriter(target, identity, "copy", teacher=teacher) as writer:
        held = Store(target, identity)
        signals = iter(signals)
        while some := list(islice(signals, AT_A_TIME)):
            new = set(held.missing([signal.span for signal in some]))
            for signal in some:
                if signal.span in new:
                    writer.add(signal)
            added, there = added + len(new), there + len(some) - len(new)
            progress(len(some))
    return Copied(added, there)


def merge(sources: Sequence[Path], target: Path, progress: Callable[[int], None] = lambda n: None) -> Copied:
    """Copy stores of one identity into one. The sources stay as they are.

    May be interrupted and run again: what was copied is not copied twice.

    Raises:
        StoreError: a source is none, is damaged, or holds signals of another identity.
    """
    stores = [Store(source) for source in sources]
    for store in stores:
        if store.folder.resolve() == target.resolve():
            raise StoreError(f"{target} is both a source and the target", fix="Name a new folder")
        store.identity.require(stores[0].identity, str(store.folder / FILE))
    copied = Copied()
    for store in stores:
        copied += copy_into(target, stores[0].identity, store.signals(), progress, store.teacher)
    return copied
