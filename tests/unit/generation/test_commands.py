from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from limbeck.commands.generate import as_json, export, export_answers, journals_of, retry, show_status, status_of
from limbeck.errors import InputError, RunFolderError
from limbeck.generation.journal.journal import Journal
from limbeck.generation.prompts import Prompt
from limbeck.generation.request import Completion, Outcome, Request, Usage
from limbeck.recipe.served import Endpoint

ENDPOINT = Endpoint(api="http://127.0.0.1:1/v1", model="big-model")
OTHER = {"api": "http://127.0.0.1:2/v1", "model": "other-model", "protocol": "chat"}


def ask(question: str, sample: int = 0) -> Request:
    return Request(messages=({"role": "user", "content": question},), sample=sample)


async def fill(journal: Journal) -> None:
    identity = ENDPOINT.identity
    requests = [ask(f"{n}+{n}?") for n in range(6)]
    journal.add(requests, identity)
    keys = [request.key(identity) for request in requests]
    for n, who in ((0, identity), (1, identity), (2, OTHER)):
        attempt = await journal.sent(keys[n], who, b"{}", 1_000_000, 100)
        said = Completion(Outcome.COMPLETE, f"{2 * n} \ud800", usage=Usage(10, 5))
        await journal.answered(attempt, b"{}", said, 500_000_000)
    attempt = await journal.sent(keys[3], identity, b"{}", 1_000_000, 100)
    await journal.failed(attempt, "server", "a \x1b[31mred\x1b[0m [bold]error[/]", final=True, maybe_served=False)
    attempt = await journal.sent(keys[4], identity, b"{}", 1_000_000, 100)
    await journal.failed(attempt, "timeout", "no answer", final=False, maybe_served=True)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "runs/mine"
    (run / "stages").mkdir(parents=True)
    journal = tmp_path / "runs/journals/big-model-0123abcd.sqlite"
    with Journal(journal) as opened:
        asyncio.run(fill(opened))
    marker = {"key": {"teacher": "0123abcd89ef"}, "result": {"journal": str(journal)}}
    (run / "stages/sample-1.json").write_text(json.dumps(marker))
    return run


def chosen(run: Path, name: str = "select-1") -> None:
    result = {
        "answers": 3, "outcomes": {"complete": 3}, "verdicts": {"correct": 2, "wrong": 1}, "taken": {"refusals": 1},
        "unsolved": 1, "learned": 2, "fingerprint": "x",
    }  # fmt: skip
    (run / f"stages/{name}.json").write_text(json.dumps({"key": {}, "result": result}))
    folder = run / "text" / name / "dataset"
    folder.mkdir(parents=True)
    (folder / "data.jsonl").write_text("{}\n")


