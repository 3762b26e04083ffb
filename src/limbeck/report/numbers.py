"""Numbers as a reader wants them: the same rules for the page, the terminal and the card."""

from __future__ import annotations

import math
from collections.abc import Iterable

from limbeck.report.model import Estimate, known

MINUS = "\N{MINUS SIGN}"
ABSENT = "\N{EN DASH}"


def number(value: float, decimals: int = 3, *, sign: bool = False) -> str:
    """``value`` with a fixed number of decimals, thousands separated, a true minus and never "−0.000"."""
    if not math.isfinite(value):
        return ABSENT
    if abs(value) >= 1e15:
        return f"{value:.3g}".replace("-", MINUS)
    rounded = round(value, decimals)
    text = f"{abs(rounded):,.{decimals}f}"
    if rounded < 0:
        return MINUS + text
    return f"+{text}" if sign and rounded > 0 else text


def decimals_for(estimates: Iterable[Estimate | None], *, base: int = 3, most: int = 5) -> int:
    """Decimals for a column: enough that its narrowest interval spans five units of the last."""
    widths = [
        measured.interval[1] - measured.interval[0]
        for estimate in estimates
        if (measured := known(estimate)) and measured.interval
    ]
    narrowest = min((width for width in widths if width > 0), default=1.0)
    return min(most, max(base, math.ceil(math.log10(5 / narrowest))))


def percent(share: float, decimals: int = 0) -> str:
    """A share as a percentage: 0.342 → "34%"."""
    return f"{number(100 * share, decimals)}%" if math.isfinite(share) else ABSENT


def significant(value: float, digits: int = 2) -> str:
    """``value`` rounded to significant digits, in plain notation: 0.1083 → "0.11", 41.7 → "42"."""
    if not math.isfinite(value) or value == 0:
        return "0" if value == 0 else ABSENT
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return number(round(value, decimals), max(0, decimals))


def between(interval: tuple[float, float], decimals: int = 3, *, scale: float = 1, unit: str = "") -> str:
    """An interval in words: "1.230 to 1.238"."""
    low, high = interval
    return f"{number(low * scale, decimals)}{unit} to {number(high * scale, decimals)}{unit}"


def compact(value: float, digits: int = 3) -> str:
    """A count in three significant digits: 419,424 → "419k", 3,912,960 → "3.91M"."""
    if not math.isfinite(value):
        return ABSENT
    size = abs(value)
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size >= limit * 0.9995:
            return _trim(value / limit, digits) + unit
    return _trim(value, digits)


def _trim(value: float, digits: int) -> str:
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 1
    text = number(value, max(0, digits - whole))
    return text.rstrip("0").rstrip(".") if "." in text else text


def size(count: float) -> str:
    """Bytes in decimal units: 1,680,000 → "1.68 MB"."""
    if not math.isfinite(count):
        return ABSENT
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(count) >= limit * 0.9995:
            return f"{_trim(count / limit, 3)} {unit}"
    return f"{_trim(count, 3)} B"
