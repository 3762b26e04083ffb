"""`limbeck check`: what is proven once and kept, what is looked at every time, and what a run is said to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck.commands.checking import look as looking
from limbeck.commands.checking.look import look
from limbeck.commands.checking.plan import Plan, plan_of
from limbeck.commands.checking.show import WIDTH, as_json, show_plan
from limbeck.errors import InputError, LimbeckError, RecipeError
from limbeck.files import cache_folder, write_whole
from limbeck.pipeline import build
from limbeck.pipeline.beforehand import proofs
from limbeck.pipeline.beforehand.estimates import SMALL_CORPUS, Labels, Sample, few_steps, sample_of
from limbeck.pipeline.beforehand.proofs import fingerprint_of, keep_proof, proof_key, read_proof
from limbeck.recipe import Recipe, parse_recipe

Change = Callable[[Path, dict[str, Any]], None]


@pytest.fixture
def model(tmp_path: Path, teacher_folder: Path) -> Path:
    """The teacher's folder, to be changed."""
    return Path(shutil.copytree(teacher_folder, tmp_path / "model"))


@pytest.fixture
def raw(tmp_path: Path, raw_recipe: dict[str, Any], model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(proofs, "cache_folder", cache_folder)
    raw_recipe["teacher"] = {"path": str(model)}
    raw_recipe["student"] = {"from": "teacher", "ffn": 32}
    raw_recipe["techniques"] = ["alone", "soft"]
    return raw_recipe


def key_of(raw: dict[str, Any]) -> str | None:
    recipe = parse_recipe(raw)
    return looking._key(recipe, sample_of(recipe.data), [])


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "proofs").glob("*.json"))


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def write(file: Path, text: str) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)


def append(file: Path, text: str) -> None:
    file.write_text(file.read_text() + text)


CHANGES: dict[str, Change] = {
    "the configuration": lambda model, raw: edit(model / "config.json", "{", "{ "),
    "a weight file's header": lambda model, raw: flip(model / "model.safetensors", 20),
    "a weight file's size": lambda model, raw: os.truncate(model / "model.safetensors", 5000),
    "the tokenizer": lambda model, raw: flip(model / "tokenizer.json", 40),
    "a file that is new": lambda model, raw: write(model / "chat_template.jinja", "{{ messages }}"),
    "one in a folder": lambda model, raw: write(model / "additional_chat_templates" / "tools.jinja", "{{ messages }}"),
    "a file that is gone": lambda model, raw: (model / "tokenizer_config.json").unlink(),
    "a technique": lambda model, raw: raw.update(techniques=["alone", "soft", "co"]),
    "the cut": lambda model, raw: raw.update(student={"from": "teacher", "ffn": 48}),
    "the length of rows": lambda model, raw: raw["data"].update(seq_len=48),
    "checkpointing": lambda model, raw: raw["training"].update(gradient_checkpointing=True),
    "a document": lambda model, raw: edit(Path(raw["data"]["corpus"][0]["text"]), "cat", "cow"),
    "the last document": lambda model, raw: append(Path(raw["data"]["corpus"][0]["text"]), "\n\nAnd one more."),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_whatever_a_proof_depends_on_is_in_its_key(raw: dict[str, Any], model: Path, change: Change) -> None:
    before = key_of(raw)
    assert before is not None
    assert before == key_of(raw)
    change(model, raw)
    assert key_of(raw) not in (before, None)


@pytest.mark.parametrize("name", ["torch", "transformers", "tokenizers"])
def test_another_version_is_another_key(raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before, version = key_of(raw), metadata.version
    monkeypatch.setattr(metadata, "version", lambda asked: "0.1" if asked == name else version(asked))
    assert key_of(raw) not in (before, None)


def test_another_limbeck_is_another_key(raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before, ours = key_of(raw), proofs._source()
    copied = Path(shutil.copytree(Path(proofs.__file__).parents[2], tmp_path / "limbeck"))
    monkeypatch.setattr(proofs, "__file__", str(copied / "pipeline" / "beforehand" / "proofs.py"))
    assert proofs._source() == ours
    with (copied / "models" / "proof.py").open("a") as file:
        file.write("\n")
    assert key_of(raw) not in (before, None)


def test_what_no_proof_depends_on_is_not_in_its_key(raw: dict[str, Any], model: Path) -> None:
    before = key_of(raw)
    raw["training"].update(tokens=9_000, lr=3e-4, micro_batch_size=2)
    raw.update(title="another", seeds=[1, 2], run="elsewhere", jobs=2)
    raw["data"]["heldout"] = 0.1
    raw["evaluation"]["samples"] = 1
    flip(model / "model.safetensors", -1)  # a weight: they are never read
    assert key_of(raw) == before


def test_of_a_model_on_the_hub_nothing_is_kept(raw: dict[str, Any]) -> None:
    raw["teacher"] = {"path": "some/model"}
    assert key_of(raw) is None


def test_of_code_that_a_model_brings_nothing_is_kept(raw: dict[str, Any]) -> None:
    raw["teacher"]["trust_remote_code"] = True
    assert key_of(raw) is None


def test_the_base_of_an_adapter_is_in_the_key(tmp_path: Path, raw: dict[str, Any], model: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model)}))
    raw["teacher"] = {"path": str(adapter)}
    before = key_of(raw)
    edit(model / "config.json", "{", "{ ")
    assert key_of(raw) not in (before, None)
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/base"}))
    assert key_of(raw) is None


