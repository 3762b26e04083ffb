from __future__ import annotations

import io

import pytest
from rich.console import Console

from limbeck.display import Display


def test_the_speed_is_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that goes on at 1,000 of 1,200 tokens and does 100 in ten seconds does ten a second."""
    now = 0.0
    monkeypatch.setattr("limbeck.display.time.monotonic", lambda: now)
    with Display(quiet=True).stage("train", 1200, "tokens") as bar:
        now = 5.0
        bar.update(1000, "loss 2.000")
        assert bar.note == "loss 2.000"
        now = 15.0
        bar.update(1100, "loss 1.000")
        assert bar.note == "10 tokens/s loss 1.000"


def test_the_speed_of_a_single_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("limbeck.display.time.monotonic", lambda: now)
    with Display(quiet=True).stage("measure", 40, "rows") as bar:
        now = 2.0
        bar.update(40)
        assert bar.note == "20 rows/s"


def test_what_is_said_of_data_is_no_markup() -> None:
    """A column may be called anything."""
    out = io.StringIO()
    display = Display(Console(file=out, width=200))
    display.note("not read: [/x], [bold]")
    display.warn("roles: [/red]")
    assert "not read: [/x], [bold]" in out.getvalue()
    assert "roles: [/red]" in out.getvalue()
