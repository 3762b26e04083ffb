"""What files are: the kind of each, recognised by its content before its name. `folders.py` finds them.

JSON lines, JSON, CSV, TSV, Parquet, Arrow (stream or file) and plain text; plain or compressed with gzip, Zstandard,
bzip2 or xz. `readers.py` reads them.
"""

from __future__ import annotations

import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from limbeck.data.reading.contents import Container, json_in, looks_like_rows, table_in
from limbeck.data.reading.streams import Streams
from limbeck.errors import InputError

HEAD = 1 << 16
CHUNK = 1 << 20
SUFFIXES: dict[str, Container] = {
    ".jsonl": "json lines", ".ndjson": "json lines", ".json": "JSON", ".csv": "CSV", ".tsv": "TSV",
    ".parquet": "Parquet", ".pq": "Parquet", ".arrow": "Arrow file", ".feather": "Arrow file", ".ipc": "Arrow file",
    ".txt": "text", ".text": "text", ".md": "text",
}  # fmt: skip
COMPRESSED = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2", ".xz": "xz"}
_FOREIGN = {
    b"PK\x03\x04": ("a zip archive", "Unpack it"),
    b"%PDF": ("a PDF", "Extract its text"),
    b"SQLite format 3": ("an SQLite database", "Export its table as CSV"),
    b"\x89HDF": ("an HDF5 file", "Write it as Parquet"),
    b"\x93NUMPY": ("a NumPy array", "Write it as Parquet"),
    b"Obj\x01": ("an Avro file", "Write it as Parquet"),
    b"ORC": ("an ORC file", "Write it as Parquet"),
    b"\x80\x04\x95": ("a pickle, which could run code", "Write it as Parquet"),
    b"\x04\x22\x4d\x18": ("compressed with lz4", "Unpack it, or use .gz, .zst, .bz2 or .xz"),
    b"version https://git-lfs": ("a Git LFS pointer, not the file itself", "Run `git lfs pull`"),
}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
NAMES = {"utf-8": "UTF-8", "utf-8-sig": "UTF-8", "utf-16": "UTF-16", "utf-32": "UTF-32"}


Rows = Iterator[tuple[Any, str]]
"""Rows with their place: what the file holds there, and "my.jsonl, line 3"."""


class Told(Protocol):
    """What a reader of rows tells of what stands beside them."""

    def beside(self, listed: str, keys: dict[str, Any], where: str) -> None:
        """``keys`` of an object stand beside its list of rows, ``listed``.

        Raises:
            InputError: they change what the rows say.
        """

    def doubt(self, what: str) -> None:
        """Something is read that may not be meant."""

    def null(self, column: str, cell: str) -> None:
        """A cell of CSV says in a word of its own that nothing is there."""

    def header(self, path: Path, names: list[str], *, rows: bool) -> None:
        """A CSV file was read to its end. ``rows``: whether it has any."""


@dataclass(frozen=True)
class File:
    """A file of a source. ``key``: where the recipe names it (``data.corpus.0.jsonl``)."""

    path: Path
    key: str

    def error(self, what: str, fix: str | None = None) -> InputError:
        return InputError(f"{self.path}{what}", key=self.key, fix=fix)


@dataclass(frozen=True)
class Kind:
    """What a file was recognised as.

    Attributes:
        container: how rows stand in it.
        compression: around it; None for a plain file.
        encoding: of its text.
        delimiter: between the fields of a CSV file.
        doubt: what it may be instead.
    """

    container: Container
    compression: str | None = None
    encoding: str = "utf-8"
    delimiter: str = ","
    doubt: str | None = None

    def __str__(self) -> str:
        encoded = f", {NAMES[self.encoding]}" if self.encoding in ("utf-16", "utf-32") else ""
        packed = f", {self.compression}" if self.compression else ""
        name = "JSON lines" if self.container == "json lines" else self.container
        return f"{name}{encoded}{packed}"


def not_text(file: File, kind: Kind, where: str) -> InputError:
    """A file that is not in its encoding."""
    name = NAMES[kind.encoding]
    fix = f"Convert it: iconv -f LATIN1 -t UTF-8 {file.path.name}" if name == "UTF-8" else "Copy or download it again"
    return file.error(f" is not {name} ({where})", fix)


@contextmanager
def guarded(file: File, kind: Kind | None = None) -> Iterator[None]:
    """Turn what the readers of containers raise into one line that names the file."""
    import pyarrow

    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise file.error(f" cannot be read ({error.strerror})", "Check its permissions") from None
        reason = (str(error).splitlines() or [type(error).__name__])[0][:150]
        if kind is None or kind.compression is not None:
            what = f"torn ({kind.compression if kind else 'file'}: {reason})"
        else:
            what = f"not a whole {kind.container.removesuffix(' file')} file ({reason})"
        raise file.error(f" is {what}", "Copy or download it again") from None


