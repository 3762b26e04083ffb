"""Files of rows: what they hold is recognised by their content, whatever they are called.

JSON lines, a JSON array, CSV, TSV, Parquet, Arrow (stream or file) and plain text; plain or compressed with gzip,
Zstandard, bzip2 or xz. Everything is streamed; of a JSON array one element at a time is held.
"""

from __future__ import annotations

import bz2
import csv
import glob
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from limbeck.errors import InputError, RecipeError

Rows = Iterator[tuple[Any, str]]
"""Rows with their place: what the file holds there, and "my.jsonl, line 3"."""

_COMPRESSED = ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\x00", "xz"), (b"\x28\xb5\x2f\xfd", "Zstandard"))
_ENDINGS = (".gz", ".bz2", ".xz", ".zst", ".zstd")
_TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".ipc")
_TEXTS = (".txt", ".text", ".md")
_TORN = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)
_CHUNK = 1 << 20


def files_of(named: str | tuple[str, ...], key: str) -> list[Path]:
    """Files of a path, a pattern, a folder, or a list of these, sorted within each; of a folder all that limbeck knows
    by their names, at any depth.

    Raises:
        RecipeError: there is nothing.
    """
    found: list[Path] = []
    for one in (named,) if isinstance(named, str) else named:
        path = Path(one).expanduser()
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and _suffix(p) in (*_TABLES, *_TEXTS))
            if not inside:
                raise RecipeError(
                    f"{one} is a folder without files that limbeck reads", key=key, fix=f"It reads {', '.join(_TABLES)}"
                )
            found += inside
        elif path.exists():
            found.append(path)
        else:
            inside = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
            if not inside:
                raise RecipeError(f"there is no {one}", key=key, fix="Relative paths start at the current directory")
            found += inside
    return found


def _suffix(path: Path) -> str:
    """What a file's name says of its content, without the compression."""
    name = path.name.lower()
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    return Path(name).suffix


def read_rows(path: Path, key: str) -> Rows:
    """Rows of a file; of plain text one row, ``{"text": ...}``.

    Raises:
        InputError: it is torn, of another kind, or not Unicode; names the file and the place.
    """
    with _in_a_line(path, key):
        compression, beginning = _look(path)
        if compression is None and beginning.startswith(b"PAR1"):
            yield from _parquet(path, key)
        elif compression is None and beginning.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
            yield from _arrow(path, key)
        elif _suffix(path) in _TEXTS:
            yield {"text": read_text(path, key)}, str(path)
        else:
            _require_text(path, key, beginning)
            with _text(path, compression, beginning, rows=True) as stream:
                yield from _rows_of_text(stream, path, _suffix(path), _plain(beginning), key)


def read_text(path: Path, key: str) -> str:
    """All of a file of plain text, compressed or not. Raises InputError."""
    with _in_a_line(path, key):
        compression, beginning = _look(path)
        _require_text(path, key, beginning)
        with _text(path, compression, beginning, rows=False) as stream:
            return stream.read()


def _require_text(path: Path, key: str, beginning: bytes) -> None:
    if beginning.startswith((b"PAR1", b"ARROW1")):
        raise InputError(f"{path} holds a table", key=key, fix="Unpack it, and read it with `files:`")
    if beginning.startswith(b"PK\x03\x04") or b"\0" in _plain(beginning):
        raise InputError(f"{path} holds no text and no table", key=key, fix="Unpack it first, or name another file")


