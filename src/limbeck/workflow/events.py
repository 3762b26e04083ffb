"""What happens in a run, a JSON line each: what the terminal shows, and what ``limbeck status`` reads."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from limbeck.workflow.stage import Event

FILE = "events.jsonl"
STOPPED = "interrupted"
"""The error of what Ctrl-C or SIGTERM stopped."""
PROGRESS_SECONDS = 1.0
"""Of a stage's progress, no more than a line in so many seconds is kept."""


class EventLog:
    """Appends to a run's ``events.jsonl``. A line is written at once, so that a kill tears no more than the last."""

    def __init__(self, folder: Path) -> None:
        self._handle = os.open(folder / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._told: dict[tuple[str, str], float] = {}
        if not _ends_a_line(folder / FILE):
            os.write(self._handle, b"\n")

    def __call__(self, event: Event) -> None:
        if event["event"] == "progress":
            who, now = (event["stage"], event["task"]), time.monotonic()
            if now - self._told.get(who, -PROGRESS_SECONDS) < PROGRESS_SECONDS:
                return
            self._told[who] = now
        os.write(self._handle, json.dumps(event).encode() + b"\n")

    def close(self) -> None:
        os.close(self._handle)


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def read_events(folder: Path) -> Iterator[Event]:
    """The events of a run, oldest first. A torn line costs that line."""
    try:
        file = (folder / FILE).open(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and isinstance(event.get("event"), str):
                yield event
