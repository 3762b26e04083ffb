"""Rows in which something could be lost or taken for something else."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from limbeck.errors import InputError
from limbeck.recipe import Columns
from tests.unit.reading.given import A, U, read, write

S = {"role": "system", "content": "kind"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
OTHER = {"type": "function", "function": {"name": "time", "arguments": {}}}


def table(folder: Path, form: str, *found: dict[str, Any]) -> Path:
    """One table in a form: rows whose values are strings or None."""
    if form == "csv":
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
        return write(folder, "a.csv", out.getvalue())
    if form == "parquet":
        kinds = pyarrow.schema([(name, pyarrow.string()) for name in found[0]])
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(found), schema=kinds), folder / "a.parquet")
        return folder / "a.parquet"
    return write(folder, "a.jsonl", list(found))


FORMS = ["csv", "parquet", "jsonl"]

# ------------------------------------------------------------------------------------------------ JSON in strings


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("one", [False, True])
@pytest.mark.parametrize(
    "pair", [("prompt", "response"), ("prompt", "completion"), ("question", "answer"), ("instruction", "output")]
)
def test_an_answer_that_is_messages_in_json(tmp_path: Path, pair: tuple[str, str], form: str, *, one: bool) -> None:
    said = json.dumps(A if one else [A])
    ((document,), _) = read(table(tmp_path, form, {pair[0]: "Hi", pair[1]: said}))
    assert document.messages == (U, A)
    assert (document.chat, document.template) == (True, True)


@pytest.mark.parametrize(
    "answer",
    [
        '[{"role": "director", "content": "Ann"}]',
        '[{"from": "Oslo", "to": "Bergen"}]',
        '{"role": "admin", "content": "x"}',
        '{"role": "assistant"}',
        "[]",
        '[{"role": "assistant", "content": "x"}, 3]',
        '{"role": "assistant", "content"',
        '[1, "role"]',
    ],
)
def test_an_answer_that_is_other_json_is_text(tmp_path: Path, answer: str) -> None:
    ((document,), _) = read(table(tmp_path, "jsonl", {"prompt": "Hi", "response": answer}))
    assert document.messages == (U, {**A, "content": answer})


def test_an_answer_that_is_a_whole_conversation_is_refused(tmp_path: Path) -> None:
    for pair in (("prompt", "response"), ("instruction", "output")):
        path = table(tmp_path, "jsonl", {pair[0]: "Hi", pair[1]: json.dumps([U, A])})
        with pytest.raises(InputError, match=f"a `{pair[1]}` that begins with a turn of `user`"):
            read(path)


def test_a_prompt_that_is_one_message_in_json(tmp_path: Path) -> None:
    ((document,), _) = read(table(tmp_path, "csv", {"prompt": json.dumps(U), "completion": json.dumps(A)}))
    assert document.messages == (U, A)


@pytest.mark.parametrize("system", [S, [S], [{"type": "text", "text": "kind"}], {"from": "system", "value": "kind"}])
@pytest.mark.parametrize("name", ["system", "system_prompt"])
def test_a_system_message_in_json(tmp_path: Path, system: Any, name: str) -> None:
    for row in ({"messages": json.dumps([U, A])}, {"prompt": "Hi", "response": "Yo"}):
        ((document,), _) = read(table(tmp_path, "csv", {**row, name: json.dumps(system)}))
        assert document.messages == (S, U, A)
    with pytest.raises(InputError, match="not one message of the `system`"):
        read(table(tmp_path, "csv", {"prompt": "Hi", "response": "Yo", name: json.dumps(U)}))


def test_a_system_prompt_that_is_other_json_is_text(tmp_path: Path) -> None:
    ((document,), _) = read(table(tmp_path, "csv", {"prompt": "Hi", "response": "Yo", "system": '{"answer": "json"}'}))
    assert document.messages[0] == {**S, "content": '{"answer": "json"}'}


# ----------------------------------------------------------------------------------------------------------- null

NULL_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"unit": {"default": None}}}}}
NO_NULL = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"unit": {}}}}}


@pytest.mark.parametrize(
    ("tools", "read_as"),
    [
        (json.dumps([NULL_TOOL]), NULL_TOOL),
        (json.dumps(NULL_TOOL), NULL_TOOL),
        ([json.dumps(NULL_TOOL)], NULL_TOOL),
        (json.dumps([json.dumps(NULL_TOOL)]), NULL_TOOL),
        ([NULL_TOOL], NO_NULL),
        (NULL_TOOL, NO_NULL),
    ],
)
def test_nulls_of_json_in_a_string_are_meant(tmp_path: Path, tools: Any, read_as: dict[str, Any]) -> None:
    ((document,), _) = read(write(tmp_path, "a.jsonl", [{"messages": [U, A], "tools": tools}]))
    assert document.tools == (read_as,)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"prompt": "Hi", "response": "", "text": "whole"}, None),
        ({"prompt": "", "response": "Yo", "text": "whole"}, None),
        ({"prompt": "Hi", "response": " ", "text": ""}, None),
        ({"instruction": "Hi", "output": "", "response": "Yo"}, (U, A)),
        ({"question": "Hi", "answer": "", "response": "Yo"}, (U, A)),
        ({"prompt": "Hi", "response": "", "completion": "Yo"}, (U, A)),
        ({"prompt": "Hi", "response": "", "completion": "Yo", "text": "whole"}, (U, A)),
        ({"prompt": "Hi", "response": "", "completion": " ", "text": "whole"}, None),
        ({"question": "Hi", "answer": "", "input": "Hi", "output": "Yo"}, (U, A)),
        ({"query": "Hi", "response": "Yo", "question": "", "answer": ""}, (U, A)),
        ({"question": "Hi", "answer": ""}, None),
    ],
)
def test_null_and_blank_are_read_alike(
    tmp_path: Path, row: dict[str, str], messages: tuple[Any, ...] | None, form: str
) -> None:
    whole = dict.fromkeys(row, "x")
    if form != "csv":
        row = {name: value if value.strip() else None for name, value in row.items()}  # type: ignore[misc]
    found, seen = read(table(tmp_path, form, row, whole))
    assert len(found) == (1 if messages is None else 2)
    assert seen.empty == (messages is None)
    if messages is not None:
        assert found[0].messages == messages


@pytest.mark.parametrize("form", FORMS)
def test_the_completion_of_a_prompt_that_is_null(tmp_path: Path, form: str) -> None:
    ((document,), _) = read(table(tmp_path, form, {"prompt": "" if form == "csv" else None, "completion": "Yo"}))
    assert document.messages == ({**U, "content": ""}, A)
    assert not document.template


def test_a_text_beside_a_pair_that_is_all_null_is_read(tmp_path: Path) -> None:
    for form in FORMS:
        nothing = "" if form == "csv" else None
        ((document,), _) = read(table(tmp_path, form, {"prompt": nothing, "response": nothing, "text": "whole"}))
        assert document.text == "whole"


def test_columns_that_are_named(tmp_path: Path) -> None:
    ((document,), _) = read(
        table(tmp_path, "csv", {"q": "Hi", "a": json.dumps([A])}), columns=Columns(prompt="q", response="a")
    )
    assert document.messages == (U, A)


# ---------------------------------------------------------------------------------------------------------- calls


@pytest.mark.parametrize(
    ("older", "calls", "reads"),
    [
        (CALL["function"], [CALL], [CALL]),
        (CALL["function"], [CALL, OTHER], [CALL, OTHER]),
        (CALL["function"], [], [CALL]),
        (None, [CALL], [CALL]),
        (OTHER["function"], [CALL], None),
        ({"name": "weather", "arguments": "{}"}, [CALL], None),
    ],
)
def test_two_kinds_of_calls(tmp_path: Path, older: Any, calls: Any, reads: Any) -> None:
    turn = {"role": "assistant", "content": "", "function_call": older, "tool_calls": calls}
    path = write(tmp_path, "a.jsonl", [{"messages": [U, turn, A]}])
    if reads is None:
        with pytest.raises(InputError, match="message 2 has `tool_calls` and a `function_call` that differ"):
            read(path)
    else:
        assert read(path)[0][0].messages[1]["tool_calls"] == reads
