"""Different documents in one local file, to be read by their hash.

A corpus is read once, whatever is asked of it later: it never has to fit in memory, and a slow source (a hub, a
parse) is asked once.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from limbeck.data.document import Document
from limbeck.files import write_whole


class Spool:
    """Documents in the order of their hashes, a finished folder of ``write``.

    Attributes:
        keys: uint64 [D], the first 64 bits of each document's hash; ascending.
        sizes: int64 [D], bytes that each document takes in the file.
        fingerprint: hash of the set of documents: the order they stood in says nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fingerprint: str = json.loads((folder / "done.json").read_text())["fingerprint"]
        self.keys, self._starts, self.sizes = (np.load(folder / f"{name}.npy") for name in ("keys", "starts", "sizes"))

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
        sizes = array("q")
        with (folder / "documents.jsonl").open("wb") as out, (folder / "digests.bin").open("wb") as digests:
            for document in found:
                row = [document.text, document.messages, document.chat, document.tools]
                line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
                out.write(line)
                digests.write(bytes.fromhex(document.key))
                sizes.append(len(line))
                progress(1, len(line))
        _index(folder, np.frombuffer(sizes, np.int64) if sizes else np.zeros(0, np.int64))
        return cls(folder)

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Document]:
        """All documents, by hash."""
        position = 0
        while position < len(self):
            end = self.block_end(position, len(self))
            yield from (document for _, document in sorted(self.read(position, end), key=lambda pair: pair[0]))
            position = end

    def block_end(self, start: int, stop: int, size: int = 1 << 24) -> int:
        """Where a block of some ``size`` bytes ends that begins with document ``start``; a single document may be
        larger."""
        near = min(stop, start + size // 16)  # no document takes less
        after = int(np.searchsorted(np.cumsum(self.sizes[start:near]), size, side="right"))
        return min(start + max(after, 1), stop)

    def read(self, start: int, stop: int) -> Iterator[tuple[int, Document]]:
        """(number, document) of the documents ``start`` to ``stop`` by hash, in the order of the file: a disk is
        slow at anything else."""
        numbers = np.arange(start, stop)[np.argsort(self._starts[start:stop], kind="stable")]
        with (self.folder / "documents.jsonl").open("rb") as file:
            for number in numbers.tolist():
                file.seek(self._starts[number])
                line = file.read(self.sizes[number])
                text, messages, chat, tools = json.loads(line.decode("utf-8", "surrogatepass"))
                yield number, Document(text, tuple(messages), chat, tuple(tools))


def _index(folder: Path, sizes: np.ndarray) -> None:
    """Write where each different document stands, by hash, and last the marker that the spool is whole."""
    digests = np.fromfile(folder / "digests.bin", ">u8").reshape(-1, 4)
    first = digests[:, 0].astype(np.uint64)
    order = np.argsort(first, kind="stable")
    if (first[order][1:] == first[order][:-1]).any():  # equal documents, as good as always: then all bits are asked
        order = np.lexsort(digests.T[::-1])
        different = np.ones(len(order), bool)
        different[1:] = (digests[order][1:] != digests[order][:-1]).any(axis=1)
        order = order[different]
    whole = hashlib.sha256()
    for start in range(0, len(order), 1 << 16):
        whole.update(digests[order[start : start + (1 << 16)]].tobytes().hex().encode())
    np.save(folder / "keys.npy", first[order])
    np.save(folder / "starts.npy", (np.cumsum(sizes) - sizes)[order])
    np.save(folder / "sizes.npy", sizes[order])
    (folder / "digests.bin").unlink()
    write_whole(folder / "done.json", json.dumps({"fingerprint": whole.hexdigest()[:16]}))
