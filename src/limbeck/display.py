"""What a run shows while it goes: a line a task, bars while they last, plain lines in a log."""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TaskProgressColumn, TextColumn
from rich.text import Text

from limbeck.progress import Pace, RunProgress, in_words

QUIET_SECONDS = 30.0
"""How long a log says nothing of a task that is under way."""


BESIDE_A_BAR = 56
"""Columns of a terminal that name, bar, percentage and time take."""

BESIDE_A_TASK = 46
"""Columns of a finished task's line before its note."""


@dataclass
class _Heard:
    """Of a task under way: when something was last said of it, and how fast it goes."""

    spoke: float
    unit: str = ""
    pace: Pace = field(default_factory=Pace)


class _TimeLeft(ProgressColumn):
    """``12:05``, ``1:02:05``; ``--:--`` where it is not known."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        left = task.fields["left"]()
        if left is None:
            return Text("--:--", "progress.remaining")
        minutes, seconds = divmod(int(left), 60)
        hours, minutes = divmod(minutes, 60)
        said = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"
        return Text(said, "progress.remaining")


class Display:
    """Shows the events of a run: draws on a terminal, writes a line now and then where the output is a file."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or Console(highlight=False, quiet=quiet)
        self._progress: Progress | None = None
        self._bars: dict[tuple[str, str], TaskID] = {}
        self._heard: dict[tuple[str, str], _Heard] = {}
        self._run = RunProgress()
        self._run_spoke = time.monotonic()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show an event (``limbeck.workflow.stage.Event``); of a kind that is not shown, nothing happens."""
        self._run(event)
        show = _SHOWN.get(event["event"])
        if show is not None:
            show(self, event)

    # ------------------------------------------------------------------------------ of stages

    def _task_started(self, event: Mapping[str, Any]) -> None:
        who = (event["stage"], event["task"])
        heard = self._heard[who] = _Heard(time.monotonic(), event.get("unit") or "")
        if not self.console.is_terminal:
            return
        width = self._title_width()
        if self._progress is None:
            columns = (
                TextColumn(f"  {{task.description:<{width}}}"),
                BarColumn(bar_width=12),
                TaskProgressColumn(),
                _TimeLeft(),
                TextColumn("[dim]{task.fields[note]}", table_column=None),
            )
            self._progress = Progress(*columns, console=self.console, transient=True)
            self._progress.start()
        title = escape(in_the_middle(event["task"], width))
        self._bars[who] = self._progress.add_task(title, total=event["total"], note="", left=heard.pace.left)

    def _title_width(self) -> int:
        """Columns of a bar's title: more of it is shown where the terminal is wide."""
        return min(26 + max(self.console.width - 100, 0) // 2, 44)

    def _task_progress(self, event: Mapping[str, Any]) -> None:
        who = (event["stage"], event["task"])
        done, total, note = event["done"], event["total"], event["note"]
        heard = self._heard.setdefault(who, _Heard(0.0))
        heard.pace.hear(done, total, anew="resumed" in event)
        if self._progress is not None and who in self._bars:
            room = self._room(BESIDE_A_BAR + self._title_width() - 26)
            self._progress.update(self._bars[who], completed=done, note=escape(fitted(note, room)))
            return
        now = time.monotonic()
        if now - heard.spoke > QUIET_SECONDS:
            heard.spoke = now
            left = heard.pace.left()
            said = [
                event["task"],
                _how_far(done, total, heard.unit),
                f"{in_words(left)} left," if left is not None else "",
                note,
            ]
            self.console.print(f"    {escape(' '.join(filter(None, said)))}", soft_wrap=True)

    def _stage_finished(self, event: Mapping[str, Any]) -> None:
        """Of the whole run, a line now and then."""
        now = time.monotonic()
        if self._run.done < self._run.total and now - self._run_spoke > QUIET_SECONDS:
            self._run_spoke = now
            self.console.print(f"    [dim]{escape(self._run.line())}[/]", soft_wrap=True)

    def _task_finished(self, event: Mapping[str, Any]) -> None:
        self._remove((event["stage"], event["task"]))
        self.line(event["task"], event["seconds"], event["note"])

    def _stage_failed(self, event: Mapping[str, Any]) -> None:
        for who in [who for who in self._bars if who[0] == event["stage"]]:
            self._remove(who)

    def _kept(self, event: Mapping[str, Any]) -> None:
        if not event.get("minor"):
            self.kept(event["title"])

    def _note(self, event: Mapping[str, Any]) -> None:
        self.note(event["text"])

    def _warning(self, event: Mapping[str, Any]) -> None:
        self.warn(event["text"])

    def _ended(self, event: Mapping[str, Any]) -> None:
        self.close()

    def _remove(self, who: tuple[str, str]) -> None:
        if self._progress is not None and who in self._bars:
            self._progress.remove_task(self._bars.pop(who))
            if not self._bars:
                self.close()

    def close(self) -> None:
        """Take all bars away."""
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._bars = None, {}

    # -------------------------------------------------------------------------------- of lines

    def line(self, title: str, seconds: float | None = None, note: str = "") -> None:
        took = f"{seconds:7.1f} s" if seconds is not None else "         "
        if self.console.is_terminal:  # a task stays on one line; a log keeps all of it
            title, note = in_the_middle(title, 30), fitted(note, self._room(BESIDE_A_TASK))
        text = f"  [green]✓[/] {escape(f'{title:<30}')} [dim]{took}[/]  [dim]{escape(note)}[/]".rstrip()
        self.console.print(text, soft_wrap=True)

    def _room(self, taken: int) -> int:
        return max(self.console.width - taken, 8)

    def kept(self, title: str) -> None:
        """Something that an earlier process has done."""
        title = in_the_middle(title, 30) if self.console.is_terminal else title
        self.console.print(f"  [dim]· {escape(f'{title:<30}')}       kept[/]", soft_wrap=True)

    def note(self, text: str) -> None:
        """Something worth knowing that is no fault."""
        self._remark("[dim]·[/]", text, "dim")

    def warn(self, text: str) -> None:
        self._remark("[yellow]![/]", text, "")

    def _remark(self, mark: str, text: str, style: str) -> None:
        """Wrapped under itself on a terminal, one line in a log."""
        if not self.console.is_terminal:
            self.console.print(f"  {mark} {escape(text)}", soft_wrap=True)
            return
        lines = textwrap.wrap(text, max(self.console.width - 4, 20)) or [""]
        self.console.print(f"  {mark} {escape(lines[0])}", style=style)
        for line in lines[1:]:
            self.console.print(f"    {escape(line)}", style=style)

    def say(self, text: str = "") -> None:
        self.console.print(text)


def in_the_middle(text: str, width: int) -> str:
    """Cut in its middle where it is too long: names begin alike, and end with what tells them apart."""
    if len(text) <= width:
        return text
    end = (width - 1) // 2
    return f"{text[: width - 1 - end]}…{text[-end:]}"


def fitted(note: str, width: int) -> str:
    """A note without its speed where it is too long, then without what stands in brackets, then cut."""
    for pattern in (r"^\S+ [^\s/]+/s ", r" \([^()]*\)"):
        if len(note) > width:
            note = re.sub(pattern, "", note)
    return note if len(note) <= width else f"{note[: width - 1]}…"


def _how_far(done: int, total: int | None, unit: str) -> str:
    of = f"{min(100 * done / total, 100):.0f}% ({done:,.0f} of {total:,}" if total else f"({done:,.0f}"
    return f"{of} {unit}".rstrip() + ")"


_SHOWN: dict[str, Callable[[Display, Mapping[str, Any]], None]] = {
    "task_started": Display._task_started,
    "progress": Display._task_progress,
    "task_finished": Display._task_finished,
    "stage_finished": Display._stage_finished,
    "stage_failed": Display._stage_failed,
    "stage_kept": Display._kept,
    "part_kept": Display._kept,
    "note": Display._note,
    "warning": Display._warning,
    "run_finished": Display._ended,
    "run_failed": Display._ended,
}
