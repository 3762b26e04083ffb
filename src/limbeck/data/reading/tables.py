"""Rows of CSV files, and of Parquet and Arrow files."""

from __future__ import annotations

import csv
import io
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from limbeck.data.documents.messages.place import without_nulls
from limbeck.data.reading.containers import CHUNK, File, Kind, Rows, Told, not_text, open_binary

_ROWS = 1000
_SEPARATOR = re.compile(r'\ufeff?"?sep=.?"?\s*', re.IGNORECASE)
"""The first line by which Excel is told what stands between fields."""
NULL = "\\N"
"""A cell that MySQL and PostgreSQL write for null."""
_NULLS = frozenset((NULL, "NULL", "null", "NaN", "nan", "<NA>"))
_LONGER = 100
"""Characters by which a header may be longer where it comes again."""


# ----------------------------------------------------------------------------------------------------------- CSV


def csv_rows(file: File, kind: Kind, told: Told | None = None) -> Rows:
    """Rows of a CSV file, under the names of its first row. What databases write for null is null."""
    csv.field_size_limit(sys.maxsize)  # a document may be long
    with open_binary(file, kind.compression) as stream:
        lines = io.TextIOWrapper(stream, kind.encoding, newline="")
        raw: list[str] = []
        table = csv.reader(_kept(lines, raw), delimiter=kind.delimiter, strict=True)
        try:
            header = next((row for row in table if row), [])
            _check_header(header, raw, file)
            quotes = any('"' in line for line in raw)
            start = table.line_num + 1
            raw.clear()
            rows = False
            for fields in table:
                if _is_header(fields, header):
                    raise file.error(f", line {start} is the header once more", "Remove it: files were joined there")
                if fields:
                    if len(fields) != len(header):
                        found = "more" if len(fields) > len(header) else "fewer"
                        raise file.error(
                            f", line {start} has {found} fields than the header ({len(fields)}, {len(header)})",
                            f"Quote fields that hold {kind.delimiter!r}",
                        )
                    if len(raw) == 1:
                        quotes = quotes or '"' in raw[0]
                    elif _fit(raw, kind.delimiter, len(header)) and (kind.delimiter == "\t" or not quotes):
                        raise file.error(
                            f", lines {start} to {table.line_num} are one row in quotes, or {len(raw)} without",
                            'Write a quote that begins a field as """", or the file as JSON lines',
                        )
                    rows = True
                    row: dict[str, str | None] = dict(zip(header, fields, strict=True))
                    if not _NULLS.isdisjoint(fields):
                        _read_nulls(row, told)
                    yield row, f"{file.path}, line {start}"
                start = table.line_num + 1
                raw.clear()
            if told is not None and header:
                told.header(file.path, header, rows=rows)
        except csv.Error as error:
            reason = "a quote is never closed" if "unexpected end" in str(error) else error
            where = f", line {table.line_num}"
            raise file.error(
                f"{where} is not {kind.container} ({reason})", 'Write a quote inside quotes as ""'
            ) from None
        except UnicodeDecodeError:
            raise not_text(file, kind, f"after line {table.line_num}") from None


def _kept(lines: Iterator[str], raw: list[str]) -> Iterator[str]:
    """``raw``: filled with the lines of a row. A byte order mark before a row is where files were joined, and none of
    its text."""
    for line in lines:
        line = line if raw else line.lstrip("\ufeff")
        raw.append(line)
        yield line


def _read_nulls(row: dict[str, str | None], told: Told | None) -> None:
    """``told`` is told of cells that say it in a word, which may be meant."""
    for name, cell in row.items():
        if cell in _NULLS:
            if told is not None:
                told.null(name, cell)
            row[name] = None if cell == NULL else cell


def _check_header(header: list[str], raw: list[str], file: File) -> None:
    if raw and _SEPARATOR.fullmatch(raw[-1]):
        raise file.error(f" begins with `{raw[-1].strip()}`, which is no header", "Remove that line")
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise file.error(f" names the column {twice!r} twice", "Rename one; the first row names the columns")


def _is_header(fields: list[str], header: list[str]) -> bool:
    """Whether a row says the names of the columns again: in any order and case, one of three or more another."""
    if len(fields) != len(header) or sum(map(len, fields)) > sum(map(len, header)) + _LONGER:
        return False
    again, names = ({_plain(name) for name in row} - {""} for row in (fields, header))
    if not names or len(again & names) < max(len(names) - 1, 1):
        return False
    return again == names or len(again & names) > 1


def _plain(name: str) -> str:
    return name.strip().strip("\ufeff").strip().strip('"').strip().casefold()


