"""Stored signals, the whole way on toys: captured once, read by many, and never mixed up."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.commands.capture import capture
from limbeck.commands.checking.look import look
from limbeck.commands.checking.plan import plan_of
from limbeck.commands.checking.show import show_plan
from limbeck.commands.run import run
from limbeck.display import Display
from limbeck.errors import LimbeckError, RecipeError, StoreError
from limbeck.models.folders import saved
from limbeck.pipeline.build import build
from limbeck.pipeline.shared.base import pool
from limbeck.pipeline.stages.capture import Capture
from limbeck.pipeline.stages.train import Train
from limbeck.recipe import load_recipe, parse_recipe
from limbeck.signals.store import Store
from tests.conftest import LLAMA, story
from tests.e2e.test_run import limbeck, students, write

Loads = Callable[[], int]


@pytest.fixture(scope="session")
def sharp_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A toy teacher whose distributions are far from uniform."""
    from limbeck.models.folders.save import save_model
    from limbeck.models.load import load_model
    from limbeck.recipe import ConfigModel

    folder = tmp_path_factory.mktemp("models") / "sharp"
    lm = load_model(ConfigModel(config={**LLAMA, "hidden_size": 48, "max_position_embeddings": 512}), tokenizer, seed=7)
    with torch.no_grad():
        lm.head().weight_VD.mul_(15)
    save_model(lm, folder)
    return folder


@pytest.fixture
def raw(raw_recipe: dict[str, Any], sharp_folder: Path, tmp_path: Path) -> dict[str, Any]:
    raw_recipe["run"] = str(tmp_path / "runs" / "one")
    raw_recipe["teacher"]["path"] = str(sharp_folder)
    raw_recipe["techniques"] = [{"kind": "soft", "signals": "stored"}]
    raw_recipe["training"]["tokens"] = 600
    raw_recipe["evaluation"].update(samples=0, speed_tokens=0)
    return raw_recipe


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch, sharp_folder: Path) -> Loads:
    """How often the teacher's weights were read since it was asked last."""
    read: list[str] = []
    whole = saved._whole
    monkeypatch.setattr(saved, "_whole", lambda spec, said=None: read.append(spec.path) or whole(spec, said))
    pool.cache_clear()

    def count() -> int:
        n = read.count(str(sharp_folder))
        read.clear()
        pool.cache_clear()
        return n

    return count


def go(raw: dict[str, Any], **changed: Any) -> Any:
    return run(parse_recipe({**raw, **changed}), Display(quiet=True))


def captured(raw: dict[str, Any], **changed: Any) -> list[dict[str, Any]]:
    """Results of the stages that capture."""
    recipe = parse_recipe({**raw, **changed})
    capture(recipe, Display(quiet=True))
    names = [stage.name for stage in build(recipe) if isinstance(stage, Capture)]
    return [result(recipe.run, name) for name in names]


def result(folder: str | Path, stage: str) -> dict[str, Any]:
    return dict(json.loads((Path(folder) / "stages" / f"{stage}.json").read_text())["result"])


def stores(raw: dict[str, Any]) -> list[Path]:
    return sorted((Path(raw["run"]).parent / "signals").iterdir())


# ----------------------------------------------------------------------- one store, many readers


def test_arms_seeds_and_epochs_learn_from_one_store_and_no_teacher(raw: dict[str, Any], loads: Loads) -> None:
    half = {"kind": "soft", "name": "half", "kd_weight": 0.5, "ce_weight": 0.5, "signals": "stored"}
    raw["techniques"] = ["alone", {"kind": "soft", "signals": "stored"}, half]
    raw["seeds"] = [0, 1]
    raw["training"]["tokens"] = 4000  # more than two epochs
    (facts,) = captured(raw)
    assert facts["captured"] == facts["positions"] > 1000
    assert loads() > 0
    # Whatever trains reads weights of its own, and none of the teacher's.
    recipe = parse_recipe(raw)
    from limbeck.commands.run import carry_out

    stages = build(recipe)
    trained = [stage.name for stage in stages if isinstance(stage, Train)]
    results = carry_out(recipe, stages, Display(quiet=True), wanted=trained)
    assert loads() == 0
    assert len(trained) == 6
    for name in trained:
        assert results[name]["tokens"] >= 4000
        if "alone" not in name:
            store = results[name]["store"]
            assert 4 < store["bytes_a_token"] < 80
            tokens = results[name]["tokens"] / results[name]["steps"]
            assert store["bytes_a_step"] == pytest.approx(store["bytes_a_token"] * tokens, rel=0.01)
            assert any("of stored signals" in note for note in results[name]["notes"])
    go(raw)  # measures: this takes the teacher
    assert loads() == 1
    assert len(stores(raw)) == 1