def test_a_file_that_any_section_names_is_in_the_key(tmp_path: Path) -> None:
    """Also of a section that was not there when this was written."""
    file = tmp_path / "store.json"
    file.write_text("a")
    before = proof_key({"signals": {"store": str(file)}}, [], [])
    file.write_text("b")
    assert proof_key({"signals": {"store": str(file)}}, [], []) not in (before, None)


def test_a_large_file_is_known_by_its_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proofs, "HASHED", 100)
    monkeypatch.setattr(proofs, "BEGINNING", 10)
    (tmp_path / "weights.gguf").write_bytes(bytes(200))
    before = fingerprint_of(tmp_path)
    assert fingerprint_of(tmp_path) == before
    content = bytearray(200)
    content[150] = 1
    (tmp_path / "weights.gguf").write_bytes(content)
    os.utime(tmp_path / "weights.gguf", ns=(0, 0))
    assert fingerprint_of(tmp_path) != before


# ------------------------------------------------------------------------------------- the cache


def no_check(*args: Any) -> Any:
    raise AssertionError("it was proven before")


def test_what_was_proven_is_not_proven_again(
    tmp_path: Path, raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = look(parse_recipe(raw))
    assert len(kept(tmp_path)) == 1
    monkeypatch.setattr(build, "check", no_check)
    assert look(parse_recipe(raw)) == first
    raw["training"]["tokens"] = 100_000
    more = look(parse_recipe(raw))
    assert any("which teach little" in line for line in first.warnings)
    assert not any("which teach little" in line for line in more.warnings)


@pytest.mark.parametrize("how", ["cut", "a byte", "emptied", "another's"])
def test_a_torn_proof_is_made_again(tmp_path: Path, raw: dict[str, Any], how: str) -> None:
    first = look(parse_recipe(raw))
    (file,) = kept(tmp_path)
    whole = file.read_text()
    torn = {
        "cut": whole[: len(whole) // 2],
        "a byte": whole.replace('"teacher": ', '"teacher": 1', 1),
        "emptied": "",
        "another's": "[1]",
    }
    assert torn[how] != whole
    file.write_text(torn[how])
    assert read_proof(key_of(raw) or "") is None
    assert look(parse_recipe(raw)) == first
    assert file.read_text() == whole


def test_a_folder_that_was_made_of_a_model_is_read_again(tmp_path: Path, raw: dict[str, Any], model: Path) -> None:
    keep_proof("0" * 64, {"a": 1}, [model])
    assert read_proof("0" * 64) == {"a": 1}
    (model / "tokenizer.json").unlink()
    assert read_proof("0" * 64) is None
    shutil.rmtree(model)
    assert read_proof("0" * 64) is None


def test_few_proofs_are_kept(tmp_path: Path, raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proofs, "KEPT", 3)
    for number in range(5):
        keep_proof(f"{number:064}"[::-1], {"n": number}, [])
        os.utime(kept(tmp_path)[-1], ns=(number, number))
    assert len(kept(tmp_path)) == 3


def test_a_cache_that_cannot_be_written_costs_a_proof(
    tmp_path: Path, raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "file"))
    assert look(parse_recipe(raw)) == look(parse_recipe(raw))


def lack_a_tensor(model: Path, raw: dict[str, Any]) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, model / "model.safetensors", {"format": "pt"})


