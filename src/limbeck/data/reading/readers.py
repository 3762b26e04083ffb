"""Rows of files, one after another: a file never has to fit in memory."""

from __future__ import annotations

import codecs
import csv
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from limbeck.data.documents.messages import without_nulls
from limbeck.data.reading.containers import (
    NAMES,
    ROW_COLUMNS,
    Container,
    File,
    Kind,
    guarded,
    is_row,
    open_binary,
    recognise,
)
from limbeck.errors import InputError

_CHUNK = 1 << 20
_ROWS = 1000


Rows = Iterator[tuple[Any, str]]
"""Rows with their place: what the file holds there, and "my.jsonl, line 3"."""


def read_rows(path: Path, key: str, hint: Container | None = None) -> Rows:
    """Rows of a file; of plain text its documents, each a string.

    Args:
        key: where the recipe names it, for errors.
        hint: what the recipe says that it is, where neither its content nor its name says it.

    Raises:
        InputError: it is torn, not what it seems, or nothing that limbeck reads; names file and line or row.
    """
    file = File(path, key)
    kind = recognise(file, hint)
    match kind.container:
        case "empty":
            return iter(())
        case "json lines":
            found = _json_lines(file, kind)
        case "JSON":
            found = _json(file, kind)
        case "CSV" | "TSV":
            found = _csv(file, kind)
        case "text":
            found = _text(file, kind, None)
        case _:
            found = _arrow(file, kind)
    return _guarded(found, file, kind)


def read_text(path: Path, key: str, separator: str | None) -> Iterator[str]:
    """Documents of a file of plain text, compressed or not.

    Args:
        separator: what stands between them. None: the file is one.

    Raises:
        InputError: as ``read_rows``.
    """
    file = File(path, key)
    kind = recognise(file, "text")
    if kind.container == "empty":
        return
    if kind.container != "text":
        raise file.error(f" is {kind}, and no text", "Read it with `files:`")
    for text, _ in _guarded(_text(file, kind, separator), file, kind):
        yield text


def _guarded(rows: Rows, file: File, kind: Kind) -> Rows:
    with guarded(file, kind):
        yield from rows


# ---------------------------------------------------------------------------------------------------------- text


def decoded(stream: BinaryIO, file: File, kind: Kind, *, newline: bool = True) -> Iterator[str]:
    """Text in chunks. ``newline``: every end of line becomes a line feed, as Python reads text."""
    decoder: Any = codecs.getincrementaldecoder(kind.encoding)()
    wrapped = io.IncrementalNewlineDecoder(decoder, translate=True) if newline else decoder
    done = 0
    while True:
        data = stream.read(_CHUNK)
        pending = len(decoder.getstate()[0])
        try:
            text = wrapped.decode(data, final=not data)
        except UnicodeDecodeError as error:
            at = done - pending + error.start
            raise _not_text(file, kind, f"byte {at}") from None
        done += len(data)
        if text:
            yield text
        if not data:
            return


def _not_text(file: File, kind: Kind, where: str) -> InputError:
    name = NAMES[kind.encoding]
    fix = f"Convert it: iconv -f LATIN1 -t UTF-8 {file.path.name}" if name == "UTF-8" else "Copy or download it again"
    return file.error(f" is not {name} ({where})", fix)


def _text(file: File, kind: Kind, separator: str | None) -> Rows:
    with open_binary(file, kind.compression) as stream:
        chunks = decoded(stream, file, kind)
        pieces = iter(["".join(chunks)]) if not separator else _split(chunks, separator)
        for number, piece in enumerate(pieces, 1):
            if piece.strip():
                yield piece.strip("\n"), f"{file.path}, document {number}"


def _split(chunks: Iterator[str], separator: str) -> Iterator[str]:
    """As ``str.split`` of the whole."""
    rest, wanted = "", 0
    parts: list[str] = []
    for chunk in chunks:
        parts.append(chunk)
        wanted -= len(chunk)
        if wanted > 0:
            continue
        *whole, rest = "".join((rest, *parts)).split(separator)
        yield from whole
        parts, wanted = [], len(rest)  # a document of many chunks is searched a few times, not once a chunk
    yield from "".join((rest, *parts)).split(separator)


# ---------------------------------------------------------------------------------------------------------- JSON


class _TwiceError(ValueError):
    def __init__(self, name: str) -> None:
        self.msg = f"the key {name!r} stands twice in an object"
        super().__init__(self.msg)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(next(name for name in names if names.count(name) > 1))
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _json_lines(file: File, kind: Kind) -> Rows:
    with open_binary(file, kind.compression) as stream:
        for number, line in _lines(stream, file, kind):
            if line.isspace():
                continue
            try:
                value = _DECODER.decode(line)
            except (ValueError, RecursionError) as error:
                raise _no_json(file, f"line {number:,}", error) from None
            yield value, f"{file.path}, line {number}"


