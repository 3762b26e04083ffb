"""A corpus in tokens on disk: written once, memory-mapped by everybody who reads it.

Four plain arrays and a manifest in a folder. Documents are ordered by their hash, and the hash
also says which of them are held out: the order of the files changes nothing, a document that
stands twice is kept once, and what is held out today stays held out when the corpus grows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from limbeck.data.chat import Encoded, encode
from limbeck.data.document import Document
from limbeck.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 2


@dataclass(frozen=True)
class Corpus:
    """Documents in tokens.

    Attributes:
        ids: uint32 [M], every document's tokens one after another.
        loss_mask: uint8 [M], which tokens are labels, and of what (``data.chat``: MASKED, WORDS, MARK).
        starts: int64 [D], where document d begins in ``ids``.
        lengths: int64 [D], its tokens.
        n_bytes: int64 [D], UTF-8 bytes that the WORDS of document d stand for.
        keys: uint64 [D], the first 64 bits of its hash; ascending.
    """

    ids: np.ndarray
    loss_mask: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    n_bytes: np.ndarray
    keys: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def document(self, d: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and loss mask of document d."""
        span = slice(self.starts[d], self.starts[d] + self.lengths[d])
        return self.ids[span], self.loss_mask[span]

    def labels(self) -> int:
        """How many tokens can be learned. A document's first token is predicted from nothing."""
        firsts = self.starts[self.lengths > 0]
        return int(np.count_nonzero(self.loss_mask)) - int(np.count_nonzero(self.loss_mask[firsts]))


class _Writer:
    """Appends documents to the arrays of a corpus folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.ids = (folder / "ids.bin").open("wb")
        self.loss_mask = (folder / "loss_mask.bin").open("wb")
        self.lengths: list[int] = []
        self.n_bytes: list[int] = []
        self.keys: list[int] = []

    def add(self, encoded: Encoded, key: int) -> None:
        np.asarray(encoded.ids, np.uint32).tofile(self.ids)
        np.asarray(encoded.loss_mask, np.uint8).tofile(self.loss_mask)
        self.lengths.append(len(encoded.ids))
        self.n_bytes.append(encoded.n_bytes)
        self.keys.append(key)

    def close(self, extra: dict[str, object] | None = None) -> None:
        self.ids.close()
        self.loss_mask.close()
        lengths = np.asarray(self.lengths, np.int64)
        keys = np.asarray(self.keys, np.uint64)
        order = np.argsort(keys, kind="stable")
        arrays = {
            "starts": (np.cumsum(lengths) - lengths)[order],
            "lengths": lengths[order],
            "n_bytes": np.asarray(self.n_bytes, np.int64)[order],
            "keys": keys[order],
        }
        for name, array in arrays.items():
            np.save(self.folder / f"{name}.npy", array)
        manifest = {"format": FORMAT, "documents": len(keys), "tokens": int(lengths.sum()), **(extra or {})}
        (self.folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def open_corpus(folder: Path) -> Corpus:
    """Memory-map a corpus folder. Raises InputError if an array is torn."""
    manifest = json.loads((folder / "manifest.json").read_text())
    starts, lengths, n_bytes, keys = (
        np.load(folder / f"{name}.npy") for name in ("starts", "lengths", "n_bytes", "keys")
    )
    total = int(lengths.sum())
    for name, width in (("ids.bin", 4), ("loss_mask.bin", 1)):
        if (folder / name).stat().st_size != total * width or manifest["tokens"] != total:
            raise InputError(f"{folder / name} is torn", fix=f"Delete {folder.parent} and run again: it is made anew")
    empty = total == 0
    ids = np.zeros(0, np.uint32) if empty else np.memmap(folder / "ids.bin", np.uint32, "r")
    loss_mask = np.zeros(0, np.uint8) if empty else np.memmap(folder / "loss_mask.bin", np.uint8, "r")
    return Corpus(ids, loss_mask, starts, lengths, n_bytes, keys)


def holdout_cut(keys: Iterable[str], share: float) -> str:
    """The greatest document hash that is held out: a document is held out if its hash is no greater.

    Decided by the hash alone, so that reordering or growing a corpus moves no document across. A
    corpus so small that no hash falls below ``share`` holds out the smallest hash; at least one
    document is always left to train on.

    Raises:
        InputError: fewer than two different documents.
    """
    ordered = sorted(set(keys))
    if len(ordered) < 2:
        raise InputError(
            "the corpus is a single document: nothing would be left to measure on",
            key="data.corpus",
            fix='Say what separates its documents (`separator: "\\n\\n"`), or add documents',
        )
    below = sum(int(key[:16], 16) < share * 2.0**64 for key in ordered)
    return ordered[min(max(below, 1), len(ordered) - 1) - 1]


def write_corpora(
    folder: Path,
    found: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    cut: str,
    *,
    progress: Callable[[int], None] = lambda n: None,
) -> None:
    """Tokenise different documents into ``folder/train`` and ``folder/heldout``.

    Raises:
        InputError: a document that cannot be tokenised.
    """
    train, heldout = _Writer(folder / "train"), _Writer(folder / "heldout")
    for document in found:
        progress(1)
        writer = heldout if document.key <= cut else train
        writer.add(encode(document, tokenizer), int(document.key[:16], 16))
    train.close()
    heldout.close()


def write_corpus(folder: Path, found: Iterable[Document], tokenizer: PreTrainedTokenizerBase) -> None:
    """Tokenise different documents into ``folder``. Raises InputError for one that cannot be."""
    writer = _Writer(folder)
    for document in found:
        writer.add(encode(document, tokenizer), int(document.key[:16], 16))
    writer.close()


def write_encoded(folder: Path, rows: Iterator[Encoded], extra: dict[str, object]) -> None:
    """Write documents that are tokens already (what a teacher wrote), numbered in their order."""
    writer = _Writer(folder)
    for number, encoded in enumerate(rows):
        writer.add(encoded, number)
    writer.close(extra)