def test_rows_through_a_store_train_as_the_live_teacher(raw: dict[str, Any], sharp_folder: Path) -> None:
    """All of a small vocabulary is kept: only rounding is left."""
    kept = {"scheme": "top_k", "k": 400, "context": "row"}
    raw["techniques"] = [{"kind": "soft", "name": "live"}, {"kind": "soft", "name": "store", "signals": kept}]
    go(raw)
    live, store = (_metrics(raw, name) for name in ("live", "store"))
    assert [line["step"] for line in live] == [line["step"] for line in store]
    for a, b in zip(live, store, strict=True):
        assert b["loss/student<teacher"] == pytest.approx(a["loss/student<teacher"], rel=1e-3)
        assert b["loss/student<labels"] == pytest.approx(a["loss/student<labels"], rel=1e-3)
    assert live[0]["loss/student<teacher"] > 1


def _metrics(raw: dict[str, Any], arm: str) -> list[dict[str, Any]]:
    path = Path(raw["run"]) / "arms" / f"{arm}-seed0" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_students_with_fewer_tokens_learn_from_a_store(raw: dict[str, Any]) -> None:
    raw["student"] = {"from": "teacher", "layers": 1, "keep_ends": False, "vocabulary": {"min_count": 12}}
    kept = {"scheme": "top_k", "k": 400, "context": "row"}
    raw["techniques"] = [{"kind": "soft", "name": "live"}, {"kind": "soft", "name": "store", "signals": kept}]
    go(raw)
    for a, b in zip(_metrics(raw, "live"), _metrics(raw, "store"), strict=True):
        assert b["loss/student<teacher"] == pytest.approx(a["loss/student<teacher"], rel=2e-3, abs=1e-5)


def test_text_that_the_teacher_wrote_is_captured_too(raw: dict[str, Any], loads: Loads) -> None:
    generation = {"batch_size": 8, "tokens": 300}
    raw["techniques"] = [
        {"kind": "soft", "name": "mixed", "generation": generation, "signals": "stored"},
        {"kind": "soft", "name": "other", "generation": {**generation, "seed": 1}, "signals": "stored"},
        {"kind": "soft", "name": "live", "generation": generation},
    ]
    go(raw)
    assert len(stores(raw)) == 2  # documents that are only numbered never share a store
    assert _metrics(raw, "mixed")[-1]["loss/student<teacher"] == pytest.approx(
        _metrics(raw, "live")[-1]["loss/student<teacher"], abs=0.5
    )


# ----------------------------------------------------------- what was paid for is not paid again


def test_what_a_store_holds_is_not_captured_again(raw: dict[str, Any], loads: Loads, corpus_file: Path) -> None:
    raw["training"]["tokens"] = 4000
    (first,) = captured(raw)
    assert loads() > 0

    numbers = count()

    def again(**changed: Any) -> dict[str, Any]:
        return captured(raw, **{"run": str(Path(raw["run"]).parent / f"again-{next(numbers)}"), **changed})[0]

    # Another run, another row length, other seeds and techniques: nothing is captured, whatever the rows are.
    data = {**raw["data"], "seq_len": 20, "pack": False}
    for changed in ({}, {"data": data}, {"seeds": [3, 4]}, {"training": {**raw["training"], "tokens": 9000}}):
        found = again(**changed)
        assert found["captured"] == 0
        assert found["signals"] == first["signals"]
    assert loads() <= 4  # the teacher's own stage, which names its weights; never to capture

    # One more document: it alone is captured.
    text = corpus_file.read_text() + "\n\n" + story(901, 40)
    (corpus_file.parent / "more.txt").write_text(text)
    source = {"text": str(corpus_file.parent / "more.txt"), "separator": "\n\n"}
    found = again(data={**raw["data"], "corpus": [source]})
    assert 0 < found["captured"] < 200
    assert len(stores(raw)) == 1

    # Rows are another matter: what the live teacher sees changes with their length.
    row = [{"kind": "soft", "signals": {"context": "row"}}]
    assert again(techniques=row)["captured"] > 1000
    assert again(techniques=row)["captured"] == 0
    assert again(techniques=row, data=data)["captured"] > 500
    assert len(stores(raw)) == 2


