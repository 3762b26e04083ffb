"""Files that are written for a test, and what limbeck reads of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from limbeck.data.documents.document import Document
from limbeck.data.documents.seen import Seen
from limbeck.data.documents.sources import documents
from limbeck.recipe import FilesSource

U, A = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}


def write(folder: Path, name: str, data: Any) -> Path:
    """Write bytes or a string as they are, a list as JSON lines, anything else as JSON."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, list):
        data = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in data)
    elif not isinstance(data, str | bytes):
        data = json.dumps(data, indent=1)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def read(*paths: Path | str, **more: Any) -> tuple[list[Document], Seen]:
    """The documents of files or folders, and what was seen."""
    seen: dict[str, Seen] = {}
    found = list(documents((FilesSource(files=tuple(map(str, paths)), **more),), seen))
    return found, seen["data.corpus.0"]
