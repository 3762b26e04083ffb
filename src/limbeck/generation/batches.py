"""The record of what was written: an answer is on disk before it is used, and none is asked for twice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TypeAlias

Answer: TypeAlias = tuple[list[int], list[int]]
"""A prompt's token ids, and the new ones."""


class Journal:
    """Batches of answers, in a file of one JSON line a batch: ``[[prompt, new], ...]``.

    Opening it reads the batches that are whole; from the first torn line on, the file is cut off, and batches are
    written again. A file that does not exist is an empty journal; it is made with the first batch.

    Attributes:
        batches: all that it holds, in order.
        tokens: new tokens in them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.batches: list[list[Answer]] = []
        self.tokens = 0
        if path.exists():
            self._read()

    def _read(self) -> None:
        good = 0
        with self.path.open("r+b") as file:
            for line in file:
                try:
                    batch = [(list(prompt), list(new)) for prompt, new in json.loads(line)]
                except (ValueError, TypeError):
                    break
                self._keep(batch)
                good += len(line)
            file.truncate(good)

    def append(self, batch: list[Answer]) -> None:
        """Add a batch; it is on disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(batch) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._keep(batch)

    def _keep(self, batch: list[Answer]) -> None:
        self.batches.append(batch)
        self.tokens += sum(len(new) for _, new in batch)
