"""Texts to token ids, on all cores that the process may use.

The ids are those of ``tokenizer(text, add_special_tokens=False)``. Texts of a call are tokenised in parallel by the
tokenizer's own threads, which respect the process's affinity and its cgroup. A long text is tokenised in overlapping
pieces, because a whole one takes some 80 bytes of memory a character.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

LONG = 1 << 18
"""Characters from which on a text is tokenised in pieces."""

PIECE = 1 << 16
"""Characters by which pieces advance."""

OVERLAP = 1 << 11
"""Characters that a piece shares with the one before it."""

PIECES = 16
"""Pieces in memory at a time."""


def plain_ids(texts: Sequence[str], tokenizer: Any) -> list[array[int]]:
    """Token ids of each text, without special tokens around it.

    Raises:
        UnicodeEncodeError, TypeError: a text holds half of a surrogate pair.
    """
    core = _core(tokenizer)
    short = [text for text in texts if len(text) <= LONG]
    coded = iter(core.encode_batch_fast(short, add_special_tokens=False) if short else ())
    return [array("I", next(coded).ids) if len(text) <= LONG else _long_ids(text, core) for text in texts]


def plain_ids_and_offsets(texts: Sequence[str], tokenizer: Any) -> list[tuple[array[int], np.ndarray]]:
    """Token ids of each text, and int64 [N, 2] where each token begins and ends, in characters.

    Raises:
        UnicodeEncodeError, TypeError: a text holds half of a surrogate pair.
    """
    core = _core(tokenizer)
    short = [text for text in texts if len(text) <= LONG]
    coded = iter(core.encode_batch(short, add_special_tokens=False) if short else ())
    return [_arrays(next(coded)) if len(text) <= LONG else _long(text, core) for text in texts]


def _core(tokenizer: Any) -> Any:
    """The tokenizer's backend, as a call of the tokenizer without padding and truncation sets it.

    Changed only where it differs: it must not be changed while another thread uses it.
    """
    core = tokenizer.backend_tokenizer
    if core.truncation is not None:
        core.no_truncation()
    if core.padding is not None:
        core.no_padding()
    if core.encode_special_tokens != tokenizer.split_special_tokens:
        core.encode_special_tokens = tokenizer.split_special_tokens
    return core


def _arrays(coded: Any, start: int = 0) -> tuple[array[int], np.ndarray]:
    return array("I", coded.ids), np.asarray(coded.offsets, np.int64).reshape(-1, 2) + start


class _NoAgreementError(Exception):
    pass


def _long_ids(text: str, core: Any) -> array[int]:
    ids = array("I")
    try:
        for part, _ in _joined(text, core):  # offsets of all of it would take four times the memory of the ids
            ids.extend(part)
    except _NoAgreementError:
        return array("I", core.encode(text, add_special_tokens=False).ids)
    return ids


def _long(text: str, core: Any) -> tuple[array[int], np.ndarray]:
    try:
        parts = list(_joined(text, core))
    except _NoAgreementError:
        return _arrays(core.encode(text, add_special_tokens=False))
    ids = array("I")
    for part, _ in parts:
        ids.extend(part)
    return ids, np.concatenate([spans for _, spans in parts])


def _joined(text: str, core: Any) -> Iterator[tuple[array[int], np.ndarray]]:
    """Ids and offsets of a long text, part by part.

    Two pieces are joined in the middle of what they share, and only if all tokens of its middle half are the same in
    both. What a piece reads differently because it was cut there lies at its ends, far from that half. Where they
    disagree (a run of one letter, for example, is divided from its beginning), they are made to share more.

    Raises:
        _NoAgreementError: they do not agree, however much they share; the text has to be tokenised whole.
    """
    last: tuple[array[int], np.ndarray] | None = None
    for border, end, piece in _pieces(text, core):
        if last is not None:
            shared, cut = OVERLAP, _agreement(last, piece, border, OVERLAP)
            while cut is None:
                shared *= 2
                if shared > PIECE // 2:
                    raise _NoAgreementError
                start = border - shared
                piece = _arrays(core.encode(text[start:end], add_special_tokens=False), start)
                cut = _agreement(last, piece, border, shared)
            yield last[0][: cut[0]], last[1][: cut[0]]
            piece = piece[0][cut[1] :], piece[1][cut[1] :]
        last = piece
    if last is not None:
        yield last


def _pieces(text: str, core: Any) -> Iterator[tuple[int, int, tuple[array[int], np.ndarray]]]:
    """(where the piece before it ends, where it ends, its tokens) of each piece."""
    borders = range(0, len(text), PIECE)
    for first in range(0, len(borders), PIECES):
        group = borders[first : first + PIECES]
        starts = [max(border - OVERLAP, 0) for border in group]
        pieces = [text[start : border + PIECE] for start, border in zip(starts, group, strict=True)]
        for start, border, coded in zip(
            starts, group, core.encode_batch(pieces, add_special_tokens=False), strict=True
        ):
            yield border, border + PIECE, _arrays(coded, start)


def _agreement(
    left: tuple[array[int], np.ndarray], right: tuple[array[int], np.ndarray], border: int, shared: int
) -> tuple[int, int] | None:
    """Indices of one token in two pieces, in the middle of the ``shared`` characters before ``border``; None if they
    do not have the same tokens there."""
    middle = []
    for _, spans in (left, right):
        inside = (spans[:, 0] >= border - 3 * shared // 4) & (spans[:, 1] <= border - shared // 4)
        middle.append(np.flatnonzero(inside))
    a, b = middle
    if len(a) == 0 or len(a) != len(b):
        return None
    ours, theirs = (slice(int(found[0]), int(found[0]) + len(found)) for found in (a, b))
    if left[0][ours] != right[0][theirs] or not np.array_equal(left[1][ours], right[1][theirs]):
        return None
    half = len(a) // 2
    return int(a[0]) + half, int(b[0]) + half
