"""Rows of files, one after another: a file never has to fit in memory."""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from limbeck.data.reading.containers import (
    CHUNK,
    File,
    Kind,
    Rows,
    Told,
    guarded,
    not_text,
    open_binary,
    recognise,
)
from limbeck.data.reading.contents import ROW_COLUMNS, Container, is_row
from limbeck.data.reading.files.splits import split_named
from limbeck.data.reading.strict import DECODER, TwiceError
from limbeck.data.reading.tables import arrow_rows, csv_rows
from limbeck.errors import InputError


def read_rows(path: Path, key: str, hint: Container | None = None, told: Told | None = None) -> Rows:
    """Rows of a file; of plain text its documents, each a string.

    Args:
        key: where the recipe names it, for errors.
        hint: what the recipe says that it is, where neither its content nor its name says it.
        told: is told of what stands beside the rows.

    Raises:
        InputError: it is torn, not what it seems, or nothing that limbeck reads; names file and line or row.
    """
    file = File(path, key)
    kind = recognise(file, hint)
    if told is not None and kind.doubt is not None:
        told.doubt(kind.doubt)
    match kind.container:
        case "empty":
            return iter(())
        case "json lines":
            found = _json_lines(file, kind)
        case "JSON":
            found = _json(file, kind, told)
        case "CSV" | "TSV":
            found = csv_rows(file, kind, told)
        case "text":
            found = _text(file, kind, None)
        case _:
            found = arrow_rows(file, kind)
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
    for text, _ in _guarded(_text(file, kind, _separator(separator)), file, kind):
        yield text


def require_separator(files: list[Path], key: str, separator: str) -> None:
    """Without it, what is meant to be many documents would be one, as long as a file.

    Raises:
        InputError: it stands in no file; or as ``read_rows``.
    """
    whole = None
    for file in files:
        cut = _is_cut(file, f"{key}.text", separator)
        if cut:
            return
        whole = file if cut is False else whole
    if whole is not None:
        where = f"{whole}" if len(files) == 1 else f"any of {len(files):,} files"
        raise InputError(
            f"{separator!r} does not stand in {where}",
            key=f"{key}.separator",
            fix="Write what stands between documents; without `separator` a file is a document",
        )


def _is_cut(path: Path, key: str, separator: str) -> bool | None:
    """Whether a separator stands in a file of plain text; None: the file is empty, or no text."""
    file = File(path, key)
    kind = recognise(file, "text")
    if kind.container != "text":  # `read_text` refuses others
        return None
    wanted, held = str(_separator(separator)), ""
    with guarded(file, kind), open_binary(file, kind.compression) as stream:
        for chunk in decoded(stream, file, kind):
            held = held[-len(wanted) :] + chunk
            if wanted in held:
                return True
    return False


def _separator(given: str | None) -> str | None:
    """A separator as ``decoded`` writes ends of lines."""
    return given.replace("\r\n", "\n").replace("\r", "\n") if given else None


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
        data = stream.read(CHUNK)
        pending = len(decoder.getstate()[0])
        try:
            text = wrapped.decode(data, final=not data)
        except UnicodeDecodeError as error:
            at = done - pending + error.start
            raise not_text(file, kind, f"byte {at}") from None
        done += len(data)
        if text:
            yield text
        if not data:
            return


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


def _json_lines(file: File, kind: Kind) -> Rows:
    with open_binary(file, kind.compression) as stream:
        for number, line in _lines(stream, file, kind):
            if line.isspace():
                continue
            try:
                value = DECODER.decode(line)
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
            raise not_text(file, kind, error.reason) from None
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
                raise not_text(file, kind, f"line {number:,}, byte {error.start:,} of it") from None


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
                value, end = DECODER.raw_decode(self.buffer, self.at)
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


def _json(file: File, kind: Kind, told: Told | None) -> Rows:
    """A list of objects, an object with such a list, or objects one after another."""
    with open_binary(file, kind.compression) as stream:
        text = _JsonText(decoded(stream, file, kind), file)
        number = 0
        while mark := text.peek():
            if mark == "[":
                values = _items(text)
            elif mark == "{":
                values = _members(text, told)
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


def _members(text: _JsonText, told: Told | None) -> Iterator[Any]:
    """The rows in an object's one list of objects, or the object itself, if it is a row.

    ``told`` is told of the keys before the list, before any row is read, and of all keys at the end.
    """
    row: dict[str, Any] = {}
    listed = ""
    text.take("{")
    while text.peek() != "}":
        name = text.value() if text.peek() == '"' else text.take('"')
        if name in row or (listed and name == listed):
            raise text.error(TwiceError(name))
        text.take(":")
        if text.peek() == "[" and not ROW_COLUMNS & {name, *row}:
            first, rest = _begun(text)
            if is_row(first):
                if listed and split_named(listed) and split_named(name):
                    raise text.file.error(
                        f" holds several splits (`{listed}`, `{name}`), which should not be mixed",
                        "Write the one that is to be learned into a file of its own",
                    )
                if listed:
                    raise text.file.error(
                        f" holds several lists of rows (`{listed}`, `{name}`)", "Write each into a file of its own"
                    )
                listed = name
                if told is not None:
                    told.beside(listed, row, f"{text.file.path}")
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
    if listed and told is not None:
        told.beside(listed, row, f"{text.file.path}")
    if not listed:
        yield row


_NOTHING = object()


def _begun(text: _JsonText) -> tuple[Any, Iterator[Any]]:
    items = _items(text)
    return next(items, _NOTHING), items
