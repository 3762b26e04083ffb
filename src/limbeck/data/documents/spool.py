"""Different documents in one local file, to be read by their hash.

A corpus is read once, whatever is asked of it later: it never has to fit in memory, and a slow source (a hub, a
parse) is asked once.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from limbeck.data.documents.document import Document
from limbeck.files import write_whole


class Spool:
    """Documents in the order of their hashes, a finished folder of ``write``.

    Attributes:
        keys: uint64 [D], the first 64 bits of each document's hash; ascending.
        sizes: int64 [D], bytes that each document takes in the file.
        fingerprint: hash of the set of documents: the order they stood in says nothing.
        duplicates: documents that were left out, because an equal one is there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        done = json.loads((folder / "done.json").read_text())
        self.fingerprint: str = done["fingerprint"]
        self.keys, self._starts, self.sizes = (np.load(folder / f"{name}.npy") for name in ("keys", "starts", "sizes"))
        self.duplicates: int = done["documents"] - len(self.keys)

    @staticmethod
    def is_done(folder: Path) -> bool:
        return (folder / "done.json").exists()

    @classmethod
    def write(
        cls, folder: Path, found: Iterable[Document], progress: Callable[[int, int], None] = lambda n, n_bytes: None
    ) -> Spool:
        """Read documents into ``folder``; of those that are equal the first is kept.

        Args:
            progress: is told of every document, and of the bytes that it takes.
        """
        folder.mkdir(parents=True, exist_ok=True)
        progress(0, 0)
        sizes = array("q")
        with (folder / "documents.bin").open("wb") as out, (folder / "digests.bin").open("wb") as digests:
            for document in found:
                row = _packed(document)
                out.write(row)
                digests.write(bytes.fromhex(document.key))
                sizes.append(len(row))
                progress(1, len(row))
        _index(folder, np.frombuffer(sizes, np.int64) if sizes else np.zeros(0, np.int64))
        return cls(folder)

    def remove(self) -> None:
        shutil.rmtree(self.folder)

    def __len__(self) -> int:
        return len(self.keys)

    def block_end(self, start: int, stop: int, size: int = 1 << 24) -> int:
        """Where a block of some ``size`` bytes ends that begins with document ``start``; a single document may be
        larger."""
        near = min(stop, start + size)  # a document takes a byte or more
        after = int(np.searchsorted(np.cumsum(self.sizes[start:near]), size, side="right"))
        return min(start + max(after, 1), stop)

    def read(self, start: int, stop: int) -> Iterator[tuple[int, Document]]:
        """(number, document) of the documents ``start`` to ``stop`` by hash, in the order of the file: a disk is
        slow at anything else."""
        numbers = np.arange(start, stop)[np.argsort(self._starts[start:stop], kind="stable")]
        with (self.folder / "documents.bin").open("rb") as file:
            for number in numbers.tolist():
                file.seek(self._starts[number])
                yield number, _unpacked(file.read(self.sizes[number]))


def _packed(document: Document) -> bytes:
    """``t`` and the text, or ``c`` and a conversation in JSON."""
    if document.text is not None:
        return b"t" + document.text.encode("utf-8", "surrogatepass")
    said = [document.messages, document.chat, document.template, document.tools]
    return b"c" + json.dumps(said, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _unpacked(row: bytes) -> Document:
    content = row[1:].decode("utf-8", "surrogatepass")
    if row[:1] == b"t":
        return Document(content)
    messages, chat, template, tools = json.loads(content)
    return Document(None, tuple(messages), chat, template, tuple(tools))


def _index(folder: Path, sizes: np.ndarray) -> None:
    """Write where each different document stands, by hash, and last the marker that the spool is whole."""
    digests = np.fromfile(folder / "digests.bin", ">u8").reshape(-1, 4)
    first = digests[:, 0].astype(np.uint64)
    order = _different(digests)
    np.save(folder / "keys.npy", first[order])
    np.save(folder / "starts.npy", (np.cumsum(sizes) - sizes)[order])
    np.save(folder / "sizes.npy", sizes[order])
    (folder / "digests.bin").unlink()
    write_whole(
        folder / "done.json", json.dumps({"fingerprint": _fingerprint(digests, order), "documents": len(digests)})
    )


def fingerprint_of(found: Iterable[Document]) -> str:
    """The fingerprint that a spool of these documents has."""
    digests = np.frombuffer(b"".join(bytes.fromhex(document.key) for document in found), ">u8").reshape(-1, 4)
    return _fingerprint(digests, _different(digests))


def _different(digests: np.ndarray) -> np.ndarray:
    """Indices of different digests (big-endian [D, 4]), ascending; of equal ones the first."""
    order = np.argsort(digests[:, 0], kind="stable")
    first = digests[order, 0]
    if (first[1:] == first[:-1]).any():  # equal documents, as good as always: all bits tell
        order = np.lexsort(digests.T[::-1])
        different = np.ones(len(order), bool)
        different[1:] = (digests[order][1:] != digests[order][:-1]).any(axis=1)
        order = order[different]
    return order


def _fingerprint(digests: np.ndarray, order: np.ndarray) -> str:
    whole = hashlib.sha256()
    for start in range(0, len(order), 1 << 16):
        whole.update(digests[order[start : start + (1 << 16)]].tobytes().hex().encode())
    return whole.hexdigest()[:16]
