"""What is said of a source beside its rows."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Notices:
    """Filled while files are chosen and read.

    Attributes:
        unread: of folders, the files that are not read, as paths inside them.
        copies: those of them that are named as copies of others.
        doubts: what is read, and may not be meant; a sentence each, in the order in which they were found.
    """

    unread: set[str] = field(default_factory=set)
    copies: set[str] = field(default_factory=set)
    doubts: dict[str, None] = field(default_factory=dict)

    def doubt(self, what: str) -> None:
        self.doubts.setdefault(what)