def _no_json(file: File, where: str, error: Exception | str) -> InputError:
    reason = error if isinstance(error, str) else getattr(error, "msg", "nested too deep")
    reason = reason.removesuffix(" at").removesuffix(" starting")  # a place would follow
    return file.error(f", {where} is not JSON ({reason})", "One object a line, or one list of objects")


def _lines(stream: BinaryIO, file: File, kind: Kind) -> Iterator[tuple[int, str]]:
    if not kind.encoding.startswith("utf-8"):
        text = io.TextIOWrapper(stream, kind.encoding)
        try:
            yield from enumerate(text, 1)
        except UnicodeDecodeError as error:
            raise _not_text(file, kind, error.reason) from None
        return
    number = 0
    for raw in stream:
        if number == 0:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        for line in raw.splitlines() if b"\r" in raw else (raw,):
            number += 1
            try:
                yield number, line.decode()
            except UnicodeDecodeError as error:
                raise _not_text(file, kind, f"line {number:,}, byte {error.start:,} of it") from None


class _JsonText:
    """JSON values, pulled one at a time out of text that comes in chunks."""

    def __init__(self, chunks: Iterator[str], file: File) -> None:
        self.chunks, self.file = chunks, file
        self.buffer, self.at, self.line = "", 0, 1

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            while self.at < len(self.buffer):
                if not self.buffer[self.at].isspace():
                    return self.buffer[self.at]
                self.at += 1
            if not self._more():
                return ""

    def take(self, *expected: str) -> str:
        found = self.peek()
        if found not in expected or not found:
            wanted = " or ".join(repr(mark) for mark in expected)
            raise self.error(f"expecting {wanted}" if found else f"it ends where {wanted} is due")
        self.at += 1
        return found

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.buffer, self.at)
            except (ValueError, RecursionError) as error:
                if self._is_cut(error) and self._more():
                    continue
                raise self.error(error) from None
            # A number at the end of a chunk may go on in the next.
            if end < len(self.buffer) or not self._more():
                self.at = end
                return value

    def _is_cut(self, error: Exception) -> bool:
        """Whether more text may mend it: the fault is at the end of what is here, or in a string that is open."""
        if not isinstance(error, json.JSONDecodeError):
            return False
        return error.msg.startswith("Unterminated") or error.pos >= len(self.buffer) - 16

    def _more(self) -> bool:
        """Read on, by as much as is pending, so that a long value is parsed a few times and not once a chunk."""
        self.line += self.buffer.count("\n", 0, self.at)
        parts, self.at = [self.buffer[self.at :]], 0
        wanted = max(len(parts[0]), 1)
        while wanted > 0 and (chunk := next(self.chunks, "")):
            parts.append(chunk)
            wanted -= len(chunk)
        self.buffer = "".join(parts)
        return len(parts) > 1

    def error(self, error: Exception | str) -> InputError:
        at = getattr(error, "pos", self.at)
        line = self.line + self.buffer.count("\n", 0, at)
        return _no_json(self.file, f"line {line:,}", error)


def _json(file: File, kind: Kind) -> Rows:
    """A list of objects, an object with such a list, or objects one after another."""
    with open_binary(file, kind.compression) as stream:
        text = _JsonText(decoded(stream, file, kind), file)
        number = 0
        while mark := text.peek():
            if mark == "[":
                values = _items(text)
            elif mark == "{":
                values = _members(text)
            else:
                values = iter([text.value()])
            for value in values:
                number += 1
                yield value, f"{file.path}, row {number}"


def _items(text: _JsonText) -> Iterator[Any]:
    text.take("[")
    if text.peek() == "]":
        text.take("]")
        return
    while True:
        yield text.value()
        if text.take(",", "]") == "]":
            return


def _members(text: _JsonText) -> Iterator[Any]:
    """The rows in an object's one list of objects, or the object itself, if it is a row."""
    row: dict[str, Any] = {}
    listed = ""
    text.take("{")
    while text.peek() != "}":
        name = text.value() if text.peek() == '"' else text.take('"')
        if name in row or (listed and name == listed):
            raise text.error(_TwiceError(name))
        text.take(":")
        if text.peek() == "[" and not ROW_COLUMNS & {name, *row}:
            first, rest = _begun(text)
            if is_row(first):
                if listed:
                    raise text.file.error(
                        f" holds several lists of rows (`{listed}`, `{name}`)", "Write each into a file of its own"
                    )
                listed = name
                yield first
                yield from rest
            else:
                row[name] = [] if first is _NOTHING else [first, *rest]
        else:
            row[name] = text.value()
        if text.peek() != "}":
            text.take(",")
    text.take("}")
    if listed and (beside := ROW_COLUMNS & set(row)):
        raise text.file.error(f" is a row (`{min(beside)}`), and holds a list of rows (`{listed}`)", "Take one out")
    if not listed:
        yield row


