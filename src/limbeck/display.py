"""What a run shows while it goes: a line a stage, a bar while it lasts, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


class Bar:
    """Progress of one stage. ``total`` may be unknown (None)."""

    def __init__(self, display: Display, title: str, total: int | None, unit: str) -> None:
        self.display, self.title, self.unit, self.total = display, title, unit, total
        self.done, self.start, self.spoke = 0, time.monotonic(), time.monotonic()
        self.first: int | None = None
        """What was done when it was first heard of: an earlier process's work has no part in the speed."""
        self.note = ""

    def advance(self, n: int = 1) -> None:
        self.update(self.done + n)

    def update(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        rate = (done - (self.first or 0)) / max(now - self.start, 1e-3)
        self.done = done
        speed = f"{_short(rate)} {self.unit}/s"
        if self.first is None:
            self.first, self.start = done, now
            self.display._begin(self)
            if done != self.total:
                speed = ""  # not known yet
        self.note = f"{speed} {note}".strip()
        self.display._update(self, self.note)


class Display:
    """Draws on a terminal; writes a line now and then where the output is a file."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or Console(highlight=False, quiet=quiet)
        self._progress: Progress | None = None
        self._task: object = None

    @contextmanager
    def stage(self, title: str, total: int | None = None, unit: str = "") -> Iterator[Bar]:
        """A stage with a bar; prints its title, time, and what it says of itself when it ends."""
        bar = Bar(self, title, total, unit)
        start = time.monotonic()
        if self.console.is_terminal:
            columns = (
                TextColumn("  {task.description:<16.16}"),
                BarColumn(bar_width=18),
                TaskProgressColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("[dim]{task.fields[note]}", table_column=None),
            )
            with Progress(*columns, console=self.console, transient=True) as progress:
                self._progress, self._task = progress, progress.add_task(title, total=total, note="")
                try:
                    yield bar
                finally:
                    self._progress = None
        else:
            yield bar
        self.line(title, time.monotonic() - start, bar.note)

    def line(self, title: str, seconds: float | None = None, note: str = "") -> None:
        took = f"{seconds:7.1f} s" if seconds is not None else "         "
        text = f"  [green]✓[/] {title:<30.30} [dim]{took}[/]  [dim]{note}[/]".rstrip()
        # On a terminal a stage stays on one line; a log keeps all of it.
        self.console.print(text, no_wrap=self.console.is_terminal, overflow="ellipsis")

    def kept(self, title: str) -> None:
        """A stage that an earlier process has done."""
        self.console.print(f"  [dim]· {title:<30.30}       kept[/]")

    def note(self, text: str) -> None:
        """Something worth knowing that is no fault."""
        self.console.print(f"  [dim]· {escape(text)}[/]", highlight=False)

    def warn(self, text: str) -> None:
        self.console.print(f"  [yellow]![/] {escape(text)}")

    def say(self, text: str = "") -> None:
        self.console.print(text)

    def _begin(self, bar: Bar) -> None:
        if self._progress is not None:
            # Without samples of the past: what an earlier process did would make the rest seem near.
            self._progress.reset(self._task, total=bar.total, completed=bar.done)  # type: ignore[arg-type]

    def _update(self, bar: Bar, note: str) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=bar.done, note=note)  # type: ignore[arg-type]
        elif time.monotonic() - bar.spoke > 30:
            bar.spoke = time.monotonic()
            share = f" {100 * bar.done / bar.total:.0f}%" if bar.total else ""
            self.console.print(f"    {bar.title}{share} {note}")


def _short(rate: float) -> str:
    return f"{rate / 1000:.1f}k" if rate >= 10_000 else f"{rate:.0f}" if rate >= 10 else f"{rate:.1f}"
