"""Rows of CSV and TSV files."""

from __future__ import annotations

from pathlib import Path

import pytest

from limbeck.errors import InputError
from tests.unit.reading.given import read, write

BOM = "\ufeff"
ENCODINGS = ["utf-8", "utf-16"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [",", "\t", ";"])
@pytest.mark.parametrize(
    "header", ["question,answer", '"question","answer"', '"Question" , "Answer"', '"text"', "text", '"question",answer']
)
def test_joined_files_with_byte_order_marks(tmp_path: Path, header: str, mark: str, end: str, encoding: str) -> None:
    """The second header is one, however it is quoted."""
    row = ",".join("ab"[: header.count(",") + 1])
    one = "".join(f"{line}{end}".replace(",", mark) for line in (header.replace(" ", "").lower(), row))
    two = "".join(f"{line}{end}".replace(",", mark) for line in (header, row))
    path = write(tmp_path, "a.tsv" if mark == "\t" else "a.csv", f"{BOM}{one}{BOM}{two}".encode(encoding))
    with pytest.raises(InputError, match="line 3"):
        read(path)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("row", ["q2,a2", '"q2","a2"', '"q2",a2'])
def test_a_byte_order_mark_before_a_row_is_none_of_its_text(tmp_path: Path, row: str, encoding: str) -> None:
    path = write(tmp_path, "a.csv", f"question,answer\nq,a\n{BOM}{row}\nq3,a3\n".encode(encoding))
    said = [[m["content"] for m in document.messages] for document in read(path)[0]]
    assert said == [["q", "a"], ["q2", "a2"], ["q3", "a3"]]


def test_one_inside_a_field_stays(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", f'text\n"one\n{BOM}two"\n')
    assert [document.text for document in read(path)[0]] == [f"one\n{BOM}two"]
