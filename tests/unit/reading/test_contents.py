"""Files whose name says text, and whose content says rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from limbeck.data.documents.seen import Seen
from limbeck.data.documents.sources import documents
from limbeck.errors import InputError
from limbeck.recipe import Columns, TextSource
from tests.unit.reading.given import A, U, read, write

PAIRS = [{"question": "Hi", "answer": "Yo"}, {"question": "Who?", "answer": "Bo"}]
LONG = [{"question": f"{n}" + "x" * 3000, "answer": "a"} for n in range(60)]
LONGER = [{"question": "x" * 100_000, "answer": "a"}, {"question": "y", "answer": "b"}]


def lines(rows: list[Any], mark: str) -> str:
    return "".join(f"{mark.join(line)}\n" for line in (["question", "answer"], *([*row.values()] for row in rows)))


ROWS = {
    "list": lambda rows: json.dumps(rows),
    "pretty list": lambda rows: json.dumps(rows, indent=1),
    "open list": lambda rows: "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n",
    "lines": lambda rows: "\n".join(map(json.dumps, rows)),
    "pretty objects": lambda rows: "\n".join(json.dumps(row, indent=1) for row in rows),
    "wrapped": lambda rows: json.dumps({"data": rows}, indent=1),
    "wrapped in a line": lambda rows: json.dumps({"data": rows}),
    "tabs": lambda rows: lines(rows, "\t"),
    "commas": lambda rows: lines(rows, ","),
    "semicolons": lambda rows: lines(rows, ";"),
}


@pytest.mark.parametrize(
    ("name", "encoding"), [("a.txt", "utf-8"), ("a.md", "utf-8-sig"), ("a.txt", "utf-16"), ("a.text.gz", "utf-8")]
)
@pytest.mark.parametrize("form", ROWS)
@pytest.mark.parametrize("rows", [PAIRS, LONG, LONGER], ids=["short", "long", "longer"])
def test_rows_in_a_file_of_text(tmp_path: Path, form: str, encoding: str, name: str, rows: list[Any]) -> None:
    if rows is LONGER and form in ("tabs", "commas", "semicolons"):
        pytest.skip("no whole row stands in the head of such a file")
    data = ROWS[form](rows).encode(encoding)
    path = write(tmp_path, name, gzip.compress(data) if name.endswith("gz") else data)
    found, _ = read(path)
    assert [d.messages[0]["content"] for d in found] == [row["question"] for row in rows]
    seen: dict[str, Seen] = {}
    (whole,) = documents((TextSource(text=str(path)),), seen)  # `text:` reads what the recipe says
    assert whole.text == data.decode(encoding).strip("\n")


@pytest.mark.parametrize(
    "text",
    [
        "[1] The first footnote.\n",
        '{"a": 1} is an object in JSON.\n',
        '[{"a": 1}] is a list in JSON.\nIt has one item.\n',
        "{\n  int x;\n}\n",
        '{\n "compilerOptions": {\n  "strict": true\n }\n}\n',
        "question, answer\nThat is what it is about, more or less\n",
        "Dear all,\n\nThis is prose, with commas.\n",
        "name\tvalue\n",
        "[]\n",
        "[\n",
        "text\nwithout a table\n",
        "One, two\nbuckle, my shoe\n",
    ],
)
def test_texts_that_are_none(tmp_path: Path, text: str) -> None:
    found, seen = read(write(tmp_path, "a.txt", text))
    assert ([d.text for d in found], seen.doubts()) == ([text.strip("\n")], [])


@pytest.mark.parametrize("before", ["# rows\n", "// rows\n", "var x = ", "null\n", '"abc"\n'])
def test_what_looks_like_json_is_doubted(tmp_path: Path, before: str) -> None:
    found, seen = read(write(tmp_path, "a.txt", before + "\n".join(map(json.dumps, PAIRS))))
    assert len(found) == 1
    (doubt,) = seen.doubts()
    assert "a.txt is read as text, and looks like rows in JSON" in doubt


def test_a_torn_list_is_not_taken_for_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not JSON"):
        read(write(tmp_path, "a.txt", json.dumps(PAIRS, indent=1)[:-3]))


def test_messages_by_themselves_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="in a shape that limbeck knows"):
        read(write(tmp_path, "a.txt", json.dumps([U, A], indent=1)))


@pytest.mark.parametrize("text", ["q\ta\nHi\tYo\nWho?\tBo\n", "id,q,a\n1,Hi,Yo\n2,Who?,Bo\n"])
def test_what_looks_like_a_table_is_doubted(tmp_path: Path, text: str) -> None:
    found, seen = read(write(tmp_path, "a.txt", text))
    assert [d.text for d in found] == [text.strip()]
    (doubt,) = seen.doubts()
    assert "a.txt is read as text, and looks like a table (`" in doubt
    with pytest.raises(InputError, match="is plain text, without columns"):
        read(tmp_path / "a.txt", columns=Columns(prompt="q", response="a"))


@pytest.mark.parametrize("columns", [{"text": "t"}, {"messages": "m"}, {"prompt": "q", "response": "a"}])
def test_a_text_has_no_columns(tmp_path: Path, columns: dict[str, str]) -> None:
    with pytest.raises(InputError, match="is plain text, without columns"):
        read(write(tmp_path, "a.txt", "words"), columns=Columns(**columns))
