"""Stages without machine learning: decided, run here and in workers, killed, resumed, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import InputError, MachineError, RunFolderError
from limbeck.workflow.events import EventLog, read_events
from limbeck.workflow.lock import RunLock, owner_of, run_path
from limbeck.workflow.markers import Markers, first_difference
from limbeck.workflow.processes.workers import WorkerError
from limbeck.workflow.runner import Runner, in_order
from limbeck.workflow.stage import Context, Event, Facts, Plain, Stage
from limbeck.workflow.status import status_of


@dataclass(frozen=True, kw_only=True)
class Count(Stage):
    """Writes numbers into a file, one at a time, and goes on from what is there."""

    name_: str
    upto: int = 3
    needs: tuple[str, ...] = ()
    version: int = 1
    recomputable: bool = False
    undisturbed: bool = False
    fails: str = ""
    seconds: float = 0.0
    keys: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.name_

    def key(self, up: Facts) -> dict[str, Plain]:
        return {"upto": self.upto, **{name: up[name]["sum"] for name in self.needs}}

    def recipe_keys(self) -> Mapping[str, str]:
        return self.keys

    def outputs(self) -> Sequence[str]:
        return (f"{self.name}.txt",)

    def partial(self) -> Sequence[str]:
        return (f"{self.name}.part",)

    def is_undisturbed(self, up: Facts) -> bool:
        return self.undisturbed

    def run(self, up: Facts, context: Context) -> dict[str, Plain]:
        part = context.folder / f"{self.name}.part"
        done = part.read_text().split() if part.exists() else []
        with context.task(f"count {self.name}", self.upto, "numbers") as task:
            task.update(len(done))
            for number in range(len(done), self.upto):
                if self.fails == "input":
                    raise InputError("the numbers ran out", key="numbers", fix="Bring more")
                if self.fails == "bug":
                    raise ZeroDivisionError("a bug")
                if self.fails == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                with part.open("a") as file:
                    file.write(f"{number}\n")
                task.update(number + 1)
                time.sleep(self.seconds)
        part.rename(context.folder / f"{self.name}.txt")
        total = sum(range(self.upto)) + sum(up[name]["sum"] for name in self.needs)
        return {"sum": total, "notes": [f"{self.name} adds up to {total}"], "resumed": len(done), "pid": os.getpid()}


def chain(**changes: Any) -> list[Stage]:
    """a → b, a → c, (b, c) → d."""
    shapes = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")}
    return [Count(name_=name, needs=needs, **changes.get(name, {})) for name, needs in shapes.items()]


def go(folder: Path, stages: Sequence[Stage], jobs: int = 1, **more: Any) -> tuple[dict[str, Any], list[Event]]:
    events: list[Event] = []
    with RunLock(folder) as lock:
        log = EventLog(folder)

        def emit(event: Event) -> None:
            log(event)
            events.append(event)

        try:
            return dict(Runner(folder, **more).run(stages, lock, emit, jobs=jobs)), events
        finally:
            log.close()


def actions(folder: Path, stages: Sequence[Stage], **more: Any) -> dict[str, str]:
    return {each.stage.name: each.action for each in Runner(folder, **more).decide(stages)}


def kinds(events: Sequence[Event], name: str) -> list[str]:
    return [event["event"] for event in events if event.get("stage") == name]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


# ------------------------------------------------------------------------------------- deciding


def test_a_query_never_writes(folder: Path, tmp_path: Path) -> None:
    assert actions(folder, chain()) == {"a": "run", "b": "wait", "c": "wait", "d": "wait"}
    assert not folder.exists()
    go(folder, chain())
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert set(actions(folder, chain()).values()) == {"keep"}
    assert actions(folder, chain(b={"upto": 9}))["b"] == "refuse"
    assert status_of(folder).finished
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_the_status_of_a_kept_stage_shows_the_time_that_it_took(folder: Path) -> None:
    go(folder, chain(a={"seconds": 0.05}))
    took = {stage.name: stage.seconds for stage in status_of(folder).stages}
    assert (took["a"] or 0) >= 0.15
    go(folder, chain(a={"seconds": 0.05}))
    assert {stage.name: stage.seconds for stage in status_of(folder).stages} == took


def test_what_is_done_is_kept_and_what_is_torn_is_made_again(folder: Path) -> None:
    facts, events = go(folder, chain())
    assert facts["d"]["sum"] == 3 + 2 * (3 + 3)
    assert kinds(events, "a") == [
        "stage_started", "task_started", "progress", "task_finished", "note", "stage_finished"
    ]  # fmt: skip
    again, events = go(folder, chain())
    assert again == facts
    assert kinds(events, "d") == ["stage_kept", "note"]
    (folder / "b.txt").write_text("torn")
    healed, events = go(folder, chain())
    assert healed["b"]["sum"] == facts["b"]["sum"]
    assert kinds(events, "b")[0] == "stage_started"
    assert kinds(events, "d") == ["stage_kept", "note"]  # made from the same
    (folder / "stages" / "c.json").write_text("{")
    assert actions(folder, chain())["c"] == "run"


def test_another_key_is_refused_where_something_would_be_lost(folder: Path) -> None:
    go(folder, chain())
    with pytest.raises(RunFolderError, match=r"was run with 3, now it is 5.*change it back") as error:
        go(folder, chain(a={"upto": 5, "keys": {"upto": "data.upto"}}))
    assert error.value.key == "data.upto"
    with pytest.raises(RunFolderError, match=r"delete .*d\.txt to make that part anew"):
        go(folder, chain(d={"upto": 5}))
    (folder / "d.txt").unlink()
    assert go(folder, chain(d={"upto": 5}))[0]["d"]["sum"] == 22
    # What can be made anew at no loss just is.
    go(folder, [*chain(d={"upto": 5}), Count(name_="m", recomputable=True)])
    assert go(folder, [*chain(d={"upto": 5}), Count(name_="m", recomputable=True, upto=4)])[0]["m"]["sum"] == 6


def test_what_waits_is_refused_where_what_is_known_of_it_differs(folder: Path) -> None:
    """A stage that runs first would be run in vain."""
    go(folder, chain())
    new = Count(name_="n")
    grown = [*chain()[:3], new, Count(name_="d", needs=("b", "c", "n"), upto=5)]
    assert actions(folder, grown) == {"a": "keep", "b": "keep", "c": "keep", "n": "run", "d": "refuse"}
    with pytest.raises(RunFolderError, match=r"upto: .* was run with 3, now it is 5"):
        Runner(folder).refuse(grown)
    with pytest.raises(RunFolderError):
        go(folder, grown)
    # What is not known yet may be as it was.
    (folder / "a.txt").unlink()
    assert actions(folder, chain()) == {"a": "run", "b": "wait", "c": "wait", "d": "wait"}
    assert actions(folder, chain(d={"upto": 4}))["d"] == "refuse"


def test_a_stage_may_say_itself_why_it_is_refused(folder: Path) -> None:
    class Team(Count):
        def why_refused(self, was: Mapping[str, Plain], now: Mapping[str, Plain]) -> tuple[str, str] | None:
            return "team.size", "nobody joins later"

    go(folder, [Count(name_="a")])
    with pytest.raises(RunFolderError, match=r"^team\.size: nobody joins later\. Use another run folder: `run=OTHER`$"):
        go(folder, [Team(name_="a", upto=4)])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("text", '"text"'),
        (None, "not set"),
        ("/a/long/path" * 9, '"/a/long/path/a/long/path/...h/a/long/path/a/long/path"'),
        (list(range(99)), "a list of 99"),
        ({f"name_{i}": "a value" for i in range(9)}, "a section with name_0, name_1, name_2, name_3 and 5 more"),
    ],
)
def test_values_in_refusals_are_short(folder: Path, value: Plain, said: str) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Valued(Count):
        value: Plain = "before"

        def key(self, up: Facts) -> dict[str, Plain]:
            return {"value": self.value}

    go(folder, [Valued(name_="a")])
    with pytest.raises(RunFolderError) as caught:
        go(folder, [Valued(name_="a", value=value)])
    assert caught.value.what.endswith(f'was run with "before", now it is {said}')


def test_what_goes_on_says_from_where_and_what_is_lost_is_said(folder: Path) -> None:
    class Shared(Count):
        def share_done(self, folder: Path) -> float:
            return len((folder / "a.part").read_text().split()) / self.upto

    with pytest.raises(InputError):
        go(folder, [Shared(name_="a", upto=4, fails="input")])
    (decision,) = Runner(folder).decide([Shared(name_="a", upto=5)])
    assert (decision.action, decision.reason) == ("run", "upto has changed: what was begun of it is not used")
    (folder / "a.part").write_text("0\n")
    (decision,) = Runner(folder).decide([Shared(name_="a", upto=4)])
    assert (decision.action, decision.reason) == ("run", "goes on at 25%")


def test_what_was_interrupted_has_not_failed(folder: Path) -> None:
    class Interrupted(Count):
        def run(self, up: Facts, context: Context) -> dict[str, Plain]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(folder, [Count(name_="a"), Interrupted(name_="b")])
    status = status_of(folder)
    assert [stage.state for stage in status.stages] == ["done", "stopped"]
    assert status.error == "interrupted"


def test_begun_work_is_not_mixed(folder: Path) -> None:
    folder.mkdir()
    (folder / "stages").mkdir()
    with pytest.raises(InputError):
        go(folder, [Count(name_="a", upto=4, fails="input")])
    assert actions(folder, [Count(name_="a", upto=6)]) == {"a": "run"}  # nothing is there yet
    (folder / "a.part").write_text("0\n1\n")
    with pytest.raises(RunFolderError, match=r"was run with 4, now it is 6"):
        go(folder, [Count(name_="a", upto=6)])
    facts, _ = go(folder, [Count(name_="a", upto=4)])
    assert facts["a"]["resumed"] == 2
    assert (folder / "a.txt").read_text().split() == ["0", "1", "2", "3"]


def test_a_lost_marker_leads_no_one_into_a_corner(folder: Path) -> None:
    go(folder, chain())
    (folder / "stages" / "a.json").unlink()
    with pytest.raises(RunFolderError) as error:  # what was made from it says that it does not fit
        go(folder, chain(a={"upto": 7}))
    assert "b" in str(error.value) or "now it is" in str(error.value)
    facts, _ = go(folder, chain())  # the one that it was heals what the other has put there
    assert facts["a"]["sum"] == 3
    assert set(actions(folder, chain()).values()) == {"keep"}


def test_another_version_is_not_reused_silently(folder: Path) -> None:
    go(folder, chain())
    newer = chain(b={"version": 2})
    with pytest.raises(RunFolderError, match=r"b was made by version 1 of its stage, which is 2 now.*--keep-stale"):
        go(folder, newer)
    decided = {each.stage.name: each.reason for each in Runner(folder, keep_stale=True).decide(newer)}
    assert "version 1" in decided["b"]
    go(folder, newer, keep_stale=True)
    assert set(actions(folder, newer).values()) == {"keep"}  # adopted
    measured = [*newer, Count(name_="m", recomputable=True)]
    go(folder, measured)
    assert actions(folder, [*newer, Count(name_="m", recomputable=True, version=2)])["m"] == "run"


def test_what_would_have_come_out_the_same_is_adopted(folder: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Moved(Count):
        place: str = "here"

        def key(self, up: Facts) -> dict[str, Plain]:
            return {**super().key(up), "place": self.place}

        def is_equivalent(
            self, was: Mapping[str, Plain], now: Mapping[str, Plain], result: Mapping[str, Plain]
        ) -> bool:
            return was["upto"] == now["upto"] and result["sum"] == 3

    go(folder, [Moved(name_="a")])
    assert actions(folder, [Moved(name_="a", place="there")]) == {"a": "keep"}
    go(folder, [Moved(name_="a", place="there")])
    marker = Markers(folder).read("a")
    assert marker is not None
    assert marker.key["place"] == "there"
    assert actions(folder, [Moved(name_="a", place="there", upto=4)]) == {"a": "refuse"}


def test_graphs_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="needs b, which does not come before"):
        in_order([Count(name_="a", needs=("b",)), Count(name_="b")])
    with pytest.raises(ValueError, match="two stages are called a"):
        in_order([Count(name_="a"), Count(name_="a")])


def test_the_first_difference() -> None:
    was, now = {"a": {"x": 1, "y": [1, 2]}, "b": 1}, {"a": {"x": 1, "y": [1, 3]}, "c": 1}
    assert first_difference(was, now) == ("a.y.1", "2", "3")
    assert first_difference({"a": 1}, {"a": 1, "b": 2}) == ("b", "null", "2")


# -------------------------------------------------------------------------------------- workers


def test_workers_make_the_same(folder: Path, tmp_path: Path) -> None:
    alone, _ = go(tmp_path / "alone", chain())
    facts, events = go(folder, chain(b={"seconds": 0.2}, c={"seconds": 0.2}), jobs=2)
    assert {name: each["sum"] for name, each in facts.items()} == {name: each["sum"] for name, each in alone.items()}
    assert facts["b"]["pid"] != facts["c"]["pid"]
    assert os.getpid() not in {each["pid"] for each in facts.values()}
    order = [event["stage"] for event in events if event["event"] in ("stage_started", "stage_finished")]
    assert sorted(order[2:4]) == ["b", "c"]  # both begin before one ends
    assert [event["text"] for event in events if event["event"] == "note" and event["stage"] == "d"]


def test_what_must_not_be_disturbed_runs_alone(folder: Path) -> None:
    stages = [
        Count(name_="a", seconds=0.1), Count(name_="b", seconds=0.1, undisturbed=True), Count(name_="c", seconds=0.1)
    ]  # fmt: skip
    _, events = go(folder, stages, jobs=3)
    order = [(event["event"], event["stage"]) for event in events if event["event"].startswith("stage_")]
    start, end = order.index(("stage_started", "b")), order.index(("stage_finished", "b"))
    assert end == start + 1


@pytest.mark.parametrize(
    ("fails", "kind", "said"),
    [
        ("input", InputError, "numbers: the numbers ran out. Bring more"),
        ("bug", WorkerError, "ZeroDivisionError"),
        ("killed", MachineError, r"the process that worked on b was killed \(SIGKILL\)"),
    ],
)
def test_what_a_worker_fails_with(folder: Path, fails: str, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        go(folder, chain(b={"fails": fails}), jobs=2)
    found = {stage.name: stage.state for stage in status_of(folder).stages}
    assert found["a"] == "done"
    assert found["b"] == "failed"
    facts, _ = go(folder, chain(), jobs=2)
    assert facts["d"]["sum"] == 15


SCRIPT = """
import sys
from pathlib import Path
from tests.unit.test_workflow import chain, go
go(Path(sys.argv[1]), chain(b={"upto": 400, "seconds": 0.01}, c={"upto": 400, "seconds": 0.01}), jobs=int(sys.argv[2]))
"""


def start(folder: Path, jobs: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder), str(jobs)])


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(process: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def runs(process: int) -> bool:
    """A zombie, which nobody has waited for, does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
