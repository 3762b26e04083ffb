"""``limbeck status``: where a run stands; and what a run would do."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from limbeck.errors import counted
from limbeck.workflow.runner import Decision
from limbeck.workflow.status import RunStatus, StageStatus

_MARKS = {
    "done": "[green]✓[/]",
    "running": "[cyan]▸[/]",
    "stopped": "[yellow]‖[/]",
    "failed": "[red]✗[/]",
    "waiting": "·",
}
_ACTIONS = {"keep": "[green]✓[/]", "run": "[cyan]▸[/]", "wait": "·", "refuse": "[red]✗[/]"}
_SAID = {"keep": "kept", "run": "to run", "wait": "to run after others", "refuse": "refused"}


def show_status(status: RunStatus, console: Console) -> None:
    """A line a stage."""
    if status.process is not None:
        said = f"process {status.process} is working on it"
    elif status.finished:
        said = "finished"
    else:
        said = "no process is working on it; `limbeck run` goes on where it stopped"
    console.print(f"[bold]{escape(status.folder)}[/]: {said}")
    table = _table()
    for stage in status.stages:
        took = "" if stage.seconds is None else f"{stage.seconds:,.{0 if stage.seconds >= 10 else 1}f} s"
        table.add_row(_MARKS[stage.state], escape(stage.title), stage.state, took, escape(_progress(stage)))
    console.print(table)
    if status.error:
        console.print(f"[red]It stopped:[/] {escape(status.error)}")


def _progress(stage: StageStatus) -> str:
    if stage.state == "done":
        return ""
    if stage.state == "failed":
        return stage.error or ""
    if stage.state == "waiting":
        return ""
    share = f"{100 * stage.done / stage.total:.0f}% " if stage.total and stage.done is not None else ""
    return f"{share}{stage.note}"


def show_decisions(decisions: Sequence[Decision], console: Console) -> None:
    """What would be done with each stage, and why; and how many of each."""
    table = _table()
    for decision in decisions:
        table.add_row(
            _ACTIONS[decision.action], escape(decision.stage.title), decision.action, "", escape(decision.reason)
        )
    console.print(table)
    numbers: Counter[str] = Counter(decision.action for decision in decisions)
    said = [f"{numbers[action]} {words}" for action, words in _SAID.items() if numbers[action]]
    console.print(f"{counted(len(decisions), 'stage')}: {', '.join(said)}")


def _table() -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(width=3, justify="right")
    table.add_column(max_width=34, no_wrap=True, overflow="ellipsis")
    table.add_column(style="dim", width=8)
    table.add_column(style="dim", justify="right")
    table.add_column(style="dim", overflow="fold")
    return table


def as_json(status: RunStatus) -> str:
    return json.dumps({**dataclasses.asdict(status), "finished": status.finished}, indent=1)
