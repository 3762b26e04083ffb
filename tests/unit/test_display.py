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
    assert out.getvalue().split() == ["train", "26%", "(310", "of", "1,200", "tokens)", "89", "s", "left,", "10/s"]


def test_a_terminal_of_80_columns_keeps_what_matters() -> None:
    out = io.StringIO()
    display = Display(Console(file=out, width=80, force_terminal=True, highlight=False, color_system=None))
    display.line("measure soft-with-hidden-seed0-narrower-one", 2.3, "1.543 bits/byte, KL 0.320")
    display.line("soft-seed0", 10.6, "637 tokens/s loss small 4.211, narrower-one 4.223")
    display.line("soft-seed0", 10.6, "637 tokens/s loss 4.211 (teacher 0.410, labels 3.120)")
    first, second, third = out.getvalue().splitlines()
    assert "…" in first
    assert "narrower-one  " in first
    assert first.endswith("KL 0.320")
    assert second.rstrip().endswith("loss small 4.211, narrower-one 4.…")
    assert third.endswith("  loss 4.211")
    assert max(map(len, (first, second, third))) <= 80


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_bar_keeps_its_percentage_and_time(width: int) -> None:
    out = io.StringIO()
    display = Display(Console(file=out, width=width, force_terminal=True, highlight=False, color_system=None))
    task = {"stage": "s", "task": "soft-with-hidden-seed0-narrower-one", "total": 200}
    display({"event": "task_started", "unit": "tokens", **task})
    note = "637 tokens/s loss small 4.211, narrower-one 4.223, another-one 5.120"
    display({"event": "progress", "done": 100, "note": note, **task})
    assert display._progress is not None
    display._progress.refresh()
    lines = [line for line in out.getvalue().splitlines() if "50%" in line]
    assert lines
    assert all("narrower-one" in line and ":" in line and len(line.rsplit("\r", 1)[-1]) <= width + 8 for line in lines)
    display.close()


def test_what_is_said_of_data_is_no_markup() -> None:
    """A column may be called anything."""
    out = io.StringIO()
    display = Display(Console(file=out, width=200))
    display.note("not read: [/x], [bold]")
    display.warn("roles: [/red]")
    assert "not read: [/x], [bold]" in out.getvalue()
    assert "roles: [/red]" in out.getvalue()
