"""Running stages: what is kept, what is run, what is refused; side by side where they do not need each other."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from limbeck.errors import RunFolderError, counted
from limbeck.workflow.events import STOPPED
from limbeck.workflow.lock import RunLock
from limbeck.workflow.markers import Marker, Markers, filled, first_difference, plain
from limbeck.workflow.processes.workers import Workers
from limbeck.workflow.stage import UNKNOWN, Context, Emit, Event, Facts, Plain, Stage

Environments = Callable[[int], Mapping[str, str]]
"""Variables for each worker by its number, for example which GPU it has."""


@dataclass(frozen=True)
class Decision:
    """What is to be done with a stage.

    Attributes:
        stage: which.
        action: ``keep`` (finished, from this key), ``run``, ``wait`` (its key depends on stages that run first), or
            ``refuse`` (it was made, or begun, from another key).
        reason: in a few words.
        key: its key now; None while it waits.
        result: of a kept one.
        unsure, adopt: how it is marked (see :class:`Marker`).
        error: of a refused one.
    """

    stage: Stage
    action: Literal["keep", "run", "wait", "refuse"]
    reason: str
    key: dict[str, Plain] | None = None
    result: dict[str, Plain] | None = None
    unsure: bool = False
    adopt: bool = False
    is_needed: bool = False
    warnings: tuple[str, ...] = ()
    error: Exception | None = None


class Runner:
    """Runs the stages of a run folder.

    Args:
        folder: the run folder.
        keep_stale: keep what an older version of a stage has made.
    """

    def __init__(self, folder: Path, *, keep_stale: bool = False) -> None:
        self.folder, self.keep_stale = folder, keep_stale
        self.markers = Markers(folder)

    # ------------------------------------------------------------------------------- deciding

    def decide(self, stages: Sequence[Stage]) -> list[Decision]:
        """What would be done with each stage, in order. Writes nothing, and needs no lock."""
        in_order(stages)
        facts: dict[str, Mapping[str, Plain]] = {}
        decisions = {}
        for stage in stages:
            found = self._decide(stage, facts, stages)
            waits = [other.title for other in stages if other.name in stage.needs and other.name not in facts]
            if waits and found.error is None:
                more = len(waits) - 2
                after = ", ".join(waits[:2]) + (f" and {counted(more, 'other')}" if more > 0 else "")
                found = Decision(stage, "wait", f"after {after}")
            decisions[stage.name] = found
            if found.result is not None:
                facts[stage.name] = found.result
        return list(decisions.values())

    def _decide(self, stage: Stage, facts: Facts, stages: Sequence[Stage]) -> Decision:
        marker = self.markers.read(stage.name)
        key = plain(filled(stage.key(_of(facts, stage)), marker.key if marker is not None else None))
        later = any(self._is_there(other) for other in descendants(stage.name, stages))
        # Without a marker, it is not known from which key the files were made.
        unsure = later if marker is None else marker.unsure
        again = Decision(stage, "run", "not begun", key, unsure=unsure, is_needed=later)
        if marker is None:
            return again
        if stage.always:
            return Decision(stage, "run", "made anew every time", key)
        missing = None
        if marker.result is not None:
            missing = self.markers.missing(stage, marker) or stage.lost(marker.result, self.folder)
        whole = marker.result is not None and missing is None
        begun = bool(self.markers.present(stage.partial()))
        share = stage.share_done(self.folder) if begun else None
        goes_on = "goes on" if share is None else f"goes on at {100 * share:.0f}%"
        reason = goes_on if begun else "begun" if marker.result is None else f"{missing} is gone or torn"
        if whole and (marker.key == key or self._is_equivalent(stage, marker, key)):
            if marker.version == stage.version or self.keep_stale:
                return self._kept(stage, marker, key)
            return self._stale(stage, marker, again)
        if marker.key == key:
            if begun and not stage.recomputable and marker.version != stage.version and not self.keep_stale:
                return self._stale(stage, marker, again)
            return Decision(stage, "run", reason, key, unsure=unsure, is_needed=later)
        anew = "it is made anew" if marker.result is not None else "what was begun of it is not used"
        reason = f"{_place(stage, first_difference(marker.key, key)[0])} has changed: {anew}"
        changed = Decision(stage, "run", reason, key, unsure=unsure, is_needed=later)
        if stage.recomputable or unsure or not (whole or later or begun):
            return changed
        return self._refuse(stage, again, whole, marker)

    def _is_there(self, stage: Stage) -> bool:
        """Whether a stage has left something that would be lost."""
        return not stage.recomputable and bool(self.markers.present([*stage.outputs(), *stage.partial()]))

    @staticmethod
    def _is_equivalent(stage: Stage, marker: Marker, key: dict[str, Plain]) -> bool:
        return marker.result is not None and stage.is_equivalent(marker.key, key, marker.result)

    def _kept(self, stage: Stage, marker: Marker, key: dict[str, Plain]) -> Decision:
        assert marker.result is not None
        adopt = marker.key != key or marker.version != stage.version
        reason = "done"
        if marker.version != stage.version:
            reason = f"done, by version {marker.version} of this stage (now {stage.version})"
        try:
            warnings = tuple(stage.check_kept(marker.result, self.folder))
        except Exception as error:
            return Decision(stage, "refuse", str(error), key, error=error)
        return Decision(stage, "keep", reason, key, marker.result, adopt=adopt, warnings=warnings)

    def _stale(self, stage: Stage, marker: Marker, again: Decision) -> Decision:
        if stage.recomputable:
            return again
        error = RunFolderError(
            f"{stage.title} was made by version {marker.version} of its stage, which is {stage.version} now: it would "
            "come out otherwise",
            key="run",
            fix="Name another `run:` folder, or keep it with `--keep-stale`",
        )
        return Decision(stage, "refuse", error.what, again.key, error=error)

    def _refuse(self, stage: Stage, again: Decision, whole: bool, marker: Marker) -> Decision:
        assert again.key is not None
        if (why := stage.why_refused(marker.key, again.key)) is not None:
            error = RunFolderError(why[1], key=why[0], fix="Use another run folder: `run=OTHER`")
            return Decision(stage, "refuse", f"{why[0]}: {why[1]}", again.key, error=error)
        where, was, now = first_difference(marker.key, again.key)
        key = _place(stage, where)
        lost = ", ".join(str(path) for path in self.markers.present(stage.outputs() if whole else stage.partial()))
        instead = f"delete {lost or self.folder} to make that part anew"
        if again.is_needed:
            instead = "change it back: other parts were made from this one"
        error = RunFolderError(
            f"{self.folder} was run {_with(was)}, now it is {_brief(now)}",
            key=key,
            fix=f"Name another `run:` folder, or {instead}",
        )
        return Decision(stage, "refuse", f"{key}: was {_brief(was)}, now {_brief(now)}", again.key, error=error)

    def refuse(self, stages: Sequence[Stage]) -> list[Decision]:
        """Raise the first error of what would be refused, before anything is spent. Otherwise, what was decided.

        Raises:
            LimbeckError: see :meth:`run`.
        """
        decisions = self.decide(stages)
        for decision in decisions:
            if decision.error is not None:
                raise decision.error
        return decisions

    # -------------------------------------------------------------------------------- running

    def run(
        self,
        stages: Sequence[Stage],
        lock: RunLock,
        emit: Emit,
        *,
        jobs: int = 1,
        environment: Environments = lambda number: {},
    ) -> dict[str, Mapping[str, Plain]]:
        """Run what is not done. What cannot go on is refused as soon as its key is known, before more is spent.

        Args:
            stages: in the order in which they are run where they do not need each other.
            lock: of the run folder.
            emit: told of everything that happens.
            jobs: stages at a time. With one, they run in this process, else each in a worker process.
            environment: variables of each worker.

        Returns:
            The results of all stages, by name.

        Raises:
            RunFolderError: a stage was made from another key, or by another version.
            LimbeckError: what a stage raised. Other stages that were running are stopped (see ``Stage.drains``); they
                go on next time.
        """
        in_order(stages)
        describe = [
            {
                "name": stage.name,
                "title": stage.title,
                "needs": list(stage.needs),
                "kind": "" if stage.always else type(stage).__name__,  # as long as others of its kind
            }
            for stage in stages
        ]
        _say(emit, "run_started", stages=describe, jobs=jobs)
        try:
            with Workers(self.folder, lock, environment) as workers:
                run = _Run(self, stages, emit, workers if jobs > 1 else None, jobs)
                try:
                    facts = run.to_the_end()
                except BaseException:
                    run.drain()
                    raise
        except BaseException as error:
            _say(emit, "run_failed", error=_why(error))
            raise
        _say(emit, "run_finished")
        return facts


class _Run:
    """One pass over the stages of a run."""

    def __init__(self, runner: Runner, stages: Sequence[Stage], emit: Emit, workers: Workers | None, jobs: int) -> None:
        self.runner, self.stages, self.emit, self.workers, self.jobs = runner, stages, emit, workers, jobs
        self.facts: dict[str, Mapping[str, Plain]] = {}
        self.ready: dict[str, Decision] = {}
        self.running: dict[str, Decision] = {}

    def to_the_end(self) -> dict[str, Mapping[str, Plain]]:
        while len(self.facts) < len(self.stages):
            self._decide()
            if self.workers is None:
                if self.ready:
                    self._here(self._next())
                continue
            if any(not decision.stage.always for decision in self.ready.values()):
                self.workers.prepare(self.jobs, sorted({type(stage).__module__ for stage in self.stages}))
            while self.ready and len(self.running) < self.jobs and self._fits(self._peek()):
                decision = self._next()
                if decision.stage.always:
                    self._here(decision)
                    break  # others may be known now
                self._begin(decision)
                self.running[decision.stage.name] = decision
                up = _of(self.facts, decision.stage)
                self.workers.start(decision.stage, up, self._surroundings(decision))
            if self.running:
                for event in self.workers.wait():
                    self._hear(event)
        return self.facts

    def drain(self) -> None:
        """Let stages in worker processes end what they have in flight; an interrupt meanwhile abandons it."""
        draining = {name: decision.stage for name, decision in self.running.items() if decision.stage.drains}
        if self.workers is None or not draining:
            return
        for stage in draining.values():
            self._tell(stage, "note", text=f"{stage.title}: what is in flight ends; Ctrl-C abandons it")
        self.workers.interrupt(draining.keys())
        while draining:
            for event in self.workers.wait():
                if event["event"] == "stage_result":
                    self._finish(draining[event["stage"]], event["result"])
                if event["event"] in ("stage_result", "stage_error", "stage_stopped"):
                    del draining[event["stage"]]
                else:
                    self.emit(event)

    def _decide(self) -> None:
        """Decide every stage whose key is known by now, and keep what is kept."""
        known = True
        while known:
            known = False
            for stage in self.stages:
                name = stage.name
                if name in self.facts or name in self.ready or name in self.running:
                    continue
                if all(needed in self.facts for needed in stage.needs):
                    with self._failure(stage):
                        decision = self.runner._decide(stage, self.facts, self.stages)
                    self._settle(decision)
                    known = name in self.facts or known

    def _settle(self, decision: Decision) -> None:
        stage = decision.stage
        if decision.error is not None:
            raise decision.error
        if decision.action != "keep":
            self.ready[stage.name] = decision
            return
        assert decision.key is not None
        assert decision.result is not None
        if decision.adopt:
            self.runner.markers.adopt(stage, decision.key)
        self._clean(stage)
        self.facts[stage.name] = decision.result
        minor = stage.recomputable or not stage.outputs()
        self._tell(stage, "stage_kept", title=stage.title, reason=decision.reason, minor=minor)
        self._repeat(stage, {**decision.result, "notes": stage.notes_kept(decision.result)})
        for warning in decision.warnings:
            self._tell(stage, "warning", text=warning)

    def _peek(self) -> Decision:
        ready = [stage for stage in self.stages if stage.name in self.ready]
        if self.workers is not None:
            ready.sort(key=lambda stage: -stage.urgency)  # equal ones stay in their order
        return self.ready[ready[0].name]

    def _next(self) -> Decision:
        return self.ready.pop(self._peek().stage.name)

    def _fits(self, decision: Decision) -> bool:
        """Whether a stage may start beside those that run."""
        if not self.running:
            return True
        together = [decision, *self.running.values()]
        return not any(each.stage.is_undisturbed(_of(self.facts, each.stage)) for each in together)

    def _begin(self, decision: Decision) -> None:
        assert decision.key is not None
        self.runner.markers.begin(decision.stage, decision.key, unsure=decision.unsure)
        self._tell(decision.stage, "stage_started", title=decision.stage.title, reason=decision.reason)

    def _surroundings(self, decision: Decision) -> dict[str, Any]:
        marker = self.runner.markers.read(decision.stage.name)
        return {"previous": marker.last if marker is not None else None, "is_needed": decision.is_needed}

    def _here(self, decision: Decision) -> None:
        """Run a stage in this process."""
        self._begin(decision)
        stage = decision.stage
        context = Context(self.runner.folder, stage.name, self.emit, **self._surroundings(decision))
        with self._failure(stage):
            result = stage.run(_of(self.facts, stage), context)
        self._finish(stage, result)

    def _hear(self, event: Event) -> None:
        """What a worker says."""
        stage = self.running[event["stage"]].stage
        if event["event"] == "stage_result":
            del self.running[stage.name]
            self._finish(stage, event["result"])
        elif event["event"] == "stage_error":
            with self._failure(stage):
                raise event["error"]
        else:
            self.emit(event)

    @contextmanager
    def _failure(self, stage: Stage) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._tell(stage, "stage_failed", error=_why(error))
            raise

    def _finish(self, stage: Stage, result: dict[str, Plain]) -> None:
        result = plain(result)
        self.runner.markers.finish(stage, result)
        self._clean(stage)
        self.facts[stage.name] = result
        self._repeat(stage, result)
        self._tell(stage, "stage_finished", title=stage.title)

    def _repeat(self, stage: Stage, result: Mapping[str, Plain]) -> None:
        for kind, event in (("notes", "note"), ("warnings", "warning")):
            for text in result.get(kind) or ():
                self._tell(stage, event, text=text)

    def _clean(self, stage: Stage) -> None:
        for path in self.runner.markers.present(stage.scratch()):
            shutil.rmtree(path, ignore_errors=True)

    def _tell(self, stage: Stage, event: str, **more: Plain) -> None:
        _say(self.emit, event, stage=stage.name, **more)


def _say(emit: Emit, event: str, **more: Plain) -> None:
    emit({"event": event, "time": time.time(), **more})


def _why(error: BaseException) -> str:
    return STOPPED if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__


def _of(facts: Facts, stage: Stage) -> dict[str, Mapping[str, Plain]]:
    """What a stage may know."""
    return {name: facts.get(name, UNKNOWN) for name in stage.needs}


def in_order(stages: Sequence[Stage]) -> None:
    """Hold that every stage comes after those it needs.

    Raises:
        ValueError: it does not, or a name stands twice.
    """
    seen: set[str] = set()
    for stage in stages:
        if stage.name in seen:
            raise ValueError(f"two stages are called {stage.name}")
        for needed in stage.needs:
            if needed not in seen:
                raise ValueError(f"{stage.name} needs {needed}, which does not come before it")
        seen.add(stage.name)


def descendants(name: str, stages: Sequence[Stage]) -> list[Stage]:
    """Stages that need this one, themselves or through others."""
    found, names = [], {name}
    for stage in stages:  # in order, so that one pass is enough
        if names & set(stage.needs):
            found.append(stage)
            names.add(stage.name)
    return found


def _place(stage: Stage, where: str) -> str:
    """A part of a stage's key as the recipe calls it."""
    for ours, theirs in stage.recipe_keys().items():
        if where == ours or where.startswith(f"{ours}."):
            return theirs + where.removeprefix(ours)
    return where


LONGEST = 60


def _with(value: str) -> str:
    return "without it" if value == "null" else f"with {_brief(value)}"


def _brief(value: str) -> str:
    """A value (JSON) in a line: of a long section its keys, of a long list how many, of a long text both ends."""
    found = json.loads(value)
    if found is None:
        return "not set"
    if len(value) <= LONGEST:
        return value
    if isinstance(found, dict):
        named = [name for name, each in found.items() if each is not None]
        more = f" and {len(named) - 4} more" if len(named) > 4 else ""
        return f"a section with {', '.join(named[:4])}{more}"
    if isinstance(found, list):
        return f"a list of {len(found)}"
    return f'"{str(found)[:25]}...{str(found)[-25:]}"'