@pytest.mark.parametrize("jobs", [1, 2])
def test_the_parent_is_killed(folder: Path, jobs: int) -> None:
    """Its workers end with it; the next run waits for them, and goes on from what they left."""
    process = start(folder, jobs)
    try:
        wait_until(lambda: (folder / "b.part").exists() and (folder / "b.part").stat().st_size > 20)
        workers = children(process.pid)
        assert len(workers) == (2 if jobs == 2 else 0)
        status = status_of(folder)
        assert status.process == process.pid
        assert {stage.name: stage.state for stage in status.stages}["b"] == "running"
    finally:
        process.kill()
        process.wait()
    changes = {"upto": 400}
    facts, _ = go(folder, chain(b=changes, c=changes), jobs=jobs)
    assert facts["b"]["resumed"] > 2
    assert (folder / "b.txt").read_text().split() == [str(n) for n in range(400)]  # nobody wrote beside it
    assert not any(runs(worker) for worker in workers)
    assert owner_of(folder) is None


# --------------------------------------------------------------------------------- lock and events


def test_one_owner(folder: Path) -> None:
    with RunLock(folder):
        assert owner_of(folder) == os.getpid()
        with pytest.raises(RunFolderError, match=f"in use by another limbeck \\(process {os.getpid()}\\)"):
            RunLock(folder)
    assert owner_of(folder) is None
    assert owner_of(folder / "nowhere") is None


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for where, said in (
        (tmp_path, "other things"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "x", "is a file"),
    ):
        with pytest.raises(RunFolderError, match=said):
            run_path(str(where))
    with pytest.raises(RunFolderError, match="there is no run"):
        status_of(tmp_path)


