"""What a text holds: JSON, a table, or only text. It decides before the name of its file."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from limbeck.data.reading.files.splits import split_named

Container = Literal["json lines", "JSON", "CSV", "TSV", "Parquet", "Arrow file", "Arrow stream", "text", "empty"]

_KEY = r'\{\s*"(?P<key>[^"\\]{1,64})"\s*:'
_OPENS_ROW = re.compile(rf"(\[\s*)?{_KEY}")
_OPENS_LIST = re.compile(rf'{_KEY}\s*\[\s*\{{\s*"')
_LINE = re.compile(rf"[^\"{{]{{0,20}}{_KEY}")
_DECODER = json.JSONDecoder()


def json_in(text: str, *, whole: bool, wanted: Container | None) -> Container | None:
    """JSON lines, one JSON value, or None: neither.

    Args:
        whole: ``text`` is all of a file, not only its beginning.
        wanted: what its name says. Under another name than those of JSON, it is JSON where it can be nothing else.
    """
    start = text.lstrip()
    if start[:1] not in ("{", "["):
        return None
    line, ended, rest = start.partition("\n")
    sure = wanted in ("json lines", "JSON")
    if not ended and not whole:  # a first line longer than the head
        if sure:
            return "JSON" if start[0] == "[" else wanted
        if not _holds_rows(start, whole=False):
            return None
        return "json lines" if start[0] == "{" and not _OPENS_LIST.match(start) else "JSON"
    value = _parsed(line)
    if isinstance(value, dict) and not (wraps_rows(value) and not rest.strip()):
        second = rest.lstrip().partition("\n")
        another = not second[0] or (not second[1] and not whole) or isinstance(_parsed(second[0]), dict)
        return "json lines" if sure or another else None
    if sure:
        return "json lines" if isinstance(value, list) and rest.strip() and not _opens_array(rest) else "JSON"
    return "JSON" if _holds_rows(start, whole=whole) else None


def _holds_rows(start: str, *, whole: bool) -> bool:
    """Whether a text can be nothing but a list of objects, or objects whose columns are known."""
    at = len(start) - len(start[1:].lstrip()) if start[0] == "[" else 0
    try:
        first, end = _DECODER.raw_decode(start, at)
    except (ValueError, RecursionError):  # longer than the head, or torn
        found = _OPENS_ROW.match(start)
        return bool(_OPENS_LIST.match(start)) or (found is not None and found["key"] in ROW_COLUMNS)
    if not isinstance(first, dict):
        return False
    after = start[end:].lstrip()
    known = bool(ROW_COLUMNS & set(first))
    if start[0] == "{":
        return after[:1] in ("", "{") and (known or (not after and wraps_rows(first)))
    if known or not whole:
        return after[:1] in ("", ",", "]")
    listed = _parsed(start)
    return isinstance(listed, list) and all(isinstance(item, dict) for item in listed)


def _opens_array(rest: str) -> bool:
    return rest.lstrip()[:1] in (",", "]")


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def wraps_rows(value: dict[str, Any]) -> bool:
    """Whether an object is no row, but holds all rows in one list: ``{"version": 1, "data": [{...}, ...]}``; or splits,
    each in a list."""
    lists = [name for name, held in value.items() if isinstance(held, list) and held and is_row(held[0])]
    splits = {split_named(name) for name in lists} - {None}
    return (len(lists) == 1 or len(splits) > 1) and not ROW_COLUMNS & set(value)


def is_row(item: Any) -> bool:
    """Whether an item of a list may be a row: no message and no tool is."""
    return isinstance(item, dict) and not {"role", "from", "function", "parameters"} & set(item)


ROW_COLUMNS = frozenset(
    ("text", "messages", "conversations", "conversation", "dialog", "dialogue", "prompt", "completion", "response",
     "instruction", "question", "answer", "query", "chosen", "rejected", "tools", "functions")
)  # fmt: skip
"""An object with one of these is a row."""


def looks_like_rows(text: str) -> bool:
    """Whether an object with a column that is known begins one of the first lines of a text."""
    found = (_LINE.match(line) for line in text[:4096].splitlines()[:_LINES])
    return any(line is not None and line["key"] in ROW_COLUMNS for line in found)


@dataclass(frozen=True)
class Table:
    """Lines of text that are rows of equally many fields.

    Attributes:
        delimiter: between the fields.
        names: fields of the first line.
        known: they name columns that rows are read from.
    """

    delimiter: str
    names: tuple[str, ...]
    known: bool


_COLUMNS = ROW_COLUMNS | {"input", "output", "inputs", "targets", "context", "system", "system_prompt"}
_ENOUGH = ("text", "messages", "conversations")
_NAME = re.compile(r"[\w#][\w .#-]{0,39}")
_LINES = 3
"""Lines that a table has at least, where its columns are not known."""


def table_in(text: str, *, whole: bool) -> Table | None:
    """The table that a text is, in CSV or as Excel writes its "Unicode text"; None: it is none, or may be none."""
    lines = text.splitlines(keepends=True)
    lines = lines if whole else lines[:-1]
    for delimiter in ("\t", ",", ";", "|"):
        if not lines or delimiter not in lines[0]:
            continue
        names = lines[0].strip("\r\n").replace('"', "").split(delimiter)
        if not all(map(_NAME.fullmatch, names)) or len({*names}) < len(names):
            continue
        low = {name.lower() for name in names}
        known = len(low & _COLUMNS) > 1 or bool(low & {*_ENOUGH})
        prose = delimiter != "\t" and (len(names) < 3 or f"{delimiter} " in text)
        if not known and (prose or len(lines) < _LINES):
            continue
        try:
            rows = [row for row in csv.reader(lines, delimiter=delimiter, strict=whole) if row]
        except csv.Error:
            continue
        rows = rows if whole else rows[:-1]
        if len(rows) > 1 and all(len(row) == len(names) for row in rows):
            return Table(delimiter, tuple(names), known)
    return None