def test_seeds_that_read_other_rows_are_captured_before_they_train(raw: dict[str, Any]) -> None:
    """Less than an epoch: each seed reads rows of its own."""
    kept = [{"kind": "soft", "signals": {"context": "row"}}]
    (one,) = captured(raw, techniques=kept)
    (both,) = captured(raw, techniques=kept, seeds=[0, 1])
    assert both["positions"] > one["positions"]
    assert both["captured"] == both["positions"] - one["positions"]
    go(raw, techniques=kept, seeds=[0, 1])


def test_what_is_kept_is_not_said_to_be_captured(raw: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for _ in range(2):
        capture(parse_recipe(raw), Display())
        said.append(" ".join(capsys.readouterr().out.split()))
    assert "captured)" in said[0]
    assert "(all were there)" in said[1]
    assert "captured)" not in said[1]
    assert all("in whole spans of documents, one arm reads" in each for each in said)


def test_what_is_gone_is_captured_again(raw: dict[str, Any]) -> None:
    (first,) = captured(raw)
    (store,) = stores(raw)
    for shard in store.glob("*.arrow"):
        shard.unlink()
    with pytest.raises(StoreError, match=r"is missing.*repair"):
        captured(raw)
    shutil.rmtree(store)
    (again,) = captured(raw)
    assert again["captured"] == first["captured"]


# ------------------------------------------------------------------------------------------- auto


def test_auto_stores_what_would_be_asked_several_times(raw: dict[str, Any]) -> None:
    raw["techniques"] = [{"kind": "soft", "signals": "auto"}]
    (once,) = captured(raw)
    assert once["signals"] is None
    assert "auto: live" in once["notes"][0]
    go(raw)
    assert not (Path(raw["run"]).parent / "signals").exists()
    # A run keeps what was decided, so that seeds can be added.
    go(raw, seeds=[0, 1, 2])
    other = str(Path(raw["run"]).parent / "epochs")
    (many,) = captured(raw, run=other, training={**raw["training"], "tokens": 6000})
    assert many["signals"] is not None
    assert "auto: stored" in many["notes"][0]


def test_auto_is_live_where_a_store_cannot_serve(raw: dict[str, Any]) -> None:
    hidden = {"kind": "soft", "signals": "auto", "hidden": {}}
    reverse = {"kind": "soft", "name": "reverse", "signals": "auto", "divergence": "reverse_kl"}
    recipe = parse_recipe({**raw, "techniques": [hidden, reverse]})
    assert not [stage for stage in build(recipe) if isinstance(stage, Capture)]


# ----------------------------------------------------------------------------------------- kills


SLOW = """
import time
import limbeck.signals.capture as own
own.FLUSH_SECONDS, own.BATCH_TOKENS = 0.0, 64
signals_of = own.signals_of
def slow(*args):
    time.sleep(0.04)
    return signals_of(*args)
own.signals_of = slow
"""
"""A capture that takes its time, in small shards."""

CAPTURE = f"""
import json, sys
{SLOW}
from limbeck.commands.capture import capture
from limbeck.display import Display
from limbeck.recipe import load_recipe, parse_recipe
capture(parse_recipe(json.loads(sys.argv[1])), Display(quiet=True))
"""


def test_a_capture_that_is_killed_goes_on(raw: dict[str, Any]) -> None:
    """At several moments: every span is there once at the end, and none that was in a shard is captured again."""
    raw["training"]["tokens"] = 4000
    folder = Path(raw["run"]).parent / "signals"
    whole = {**raw, "run": str(Path(raw["run"]).parent / "whole"), "techniques": [_in(raw, "elsewhere")]}
    (expected,) = captured(whole)
    killed, shards = 0, 0
    while killed < 3:
        process = subprocess.Popen([sys.executable, "-c", CAPTURE, json.dumps(raw)])
        while process.poll() is None and len(list(folder.glob("*/*.arrow"))) < shards + 2:
            time.sleep(0.01)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed, shards = killed + 1, len(list(folder.glob("*/*.arrow")))
    assert killed >= 2
    (found,) = captured(raw)
    assert found["positions"] == expected["positions"]
    assert found["captured"] < expected["captured"]
    (store,) = stores(raw)
    spans = [s.span for s in Store(store).signals()]
    other = [s.span for s in Store(Path(next(iter((Path(raw["run"]).parent / "elsewhere").iterdir())))).signals()]
    assert sorted(spans, key=str) == sorted(other, key=str)
    assert sum(len(s.encoded.counts) for s in Store(store).signals()) == sum(span.length for span in spans)
    rows = sum(line.rows for line in Store(store).shards)
    assert rows - len(spans) <= killed * 64  # at most what one shard holds was made twice
    go(raw)


def _in(raw: dict[str, Any], name: str) -> dict[str, Any]:
    return {"kind": "soft", "signals": {"folder": str(Path(raw["run"]).parent / name)}}


def test_a_training_from_a_store_that_is_killed_ends_with_the_same_bytes(tmp_path: Path, raw: dict[str, Any]) -> None:
    raw["training"].update(tokens=3000)
    whole = write(raw, tmp_path / "r.yaml")
    limbeck(whole)
    expected = students(Path(raw["run"]))
    other = tmp_path / "runs" / "two"
    arguments = [sys.executable, "-m", "limbeck", "run", str(whole), f"run={other}", "--quiet"]
    process = subprocess.Popen(arguments)
    checkpoints = other / "arms" / "soft-seed0" / "checkpoints"
    while process.poll() is None and not list(checkpoints.glob("step-*")):
        time.sleep(0.005)
    process.kill()
    process.wait()
    begun = checkpoints.exists()
    limbeck(whole, f"run={other}")
    assert students(other) == expected
    assert begun


# -------------------------------------------------------------------------------------- refusals


def test_signals_of_another_teacher_are_refused_before_training(raw: dict[str, Any], teacher_folder: Path) -> None:
    go(raw)
    (store,) = stores(raw)
    named = {"kind": "soft", "signals": {"folder": str(store)}}
    go(raw, run=str(store.parent.parent / "named"), techniques=[named])  # a store itself can be named
    run_folder = store.parent.parent / "two"

    def refused(**changed: Any) -> LimbeckError:
        with pytest.raises(LimbeckError) as caught:
            go(raw, **{"run": str(run_folder), "techniques": [named], **changed})
        assert not list(run_folder.glob("arms/*/metrics.jsonl"))
        shutil.rmtree(run_folder)
        return caught.value

    error = refused(teacher={"path": str(teacher_folder)})
    assert "another teacher" in error.line()
    assert str(store) in error.line()
    assert error.key == "techniques.0.signals.folder"
    assert "another scheme" in refused(techniques=[{**named, "temperature": 2.0}]).line()
    rows = {"kind": "soft", "signals": {"folder": str(store), "context": "row"}}
    assert "another context" in refused(techniques=[rows]).line()


def test_signals_of_another_tokenizer_are_refused(raw: dict[str, Any], tmp_path: Path, texts: list[str]) -> None:
    from limbeck.models.folders.save import save_model
    from limbeck.models.load import load_model
    from limbeck.models.tokenizer import train_tokenizer
    from limbeck.recipe import ConfigModel

    captured(raw)
    (store,) = stores(raw)
    other = load_model(ConfigModel(config=LLAMA), train_tokenizer(texts[:20], 300), seed=1)
    save_model(other, tmp_path / "other")
    named = [{"kind": "soft", "signals": {"folder": str(store)}}]
    with pytest.raises(StoreError, match=r"another (tokenizer|teacher)"):
        captured(raw, run=str(tmp_path / "runs" / "two"), teacher={"path": str(tmp_path / "other")}, techniques=named)


def test_a_lost_manifest_and_a_torn_line_are_told(raw: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    captured(raw)
    (store,) = stores(raw)
    manifest = store / "manifest.jsonl"
    lines = manifest.read_bytes()
    for torn in (lines + b'{"torn', lines[:-9]):  # whose shard was never named; and that of a shard
        manifest.write_bytes(torn)
        capture(parse_recipe(raw), Display())
        said = " ".join(capsys.readouterr().out.split())
        number = torn.count(b"\n") + 1
        assert f"line {number} of" in said
        assert "signals repair" in said
    manifest.unlink()
    shards = sorted(store.glob("*.arrow"))
    for changed in ({}, {"techniques": [{"kind": "soft", "signals": {"folder": str(store)}}]}):
        with pytest.raises(StoreError, match=r"of shards, and its manifest.jsonl is lost.*signals repair") as error:
            captured(raw, **changed)
        assert error.value.key == "techniques.0.signals.folder"
    assert sorted(store.glob("*.arrow")) == shards


def test_a_flipped_byte_stops_a_training_before_it_begins(raw: dict[str, Any]) -> None:
    captured(raw)
    shard = next(stores(raw)[0].glob("*.arrow"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(StoreError, match=rf"{shard.name}.*repair"):
        go(raw)
    assert not list(Path(raw["run"]).glob("arms/*/metrics.jsonl"))


@pytest.mark.parametrize(
    ("technique", "said"),
    [
        ({"hidden": {}, "signals": "stored"}, "stored signals hold no hidden states; write `signals: live`"),
        ({"signals": {"scheme": "top_k", "threshold": 0.1}}, "threshold is not read by the scheme 'top_k'"),
        ({"signals": {"context": "row", "window": 100}}, "the teacher reads rows"),
        ({"signals": "lives"}, "signals"),
        ({"signals": {"schema": "top_k"}}, "Did you mean `scheme`"),
        ({"signals": {"scheme": "topk"}}, "scheme"),
        ({"signals": {"threshold": 1.5}}, "less than 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(raw: dict[str, Any], technique: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe({**raw, "techniques": [{"kind": "soft", **technique}]})
    assert said in caught.value.line()
    assert caught.value.line().startswith("techniques.0")


def test_check_says_what_a_store_takes_and_what_it_cannot_teach(raw: dict[str, Any], tmp_path: Path) -> None:
    def checked(**technique: Any) -> Any:
        recipe = parse_recipe({**raw, "techniques": [{"kind": "soft", "signals": "stored", **technique}]})
        return plan_of(recipe, look(recipe))

    (line,) = checked().signals
    assert line.startswith("soft: threshold of documents, about 52 bytes a token: up to 31.2 kB, more where")
    assert str(tmp_path / "runs" / "signals") in line
    assert "signals    soft: threshold of documents" in "\n".join(show_plan(checked()))
    assert checked(signals="live").signals == []
    reverse = checked(divergence="reverse_kl").warnings
    assert any("reverse_kl is not linear in the teacher's probabilities" in line for line in reverse)
    assert not any("linear" in line for line in checked(divergence={"name": "skew_kl", "alpha": 0.0}).warnings)
    assert any("biased" in line for line in checked(signals={"scheme": "gemma"}).warnings)
    with pytest.raises(RecipeError, match="multinomial counts are no probabilities") as error:
        checked(signals={"scheme": "multinomial"}, divergence="jsd")
    assert error.value.key == "techniques.0.signals.scheme"
    with pytest.raises(RecipeError, match="the teacher reads 512 positions") as error:
        checked(signals={"window": 4096})
    assert error.value.key == "techniques.0.signals.window"
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="is a file") as error:
        checked(signals={"folder": str(tmp_path / "file" / "store")})
    assert error.value.key == "techniques.0.signals.folder"
    (tmp_path / "other" / "stages").mkdir(parents=True)
    other = tmp_path / "other"
    for folder, said in (
        (other, "in the run folder"),
        (other / "x" / "y", "in the run folder"),
        (Path("/proc/x"), "cannot be made"),
    ):
        with pytest.raises(RecipeError, match=said) as error:
            checked(signals={"folder": str(folder)})
        assert error.value.key == "techniques.0.signals.folder"
        assert error.value.fix


def test_a_live_teacher_is_left_out_of_what_a_run_is_known_by(raw: dict[str, Any]) -> None:
    """Runs that were begun before signals could be stored go on."""
    (technique,) = parse_recipe({**raw, "techniques": ["soft"]}).techniques
    assert "signals" not in technique.model_dump(mode="json")
    (kept,) = parse_recipe(raw).techniques
    assert kept.model_dump(mode="json")["signals"] == "stored"


# --------------------------------------------------------------------------------- command line


def test_workers_fill_one_store(tmp_path: Path, raw: dict[str, Any]) -> None:
    raw["training"]["tokens"] = 4000
    recipe = write(raw, tmp_path / "r.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "limbeck", "capture", str(recipe), "--workers", "2"],
        capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "capture signals, 1 of 2" in done.stdout
    assert "bytes/token" in done.stdout
    assert not (Path(raw["run"]) / "arms").exists()
    (store,) = stores(raw)
    opened = Store(store)
    assert len({line.worker for line in opened.shards}) == 2
    assert sum(line.rows for line in opened.shards) == len(opened)
    assert captured(raw)[0]["positions"] == opened.positions
    again = subprocess.run(
        [sys.executable, "-m", "limbeck", "capture", str(recipe), "techniques=[alone]"], capture_output=True, text=True
    )
    assert again.returncode == 2
    assert "no technique reads stored signals" in again.stderr


# ------------------------------------------------------------------------------------------ recipes


RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_recipes_are_right(path: Path) -> None:
    assert load_recipe(path).techniques


def test_the_example_of_a_store_runs(raw: dict[str, Any], corpus_file: Path) -> None:
    path = Path(__file__).parents[2] / "recipes" / "stored.yaml"
    small = {
        "run": raw["run"],
        "teacher": f"{{path: {raw['teacher']['path']}}}",
        "student": "{from: teacher, layers: 1, keep_ends: false}",
        "data.corpus": f'[{{text: {corpus_file}, separator: "\\n\\n"}}]',
        "data.heldout": "0.2",
        "data.seq_len": "32",
        "training.tokens": "500",
        "evaluation.max_documents": "5",
        "threads": "1",
        "jobs": "1",
    }
    recipe = load_recipe(path, [f"{key}={value}" for key, value in small.items()])
    report = run(recipe, Display(quiet=True))
    assert [row.technique for row in report.rows if row.technique] == ["alone", "live", "row", "document"]
    assert {store.name.rsplit("-", 1)[0] for store in stores(raw)} == {"threshold-row", "threshold-document"}


# ---------------------------------------------------------------------------- kills, two workers


@pytest.mark.slow
def test_a_capture_by_two_workers_is_killed_twenty_times(tmp_path: Path, raw: dict[str, Any]) -> None:
    """Every span is there once, checksums hold, and nothing is captured twice beyond a shard a worker."""
    raw["training"]["tokens"] = 4000
    raw["evaluation"]["max_documents"] = 5
    recipe, folder = write(raw, tmp_path / "r.yaml"), Path(raw["run"]).parent / "signals"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SLOW)
    paths = [str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    rng, killed = np.random.default_rng(0), 0
    for _ in range(20):
        command = [sys.executable, "-m", "limbeck", "capture", str(recipe), "--workers", "2", "--quiet"]
        shards = len(list(folder.glob("*/*.arrow")))
        process = subprocess.Popen(command, env=environment)
        while process.poll() is None and len(list(folder.glob("*/*.arrow"))) <= shards:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.1)
        killed += process.poll() is None
        process.kill()
        process.wait()
    assert killed >= 5
    (found,) = captured(raw)
    (store,) = stores(raw)
    opened = Store(store)
    spans = [each.span for each in opened.signals()]
    assert len(spans) == len(set(spans)) == len(opened)
    assert opened.positions - found["positions"] <= (killed + 1) * 2 * 64
    assert sum(int(np.count_nonzero(each.encoded.counts)) for each in opened.signals()) == found["positions"]
    checked = subprocess.run([sys.executable, "-m", "limbeck", "signals", "verify", str(store)], capture_output=True)
    assert checked.returncode == 0, checked.stderr