FAULTS: dict[str, tuple[Change, str]] = {
    "a tensor is gone": (lack_a_tensor, "lack model.norm.weight"),
    "the weights are torn": (lambda model, raw: os.truncate(model / "model.safetensors", 5000), "its header says"),
    "other sizes": (lambda model, raw: edit(model / "config.json", '"vocab_size": 320', '"vocab_size": 330'), "shape"),
    "no tokenizer": (lambda model, raw: (model / "tokenizer.json").unlink(), "tokenizer"),
    "no data": (lambda model, raw: Path(raw["data"]["corpus"][0]["text"]).unlink(), "data.corpus.0.text: there is no"),
    "a cut that cannot be": (lambda model, raw: raw.update(student={"from": "teacher", "ffn": 9_999}), "student.ffn"),
    "no model": (lambda model, raw: shutil.rmtree(model), "there is no folder"),
}


@pytest.mark.parametrize(("change", "said"), FAULTS.values(), ids=FAULTS.keys())
def test_no_proof_hides_a_fault(tmp_path: Path, raw: dict[str, Any], model: Path, change: Change, said: str) -> None:
    look(parse_recipe(raw))
    change(model, raw)
    for _ in range(2):  # an error is not kept
        with pytest.raises(LimbeckError, match=said):
            look(parse_recipe(raw))
    assert len(kept(tmp_path)) == 1


def test_a_folder_that_holds_other_things_is_refused(tmp_path: Path, raw: dict[str, Any]) -> None:
    look(parse_recipe(raw))
    raw["run"] = str(tmp_path)
    with pytest.raises(LimbeckError, match="other things in it"):
        look(parse_recipe(raw))


