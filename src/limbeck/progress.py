"""How far a run is, and how long it takes yet, from its events."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Pace:
    """How fast a task goes in this process: from where it was first heard of to where it was last.

    rich's own column looks at the last 30 seconds alone, and says nothing of steps that take longer.
    """

    first: tuple[float, int] | None = None
    last: tuple[float, int] | None = None
    total: int | None = None

    def hear(self, done: int, total: int | None, *, anew: bool = False) -> None:
        """``anew``: what was done until now was done by an earlier process."""
        now = time.monotonic()
        if self.first is None or anew:
            self.first = now, done
        self.last, self.total = (now, done), total

    def left(self) -> float | None:
        """Seconds until it is done; None: not known yet."""
        if self.first is None or self.last is None or not self.total:
            return None
        seconds, more = self.last[0] - self.first[0], self.last[1] - self.first[1]
        if seconds <= 0 or more <= 0:
            return None
        return max((self.total - self.last[1]) * seconds / more - (time.monotonic() - self.last[0]), 0.0)


@dataclass
class _Stage:
    kind: str
    began: float | None = None
    done: bool = False
    tasks: dict[str, Pace] = field(default_factory=dict)

    def left(self) -> float | None:
        """Of one that is under way, by its slowest task."""
        known = [seconds for pace in self.tasks.values() if (seconds := pace.left()) is not None]
        return max(known, default=None)


class RunProgress:
    """How far all stages of a run are together.

    What is to come is expected to take as long as stages of its kind took in this process. While there is a kind to
    come that has not been seen, it is only known what the others take at least.
    """

    def __init__(self) -> None:
        self._stages: dict[str, _Stage] = {}
        self._took: dict[str, list[float]] = {}
        self._jobs = 1

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Hear of an event of the run."""
        what = event["event"]
        if what == "run_started":
            self._stages = {each["name"]: _Stage(each.get("kind", each["name"])) for each in event["stages"]}
            self._jobs = event.get("jobs", 1)
        stage = self._stages.get(event.get("stage", ""))
        if stage is None:
            return
        if what == "stage_started":
            stage.began = time.monotonic()
        elif what == "stage_kept":
            stage.done = True
        elif what == "stage_finished":
            stage.done = True
            if stage.began is not None:
                self._took.setdefault(stage.kind, []).append(time.monotonic() - stage.began)
        elif what == "progress":
            pace = stage.tasks.setdefault(event["task"], Pace())
            pace.hear(event["done"], event["total"], anew="resumed" in event)
        elif what == "task_finished":
            stage.tasks.pop(event["task"], None)

    @property
    def done(self) -> int:
        """Stages that are done or kept."""
        return sum(stage.done for stage in self._stages.values())

    @property
    def total(self) -> int:
        return len(self._stages)

    def left(self) -> tuple[float, bool] | None:
        """Seconds until the run is done, and whether all that is to come is known; None: nothing of it is."""
        known, unknown = [], 0
        for stage in self._stages.values():
            if stage.done or not stage.kind:  # the latter take no time
                continue
            took = self._took.get(stage.kind)
            seconds = sum(took) / len(took) if took else None
            if stage.began is not None:
                if seconds is not None:
                    seconds = max(seconds - (time.monotonic() - stage.began), 0.0)
                own = stage.left()
                seconds = own if own is not None else seconds
            if seconds is None:
                unknown += 1
            else:
                known.append(seconds)
        if not known or (unknown and not any(known)):
            return None
        return max(sum(known) / self._jobs, *known), not unknown

    def line(self) -> str:
        """``stage 5 of 14, about 40 min left``."""
        said = f"stage {min(self.done + 1, self.total)} of {self.total}"
        left = self.left()
        if left is None:
            return said
        return f"{said}, {'about' if left[1] else 'at least'} {in_words(left[0])} left"


def in_words(seconds: float) -> str:
    """``89 s``, ``40 min``, ``2 h 5 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 100 else f"{minutes} min"
