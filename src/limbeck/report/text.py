"""The results as a plain-text table for a terminal, a log or a commit message."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from limbeck.report.markup import one_line
from limbeck.report.model import Estimate, Row, known
from limbeck.report.numbers import ABSENT, compact, decimals_for, number
from limbeck.report.verdict import Standing, standing

_MARKS = {Standing.BETTER: "*", Standing.UNCLEAR: "~", Standing.WORSE: "!"}
_LEGEND = {"*": "* beats its control", "~": "~ cannot be told apart from it", "!": "! worse than it"}


@dataclass(frozen=True)
class _Column:
    heading: str
    cells: list[str]
    rank: int  # the highest goes first where there is no room

    @property
    def width(self) -> int:
        return max(cells_wide(text) for text in [self.heading, *self.cells])


def table(rows: Sequence[Row], width: int = 80) -> str:
    """A table of the key numbers, no line wider than ``width`` terminal cells (at least 24).

    Where there is no room, names are shortened and then whole columns left out, least important first. ``±``
    is half of the 95% interval, of tokens/s half of the range of the rounds.
    """
    width = max(24, width)
    if not rows:
        return "no models to compare"
    columns = [column for column in _columns(rows) if any(cell != ABSENT for cell in column.cells)]
    names = [one_line(row.name) for row in rows]
    least = min(12, max(cells_wide(name) for name in names))
    while columns and least + _width(columns) > width:
        columns.remove(max(columns, key=lambda column: column.rank))
    room = width - _width(columns)
    names = [_fit(name, room) for name in names]
    first = _Column("model", names, 0)

    lines = [_line(first, columns, None), "-" * (first.width + _width(columns))]
    lines += [_line(first, columns, index) for index in range(len(rows))]
    shown = {_MARKS[judged] for row in rows if (judged := standing(row)) in _MARKS}
    if shown and any(column.heading.startswith("bits") for column in columns):
        lines += _wrapped([_LEGEND[mark] for mark in "*~!" if mark in shown], width)
    return "\n".join(line.rstrip() for line in lines)


def cells_wide(text: str) -> int:
    """How many terminal cells ``text`` takes: wide East Asian letters two, combining marks none."""
    return sum(
        0 if unicodedata.combining(c) or unicodedata.category(c) in ("Me", "Mn", "Cf") else _cell(c) for c in text
    )


def _cell(character: str) -> int:
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def _columns(rows: Sequence[Row]) -> list[_Column]:
    digits = decimals_for([row.bits_per_byte for row in rows])
    bits = [_plus_minus(row.bits_per_byte, digits) for row in rows]
    marked = any(standing(row) in _MARKS for row in rows)
    if marked:
        bits = [
            f"{cell} {_MARKS.get(standing(row), ' ')}" if cell != ABSENT else cell
            for cell, row in zip(bits, rows, strict=True)
        ]
    return [
        _Column("params", [ABSENT if row.parameters is None else compact(row.parameters) for row in rows], 4),
        _Column("bits/byte  " if marked else "bits/byte", bits, 0),
        _Column("accuracy", [_plus_minus(row.accuracy, 1, percent=True) for row in rows], 0),
        _Column("KL", [_plain(row.kl, 3) for row in rows], 3),
        _Column("agree", [_plain(row.agreement, 1, percent=True) for row in rows], 2),
        _Column("gap closed", [_plus_minus(row.gap_closed, 0, percent=True) for row in rows], 1),
        _Column("tok/s", [_speed(row.tokens_per_second) for row in rows], 5),
    ]


def _speed(rate: Estimate | None) -> str:
    """The median of the rounds and half of their range."""
    return _plus_minus(rate, 0 if rate is not None and rate.value >= 100 else 1)


def _plain(estimate: Estimate | None, decimals: int, *, percent: bool = False) -> str:
    measured = known(estimate)
    if measured is None:
        return ABSENT
    return f"{number(100 * measured.value, decimals)}%" if percent else number(measured.value, decimals)


def _plus_minus(estimate: Estimate | None, decimals: int, *, percent: bool = False) -> str:
    measured = known(estimate)
    if measured is None:
        return ABSENT
    scale, unit = (100, "%") if percent else (1, "")
    text = number(scale * measured.value, decimals)
    if measured.interval:
        low, high = measured.interval
        text += f" ±{number(scale * (high - low) / 2, decimals)}"
    return text + unit


def _width(columns: Sequence[_Column]) -> int:
    return sum(2 + column.width for column in columns)


def _line(first: _Column, columns: Sequence[_Column], index: int | None) -> str:
    def cell(column: _Column) -> str:
        return column.heading if index is None else column.cells[index]

    name = cell(first)
    parts = [name + " " * (first.width - cells_wide(name))]
    parts += [" " * (2 + column.width - cells_wide(cell(column))) + cell(column) for column in columns]
    return "".join(parts)


def _fit(text: str, room: int) -> str:
    if cells_wide(text) <= room:
        return text
    kept, used = "", 0
    for character in text:
        used += cells_wide(character)
        if used > room - 1:
            break
        kept += character
    return kept.rstrip() + "…"


def _wrapped(phrases: Sequence[str], width: int) -> list[str]:
    lines: list[str] = []
    for phrase in phrases:
        if lines and cells_wide(lines[-1]) + 3 + cells_wide(phrase) <= width:
            lines[-1] += "   " + phrase
        else:
            lines.append(_fit(phrase, width))
    return lines
