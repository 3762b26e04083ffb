"""What was recognised in a source, and what was not read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePath

from limbeck.data.documents.messages.place import printable
from limbeck.data.reading.files.notices import Notices
from limbeck.data.reading.tables import NULL
from limbeck.errors import counted

UNLEARNED = "assistant marked as not to be learned"
NAMED = 8  # unread columns that are named


@dataclass
class Seen:
    """What was recognised in a source.

    Attributes:
        kinds: how many rows of which shape.
        unread: columns that nothing was read from.
        keys: keys of messages that nothing was read from.
        notices: files that are not read, and what may not be meant.
        nulls: cells of CSV by what they say of being null, and their column.
        empty: rows whose text, question or answer is empty; they are left out.
        silent: conversations in which there is nothing to learn; they are left out.
        roles: who speaks in those.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    unread: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    notices: Notices = field(default_factory=Notices)
    nulls: Counter[tuple[str, str]] = field(default_factory=Counter)
    empty: int = 0
    silent: int = 0
    roles: set[str] = field(default_factory=set)

    def line(self) -> str:
        """What was read, in a line."""
        kinds = "; ".join(f"{count:,} {kind}" for kind, count in self.kinds.most_common()) or "nothing"
        columns = {name or "a column without a name" for name in self.unread}
        unread = ", ".join(listed for listed in (_listed(columns), _files(self.notices)) if listed)
        nulls = sum(count for (cell, column), count in self.nulls.items() if cell == NULL and column not in self.unread)
        told = f"{counted(nulls, 'cell')} `{NULL}`, read as null" if nulls else ""
        said = [kinds, told, f"not read: {unread}" if unread else "", _listed(self.keys, "not read in messages: ")]
        return printable("; ".join(filter(None, said)))

    def doubts(self) -> list[str]:
        """What was read, and may not be meant; a sentence each."""
        words = [
            f"{counted(count, 'cell')} of `{column}` {'says' if count == 1 else 'say'} `{cell}`, which is read as that "
            "word; leave it empty where it means that nothing is there"
            for (cell, column), count in self.nulls.items()
            if cell != NULL and column not in self.unread
        ]
        return [printable(doubt) for doubt in (*self.notices.doubts, *words)]

    def left_out(self) -> str | None:
        """What was left out, in a line; None: nothing."""
        parts = []
        if self.silent:
            roles = ", ".join(sorted(self.roles)[:5])
            what = "that are to be learned " if UNLEARNED in self.roles else ""
            parts.append(f"{self.silent:,} of its conversations hold no words of an `assistant` {what}(roles: {roles})")
        if self.empty:
            parts.append(f"{self.empty:,} of its rows hold no text, no question or no answer")
        return printable(", and ".join(parts)) or None


def _listed(names: set[str], before: str = "") -> str:
    if not names:
        return ""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{before}{', '.join(sorted(names)[:NAMED])}{more}"


def _files(notices: Notices) -> str:
    names = notices.unread
    if len(names) <= 3:
        return ", ".join(sorted(names))
    if copies := notices.copies:
        others = _files(Notices(names - copies))
        first = f"{counted(len(copies), 'file')} that {'is a copy' if len(copies) == 1 else 'are copies'} of others"
        return f"{first} ({_listed(copies)}){f', {others}' if others else ''}"
    hidden = {name for name in names if any(part.startswith(".") for part in PurePath(name).parts)}
    said = [counted(len(hidden), "hidden file")] if hidden else []
    if shown := names - hidden:
        endings = Counter(PurePath(name).suffix or PurePath(name).name for name in shown)
        named = ", ".join(sorted(endings, key=lambda ending: (-endings[ending], ending))[:NAMED])
        said.insert(0, f"{len(shown):,} files ({named}{', …' if len(endings) > NAMED else ''})")
    return ", ".join(said)