_NOTHING = object()


def _begun(text: _JsonText) -> tuple[Any, Iterator[Any]]:
    items = _items(text)
    return next(items, _NOTHING), items


# -------------------------------------------------------------------------------------------------------- tables


def _csv(file: File, kind: Kind) -> Rows:
    csv.field_size_limit(sys.maxsize)  # a document may be long
    with open_binary(file, kind.compression) as stream:
        lines = io.TextIOWrapper(stream, kind.encoding, newline="")
        raw: list[str] = []
        table = csv.reader(_kept(lines, raw), delimiter=kind.delimiter, strict=True)
        try:
            header = next((row for row in table if row), [])
            twice = next((name for name in header if header.count(name) > 1), None)
            if twice is not None:
                raise file.error(f" names the column {twice!r} twice", "Rename one; the first row names the columns")
            start = table.line_num + 1
            raw.clear()
            for fields in table:
                if fields == header and len(header) > 1:
                    raise file.error(f", line {start} is the header once more", "Remove it: files were joined there")
                if fields:
                    if len(fields) != len(header):
                        found = "more" if len(fields) > len(header) else "fewer"
                        raise file.error(
                            f", line {start} has {found} fields than the header ({len(fields)}, {len(header)})",
                            f"Quote fields that hold {kind.delimiter!r}",
                        )
                    if kind.delimiter == "\t" and len(raw) > 1 and _fit(raw, len(header)):
                        raise file.error(
                            f", lines {start} to {table.line_num} are one row in quotes, or {len(raw)} without",
                            'Write a quote that begins a field as """", or the file as JSON lines',
                        )
                    yield dict(zip(header, fields, strict=True)), f"{file.path}, line {start}"
                start = table.line_num + 1
                raw.clear()
        except csv.Error as error:
            reason = "a quote is never closed" if "unexpected end" in str(error) else error
            where = f", line {table.line_num}"
            raise file.error(
                f"{where} is not {kind.container} ({reason})", 'Write a quote inside quotes as ""'
            ) from None
        except UnicodeDecodeError:
            raise _not_text(file, kind, f"after line {table.line_num}") from None


def _kept(lines: Iterator[str], raw: list[str]) -> Iterator[str]:
    for line in lines:
        raw.append(line)
        yield line


def _fit(raw: list[str], columns: int) -> bool:
    """Whether each line is a row by itself where quotes mean nothing."""
    return columns > 1 and all(line.count("\t") == columns - 1 for line in raw)


def _arrow(file: File, kind: Kind) -> Rows:
    import pyarrow

    number = 0
    with _seekable(file, kind) as source:
        for batch in _batches(source, kind):
            for at in range(0, batch.num_rows, _ROWS):
                try:
                    part = batch.slice(at, _ROWS)
                    part.validate(full=True)  # pyarrow trusts what it reads: a torn offset could end the process
                    rows = part.to_pylist()
                except (UnicodeDecodeError, pyarrow.ArrowInvalid) as error:
                    where = f", rows {number + 1:,} to {number + _ROWS:,} cannot be read"
                    raise file.error(f"{where} ({error})", "Write it again") from None
                for row in rows:
                    number += 1
                    yield without_nulls(row), f"{file.path}, row {number}"


def _seekable(file: File, kind: Kind) -> BinaryIO:
    """Parquet and Arrow files are read from their end: what is compressed is unpacked on disk first."""
    if kind.compression is None:
        import pyarrow

        return cast(BinaryIO, pyarrow.OSFile(str(file.path)))
    stream = open_binary(file, kind.compression)
    if kind.container == "Arrow stream":
        return stream
    with stream:
        unpacked = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        shutil.copyfileobj(stream, unpacked, _CHUNK)
        unpacked.seek(0)
    return cast(BinaryIO, unpacked)


def _batches(source: BinaryIO, kind: Kind) -> Iterator[Any]:
    if kind.container == "Parquet":
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(source, buffer_size=_CHUNK, pre_buffer=False) as table:
            yield from table.iter_batches(_ROWS)
        return
    import pyarrow.ipc

    if kind.container == "Arrow stream":
        with pyarrow.ipc.open_stream(source) as stream:
            yield from stream
        return
    with pyarrow.ipc.open_file(source) as table:
        for i in range(table.num_record_batches):
            yield table.get_batch(i)