@contextmanager
def _in_a_line(path: Path, key: str) -> Iterator[None]:
    """What reading raises, as one line that names the file."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 (byte {error.start})",
            key=key,
            fix=f"Convert it: iconv -f LATIN1 -t UTF-8 {path.name}",
        ) from None
    except _TORN as error:
        raise InputError(f"{path} is torn ({error})", key=key, fix="Copy or download it again") from None
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error})", key=key, fix="Check the file and its permissions"
        ) from None


# ---------------------------------------------------------------------------------------------- bytes and text


def _look(path: Path) -> tuple[str | None, bytes]:
    """How a file is compressed, and its first bytes without the compression."""
    with path.open("rb") as file:
        start = file.read(4096)
    compression = next((name for magic, name in _COMPRESSED if start.startswith(magic)), None)
    if compression is None:
        return None, start
    with _bytes(path, compression) as stream:
        return compression, stream.read(4096)


def _bytes(path: Path, compression: str | None) -> IO[bytes]:
    match compression:
        case "gzip":
            return gzip.open(path, "rb")  # type: ignore[return-value]
        case "bzip2":
            return bz2.open(path, "rb")
        case "xz":
            return lzma.open(path, "rb")
        case "Zstandard":  # Python has it from 3.14 on
            import pyarrow

            return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _text(path: Path, compression: str | None, beginning: bytes, *, rows: bool) -> io.TextIOWrapper:
    """``rows``: line ends are left as they are, as ``csv`` wants them."""
    encoding = "utf-16" if beginning.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    return io.TextIOWrapper(_bytes(path, compression), encoding=encoding, newline="" if rows else None)


def _plain(beginning: bytes) -> bytes:
    """The first bytes in UTF-8, where they are UTF-16."""
    if beginning.startswith((b"\xff\xfe", b"\xfe\xff")):
        return beginning[: len(beginning) // 2 * 2].decode("utf-16", "ignore").encode("utf-8", "ignore")
    return beginning.removeprefix(b"\xef\xbb\xbf")


# -------------------------------------------------------------------------------------------------- text files


def _rows_of_text(stream: io.TextIOWrapper, path: Path, suffix: str, beginning: bytes, key: str) -> Rows:
    first = beginning.lstrip()[:1]
    if suffix in (".csv", ".tsv"):
        return _csv(stream, path, suffix, beginning, key)
    if first == b"[":
        return _array(stream, path, key)
    if suffix == ".json" and first == b"{" and not _is_whole(beginning.lstrip().split(b"\n")[0]):
        return _object(stream, path, key)
    return _lines(stream, path, key)


def _is_whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _lines(stream: io.TextIOWrapper, path: Path, key: str) -> Rows:
    for number, line in enumerate(stream, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"{path}, line {number} is not JSON ({getattr(error, 'msg', 'nested too deep')})",
                    key=key,
                    fix="Write one object a line",
                ) from None
            yield row, f"{path}, line {number}"


def _array(stream: io.TextIOWrapper, path: Path, key: str) -> Rows:
    """The elements of a JSON array, one at a time."""
    decoder, buffer, at, number = json.JSONDecoder(), stream.read(_CHUNK).lstrip()[1:], 0, 0
    wanted = _CHUNK
    while True:
        at = _skip(buffer, at, ", \t\r\n")
        try:
            if buffer[at : at + 1] == "]":
                if (buffer[at + 1 :] + stream.read(_CHUNK)).strip():
                    fix = "Write one array, or one object a line"
                    raise InputError(f"{path} goes on after its array", key=key, fix=fix)
                return
            row, after = decoder.raw_decode(buffer, at)
            follows = buffer[(end := _skip(buffer, after, " \t\r\n")) : end + 1]
        except RecursionError:
            raise InputError(f"{path}, item {number + 1} is nested too deep", key=key) from None
        except json.JSONDecodeError as error:
            more = stream.read(wanted)
            if not more:
                what = "ends inside its array" if error.pos >= len(buffer) - 1 else f"is not JSON ({error.msg})"
                raise InputError(f"{path}, item {number + 1} {what}", key=key, fix="Check the file") from None
            buffer, at, wanted = buffer[at:] + more, 0, wanted * 2
            continue
        if not follows:  # what is still to be read may belong to it
            more = stream.read(wanted)
            if not more:
                raise InputError(f"{path}, item {number + 1} ends inside its array", key=key, fix="Check the file")
            buffer, at = buffer[at:] + more, 0
            continue
        number += 1
        if follows not in ",]":
            raise InputError(f"{path}, item {number} is not followed by a comma", key=key, fix="Check the file")
        yield row, f"{path}, item {number}"
        at = after
        if at > _CHUNK:
            buffer, at, wanted = buffer[at:], 0, _CHUNK


def _skip(text: str, at: int, what: str) -> int:
    while at < len(text) and text[at] in what:
        at += 1
    return at


def _object(stream: io.TextIOWrapper, path: Path, key: str) -> Rows:
    """One object in a file: a row, or rows under its one list (``{"data": [...]}``)."""
    try:
        whole = json.loads(stream.read())
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not JSON ({getattr(error, 'msg', 'nested too deep')})",
            key=key,
            fix="Write an array of objects, or one object a line",
        ) from None
    lists = [name for name, value in whole.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(lists) == 1 and len(whole) == 1:
        for number, row in enumerate(whole[lists[0]], 1):
            yield row, f"{path}, `{lists[0]}`, item {number}"
    else:
        yield whole, str(path)


def _csv(stream: io.TextIOWrapper, path: Path, suffix: str, beginning: bytes, key: str) -> Rows:
    csv.field_size_limit(sys.maxsize)
    header = beginning.split(b"\n")[0]
    separators = [b"\t"] if suffix == ".tsv" else [b",", b"\t", b";"]
    delimiter = max(separators, key=header.count).decode()
    reader = csv.DictReader(stream, delimiter=delimiter, strict=True)
    try:
        names = reader.fieldnames or []
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"{path} names the column {twice!r} twice", key=key, fix="Rename one of them")
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                found = "more" if None in row else "fewer"
                raise InputError(
                    f"{where} has {found} fields than the header", key=key, fix="Quote fields that hold a separator"
                )
            yield row, where
    except csv.Error as error:
        where = f"{path}, line {reader.line_num}"
        raise InputError(f"{where} is not CSV ({error})", key=key, fix="Check its quotes") from None


# ------------------------------------------------------------------------------------------------ binary tables


def _parquet(path: Path, key: str) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from _of_batches(file.iter_batches(1000), path)
    except pyarrow.ArrowException as error:
        what = f"{path} is not a whole Parquet file ({_first_line(error)})"
        raise InputError(what, key=key, fix="Copy it again") from None


def _arrow(path: Path, key: str) -> Rows:
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as source:
            if source.read(6) == b"ARROW1":
                source.seek(0)
                file = pyarrow.ipc.open_file(source)
                yield from _of_batches((file.get_batch(i) for i in range(file.num_record_batches)), path)
            else:
                source.seek(0)
                yield from _of_batches(iter(pyarrow.ipc.open_stream(source)), path)
    except pyarrow.ArrowException as error:
        what = f"{path} is not a whole Arrow file ({_first_line(error)})"
        raise InputError(what, key=key, fix="Copy it again") from None


def _of_batches(batches: Iterator[Any], path: Path) -> Rows:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, 1000):
            for row in batch.slice(start, 1000).to_pylist():
                number += 1
                yield row, f"{path}, row {number}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
