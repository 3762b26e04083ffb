"""Where a run stands, from its markers and events. Nothing is written, and no recipe is needed."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from limbeck.errors import RunFolderError
from limbeck.workflow.events import STOPPED, read_events
from limbeck.workflow.lock import is_run, owner_of
from limbeck.workflow.markers import Markers
from limbeck.workflow.stage import Event

State = Literal["done", "running", "stopped", "failed", "waiting"]


@dataclass
class StageStatus:
    """A stage as it stands.

    Attributes:
        name, title: which.
        state: ``stopped``: begun, and no process is working on it.
        done, total, note: of the part that is under way.
        seconds: how long it took, or has been running.
        finished: when, in UTC.
        error: why it failed.
    """

    name: str
    title: str
    state: State = "waiting"
    done: int | None = None
    total: int | None = None
    note: str = ""
    seconds: float | None = None
    finished: str | None = None
    error: str | None = None
    needs: list[str] = field(default_factory=list)


@dataclass
class RunStatus:
    """A run as it stands. ``process``: the one that is working on it, if there is one."""

    folder: str
    process: int | None
    stages: list[StageStatus]
    error: str | None = None

    @property
    def finished(self) -> bool:
        return bool(self.stages) and all(stage.state == "done" for stage in self.stages)


def status_of(folder: Path) -> RunStatus:
    """Where a run stands.

    Raises:
        RunFolderError: there is no such run.
    """
    if not folder.is_dir() or not is_run(folder):
        raise RunFolderError(f"there is no run in {folder}", fix="Name a run folder, for example runs/demo")
    status = RunStatus(str(folder), owner_of(folder), [])
    stages: dict[str, StageStatus] = {}
    began: dict[str, float] = {}
    for event in read_events(folder):
        if event["event"] == "run_started":
            # A stage that is kept shows the time that it took once.
            took = {name: stage.seconds for name, stage in stages.items()}
            stages = {
                each["name"]: StageStatus(
                    each["name"], each["title"], seconds=took.get(each["name"]), needs=each["needs"]
                )
                for each in event["stages"]
            }
            status.error = None
        elif event["event"] == "run_failed":
            status.error = event["error"]
        elif event.get("stage") in stages:
            _note(stages[event["stage"]], event, began)
    markers = Markers(folder)
    for name in markers.names():
        marker = markers.read(name)
        if not stages or name in stages:
            stage = stages.setdefault(name, StageStatus(name, name))
            if marker is not None and marker.result is not None:
                stage.state, stage.finished = "done", marker.finished
            elif marker is not None and stage.state == "waiting":
                stage.state = "stopped"
    for stage in stages.values():
        if stage.state == "running" and status.process is None:
            stage.state = "stopped"
        elif stage.state == "running":
            stage.seconds = time.time() - began[stage.name]
    status.stages = list(stages.values())
    return status


def _note(stage: StageStatus, event: Event, began: dict[str, float]) -> None:
    kind = event["event"]
    if kind == "stage_started":
        stage.state, stage.error = "running", None
        began[stage.name] = event["time"]
    elif kind in ("progress", "task_started", "task_finished"):
        stage.done, stage.total = event.get("done"), event.get("total", stage.total)
        stage.note = event.get("note", "")
    elif kind == "stage_failed":
        stopped = event["error"] == STOPPED
        stage.state, stage.error = ("stopped", None) if stopped else ("failed", event["error"])
    elif kind == "stage_kept":
        stage.state = "done"
    elif kind == "stage_finished":
        stage.state, stage.seconds = "done", event["time"] - began.get(stage.name, event["time"])
