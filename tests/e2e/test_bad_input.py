"""What users get wrong: each is one clear line on stderr, exit 2, no traceback, and nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck import cli
from limbeck.errors import DivergedError, InputError, MachineError, RecipeError, RunFolderError

Change = Callable[[dict[str, Any], Path], None]


def _set(**changes: Any) -> Change:
    def change(raw: dict[str, Any], tmp: Path) -> None:
        for path, value in changes.items():
            node: Any = raw
            *steps, last = path.split("__")
            for step in steps:
                node = node[int(step)] if step.isdigit() else node[step]
            node[int(last) if last.isdigit() else last] = value

    return change


def _text(content: bytes, **more: Any) -> Change:
    def change(raw: dict[str, Any], tmp: Path) -> None:
        (tmp / "odd.txt").write_bytes(content)
        raw["data"]["corpus"] = [{"text": str(tmp / "odd.txt"), **more}]

    return change


def _folder_for_file(raw: dict[str, Any], tmp: Path) -> None:
    (tmp / "empty").mkdir()
    raw["data"]["corpus"] = [{"jsonl": str(tmp / "empty")}]


def _other_vocabulary(raw: dict[str, Any], tmp: Path) -> None:
    from limbeck.models.folders.save import save_model
    from limbeck.models.load import load_model
    from limbeck.models.tokenizer import train_tokenizer
    from limbeck.recipe import ConfigModel

    other = train_tokenizer(["quite another text"], 290)
    save_model(load_model(ConfigModel(config=raw["student"]["config"]), other), tmp / "other")
    raw["student"] = {"path": str(tmp / "other")}


def _file_for_run(raw: dict[str, Any], tmp: Path) -> None:
    (tmp / "taken").write_text("x")
    raw["run"] = str(tmp / "taken")


def _foreign_folder(raw: dict[str, Any], tmp: Path) -> None:
    (tmp / "mine").mkdir()
    (tmp / "mine" / "thesis.tex").write_text("x")
    raw["run"] = str(tmp / "mine")


def _run_under_a_file(raw: dict[str, Any], tmp: Path) -> None:
    (tmp / "taken").write_text("x")
    raw["run"] = str(tmp / "taken" / "run")


def _torn_teacher(raw: dict[str, Any], tmp: Path) -> None:
    import shutil

    shutil.copytree(raw["teacher"]["path"], tmp / "torn")
    weights = tmp / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    raw["teacher"]["path"] = str(tmp / "torn")


def _pickled_teacher(raw: dict[str, Any], tmp: Path) -> None:
    import shutil

    shutil.copytree(raw["teacher"]["path"], tmp / "pickled")
    (tmp / "pickled" / "model.safetensors").rename(tmp / "pickled" / "pytorch_model.bin")
    raw["teacher"]["path"] = str(tmp / "pickled")


def _wordy_template(raw: dict[str, Any], tmp: Path) -> None:
    """Tokens that a chat template writes are kept, with what they are merged from."""
    import shutil

    shutil.copytree(raw["teacher"]["path"], tmp / "wordy")
    (tmp / "wordy" / "chat_template.jinja").write_text(
        "{% for m in messages %}Once upon a time there was a little girl and the king: {{ m.content }}{% endfor %}"
    )
    raw["teacher"]["path"] = str(tmp / "wordy")
    raw["student"] = {"from": "teacher", "vocabulary": {"size": 260}}


def _nan_teacher(raw: dict[str, Any], tmp: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(raw["teacher"]["path"], tmp / "nan")
    weights = load_file(tmp / "nan" / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, tmp / "nan" / "model.safetensors", metadata={"format": "pt"})
    raw["teacher"]["path"] = str(tmp / "nan")


def _nan_at_one_token(raw: dict[str, Any], tmp: Path) -> None:
    """A teacher that reads everything but the letter z, which no document holds."""
    import math

    from safetensors.torch import load_file, save_file

    from limbeck.models.folders.save import save_model
    from limbeck.models.load import load_model
    from limbeck.models.tokenizer import load_tokenizer
    from limbeck.recipe import ConfigModel
    from tests.conftest import LLAMA

    tokenizer = load_tokenizer(raw["teacher"]["path"])
    config = {**LLAMA, "tie_word_embeddings": False, "max_position_embeddings": 512}
    save_model(load_model(ConfigModel(config=config), tokenizer), tmp / "one")
    weights = load_file(tmp / "one" / "model.safetensors")
    weights["model.embed_tokens.weight"][tokenizer.convert_tokens_to_ids("z")] = math.nan
    save_file(weights, tmp / "one" / "model.safetensors", metadata={"format": "pt"})
    raw["teacher"]["path"] = str(tmp / "one")


def _rows(*rows: Any, **more: Any) -> Change:
    """A corpus of JSON lines, and changes of the recipe beside it."""

    def change(raw: dict[str, Any], tmp: Path) -> None:
        (tmp / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        raw["data"]["corpus"] = [{"jsonl": str(tmp / "rows.jsonl")}]
        raw.update(more)

    return change


def _cut_teacher(raw: dict[str, Any], tmp: Path) -> None:
    """A teacher whose own vocabulary was cut."""
    from limbeck.models.causal_lm import CausalLM
    from limbeck.models.folders.save import save_model
    from limbeck.models.load import load_model
    from limbeck.models.tokenizer import load_tokenizer
    from limbeck.pruning.vocabulary import cut_vocabulary
    from limbeck.recipe import PathModel

    tokenizer = load_tokenizer(raw["teacher"]["path"])
    whole = load_model(PathModel(path=raw["teacher"]["path"]), tokenizer)
    cut = cut_vocabulary(whole.model, tokenizer, {}, other=True)
    save_model(CausalLM(cut.model, cut.tokenizer), tmp / "cut")
    raw["teacher"]["path"] = str(tmp / "cut")
    raw["student"] = {"from": "teacher", "vocabulary": {}}


FEWER_TOKENS = {"from": "teacher", "vocabulary": {}}
BROKEN: dict[str, tuple[Change, str, str]] = {
    "unknown key": (_set(training__lrr=1), "training.lrr", "`lr`"),
    "misspelt technique": (_set(techniques=["sofd"]), "techniques.0", "`soft`"),
    "unknown divergence": (
        _set(techniques=[{"kind": "soft", "divergence": "foward_kl"}]),
        "techniques.0.divergence",
        "forward_kl",
    ),
    "wrong setting of a divergence": (
        _set(techniques=[{"kind": "soft", "divergence": {"name": "jsd", "betta": 0.5}}]),
        "techniques.0.divergence",
        "beta",
    ),
    "other vocabulary": (_other_vocabulary, "student.path", "vocabulary"),
    "no such teacher": (_set(teacher__path="/no/such/model"), "teacher.path", "/no/such/model"),
    "torn teacher": (_torn_teacher, "teacher.path", "cannot be loaded"),
    "pickled teacher": (_pickled_teacher, "teacher.path", "pickled"),
    "teacher of NaN": (_nan_teacher, "teacher", "NaN or infinity in model.norm.weight"),
    "teacher of NaN at one token": (_nan_at_one_token, "teacher: the weights hold NaN", ", 'z')"),
    "hidden layers that a student does not have": (
        _set(techniques=[{"kind": "soft", "hidden": {"layers": [[2, 0]]}}]),
        "techniques.0.hidden.layers",
        "the student has 2 layers",
    ),
    "a run in nobody's home": (_set(run="~nosuchuser1/x"), "run", "Name a folder"),
    "a run of no name": (_set(run="a\0b"), "run", "Name a folder"),
    "no such corpus": (_set(data__corpus=[{"text": "/no/such/file"}]), "data.corpus.0.text", "/no/such/file"),
    "empty corpus": (_text(b""), "data.corpus.0", "no document"),
    "blank corpus": (_text(b" \n \n"), "data.corpus.0", "no document"),
    "one-document corpus": (_text(b"a single document"), "data.corpus", "separator"),
    "separator that never comes": (_text(b"one two three", separator="@@"), "data.corpus.0.separator", "not stand in"),
    "not UTF-8": (_text("caf\xe9\n\nth\xe9".encode("latin1"), separator="\n\n"), "data.corpus.0.text", "not UTF-8"),
    "a folder without files of rows": (_folder_for_file, "data.corpus.0.jsonl", "is a folder without files"),
    "a file where the run folder is due": (_file_for_run, "run", "is a file"),
    "a folder of other things": (_foreign_folder, "run", "other things"),
    "no write permission": (_run_under_a_file, "run", "folder"),
    "rows longer than the model reads": (
        _set(student__config={"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4,
                              "num_hidden_layers": 1, "max_position_embeddings": 16}),
        "student",
        "seq_len",
    ),
    "a student called labels": (
        lambda raw, tmp: raw.update(students={"labels": raw.pop("student")}), "students", "another name"
    ),
    "a seed below zero": (_set(seeds=[-1]), "seeds.0", "greater than or equal to 0"),
    "a beta of one": (_set(training__betas=[1.0, 0.9]), "training.betas.0", "less than 1"),
    "a pattern that is none": (
        lambda raw, tmp: raw["data"].update(corpus=[{"text": str(tmp), "glob": "/x"}]), "data.corpus.0.glob", "pattern"
    ),
    "an adapted head": (_set(student={"path": "x", "lora": {"targets": ["lm_head"]}}), "student.lora", "head"),
    "an endless temperature": (
        _set(techniques=[{"kind": "soft", "temperature": float("inf")}]), "techniques.0", "finite"
    ),
    "a ramp backwards": (
        _set(techniques=[{"kind": "soft", "kd_weight": {"start": 1, "end": 0, "begin": 0.9, "until": 0.1}}]),
        "techniques.0.kd_weight",
        "until must be greater",
    ),
    "prompts that leave no room": (
        _set(techniques=[{"kind": "hard", "generation": {"prompt_tokens": 30}}]), "techniques.0.generation", "no room"
    ),
    "more layers than the teacher has": (_set(student={"from": "teacher", "layers": 9}), "student.layers", "2 layers"),
    "heads that break the groups": (_set(student={"from": "teacher", "heads": 7}), "student.heads", "heads"),
    "an adapter of nothing, on a cut student": (
        _set(student={"from": "teacher", "layers": 2, "ffn": 32, "lora": {"targets": ["nope"]}}),
        "student.lora.targets",
        "nope",
    ),
    "an adapter of nothing, on a corrected teacher": (
        _set(teacher__correct={"tokens": 100, "lora": {"targets": ["nope"]}}), "teacher.correct.lora.targets", "nope"
    ),
    "more layers than a teacher that is still to be trained": (
        _set(
            teacher={
                "config": {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4},
                "pretraining": {"tokens": 100_000_000},
            },
            tokenizer={"train": {"vocab_size": 300}},
            student={"from": "teacher", "layers": 9},
        ),
        "student.layers",
        "2 layers",
    ),
    "a cut of nothing": (_set(student={"from": "teacher"}), "student", "nothing is cut"),
    "a vocabulary too small for its chat template": (_wordy_template, "student.vocabulary.size", "have to be kept"),
    "a package that is not there": (
        _set(teacher={"package": "no_such_thing/model.gguf"}), "teacher.package", "not installed"
    ),
    "hidden layers that are not there": (
        _set(techniques=[{"kind": "soft", "hidden": {"layers": [[0, 9]]}}]),
        "techniques.0.hidden.layers",
        "Layers count",
    ),
    "a role that is none": (
        _rows({"messages": [{"role": "user", "content": "a?"}, {"role": "asistant", "content": "b"}]}),
        "data.corpus.0",
        "line 1, `messages`, message 2 is by 'asistant', a role that is not known",
    ),
    "half a surrogate pair": (_rows({"text": "a \ud800 b"}, {"text": "b"}), "data.corpus", "no Unicode"),
    "half a surrogate pair, where tokens are counted": (
        _rows({"text": "a \ud800 b"}, {"text": "b"}, student=FEWER_TOKENS), "data.corpus", "no Unicode"
    ),
    "text that means a cut vocabulary's bucket": (
        _rows({"text": "the cat <|other|> sat"}, {"text": "b"}, student=FEWER_TOKENS), "data.corpus", "<|other|>"
    ),
    "a teacher whose vocabulary was cut": (_cut_teacher, "student.vocabulary", "cut its teacher"),
    "no document leaves room for an answer": (
        _rows(*[{"prompt": f"{i} the cat sat on a mat " * 9, "response": "b"} for i in range(4)],
              techniques=["alone", "hard"]),
        "techniques.1.generation",
        "Raise data.seq_len",
    ),
    "a correction that blows up": (
        _set(teacher__correct={"tokens": 1500, "micro_batch_size": 4, "lr": 1e30, "clip": 0.0}),
        "teacher.correct.lr",
        "Lower",
    ),
    "a section that is none": (_set(teacher__correct=True), "teacher.correct: got True", "`correct: {tokens: ...}`"),
    "a chooser with nothing to choose": (
        _set(student={"from": "teacher", "layers": [0, 1], "chooser": "even"}), "student.chooser", "nothing to choose"
    ),
    "a misspelt folder": (_set(student={"path": "{tmp}/nothere"}), "student.path", "there is no folder"),
    "keys of mixed kinds": (_set(student={2: 3, "layers": 3}), "student", "exactly one of"),
    "a vocabulary that is no number": (
        _set(student__config__vocab_size="x"), "student.config.vocab_size", "Leave it out"
    ),
    "an architecture that is no name": (_set(student__config__model_type=[1]), "student", "model_type is a name"),
    "somebody else's home": (_set(teacher__path="~nosuchuser1/x"), "teacher.path", "not expanded"),
    "misspelt model size": (_set(student__config__hiden_size=3), "student.config.hiden_size", "hidden_size"),
    "misspelt architecture": (_set(student__config__model_type="lama"), "student.config.model_type", "llama"),
    "a learning rate that blows up": (
        _set(training__lr=1e30, training__clip=0.0, techniques=["alone"]), "training.lr", "Lower"
    ),
}  # fmt: skip


DIVERGES = ("a correction that blows up", "a learning rate that blows up")


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["limbeck", *args])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize("name", BROKEN)
def test_each_is_one_line(
    name: str,
    tmp_path: Path,
    raw_recipe: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change, key, says = BROKEN[name]
    change(raw_recipe, tmp_path)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(raw_recipe).replace("{tmp}", str(tmp_path)))
    code, err = run(monkeypatch, capsys, "run", str(tmp_path / "r.yaml"))
    assert code == (3 if name in DIVERGES else 2)
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1
    assert lines[0].startswith("limbeck: ")
    assert key in lines[0]
    assert says in lines[0]
    assert len(lines[0]) < 420


AT_CHECK = [
    name
    for name, (_, key, _) in BROKEN.items()
    # The rest is known only once documents are read (and models of them trained).
    if name in ("empty corpus", "blank corpus")
    or (
        not key.startswith(("data.corpus: ", "data.corpus.0: "))
        and name
        not in {
            *DIVERGES,
            "one-document corpus",
            "separator that never comes",
            "not UTF-8",
            "half a surrogate pair",
            "half a surrogate pair, where tokens are counted",
            "text that means a cut vocabulary's bucket",
            "no document leaves room for an answer",
            # `check` reads no weights.
            "teacher of NaN",
            "teacher of NaN at one token",
        }
    )
]


@pytest.mark.parametrize("name", AT_CHECK)
def test_check_refuses_what_run_does(
    name: str,
    tmp_path: Path,
    raw_recipe: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change, key, says = BROKEN[name]
    change(raw_recipe, tmp_path)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(raw_recipe).replace("{tmp}", str(tmp_path)))
    there = sorted(tmp_path.rglob("*"))
    code, err = run(monkeypatch, capsys, "check", str(tmp_path / "r.yaml"))
    assert code == 2
    assert key in err
    assert says in err
    assert sorted(tmp_path.rglob("*")) == there  # and leaves nothing behind


def test_usage_errors_are_one_line_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["run"], ["rum"], ["run", "x.yaml", "--nosuch"], ["run", "/no/such.yaml"], ["run", "/tmp"]):
        code, err = run(monkeypatch, capsys, *args)
        assert code == 2
        assert len(err.strip().splitlines()) == 1


def test_a_full_disk_is_one_line_and_loses_nothing(
    tmp_path: Path,
    raw_recipe: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raw_recipe["techniques"] = ["alone"]
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(raw_recipe))
    import limbeck.training.checkpoint as checkpoint

    real, saves = checkpoint.save_file, []

    def full(tensors: Any, path: Path) -> None:
        saves.append(path)
        if len(saves) == 5:  # in the middle of the second checkpoint
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    code, err = run(monkeypatch, capsys, "run", str(tmp_path / "r.yaml"))
    assert code == 4
    assert "No space left on device" in err
    assert "Free space" in err
    assert len(err.strip().splitlines()) == 1
    kept = [p.name for p in (tmp_path / "run/arms/alone-seed0/checkpoints").iterdir() if not p.name.startswith(".")]
    assert len(kept) >= 1
    monkeypatch.setattr("sys.argv", ["limbeck", "run", str(tmp_path / "r.yaml"), "--quiet"])
    cli.main()
    assert (tmp_path / "run/report.html").exists()


@pytest.mark.parametrize(
    "args",
    [
        ["run", "/no/such.yaml", "--debug"],
        ["--debug", "run", "/no/such.yaml"],
        ["run", "--debug", "/no/such.yaml", "training.lr=1"],
        ["check", "/no/such.yaml", "--debug"],
        ["chat", "/no/such", "--debug", "--ask", "a"],
    ],
    ids=" ".join,
)
def test_debug_shows_where(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["limbeck", *args])
    with pytest.raises(RecipeError, match="/no/such"):
        cli.main()


def test_debug_as_a_value_is_a_value(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, err = run(monkeypatch, capsys, "chat", "/no/such", "--ask=--debug")
    assert code == 2
    assert "Traceback" not in err


def test_every_kind_of_end_has_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ends: list[tuple[BaseException, int, str]] = [
        (RecipeError("x"), 2, "x"),
        (InputError("x"), 2, "x"),
        (RunFolderError("x"), 2, "x"),
        (DivergedError("x"), 3, "x"),
        (MachineError("x"), 4, "x"),
        (OSError(errno.ENOSPC, "full", "/disk"), 4, "full (/disk). Free space"),
        (PermissionError(errno.EACCES, "denied", "/disk"), 4, "denied (/disk). Check permissions"),
        (ConnectionError("the hub does not answer"), 4, "the hub does not answer. Run it again"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ]
    for error, code, says in ends:

        def fails(*_: Any, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr("limbeck.recipe.load_recipe", fails)
        found, err = run(monkeypatch, capsys, "check", "r.yaml")
        assert found == code, error
        assert says in err
        assert len(err.strip().splitlines()) == 1
    epilog = cli.app.info.epilog or ""
    assert all(f"{code} " in epilog for code in {0, 1, *(code for _, code, _ in ends)})

    def bug(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("limbeck.recipe.load_recipe", bug)
    with pytest.raises(ZeroDivisionError):  # keeps its traceback; Python exits with 1
        cli.main()


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m limbeck schema | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout == "{"
    assert done.stderr == ""


def test_a_lack_of_memory_is_one_line(
    tmp_path: Path,
    raw_recipe: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import torch

    from limbeck.pipeline.shared import fit

    def too_much(*_: Any, **__: Any) -> None:
        torch.empty(2**60)

    monkeypatch.setattr(fit, "train", too_much)
    raw_recipe["techniques"] = ["alone"]
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(raw_recipe))
    code, err = run(monkeypatch, capsys, "run", str(tmp_path / "r.yaml"))
    assert code == 4
    assert "training.micro_batch_size: there is not enough memory" in err
    assert len(err.strip().splitlines()) == 1
