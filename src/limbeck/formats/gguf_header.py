"""What a GGUF file says of itself, read without its weights.

The ``gguf`` package's own reader takes five seconds for a vocabulary of 49,152, since it makes arrays of
every string; here long lists are stepped over. Format: ggml's docs/gguf.md, versions 2 and 3, little endian.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

# Kind of value → format: u8 i8 u16 i16 u32 i32 f32 bool, then 8 string, 9 list, u64 i64 f64.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _LIST = 8, 9


@dataclass(frozen=True)
class TensorInfo:
    """``kind`` is ggml's name of its type (``Q4_1``), ``n_bytes`` its size in the file."""

    name: str
    shape: tuple[int, ...]
    kind: str
    n_bytes: int
    offset: int

    @property
    def weights(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Header:
    """``fields``: settings by name; of a list only its length, of a list of lists nothing."""

    fields: dict[str, Any]
    tensors: tuple[TensorInfo, ...]
    size: int
    """Bytes that the file must have at least."""


class _Cursor:
    def __init__(self, data: Any) -> None:
        self.data, self.at = data, 0

    def take(self, form: str) -> Any:
        (value,) = struct.unpack_from(f"<{form}", self.data, self.at)
        self.at += struct.calcsize(f"<{form}")
        return value

    def string(self) -> str:
        length = self.take("Q")
        raw = self.data[self.at : self.at + length]
        if len(raw) != length:
            raise ValueError("a string reaches past the end")
        self.at += length
        return str(raw, "utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _LIST:
            return self.take(_SCALARS[kind])
        of, count = self.take("I"), self.take("Q")
        if of in _SCALARS:
            self.at += count * struct.calcsize(f"<{_SCALARS[of]}")
        else:
            for _ in range(count):
                if of == _STRING:
                    self.at += 8 + struct.unpack_from("<Q", self.data, self.at)[0]
                else:
                    self.value(of)
        return count


def read_header(path: Path) -> Header:
    """Parse a file's settings and its table of tensors.

    Raises:
        ValueError: it is no GGUF file, or damaged, or ends within its header.
    """
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            cursor = _Cursor(data)
            cursor.at = 4
            try:
                version, n_tensors, n_fields = cursor.take("I"), cursor.take("Q"), cursor.take("Q")
                if version not in (2, 3):
                    raise ValueError(f"its version is {version}")
                fields = {}
                for _ in range(n_fields):
                    name = cursor.string()
                    fields[name] = cursor.value(cursor.take("I"))
                tensors = []
                for _ in range(n_tensors):
                    name = cursor.string()
                    shape = tuple(cursor.take("Q") for _ in range(cursor.take("I")))
                    kind, offset = GGMLQuantizationType(cursor.take("I")), cursor.take("Q")
                    block, n_bytes = GGML_QUANT_SIZES[kind]
                    tensors.append(TensorInfo(name, shape, kind.name, prod(shape) // block * n_bytes, offset))
            except (struct.error, KeyError, OverflowError, RecursionError) as error:
                raise ValueError("it ends within its header, or is damaged") from error
            alignment = fields.get("general.alignment", 32)
            if not isinstance(alignment, int) or alignment < 1:
                raise ValueError(f"its alignment is {alignment}")
            start = -(-cursor.at // alignment) * alignment
            return Header(fields, tuple(tensors), start + max((t.offset + t.n_bytes for t in tensors), default=0))
