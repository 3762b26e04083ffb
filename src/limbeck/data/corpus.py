"""A corpus in tokens on disk: written once, memory-mapped by its readers.

Four plain arrays and a manifest in a folder. Documents are ordered by their hash, and the hash
also says which of them are held out: the order of the files changes nothing, a document that
stands twice is kept once, and what is held out today stays held out when the corpus grows.
"""

from __future__ import annotations

import bisect
import datetime
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from limbeck.data.chat.encode import Encoded, encode_batch
from limbeck.data.chat.templates import DATE
from limbeck.data.documents.document import Document
from limbeck.data.documents.spool import Spool
from limbeck.errors import InputError
from limbeck.files import write_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 5
"""To be raised when equal documents give other tokens or labels: it is the version of the data stage."""

BATCH_BYTES = 1 << 20
"""Documents of about so many bytes are tokenised together: some 100 MB of memory while it lasts."""


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


_COLUMNS = {"ids": np.uint32, "loss_mask": np.uint8, "lengths": np.int64, "n_bytes": np.int64, "keys": np.uint64}


class _Writer:
    """Appends documents to the arrays of a corpus folder, and can go on with a folder that another process left.

    ``mark`` records how long the arrays are. What a killed process wrote after its last mark is cut off, so the
    folder ends with the same bytes however often it was begun.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.documents = self.tokens = self.labels = 0
        self.remarks: Counter[str] = Counter()
        self._go_on()
        self.files = {name: self._path(name).open("ab") for name in _COLUMNS}

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.bin"

    def _sizes(self) -> dict[str, int]:
        items = {"ids": self.tokens, "loss_mask": self.tokens}
        return {name: items.get(name, self.documents) * np.dtype(kind).itemsize for name, kind in _COLUMNS.items()}

    def _go_on(self) -> None:
        """Restore the last mark that all arrays reach to, and cut off what comes after it."""
        marks = []
        if (self.folder / "marks.jsonl").exists():
            for line in (self.folder / "marks.jsonl").read_text().splitlines(keepends=True):
                if line.endswith("\n"):  # else it is torn
                    marks.append(line)
        there = {name: self._path(name).stat().st_size if self._path(name).exists() else 0 for name in _COLUMNS}
        while marks:
            state = json.loads(marks[-1])
            self.documents, self.tokens, self.labels = (state[name] for name in ("documents", "tokens", "labels"))
            self.remarks = Counter(state["remarks"])
            if all(there[name] >= size for name, size in self._sizes().items()):
                break
            marks.pop()
        else:
            self.documents = self.tokens = self.labels = 0
            self.remarks = Counter()
        write_whole(self.folder / "marks.jsonl", "".join(marks))
        for name, size in self._sizes().items():
            with self._path(name).open("ab") as file:
                file.truncate(size)

    def add(self, encoded: Encoded, key: int) -> None:
        mask = np.asarray(memoryview(encoded.loss_mask) if isinstance(encoded.loss_mask, bytes) else encoded.loss_mask)
        row = {"ids": encoded.ids, "loss_mask": mask, "lengths": len(mask), "n_bytes": encoded.n_bytes, "keys": key}
        for name, kind in _COLUMNS.items():
            self.files[name].write(np.asarray(row[name], kind).tobytes())
        self.documents += 1
        self.tokens += len(mask)
        self.labels += int(np.count_nonzero(mask[1:]))
        self.remarks.update(encoded.remarks)

    def mark(self) -> None:
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        state = {"documents": self.documents, "tokens": self.tokens, "labels": self.labels, "remarks": self.remarks}
        with (self.folder / "marks.jsonl").open("a") as marks:
            marks.write(json.dumps(state) + "\n")
            marks.flush()
            os.fsync(marks.fileno())

    def close(self, extra: dict[str, object] | None = None) -> None:
        for file in self.files.values():
            file.close()
        lengths, n_bytes, keys = (np.fromfile(self._path(n), _COLUMNS[n]) for n in ("lengths", "n_bytes", "keys"))
        order = np.argsort(keys, kind="stable")
        arrays = {
            "starts": (np.cumsum(lengths) - lengths)[order],
            "lengths": lengths[order],
            "n_bytes": n_bytes[order],
            "keys": keys[order],
        }
        for name, array in arrays.items():
            np.save(self.folder / f"{name}.npy", array)
        manifest = {"format": FORMAT, "documents": len(keys), "tokens": int(lengths.sum()), **(extra or {})}
        write_whole(self.folder / "manifest.json", json.dumps(manifest, indent=1))
        for name in ("lengths.bin", "n_bytes.bin", "keys.bin", "marks.jsonl"):
            (self.folder / name).unlink()


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


def holdout_count(keys: np.ndarray, share: float) -> int:
    """How many of the documents, in the order of their hashes, are held out.

    Decided by the hash alone, so that reordering or growing a corpus moves no document across. A
    corpus so small that no hash falls below ``share`` holds out the smallest hash; at least one
    document is always left to train on.

    Args:
        keys: uint64 [D], the first 64 bits of different documents' hashes; ascending.

    Raises:
        InputError: fewer than two documents.
    """
    if len(keys) < 2:
        raise InputError(
            "the corpus is a single document: nothing would be left to measure on",
            key="data.corpus",
            fix='Say what separates its documents (`separator: "\\n\\n"`), or add documents',
        )
    below = bisect.bisect_left(keys, share * 2.0**64, key=int)
    return min(max(below, 1), len(keys) - 1)


@dataclass(frozen=True)
class Enough:
    """What a corpus has to hold before the rest of the documents may be left out.

    Attributes:
        labels: tokens to learn.
        documents: how many of them.
    """

    labels: int
    documents: int = 0


class Encoder:
    """Encodes the documents of a spool, a block at a time.

    Args:
        workers: threads that prepare texts and masks while the tokenizer's own threads work; changes no byte.
    """

    def __init__(
        self, spool: Spool, tokenizer: PreTrainedTokenizerBase, date: datetime.date = DATE, workers: int = 2
    ) -> None:
        self.spool, self.tokenizer, self.date, self.workers = spool, tokenizer, date, workers

    def blocks(self, start: int, stop: int) -> Iterator[Iterator[tuple[int, Encoded]]]:
        """Blocks of the documents ``start`` to ``stop``, by hash: (number, tokens) of each document of a block."""
        with ThreadPoolExecutor(self.workers) as threads:
            while start < stop:
                end = self.spool.block_end(start, stop)
                yield self._block(start, end, threads)
                start = end

    def _block(self, start: int, end: int, threads: ThreadPoolExecutor) -> Iterator[tuple[int, Encoded]]:
        work: deque[tuple[list[int], Future[list[Encoded]]]] = deque()
        try:
            for numbers, documents in self._batches(start, end):
                work.append((numbers, threads.submit(encode_batch, documents, self.tokenizer, self.date)))
                if len(work) > self.workers:
                    done, future = work.popleft()
                    yield from zip(done, future.result(), strict=True)
            while work:
                done, future = work.popleft()
                yield from zip(done, future.result(), strict=True)
        finally:
            for _, future in work:
                future.cancel()

    def _batches(self, start: int, end: int) -> Iterator[tuple[list[int], list[Document]]]:
        numbers: list[int] = []
        documents: list[Document] = []
        size = 0
        for number, document in self.spool.read(start, end):
            numbers.append(number)
            documents.append(document)
            size += int(self.spool.sizes[number])
            if size >= BATCH_BYTES:
                yield numbers, documents
                numbers, documents, size = [], [], 0
        if numbers:
            yield numbers, documents


def write_corpus(
    folder: Path,
    encoder: Encoder,
    documents: range,
    enough: Enough | None = None,
    progress: Callable[[int, int], None] = lambda n, n_bytes: None,
) -> Counter[str]:
    """Tokenise documents of a spool into ``folder``, by hash, and stop after the block that brings enough.

    A folder that a killed process left unfinished is gone on with; a finished one is kept.

    Args:
        documents: which, as numbers by hash.
        enough: None: all of them.
        progress: is told of documents, and of the bytes that they take in the spool.

    Returns:
        What is to be said of the corpus, with the number of documents that give reason to.

    Raises:
        InputError: a document that cannot be tokenised.
    """
    if (folder / "manifest.json").exists():
        return Counter(json.loads((folder / "manifest.json").read_text())["remarks"])
    writer = _Writer(folder)
    sizes = encoder.spool.sizes

    def is_enough() -> bool:
        return enough is not None and writer.labels >= enough.labels and writer.documents >= enough.documents

    first = documents.start + writer.documents
    progress(writer.documents, int(sizes[documents.start : first].sum()))
    if not is_enough():
        for block in encoder.blocks(first, documents.stop):
            for number, encoded in block:
                writer.add(encoded, int(encoder.spool.keys[number]))
                progress(1, int(sizes[number]))
            writer.mark()
            if is_enough():
                break
    writer.close({"remarks": dict(sorted(writer.remarks.items()))})
    return writer.remarks


def write_encoded(folder: Path, rows: Iterator[Encoded], extra: dict[str, object]) -> None:
    """Write documents that are tokens already (what a teacher wrote), numbered in their order."""
    writer = _Writer(folder)
    for number, encoded in enumerate(rows):
        writer.add(encoded, number)
    writer.close(extra)
