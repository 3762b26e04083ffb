from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from limbeck.display import Display
from limbeck.progress import Pace, RunProgress


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


def clocked(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clock of what is shown."""
    now = [0.0]
    monkeypatch.setattr("limbeck.display.time.monotonic", lambda: now[0])

    def at(seconds: float) -> None:
        now[0] = seconds

    return at


def test_the_time_left_is_known_where_steps_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of 45 seconds is longer than the window of rich's own column."""
    at = clocked(monkeypatch)
    out = io.StringIO()
    display = Display(Console(file=out, width=100, force_terminal=True, highlight=False, color_system=None))
    task = {"stage": "s", "task": "train", "total": 100}
    display({"event": "task_started", "unit": "tokens", **task})
    for step in range(4):
        at(45.0 * step)
        display({"event": "progress", "done": 10 + step, "note": "", **task})
    assert display._progress is not None
    display._progress.refresh()
    assert "1:05:15" in out.getvalue()  # 87 steps of 45 s
    at(45.0 * 3 + 15.0)
    display._progress.refresh()
    assert "1:05:00" in out.getvalue()  # it counts down between two steps
    display.close()


def test_what_an_earlier_process_did_makes_nothing_seem_near(monkeypatch: pytest.MonkeyPatch) -> None:
    at = clocked(monkeypatch)
    pace = Pace()
    pace.hear(900, 1000, anew=True)
    assert pace.left() is None
    at(10.0)
    pace.hear(910, 1000)
    assert pace.left() == 90.0


STAGES = [
    {"name": "data", "title": "data", "needs": [], "kind": "Corpus"},
    *({"name": f"train-{i}", "title": f"train {i}", "needs": [], "kind": "Train"} for i in range(3)),
    {"name": "speed", "title": "speed", "needs": [], "kind": "Speed"},
    {"name": "report", "title": "report", "needs": [], "kind": ""},
]


def test_the_whole_run_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    at = clocked(monkeypatch)
    run = RunProgress()
    run({"event": "run_started", "stages": STAGES, "jobs": 1})
    assert run.line() == "stage 1 of 6"
    run({"event": "stage_kept", "stage": "data"})
    run({"event": "stage_started", "stage": "train-0"})
    assert run.line() == "stage 2 of 6"
    at(300.0)
    run({"event": "stage_finished", "stage": "train-0"})
    assert run.line() == "stage 3 of 6, at least 10 min left"  # how long speed takes is not known
    run({"event": "stage_started", "stage": "train-1"})
    run({"event": "progress", "stage": "train-1", "task": "train", "done": 0, "total": 10, "resumed": 0})
    at(360.0)
    run({"event": "progress", "stage": "train-1", "task": "train", "done": 1, "total": 10})
    assert run.line() == "stage 3 of 6, at least 14 min left"  # nine minutes of its own, and five of the next
    for name in ("train-1", "train-2"):
        run({"event": "stage_finished", "stage": name})
    run({"event": "stage_started", "stage": "speed"})
    run({"event": "progress", "stage": "speed", "task": "speed", "done": 0, "total": 10, "resumed": 0})
    at(370.0)
    run({"event": "progress", "stage": "speed", "task": "speed", "done": 5, "total": 10})
    assert run.line() == "stage 5 of 6, about 10 s left"
    run({"event": "stage_finished", "stage": "speed"})
    assert run.line() == "stage 6 of 6"


def test_two_jobs_take_half_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    at = clocked(monkeypatch)
    run = RunProgress()
    run({"event": "run_started", "stages": [STAGES[0], *STAGES[1:4], STAGES[5]], "jobs": 2})
    run({"event": "stage_kept", "stage": "data"})
    run({"event": "stage_started", "stage": "train-0"})
    at(600.0)
    run({"event": "stage_finished", "stage": "train-0"})
    assert run.line() == "stage 3 of 5, about 10 min left"


def test_a_log_says_how_far_the_run_is(monkeypatch: pytest.MonkeyPatch) -> None:
    at = clocked(monkeypatch)
    out = io.StringIO()
    display = Display(Console(file=out, width=100))
    display({"event": "run_started", "stages": STAGES, "jobs": 1})
    for number, name in enumerate(stage["name"] for stage in STAGES):
        display({"event": "stage_started", "stage": name, "title": name})
        at(20.0 * (number + 1))
        display({"event": "stage_finished", "stage": name, "title": name})
    lines = out.getvalue().splitlines()
    assert [line.strip() for line in lines] == ["stage 3 of 6, at least 40 s left", "stage 5 of 6"]


def test_events_of_an_older_version_are_heard() -> None:
    run = RunProgress()
    run({"event": "run_started", "stages": [{"name": "a", "title": "a", "needs": []}]})
    assert run.line() == "stage 1 of 1"


def test_a_wide_terminal_shows_whole_titles() -> None:
    out = io.StringIO()
    display = Display(Console(file=out, width=140, force_terminal=True, highlight=False, color_system=None))
    task = {"stage": "s", "task": "measure soft-with-hidden-seed0-narrow", "total": 200}
    display({"event": "task_started", "unit": "tokens", **task})
    display({"event": "progress", "done": 100, "note": "", **task})
    assert display._progress is not None
    display._progress.refresh()
    assert "measure soft-with-hidden-seed0-narrow" in out.getvalue()
    display.close()
