"""Files of xz and bzip2, to their last byte.

Python's ``lzma.open`` and ``bz2.open`` end without a word where something follows a stream that is no stream: the
padding that xz allows, plain text that was appended, a damaged stream.
"""

from __future__ import annotations

import bz2
import io
import lzma
from pathlib import Path
from typing import Any

_BLOCK = 1 << 16


class Streams(io.RawIOBase):
    """What all streams of a file hold, one after another.

    Raises, as it is read:
        EOFError, OSError, LZMAError: a stream is torn, or something follows one that is none.
    """

    def __init__(self, path: Path, compression: str) -> None:
        self.file = path.open("rb", buffering=0)
        self.new: Any = lzma.LZMADecompressor if compression == "xz" else bz2.BZ2Decompressor
        self.padded = compression == "xz"
        self.stream, self.begun = self.new(), b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while True:
            if self.stream.eof and not self._next():
                return 0
            block = b""
            if self.stream.needs_input:
                block, self.begun = self.begun or self.file.read(_BLOCK), b""
                if not block:
                    raise EOFError("it ends inside a stream")
            data = self.stream.decompress(block, len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)

    def _next(self) -> bool:
        """Begin the stream that follows; False: the file ends."""
        rest = self.stream.unused_data
        zeros = 0
        while True:
            begun = rest.lstrip(b"\0") if self.padded else rest
            zeros += len(rest) - len(begun)
            if begun:
                break
            rest = self.file.read(_BLOCK)
            if not rest:
                if zeros % 4:
                    raise EOFError(f"{zeros} zero bytes follow a stream; padding comes in fours")
                return False
        magic = b"\xfd7zXZ\x00" if self.padded else b"BZh"
        while len(begun) < len(magic) and (more := self.file.read(_BLOCK)):
            begun += more
        if zeros % 4 or not begun.startswith(magic):
            raise EOFError("what follows a whole stream is none")
        self.stream, self.begun = self.new(), begun
        return True