def open_binary(file: File, compression: str | None) -> BinaryIO:
    """The file's bytes, decompressed as they are read."""
    if compression is None:
        return file.path.open("rb", buffering=CHUNK)
    unpacked: Any
    if compression == "zstd":  # no part of Python's library before 3.14
        import pyarrow

        unpacked = pyarrow.CompressedInputStream(pyarrow.OSFile(str(file.path)), "zstd")
    elif compression == "gzip":
        unpacked = gzip.open(file.path, "rb")  # noqa: SIM115 - the caller closes it
    else:
        unpacked = Streams(file.path, compression)
    return cast(BinaryIO, io.BufferedReader(unpacked, CHUNK))


def recognise(file: File, hint: Container | None = None) -> Kind:
    """What a file is.

    Args:
        hint: what the recipe says that it is. It decides where content and name do not.

    Raises:
        InputError: it cannot be read, or is nothing that limbeck reads.
    """
    with guarded(file), open_binary(file, None) as stream:
        head = stream.read(HEAD)
    compression = _compression(head)
    if compression is not None:
        with guarded(file, Kind("text", compression)), open_binary(file, compression) as stream:
            head = stream.read(HEAD)
        if _compression(head) is not None:
            raise file.error(f" is compressed twice ({compression}, {_compression(head)})", "Unpack it once")
    binary = _binary(head, file)
    named = SUFFIXES.get(suffix(file.path))
    if binary == "empty" and named in ("Parquet", "Arrow file"):
        raise file.error(f" is empty, which no {named.removesuffix(' file')} file is", "Copy or download it again")
    if binary is not None:
        return Kind(binary, compression)
    encoding = next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")
    if encoding == "utf-8" and head.count(0) > len(head) // 4:
        raise file.error(
            " looks like UTF-16 without a byte order mark, or is binary",
            f"Convert it: iconv -f UTF-16LE -t UTF-8 {file.path.name}",
        )
    text = head.decode(encoding, "ignore")
    container = _textual(text, len(head) < HEAD, file, hint)
    if container == "text" and hint is None and (table := table_in(text, whole=len(head) < HEAD)) is not None:
        if table.known:
            return Kind("TSV" if table.delimiter == "\t" else "CSV", compression, encoding, table.delimiter)
        names = ", ".join(f"`{name}`" for name in table.names[:3])
        doubt = f"{file.path} is read as text, and looks like a table ({names}); name it .csv or .tsv if it is one"
        return Kind(container, compression, encoding, doubt=doubt)
    if container == "text" and hint is None and looks_like_rows(text):
        doubt = f"{file.path} is read as text, and looks like rows in JSON; write one object a line, or one list"
        return Kind(container, compression, encoding, doubt=doubt)
    first = text.lstrip("\r\n").partition("\n")[0]
    return Kind(container, compression, encoding, _delimiter(container, first))


def suffix(path: Path) -> str:
    """The last suffix that names no compression, in lower case."""
    name = path.name.lower()
    while (last := Path(name).suffix) in COMPRESSED:
        name = name.removesuffix(last)
    return Path(name).suffix


def _compression(head: bytes) -> str | None:
    if head.startswith(b"\x1f\x8b\x08"):
        return "gzip"
    if head.startswith(b"\xfd7zXZ\x00"):
        return "xz"
    if head.startswith(b"BZh") and head[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):  # a block, or the end of nothing
        return "bz2"
    zstd = head.startswith(b"\x28\xb5\x2f\xfd") or (head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F)
    return "zstd" if zstd else None


def _binary(head: bytes, file: File) -> Container | None:
    if not head:
        return "empty"
    if head.startswith(b"PAR1"):
        return "Parquet"
    if head.startswith(b"ARROW1"):
        return "Arrow file"
    if head.startswith(b"\xff\xff\xff\xff") and len(head) > 8:
        return "Arrow stream"
    for magic, (what, fix) in _FOREIGN.items():
        if head.startswith(magic):
            raise file.error(f" is {what}", fix)
    if head[257:262] == b"ustar":
        raise file.error(" is a tar archive", "Unpack it")
    return None


def _textual(text: str, whole: bool, file: File, hint: Container | None) -> Container:
    """The container of a file that is text; ``whole``: ``text`` is all of it."""
    if hint == "text":
        return "text"
    named = SUFFIXES.get(suffix(file.path))
    wanted = named if hint is None or named in ("CSV", "TSV") else hint
    if wanted == "Parquet":
        wanted = named or wanted
    if wanted in ("Parquet", "Arrow file"):
        raise file.error(f" is not a whole {wanted} file (it does not begin like one)", "Copy or download it again")
    found = json_in(text, whole=whole, wanted=wanted)
    if found is not None:
        return found
    if wanted is None:
        raise file.error(
            " is no kind of file that is known", f"Name it {', '.join(list(SUFFIXES)[:5])} or .txt; or use `text:`"
        )
    return wanted


def _delimiter(container: Container, header: str) -> str:
    if container == "TSV":
        return "\t"
    if container == "CSV" and "," not in header:
        return next((other for other in ("\t", ";", "|") if other in header), ",")
    return ","
