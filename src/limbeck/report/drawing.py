"""What all charts share: the sheet, words on it, and how wide words are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from limbeck.report.axes import Scale, tick_labels
from limbeck.report.markup import Html, el, one_line
from limbeck.report.text import cells_wide

WIDTH = 480
"""Units across every chart: half a page, so that words stay readable when a phone shrinks it."""

PALETTE = 6
"""Colours of the style sheet, classes ``s0`` to ``s5``."""

_LETTER = 6.6  # width of an average letter at the charts' 12 units, on the wide side


def svg(title: str, description: str, parts: Sequence[Html], height: float, key: str) -> Html:
    """A drawing with its title and description, for those who cannot see it."""
    return el(
        "svg",
        el("title", one_line(title), id=f"{key}-title"),
        el("desc", one_line(description, 1000), id=f"{key}-desc"),
        *parts,
        viewBox=f"0 0 {WIDTH} {height:.0f}",
        class_="chart",
        role="img",
        aria_labelledby=f"{key}-title {key}-desc",
    )


def text(words: str, x: float, y: float, class_: str, *, anchor: str | None = None) -> Html:
    """Words at a place, on one line."""
    return el("text", one_line(words, 80), x=x, y=y, class_=class_, text_anchor=anchor)


def wide(texts: Sequence[str]) -> float:
    """Width of the widest of ``texts`` at the size of the charts' letters, rather too wide than too narrow."""
    return max((_LETTER * cells_wide(words) for words in texts), default=0.0)


def nothing(top: float, bottom: float) -> Html:
    """What stands in an empty chart."""
    return text("Nothing was recorded.", WIDTH / 2, (top + bottom) / 2, "axis-name", anchor="middle")


def spaced(scale: Scale, ticks: Sequence[float]) -> list[float]:
    """Ticks whose labels do not touch: every other one is dropped until they have room."""
    kept = list(ticks)
    while len(kept) > 2:
        room = min(abs(scale(b) - scale(a)) for a, b in pairwise(kept))
        if room >= wide(tick_labels(kept)) + 8:
            break
        kept = kept[::2]
    return kept
