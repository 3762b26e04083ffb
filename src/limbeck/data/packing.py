"""Rows and batches. This is the only place that shifts labels.

``labels_BT[b, i]`` is the token that follows ``ids_BT[b, i]`` in the same document; everything
below sees hidden states and targets that belong together and never shifts again.

Shape letters: B rows of a batch, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from limbeck.data.chat.encode import MASKED, WORDS
from limbeck.data.corpus import Corpus

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Rows of tokens with the labels they are to predict.

    Attributes:
        ids_BT: int64 token ids; padding holds ``0`` (never attended to: it stands on the right).
        positions_BT: int64 positions within a document; 0 where a document begins.
        segments_BT: int64 number of the document within its row, -1 in padding.
        labels_BT: int64 next token of the same document, -100 where nothing is learned.
        words_BT: bool, whether the label is of the text itself, and not a mark that ends or surrounds it.
        keys_BT: int64 with the bits of the document's key (uint64, see ``Corpus``); 0 in padding.
        offsets_BT: int64 where the token stands in its document, from 0; -1 in padding. A document's part in a row
            began at ``offsets_BT - positions_BT``.
    """

    ids_BT: Tensor
    positions_BT: Tensor
    segments_BT: Tensor
    labels_BT: Tensor
    words_BT: Tensor
    keys_BT: Tensor
    offsets_BT: Tensor

    def count(self) -> int:
        """Labels that are learned."""
        return int((self.labels_BT != IGNORED).sum())

    def to(self, device: torch.device) -> Batch:
        return Batch(*(t.to(device, non_blocking=True) for t in vars(self).values()))


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a document, or all of it, with room for L tokens in a row.

    It carries one token more than it occupies: the last label of a piece that was cut is the first token of the next
    piece, so every token is predicted exactly once.

    Attributes:
        ids, mask: [L + 1] token ids and loss mask.
        key: of the document, see ``Corpus``.
        offset: where the piece begins in the document.
    """

    ids: np.ndarray
    mask: np.ndarray
    key: int
    offset: int

    def __len__(self) -> int:
        """L, the tokens that it takes of a row."""
        return len(self.ids) - 1


@dataclass(frozen=True)
class Row:
    """Pieces of documents that share a row."""

    pieces: tuple[Piece, ...]

    def __len__(self) -> int:
        """Tokens."""
        return sum(len(piece) for piece in self.pieces)


@dataclass(frozen=True)
class Cuts:
    """What the ends of rows do to documents.

    Attributes:
        documents: how many there are.
        longer: of them, those that no row holds whole.
        answers: answers of conversations that are learned, at least in part, in a row that does not hold all of what
            was said since the answer before.
    """

    documents: int
    longer: int
    answers: int


class Rows:
    """All rows of a corpus, cut to ``seq_len``; row r is the same in every process and every run.

    ``pack=True``: documents stand one after another, cut where a row ends. ``pack=False``: a row
    holds one document, or one piece of a long one, and is padded on the right.
    """

    def __init__(self, corpus: Corpus, seq_len: int, *, pack: bool) -> None:
        self.corpus, self.seq_len, self.pack = corpus, seq_len, pack
        # A document of n tokens has n - 1 positions with a next token: that is what a row holds.
        spans = np.maximum(corpus.lengths - 1, 0)
        if pack:
            self._ends = np.cumsum(spans)
            total = int(self._ends[-1]) if len(spans) else 0
            self._n_rows = -(-total // seq_len)
        else:
            self._ends = np.cumsum(-(-spans // seq_len))  # rows up to and with document d
            self._n_rows = int(self._ends[-1]) if len(spans) else 0

    def __len__(self) -> int:
        return self._n_rows

    def __getitem__(self, r: int) -> Row:
        if not 0 <= r < self._n_rows:
            raise IndexError(r)
        if not self.pack:
            d = self.document_of(r)
            within = r - (int(self._ends[d - 1]) if d else 0)
            return Row((self._piece(d, within * self.seq_len, self.seq_len),))
        position, pieces, room = r * self.seq_len, [], self.seq_len
        d = int(np.searchsorted(self._ends, position, side="right"))
        while room and d < len(self._ends):
            offset = position - (int(self._ends[d - 1]) if d else 0)
            length = min(int(self._ends[d]) - position, room)
            if length > 0:
                pieces.append(self._piece(d, offset, length))
            position, room, d = position + length, room - length, d + 1
        return Row(tuple(pieces))

    def _piece(self, d: int, offset: int, length: int) -> Piece:
        ids, mask = self.corpus.document(d)
        span = slice(offset, offset + length + 1)
        return Piece(ids[span], mask[span], int(self.corpus.keys[d]), offset)

    def cuts(self) -> Cuts:
        """What is lost at the ends of rows."""
        corpus = self.corpus
        spans = np.maximum(corpus.lengths - 1, 0)
        longer = spans > self.seq_len
        # The first token of any document is no label; of a conversation the second is none either.
        several = corpus.lengths > 1
        conversation = np.zeros(len(corpus), np.bool_)
        conversation[several] = corpus.loss_mask[corpus.starts[several] + 1] == MASKED
        begins = self._ends - spans if self.pack else np.zeros(len(corpus), np.int64)
        first = self.seq_len - begins % self.seq_len  # where the first row of a document ends in it
        answers = 0
        for d in np.flatnonzero(conversation & (first < spans)).tolist():
            cuts = np.arange(first[d], spans[d], self.seq_len)
            answers += _torn(corpus.document(d)[1], cuts)
        return Cuts(len(corpus), int(longer.sum()), answers)

    def document_of(self, r: int) -> int:
        """The document of row r, where rows are not packed."""
        return int(np.searchsorted(self._ends, r, side="right"))

    def count(self, r: int) -> int:
        """Labels in row r."""
        return sum(int(np.count_nonzero(piece.mask[1:])) for piece in self[r].pieces)


def _torn(mask: np.ndarray, cuts: np.ndarray) -> int:
    """How many runs of labels have a cut between the end of the run before them and their own last label.

    A cut at c: a row ends there, and the next one begins with token c, whose first label is c + 1.
    """
    labels = np.concatenate([[False], np.asarray(mask) != MASKED, [False]])
    edges = np.flatnonzero(labels[1:] != labels[:-1])
    starts, ends = edges[::2], edges[1::2]
    asked = np.concatenate([[0], ends[:-1]])
    inside = np.searchsorted(cuts, ends - 1, side="left") - np.searchsorted(cuts, asked, side="right")
    return int(np.count_nonzero(inside[starts > 0] > 0))


def collate(rows: Sequence[Row]) -> Batch:
    """Rows to tensors, padded on the right to the longest; the one place that shifts labels."""
    shape = (len(rows), max(map(len, rows)))
    ids_BT, positions_BT = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    segments_BT, labels_BT = np.full(shape, -1, np.int64), np.full(shape, IGNORED, np.int64)
    words_BT = np.zeros(shape, np.bool_)
    keys_BT, offsets_BT = np.zeros(shape, np.uint64), np.full(shape, -1, np.int64)
    for b, row in enumerate(rows):
        at = 0
        for number, piece in enumerate(row.pieces):
            ids, mask, to = piece.ids, piece.mask, at + len(piece)
            ids_BT[b, at:to] = ids[:-1]
            labels_BT[b, at:to] = np.where(mask[1:] != 0, ids[1:].astype(np.int64), IGNORED)
            words_BT[b, at:to] = mask[1:] == WORDS
            positions_BT[b, at:to] = np.arange(to - at)
            segments_BT[b, at:to] = number
            keys_BT[b, at:to] = piece.key
            offsets_BT[b, at:to] = np.arange(piece.offset, piece.offset + to - at)
            at = to
        # Padding goes on counting: a restart would look like one more packed document.
        positions_BT[b, at:] = np.arange(shape[1] - at) + (positions_BT[b, at - 1] + 1 if at else 0)
    arrays = (ids_BT, positions_BT, segments_BT, labels_BT, words_BT, keys_BT.view(np.int64), offsets_BT)
    return Batch(*map(torch.from_numpy, arrays))


def row_order(n_rows: int, seed: int) -> Iterator[int]:
    """Row numbers for ever: each epoch a new permutation, the same for the same seed."""
    epoch = 0
    while True:
        yield from epoch_order(n_rows, seed, epoch).tolist()
        epoch += 1


def epoch_order(n_rows: int, seed: int, epoch: int) -> np.ndarray:
    """Row numbers of one epoch (from 0), int64 [n_rows]: a permutation that depends on the arguments alone."""
    return np.random.default_rng([seed, epoch]).permutation(n_rows)
