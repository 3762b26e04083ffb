"""Rows that ask and need no answer: `data.prompts`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from limbeck.data.documents.rows import Seen
from limbeck.data.documents.sources import documents
from limbeck.data.questions import questions
from limbeck.errors import InputError
from limbeck.generation.prompts import Prompt, question_of
from limbeck.generation.select.prompts import prompts_to_ask
from limbeck.recipe import Columns, Generation, JsonlSource

ASKED = {"role": "user", "content": "2+2?"}
TURNS = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}, ASKED]


def read(path: Path, rows: list[Any], seen: dict[str, Seen] | None = None, **columns: str) -> list[Prompt]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = JsonlSource(jsonl=str(path), columns=Columns(**columns))
    return [question_of(document) for document in questions((source,), seen)]


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"prompt": "2+2?"}, [ASKED]),
        ({"prompt": "2+2?", "response": None}, [ASKED]),
        ({"prompt": "2+2?", "response": " "}, [ASKED]),
        ({"prompt": [ASKED]}, [ASKED]),
        ({"prompt": "2+2?", "system": "Be brief."}, [{"role": "system", "content": "Be brief."}, ASKED]),
        ({"question": "2+2?", "id": 7}, [ASKED]),
        ({"query": "2+2?"}, [ASKED]),
        ({"instruction": "2+2?", "input": "", "output": ""}, [ASKED]),
        ({"instruction": "Add", "input": "2+2"}, [{"role": "user", "content": "Add\n\n2+2"}]),
        ({"messages": TURNS}, TURNS),
        ({"messages": json.dumps(TURNS)}, TURNS),
        ({"conversations": [{"from": "human", "value": "2+2?"}]}, [ASKED]),
    ],
)
def test_what_a_row_asks(tmp_path: Path, row: dict[str, Any], messages: list[Any]) -> None:
    seen: dict[str, Seen] = {}
    (prompt,) = read(tmp_path / "rows.jsonl", [row], seen)
    assert [*prompt.messages] == messages
    assert prompt.reference is None
    assert "1 questions" in seen["data.prompts.0"].line()


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2+2?", "response": "4"},
        {"prompt": "2+2?", "completion": "4"},
        {"messages": [ASKED, {"role": "assistant", "content": "4"}]},
        {"instruction": "2+2?", "output": "4"},
    ],
)
def test_an_answer_that_is_there_is_the_reference(tmp_path: Path, row: dict[str, Any]) -> None:
    (prompt,) = read(tmp_path / "rows.jsonl", [row])
    assert ([*prompt.messages], prompt.reference) == ([ASKED], "4")


@pytest.mark.parametrize("row", [{"prompt": "2+2?"}, {"messages": [ASKED]}])
def test_a_corpus_of_questions_says_where_they_go(tmp_path: Path, row: dict[str, Any]) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match=r"data\.corpus\.0.*questions without answers go into `data\.prompts`"):
        list(documents((JsonlSource(jsonl=str(tmp_path / "rows.jsonl")),)))


def test_columns_are_named_as_in_the_corpus(tmp_path: Path) -> None:
    (prompt,) = read(tmp_path / "rows.jsonl", [{"q": "2+2?", "prompt": "no"}], prompt="q", response="a")
    assert [*prompt.messages] == [ASKED]


def test_what_asks_nothing_is_left_out_or_refused_by_its_place(tmp_path: Path) -> None:
    seen: dict[str, Seen] = {}
    assert len(read(tmp_path / "rows.jsonl", [{"prompt": "2+2?"}, {"prompt": " "}, {"prompt": None}], seen)) == 1
    assert "2 of its rows" in str(seen["data.prompts.0"].left_out())
    with pytest.raises(InputError, match=r"data\.prompts\.0.*plain text, which asks nothing"):
        read(tmp_path / "rows.jsonl", [{"text": "A text."}])
    with pytest.raises(InputError, match=r"data\.prompts\.0.*shape"):
        read(tmp_path / "rows.jsonl", [{"what": "A text."}])
    with pytest.raises(InputError, match=r"data\.prompts\.0"):
        read(tmp_path / "rows.jsonl", [{"messages": "not JSON [{"}])


def prompt(text: str, reference: str | None = None) -> Prompt:
    return Prompt(({"role": "user", "content": text},), None, (), reference, text)


def test_nothing_that_is_measured_on_is_asked_and_no_question_twice() -> None:
    held_out = "The quick brown fox jumps over the lazy dog while thirteen busy clerks quietly count their money"
    own, heldout = [prompt("a", "1"), prompt("b", "2")], [prompt("h", "3"), prompt(held_out, "4")]
    given = [prompt("a"), prompt("c"), prompt("c"), prompt("h"), prompt(f"Please say: {held_out} today"), prompt("d")]
    section = Generation(max_prompts=4)
    found = prompts_to_ask(own, given, heldout, section, lambda each: each.document != "d")
    assert [each.document for each in found.prompts] == ["a", "b", "c"]
    assert found.prompts[0].reference == "1"
    assert (found.heldout, found.overlapping, found.too_long) == (1, 1, 1)
    assert found.overlap == {8: 1, 13: 1}
    assert "1 prompts overlap with held-out documents (1 by 8-grams, 1 by 13-grams)" in "; ".join(found.lines())
    off = Generation.model_validate({"filters": {"decontaminate": None}})
    assert prompts_to_ask(own, given, heldout, off, lambda _: True).overlapping == 0
    assert off.sampling() != Generation().sampling(), "other prompts are asked"
    few = prompts_to_ask(own, given, heldout, Generation(max_prompts=1), lambda _: True)
    assert [each.document for each in few.prompts] == ["a"]
