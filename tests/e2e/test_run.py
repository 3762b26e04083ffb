"""The whole way, through the command line, on toys."""

from __future__ import annotations

import copy
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from limbeck.errors import RunFolderError
from limbeck.pipeline.results.report import keep_more
from limbeck.report.numbers import size
from tests.unit.test_data import CHATML


def write(raw: dict[str, Any], path: Path) -> Path:
    path.write_text(yaml.safe_dump(raw))
    return path


def command(recipe: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "limbeck", "run", str(recipe), *overrides]


def limbeck(recipe: Path, *overrides: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(recipe, *overrides), capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"}
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def students(run: Path) -> dict[str, bytes]:
    """Weights, configurations and tokenizers of everything that was trained."""
    return {
        str(p.relative_to(run)): p.read_bytes()
        for p in sorted(run.glob("arms/**/*"))
        if p.suffix in (".safetensors", ".json", ".jinja") and "checkpoints" not in str(p)
    }


def test_the_whole_way(tmp_path: Path, raw_recipe: dict[str, Any]) -> None:
    recipe, run = write(raw_recipe, tmp_path / "toy.yaml"), Path(raw_recipe["run"])
    first = limbeck(recipe)
    for name in ("teacher", "alone", "soft", "hard", "co", "co: teacher", "bits/byte"):
        assert name in first.stdout
    long = [line for line in first.stdout.splitlines() if len(line) > 80]
    assert [line for line in long if not re.search(r"report\.html|toy\.yaml|^  [·!✓] ", line)] == []
    assert "report.html" in first.stdout

    # Students are plain folders: whoever has transformers can load them.
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for folder in ("arms/alone-seed0/students/student", "arms/co-seed0/students/student", "arms/co-seed0/teacher"):
        model = AutoModelForCausalLM.from_pretrained(run / folder)
        tokenizer = AutoTokenizer.from_pretrained(run / folder)
        ids = torch.tensor([tokenizer("the cat")["input_ids"]])
        assert model.generate(ids, max_new_tokens=3, do_sample=False).shape[1] > ids.shape[1]
        card = (run / folder / "README.md").read_text()
        assert card.startswith("---\n")
        assert "library_name" in card

    # The page needs no network.
    page = (run / "report.html").read_text()
    assert not re.search(r'(src|href)\s*=\s*"?https?:|@import|url\(', page)
    for name in ("teacher", "alone", "soft", "hard", "co", "co: teacher"):
        assert f'class="who">{name}</span>' in page
    speeds = json.loads((run / "stages" / "speed.json").read_text())["result"]
    assert len(speeds["speeds"]) == 6
    assert all(len(rates) == 7 for rates in speeds["speeds"].values())
    weights = run / "arms/soft-seed0/students/student/model.safetensors"
    assert size(weights.stat().st_size) in page

    # Provenance: the resolved recipe runs again to the same run, versions and fingerprints are there.
    resolved = yaml.safe_load((run / "recipe.yaml").read_text())
    assert resolved["training"]["lr"] == 1e-3
    assert json.loads((run / "run.json").read_text())[0]["versions"]["torch"]
    assert not list(run.glob("arms/*/checkpoints"))

    # Again: everything is kept, nothing changes.
    before = students(run)
    again = limbeck(recipe)
    assert "measure" not in again.stdout.replace("measured", "")
    assert students(run) == before

    # What was learned was the whole budget, the same for every technique.
    tokens = {p.stem: json.loads(p.read_text())["result"]["tokens"] for p in (run / "stages").glob("train-*.json")}
    assert len(tokens) == 4
    assert all(1500 <= n < 1500 + 4 * 32 for n in tokens.values())

    # Another technique may be added; another learning rate may not.
    more = copy.deepcopy(raw_recipe)
    more["techniques"].append({"kind": "soft", "name": "warm", "temperature": 2.0})
    assert "warm" in limbeck(write(more, tmp_path / "more.yaml")).stdout
    assert {k: v for k, v in students(run).items() if "warm" not in k} == before
    refused = limbeck(recipe, "training.lr=0.5", check=False)
    assert refused.returncode == 2
    assert "training.lr" in refused.stderr
    assert "was run with 0.001, now it is 0.5" in refused.stderr
    assert yaml.safe_load((run / "recipe.yaml").read_text())["training"]["lr"] == 1e-3


def test_a_run_folder_heals(tmp_path: Path, raw_recipe: dict[str, Any], corpus_file: Path) -> None:
    """Pieces that are gone or torn are made again; what can be kept is kept."""
    raw_recipe["techniques"] = ["alone", "soft"]
    raw_recipe["training"]["tokens"] = 400
    recipe, run = write(raw_recipe, tmp_path / "r.yaml"), Path(raw_recipe["run"])
    limbeck(recipe)
    before = students(run)

    shutil.rmtree(run / "arms" / "soft-seed0" / "students")
    shutil.rmtree(run / "measured" / "alone-seed0-student")
    (run / "measured" / "teacher" / "documents.npz").write_bytes(b"PK torn")
    (run / "stages" / "measure-soft-seed0-student.json").write_text("{")
    # The order of techniques says nothing, and the same corpus may lie elsewhere.
    raw_recipe["techniques"] = ["soft", "alone"]
    raw_recipe["data"]["corpus"][0]["text"] = str(corpus_file.rename(tmp_path / "moved.txt"))
    done = limbeck(write(raw_recipe, recipe))
    assert students(run) == before
    assert "measure teacher" in done.stdout
    assert "· alone-seed0" in done.stdout

    # A corpus that has changed is told, and not mixed in.
    with (tmp_path / "moved.txt").open("a") as file:
        file.write("\n\none more story that nobody read")
    assert "the corpus has changed" in limbeck(recipe).stdout
    assert students(run) == before

    # What is no longer as it was left is made again: a file gone from the data, weights cut short.
    (tmp_path / "moved.txt").write_text("\n\n".join((tmp_path / "moved.txt").read_text().split("\n\n")[:-1]))
    (run / "data" / "train" / "ids.bin").unlink()
    weights = run / "arms/soft-seed0/students/student/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    limbeck(recipe)
    assert students(run) == before


def test_a_lost_marker_leads_no_one_into_a_corner(
    tmp_path: Path, raw_recipe: dict[str, Any], corpus_file: Path
) -> None:
    raw_recipe["student"] = {"from": "teacher", "ffn": 32}
    raw_recipe["techniques"] = ["alone"]
    raw_recipe["training"]["tokens"] = 200
    recipe, run = write(raw_recipe, tmp_path / "r.yaml"), Path(raw_recipe["run"])
    limbeck(recipe)
    before = students(run)
    # Another recipe is refused by what was trained; the one that it was heals what the other has put there.
    for stage, change in (("data", "data.heldout=0.3"), ("cut-student", "student.ffn=40")):
        (run / "stages" / f"{stage}.json").write_text("")
        assert limbeck(recipe, change, check=False).returncode == 2
        limbeck(recipe)
        assert students(run) == before
    # A run of before sizes were kept.
    markers = list((run / "stages").glob("*.json"))
    assert len(markers) >= 4  # data, teacher, cut, arm
    for marker in markers:
        kept = json.loads(marker.read_text())
        kept.pop("made")
        marker.write_text(json.dumps(kept))
    (run / "arms/alone-seed0/students/student/config.json").unlink()
    (run / "data" / "train" / "manifest.json").unlink()
    limbeck(recipe)
    assert students(run) == before
    # Torn data of a corpus that is not there any more: refused before anything is replaced.
    (run / "data" / "train" / "ids.bin").unlink()
    text = corpus_file.read_text()
    corpus_file.write_text(text + "\n\none more story")
    refused = limbeck(recipe, check=False)
    assert refused.returncode == 2
    assert "Bring back the corpus" in refused.stderr
    corpus_file.write_text(text)
    limbeck(recipe)
    assert students(run) == before


def test_a_refusal_can_be_mended_in_the_same_folder(tmp_path: Path, raw_recipe: dict[str, Any]) -> None:
    raw_recipe["techniques"] = ["alone"]
    raw_recipe["training"]["tokens"] = 400
    recipe = write(raw_recipe, tmp_path / "r.yaml")
    refused = limbeck(recipe, "training.lr=1e30", "training.clip=0", check=False)
    assert refused.returncode == 3
    assert "training.lr: the gradient of student was not finite" in refused.stderr
    limbeck(recipe)


def test_several_students_seeds_and_adapters(tmp_path: Path, raw_recipe: dict[str, Any], teacher_folder: Path) -> None:
    small = raw_recipe.pop("student")
    raw_recipe["students"] = {"small": small, "adapted": {"path": str(teacher_folder), "lora": {"rank": 2}}}
    raw_recipe["techniques"] = ["alone", {"kind": "soft", "divergence": {"name": "jsd", "beta": 0.5}}]
    raw_recipe["seeds"] = [0, 1]
    raw_recipe["training"]["tokens"] = 400
    raw_recipe["training"]["precision"] = "bf16"
    done = limbeck(write(raw_recipe, tmp_path / "r.yaml"))
    assert "soft / small" in done.stdout
    assert "soft / adapted" in done.stdout
    run = Path(raw_recipe["run"])
    found = {name: content for name, content in students(run).items() if name.endswith(".safetensors")}
    assert len(found) == 8
    assert len(set(found.values())) == 8
    with np.load(run / "measured" / "soft-seed1-adapted" / "documents.npz") as arrays:
        assert set(arrays) == {"keys", "nats", "kl", "agreement", "tokens", "n_bytes", "nats_words", "tokens_words"}


def test_a_teacher_from_a_config_is_trained_once(
    tmp_path: Path, raw_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    raw_recipe["teacher"] = {
        "config": raw_recipe["student"]["config"],
        "pretraining": {"tokens": 800, "micro_batch_size": 4, "lr": 1e-2},
    }
    raw_recipe["tokenizer"] = {"train": {"vocab_size": 300}}
    raw_recipe["techniques"] = [{"kind": "co", "teacher_start": "scratch", "kd_weight": {"start": 0, "end": 1}}]
    limbeck(write(raw_recipe, tmp_path / "r.yaml"))
    second = limbeck(tmp_path / "r.yaml", f"run={tmp_path / 'second'}")
    assert "from the cache" in second.stdout
    assert "No control" in second.stdout
    weights = [tmp_path / name / "teacher" / "model.safetensors" for name in ("run", "second")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert students(tmp_path / "run") == students(tmp_path / "second")


@pytest.mark.parametrize("template", [None, CHATML])
def test_conversations(
    tmp_path: Path, raw_recipe: dict[str, Any], texts: list[str], teacher_folder: Path, template: str | None
) -> None:
    if template is not None:
        shutil.copytree(teacher_folder, tmp_path / "chatty")
        (tmp_path / "chatty" / "chat_template.jinja").write_text(template)
        raw_recipe["teacher"] = {"path": str(tmp_path / "chatty")}
    lines = [json.dumps({"prompt": text[:20], "response": text[20:]}) for text in texts]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    raw_recipe["data"] = {
        "corpus": [{"jsonl": str(tmp_path / "pairs.jsonl")}],
        "heldout": 0.2,
        "seq_len": 48 if template is None else 160,
        "pack": False,
    }
    raw_recipe["techniques"] = ["soft", {"kind": "hard", "generation": {"batch_size": 8, "tokens": 300}}]
    raw_recipe["training"]["tokens"] = 600
    assert "hard" in limbeck(write(raw_recipe, tmp_path / "r.yaml")).stdout
    card = (Path(raw_recipe["run"]) / "arms/soft-seed0/students/student/README.md").read_text()
    assert ("tokenizer.apply_chat_template(" in card) == (template is not None)


def test_a_student_cut_from_a_corrected_teacher(tmp_path: Path, raw_recipe: dict[str, Any]) -> None:
    raw_recipe["teacher"]["correct"] = {"tokens": 600, "micro_batch_size": 4, "lora": {"rank": 2}}
    raw_recipe.pop("student")
    raw_recipe["students"] = {
        "shallow": {
            "from": "teacher",
            "layers": 1,
            "keep_ends": False,
            "chooser": "block_influence",
            "lora": {"rank": 2},
        },
        "middle": {"from": "teacher", "ffn": 48},
        "narrow": {"from": "teacher", "ffn": 32, "heads": 2, "hidden": 24},
    }
    raw_recipe["techniques"] = ["alone", {"kind": "soft", "generation": {"batch_size": 8, "tokens": 300}}]
    raw_recipe["training"]["tokens"] = 400
    recipe = write(raw_recipe, tmp_path / "r.yaml")
    first = limbeck(recipe)
    assert "teacher correction" in first.stdout
    assert "soft / narrow" in first.stdout
    run = Path(raw_recipe["run"])
    assert "Bits per byte by size" in (run / "report.html").read_text()  # three sizes: a curve
    from transformers import AutoModelForCausalLM

    shallow = AutoModelForCausalLM.from_pretrained(run / "arms/soft-seed0/students/shallow")
    narrow = AutoModelForCausalLM.from_pretrained(run / "arms/soft-seed0/students/narrow")
    assert shallow.config.num_hidden_layers == 1
    assert (narrow.config.hidden_size, narrow.config.num_attention_heads, narrow.config.intermediate_size) == (
        24,
        2,
        32,
    )
    before = students(run)
    assert "kept" in limbeck(recipe).stdout
    assert students(run) == before
    assert "teacher: tuned on" in " ".join(first.stdout.split())
    # Weights that a crash of the machine cut short are made again.
    for torn in ("cut/narrow", "teacher"):
        weights = run / torn / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-9])
    shutil.rmtree(run / "arms" / "soft-seed0")
    limbeck(recipe)
    assert students(run) == before
    # What is refused says what was changed, and gives no advice that leads nowhere.
    for change, key in (("data.seq_len=24", "data.seq_len: "), ("students.narrow.ffn=40", "students.narrow.ffn: ")):
        refused = limbeck(recipe, change, check=False)
        assert refused.returncode == 2
        assert key in refused.stderr
        assert "change it back" in refused.stderr
    refused = limbeck(recipe, "students.shallow.layers=9", f"run={tmp_path / 'other'}", check=False)
    assert refused.returncode == 2
    assert "students.shallow.layers: got 9, but the teacher has 2 layers" in refused.stderr


def test_a_correction_that_harms_is_said(tmp_path: Path, raw_recipe: dict[str, Any]) -> None:
    raw_recipe["teacher"]["correct"] = {"tokens": 300, "micro_batch_size": 4, "lr": 1.0}
    raw_recipe["techniques"] = ["alone"]
    raw_recipe["training"]["tokens"] = 100
    assert "it is worse for it" in limbeck(write(raw_recipe, tmp_path / "r.yaml")).stdout
    report = (Path(raw_recipe["run"]) / "report.html").read_text()
    assert "The tuning made the teacher worse: tuned on" in report
    assert "Note 1" in report


def test_another_teacher_makes_other_students(tmp_path: Path, raw_recipe: dict[str, Any]) -> None:
    raw_recipe["student"] = {"from": "teacher", "layers": 1, "keep_ends": False}
    raw_recipe["techniques"] = ["alone"]
    raw_recipe["training"]["tokens"] = 200
    recipe, run = write(raw_recipe, tmp_path / "r.yaml"), Path(raw_recipe["run"])
    limbeck(recipe)
    before = students(run)
    # Said before the teacher is tuned.
    refused = limbeck(recipe, "teacher.correct={tokens: 100}", check=False)
    assert refused.returncode == 2
    assert "teacher.correct: " in refused.stderr
    assert "change it back" in refused.stderr
    assert not (run / "teacher-training").exists()
    # Other documents held out: a student may have learned them.
    shutil.rmtree(run / "data")
    refused = limbeck(recipe, "data.heldout=0.4", check=False)
    assert refused.returncode == 2
    assert "data.heldout: " in refused.stderr
    assert students(run) == before
    # With what stands in the way deleted, everything that depends on the teacher is made anew, `alone` too.
    shutil.rmtree(run)
    limbeck(recipe, "teacher.correct={tokens: 300, lr: 1e-2}")
    assert students(run) != before


def test_a_correction_does_not_go_on_from_another_ones_checkpoints(
    tmp_path: Path, raw_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from limbeck.commands.run import run
    from limbeck.display import Display
    from limbeck.pipeline.shared import fit
    from limbeck.recipe import parse_recipe

    raw_recipe["teacher"]["correct"] = {"tokens": 2000, "micro_batch_size": 4, "lr": 1e-3, "checkpoint_every_steps": 1}
    raw_recipe["techniques"] = ["soft"]
    train = fit.train

    def killed(*args: Any, on_step: Callable[..., None], **more: Any) -> Any:
        def step(number: int, *rest: Any) -> None:
            if number == 3:
                raise KeyboardInterrupt

        return train(*args, on_step=step, **more)

    monkeypatch.setattr(fit, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        run(parse_recipe(raw_recipe), Display(quiet=True))
    monkeypatch.setattr(fit, "train", train)
    raw_recipe["teacher"]["correct"]["lr"] = 1e-9
    with pytest.raises(RunFolderError, match=r"was run with 0\.001, now it is 1e-09") as error:
        run(parse_recipe(raw_recipe), Display(quiet=True))
    assert error.value.key == "teacher.correct.lr"


def test_a_student_that_comes_late_is_refused_at_once(tmp_path: Path, raw_recipe: dict[str, Any]) -> None:
    """Also where it is cut first: its arms wait for the cut, but that they have another student is known."""
    from limbeck.commands.run import decisions, run
    from limbeck.display import Display
    from limbeck.recipe import parse_recipe
    from limbeck.workflow.status import status_of

    raw_recipe.pop("student")
    raw_recipe |= {"students": {"small": {"from": "teacher", "ffn": 32}}, "techniques": ["alone"]}
    raw_recipe["training"]["tokens"] = 200
    run(parse_recipe(raw_recipe), Display(quiet=True))
    card = (Path(raw_recipe["run"]) / "arms/alone-seed0/students/small/README.md").read_text()
    assert 'tokenizer("' in card
    events = (Path(raw_recipe["run"]) / "events.jsonl").read_bytes()
    raw_recipe["students"]["tiny"] = {"from": "teacher", "ffn": 16}
    late = parse_recipe(raw_recipe)
    decided = {each.stage.name: each.action for each in decisions(late)}
    assert decided["cut-tiny"] == "run"
    assert decided["train-alone-seed0"] == "refuse"
    with pytest.raises(RunFolderError, match=r"^students\.tiny: students cannot be added to .*all .* learn together"):
        run(late, Display(quiet=True))
    assert status_of(Path(raw_recipe["run"])).finished
    assert (Path(raw_recipe["run"]) / "events.jsonl").read_bytes() == events
    assert not (Path(raw_recipe["run"]) / "cut" / "tiny").exists()


def test_what_is_hardly_meant_is_said(raw_recipe: dict[str, Any], teacher_folder: Path) -> None:
    from limbeck.commands.checking.look import look
    from limbeck.recipe import Vocabulary, parse_recipe

    raw_recipe.pop("student")
    raw_recipe["students"] = {"same": {"path": str(teacher_folder)}, "cut": {"from": "teacher", "ffn": 32}}
    steps, size = look(parse_recipe(raw_recipe)).warnings
    assert re.match(r"training: 1,500 labels are about 1\d steps of 4 rows, which teach little", steps)
    assert size.startswith("students.same: with ")
    assert "as large as its teacher" in size
    raw_recipe["training"]["tokens"] = 128 * 50
    assert [size] == look(parse_recipe(raw_recipe)).warnings
    assert keep_more(Vocabulary()) == "bring more text, whose tokens are kept, or leave `vocabulary` out"
    assert keep_more(Vocabulary(min_count=3)) == "lower vocabulary.min_count"
    assert keep_more(Vocabulary(min_count=3, size=999)) == "lower vocabulary.min_count, or raise vocabulary.size"


def test_a_teacher_is_measured_in_its_own_tokens(tmp_path: Path, raw_recipe: dict[str, Any]) -> None:
    raw_recipe["techniques"] = ["alone"]
    raw_recipe["training"]["tokens"] = 100
    found = []
    for name, vocabulary in (("whole", None), ("cut", {"min_count": 12})):
        raw_recipe["student"] = {"from": "teacher", "layers": 2, "vocabulary": vocabulary}
        if vocabulary is None:
            raw_recipe["student"] = {"from": "teacher", "ffn": 32}
        done = limbeck(write(raw_recipe, tmp_path / "r.yaml"), f"run={tmp_path / name}")
        with np.load(tmp_path / name / "measured" / "teacher" / "documents.npz") as arrays:
            found.append(arrays["nats"])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)
    assert "of the teacher's own" in " ".join(done.stdout.split())


def test_a_student_of_fewer_tokens(tmp_path: Path, raw_recipe: dict[str, Any]) -> None:
    raw_recipe["student"] = {"from": "teacher", "layers": 2, "vocabulary": {"min_count": 12}}
    raw_recipe["techniques"] = ["alone", "soft", {"kind": "hard", "generation": {"batch_size": 8, "tokens": 300}}, "co"]
    raw_recipe["training"]["tokens"] = 400
    recipe, run = write(raw_recipe, tmp_path / "r.yaml"), Path(raw_recipe["run"])
    limbeck(recipe)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    home = run / "arms" / "soft-seed0" / "students" / "student"
    student, tokenizer = AutoModelForCausalLM.from_pretrained(home), AutoTokenizer.from_pretrained(home)
    kept = json.loads((run / "data" / "vocabulary.json").read_text())
    assert 257 < len(kept["ids"]) + 1 == student.config.vocab_size == len(tokenizer) < 320
    assert tokenizer.decode(tokenizer("the hills 猫")["input_ids"]) == "the hills 猫"
    card = (home / "README.md").read_text()
    assert f'logit\\_bias": {{"{len(kept["ids"])}": -100}}' in card
    assert f"layers 0, 1 (from 0), and {len(kept['ids']) + 1} of its 320 tokens" in " ".join(card.split())
    teacher = AutoModelForCausalLM.from_pretrained(run / "arms" / "co-seed0" / "teacher")
    assert teacher.config.vocab_size == 320
    before = students(run)
    assert "kept" in limbeck(recipe).stdout
    assert students(run) == before


def test_a_second_process_is_refused(tmp_path: Path, raw_recipe: dict[str, Any]) -> None:
    from limbeck.workflow.lock import RunLock

    with RunLock(Path(raw_recipe["run"])):
        refused = limbeck(write(raw_recipe, tmp_path / "r.yaml"), check=False)
        assert refused.returncode == 2
        assert f"in use by another limbeck (process {os.getpid()})" in refused.stderr
        with pytest.raises(RunFolderError, match="in use by another limbeck"):
            RunLock(Path(raw_recipe["run"]))
    with RunLock(Path(raw_recipe["run"])):
        pass


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_told(tmp_path: Path, raw_recipe: dict[str, Any], kind: signal.Signals) -> None:
    raw_recipe["training"]["tokens"] = 3_000_000
    raw_recipe["techniques"] = ["alone"]
    recipe = write(raw_recipe, tmp_path / "r.yaml")
    process = subprocess.Popen(
        command(recipe),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A job in the background of a shell ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )
    metrics = Path(raw_recipe["run"]) / "arms" / "alone-seed0" / "metrics.jsonl"
    try:
        while not (metrics.exists() and metrics.stat().st_size > 0):
            assert process.poll() is None, "it ended before it was interrupted"
            time.sleep(0.05)
        process.send_signal(kind)
        _, err = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 130
    assert "goes on where it stopped" in err
    assert "Traceback" not in err


def cut_in_every_way(raw: dict[str, Any]) -> None:
    """A corrected teacher; students of fewer layers, narrower, of fewer tokens; its text, its hidden states."""
    raw["teacher"]["correct"] = {"tokens": 3_000, "micro_batch_size": 4, "checkpoint_every_steps": 5}
    raw.pop("student")
    vocabulary = {"min_count": 12}
    raw["students"] = {
        "shallow": {"from": "teacher", "layers": 1, "keep_ends": False, "vocabulary": vocabulary},
        "narrow": {"from": "teacher", "ffn": 32, "heads": 2, "hidden": 24, "vocabulary": vocabulary},
    }
    raw["techniques"] = [
        "alone",
        {"kind": "soft", "hidden": {}},
        {"kind": "soft", "name": "mixed", "generation": {"batch_size": 8, "tokens": 2_000}},
    ]
    raw["training"].update(tokens=30_000, checkpoint_every_steps=10)


def uncut(raw: dict[str, Any]) -> None:
    raw["training"].update(tokens=30_000, checkpoint_every_steps=20)


def tokens_in(journal: Path) -> int:
    try:
        with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as db:
            return int(db.execute("SELECT total(value) FROM counters WHERE name = 'tokens'").fetchone()[0])
    except sqlite3.OperationalError:  # it is being made
        return 0


def progress(run: Path) -> int:
    """How far a run has come: bytes of metrics and of text, and finished stages. It follows the work, not the clock."""
    growing = ("teacher-training/metrics.jsonl", "arms/*/metrics.jsonl")
    written = sum(path.stat().st_size for pattern in growing for path in run.glob(pattern))
    written += 4 * sum(map(tokens_in, run.glob("text/*.sqlite")))
    finished = [path for path in run.glob("stages/*.json") if '"result"' in path.read_text()]
    return written + 500 * len(finished)


def kill_at(args: list[str], run: Path, goal: float, then: float) -> None:
    """Start a command, and kill it ``then`` seconds after its run has come as far as ``goal``."""
    with subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and progress(run) < goal:
            time.sleep(0.005)
        time.sleep(then)
        assert process.poll() is None, "it ended before it was killed"
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("change", [uncut, cut_in_every_way])
def test_kill_9_at_random_moments_changes_no_byte(
    tmp_path: Path, raw_recipe: dict[str, Any], change: Callable[[dict[str, Any]], None]
) -> None:
    """Acceptance: five kills at random moments, each resumed; the students' bytes are those of a quiet run."""
    change(raw_recipe)
    recipe = write(raw_recipe, tmp_path / "r.yaml")
    limbeck(recipe, f"run={tmp_path / 'quiet'}")
    whole, run = progress(tmp_path / "quiet"), Path(raw_recipe["run"])
    rng = random.Random(0)
    for number in range(5):  # in each sixth but the last
        kill_at(command(recipe), run, (number + rng.random()) / 6 * whole, then=rng.uniform(0, 0.1))
    limbeck(recipe)
    quiet, killed = students(tmp_path / "quiet"), students(run)
    assert quiet.keys() == killed.keys()
    assert quiet
    assert quiet == killed
