"""Documents from the files and shapes that people have."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from limbeck.data.document import Document
from limbeck.data.rows import Seen
from limbeck.data.sources import documents
from limbeck.errors import InputError, LimbeckError, RecipeError
from limbeck.recipe import Columns, FilesSource, JsonlSource, ParquetSource, TextSource

TEXTS = [{"text": "hello there"}, {"text": 'världen, 世界 "quoted"\nnext'}, {"text": "c"}]


def read(*sources: Any) -> list[Document]:
    return list(documents(tuple(sources)))


def files(*paths: Path | str, **more: Any) -> FilesSource:
    return FilesSource(files=tuple(map(str, paths)), **more)


def rows(tmp_path: Path, *found: Any, **more: Any) -> list[Document]:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in found))
    return read(files(path, **more))


def _delimited(separator: str) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["text"], delimiter=separator)
    writer.writeheader()
    writer.writerows(TEXTS)
    return out.getvalue().encode()


def _parquet() -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(TEXTS), out)
    return out.getvalue()


def _arrow(new: Callable[..., Any]) -> bytes:
    out, table = io.BytesIO(), pyarrow.Table.from_pylist(TEXTS)
    with new(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in TEXTS)
CONTAINERS = {
    "a.jsonl": LINES.encode(),
    "a.ndjson": LINES.replace("\n", "\r\n").encode(),
    "bom.jsonl": b"\xef\xbb\xbf" + LINES.encode(),
    "utf16.jsonl": LINES.encode("utf-16"),
    "a.json": json.dumps(TEXTS, indent=1).encode(),
    "lines.json": LINES.encode(),
    "under.json": json.dumps({"data": TEXTS}, indent=1).encode(),
    "array.jsonl": json.dumps(TEXTS).encode(),
    "a.csv": _delimited(","),
    "a.tsv": _delimited("\t"),
    "a.parquet": _parquet(),
    "a.arrow": _arrow(pyarrow.ipc.new_file),
    "stream.arrow": _arrow(pyarrow.ipc.new_stream),
    "named.wrongly": _parquet(),
    "without_a_name": LINES.encode(),
}


def _zstd(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(CONTAINERS[name])
    assert [d.text for d in read(files(tmp_path / name))] == [row["text"] for row in TEXTS]


@pytest.mark.parametrize(
    ("ending", "compress"),
    [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", _zstd),
        ("", gzip.compress),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_compressed_containers(tmp_path: Path, name: str, ending: str, compress: Any) -> None:
    path = tmp_path / f"{name}{ending}"
    path.write_bytes(compress(CONTAINERS[name]))
    assert [d.text for d in read(files(path))] == [row["text"] for row in TEXTS]
    if name == "a.jsonl":
        assert len(read(JsonlSource(jsonl=str(path)))) == 3


def test_compressed_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\n--\ntwo"))
    assert [d.text for d in read(TextSource(text=str(tmp_path / "a.txt.gz"), separator="--"))] == ["one", "two"]
    assert [d.text for d in read(files(tmp_path / "a.txt.gz"))] == ["one\n--\ntwo"]


def test_folders_patterns_and_lists(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for n, name in enumerate(("b.jsonl", "a.jsonl", "deep/c.jsonl.gz", "notes.rst")):
        data = json.dumps({"text": f"{n}"}).encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert [d.text for d in read(files(tmp_path))] == ["1", "0", "2"]
    assert [d.text for d in read(files(tmp_path / "*.jsonl"))] == ["1", "0"]
    assert [d.text for d in read(files(tmp_path / "**" / "*.gz"))] == ["2"]
    assert [d.text for d in read(files(tmp_path / "b.jsonl", tmp_path / "a.jsonl"))] == ["0", "1"]
    with pytest.raises(RecipeError, match=r"data\.corpus\.0\.files: there is no .*\.csv"):
        read(files(tmp_path / "*.csv"))


def test_a_large_array_is_read_piece_by_piece(tmp_path: Path) -> None:
    found = [{"text": f"{n} " + "x" * (n % 7000)} for n in range(1500)]
    (tmp_path / "a.json").write_text(json.dumps(found, indent=2))
    assert [d.text for d in read(files(tmp_path / "a.json"))] == [row["text"] for row in found]


U, A = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": [U, A]}, (U, A)),
        ({"messages": json.dumps([U, A])}, (U, A)),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}, (U, A)),
        ({"conversations": json.dumps([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}])}, (U, A)),
        ({"conversations": [U, A]}, (U, A)),
        ({"dialog": [U, A]}, (U, A)),
        ({"instruction": "Hi", "input": "", "output": "Yo"}, (U, A)),
        ({"instruction": "Hi", "output": "Yo"}, (U, A)),
        ({"instruction": "Add", "input": "1", "output": "2"}, ({**U, "content": "Add\n\n1"}, {**A, "content": "2"})),
        ({"instruction": "Hi", "output": "Yo", "system": "kind"}, ({"role": "system", "content": "kind"}, U, A)),
        ({"instruction": "Hi", "output": "Yo", "history": [["Hi", "Yo"]]}, (U, A, U, A)),
        ({"prompt": "Hi", "response": "Yo"}, (U, A)),
        ({"prompt": "Hi", "completion": "Yo"}, (U, A)),
        ({"question": "Hi", "answer": "Yo"}, (U, A)),
        ({"prompt": [U], "completion": [A]}, (U, A)),
        ({"prompt": [U], "response": "Yo"}, (U, A)),
        ({"prompt": [U, A, U], "completion": [A]}, (U, {**A, "learn": False}, U, A)),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "H"}, "i"]}, A]}, (U, A)),
        ({"messages": [U, {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, "Yo"]}]},
         (U, {**A, "reasoning_content": "hm"})),
        ({"messages": [U, {**A, "tool_calls": None, "name": None}]}, (U, A)),
        ({"messages": [U, {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
         (U, {"role": "assistant", "content": "", "tool_calls": [CALL]})),
        ({"messages": [U, {"role": "assistant", "content": "", "tool_calls": json.dumps([CALL])}]},
         (U, {"role": "assistant", "content": "", "tool_calls": [CALL]})),
        ({"messages": [U, {"role": "assistant", "tool_calls": [
            {"function": {"name": "weather", "arguments": '{"city": "Oslo"}', "x": None}}]}]},
         (U, {"role": "assistant", "content": "", "tool_calls": [CALL]})),
        ({"messages": [U, {"role": "assistant", "content": None,
                           "function_call": {"name": "weather", "arguments": '{"city": "Oslo"}'}}]},
         (U, {"role": "assistant", "content": "", "tool_calls": [CALL]})),
        ({"conversations": [{"from": "human", "value": "Hi"},
                            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
                            {"from": "observation", "value": "4 C"}, {"from": "gpt", "value": "Yo"}]},
         (U, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "4 C"}, A)),
    ],
)  # fmt: skip
def test_shapes(tmp_path: Path, row: dict[str, Any], messages: tuple[dict[str, Any], ...]) -> None:
    assert [d.messages for d in rows(tmp_path, row)] == [messages]


def test_a_completion_goes_on_from_its_prompt(tmp_path: Path) -> None:
    (completion,) = rows(tmp_path, {"prompt": "The sky is", "completion": " blue."})
    (response,) = rows(tmp_path, {"prompt": "The sky is", "response": " blue."})
    assert (completion.template, completion.chat) == (False, False)
    assert (response.template, response.chat) == (True, False)
    assert completion.key != response.key


@pytest.mark.parametrize("column", ["tools", "functions"])
@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("bare", [False, True])
def test_tools(tmp_path: Path, column: str, *, as_text: bool, bare: bool) -> None:
    tools: Any = [{**TOOL["function"], "description": None}] if bare else [TOOL]  # type: ignore[dict-item]
    (document,) = rows(tmp_path, {"messages": [U, A], column: json.dumps(tools) if as_text else tools})
    assert document.tools == (TOOL,)
    for nothing in ([], "", None):
        (document,) = rows(tmp_path, {"messages": [U, A], column: nothing})
        assert document.tools == ()


@pytest.mark.parametrize(
    ("flag", "value"),
    [("weight", 0), ("weight", 0.0), ("train", False), ("training", False), ("trainable", False), ("loss_mask", 0),
     ("loss", False), ("learn", False), ("train", "false"), ("masked", True), ("ignore", 1)],
)  # fmt: skip
def test_turns_that_are_not_to_be_learned(tmp_path: Path, flag: str, value: Any) -> None:
    (document,) = rows(tmp_path, {"messages": [U, {**A, flag: value}, U, {**A, "weight": 1}]})
    assert document.messages == (U, {**A, "learn": False}, U, A)
    (document,) = rows(tmp_path, {"conversations": [
        {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo", flag: value}, {"from": "gpt", "value": "Yo"}
    ]})  # fmt: skip
    assert document.messages == (U, {**A, "learn": False}, A)
    with pytest.raises(InputError, match="no words of an `assistant`"):
        rows(tmp_path, {"messages": [U, {**A, flag: value}]})


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": [U, {**A, "weight": 0.5}]}, "message 2 has `weight: 0.5`"),
        ({"messages": [U, {**A, "loss_mask": [0, 1]}]}, r"message 2 has `loss_mask: \[0, 1\]`"),
        ({"messages": [U, {**A, "train_detail": [{"begin_offset": 0}]}]}, "message 2 has `train_detail`"),
        ({"messages": [{**U, "train": True}, A]}, "message 1 has `train: True` on a turn of `user`"),
        ({"messages": [U, {**A, "train": True, "weight": 0}]}, "both that it is learned and that it is not"),
        ({"messages": [U, {"role": "assistant", "content": None}]}, r"message 2 \(`assistant`\) has no `content`"),
        ({"messages": [U, {"content": "x"}]}, "message 2 has no `role`"),
        ({"messages": [U, {"role": "assistant", "content": 3}]}, "message 2 has a `content` that is a number"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, A]}, "type `image_url`"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}, A]}, "type `input_audio`"),
        ({"messages": "[{"}, "`messages` is a string that is not JSON"),
        ({"messages": [U, {**A, "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]}, "not an object"),
        ({"messages": [U, {**A, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}, "not JSON"),
        ({"messages": [U, {**A, "tool_calls": [{"id": "1"}]}]}, "call 1 names no function"),
        ({"messages": [U, A], "tools": [{"function": {}}]}, "`tools` holds a tool without a `name`"),
        ({"messages": [U, A], "tools": "{"}, "`tools` is a string that is not JSON"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "holds a preference"),
        ({"text": "a", "weight": 0.2}, "has `weight: 0.2`"),
        ({"messages": [U, A], "images": ["x.png"]}, "has `images`"),
        ({"prompt": "a", "completion": 3}, "`completion` that is a number"),
        ({"body": "x", "n": 3}, r"holds no document .*it has `body` \(text\), `n` \(a number\)"),
        ({"messages": 3}, r"holds no document .*it has `messages` \(a number\)"),
        (3, "line 1 is no object"),
    ],
)
def test_what_is_not_read_is_refused_by_name_and_place(tmp_path: Path, row: Any, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        rows(tmp_path, row)
    assert "rows.jsonl, line 1" in caught.value.line()
    assert caught.value.line().startswith("data.corpus.0")


def test_columns_can_be_named(tmp_path: Path) -> None:
    row = {"text": "no", "dialogue_turns": [U, A], "q": "Hi", "a": "Yo", "story": "once", "functions_json": [TOOL]}
    (document,) = rows(tmp_path, row, columns=Columns(messages="dialogue_turns", tools="functions_json"))
    assert (document.messages, document.tools) == ((U, A), (TOOL,))
    assert rows(tmp_path, row, columns=Columns(prompt="q", response="a"))[0].messages == (U, A)
    assert rows(tmp_path, row, columns=Columns(text="story"))[0].text == "once"
    assert rows(tmp_path, row, field="story")[0].text == "once"
    with pytest.raises(InputError, match="has no `turns`"):
        rows(tmp_path, row | {"text": 3}, columns=Columns(messages="turns"))
    with pytest.raises(ValidationError, match="both `prompt` and `response`"):
        Columns(prompt="q")


def test_what_was_recognised_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps(row) for row in (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}], "id": 1},
            {"conversations": [{"from": "human", "value": "Hi"}]},
            {"text": " ", "source": "web"},
            {"text": "x"},
        ))
    )  # fmt: skip
    seen: dict[str, Seen] = {}
    assert len(list(documents((files(tmp_path / "a.jsonl"),), seen))) == 2
    here = seen["data.corpus.0"]
    assert here.line() == "2 ShareGPT conversations (`conversations`); 1 plain texts (`text`); not read: id"
    said = str(here.left_out())
    assert "1 of its conversations hold no words of an `assistant` (roles: user)" in said
    assert "1 of its rows hold no text" in said


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text', r"a\.jsonl, line 2 is not JSON"),
        ("a.json", b'[{"text": "a"}, {"text": "b"', "item 2 ends inside its array"),
        ("a.json", b'[{"text": "a"} {"text": "b"}]', "item 1 is not followed by a comma"),
        ("a.json", b'[{"text": "a"}] x', "goes on after its array"),
        ("a.json", b'{"text": \n', "is not JSON"),
        ("a.csv", b"text,n\na,1,2\n", "line 2 has more fields than the header"),
        ("a.csv", b"text,n\na\n", "line 2 has fewer fields than the header"),
        ("a.csv", b"text,text\na,b\n", "names the column 'text' twice"),
        ("a.jsonl.gz", gzip.compress(LINES.encode() * 50)[:-30], r"a\.jsonl\.gz is torn"),
        ("a.jsonl.xz", lzma.compress(LINES.encode())[:-10], "is torn|cannot be read"),
        ("a.jsonl", "caf\xe9 \xff".encode("latin-1"), "is not UTF-8"),
        ("a.parquet", _parquet()[:-20], "not a whole Parquet file"),
        ("a.arrow", _arrow(pyarrow.ipc.new_file)[:-20], "not a whole Arrow file"),
        ("a.zip", b"PK\x03\x04rest", "holds no text and no table"),
        ("a.parquet.gz", gzip.compress(_parquet()), "holds a table"),
        ("a.jsonl", b"", "holds no document"),
    ],
)
def test_torn_and_foreign_files_are_one_line(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(LimbeckError, match=says) as caught:
        read(files(tmp_path / name))
    assert "data.corpus.0" in caught.value.line()


def test_a_parquet_table_of_conversations(tmp_path: Path) -> None:
    """Structs fill what a message lacks with nulls; they are not seen."""
    turns = [[U, {"role": "assistant", "content": None, "tool_calls": [CALL]}], [U, A]]
    table = pyarrow.Table.from_pylist([{"messages": t, "tools": [TOOL]} for t in turns])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    called, said = read(ParquetSource(parquet=str(tmp_path / "a.parquet")))
    assert called.messages[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert said.messages == (U, A)
    assert said.tools == (TOOL,)