def test_status_says_what_was_answered_by_whom_and_what_it_cost(run: Path) -> None:
    chosen(run)
    found = status_of(run)
    (journal,), (text,) = found.journals, found.texts
    assert journal.counts.answered == {"complete": 3}
    assert journal.wrote == {"big-model": 2, "other-model": 1}
    assert journal.spent.nano_usd == 1_501_000_000
    assert (text.learned, text.pass_rate) == (2, pytest.approx(2 / 3))
    console = Console(width=200, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as captured:
        show_status(found, console)
    said = captured.get()
    for part in (
        "3 of 6 requests",
        "2 big-model, 1 other-model",
        "$1.50",
        "66.7% correct",
        "1 refusals",
        "[bold]error",
    ):
        assert part in said, part
    assert "\x1b" not in said
    plain = json.loads(as_json(found))
    assert plain["journals"][0]["counts"]["failed"] == {"server": 1}
    assert plain["texts"][0]["pass_rate"] == pytest.approx(2 / 3)


def test_status_counts_what_is_of_this_run_first(run: Path) -> None:
    keys = [ask(f"{n}+{n}?").key(ENDPOINT.identity) for n in (0, 1, 5)]
    folder = run / "text/sample-1"
    folder.mkdir(parents=True)
    prompt = Prompt(ask("0+0?").messages, None, (), "0", "d").plain()
    (folder / "requests.jsonl").write_text(json.dumps({"prompt": prompt, "group": "g", "keys": keys}) + "\n")
    (journal,) = status_of(run).journals
    assert (journal.got, journal.asked, journal.counts.total) == (2, 3, 6)
    assert not journal.is_written
    export_answers(run, run.parent / "answers")
    rows = map(json.loads, (run.parent / "answers/answers.jsonl").read_text(encoding="utf-8").splitlines())
    assert [row.get("reference") for row in rows] == ["0", "0", None]


def test_what_a_dead_process_sent_is_unknown_and_paths_stay_whole(run: Path) -> None:
    chosen(run)
    found = status_of(run)
    journal = replace(found.journals[0], counts=replace(found.journals[0].counts, sent=10))
    console = Console(width=40, quiet=False, force_terminal=False)
    with console.capture() as captured:
        show_status(replace(found, journals=[journal]), console)
    said = captured.get()
    assert "in flight" not in said
    assert "unknown:" in said
    assert found.texts[0].data_set in said
    (path,) = journals_of(run)
    with Journal(path):
        assert status_of(run).journals[0].is_written


def test_status_writes_nothing(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.parent.rglob("*") if path.is_file()}
    status_of(run)
    assert {path: path.stat().st_mtime_ns for path in run.parent.rglob("*") if path.is_file()} == before


def test_a_stage_that_is_still_asking_has_its_journal_by_the_teacher(run: Path) -> None:
    (run / "stages/sample-1.json").write_text(json.dumps({"key": {"teacher": "0123abcd89ef"}}))
    assert [path.name for path in journals_of(run)] == ["big-model-0123abcd.sqlite"]
    (run / "stages/sample-1.json").write_text(json.dumps({"key": {"teacher": "ffff"}}))
    with pytest.raises(RunFolderError, match="no journal"):
        journals_of(run)


def test_a_journal_can_be_named_itself(run: Path) -> None:
    (path,) = journals_of(run)
    assert status_of(path).journals[0].counts.total == 6
    assert status_of(path).texts == []


def test_export_copies_the_data_set(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="chosen no answers"):
        export(run, tmp_path / "out", None)
    chosen(run)
    assert "2 answers" in export(run, tmp_path / "out", None)
    assert (tmp_path / "out/data.jsonl").read_text() == "{}\n"
    with pytest.raises(InputError, match="exists"):
        export(run, tmp_path / "out", None)
    chosen(run, "select-2")
    with pytest.raises(InputError, match="2 texts"):
        export(run, tmp_path / "new", None)
    with pytest.raises(InputError, match="no text select-3"):
        export(run, tmp_path / "new", "select-3")
    assert export(run, tmp_path / "new", "select-2")


def test_all_answers_can_be_taken_out(run: Path, tmp_path: Path) -> None:
    assert "3 answers" in export_answers(run, tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out/answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["messages"][-1]["content"] for row in rows] == ["0 \ufffd", "2 \ufffd", "4 \ufffd"]
    assert [row["teacher"] for row in rows] == ["big-model", "big-model", "other-model"]


def test_retry_makes_failed_requests_requests_to_do(run: Path) -> None:
    with pytest.raises(InputError, match="no request failed with timeout"):
        retry(run, ["timeout"])
    assert "1 request is to do again; `limbeck run` asks" in retry(run, ["server"])
    assert status_of(run).journals[0].counts.failed == {}
    assert retry(run, []) == "no request has failed"


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(RunFolderError, match="no run"):
            status_of(path)


def test_the_commands_are_there(run: Path) -> None:
    def limbeck(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "limbeck", "generate", *words], capture_output=True, text=True)

    done = limbeck("status", str(run), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["journals"][0]["wrote"] == {"big-model": 2, "other-model": 1}
    refused = limbeck("export", str(run), str(run / "out"))
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