def _fit(raw: list[str], delimiter: str, columns: int) -> bool:
    """Whether each line is a row by itself where quotes mean nothing. A comma of prose has a space after it; a quote
    that is doubled was written by one who knows what quotes mean."""
    if columns < 2 or any(line.count(delimiter) != columns - 1 for line in raw):
        return False
    return delimiter == "\t" or not any(f"{delimiter} " in line or '""' in line for line in raw)


# ------------------------------------------------------------------------------------------------------- pyarrow


def arrow_rows(file: File, kind: Kind) -> Rows:
    """Rows of a Parquet or Arrow file."""
    import pyarrow

    number = 0
    with _seekable(file, kind) as source:
        for batch in _batches(source, file, kind):
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
                    yield {name: without_nulls(value) for name, value in row.items()}, f"{file.path}, row {number}"


def _seekable(file: File, kind: Kind) -> BinaryIO:
    """The file's bytes; what is compressed is unpacked on disk first."""
    if kind.compression is None:
        import pyarrow

        return cast(BinaryIO, pyarrow.OSFile(str(file.path)))
    with open_binary(file, kind.compression) as stream:
        unpacked = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        shutil.copyfileobj(stream, unpacked, CHUNK)
        unpacked.seek(0)
    return cast(BinaryIO, unpacked)


def _batches(source: BinaryIO, file: File, kind: Kind) -> Iterator[Any]:
    import pyarrow.ipc

    if kind.container == "Parquet":
        yield from _parquet(source, file)
    elif kind.container == "Arrow stream":
        head = b"\xff\xff\xff\xff"
        while head == b"\xff\xff\xff\xff":
            with pyarrow.ipc.open_stream(source) as stream:
                _check_names(stream.schema, file)
                yield from stream
            head = source.read(4)
            source.seek(source.tell() - len(head))
        if head:
            raise file.error(" holds something after an Arrow stream that is none", "Write each into a file of its own")
    else:
        with pyarrow.ipc.open_file(source) as table:
            _check_names(table.schema, file)
            if kind.compression is None:
                with pyarrow.memory_map(str(file.path)) as mapped:  # what it holds need not be read twice
                    _check_joined(mapped, file)
            else:
                _check_joined(source, file)
            for i in range(table.num_record_batches):
                yield table.get_batch(i)


def _parquet(source: BinaryIO, file: File) -> Iterator[Any]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(source, buffer_size=CHUNK, pre_buffer=False) as table:
        _check_names(table.schema_arrow, file)
        end = 4
        for group in range(table.metadata.num_row_groups):
            columns = table.metadata.row_group(group)
            for number in range(columns.num_columns):
                column = columns.column(number)
                first = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
                end = max(end, first + column.total_compressed_size)
        if _stands(b"PAR1PAR1", source, end):  # the end of a file and the beginning of another
            raise _joined(file)
        yield from table.iter_batches(_ROWS)


def _stands(wanted: bytes, source: BinaryIO, start: int) -> bool:
    """Whether bytes stand anywhere after a place."""
    source.seek(start)
    held = b""
    while block := source.read(CHUNK):
        held = held[-len(wanted) :] + block
        if wanted in held:
            return True
    return False


def _check_joined(source: BinaryIO, file: File) -> None:
    """Of an Arrow file, its messages must end where the list of them begins: else that list is of another file."""
    import pyarrow.ipc

    source.seek(0, 2)
    size = source.tell()
    source.seek(size - 10)
    listed = size - 10 - int.from_bytes(source.read(4), "little")
    source.seek(8)
    try:
        while source.tell() < listed:
            pyarrow.ipc.read_message(source)
    except EOFError:  # the mark that ends them
        if not 0 <= listed - source.tell() < 64:
            raise _joined(file) from None
    except pyarrow.ArrowInvalid:  # older files have no such mark
        return


def _joined(file: File) -> Exception:
    return file.error(" is several files joined, of which only one would be read", "Read the parts by themselves")


def _check_names(schema: Any, file: File) -> None:
    """Of two columns, or two parts of one, that have one name, one would be lost."""
    for twice, where in _twice(schema, ""):
        raise file.error(f" names {where}{twice!r} twice", "Rename one")


def _twice(fields: Any, inside: str) -> Iterator[tuple[str, str]]:
    import pyarrow

    fields = list(fields)
    names = [field.name for field in fields]
    yield from ((name, inside or "the column ") for name in names if names.count(name) > 1)
    for field in fields:
        kind = field.type
        while (
            pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or pyarrow.types.is_fixed_size_list(kind)
        ):
            kind = kind.value_type
        if pyarrow.types.is_struct(kind):
            yield from _twice([kind.field(i) for i in range(kind.num_fields)], f"in `{field.name}` the part ")
