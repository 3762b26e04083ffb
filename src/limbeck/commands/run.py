"""``limbeck run``: do what a recipe says, or go on with it, and write the report."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Mapping
from pathlib import Path

from limbeck.commands.checking.look import look
from limbeck.display import Display
from limbeck.files import write_whole
from limbeck.pipeline.build import build
from limbeck.pipeline.results.report import FILE, Report
from limbeck.pipeline.sections import resolved
from limbeck.pipeline.shared.base import MACHINE
from limbeck.recipe import Recipe
from limbeck.report.model import ReportData
from limbeck.report.text import table
from limbeck.report.verdict import verdict
from limbeck.runtime.provenance import command, machine, versions
from limbeck.runtime.threads import usable_cores
from limbeck.runtime.world import device_count
from limbeck.workflow.events import EventLog
from limbeck.workflow.lock import RunLock, run_path
from limbeck.workflow.runner import Decision, Runner
from limbeck.workflow.stage import Event, Facts


def run(
    recipe: Recipe, display: Display | None = None, *, jobs: int | None = None, keep_stale: bool = False
) -> ReportData:
    """Do what a recipe says, or go on with it, and write the report.

    Args:
        recipe: from :func:`limbeck.load_recipe`.
        display: where progress is shown; default: the terminal.
        jobs: stages that run at a time, each in a process of its own; default: the recipe's ``jobs``, else as many
            as there are GPUs, or as threads of the chosen number fit the cores. Results do not depend on it.
        keep_stale: keep what an older version of limbeck made, although it would come out otherwise today.

    Returns:
        What the report shows. The run folder holds ``report.html`` and, below ``arms/``, the students
        as plain ``save_pretrained`` folders.

    Raises:
        LimbeckError: what the user can mend: the recipe, the input, the run folder.
    """
    display = display or Display()
    folder = run_path(recipe.run)
    with RunLock(folder) as lock:
        for warning in look(recipe).warnings:
            display.warn(warning)
        stages, runner = build(recipe), Runner(folder, keep_stale=keep_stale)
        first, *_ = runner.refuse(stages)  # before anything is written, so that a finished run stays one
        log = EventLog(folder)

        def emit(event: Event) -> None:
            log(event)
            display(event)

        try:
            # Threads decide how many stages fit beside each other, so that stage comes first.
            decided: Facts = {MACHINE: first.result or {}}
            if first.action != "keep":
                decided = runner.run(stages[:1], lock, emit)
                runner.refuse(stages)
            _write_provenance(recipe, folder)
            if jobs is None:
                jobs = recipe.jobs if isinstance(recipe.jobs, int) else default_jobs(decided)
            facts = runner.run(stages, lock, emit, jobs=jobs, environment=_environment)
        finally:
            display.close()
            log.close()
        report = stages[-1]
        assert isinstance(report, Report)
        return report.data(facts, folder)


def default_jobs(facts: Facts) -> int:
    """As many stages as there are GPUs; without one, as many as fit the cores."""
    return device_count() or max(usable_cores() // int(facts[MACHINE]["threads"]), 1)


def _environment(number: int) -> Mapping[str, str]:
    """A GPU for each worker, in turn."""
    devices = device_count()
    return {"CUDA_VISIBLE_DEVICES": str(number % devices)} if devices > 1 else {}


def decisions(recipe: Recipe, *, keep_stale: bool = False) -> list[Decision]:
    """What :func:`run` would keep, run and refuse, and why. Nothing is written."""
    look(recipe)
    return Runner(run_path(recipe.run), keep_stale=keep_stale).decide(build(recipe))


def show_result(report: ReportData, recipe: Recipe, display: Display) -> None:
    """The table, what it says in words, and where the report is."""
    print("\n" + table(report.rows, min(display.console.width, 100)) + "\n")
    print(_wrapped(report.verdict or verdict(report.rows)))
    for warning in report.warnings:
        print(_wrapped(f"Note: {warning}"))
    if len(recipe.seeds) == 1:
        print(_wrapped("Note: one seed; the intervals do not cover the luck of a training."))
    print(f"\nReport: {Path(recipe.run) / FILE}")


def _wrapped(text: str) -> str:
    return textwrap.fill(text, min(shutil.get_terminal_size().columns, 100))


def _write_provenance(recipe: Recipe, folder: Path) -> None:
    """The resolved recipe, and a line for every process that worked on the run."""
    write_whole(folder / "recipe.yaml", resolved(recipe, full=True))
    path = folder / "run.json"
    try:
        history = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        history = []
    now = {"command": command(), "versions": versions(), "machine": machine(), "seeds": list(recipe.seeds)}
    if not history or history[-1] != now:
        history.append(now)
    write_whole(path, json.dumps(history, indent=1))
