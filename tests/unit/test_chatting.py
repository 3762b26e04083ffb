from __future__ import annotations

import copy
import datetime
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from limbeck import cli
from limbeck.commands.chat import Speaker, held_out_questions, speakers
from limbeck.errors import LimbeckError
from limbeck.models.causal_lm import CausalLM
from limbeck.models.generate import Sampling
from tests.unit.test_data import CHATML


def test_a_speaker_remembers(make_lm: Callable[..., CausalLM]) -> None:
    lm = make_lm(1, max_position_embeddings=128)
    lm.tokenizer = lm.own_tokenizer = copy.deepcopy(lm.tokenizer)
    lm.tokenizer.chat_template = CHATML
    fresh, old = Speaker("a", lm), Speaker("b", lm)
    old.answer("the dog ran", Sampling(5, temperature=0))
    assert [m["role"] for m in old.messages] == ["user", "assistant"]
    first = fresh.answer("the cat", Sampling(8, temperature=0))
    assert first == Speaker("c", lm).answer("the cat", Sampling(8, temperature=0))
    old.answer("the cat", Sampling(8, temperature=0))
    assert len(old.messages) == 4
    for _ in range(9):  # longer than the model reads: the beginning is forgotten
        old.answer("one big dog run over blue hills", Sampling(8, temperature=0))


def test_a_model_without_a_template_sees_its_opening_mark(make_lm: Callable[..., CausalLM]) -> None:
    lm = make_lm(1, max_position_embeddings=64)
    lm.tokenizer = lm.own_tokenizer = copy.deepcopy(lm.tokenizer)
    prompts: list[str] = []
    speaker = Speaker("a", lm)
    go_on = speaker.go_on
    speaker.go_on = lambda text, sampling: prompts.append(text) or go_on(text, sampling)  # type: ignore[method-assign, func-returns-value]
    # An answer may be as long as the model reads: the question is not cut for it.
    speaker.answer("the cat", Sampling(64, temperature=0))
    assert prompts[0].endswith("the cat")
    assert lm.tokenizer(prompts[0], add_special_tokens=False)["input_ids"][0] == lm.tokenizer.bos_token_id
    assert (
        Speaker("b", lm)
        .go_on(prompts[0], Sampling(64, temperature=0))
        .startswith(Speaker("c", lm).go_on(prompts[0], Sampling(20, temperature=0))[:10])
    )
    assert Speaker("d", lm).go_on("", Sampling(4)) == ""


def test_a_template_that_writes_the_date_is_told_the_speakers(make_lm: Callable[..., CausalLM]) -> None:
    lm = make_lm(1, max_position_embeddings=64)
    lm.tokenizer = lm.own_tokenizer = copy.deepcopy(lm.tokenizer)
    lm.tokenizer.chat_template = "{{ strftime_now('%Y') }}" + CHATML
    prompts: list[str] = []
    speaker = Speaker("a", lm, datetime.date(1999, 1, 2))
    speaker.go_on = lambda text, sampling: prompts.append(text) or ""  # type: ignore[method-assign, func-returns-value]
    speaker.answer("the cat", Sampling(4))
    assert prompts[0].startswith("1999")


def test_a_misspelt_run_is_not_asked_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "demo" / "stages").mkdir(parents=True)
    with pytest.raises(LimbeckError, match=r"there is no .*demi\. There are .*demo"):
        speakers([str(tmp_path / "demi")])


def test_models_by_folder_and_side_by_side(
    teacher_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [s.name for s in speakers([str(teacher_folder)])] == ["teacher"]
    with pytest.raises(LimbeckError, match="/no/such"):
        speakers(["/no/such"])
    args = ["limbeck", "chat", str(teacher_folder), "--ask", "the [red]cat", "--max-new-tokens", "4"]
    monkeypatch.setattr("sys.argv", args)
    cli.main()
    out = capsys.readouterr().out
    assert "you the [red]cat" in out  # words are never markup
    monkeypatch.setattr("sys.argv", [*args, "--only", "nobody"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert "--only: there is no nobody. There are teacher" in capsys.readouterr().err
    assert "teacher " in out


def test_a_run_brings_its_teacher_and_students(tmp_path: Path, raw_recipe: dict[str, Any]) -> None:
    from limbeck.commands.run import run
    from limbeck.display import Display
    from limbeck.recipe import parse_recipe

    raw_recipe["techniques"] = ["alone"]
    raw_recipe["training"]["tokens"] = 200
    raw_recipe["data"]["date"] = "1999-01-02"
    run(parse_recipe(raw_recipe), Display(quiet=True))
    assert {s.date for s in speakers([raw_recipe["run"]])} == {datetime.date(1999, 1, 2)}
    assert [s.name for s in speakers([raw_recipe["run"]])] == ["teacher", "alone"]


def test_a_technique_selects_all_of_its_students(tmp_path: Path, raw_recipe: dict[str, Any]) -> None:
    from limbeck.commands.run import run
    from limbeck.display import Display
    from limbeck.recipe import parse_recipe

    student = raw_recipe.pop("student")
    raw_recipe |= {"students": {"a": student, "b": student}, "techniques": ["alone"]}
    raw_recipe["training"]["tokens"] = 200
    run(parse_recipe(raw_recipe), Display(quiet=True))
    place, told = [raw_recipe["run"]], list[str]()
    assert [s.name for s in speakers(place, ["alone"], told.append)] == ["alone / a", "alone / b"]
    assert told == ["loading alone / a ...", "loading alone / b ..."]
    shutil.rmtree(Path(raw_recipe["run"]) / "arms" / "alone-seed0" / "students" / "b")
    assert [s.name for s in speakers(place, ["teacher", "alone / a"], told.append)] == ["teacher", "alone / a"]
    assert "not finished yet: alone / b" in told
    with pytest.raises(LimbeckError, match=r"--only: there is no soft\. There are teacher, alone / a$"):
        speakers(place, ["soft"])


def test_the_first_held_out_questions_of_a_run(
    tmp_path: Path, raw_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from limbeck.commands.run import run
    from limbeck.display import Display
    from limbeck.recipe import parse_recipe

    raw_recipe["techniques"] = ["alone"]
    raw_recipe["training"]["tokens"] = 200
    report = run(parse_recipe(raw_recipe), Display(quiet=True))
    questions = held_out_questions(raw_recipe["run"], 2)
    assert [question.words for question in questions] == [sample.prompt for sample in report.samples]
    assert len(questions) == 2
    assert all(question.prompt.endswith(question.words) and question.answer for question in questions)
    monkeypatch.setattr("sys.argv", ["limbeck", "chat", raw_recipe["run"], "--held-out", "2", "--max-new-tokens", "4"])
    cli.main()
    out = capsys.readouterr().out
    assert [line.split(" ")[0] for line in out.splitlines() if line][::4] == ["you", "you"]
    assert out.count("\nthe data ") == out.count("\nteacher ") == out.count("\nalone ") == 2
    with pytest.raises(LimbeckError, match="no run with held-out data"):
        held_out_questions(str(tmp_path), 1)
