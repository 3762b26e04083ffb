"""Teachers that can only be called, from a key to a student, against a server on loopback; and verified local text."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limbeck.commands.generate import retry, status_of
from limbeck.commands.run import run
from limbeck.data.corpus import open_corpus
from limbeck.data.documents.document import Document
from limbeck.display import Display
from limbeck.errors import BudgetError, InputError, RecipeError, RunFolderError, TeacherGoneError
from limbeck.generation.journal.journal import Journal
from limbeck.pipeline.build import askings, check
from limbeck.pipeline.checks_served import check_servers
from limbeck.recipe import load_recipe, parse_recipe
from tests.servers.batches import BatchServer
from tests.servers.faulty import Fault, FaultyServer

RIGHT = {"max_new_tokens": 8, "verify": "exact", "filters": {"decontaminate": None}}
KEY = "sk-a-key-that-is-written-nowhere"


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Prompts whose answer is yes or no."""
    path = tmp_path / "questions.jsonl"
    rows = [
        {
            "prompt": f"does the number {n} come after {n - 1 if n % 2 else n + 1} ? ",
            "response": "yes" if n % 2 else "no",
        }
        for n in range(60)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def served_recipe(raw_recipe: dict[str, Any], questions: Path, teacher_folder: Path) -> dict[str, Any]:
    return {
        **raw_recipe,
        "teacher": {
            "api": "http://127.0.0.1:9/v1",
            "model": "toy",
            "prices": {"input": 1.0, "output": 2.0},
            "api_key_env": "TOY_KEY",
        },
        "tokenizer": {"path": str(teacher_folder)},
        "data": {"corpus": [{"jsonl": str(questions)}], "heldout": 0.2, "seq_len": 64},
        "techniques": [
            "alone",
            {"kind": "hard", "name": "right", "generation": RIGHT},
            {"kind": "hard", "name": "any", "generation": {**RIGHT, "keep": "all"}},
        ],
        "evaluation": {
            **raw_recipe["evaluation"], "accuracy": {"verify": "exact", "max_documents": 5, "max_new_tokens": 6},
        },
    }  # fmt: skip


@pytest.fixture
def short_recipe(served_recipe: dict[str, Any]) -> dict[str, Any]:
    """One arm, and nothing measured that takes time."""
    evaluation = {**served_recipe["evaluation"], "accuracy": None, "samples": 0, "speed_tokens": 0, "max_documents": 3}
    training = {**served_recipe["training"], "tokens": 200}
    return {
        **served_recipe,
        "techniques": served_recipe["techniques"][1:2],
        "evaluation": evaluation,
        "training": training,
    }


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_KEY", KEY)


def at(raw: dict[str, Any], server: FaultyServer, **more: Any) -> dict[str, Any]:
    return {**raw, "teacher": {**raw["teacher"], "api": f"{server.url}/v1", **more}}


def texts(folder: Path) -> dict[str, dict[str, Any]]:
    """What the stages that choose said, by their names."""
    return {
        path.stem: json.loads(path.read_text())["result"] for path in sorted((folder / "stages").glob("select-*.json"))
    }


def test_a_called_teacher_makes_a_student(served_recipe: dict[str, Any]) -> None:
    with FaultyServer(text="yes") as server:
        recipe = parse_recipe(at(served_recipe, server))
        report = run(recipe, Display(quiet=True))
        bought = sum(server.billed.values())
        again = run(recipe, Display(quiet=True))
        assert sum(server.billed.values()) == bought, "a finished run asks nobody"
    folder = Path(recipe.run)
    assert [row.name for row in report.rows] == ["teacher", "alone", "right", "any"] == [r.name for r in again.rows]
    teacher = report.rows[0]
    assert (teacher.parameters, teacher.bits_per_byte) == (None, None)
    assert teacher.accuracy is not None
    assert all(row.bits_per_byte is not None and row.accuracy is not None for row in report.rows[1:])
    chosen = sorted(texts(folder).values(), key=lambda each: each["learned"])
    right, whole = chosen
    assert whole["learned"] == whole["answers"] == sum(whole["verdicts"].values())
    assert 0 < right["learned"] == right["verdicts"]["correct"] < whole["learned"]
    for name in texts(folder):
        home = folder / "text" / name
        assert len(open_corpus(home / "corpus")) == texts(folder)[name]["learned"]
        rows = [json.loads(line) for line in (home / "dataset" / "data.jsonl").read_text().splitlines()]
        assert len(rows) == texts(folder)[name]["learned"]
        card = (home / "dataset" / "README.md").read_text()
        assert "toy" in card
        nobody = [json.loads(line) for line in (home / "dataset" / "unsolved.jsonl").read_text().splitlines()]
        assert len(nobody) == texts(folder)[name]["unsolved"] > 0
        assert all(row["reference"] == "no" and row["messages"][-1]["role"] == "user" for row in nobody)
        assert f"`unsolved.jsonl`: the {len(nobody)} prompts" in card
        (said,) = (text for text in status_of(folder).texts if text.name == name)
        assert said.unsolved_file == str(home / "dataset" / "unsolved.jsonl")
    card = (folder / "arms/right-seed0/students/student/README.md").read_text()
    assert "distilled from a teacher" in card
    assert "trained without a teacher" not in card
    everything = [p for p in [*folder.rglob("*"), *(folder.parent / "journals").rglob("*")] if p.is_file()]
    assert not [p for p in everything if KEY.encode() in p.read_bytes()]


def test_another_run_buys_nothing_twice(short_recipe: dict[str, Any]) -> None:
    with FaultyServer(text="yes") as server:
        run(parse_recipe(at(short_recipe, server)), Display(quiet=True))
        asked = len(server.billed)
        renamed = {**at(short_recipe, server), "run": short_recipe["run"] + "-renamed"}
        run(parse_recipe(renamed), Display(quiet=True))
        prompts = [b for b in server.bodies if "does the number" in json.dumps(b)]
    assert len(prompts) == len({json.dumps(b, sort_keys=True) for b in prompts})
    assert len(server.billed) == asked, "only what was probed is asked again"


def test_samples_are_asked_for_together_where_the_server_gives_several(short_recipe: dict[str, Any]) -> None:
    technique = {"kind": "hard", "generation": {**RIGHT, "samples": 3, "max_prompts": 8}}
    with FaultyServer(text="yes") as server:
        recipe = parse_recipe({**at(short_recipe, server), "techniques": [technique]})
        run(recipe, Display(quiet=True))
        asked = [body for body in server.bodies if "does the number" in json.dumps(body)]
    assert [body["n"] for body in asked] == [3] * 8
    ((_, chosen),) = texts(Path(recipe.run)).items()
    assert chosen["answers"] == 24


HELD_OUT = "which of the two small brown dogs that sleep in the old barn near the river barks first at night"


def test_questions_without_answers_are_asked_and_nothing_that_is_measured_on(
    short_recipe: dict[str, Any], questions: Path, tmp_path: Path
) -> None:
    rows = [{"role": "user", "content": f"is {n} a number ? "} for n in range(12)]
    asked = [{"messages": [row]} for row in rows]
    answered = [json.loads(line) for line in questions.read_text().splitlines()]
    asked += [{"prompt": row["prompt"]} for row in answered]  # some of these are held out
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    data = {**short_recipe["data"], "heldout": 0.9, "prompts": [{"jsonl": str(tmp_path / "asked.jsonl")}]}
    generation = {"max_new_tokens": 8, "filters": {"decontaminate": None, "exact_duplicates": False}}
    techniques = ["alone", {"kind": "hard", "name": "right", "generation": generation}]
    raw = {**short_recipe, "data": data, "techniques": techniques}
    with FaultyServer(text="yes") as server:
        run(parse_recipe(at(raw, server)), Display(quiet=True))
        sent = [body["messages"][-1]["content"] for body in server.bodies]
        folder = Path(raw["run"])
        facts = json.loads((folder / "stages" / "data.json").read_text())["result"]
        (sampled,) = (json.loads(p.read_text())["result"] for p in (folder / "stages").glob("sample-*.json"))
        train = facts["train"]["documents"]
        assert {row["content"] for row in rows} <= set(sent)
        assert sampled["prompts"] == 12 + train
        assert len([said for said in sent if "does the number" in said]) == train, "no held-out question is asked"
        assert any(f"{60 - train:,} prompts are held out" in note for note in sampled["notes"])
        ((_, chosen),) = texts(folder).items()
        assert chosen["learned"] == 12 + train
        before = len(sent)
        asked.append({"prompt": "is it new ? "})
        (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
        again = {**raw, "run": raw["run"] + "-again"}
        run(parse_recipe(at(again, server)), Display(quiet=True))
        new = [body["messages"][-1]["content"] for body in server.bodies[before:]]
    assert [said for said in new if "is it" in said or "number" in said] == ["is it new ? "], (
        "a new one is bought alone"
    )


def test_questions_are_checked_before_anything_is_asked(
    short_recipe: dict[str, Any], raw_recipe: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text('{"prompt": "is it ? "}\n')
    prompts = {"prompts": [{"jsonl": str(path)}]}
    raw = {**short_recipe, "data": {**short_recipe["data"], **prompts}}
    (warning,) = (each for each in check(parse_recipe(raw)).warnings if "data.prompts" in each)
    assert warning.startswith("techniques.0.generation.verify: 1 of the first questions")
    assert "`exact` cannot decide" in warning
    alone = {**raw_recipe, "data": {**raw_recipe["data"], **prompts}, "techniques": ["alone"]}
    assert any("no technique has a teacher answer them" in each for each in check(parse_recipe(alone)).warnings)
    path.write_text('{"text": "A text."}\n')
    with pytest.raises(InputError, match=r"data\.prompts\.0.*asks nothing"):
        check(parse_recipe(raw))
    raw["data"]["prompts"] = [{"stdlib": "sources"}]
    with pytest.raises(RecipeError, match=r"data\.prompts.*plain text"):
        check(parse_recipe(raw))


def test_prompts_that_overlap_with_what_is_measured_are_not_bought(
    short_recipe: dict[str, Any], questions: Path, tmp_path: Path
) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps({"prompt": HELD_OUT, "response": "the first"}) + "\n" * 1)
    key = int(prompt_key({"prompt": HELD_OUT, "response": "the first"})[:16], 16)
    share = (key + 1) / 2**64  # just enough to hold it out
    (tmp_path / "asked.jsonl").write_text(json.dumps({"prompt": f"tell me , {HELD_OUT} ? "}) + "\n")
    sources = [*short_recipe["data"]["corpus"], {"jsonl": str(tmp_path / "test.jsonl")}]
    data = {**short_recipe["data"], "corpus": sources, "heldout": min(max(share, 0.01), 0.99)}
    data["prompts"] = [{"jsonl": str(tmp_path / "asked.jsonl")}]
    generation = {"max_new_tokens": 8, "keep": "all", "max_prompts": 200}
    raw = {**short_recipe, "data": data, "techniques": [{"kind": "hard", "generation": generation}]}
    with FaultyServer(text="yes") as server:
        recipe = parse_recipe(at(raw, server))
        run(recipe, Display(quiet=True))
        assert not [body for body in server.bodies if "brown dogs" in json.dumps(body)]
    folder = Path(recipe.run)
    (sampled,) = (json.loads(p.read_text())["result"] for p in (folder / "stages").glob("sample-*.json"))
    assert sampled["overlapping"] == 1
    (card,) = folder.glob("text/select-*/dataset/README.md")
    assert "Not asked, because of an overlap with evaluation texts: 1 prompt" in card.read_text()


def prompt_key(row: dict[str, str]) -> str:
    turns = ({"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]})
    return Document(messages=turns).key


def test_a_dead_teacher_leaves_what_was_answered(short_recipe: dict[str, Any]) -> None:
    raw = short_recipe
    with pytest.raises(TeacherGoneError) as failed:
        run(parse_recipe({**raw, "teacher": {**raw["teacher"], "patience_seconds": 0.2}}),
            Display(quiet=True))  # fmt: skip
    assert failed.value.exit_code == 3


def test_a_local_model_stands_behind_a_dead_teacher(short_recipe: dict[str, Any], teacher_folder: Path) -> None:
    teacher = {**short_recipe["teacher"], "patience_seconds": 0.2, "fallbacks": [{"path": str(teacher_folder)}]}
    generation = {"max_new_tokens": 8, "filters": {"outcomes": ["length"], "decontaminate": None}, "max_prompts": 6}
    raw = {**short_recipe, "teacher": teacher, "techniques": [{"kind": "hard", "generation": generation}]}
    recipe = parse_recipe(raw)
    run(recipe, Display(quiet=True))
    (found,) = texts(Path(recipe.run)).values()
    assert found["answers"] == 6


def test_a_budget_that_is_spent_goes_on_with_more(short_recipe: dict[str, Any]) -> None:
    with FaultyServer(text="yes") as server:
        small = parse_recipe(at(short_recipe, server, budget={"tokens": 900}))
        with pytest.raises(BudgetError):
            run(small, Display(quiet=True))
        before = len(server.billed)
        run(parse_recipe(at(short_recipe, server, budget={"tokens": 2_000_000})), Display(quiet=True))
        prompts = [json.dumps(b, sort_keys=True) for b in server.bodies if "does the number" in json.dumps(b)]
    assert 0 < before < len(server.billed)
    assert len(prompts) == len(set(prompts))


def test_what_needs_weights_is_refused(served_recipe: dict[str, Any], teacher_folder: Path) -> None:
    for technique, why in (
        ("soft", r"techniques\.0\.signals.*a few log-probabilities a token.*signals: \{scheme: top_k.*else `hard`"),
        ("co", r"techniques\.0.*needs the teacher's weights.*write `hard`"),
    ):
        with pytest.raises(RecipeError, match=why):
            parse_recipe({**served_recipe, "techniques": [technique]})
    with pytest.raises(RecipeError, match=r"student.*no weights to cut"):
        parse_recipe({**served_recipe, "student": {"from": "teacher", "layers": 1}})
    with pytest.raises(RecipeError, match=r"tokenizer.*tokenizer: \{path"):
        parse_recipe({**served_recipe, "tokenizer": None})
    with pytest.raises(RecipeError, match=r"max_prompts"):
        parse_recipe({**served_recipe, "techniques": [{"kind": "hard", "generation": {"tokens": 100}}]})


def test_check_asks_no_server(served_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOY_KEY")
    recipe = parse_recipe(served_recipe)
    notes = "\n".join([*check(recipe).notes, *check_servers(askings(recipe), offline=False)])
    for said in ("$TOY_KEY is not set, so the server was not asked", "$1", "terms"):
        assert said in notes
    assert "no server was asked" in check_servers(askings(recipe), offline=True)[0]
    no = {"may_train_students": "no", "source": "https://x.y", "date": "2026-01-01", "quote": "You may not."}
    with pytest.raises(RecipeError, match=r"teacher\.terms\.may_train_students.*override"):
        check(parse_recipe({**served_recipe, "teacher": {**served_recipe["teacher"], "terms": no}}))
    unpriced = {**served_recipe["teacher"], "prices": None}
    with pytest.raises(RecipeError, match="prices"):
        check(parse_recipe({**served_recipe, "teacher": unpriced}))
    wrong = {**served_recipe["teacher"], "protocol": "completions"}
    with pytest.raises(RecipeError, match=r"teacher\.protocol.*chat"):
        check(parse_recipe({**served_recipe, "teacher": wrong}))


@pytest.mark.parametrize(
    ("refused", "change", "place"),
    [
        ("temperature", {}, "techniques.0.generation.temperature"),
        ("temperature", {"generation": {"temperature": None}}, "evaluation.accuracy.temperature"),
        ("seed", {"generation": {"seed": 3}}, "techniques.0.generation.seed"),
        ("reasoning_effort", {"teacher": {"extra": {"reasoning_effort": "low"}}}, "teacher.extra.reasoning_effort"),
        ("top_p", {"fallback": True, "generation": {"top_p": 0.9}}, "techniques.0.generation.top_p"),
    ],
)
def test_a_setting_that_an_endpoint_refuses_is_an_error_before_anything_is_bought(
    served_recipe: dict[str, Any], refused: str, change: dict[str, Any], place: str
) -> None:
    generation = {**RIGHT, **change.get("generation", {})}
    with FaultyServer(text="yes", refuses=(refused,)) as server, FaultyServer(text="yes") as other:
        raw = at(served_recipe, server, **change.get("teacher", {}))
        if change.get("fallback"):
            behind = {name: raw["teacher"][name] for name in ("api", "model", "prices", "api_key_env")}
            raw["teacher"] |= {"api": f"{other.url}/v1", "fallbacks": [behind]}
        recipe = parse_recipe({**raw, "techniques": [{"kind": "hard", "generation": generation}]})
        with pytest.raises(RecipeError) as at_check:
            check_servers(askings(recipe), offline=False)
        with pytest.raises(RecipeError) as at_run:
            run(recipe, Display(quiet=True))
        asked = [*server.bodies, *other.bodies]
    assert (at_check.value.key, at_run.value.key) == (place, place)
    assert refused in at_run.value.what
    assert at_run.value.fix
    assert not [body for body in asked if "does the number" in json.dumps(body)]
    assert not list((Path(recipe.run).parent / "journals").glob("*"))


def test_what_the_protocol_has_no_field_for_is_refused_by_its_place(served_recipe: dict[str, Any]) -> None:
    techniques = [{"kind": "hard", "generation": {**RIGHT, "seed": 3}}]
    teacher = {**served_recipe["teacher"], "protocol": "anthropic"}
    with pytest.raises(RecipeError, match=r"techniques\.0\.generation\.seed.*anthropic"):
        check(parse_recipe({**served_recipe, "teacher": teacher, "techniques": techniques}))


def test_the_command_check_asks_the_server(served_recipe: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"

    def limbeck_check(raw: dict[str, Any], *more: str) -> subprocess.CompletedProcess[str]:
        path.write_text(json.dumps(raw))
        command = [sys.executable, "-m", "limbeck", "check", str(path), *more]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TOY_KEY": KEY})

    assert "does not answer" in limbeck_check(served_recipe).stderr
    with FaultyServer(refuses=("temperature",)) as server:
        refused = limbeck_check(at(served_recipe, server))
        offline = limbeck_check(at(served_recipe, server), "--offline")
    assert (refused.returncode, offline.returncode) == (2, 0)
    assert refused.stderr.startswith("limbeck: techniques.1.generation.temperature: toy refuses"), refused.stderr
    assert "no server was asked" in offline.stderr


@pytest.mark.parametrize("name", ["closed-api", "deepseek-r1"])
def test_recipes_of_called_teachers_pass_without_a_network(name: str) -> None:
    notes = "\n".join(check(load_recipe(Path(__file__).parents[2] / "recipes" / f"{name}.yaml")).notes)
    assert "reads it from the hub" in notes
    assert "per million tokens" in notes


# ----------------------------------------------------------------------------------- killed and gone on with


@pytest.fixture
def server() -> Iterator[str]:
    """The server as a process of its own: it outlives what is killed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.servers.faulty", "--port", "0", json.dumps({"text": "yes", "latency": 0.1})],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def counts(url: str) -> dict[str, int]:
    with urllib.request.urlopen(f"{url}/counts") as reply:
        return dict(json.load(reply))


def test_a_killed_run_buys_again_no_more_than_was_in_flight(
    short_recipe: dict[str, Any], server: str, tmp_path: Path
) -> None:
    raw = {**short_recipe, "teacher": {**short_recipe["teacher"], "api": f"{server}/v1", "concurrency": 2}}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(raw))  # JSON is YAML
    command = [sys.executable, "-m", "limbeck", "run", str(path), "--quiet", "--jobs", "1"]
    environment = {**os.environ, "TOY_KEY": KEY}
    killed = 0
    asked = counts(server)["billed"]
    for _ in range(2):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        until = time.monotonic() + 240
        while counts(server)["billed"] < asked + 12 and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        if process.poll() is None:
            process.kill()
            killed += 1
        process.communicate()
        asked = counts(server)["billed"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert killed == 2
    found = counts(server)
    assert found["repeats"] <= killed * 2 + 12, found  # two in flight at each kill; the probe's own requests
    ((_, chosen),) = texts(Path(raw["run"])).items()
    assert chosen["answers"] >= 40


@pytest.mark.parametrize(("jobs", "again"), [(1, False), (2, False), (2, True)], ids=["one", "two", "two-abandoned"])
def test_ctrl_c_drains_what_is_in_flight_in_every_process(
    short_recipe: dict[str, Any], tmp_path: Path, jobs: int, again: bool
) -> None:
    """Two stages run beside each other: one asks, another trains."""
    path = tmp_path / "recipe.yaml"
    with FaultyServer(text="yes", latency=0.4) as server:
        raw = at(short_recipe, server, concurrency=3)
        training = {**raw["training"], "tokens": 10_000_000}
        path.write_text(json.dumps({**raw, "techniques": [*raw["techniques"], "alone"], "training": training}))
        process = subprocess.Popen(
            [sys.executable, "-m", "limbeck", "run", str(path), "--quiet", "--jobs", str(jobs)],
            env={**os.environ, "TOY_KEY": KEY}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            # A job in the background of a shell ignores SIGINT, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
        )  # fmt: skip
        until = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < until:
            if sum("does the number" in json.dumps(body) for body in server.bodies) >= 6:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        if again:
            time.sleep(0.1)
            process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 130, said
        assert "Traceback" not in said
        bodies = [body for body in server.bodies if "does the number" in json.dumps(body)]
        time.sleep(0.5)
        later = [body for body in server.bodies if "does the number" in json.dumps(body)]
    assert len(later) == len(bodies) < 40, "nothing is sent after it"
    (journal,) = (Path(raw["run"]).parent / "journals").glob("*.sqlite")
    with Journal(journal) as opened:
        counts = opened.counts()
    answered = sum(counts.answered.values())
    if again:
        assert answered + counts.unknown >= len(bodies) - 1
        assert counts.unknown > 0
    else:
        assert (counts.unknown, counts.sent, answered) == (0, 0, len(bodies))


def test_a_run_that_is_killed_while_its_batch_is_in_progress_goes_on_with_it(
    short_recipe: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    command = [sys.executable, "-m", "limbeck", "run", str(path), "--quiet", "--jobs", "1"]
    environment = {**os.environ, "TOY_KEY": KEY}
    with BatchServer(text="yes") as server:
        teacher = {**short_recipe["teacher"], "api": f"{server.url}/v1", "batch": True}
        path.write_text(json.dumps({**short_recipe, "teacher": teacher}))
        server.held = True
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        until = time.monotonic() + 240
        while not any(each["looks"] for each in server.batches.values()) and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.05)
        process.kill()
        process.communicate()
        assert len(server.batches) == 1
        server.held = False
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(server.batches) == 1, "nothing is sent again"
    assert set(server.billed.values()) == {1}
    assert not [body for body in server.called if "does the number" in json.dumps(body)], "all of it at half the price"
    run_folder = Path(short_recipe["run"])
    ((_, chosen),) = texts(run_folder).items()
    assert chosen["answers"] == len(server.billed)
    assert chosen["learned"] > 0
    assert (run_folder / "arms/right-seed0/students/student/model.safetensors").is_file()
    (sampled,) = (json.loads(p.read_text())["result"] for p in (run_folder / "stages").glob("sample-*.json"))
    assert sampled["nano_usd"] == len(server.billed) * (20 * 1000 + 5 * 2000) // 2
    assert sampled["possibly_paid_twice"] == 0


def test_a_fallback_that_would_take_hours_is_refused_by_name(short_recipe: dict[str, Any]) -> None:
    behind = {**short_recipe["teacher"], "batch": True}
    raw = {**short_recipe, "teacher": {**short_recipe["teacher"], "fallbacks": [behind]}}
    with pytest.raises(RecipeError, match=r"teacher\.fallbacks\.0\.batch.*hours"):
        parse_recipe(raw)


def test_what_is_retried_after_training_is_learned_by_another_run(short_recipe: dict[str, Any]) -> None:
    generation = {**RIGHT, "keep": "all", "filters": {"decontaminate": None, "exact_duplicates": False}}
    raw = {**short_recipe, "techniques": [{"kind": "hard", "name": "right", "generation": generation}]}
    folder = Path(raw["run"])
    with FaultyServer(text="yes") as server:
        server.when = lambda: "bad_request" if "does the number 1" in json.dumps(server.bodies[-1]) else None
        recipe = parse_recipe(at(raw, server))
        run(recipe, Display(quiet=True))
        failed = status_of(folder).journals[0].counts.failed["bad_request"]
        assert failed >= 3
        server.when = None
        said = retry(folder, [])
        assert f"{failed} requests are to do again. 1 arm of {folder} learned" in said
        assert f"run={folder}-retried" in said
        before = len(server.bodies)
        run(recipe, Display(quiet=True))
        assert len(server.bodies) == before, "the run is as it was"
        run(parse_recipe({**at(raw, server), "run": f"{folder}-retried"}), Display(quiet=True))
        asked = [body for body in server.bodies[before:] if "does the number" in json.dumps(body)]
    assert len(asked) == failed
    old, new = (next(iter(texts(Path(each)).values())) for each in (folder, f"{folder}-retried"))
    assert new["learned"] == old["learned"] + failed


def test_answers_that_change_after_training_are_refused_by_their_place(short_recipe: dict[str, Any]) -> None:
    with FaultyServer(text="yes") as server:
        recipe = parse_recipe(at(short_recipe, server))
        run(recipe, Display(quiet=True))
    folder = Path(recipe.run)
    (marker,) = (folder / "stages").glob("train-*.json")
    plain = json.loads(marker.read_text())
    plain["key"]["text"] = "0123456789abcdef"
    marker.write_text(json.dumps(plain))
    with pytest.raises(RunFolderError, match=r"techniques\.0\.generation: the answers .* have changed .*run=OTHER"):
        run(recipe, Display(quiet=True))


def test_limits_and_failures_lose_no_prompt(short_recipe: dict[str, Any]) -> None:
    faults = [Fault("429", share=0.2, tries=1, retry_after="float"), Fault("500", share=0.1, tries=1)]
    with FaultyServer(text="yes", faults=faults) as server:
        recipe = parse_recipe(at(short_recipe, server))
        run(recipe, Display(quiet=True))
    ((_, chosen),) = texts(Path(recipe.run)).items()
    train = json.loads((Path(recipe.run) / "stages" / "data.json").read_text())["result"]["train"]["documents"]
    assert chosen["answers"] == train


# -------------------------------------------------------------------------------------------- local teachers


def test_local_text_is_sampled_verified_and_chosen(raw_recipe: dict[str, Any], questions: Path) -> None:
    generation = {
        "samples": 2, "max_new_tokens": 6, "batch_size": 16, "keep": "all", "verify": "exact",
        "filters": {"outcomes": ["length"], "decontaminate": None, "exact_duplicates": False},
    }  # fmt: skip
    raw = {
        **raw_recipe,
        "data": {"corpus": [{"jsonl": str(questions)}], "heldout": 0.2, "seq_len": 64},
        "techniques": [
            {"kind": "hard", "name": "all", "generation": generation},
            {"kind": "hard", "name": "few", "generation": {**generation, "keep": {"policy": "all", "max_answers": 10}}},
            {"kind": "hard", "name": "random", "generation": {**generation, "as_many_as": "few"}},
        ],
        "evaluation": {**raw_recipe["evaluation"], "accuracy": {"verify": "exact", "max_documents": 5}},
    }
    recipe = parse_recipe(raw)
    report = run(recipe, Display(quiet=True))
    folder = Path(recipe.run)
    found = sorted(each["learned"] for each in texts(folder).values())
    assert found[:2] == [10, 10]
    assert found[2] > 10
    assert len(list((folder / "text").glob("sample-*.sqlite"))) == 1, "arms share what was sampled"
    assert all(row.accuracy is not None for row in report.rows)
    other = parse_recipe({**raw, "run": raw["run"] + "-again"})
    run(other, Display(quiet=True))
    assert {each["fingerprint"] for each in texts(Path(other.run)).values()} == {
        each["fingerprint"] for each in texts(folder).values()
    }
    for one, two in zip(
        sorted(folder.glob("text/select-*")), sorted(Path(other.run).glob("text/select-*")), strict=True
    ):
        assert (one / "corpus" / "ids.bin").read_bytes() == (two / "corpus" / "ids.bin").read_bytes()
