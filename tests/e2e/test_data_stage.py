"""The data stage of a run: killed, stopped at what the budget needs, out of disk."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck import cli
from limbeck.data.corpus import _Writer, open_corpus
from limbeck.data.documents.spool import Spool
from limbeck.pipeline import build

DYING = """
import os, signal, sys
from limbeck import cli
from limbeck.data.corpus import _Writer
from limbeck.data.documents.spool import Spool
whole, add, left = Spool.block_end, _Writer.add, int(sys.argv.pop(1))
Spool.block_end = lambda self, start, stop: whole(self, start, stop, 1_500)
def dying(self, *args):
    global left
    add(self, *args)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
_Writer.add = dying
cli.main()
"""


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Spool.block_end
    monkeypatch.setattr(Spool, "block_end", lambda self, start, stop, size=0: whole(self, start, stop, 1_500))


def recipe(raw: dict[str, Any], tmp: Path, **training: Any) -> str:
    raw["techniques"] = ["alone"]
    raw["training"].update(training)
    (tmp / "r.yaml").write_text(yaml.safe_dump(raw))
    return str(tmp / "r.yaml")


def run(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr("sys.argv", ["limbeck", "run", *args, "--quiet"])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def facts(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "stages/data.json").read_text())["result"]
    return found


def data_files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted((folder / "data").rglob("*")) if p.is_file()}


def test_kill_9_while_tokenising_changes_no_byte(tmp_path: Path, raw_recipe: dict[str, Any]) -> None:
    """Killed in a first block, in a later one, and among the held-out documents."""
    path = recipe(raw_recipe, tmp_path, tokens=300)

    def limbeck(kill_at: int, folder: str) -> int:
        command = [sys.executable, "-c", DYING, str(kill_at), "run", path, "--quiet", f"run={tmp_path / folder}"]
        return subprocess.run(command, capture_output=True, check=False).returncode

    assert limbeck(-1, "quiet") == 0
    whole = sum(facts(tmp_path / "quiet")[part]["documents"] for part in ("train", "heldout"))
    for kill_at in (5, 30, 33):
        assert limbeck(kill_at, "killed") == -signal.SIGKILL
    assert (tmp_path / "killed/.data.begun/spool/done.json").exists()
    marks = (tmp_path / "killed/.data.begun/train/marks.jsonl").read_text().splitlines()
    assert 0 < json.loads(marks[-1])["documents"] < whole
    assert limbeck(-1, "killed") == 0
    assert data_files(tmp_path / "killed") == data_files(tmp_path / "quiet")
    assert facts(tmp_path / "killed") == facts(tmp_path / "quiet")
    assert not (tmp_path / "killed/.data.begun").exists()


def test_a_small_budget_tokenises_a_part_and_a_larger_one_is_refused(
    tmp_path: Path,
    raw_recipe: dict[str, Any],
    small_blocks: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(build, "TRAIN_FLOOR", 100)
    path, folder = recipe(raw_recipe, tmp_path, tokens=300), Path(raw_recipe["run"])
    assert run(monkeypatch, path) == 0
    train = facts(folder)["train"]
    assert train["labels"] >= 300
    assert train["documents"] < train["of"]
    assert len(open_corpus(folder / "data/train")) == train["documents"]
    before = data_files(folder)
    assert run(monkeypatch, path) == 0
    capsys.readouterr()
    assert run(monkeypatch, path, "training.tokens=900") == 2
    said = capsys.readouterr().err
    assert "training.tokens" in said
    assert "900" in said
    assert len(said.strip().splitlines()) == 1
    assert data_files(folder) == before
    assert run(monkeypatch, path, "training.tokens=900", f"run={tmp_path / 'more'}") == 0
    assert facts(tmp_path / "more")["train"]["labels"] >= 900
    assert facts(tmp_path / "more")["fingerprint"] == facts(folder)["fingerprint"]  # of all documents


def test_a_small_corpus_is_whole_whatever_the_budget(
    tmp_path: Path, raw_recipe: dict[str, Any], small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, recipe(raw_recipe, tmp_path, tokens=300)) == 0
    for part in ("train", "heldout"):
        found = facts(Path(raw_recipe["run"]))[part]
        assert found["documents"] == found["of"]


def test_a_disk_that_is_full_while_tokenising_is_one_line_and_loses_no_block(
    tmp_path: Path,
    raw_recipe: dict[str, Any],
    small_blocks: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mark, marks = _Writer.mark, []

    def full(self: Any) -> None:
        marks.append(self.documents)
        if len(marks) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        mark(self)

    path = recipe(raw_recipe, tmp_path, tokens=300)
    monkeypatch.setattr(_Writer, "mark", full)
    assert run(monkeypatch, path) == 4
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert len(said.strip().splitlines()) == 1
    assert run(monkeypatch, path) == 0
    assert marks[3] == marks[2]  # the block that did not fit; the two before it are kept


def test_answers_that_rows_take_from_their_questions_are_said_on_every_start(
    tmp_path: Path, raw_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The length of rows is no part of the data stage: a corpus that is kept may be cut otherwise."""
    pairs = [{"prompt": f"what is cat number {n} " * 9, "completion": " a dog"} for n in range(30)]
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps(pair) for pair in [*pairs, *pairs[:7]]))
    folder = Path(raw_recipe["run"])
    raw_recipe["data"]["corpus"] = [{"files": str(tmp_path / "d.jsonl")}]
    path = recipe(raw_recipe, tmp_path, tokens=300)

    def said() -> list[str]:
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        return [str(event["text"]) for event in events if event["event"] in ("warning", "note")]

    assert run(monkeypatch, path) == 0
    assert "data.corpus: 7 duplicates were left out (30 documents remain)" in said()
    assert sum("are learned without all of their question" in text for text in said()) == 1
    (folder / "events.jsonl").write_text("")
    assert run(monkeypatch, path) == 0
    assert sum("are learned without all of their question" in text for text in said()) == 1
