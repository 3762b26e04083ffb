"""Documents from the files and shapes that people have."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from limbeck.data.documents.document import Document
from limbeck.data.documents.seen import Seen
from limbeck.data.documents.sources import documents
from limbeck.data.reading import readers
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


def _arrow(new: Callable[..., Any], found: list[dict[str, str]] = TEXTS) -> bytes:
    out, table = io.BytesIO(), pyarrow.Table.from_pylist(found)
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
    "lines.txt": LINES.encode(),
    "utf16.csv": _delimited(",").decode().encode("utf-16"),
    "semicolons.csv": _delimited(";")
    .replace(b"text", b"text;n", 1)
    .replace(b"\r\n", b";1\r\n")
    .replace(b";n;1", b";n"),
    "old_mac.jsonl": LINES.replace("\n", "\r").encode(),
    "under_in_a_line.json": json.dumps({"data": TEXTS}).encode(),
    "under_beside.json": json.dumps({"version": "1", "data": TEXTS, "n": [1, 2], "empty": []}, indent=1).encode(),
    "one_after_another.json": "\n".join(json.dumps(row, indent=1) for row in TEXTS).encode(),
    "pretty.jsonl": "\n".join(json.dumps(row, indent=1) for row in TEXTS).encode(),
}


def _gzip(data: bytes) -> bytes:
    """Without the time: processes that run the tests side by side name the cases by their bytes."""
    return gzip.compress(data, mtime=0)


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
        (".gz", _gzip),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", _zstd),
        ("", _gzip),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.arrow", "stream.arrow"])
def test_compressed_containers(tmp_path: Path, name: str, ending: str, compress: Any) -> None:
    path = tmp_path / f"{name}{ending}"
    path.write_bytes(compress(CONTAINERS[name]))
    assert [d.text for d in read(files(path))] == [row["text"] for row in TEXTS]
    if name == "a.jsonl":
        assert len(read(JsonlSource(jsonl=str(path)))) == 3


B1, B2 = (f"{line}\n".encode() for line in LINES.splitlines()[:2])
XZ, BZ = lzma.compress, bz2.compress


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl.xz", XZ(B1) + XZ(B2)),
        ("a.jsonl.xz", XZ(B1) + b"\0" * 8 + XZ(B2)),
        ("a.jsonl.xz", XZ(B1) + b"\0" * 4 + XZ(B2) + b"\0" * (4 << 16)),
        ("a.jsonl.xz", XZ(B1[:9]) + XZ(B1[9:] + B2)),
        ("a.jsonl.bz2", BZ(B1) + BZ(B2)),
        ("a.jsonl.gz", _gzip(B1) + b"\0" * 64 + _gzip(B2)),
        ("a.jsonl.zst", _zstd(B1) + _zstd(B2)),
        ("a.arrow", _arrow(pyarrow.ipc.new_stream, TEXTS[:1]) + _arrow(pyarrow.ipc.new_stream, TEXTS[1:2])),
        ("a.arrow.xz", XZ(_arrow(pyarrow.ipc.new_stream, TEXTS[:1]) + _arrow(pyarrow.ipc.new_stream, TEXTS[1:2]))),
    ],
)
def test_several_streams_are_one_file(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert [d.text for d in read(files(tmp_path / name))] == [row["text"] for row in TEXTS[:2]]


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.jsonl.xz", XZ(B1) + B2, "torn .xz: what follows a whole stream is none"),
        ("a.jsonl.xz", XZ(B1) + _gzip(B2), "torn .xz"),
        ("a.jsonl.xz", XZ(B1) + b"\xfe" + XZ(B2)[1:], "torn .xz"),
        ("a.jsonl.xz", XZ(B1) + XZ(B2)[:-9], "torn .xz: it ends inside a stream"),
        ("a.jsonl.xz", XZ(B1) + b"\0" * 3, "torn .xz: 3 zero bytes follow"),
        ("a.jsonl.xz", XZ(B1) + b"\0" * 3 + XZ(B2), "torn .xz"),
        ("a.jsonl.bz2", BZ(B1) + B2, "torn .bz2: what follows a whole stream is none"),
        ("a.jsonl.bz2", BZ(B1) + b"\0" * 64 + BZ(B2), "torn .bz2"),
        ("a.jsonl.bz2", BZ(B1) + b"X" + BZ(B2)[1:], "torn .bz2"),
        ("a.jsonl.bz2", BZ(B1) + b"BZh", "torn .bz2"),
        ("a.jsonl.gz", _gzip(B1) + B2, "torn .gzip"),
        ("a.jsonl.zst", _zstd(B1) + B2, "torn .zstd"),
        ("a.arrow", _arrow(pyarrow.ipc.new_stream) + _arrow(pyarrow.ipc.new_file), "something after an Arrow stream"),
        ("a.arrow", _arrow(pyarrow.ipc.new_stream) + b"junk" * 9, "something after an Arrow stream"),
        ("a.arrow", _arrow(pyarrow.ipc.new_file) * 2, "is several files joined"),
        ("a.parquet", _parquet() * 2, "is several files joined"),
        ("a.parquet.gz", _gzip(_parquet() * 3), "is several files joined"),
        ("a.parquet", b"", "is empty, which no Parquet file is"),
        ("a.arrow.gz", _gzip(b""), "is empty, which no Arrow file is"),
    ],
)
def test_what_follows_is_not_dropped(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    (tmp_path / "other.jsonl").write_bytes(B1)
    with pytest.raises(InputError, match=says):
        read(files(tmp_path))


def test_an_arrow_file_of_many_batches_is_whole(tmp_path: Path) -> None:
    """Also one without rows, and one whose strings stand in a dictionary."""
    for rows_in in (TEXTS * 500, []):
        table = pyarrow.table(
            {"text": pyarrow.array([r["text"] for r in rows_in], pyarrow.string()).dictionary_encode()}
        )
        with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as out, pyarrow.ipc.new_file(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
        found = readers.read_rows(tmp_path / "a.arrow", "key")
        assert [row["text"] for row, _ in found] == [row["text"] for row in rows_in]
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=7, write_page_index=True)
        found = readers.read_rows(tmp_path / "a.parquet", "key")
        assert [row["text"] for row, _ in found] == [row["text"] for row in rows_in]


def _twice() -> dict[str, pyarrow.Table]:
    texts = pyarrow.array(["a", "b"])
    struct = pyarrow.StructArray.from_arrays(
        [texts, texts, texts], fields=[pyarrow.field(name, texts.type) for name in ("role", "content", "content")]
    )
    turns = pyarrow.ListArray.from_arrays(pyarrow.array([0, 2]), struct)
    return {
        "the column 'text' twice": pyarrow.table([texts, texts], names=["text", "text"]),
        "in `messages` the part 'content' twice": pyarrow.table([turns], names=["messages"]),
        "in `turn` the part 'content' twice": pyarrow.table([struct], names=["turn"]),
    }


@pytest.mark.parametrize("says", _twice())
def test_a_table_that_names_a_column_twice_is_refused(tmp_path: Path, says: str) -> None:
    table = _twice()[says]
    with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as out, pyarrow.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    with pyarrow.OSFile(str(tmp_path / "b.arrow"), "wb") as out, pyarrow.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    pyarrow.parquet.write_table(table, tmp_path / "c.parquet")
    for path in tmp_path.iterdir():
        with pytest.raises(InputError, match=f"names {says}"):
            read(files(path))


def test_a_separator_that_stands_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\n===\r\ntwo")
    for separator in ("\r\n===\r\n", "\n===\n"):
        assert [d.text for d in read(TextSource(text=str(tmp_path), separator=separator))] == ["one", "two"]
    (tmp_path / "b.txt").write_text("three")
    assert len(read(TextSource(text=str(tmp_path), separator="==="))) == 3
    with pytest.raises(InputError, match="'---' does not stand in any of 2 files") as caught:
        read(TextSource(text=str(tmp_path), separator="---", max_documents=1))
    assert caught.value.line().startswith("data.corpus.0.separator")
    with pytest.raises(InputError, match=r"'---' does not stand in .*a\.txt"):
        read(TextSource(text=str(tmp_path / "a.txt"), separator="---"))
    with pytest.raises(ValidationError):
        TextSource(text="a.txt", separator="")


def test_compressed_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(_gzip(b"one\n--\ntwo"))
    assert [d.text for d in read(TextSource(text=str(tmp_path / "a.txt.gz"), separator="--"))] == ["one", "two"]
    assert [d.text for d in read(files(tmp_path / "a.txt.gz"))] == ["one\n--\ntwo"]


def test_folders_patterns_and_lists(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for n, name in enumerate(("b.jsonl", "a.jsonl", "deep/c.jsonl.gz", "notes.rst")):
        data = json.dumps({"text": f"{n}"}).encode()
        (tmp_path / name).write_bytes(_gzip(data) if name.endswith("gz") else data)
    assert [d.text for d in read(files(tmp_path))] == ["1", "0", "2"]
    assert [d.text for d in read(files(tmp_path / "*.jsonl"))] == ["1", "0"]
    assert [d.text for d in read(files(tmp_path / "**" / "*.gz"))] == ["2"]
    assert [d.text for d in read(files(tmp_path / "b.jsonl", tmp_path / "a.jsonl"))] == ["0", "1"]
    with pytest.raises(RecipeError, match=r"data\.corpus\.0\.files: there is no .*\.csv"):
        read(files(tmp_path / "*.csv"))


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("form", ["array", "under", "lines"])
@pytest.mark.parametrize("compress", [bytes, _gzip])
def test_a_large_file_is_read_piece_by_piece(tmp_path: Path, indent: int | None, form: str, compress: Any) -> None:
    found = [{"text": f"{n} " + "x" * (7000 - n % 7000)} for n in range(700)]
    whole = {"array": found, "under": {"n": 12345678901234567890, "data": found}}.get(form)
    text = json.dumps(whole, indent=indent) if whole else "\n".join(json.dumps(row, indent=indent) for row in found)
    (tmp_path / "a.json").write_bytes(compress(text.encode()))
    assert [d.text for d in read(files(tmp_path / "a.json"))] == [row["text"] for row in found]


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(
    rows=st.lists(
        st.fixed_dictionaries({"text": st.text(min_size=1, max_size=9), "more": _json}), min_size=1, max_size=6
    ),
    indent=st.sampled_from([None, 0, 3]),
    chunk=st.integers(1, 40),
    under=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_json_in_pieces_is_the_same_json(rows: list[Any], indent: int | None, chunk: int, *, under: bool) -> None:
    """Whatever the pieces: numbers, escapes and letters of several bytes are cut anywhere."""
    text = json.dumps({"data": rows, "n": 1} if under else rows, indent=indent, ensure_ascii=bool(chunk % 2))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "CHUNK", chunk)
        path = Path(folder) / "a.json"
        path.write_text(text, encoding="utf-8", newline="")
        assert [row for row, _ in readers.read_rows(path, "key")] == json.loads(json.dumps(rows))


@given(
    text=st.text(alphabet="ab\n\r\u4e16", max_size=60),
    separator=st.sampled_from(["\n\n", "a", "ab", "aa", "\u4e16"]),
    chunk=st.integers(1, 9),
)
@settings(max_examples=200, deadline=None)
def test_text_in_pieces_is_split_as_a_whole(text: str, separator: str, chunk: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "CHUNK", chunk)
        path = Path(folder) / "a.txt"
        path.write_bytes(text.encode())
        pieces = [piece.strip("\n") for piece in path.read_text().split(separator) if piece.strip()]
        assert list(readers.read_text(path, "key", separator)) == pieces


def test_what_lies_beside_data_is_not_read(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    (hub / "data").mkdir(parents=True)
    (hub / ".cache").mkdir()
    (hub / "README.md").write_text("# A data set")
    (hub / "dataset_infos.json").write_text("{}")
    (hub / ".cache" / "a.jsonl").write_text('{"text": "hidden"}')
    (hub / "data" / "train.parquet").write_bytes(_parquet())
    assert [d.text for d in read(files(hub))] == [row["text"] for row in TEXTS]
    (hub / "notes.txt").write_text("notes")
    seen: dict[str, Seen] = {}
    assert len(list(documents((files(hub),), seen))) == len(TEXTS)
    assert seen["data.corpus.0"].line() == "3 plain texts (`text`); not read: .cache/a.jsonl, README.md, notes.txt"
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "README.md").write_text("how to")
    with pytest.raises(RecipeError, match="without files that limbeck reads"):
        read(files(tmp_path / "texts"))
    (tmp_path / "texts" / "a.md").write_text("a text")
    assert [d.text for d in read(files(tmp_path / "texts"))] == ["a text"]


def test_folders_of_the_datasets_library(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    Dataset.from_list(TEXTS).save_to_disk(str(tmp_path / "one"))
    assert [d.text for d in read(files(tmp_path / "one"))] == [row["text"] for row in TEXTS]
    DatasetDict({"train": Dataset.from_list(TEXTS), "test": Dataset.from_list(TEXTS)}).save_to_disk(tmp_path / "both")
    with pytest.raises(RecipeError, match=r"several splits \(test, train\)"):
        read(files(tmp_path / "both"))
    assert len(read(files(tmp_path / "both" / "train"))) == 3


def test_a_url_is_no_file() -> None:
    with pytest.raises(RecipeError, match=r"is a URL.*`dataset:`"):
        read(files("https://example.org/a.jsonl"))


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
        ({"instruction": "", "input": "Hi", "output": "Yo"}, (U, A)),
        ({"instruction": "Add", "input": "1", "output": "2"}, ({**U, "content": "Add\n\n1"}, {**A, "content": "2"})),
        ({"instruction": "Hi", "output": "Yo", "system": "kind"}, ({"role": "system", "content": "kind"}, U, A)),
        ({"instruction": "Hi", "output": "Yo", "history": [["Hi", "Yo"]]}, (U, A, U, A)),
        ({"prompt": "Hi", "response": "Yo"}, (U, A)),
        ({"prompt": "Hi", "completion": "Yo"}, (U, A)),
        ({"question": "Hi", "answer": "Yo"}, (U, A)),
        ({"prompt": [U], "completion": [A]}, (U, A)),
        ({"prompt": [U], "response": "Yo"}, (U, A)),
        ({"prompt": [U, A, U], "completion": [A]}, (U, {**A, "learn": False}, U, A)),
        ({"prompt": json.dumps([U]), "completion": json.dumps([A])}, (U, A)),
        ({"prompt": "[{ Hi", "response": "Yo"}, ({**U, "content": "[{ Hi"}, A)),
        ({"instruction": "Add", "context": "1", "response": "2"}, ({**U, "content": "Add\n\n1"},
                                                                   {**A, "content": "2"})),
        ({"instruction": "Add", "input": "1", "response": "2"}, ({**U, "content": "Add\n\n1"}, {**A, "content": "2"})),
        ({"conversation": [{"role": "human", "content": "Hi"}, {"role": "gpt", "content": "Yo"}]}, (U, A)),
        ({"conversations": [{"from": "User", "value": "Hi"}, {"from": "AI", "value": "Yo"}]}, (U, A)),
        ({"messages": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}, (U, A)),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "H"}, "i"]}, A]}, (U, A)),
        ({"messages": [U, {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, "Yo"]}]},
         (U, {**A, "reasoning_content": "hm"})),
        ({"messages": [U, {"role": "assistant", "content": [{"type": "thinking", "thinking": "h"},
                                                            {"type": "reasoning", "text": "m"}, "Yo"]}]},
         (U, {**A, "reasoning_content": "hm"})),
        ({"messages": [U, {"role": "assistant", "content": "", "tool_calls": CALL}]},
         (U, {"role": "assistant", "content": "", "tool_calls": [CALL]})),
        ({"messages": [U, {"role": "assistant", "content": "", "tool_calls": [
            {"function": {"name": "f", "arguments": {"a": None}}}]}]},
         (U, {"role": "assistant", "content": "", "tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": {"a": None}}}]})),
        ({"messages": [U, {"role": "assistant", "content": None, "function_call": CALL["function"]},
                       {"role": "function", "name": "weather", "content": "4 C"}, A]},
         (U, {"role": "assistant", "content": "", "tool_calls": [CALL]},
          {"role": "tool", "name": "weather", "content": "4 C"}, A)),
        ({"conversations": [{"from": "human", "value": "Hi"},
                            {"from": "function_call", "value": json.dumps([CALL["function"], CALL["function"]])}]},
         (U, {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]})),
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
    for row in ({"question": "Sky?", "answer": "Blue."}, {"instruction": "Sky?", "output": "Blue."}):
        assert rows(tmp_path, row)[0].chat  # they would run together where there is no template
    assert completion.key != response.key


@pytest.mark.parametrize("column", ["tools", "functions"])
@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("bare", [False, True])
def test_tools(tmp_path: Path, column: str, *, as_text: bool, bare: bool) -> None:
    nulls = {} if as_text else {"description": None}
    tools: Any = [{**TOOL["function"], **nulls}] if bare else [TOOL]  # type: ignore[dict-item]
    (document,) = rows(tmp_path, {"messages": [U, A], column: json.dumps(tools) if as_text else tools})
    assert document.tools == (TOOL,)
    for nothing in ([], "", None):
        (document,) = rows(tmp_path, {"messages": [U, A], column: nothing})
        assert document.tools == ()


@pytest.mark.parametrize(
    ("flag", "value"),
    [("weight", 0), ("weight", 0.0), ("train", False), ("training", False), ("trainable", False), ("loss_mask", 0),
     ("loss", False), ("learn", False), ("train", "false"), ("train", "0"), ("Train", False), ("is_trainable", False),
     ("should_train", 0), ("loss_weight", 0), ("supervised", False), ("masked", True), ("ignore", 1),
     ("no_loss", True), ("exclude_from_loss", 1)],
)  # fmt: skip
def test_turns_that_are_not_to_be_learned(tmp_path: Path, flag: str, value: Any) -> None:
    (document,) = rows(tmp_path, {"messages": [U, {**A, flag: value}, U, {**A, "weight": 1}]})
    assert document.messages == (U, {**A, "learn": False}, U, A)
    (document,) = rows(tmp_path, {"conversations": [
        {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo", flag: value}, {"from": "gpt", "value": "Yo"}
    ]})  # fmt: skip
    assert document.messages == (U, {**A, "learn": False}, A)
    with pytest.raises(InputError, match="no words of an `assistant` that are to be learned") as caught:
        rows(tmp_path, {"messages": [U, {**A, flag: value}]})
    assert "Write" not in caught.value.line()


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": [U, {**A, "weight": 0.5}]}, "message 2 has `weight: 0.5`"),
        ({"messages": [U, {**A, "loss_mask": [0, 1]}]}, r"message 2 has `loss_mask: \[0, 1\]`"),
        ({"messages": [U, {**A, "train_detail": [{"begin_offset": 0}]}]}, "message 2 has `train_detail`"),
        ({"messages": [{**U, "train": True}, A]}, "message 1 has `train: True` on a turn of `user`"),
        ({"messages": [{**U, "masked": False}, A]}, "message 1 has `masked: False` on a turn of `user`"),
        ({"messages": [U, {**A, "mask": 1}]}, "message 2 has `mask`, which may say what is learned"),
        ({"messages": [U, {**A, "token_weights": [0, 1]}]}, "message 2 has `token_weights`, which may say"),
        ({"messages": [U, {**A, "masked_spans": [[0, 1]]}]}, "message 2 has `masked_spans`, which may say"),
        ({"messages": [{"role": "system", "content": "s", "functions": "[{}]"}, U, A]}, "message 1 has `functions`"),
        ({"messages": [U, {**A, "function_calls": "f()"}]}, "message 2 has `function_calls`"),
        ({"messages": [{**U, "images": ["x.png"]}, A]}, "message 1 has `images`"),
        ({"messages": [{**U, "tool_calls": [CALL]}, A]}, "message 1 is a turn of `user` that calls tools"),
        ({"messages": [U, {**A, "tool_calls": 3}]}, "message 2 has `tool_calls` that are a number"),
        ({"messages": [U, {**A, "reasoning_content": ["x"]}]}, "message 2 has `reasoning_content` that is a list"),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "narrator", "value": "b"}]},
            "message 2 is by 'narrator', a role that is not known",
        ),
        ({"messages": [U, A], "tools": [3]}, "`tools` is no list of tools"),
        ({"messages": [U, A], "train": False}, "has `train`, and limbeck learns every answer"),
        ({"messages": [U, A], "loss_mask": [0, 1]}, "has `loss_mask`, and limbeck learns every answer"),
        ({"messages": [U, A], "weight": "0"}, "has `weight: 0`"),
        ({"prompt": "a", "completion": "b", "label": False}, "an answer that is not wanted"),
        ({"question": "a", "answer": "b", "context": "c"}, "has a `context`, which would be left out"),
        ({"prompt": "a", "response": "b", "context": "c"}, "has a `context`, which would be left out"),
        ({"prompt": [U], "completion": [U, A]}, "a `completion` that begins with a turn of `user`"),
        ({"prompt": "a", "completion": "b", "tools": [TOOL]}, "has tools beside a `completion`"),
        ({"instruction": "a", "output": "b", "history": "c"}, "has a `history` that is text"),
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


@pytest.mark.parametrize(
    "more",
    [{"instruction": "a", "output": "b"}, {"question": "a", "answer": "b"}, {"prompt": "a", "completion": "b"},
     {"conversations": [U, A]}, {"tools": "{"}, {"train": False}],
)  # fmt: skip
def test_text_is_read_as_ever_beside_newer_shapes(tmp_path: Path, more: dict[str, Any]) -> None:
    seen: dict[str, Seen] = {}
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "whole", **more}))
    (document,) = documents((JsonlSource(jsonl=str(tmp_path / "a.jsonl")),), seen)
    assert document.text == "whole"
    assert seen["data.corpus.0"].unread == set(more)


def test_names_in_data_are_not_obeyed_by_a_terminal(tmp_path: Path) -> None:
    odd = "\x1b[31m\u202e"
    with pytest.raises(InputError) as caught:
        rows(tmp_path, {odd: 3})
    seen: dict[str, Seen] = {}
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a", odd: 1}))
    list(documents((files(tmp_path / "a.jsonl"),), seen))
    for said in (caught.value.line(), seen["data.corpus.0"].line()):
        assert "\\x1b[31m\\u202e" in said
        assert said.isprintable()


def test_a_named_column_comes_before_any_other(tmp_path: Path) -> None:
    row = {"messages": [U, A], "prompt": "a", "response": "b", "text": "t", "story": "once", "chosen": [U, A]}
    assert rows(tmp_path, row, columns=Columns(text="story"))[0].text == "once"
    assert rows(tmp_path, row, columns=Columns(prompt="text", response="story"))[0].messages[1]["content"] == "once"
    assert rows(tmp_path, {**row, "rejected": [U]}, columns=Columns(messages="chosen"))[0].messages == (U, A)
    with pytest.raises(InputError, match=r"columns: \{messages: chosen\}"):
        rows(tmp_path, row, columns=Columns(prompt="prompt", response="chosen"))


def left_out(tmp_path: Path, *found: Any, **more: Any) -> tuple[list[Document], str]:
    seen: dict[str, Seen] = {}
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in found))
    return list(documents((files(path, **more),), seen)), str(seen["data.corpus.0"].left_out())


@pytest.mark.parametrize(
    "row",
    [
        {"text": ""},
        {"text": None, "id": 3},
        {"messages": None},
        {"question": "Hi", "answer": None},
        {"question": "Hi", "answer": " "},
        {"question": None, "answer": "Yo"},
        {"question": "", "answer": "Yo"},
        {"prompt": " ", "response": "Yo"},
        {"prompt": "", "completion": "Yo", "system": "kind"},
        {"instruction": "", "input": "", "output": "Yo"},
        {"instruction": "Hi", "input": "", "output": ""},
        {"instruction": "Hi", "output": None},
    ],
)
def test_rows_without_text_question_or_answer_are_counted(tmp_path: Path, row: dict[str, Any]) -> None:
    found, said = left_out(tmp_path, {"text": "x"}, row)
    assert (len(found), said) == (1, "1 of its rows hold no text, no question or no answer")
    with pytest.raises(InputError, match="holds no document: 1 of its rows hold no text"):
        left_out(tmp_path, row)


def test_null_is_empty_in_a_table_too(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None, "b"]}), tmp_path / "a.parquet")
    assert [d.text for d in read(files(tmp_path / "a.parquet"))] == ["a", "b"]
    (tmp_path / "b.jsonl").write_text('{"q": "Hi", "a": "Yo"}\n{"q": "Hi", "a": null}\n')
    assert len(read(files(tmp_path / "b.jsonl", columns=Columns(prompt="q", response="a")))) == 1


@pytest.mark.parametrize(
    ("row", "columns", "says"),
    [
        ({"q": "Hi", "a": "Yo"}, {"prompt": "q", "response": "zzz"}, "has no `zzz`; it has"),
        ({"q": "Hi", "a": "Yo"}, {"prompt": "yyy", "response": "zzz"}, "has no `yyy` and no `zzz`; it has"),
        ({"q": "Hi"}, {"text": "t"}, "has no text in `t`; it has"),
    ],
)
def test_the_column_that_is_missing_is_named(
    tmp_path: Path, row: dict[str, Any], columns: dict[str, str], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        rows(tmp_path, row, columns=Columns(**columns))


@pytest.mark.parametrize(
    "columns",
    [{"text": "t", "prompt": "q", "response": "a"}, {"prompt": "q", "response": "q"}, {"text": "t", "messages": "t"}],
)
def test_columns_that_say_two_things_are_refused(columns: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Columns(**columns)


def test_blank_columns_of_another_shape_are_absent(tmp_path: Path) -> None:
    """As in one table of rows of several shapes."""
    with (tmp_path / "a.csv").open("w", newline="") as out:
        csv.writer(out).writerows([
            ["text", "prompt", "response", "question", "answer"],
            ["", "Hi", "Yo", "", ""], ["", "", "", "Hi", "Yo"], ["whole", "", "", "", ""], ["", "", "", "", ""],
        ])  # fmt: skip
    seen: dict[str, Seen] = {}
    found = list(documents((files(tmp_path / "a.csv"),), seen))
    assert [(d.text, d.messages) for d in found] == [(None, (U, A)), (None, (U, A)), ("whole", ())]
    assert "not read" not in seen["data.corpus.0"].line()
    (tmp_path / "b.csv").write_text("text\n[]\n{}\n")
    assert [d.text for d in read(files(tmp_path / "b.csv"))] == ["[]", "{}"]
    assert "1 of its rows" in str(seen["data.corpus.0"].left_out())


@pytest.mark.parametrize("flag", [{"label": False}, {"label": 0}, {"kto_tag": "False"}, {"train": False}, {"train": 0}])
@pytest.mark.parametrize(
    "row",
    [{"messages": [U, A]}, {"conversations": [U, A]}, {"prompt": "Hi", "response": "Yo"},
     {"question": "Hi", "answer": "Yo"}, {"prompt": [U], "completion": [A]}, {"instruction": "Hi", "output": "Yo"}],
)  # fmt: skip
def test_rows_that_are_not_to_be_learned_are_refused_in_every_shape(
    tmp_path: Path, row: dict[str, Any], flag: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=f"`{next(iter(flag))}"):
        rows(tmp_path, {**row, **flag})
    assert rows(tmp_path, {**row, "label": 1, "kto_tag": "true", "train": True})


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
        ("a.json", b'[{"text": "a"}, {"text": "b"', r"a\.json, line 1 is not JSON \(Expecting ',' delimiter\)"),
        ("a.json", b'[{"text": "a"} {"text": "b"}]', r"a\.json, line 1 is not JSON \(expecting ',' or ']'\)"),
        ("a.json", b'[{"text": "a"}] x', r"a\.json, line 1 is not JSON \(Expecting value\)"),
        ("a.json", b'{"text": \n', "is not JSON"),
        ("a.csv", b"text,n\na,1,2\n", "line 2 has more fields than the header"),
        ("a.csv", b"text,n\na\n", "line 2 has fewer fields than the header"),
        ("a.csv", b"text,text\na,b\n", "names the column 'text' twice"),
        ("a.jsonl.gz", _gzip(LINES.encode() * 50)[:-30], r"a\.jsonl\.gz is torn"),
        ("a.jsonl.xz", lzma.compress(LINES.encode())[:-10], "is torn"),
        ("a.jsonl", "caf\xe9 \xff".encode("latin-1"), "is not UTF-8"),
        ("a.parquet", _parquet()[:-20], "not a whole Parquet file"),
        ("a.arrow", _arrow(pyarrow.ipc.new_file)[:-20], "not a whole Arrow file"),
        ("a.zip", b"PK\x03\x04rest", "is a zip archive"),
        ("a.pdf", b"%PDF-1.7", "is a PDF"),
        ("a.tar", b"x" * 257 + b"ustar", "is a tar archive"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "is a Git LFS pointer.*git lfs pull"),
        ("a.parquet", b'{"text"', "is not a whole Parquet file"),
        ("a.parquet.gz", _gzip(_parquet())[:-30], r"a\.parquet\.gz is torn"),
        ("a.jsonl.zst", _zstd(LINES.encode() * 50)[:-9], r"a\.jsonl\.zst is torn"),
        ("a.jsonl.bz2", bz2.compress(LINES.encode())[:-9], r"a\.jsonl\.bz2 is torn"),
        ("a.jsonl.gz", _gzip(_gzip(LINES.encode())), "is compressed twice"),
        ("a.jsonl", LINES.encode("utf-16-le"), "looks like UTF-16 without a byte order mark.*iconv"),
        ("a.jsonl", LINES.encode("utf-16")[:-1], "is not UTF-16"),
        ("a.jsonl", b'{"text": "a"}\n' * 3000 + b'{"text": "\xe9"}\n', r"is not UTF-8 \(line 3,001, byte 10"),
        ("a.txt", b"a" * (1 << 20) + b"\xe9 ", r"is not UTF-8 \(byte 1048576\)"),
        ("a.json", b'{"a": [{"text": "x"}],\n"b": [{"text": "y"}]}', r"several lists of rows \(`a`, `b`\)"),
        ("a.json", b'[\n{"text": "a"},\n{"text": \n}]', "line 4 is not JSON"),
        ("a.csv", b'text\n"abc\nd\n', "a quote is never closed"),
        ("a.csv", b'text\n"a"b\n', "line 2 is not CSV"),
        ("a.csv", b"text\n\xe9\n", "is not UTF-8"),
        ("unknown", b"some words", "is no kind of file that is known.*use `text:`"),
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


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": [U, {"role": "tool_call", "content": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
                       {"role": "tool_response", "content": "4 C"}, A]},
         (U, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "4 C"}, A)),
        ({"messages": [{"role": "User", "content": "Hi"}, {"role": "model", "content": "Yo"}]}, (U, A)),
        ({"messages": [{"role": "human", "value": "Hi"}, {"role": "gpt", "value": "Yo"}]}, (U, A)),
        ({"query": "Hi", "response": "Yo", "history": [["Hi", "Yo"]]}, (U, A, U, A)),
        ({"prompt": "Hi", "response": '[{"role": "director", "content": "x"}]'},
         (U, {**A, "content": '[{"role": "director", "content": "x"}]'})),
        ({"messages": [U, {"role": "assistant", "content": [{"type": "thinking", "text": "hm", "thinking": None},
                                                             {"type": None, "text": "Yo"}]}]},
         (U, {**A, "reasoning_content": "hm"})),
        ({"messages": [U, A], "weight": float("nan")}, (U, A)),
    ],
)  # fmt: skip
def test_words_of_other_tools(tmp_path: Path, row: dict[str, Any], messages: tuple[dict[str, Any], ...]) -> None:
    assert [d.messages for d in rows(tmp_path, row)] == [messages]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": [U, {"role": "narrator", "content": "x"}, A]}, "'narrator', a role that is not known"),
        ({"messages": [U, {**A, "mask": True}]}, "has `mask`"),
        ({"messages": [U, {**A, "loss_scale": 0}]}, "has `loss_scale`"),
        ({"messages": [U, {**A, "skip": True}]}, "has `skip`"),
        ({"prompt": "q", "completion": "bad", "kto_tag": False}, "not wanted"),
        ({"prompt": "q", "response": "bad", "label": False}, "not wanted"),
        ({"messages": [U, A], "mask_history": True}, "has `mask_history`"),
        ({"messages": [U, A], "train_on_inputs": True}, "has `train_on_inputs`"),
    ],
)
def test_what_other_tools_ask_for_is_refused_by_name(tmp_path: Path, row: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        rows(tmp_path, row)


def test_an_empty_list_is_no_conversation(tmp_path: Path) -> None:
    assert [d.text for d in rows(tmp_path, {"messages": [], "text": "T"})] == ["T"]


# --------------------------------------------------------------------------------- nothing is lost without a word


def recognised(tmp_path: Path, *found: Any, **more: Any) -> str:
    """The line that says what was recognised."""
    seen: dict[str, Seen] = {}
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in found))
    assert list(documents((files(path, **more),), seen))
    return seen["data.corpus.0"].line()


S, T = {"role": "system", "content": "kind"}, {"role": "tool", "content": "4 C"}


@pytest.mark.parametrize("name", ["function", "ipython", "tool"])
def test_results_of_tools_have_one_role(tmp_path: Path, name: str) -> None:
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    (document,) = rows(tmp_path, {"messages": [U, called, {"role": name, "content": "4 C"}, A]})
    assert document.messages == (U, called, T, A)


def test_a_developer_is_the_system_where_there_is_no_other(tmp_path: Path) -> None:
    told = {"role": "developer", "content": "kind"}
    assert rows(tmp_path, {"messages": [told, U, A]})[0].messages == (S, U, A)
    assert rows(tmp_path, {"conversations": [{"from": "developer", "value": "kind"}, U, A]})[0].messages == (S, U, A)
    assert rows(tmp_path, {"messages": [S, told, U, A]})[0].messages == (S, told, U, A)


@pytest.mark.parametrize(
    ("row", "columns", "messages", "line"),
    [
        ({"q": "Hi", "a": "Yo", "history": [["Hi", "Yo"]]}, {"prompt": "q", "response": "a"}, (U, A, U, A),
         "1 pairs (`q`, `a`) with `history`"),
        ({"q": "Hi", "a": "Yo", "system": "kind", "id": 1}, {"prompt": "q", "response": "a"}, (S, U, A),
         "1 pairs (`q`, `a`) with `system`; not read: id"),
        ({"q": "Hi", "a": "Yo", "history": "long"}, {"prompt": "q", "response": "a"}, (U, A),
         "1 pairs (`q`, `a`); not read: history"),
        ({"m": [U, A], "system_prompt": "kind", "history": [["a", "b"]]}, {"messages": "m"}, (S, U, A),
         "1 conversations (`m`) with `system_prompt`; not read: history"),
        ({"m": [U, A], "tools": [TOOL]}, {"messages": "m"}, (U, A), "1 conversations (`m`) with `tools`"),
        ({"m": [U, A], "defs": [TOOL], "tools": [TOOL]}, {"messages": "m", "tools": "defs"}, (U, A),
         "1 conversations (`m`) with `defs`; not read: tools"),
        ({"instruction": "Hi", "output": "Yo", "system": "kind", "history": []}, {}, (S, U, A),
         "1 Alpaca rows (`instruction`, `output`) with `system`"),
        ({"instruction": "Hi", "input": "<noinput>", "output": "Yo"}, {}, (U, A),
         "1 Alpaca rows (`instruction`, `input`, `output`)"),
        ({"prompt": "Hi", "completion": "Yo"}, {}, (U, A), "1 pairs (`prompt`, `completion`) as they are"),
        ({"prompt": "Hi", "completion": "Yo", "system": "kind"}, {}, (S, U, A),
         "1 pairs (`prompt`, `completion`) in a chat template with `system`"),
    ],
)  # fmt: skip
def test_what_is_read_beside_a_column_is_said(
    tmp_path: Path, row: dict[str, Any], columns: dict[str, str], messages: tuple[Any, ...], line: str
) -> None:
    assert rows(tmp_path, row, columns=Columns(**columns))[0].messages == messages
    assert recognised(tmp_path, row, columns=Columns(**columns)) == line


@pytest.mark.parametrize(
    ("system", "said"),
    [
        ("kind", (S,)),
        (S, (S,)),
        ([S], (S,)),
        ([{"type": "text", "text": "kind"}], (S,)),
        ({"text": "kind"}, (S,)),
        ("", ()),
        ([], ()),
    ],
)
def test_a_system_message_in_a_column(tmp_path: Path, system: Any, said: tuple[Any, ...]) -> None:
    for row in ({"messages": [U, A]}, {"prompt": "Hi", "response": "Yo"}, {"instruction": "Hi", "output": "Yo"}):
        assert rows(tmp_path, {**row, "system": system})[0].messages == (*said, U, A)
    assert rows(tmp_path, {"messages": [S, U, A], "system": system})[0].messages == (S, U, A)
    assert rows(tmp_path, {"messages": [U, A], "system": system, "system_prompt": "kind"})[0].messages == (S, U, A)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"system": ["kind"]}, "has a `system` that is a list, not text"),
        ({"system": 5}, "has a `system` that is a number, not text"),
        ({"system_prompt": [U]}, "has a `system_prompt` that is not one message of the `system`"),
        ({"system": [S, S]}, "has a `system` that is not one message of the `system`"),
        ({"system": "a", "system_prompt": "b"}, "has a `system` and a `system_prompt` that differ"),
        ({"messages": [S, U, A], "system": "b"}, "has a `system` message and a `system` that differ"),
        ({"history": [["a", "b"]]}, "has a `history` beside messages"),
    ],
)
def test_systems_that_cannot_be_read_are_refused(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        rows(tmp_path, {"messages": [U, A], **row})


def _parts(*flags: dict[str, Any]) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": [{"type": "text", "text": text, **flag} for text, flag in zip("Yo", flags, strict=True)],
    }


@pytest.mark.parametrize("flag", ["weight", "train", "loss_mask", "learn", "loss"])
def test_flags_of_parts(tmp_path: Path, flag: str) -> None:
    no, yes = {flag: 0}, {flag: 1}
    (document,) = rows(tmp_path, {"messages": [U, _parts(no, no), U, _parts(yes, {})]})
    assert document.messages == (U, {**A, "learn": False}, U, A)
    for flags in ((no, {}), ({}, no)):
        with pytest.raises(InputError, match="message 2 has parts of which only some"):
            rows(tmp_path, {"messages": [U, _parts(*flags)]})
    with pytest.raises(InputError, match="both that it is learned and that it is not"):
        rows(tmp_path, {"messages": [U, _parts(no, yes)]})
    with pytest.raises(InputError, match="both that it is learned and that it is not"):
        rows(tmp_path, {"messages": [U, {**_parts(no, no), flag: 1}]})
    with pytest.raises(InputError, match="part 1 has `mask`"):
        rows(tmp_path, {"messages": [U, _parts({"mask": 0}, {})]})


@pytest.mark.parametrize(
    "key", ["context", "documents", "refusal", "channel", "recipient", "attachments", "passages", "image_url"]
)
def test_what_a_message_says_beside_its_text_is_refused_by_name(tmp_path: Path, key: str) -> None:
    with pytest.raises(InputError, match=f"message 2 has `{key}`, which limbeck does not read in a message"):
        rows(tmp_path, {"messages": [U, {**A, key: "x"}]})
    with pytest.raises(InputError, match=f"message 2, part 1 has `{key}`"):
        rows(tmp_path, {"messages": [U, _parts({key: "x"}, {})]})
    assert rows(tmp_path, {"messages": [U, {**A, key: None}]})[0].messages == (U, A)


def test_keys_of_messages_that_are_not_read_are_named(tmp_path: Path) -> None:
    turns = [
        {**U, "id": 3, "lang": ""},
        {**A, "cot": "hm", "channel": "final", "tool_calls": []},
        U,
        _parts({"c": 1}, {}),
    ]
    assert recognised(tmp_path, {"messages": turns, "n": 1}) == (
        "1 conversations (`messages`); not read: n; not read in messages: c, cot, id"
    )


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"from": "gpt", "value": "Yo", "content": "no"}, "message 2 has a `content` and a `value` that differ"),
        ({"role": "user", "from": "gpt", "value": "Yo"}, "message 2 has a `role` and a `from` that differ"),
    ],
)
def test_a_message_that_says_two_things_is_refused(tmp_path: Path, message: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        rows(tmp_path, {"conversations": [{"from": "human", "value": "Hi"}, message]})
    same = {"from": "gpt", "role": "assistant", "value": "Yo", "content": "Yo"}
    assert rows(tmp_path, {"conversations": [{"from": "human", "value": "Hi"}, same]})[0].messages == (U, A)


def test_parts_in_a_string_of_json(tmp_path: Path) -> None:
    """Read where all contents are; an answer may be such JSON itself."""
    asked, said = (json.dumps([{"type": "text", "text": text}]) for text in ("Hi", "Yo"))
    (document,) = rows(tmp_path, {"messages": [{**U, "content": asked}, {**A, "content": said}]})
    assert document.messages == (U, A)
    (document,) = rows(tmp_path, {"messages": [U, {**A, "content": said}]})
    assert document.messages == (U, {**A, "content": said})
    with pytest.raises(InputError, match="part of type `image`"):
        rows(tmp_path, {"messages": [{**U, "content": '[{"type": "image"}]'}, {**A, "content": said}]})


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, name: str, indent: int | None) -> None:
    text = json.dumps([{"question": "q", "answer": "a", "ANSWER": "b"}], indent=indent).replace("ANSWER", "answer")
    for whole in (text, text.strip("[]")):
        (tmp_path / name).write_text(whole)
        with pytest.raises(InputError, match="the key 'answer' stands twice"):
            read(files(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "mark"), [("a.tsv", "\t"), ("a.csv", ","), ("a.csv", ";"), ("a.csv", "|"), ("a.csv", "\t")]
)
def test_a_table_that_can_be_read_in_two_ways_is_refused(tmp_path: Path, name: str, mark: str) -> None:
    path, columns = tmp_path / name, Columns(prompt="q", response="a")

    def write(text: str) -> None:
        path.write_text(text.replace(",", mark))

    write('q,a\n1,"One\n2,two\n3,three"\n4,four\n')
    with pytest.raises(InputError, match="lines 2 to 4 are one row in quotes, or 3 without"):
        read(files(path, columns=columns))
    write('q,a\n1,"One\nmore lines"\n4,four\n')
    assert [d.messages[1]["content"] for d in read(files(path, columns=columns))] == ["One\nmore lines", "four"]


@pytest.mark.parametrize(
    "text",
    [
        'q,a\n1,"One\nNo, two\nWell, three"\n4,four\n',  # commas of prose
        '"q","a"\n"1","One\nx,y\n1,2"\n"4","four"\n',  # a writer of quotes
        'q,a\n"1, or so",one\n1,"One\nx,y\n1,2"\n',
        'q,a\n1,"One\nx,""y""\n1,2"\n4,four\n',
    ],
)
def test_lines_in_quotes_that_are_no_rows_are_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    assert len(read(files(tmp_path / "a.csv", columns=Columns(prompt="q", response="a")))) == 2


@pytest.mark.parametrize(
    ("header", "again"),
    [
        ("question,answer", "question,answer"),
        ("question,answer", "answer,question"),
        ("question,answer", "\ufeffquestion,answer"),
        ("question,answer", "Question,ANSWER"),
        ("question,answer", "question, answer"),
        ("question,answer", '"question","answer"'),
        ("question,answer,id", "question,answer,src"),
        ("text", "text"),
        ("text", "Text"),
    ],
)
@pytest.mark.parametrize("mark", [",", "\t"])
def test_a_header_in_the_middle_is_refused(tmp_path: Path, header: str, again: str, mark: str) -> None:
    path, data = tmp_path / ("a.csv" if mark == "," else "a.tsv"), ",".join("abc"[: header.count(",") + 1])
    path.write_text("\n".join((header, data, again, data)).replace(",", mark), encoding="utf-8")
    with pytest.raises(InputError, match="line 3 is the header once more"):
        read(files(path))


@pytest.mark.parametrize("row", ["question,no", ",", "answer,answer"])
def test_rows_that_hold_names_of_columns_are_no_header(tmp_path: Path, row: str) -> None:
    (tmp_path / "a.csv").write_text(f"question,answer\na,b\n{row}\nc,d\n")
    assert len(read(files(tmp_path / "a.csv"))) >= 2


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_the_line_that_tells_excel_what_separates_is_named(tmp_path: Path, mark: str) -> None:
    (tmp_path / "a.csv").write_text(f"sep={mark}\nquestion{mark}answer\na{mark}b\n")
    with pytest.raises(InputError, match=r"begins with `sep=.?`, which is no header"):
        read(files(tmp_path / "a.csv"))


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_key_that_stands_twice_in_a_string_is_refused(tmp_path: Path, name: str) -> None:
    said = json.dumps([U, A]).replace('"content":', '"content": "no", "content":')
    with (tmp_path / name).open("w", newline="") as out:
        if name == "a.csv":
            csv.writer(out).writerows([["messages"], [said]])
        else:
            json.dump({"messages": said}, out)
    with pytest.raises(InputError, match="`messages` is JSON in which the key 'content' stands twice"):
        read(files(tmp_path / name))


def test_a_column_without_a_name_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",question,answer\n0,a,b\n")
    seen: dict[str, Seen] = {}
    list(documents((files(tmp_path / "a.csv"),), seen))
    assert seen["data.corpus.0"].line().endswith("not read: a column without a name")


# ------------------------------------------------------------------------------------------------------- folders


def _folder(tmp_path: Path, *names: str) -> Path:
    for name in names:
        path = tmp_path / "d" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"text": name}))
    return tmp_path / "d"


def test_of_a_folder_content_decides(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "a.jsonl", "b.JSONL", "c.jsonlines", "part-0", "e.dat", "f.jsonl.bak", "g.tmp")
    (folder / "h.log").write_text("2026-11-28 started")
    (folder / "i.py").write_text("x = 1")
    (folder / "j.png").write_bytes(b"\x89PNG")
    (folder / "part-1").write_bytes(_parquet())
    seen: dict[str, Seen] = {}
    found = [d.text for d in documents((files(folder),), seen)]
    assert found == ["a.jsonl", "b.JSONL", "c.jsonlines", "e.dat", "part-0", *(row["text"] for row in TEXTS)]
    assert seen["data.corpus.0"].line() == "8 plain texts (`text`); not read: 5 files (.bak, .log, .png, .py, .tmp)"


def test_files_beside_texts_are_named(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "a.txt", "b.md", "README.md")
    seen: dict[str, Seen] = {}
    assert len(list(documents((TextSource(text=str(folder)),), seen))) == 1
    assert seen["data.corpus.0"].line() == "1 plain texts; not read: README.md, b.md"


@pytest.mark.parametrize(
    ("names", "splits", "fix"),
    [
        (("gsm8k.train.jsonl", "gsm8k.test.jsonl"), "test, train", "d/gsm8k.train.jsonl"),
        (("data.train.v2.jsonl", "data.dev.v2.jsonl"), "train, validation", "d/data.train.v2.jsonl"),
        (("wiki.train.tokens.jsonl", "wiki.valid.tokens.jsonl"), "train, validation", "d/wiki.train.tokens.jsonl"),
        (("split=train/0.jsonl", "split=test/0.jsonl"), "test, train", "d/split=train/0.jsonl"),
        (("trainset.jsonl", "testset.jsonl"), "test, train", "d/trainset.jsonl"),
        (("traindata.jsonl", "testdata.jsonl"), "test, train", "d/traindata.jsonl"),
        (("train.jsonl", "devset.jsonl"), "train, validation", "d/train.jsonl"),
        (("TrainData/0.jsonl", "TestData/0.jsonl"), "test, train", "d/TrainData/0.jsonl"),
        (("squadTrain.jsonl", "squadTest.jsonl"), "test, train", "d/squadTrain.jsonl"),
        (("train.jsonl", "validate.jsonl"), "train, validation", "d/train.jsonl"),
        (("train.jsonl", "validset.jsonl"), "train, validation", "d/train.jsonl"),
        (("trn.jsonl", "tst.jsonl"), "test, train", "d/trn.jsonl"),
        (("train.jsonl", "test.jsonl", "validation.jsonl"), "test, train, validation", "d/train.jsonl"),
        (("train-0.jsonl", "train-1.jsonl", "dev-0.jsonl"), "train, validation", "d/train-*"),
        (("train/0.jsonl", "train/1.jsonl", "valid/0.jsonl"), "train, validation", "d/train"),
        (("en/train/0.jsonl", "de/train/1.jsonl", "de/eval/0.jsonl"), "eval, train", "d/de/train/1.jsonl, "),
        (("squad_train.json", "squad_dev.json"), "train, validation", "d/squad_train.json"),
        (("data/train-00000-of-00001.jsonl.gz", "data/test-00000-of-00001.jsonl.gz"), "test, train", "d/data/train-"),
    ],
)
def test_splits_in_a_folder_are_not_mixed(tmp_path: Path, names: tuple[str, ...], splits: str, fix: str) -> None:
    folder = _folder(tmp_path, *names)
    with pytest.raises(RecipeError, match=rf"d holds several splits \({splits}\)") as caught:
        read(files(folder))
    assert fix in str(caught.value.fix)
    assert names[0][-1] != "l" or f"{folder}/**/*." in str(caught.value.fix)
    if fix.endswith(("*", "train", "l")):
        assert [d.text for d in read(files(tmp_path / fix))] == sorted(n for n in names if "tr" in n.lower())
    if names[0].endswith("l"):
        assert len(read(files(folder / "**" / "*.jsonl"))) == len(names)


def test_splits_of_texts_are_not_mixed(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "train/a.txt", "test/a.txt")
    with pytest.raises(RecipeError, match=r"d holds several splits \(test, train\).*`glob:`"):
        read(TextSource(text=str(folder)))
    assert len(read(TextSource(text=str(folder), glob="train/**/*.txt"))) == 1
    assert len(read(TextSource(text=str(folder), glob="**/*.*"))) == 2


def test_names_that_are_no_splits(tmp_path: Path) -> None:
    assert len(read(files(_folder(tmp_path, "trains.jsonl", "contest.jsonl", "train.jsonl", "a_test_b.jsonl")))) == 4
    assert (
        len(read(files(_folder(tmp_path / "2", "train.jsonl", "dataset.jsonl", "latest/a.jsonl", "subset.jsonl")))) == 4
    )


def test_splits_in_one_file_are_not_mixed(tmp_path: Path) -> None:
    for indent in (None, 1):
        (tmp_path / "a.json").write_text(json.dumps({"train": TEXTS, "test": TEXTS[:1]}, indent=indent))
        with pytest.raises(InputError, match=r"holds several splits \(`train`, `test`\), which should not be mixed"):
            read(files(tmp_path / "a.json"))


@pytest.mark.parametrize("aside", ["_temporary/0/part-1", "_metadata.jsonl", "_delta_log/0.json"])
def test_what_begins_with_an_underscore_is_not_read(tmp_path: Path, aside: str) -> None:
    seen: dict[str, Seen] = {}
    assert [d.text for d in documents((files(_folder(tmp_path, "part-0", aside)),), seen)] == ["part-0"]
    assert seen["data.corpus.0"].line() == f"1 plain texts (`text`); not read: {aside}"
    folder = _folder(tmp_path / "2", "a.txt", f"{aside}.txt", ".b.txt")
    assert len(read(TextSource(text=str(folder)))) == 1


def test_caches_of_the_datasets_library_are_not_read(tmp_path: Path) -> None:
    from datasets import Dataset

    folder = tmp_path / "d"
    Dataset.from_list(TEXTS).save_to_disk(str(folder))
    (folder / "cache-1.arrow").write_bytes(_arrow(pyarrow.ipc.new_stream))
    (folder / "old.arrow").write_bytes(_arrow(pyarrow.ipc.new_stream))
    seen: dict[str, Seen] = {}
    assert len(list(documents((files(folder),), seen))) == len(TEXTS)
    assert seen["data.corpus.0"].line() == "3 plain texts (`text`); not read: cache-1.arrow, old.arrow"
    (folder / "state.json").unlink()
    assert len(read(files(folder))) == 2 * len(TEXTS)
    (folder / "old.arrow").unlink()
    assert len(read(files(folder))) == len(TEXTS)


def test_a_saved_data_set_that_lacks_a_file_is_torn(tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset.from_list(TEXTS).save_to_disk(str(tmp_path / "d"), num_shards=2)
    (tmp_path / "d" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(RecipeError, match="d is torn: there is no data-00001-of-00002"):
        read(files(tmp_path / "d"))
    folder = _folder(tmp_path / "other", "a.jsonl")
    (folder / "state.json").write_text('{"_data_files": [{"filename": "x.arrow"}]}')
    assert [d.text for d in read(files(folder))] == ["a.jsonl"]
