from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from limbeck.display import Display


def shown(events: list[dict[str, Any]], *, terminal: bool = False) -> str:
    out = io.StringIO()
    display = Display(Console(file=out, width=200, force_terminal=terminal, highlight=False))
    for event in events:
        display({"stage": "s", "task": "t", **event})
    display.close()
    return out.getvalue()


def test_a_log_has_a_line_a_task() -> None:
    events: list[dict[str, Any]] = [
        {"event": "stage_started", "title": "s"},
        {"event": "task_started", "total": 10, "unit": "rows"},
        {"event": "progress", "done": 5, "total": 10, "note": "5 rows/s"},
        {"event": "task_finished", "seconds": 2.0, "done": 10, "note": "5 rows/s [red]"},
        {"event": "stage_kept", "title": "an old stage"},
        {"event": "stage_kept", "title": "a small one", "minor": True},
        {"event": "something that a later version says"},
    ]
    lines = shown(events).splitlines()
    assert [line.split() for line in lines] == [
        ["✓", "t", "2.0", "s", "5", "rows/s", "[red]"], ["·", "an", "old", "stage", "kept"]
    ]  # fmt: skip
    on_a_terminal = shown(events, terminal=True)
    assert "[red]" in on_a_terminal
    assert "an old stage" in on_a_terminal


def test_a_log_speaks_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("limbeck.display.time.monotonic", lambda: now)
    out = io.StringIO()
    display = Display(Console(file=out, width=200))
    display({"event": "task_started", "stage": "s", "task": "train", "total": 1200, "unit": "tokens"})
    for now in (5.0, 31.0, 40.0):
        display({"event": "progress", "stage": "s", "task": "train", "done": 10 * now, "total": 1200, "note": "10/s"})
    assert out.getvalue().split() == ["train", "26%", "10/s"]


def test_what_is_said_of_data_is_no_markup() -> None:
    """A column may be called anything."""
    out = io.StringIO()
    display = Display(Console(file=out, width=200))
    display.note("not read: [/x], [bold]")
    display.warn("roles: [/red]")
    assert "not read: [/x], [bold]" in out.getvalue()
    assert "roles: [/red]" in out.getvalue()
