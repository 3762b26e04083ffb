"""What a stage is: a unit of work of a run that is done once, marked, and resumed."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Plain = Any
"""What JSON holds: dicts with string keys, lists, strings, numbers, booleans, None."""

Facts = Mapping[str, Mapping[str, Any]]
"""Results of finished stages, by the stage's name."""


class _Unknown(Mapping[str, Any]):
    """All that is asked of it is not known either."""

    def __getitem__(self, name: str) -> Any:
        return self

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


UNKNOWN: Any = _Unknown()
"""The facts of a stage that is not finished, and whatever is taken from them."""

Event = dict[str, Any]
"""Something that happened: ``{"event": kind, "time": seconds since the epoch, "stage": name, ...}``."""

Emit = Callable[[Event], None]

PER_SECOND = 10
"""Progress events of a task at most, because they may cross a process border."""


class Stage(ABC):
    """A unit of work of a run. Subclasses are plain data that can be pickled: a stage may run in another process.

    All paths are relative to the run folder.
    """

    version: int = 1
    """To be raised when the same key would give another output: what an older version left is then not reused."""

    recomputable: bool = False
    """It can be made anew at no loss, so that another key just makes it again (measurements)."""

    drains: bool = False
    """What it has in flight is worth waiting for when the run is interrupted: in a worker process it is told, as by a
    SIGTERM in a process of its own, and ends by itself. Others are killed; they go on from what is on disk."""

    urgency: int = 0
    """Where several stages could start, those with a greater one do first."""

    always: bool = False
    """It is run every time, in the run's own process: it has to be cheap."""

    needs: tuple[str, ...] = ()
    """Names of the stages whose results it uses."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Unique in a run; the name of its marker file."""

    @property
    def title(self) -> str:
        """What people read."""
        return self.name

    @abstractmethod
    def key(self, up: Facts) -> dict[str, Plain]:
        """All that its output depends on, beside ``version``. ``up`` holds the results of the stages in ``needs``;
        of one that is not finished, ``UNKNOWN``, which is to be passed on as it is: what is known is compared already.
        """

    def recipe_keys(self) -> Mapping[str, str]:
        """How parts of the key are called in the recipe, for errors: ``{"data.fingerprint": "data.corpus"}``."""
        return {}

    def why_refused(self, was: Mapping[str, Plain], now: Mapping[str, Plain]) -> tuple[str, str] | None:
        """Where two values do not say why another key is refused: the key of the recipe, and why."""
        return None

    def outputs(self) -> Sequence[str]:
        """Files and folders that it leaves behind. If one is gone or torn, the stage is run again."""
        return ()

    def partial(self) -> Sequence[str]:
        """What a killed one leaves and the next process goes on from. While there is any, another key is refused."""
        return ()

    def share_done(self, folder: Path) -> float | None:
        """Of one that was killed: from where the next process goes on, between 0 and 1; None: not known."""
        return None

    def scratch(self) -> Sequence[str]:
        """Of ``partial``, what is deleted when the stage is done."""
        return ()

    def untouched(self) -> Sequence[str]:
        """Names of files below ``outputs`` that later stages write anew, and whose size says nothing."""
        return ()

    def is_equivalent(self, was: Mapping[str, Plain], now: Mapping[str, Plain], result: Mapping[str, Plain]) -> bool:
        """Whether what was made with the key ``was`` would have come out the same with ``now``, which differs."""
        return False

    def lost(self, result: Mapping[str, Plain], folder: Path) -> str | None:
        """Of what a finished one left outside the run folder, something that is gone; None: all is there."""
        return None

    def check_kept(self, result: Mapping[str, Plain], folder: Path) -> Sequence[str]:
        """What to warn of when a finished stage is kept.

        Raises:
            LimbeckError: the recipe asks for more than what is there.
        """
        return ()

    def notes_kept(self, result: Mapping[str, Plain]) -> Sequence[str]:
        """The notes that are shown when a finished stage is kept: those of its result."""
        return result.get("notes") or ()

    def is_undisturbed(self, up: Facts) -> bool:
        """Whether nothing else may run beside it: it is timed, or uses all cores."""
        return False

    @abstractmethod
    def run(self, up: Facts, context: Context) -> dict[str, Plain]:
        """Do the work, or go on with it from what ``partial`` names.

        Returns:
            Plain data that later stages and people want to know. ``notes`` and ``warnings`` (lists of strings) are
            shown now, and again whenever the stage is kept.
        """


class Context:
    """What a stage knows of its surroundings, and how it says what it does.

    Attributes:
        folder: the run folder.
        previous: the stage's result the last time that it was finished, if it is run again.
        is_needed: something is there that was made from what the stage left.
    """

    def __init__(
        self,
        folder: Path,
        stage: str,
        emit: Emit,
        *,
        previous: Mapping[str, Plain] | None = None,
        is_needed: bool = False,
    ) -> None:
        self.folder, self.stage = folder, stage
        self.previous, self.is_needed = previous, is_needed
        self._emit = emit

    def emit(self, event: str, **more: Plain) -> None:
        self._emit({"event": event, "time": time.time(), "stage": self.stage, **more})

    def note(self, text: str) -> None:
        """Something worth knowing that is no fault."""
        self.emit("note", text=text)

    def warn(self, text: str) -> None:
        self.emit("warning", text=text)

    def skip(self, title: str) -> None:
        """Say of a part of the work that an earlier process did it."""
        self.emit("part_kept", title=title)

    @contextmanager
    def task(self, title: str, total: int | None = None, unit: str = "") -> Iterator[Task]:
        """A part of the work with a progress bar."""
        task = Task(self, title, total, unit)
        self.emit("task_started", task=title, total=total, unit=unit)
        yield task
        seconds = time.monotonic() - task.begun
        self.emit(
            "task_finished", task=title, seconds=round(seconds, 3), done=task.done, note=task.summary or task.said()
        )


class Task:
    """Progress of a part of a stage. ``note``: what is said beside its speed; ``summary``: instead, when it ends."""

    def __init__(self, context: Context, title: str, total: int | None, unit: str) -> None:
        self.context, self.title, self.total, self.unit = context, title, total, unit
        self.begun = self._first_time = time.monotonic()
        self._told = 0.0
        self.done, self.note, self.summary = 0, "", ""
        # What was done when it was first heard of: an earlier process's work has no part in the speed.
        self._first: int | None = None

    def advance(self, n: int = 1) -> None:
        self.update(self.done + n, self.note)

    def update(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        self.done, self.note = done, note
        if self._first is None:
            self._first, self._first_time = done, now
        elif now - self._told < 1 / PER_SECOND:
            return
        self._told = now
        resumed = self._first if self._first_time == now else None
        more = {"resumed": resumed} if resumed is not None else {}
        self.context.emit("progress", task=self.title, done=done, total=self.total, note=self.said(), **more)

    def said(self) -> str:
        """The speed, and the note."""
        speed = ""
        if self.unit and self._first is not None:
            seconds = time.monotonic() - self._first_time
            if self.done > self._first:
                speed = f"{_short((self.done - self._first) / max(seconds, 1e-3))} {self.unit}/s"
            elif self._first == self.total:  # all of it at once
                speed = f"{_short(self.done / max(time.monotonic() - self.begun, 1e-3))} {self.unit}/s"
        return f"{speed} {self.note}".strip()


def _short(rate: float) -> str:
    return f"{rate / 1000:.1f}k" if rate >= 10_000 else f"{rate:.0f}" if rate >= 10 else f"{rate:.1f}"
