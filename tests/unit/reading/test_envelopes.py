"""What stands beside a list of rows in one JSON object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import InputError
from limbeck.recipe import Columns
from tests.unit.reading.given import read, write

PAIRS = [{"question": "Who?", "answer": "Bo"}, {"question": "When?", "answer": "1999"}]
REFUSED = {
    "context": "Bo was born in 1999.",
    "system": "Answer as a pirate.",
    "system_prompt": {"role": "system", "content": "kind"},
    "history": [["x", "y"]],
    "image": "x.png",
    "images": ["x.png"],
    "label": False,
    "kto_tag": 0,
    "weight": 0,
    "sample_weight": 0.5,
    "train": False,
    "loss_mask": [0, 1],
    "mask_history": True,
    "body": "The article.",
    "passages": ["one"],
    "conversation_id": 7,
    "DialogueId": "d1",
    "Context": "c",
}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", REFUSED)
def test_what_refuses_a_row_refuses_a_list_of_rows(
    tmp_path: Path, name: str, indent: int | None, *, after: bool
) -> None:
    side = {name: REFUSED[name]}
    whole = {"rows": PAIRS, **side} if after else {**side, "rows": PAIRS}
    path = write(tmp_path, "a.json", json.dumps(whole, indent=indent))
    with pytest.raises(InputError, match=f"a.json.*`{name}") as caught:
        read(path)
    assert caught.value.line().startswith("data.corpus.0")


@pytest.mark.parametrize(
    "side",
    [
        {"version": "1.1", "name": "qa"},
        {"context": "", "history": [], "system": " ", "label": None, "image": None, "weight": 1, "train": True},
        {"label": 1, "loss_mask": None},
        {"documents": 2, "files": 1},
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_other_keys_beside_a_list_of_rows_are_named(tmp_path: Path, side: dict[str, Any], name: str) -> None:
    found, seen = read(write(tmp_path, name, {**side, "data": PAIRS, "license": "MIT"}))
    assert len(found) == 2
    unread = {key for key, value in side.items() if value not in (None, "", " ", [])}
    assert seen.unread == {"license", *unread}
    assert "license" in seen.line()


@pytest.mark.parametrize(
    "whole",
    [
        {"system_prompt": "S", "turns": [{"prompt": "p", "response": "r"}, {"prompt": "and?", "response": "r2"}]},
        {"turns": [{"prompt": "p", "response": "r"}]},
        {"id": 1, "utterances": [{"speaker": "A", "text": "hi"}, {"speaker": "B", "text": "yo"}]},
        {"title": "T", "comments": [{"text": "first!"}, {"text": "lol"}]},
        {"title": "T", "sections": [{"text": "one"}, {"text": "two"}]},
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_parts_of_one_document_are_no_rows(tmp_path: Path, whole: dict[str, Any], name: str) -> None:
    data = whole if name == "a.json" else json.dumps(whole) + "\n"
    with pytest.raises(InputError, match="holds one document in parts"):
        read(write(tmp_path, name, data))


def test_a_list_of_sentences_by_itself_is_one_of_rows(tmp_path: Path) -> None:
    assert len(read(write(tmp_path, "a.json", {"sentences": [{"text": "one"}, {"text": "two"}]}))[0]) == 2


def test_a_folder_of_such_files_is_refused(tmp_path: Path) -> None:
    for n in range(2):
        write(tmp_path, f"doc{n}.json", {"context": f"C {n}", "qas": PAIRS})
    with pytest.raises(InputError, match=r"doc0\.json has `context` beside its list of rows \(`qas`\)"):
        read(tmp_path)


def test_a_column_that_the_recipe_names_is_not_beside_the_rows(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", {"lead": "x", "data": [{"q": "Hi", "a": "Yo"}]})
    assert read(path, columns=Columns(prompt="q", response="a"))[1].unread == {"lead"}
    path = write(tmp_path, "b.json", {"defs": "x", "data": [{"q": "Hi", "a": "Yo"}]})
    with pytest.raises(InputError, match="has `defs` beside its list of rows"):
        read(path, columns=Columns(prompt="q", response="a", tools="defs"))
