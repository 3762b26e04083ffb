"""What a store holds: whose signals they are, and which positions of which documents.

Shape letters: n positions of a span; R entries of all of them together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from limbeck.errors import StoreError
from limbeck.signals.codec import Encoded

Context = Literal["document", "row"]


@dataclass(frozen=True)
class Identity:
    """Whose signals these are. Signals of equal identities may share a store.

    Attributes:
        teacher: fingerprint of the weights that answered, or of a served teacher.
        tokenizer: fingerprint of the map from tokens to ids.
        vocab_size: tokens of the distributions.
        scheme: how a distribution became a few entries (``Scheme.plain``).
        context: what the teacher saw before a position: the document from its beginning, or the piece of it that
            stands in the row.
        encoding: how documents became tokens.
        codec: version of the codec of the entries.
        window: the largest number of tokens that the teacher saw.
    """

    teacher: str
    tokenizer: str
    vocab_size: int
    scheme: Mapping[str, Any] = field(hash=False)
    context: Context
    encoding: str
    codec: int
    window: int

    def plain(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Identity:
        """The inverse of :meth:`plain`. Raises KeyError where a field is missing."""
        return cls(**{each.name: plain[each.name] for each in fields(cls)})

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits: equal ones may share a store."""
        return hashlib.sha256(json.dumps(self.plain(), sort_keys=True).encode()).hexdigest()[:16]

    def require(self, asked: Identity, where: str, teacher: str = "") -> None:
        """Raise StoreError if these are not the signals that are asked for. It names what differs, and the fix.

        Args:
            where: the file that says what these are.
            teacher: a name of the teacher for people, as that file has it.
        """
        for each in fields(self):
            ours, theirs = getattr(self, each.name), getattr(asked, each.name)
            if ours == theirs:
                continue
            what, fix = _DIFFERENCES[each.name]
            if each.name == "scheme":
                ours, theirs = _scheme(ours, theirs)
            if each.name == "teacher" and teacher:
                ours = f"{teacher} ({ours})"
            raise StoreError(f"{where} is of {what}: {ours}, not {theirs}", fix=fix)


_OTHER = "Name another folder (`signals.folder`), and `limbeck capture` fills it"
_DIFFERENCES = {
    "codec": ("another codec version", f"Read it with the limbeck that wrote it. {_OTHER}"),
    "tokenizer": ("another tokenizer", _OTHER),
    "teacher": ("another teacher", _OTHER),
    "vocab_size": ("a vocabulary of another size", _OTHER),
    "scheme": ("another scheme", f"Write the store's settings into `signals`. {_OTHER}"),
    "context": ("another context", f"Set `signals.context` to the store's. {_OTHER}"),
    "encoding": ("another encoding of the documents (data format or chat template)", _OTHER),
    "window": ("another window of the teacher", _OTHER),
}


def _scheme(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[str, str]:
    """What differs of two schemes, shortly."""
    names = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))

    def show(scheme: Mapping[str, Any]) -> str:
        return ", ".join(f"{name} {scheme.get(name, 'unset')}" for name in names)

    return show(ours), show(theirs)


LARGEST_OFFSET = 2**31 - 1
"""Offsets and lengths are stored in 31 bits."""


@dataclass(frozen=True)
class Span:
    """Positions ``start .. start + length`` of one document. Position p predicts token p + 1.

    Attributes:
        key: first 64 bits of the document's hash, unsigned.
        start: offset of its first position in the document, in tokens.
        length: number of positions n.
        context: offset of the first token that the teacher saw.
        digest: 64-bit hash of the token ids from ``context`` to the label of the last position.
    """

    key: int
    start: int
    length: int
    context: int
    digest: int


@dataclass(frozen=True)
class SpanSignal:
    """What a teacher said of a span. A count of 0: the position has no label, and was not captured."""

    span: Span
    encoded: Encoded