def test_the_second_check_imports_no_torch(tmp_path: Path, raw: dict[str, Any]) -> None:
    seen = look(parse_recipe(raw))
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(raw))
    code = (
        "import sys, limbeck.cli; limbeck.cli.main(); "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "check", str(tmp_path / "r.yaml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert f"{seen.parameters['teacher']:,} parameters" in done.stdout
    assert done.stderr.endswith("r.yaml is right: 2 techniques, 1 student, 1 seed\n")


# -------------------------------------------------------------------------------------- the plan


def planned(raw: dict[str, Any]) -> Plan:
    recipe = parse_recipe(raw)
    return plan_of(recipe, look(recipe))


def test_a_small_corpus_is_counted(raw: dict[str, Any]) -> None:
    plan = planned(raw)
    assert plan.data[0].startswith("80 documents: ")
    assert "labels" in plan.data[0]
    assert not any("epochs" in warning for warning in plan.warnings)


def test_too_many_epochs_are_said(raw: dict[str, Any]) -> None:
    raw["training"]["tokens"] = 500_000_000
    (warning,) = [line for line in planned(raw).warnings if "epochs" in line]
    assert warning.startswith("training.tokens: 500,000,000 tokens of ")
    assert "at least" not in warning
    raw["techniques"] = [{"kind": "hard", "generation": {"batch_size": 8}}]  # it learns what its teacher writes
    assert not [line for line in planned(raw).warnings if "epochs" in line]


def test_of_a_large_corpus_the_labels_are_bounded(tmp_path: Path, raw: dict[str, Any]) -> None:
    text = tmp_path / "large.txt"
    text.write_text("\n\n".join(f"Line {n} of a text. It goes on." for n in range(12_000)))
    raw["data"]["corpus"] = [{"text": str(text), "separator": "\n\n"}]
    data = parse_recipe(raw).data
    sample = sample_of(data)
    assert not sample.whole
    assert sample.n_bytes == text.stat().st_size > SMALL_CORPUS
    labels = Labels.of(sample, (20, 400, 400), data)
    assert not labels.exact
    assert labels.to_train is not None
    assert labels.to_train >= 0.8 * 12_000 * 18
    raw["training"]["tokens"] = 500_000_000
    (warning,) = [line for line in planned(raw).warnings if "epochs" in line]
    assert "of at most" in warning
    assert "at least" in warning


def test_compressed_files_say_nothing_of_their_text(raw: dict[str, Any]) -> None:
    data = parse_recipe(raw).data
    labels = Labels.of(Sample([], False, None), (20, 400, 100), data)
    assert labels.to_train is None
    assert labels.too_many(10**12, "training") == []
    training = parse_recipe(raw).training.model_copy(update={"tokens": 1_000})
    packed = data.model_copy(update={"seq_len": 32, "pack": True})
    # Four rows of 32 tokens, of which a quarter are labels.
    assert labels.steps(training, packed) == 32
    # One document a row: 20 tokens, of which 5 are labels.
    apart = packed.model_copy(update={"pack": False})
    assert labels.steps(training, apart) == 50
    (warning,) = few_steps(training.model_copy(update={"tokens": 100}), apart, labels)
    assert "about 5 steps of 4 rows" in warning
    assert few_steps(training.model_copy(update={"tokens": 10_000}), apart, labels) == []


def test_parameters_are_those_of_the_models(raw: dict[str, Any], model: Path) -> None:
    from transformers import AutoModelForCausalLM

    from limbeck.pruning.depth import cut_depth

    teacher = AutoModelForCausalLM.from_pretrained(model)
    raw["student"] = {"from": "teacher", "layers": 1, "keep_ends": False}
    seen = look(parse_recipe(raw))
    assert seen.parameters["teacher"] == teacher.num_parameters()
    assert seen.parameters["student"] == cut_depth(teacher, [0]).num_parameters()


def test_parameters_of_a_model_follow_a_tokenizer_that_is_still_to_be_trained(
    raw: dict[str, Any], llama: dict[str, Any]
) -> None:
    from limbeck.models.load import load_model
    from limbeck.models.tokenizer import train_tokenizer
    from limbeck.recipe import ConfigModel

    for tied in (True, False):
        config = {**llama, "tie_word_embeddings": tied}
        raw["teacher"] = {"config": config, "pretraining": {"tokens": 1_000}}
        raw["student"] = {"config": llama}
        raw["tokenizer"] = {"train": {"vocab_size": 300}}
        text = ["".join(chr(0x4E00 + n) for n in range(400))] * 3
        exact = load_model(ConfigModel(config=config), train_tokenizer(text, 300))
        assert exact.rows == 300
        assert look(parse_recipe(raw)).parameters["teacher"] == exact.n_parameters()


def test_a_plan_fits_a_terminal(tmp_path: Path, raw: dict[str, Any], llama: dict[str, Any]) -> None:
    raw["data"]["corpus"] *= 2
    raw.pop("student")
    raw["students"] = {
        "a-rather-long-name": {"from": "teacher", "ffn": 32, "layers": [0, 1], "heads": 2},
        "b": {"config": llama},
    }
    plan = planned(raw)
    lines = list(show_plan(plan))
    assert all(len(line) <= WIDTH or "/" in line for line in lines)  # a path stays whole
    text = "\n".join(lines)
    for said in ("teacher ", "a-rather-long-name ", "layers 0, 1", "training ", "memory ", "disk ", ": new"):
        assert said in " ".join(text.split()) + " "
    assert json.loads(as_json(plan))["models"].keys() == {"teacher", "a-rather-long-name", "b"}


def test_what_a_run_folder_keeps_is_said(tmp_path: Path, raw: dict[str, Any]) -> None:
    run = tmp_path / "run"
    write_whole(run / "stages" / "machine.json", "{}")
    write_whole(run / "recipe.yaml", "")
    write_whole(run / "run.json", "[]")
    plan = planned(raw)
    assert sum(plan.stages.values()) == len(build.build(parse_recipe(raw)))
    assert " ".join("\n".join(show_plan(plan)).split()).endswith("0 stages kept, 11 to run")


def test_a_missing_source_is_told_before_anything_is_imported(raw: dict[str, Any]) -> None:
    raw["data"]["corpus"] = [{"text": "/no/such/file.txt"}]
    with pytest.raises((RecipeError, InputError), match=r"^data\.corpus\.0\.text: there is no"):
        look(parse_recipe(raw))
    assert isinstance(parse_recipe(raw), Recipe)