def test_torn_events_cost_their_line(folder: Path) -> None:
    go(folder, chain())
    whole = list(read_events(folder))
    with (folder / "events.jsonl").open("a") as file:
        file.write('{"event": "progre')
    go(folder, chain())
    events = list(read_events(folder))
    assert events[: len(whole)] == whole
    assert events[len(whole)]["event"] == "run_started"
    assert all(json.loads(json.dumps(event)) == event for event in events)


def test_the_speed_is_of_this_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that goes on at 1,000 of 1,200 tokens and does 100 in ten seconds does ten a second."""
    now, events = 0.0, list[Event]()
    monkeypatch.setattr("limbeck.workflow.stage.time.monotonic", lambda: now)
    with Context(folder, "s", events.append).task("train", 1200, "tokens") as task:
        now = 5.0
        task.update(1000, "loss 2.000")
        assert events[-1]["note"] == "loss 2.000"
        assert events[-1]["resumed"] == 1000
        now = 15.0
        task.update(1100, "loss 1.000")
        assert events[-1]["note"] == "10 tokens/s loss 1.000"
        assert "resumed" not in events[-1]
    assert events[-1] == {**events[-1], "event": "task_finished", "seconds": 15.0, "note": "10 tokens/s loss 1.000"}


def test_the_speed_of_a_single_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, events = 0.0, list[Event]()
    monkeypatch.setattr("limbeck.workflow.stage.time.monotonic", lambda: now)
    with Context(folder, "s", events.append).task("measure", 40, "rows") as task:
        now = 2.0
        task.update(40)
    assert events[-1]["note"] == "20 rows/s"
