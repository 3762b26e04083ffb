"""Soft labels from a teacher that can only be called: from a recipe to a student, against a real model on loopback."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.commands.capture import capture
from limbeck.commands.run import run
from limbeck.data.packing import IGNORED, Rows, collate
from limbeck.display import Display
from limbeck.errors import BudgetError, RecipeError, StoreError, TeacherGoneError
from limbeck.pipeline.build import check
from limbeck.pipeline.shared.base import open_text
from limbeck.pipeline.shared.fit import batches_of
from limbeck.recipe import parse_recipe
from limbeck.signals.store import Store
from limbeck.signals.store.manifest import FILE
from tests.servers.scoring import ScoringServer

K = 8


@pytest.fixture
def model(teacher_folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.float32).eval()


@pytest.fixture
def server(model: Any, tokenizer: Any) -> Iterator[ScoringServer]:
    with ScoringServer(model, tokenizer) as server:
        yield server


@pytest.fixture
def soft_recipe(raw_recipe: dict[str, Any], teacher_folder: Path) -> dict[str, Any]:
    return {
        **raw_recipe,
        "teacher": {"api": "http://127.0.0.1:9/v1", "model": "toy", "prices": {"input": 1.0, "output": 1.0}},
        "tokenizer": {"path": str(teacher_folder)},
        "techniques": [{"kind": "soft", "signals": {"scheme": "top_k", "k": K}}],
        "training": {**raw_recipe["training"], "tokens": 600},
        "evaluation": {**raw_recipe["evaluation"], "max_documents": 3, "samples": 0, "speed_tokens": 0},
    }


def at(raw: dict[str, Any], server: ScoringServer, **more: Any) -> dict[str, Any]:
    return {**raw, "teacher": {**raw["teacher"], "api": f"{server.url}/v1", **more}}


def go(raw: dict[str, Any]) -> Any:
    return run(parse_recipe(raw), Display(quiet=True), jobs=1)


def stage(raw: dict[str, Any], begins: str) -> dict[str, Any]:
    """The result of a stage of a run."""
    (path,) = (Path(raw["run"]) / "stages").glob(f"{begins}*.json")
    return dict(json.loads(path.read_text())["result"])


def stores(raw: dict[str, Any]) -> list[Path]:
    return [path.parent for path in sorted((Path(raw["run"]).parent / "signals").glob(f"*/{FILE}"))]


def test_from_a_server_to_a_student(
    soft_recipe: dict[str, Any], server: ScoringServer, raw_recipe: dict[str, Any]
) -> None:
    raw = at(soft_recipe, server)
    check(parse_recipe(raw))
    report = go(raw)
    assert {row.technique for row in report.rows} >= {"soft"}
    assert not any("messages" in body for body in server.bodies), "nothing is written, so no text is asked for"
    captured = stage(raw, "capture-")
    assert captured["positions"] == captured["captured"] > 400
    (folder,) = stores(raw)
    # Nothing is asked for again: in the same run, and in another.
    scored = server.scored
    go(raw)
    assert server.scored == scored
    other = {**raw, "run": f"{raw['run']}-again"}
    go(other)
    assert stage(other, "capture-")["captured"] == 0
    assert server.scored - scored < 2000, "more than the probe was asked"
    # The same weights in hand, the same scheme: the same student.
    local = {**soft_recipe, "teacher": raw_recipe["teacher"], "run": f"{raw['run']}-local"}
    local.pop("tokenizer")
    go(local)
    text = open_text(Path(raw["run"]))
    rows = Rows(text.train, raw["data"]["seq_len"], pack=True)
    read = batches_of(rows, parse_recipe(raw).training, 0).rows_read()
    batch = collate([rows[r] for r in read])
    assert batch.count() <= captured["positions"]  # spans are whole
    learned_BT = batch.labels_BT != IGNORED
    keys_N, offsets_N = batch.keys_BT[learned_BT].numpy().view(np.uint64), batch.offsets_BT[learned_BT].numpy()
    (theirs,) = (each for each in stores(raw) if each != folder)
    one, two = (Store(each).read(keys_N, offsets_N, None) for each in (folder, theirs))
    starts, places = np.cumsum(one.counts) - one.counts, np.cumsum(two.counts) - two.counts
    for n in range(len(one)):
        ours, theirs_n = (
            dict(zip(each.ids[at:to].tolist(), each.logprobs[at:to].tolist(), strict=True))
            for each, at, to in ((one, starts[n], starts[n] + one.counts[n]), (two, places[n], places[n] + K))
        )
        assert set(theirs_n) <= set(ours)
        assert all(abs(ours[token] - value) < 1e-2 for token, value in theirs_n.items())
    weights = [
        (Path(each["run"]) / "arms/soft-seed0/students/student/model.safetensors").read_bytes() for each in (raw, other)
    ]
    assert weights[0] == weights[1]


def test_the_server_may_be_gone_when_the_store_is_whole(
    soft_recipe: dict[str, Any], model: Any, tokenizer: Any
) -> None:
    with ScoringServer(model, tokenizer) as server:
        raw = at(soft_recipe, server)
        (line,) = capture(parse_recipe(raw), Display(quiet=True))
        assert "captured" in line
    seen = {**raw, "run": f"{raw['run']}-other"}
    go(seen)
    assert any("does not answer" in warning for warning in stage(seen, "probe-signals-")["warnings"])
    assert stage(seen, "capture-")["captured"] == 0
    longer = {**raw, "run": f"{raw['run']}-longer", "training": {**raw["training"], "tokens": 3000}}
    with pytest.raises(TeacherGoneError, match="does not answer"):
        go(longer)
    with pytest.raises(TeacherGoneError):
        go({**raw, "run": f"{raw['run']}-8", "techniques": [{"kind": "soft", "signals": {"scheme": "top_k", "k": 9}}]})


@pytest.mark.parametrize(
    ("more", "key", "said"),
    [
        ({"most": 5}, "techniques.0.signals.k", "gives at most 5"),
        ({"wrong": "null"}, "teacher.model", "does not give log-probabilities of a text"),
        ({"wrong": "later"}, "teacher.model", "shifted"),
        ({"window": 20}, "teacher.model", "context length"),
    ],
)
def test_a_server_that_reveals_too_little(
    more: dict[str, Any], key: str, said: str, soft_recipe: dict[str, Any], model: Any, tokenizer: Any
) -> None:
    with ScoringServer(model, tokenizer, **more) as server:
        raw = at(soft_recipe, server)
        with pytest.raises(RecipeError, match=said) as error:
            go(raw)
    assert (error.value.key or "").startswith(key)
    assert not stores(raw)


def test_settings_of_the_technique(soft_recipe: dict[str, Any], server: ScoringServer) -> None:
    hot = {**soft_recipe, "techniques": [{**soft_recipe["techniques"][0], "temperature": 2.0}]}
    with pytest.raises(RecipeError) as error:
        go(at(hot, server))
    assert error.value.key == "techniques.0.temperature"
    server.tempered = True
    go(at(hot, server))
    rows = {**soft_recipe["techniques"][0]["signals"], "context": "row"}
    long = {**soft_recipe, "techniques": [{"kind": "soft", "signals": rows}]}
    long["data"] = {**long["data"], "seq_len": 600}
    with pytest.raises(RecipeError, match="rows have 600 tokens") as error:
        go(at({**long, "run": f"{long['run']}-rows"}, server))
    assert error.value.key == "data.seq_len"


@pytest.mark.parametrize("signals", ["live", "stored", "auto", {"scheme": "threshold"}, {"scheme": "gemma"}])
def test_what_a_server_cannot_say_is_refused(signals: Any, soft_recipe: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="scheme: top_k") as error:
        parse_recipe({**soft_recipe, "techniques": [{"kind": "soft", "signals": signals}]})
    assert "techniques.0" in str(error.value)


def test_a_tokenizer_of_ones_own_is_refused(soft_recipe: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="the teacher's own tokens"):
        parse_recipe({**soft_recipe, "tokenizer": {"train": {"vocab_size": 300}}})


def test_another_model_behind_the_same_name(soft_recipe: dict[str, Any], server: ScoringServer, make_lm: Any) -> None:
    raw = at(soft_recipe, server)
    go(raw)
    server.model = make_lm(seed=9, hidden_size=48).model.eval()
    for weight in server.model.parameters():
        weight.data.mul_(4)
    with pytest.raises(StoreError, match="is another model") as error:
        go({**raw, "run": f"{raw['run']}-again"})
    assert error.value.key == "techniques.0.signals.folder"


def test_the_budget_holds_over_runs(soft_recipe: dict[str, Any], server: ScoringServer) -> None:
    raw = at(soft_recipe, server, budget={"tokens": 300}, concurrency=1)
    with pytest.raises(BudgetError) as error:
        go(raw)
    assert error.value.key == "teacher.budget.tokens"
    bought = server.scored
    (file,) = (Path(raw["run"]).parent / "journals").glob("*.signals.json")
    spent = json.loads(file.read_text())["tokens"]
    assert 200 < spent <= 300
    with pytest.raises(BudgetError):
        go(raw)
    assert server.scored - bought < 2000 + 100, "more was asked than the probe and what was left"
    assert json.loads(file.read_text())["tokens"] <= 300
    (folder,) = stores(raw)
    kept = Store(folder).positions
    assert kept > 100
    go({**raw, "teacher": {**raw["teacher"], "budget": {"tokens": 20_000}}})
    assert stage(raw, "capture-")["captured"] == stage(raw, "capture-")["positions"] - kept


@pytest.mark.slow
def test_text_of_the_teacher_is_scored_too(soft_recipe: dict[str, Any], server: ScoringServer, tmp_path: Path) -> None:
    """`soft` with `generation`: the server writes, and says afterwards what it thinks of what is learned."""
    rows = [{"prompt": f"the number {n} ?", "response": str(n)} for n in range(30)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    raw = at(soft_recipe, server)
    raw["data"] = {"corpus": [{"jsonl": str(tmp_path / "questions.jsonl")}], "heldout": 0.2, "seq_len": 64}
    generation = {"max_new_tokens": 8, "filters": {"decontaminate": None}}
    raw["techniques"] = [{**soft_recipe["techniques"][0], "generation": generation}]
    raw["training"] = {**raw["training"], "tokens": 300}
    go(raw)
    assert any("messages" in body for body in server.bodies)
    assert stage(raw, "capture-")["captured"] > 100


@pytest.mark.slow
@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGKILL])
def test_a_capture_that_was_interrupted_goes_on(
    with_signal: signal.Signals, soft_recipe: dict[str, Any], server: ScoringServer, tmp_path: Path
) -> None:
    """Ctrl-C keeps what was answered; a kill loses what was in no shard yet. Either way every span is there once."""
    raw = at(soft_recipe, server, concurrency=2)
    (tmp_path / "recipe.yaml").write_text(json.dumps(raw))
    server.settings.latency = 0.3
    command = [sys.executable, "-m", "limbeck", "capture", str(tmp_path / "recipe.yaml")]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while child.poll() is None and sum(server.billed.values()) < 22:  # the probe asks some ten times, twice
        time.sleep(0.05)
    assert child.poll() is None, child.stderr and child.stderr.read().decode()
    child.send_signal(with_signal)
    _, said = child.communicate(timeout=120)
    assert child.returncode == (130 if with_signal == signal.SIGINT else -9), said.decode()
    kept = sum(Store(folder).positions for folder in stores(raw))
    assert (kept > 0) == (with_signal == signal.SIGINT)
    server.settings.latency = 0.0
    capture(parse_recipe(raw), Display(quiet=True))
    captured = stage(raw, "capture-")
    assert captured["captured"] + kept == captured["positions"]
    (folder,) = stores(raw)
    assert sum(shard.positions for shard in Store(folder).shards) == captured["positions"]
