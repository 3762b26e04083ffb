"""The seam: a stage of one's own beside those of a recipe; status and dry runs; side by side; loads counted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck import cli
from limbeck.errors import RunFolderError
from limbeck.pipeline.build import build
from limbeck.pipeline.shared.base import DATA, MACHINE, TEACHER, PipelineStage, lease_teacher, open_text
from limbeck.pipeline.stages.teacher import teacher_spec
from limbeck.recipe import parse_recipe
from limbeck.workflow.events import EventLog
from limbeck.workflow.lock import RunLock
from limbeck.workflow.runner import Runner
from limbeck.workflow.stage import Context, Facts, Plain
from tests.e2e.test_run import kill_at, limbeck, students, write


@dataclass(frozen=True, kw_only=True)
class Words(PipelineStage):
    """How often the teacher finds each word most probable: slow, and goes on where it stopped."""

    rounds: int = 3
    pause: float = 0.0
    needs = (MACHINE, DATA, TEACHER)

    @property
    def name(self) -> str:
        return "words"

    def key(self, up: Facts) -> dict[str, Plain]:
        return {"teacher": up[TEACHER]["fingerprint"], "rounds": self.rounds}

    def outputs(self) -> Sequence[str]:
        return ("words.json",)

    def partial(self) -> Sequence[str]:
        return ("words.part",)

    def scratch(self) -> Sequence[str]:
        return ()

    def work(self, up: Facts, context: Context) -> dict[str, Plain]:
        text, part = open_text(context.folder), context.folder / "words.part"
        done = part.read_text().splitlines() if part.exists() else []
        with (
            lease_teacher(teacher_spec(up, context.folder), text) as lm,
            context.task("words", self.rounds, "rounds") as task,
        ):
            for n in range(len(done), self.rounds):
                batch = text.train.ids[n : n + 4]
                ids_BT = lm.head().weight_VD.new_tensor([batch.tolist()]).long()
                last_BTD = lm.hidden(ids_BT, ids_BT.new_tensor([[0, 1, 2, 3]]))
                with part.open("a") as file:
                    file.write(f"{int(lm.head().logits(last_BTD)[0, -1].argmax())}\n")
                task.update(n + 1)
                time.sleep(self.pause)
        part.rename(context.folder / "words.json")
        return {"rounds": self.rounds, "resumed": len(done)}


def stages_of(raw: dict[str, Any], **words: Any) -> list[Any]:
    recipe = parse_recipe(raw)
    mine = Words(threads=1, keys={"rounds": "words.rounds"}, **words)
    return [*[stage for stage in build(recipe) if stage.name in (MACHINE, DATA, TEACHER)], mine]


def go(raw: dict[str, Any], jobs: int = 1, **words: Any) -> dict[str, Any]:
    folder = Path(raw["run"])
    with RunLock(folder) as lock:
        log = EventLog(folder)
        try:
            return dict(Runner(folder).run(stages_of(raw, **words), lock, log, jobs=jobs))
        finally:
            log.close()


SCRIPT = """
import json, sys
from tests.e2e.test_stages import go
go(json.loads(sys.argv[1]), jobs=int(sys.argv[2]), rounds=500, pause=0.02)
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_stage_of_ones_own(
    raw_recipe: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    """It runs, is killed, goes on, is shown, and is refused when its key changes."""
    run = Path(raw_recipe["run"])
    arguments = [sys.executable, "-c", textwrap.dedent(SCRIPT), json.dumps(raw_recipe), str(jobs)]
    with subprocess.Popen(arguments) as process:
        while not (run / "words.part").exists() or (run / "words.part").stat().st_size < 10:
            assert process.poll() is None
            time.sleep(0.02)
        monkeypatch.setattr("sys.argv", ["limbeck", "status", str(run), "--json"])
        cli.main()
        status = json.loads(capsys.readouterr().out)
        assert status["process"] == process.pid
        assert {each["name"]: each["state"] for each in status["stages"]} == {
            MACHINE: "done", DATA: "done", TEACHER: "done", "words": "running"
        }  # fmt: skip
        process.kill()
    monkeypatch.setattr("sys.argv", ["limbeck", "status", str(run)])
    cli.main()
    assert "no process is working on it" in " ".join(capsys.readouterr().out.split())
    facts = go(raw_recipe, jobs, rounds=500)
    assert facts["words"]["resumed"] > 0
    assert len((run / "words.json").read_text().splitlines()) == 500
    with pytest.raises(RunFolderError, match=r"was run with 500, now it is 7") as error:
        go(raw_recipe, rounds=7)
    assert error.value.key == "words.rounds"


def test_a_dry_run_writes_nothing(tmp_path: Path, raw_recipe: dict[str, Any]) -> None:
    raw_recipe["techniques"] = ["alone", "soft"]
    raw_recipe["training"]["tokens"] = 200
    recipe, run = write(raw_recipe, tmp_path / "r.yaml"), Path(raw_recipe["run"])

    def dry(*overrides: str, code: int = 0) -> str:
        done = limbeck(recipe, *overrides, "--dry-run", check=False)
        assert done.returncode == code
        return done.stdout

    assert "machine run not begun" in " ".join(dry().split())
    assert not run.exists()
    limbeck(recipe)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    kept = dry()
    assert kept.count(" keep") >= 8
    assert " refuse" not in kept
    assert "training.lr: was 0.001, now 0.5" in " ".join(dry("training.lr=0.5", code=2).split())
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_jobs_change_no_byte(tmp_path: Path, raw_recipe: dict[str, Any]) -> None:
    raw_recipe["training"]["tokens"] = 400
    recipe = write(raw_recipe, tmp_path / "r.yaml")
    limbeck(recipe, f"run={tmp_path / 'one'}", "--jobs", "1")
    limbeck(recipe, f"run={tmp_path / 'two'}", "--jobs", "2")
    one, two = students(tmp_path / "one"), students(tmp_path / "two")
    assert len(one) > 8
    assert one == two


def test_a_teacher_is_read_twice_at_most(
    tmp_path: Path, raw_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after its correction, by `check`, and all stages together. Shaped as recipes/llm.yaml."""
    from limbeck.commands.run import run
    from limbeck.display import Display
    from limbeck.models.folders import saved
    from limbeck.pipeline.shared.base import pool

    raw_recipe["teacher"]["correct"] = {"tokens": 200, "micro_batch_size": 4}
    raw_recipe["student"] = {"from": "teacher", "layers": 1, "keep_ends": False, "vocabulary": {"min_count": 12}}
    generation = {"batch_size": 8, "tokens": 200}
    raw_recipe["techniques"] = [
        "alone", "soft", {"kind": "hard", "generation": generation},
        {"kind": "soft", "name": "mixed", "generation": generation},
    ]  # fmt: skip
    raw_recipe["training"].update(tokens=200, precision="bf16")
    read: list[str] = []
    whole = saved._whole
    monkeypatch.setattr(saved, "_whole", lambda spec, said=None: read.append(spec.path) or whole(spec, said))
    pool.cache_clear()
    run(parse_recipe(raw_recipe), Display(quiet=True))
    teachers = [path for path in read if "students" not in path and "cut" not in path]
    assert sorted(teachers) == sorted([raw_recipe["teacher"]["path"], str(Path(raw_recipe["run"]) / "teacher")])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_check_reads_no_weights(tmp_path: Path, raw_recipe: dict[str, Any], teacher_folder: Path) -> None:
    """Of a folder shaped as a model of 7B parameters, whose weights are a hole in a sparse file."""
    import shutil
    import struct

    big = tmp_path / "big"
    shutil.copytree(teacher_folder, big)
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    config = json.loads((big / "config.json").read_text()) | sizes | {"num_key_value_heads": 32, "head_dim": 128}
    (big / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": [config["vocab_size"], 4096], "model.norm.weight": [4096]}
    for layer in range(32):
        for name in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o"):
            shapes[f"model.layers.{layer}.{name}_proj.weight"] = [4096, 4096]
        for name, shape in (("gate", [11008, 4096]), ("up", [11008, 4096]), ("down", [4096, 11008])):
            shapes[f"model.layers.{layer}.mlp.{name}_proj.weight"] = shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{layer}.{name}.weight"] = [4096]
    offset, header = 0, {}
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    plain = json.dumps(header).encode()
    with (big / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(plain)) + plain)
        file.truncate(8 + len(plain) + offset)
    assert offset > 12e9
    raw_recipe["teacher"] = {"path": str(big)}
    raw_recipe["student"] = {"from": "teacher", "layers": 16, "hidden": 2048, "heads": 16}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(raw_recipe))
    # Not `ru_maxrss`: it remembers the parent's memory from before `exec`.
    code = (
        "import limbeck.cli; limbeck.cli.main(); print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "check", str(tmp_path / "r.yaml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < 600_000  # KiB
    # A tensor less is refused, by its header.
    del header["model.layers.3.mlp.up_proj.weight"]
    plain = json.dumps(header).encode()
    with (big / "model.safetensors").open("r+b") as file:
        file.write(struct.pack("<Q", len(plain)) + plain)
        file.truncate(8 + len(plain) + offset)
    refused = subprocess.run(
        [sys.executable, "-m", "limbeck", "check", str(tmp_path / "r.yaml")], capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "teacher.path: the weights of" in refused.stderr
    assert "lack model.layers.3.mlp.up_proj.weight and 0 others" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["the parent", "a child"])
def test_kill_9_beside_another_job_changes_no_byte(tmp_path: Path, raw_recipe: dict[str, Any], whom: str) -> None:
    """Two jobs, killed at five moments, each resumed; the students' bytes are those of a quiet run of one job."""
    raw_recipe["training"].update(tokens=30_000, checkpoint_every_steps=20)
    recipe, run = write(raw_recipe, tmp_path / "r.yaml"), Path(raw_recipe["run"])
    limbeck(recipe, f"run={tmp_path / 'quiet'}", "--jobs", "1")
    command = [sys.executable, "-m", "limbeck", "run", str(recipe), "--jobs", "2"]
    for number in range(5):
        goal = (number + 0.5) / 6 * progress_of(tmp_path / "quiet")
        if whom == "the parent":
            kill_at(command, run, goal, then=0.05)
        else:
            kill_a_child(command, run, goal)
    limbeck(recipe, "--jobs", "2")
    quiet, killed = students(tmp_path / "quiet"), students(run)
    assert quiet
    assert quiet == killed


def progress_of(run: Path) -> int:
    from tests.e2e.test_run import progress

    return progress(run)


def kill_a_child(command: list[str], run: Path, goal: float) -> None:
    """The parent says which stage it was, and ends."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        children: list[int] = []
        while not children or progress_of(run) < goal:
            assert process.poll() is None, "it ended before a child was killed"
            time.sleep(0.01)
            listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            children = [int(child) for child in listed]
        os.kill(children[-1], signal.SIGKILL)
        _, err = process.communicate()
    assert process.returncode == 4 or process.returncode == 0  # a child that had no stage is not missed
    assert "Traceback" not in err
