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


# ----------------------------------------------------------------------------------------------------------- null


@pytest.mark.parametrize("mark", [",", "\t"])
@pytest.mark.parametrize("quoted", [False, True])
def test_what_databases_write_for_null(tmp_path: Path, mark: str, *, quoted: bool) -> None:
    cell = '"\\N"' if quoted else "\\N"
    text = f"question,answer,id\nq,{cell},1\nq2,a \\N b,2\nq3,line 1\\nline 2,\\N\n".replace(",", mark)
    found, seen = read(write(tmp_path, "a.tsv" if mark == "\t" else "a.csv", text))
    assert [d.messages[1]["content"] for d in found] == ["a \\N b", "line 1\\nline 2"]
    assert seen.line() == "2 pairs (`question`, `answer`); 1 cell `\\N`, read as null; not read: id"
    assert seen.left_out() == "1 of its rows hold no text, no question or no answer"


@pytest.mark.parametrize("cell", ["NULL", "null", "NaN", "nan", "<NA>"])
def test_words_that_may_mean_null_are_doubted(tmp_path: Path, cell: str) -> None:
    found, seen = read(write(tmp_path, "a.csv", f"question,answer,gone\nq,{cell},{cell}\nq2,a,b\nq3,{cell},x\n"))
    assert [d.messages[1]["content"] for d in found] == [cell, "a", cell]
    (doubt,) = seen.doubts()
    assert doubt.startswith(f"2 cells of `answer` say `{cell}`, which is read as that word")


# --------------------------------------------------------------------------------------------------------- headers


@pytest.mark.parametrize("header", ["text", "question,answer"])
def test_a_single_line_is_no_header_that_no_other_file_has(tmp_path: Path, header: str) -> None:
    """The last part of a table that was cut by lines."""
    row = ",".join("xy"[: header.count(",") + 1])
    write(tmp_path, "x00.csv", f"{header}\n{row}\n{row}\n")
    last = write(tmp_path, "x01.csv", f"{row}\n")
    for paths in ([tmp_path], [tmp_path / "*.csv"], [tmp_path / "x00.csv", last]):
        with pytest.raises(InputError, match=r"x01\.csv is a single line, read as names of columns") as caught:
            read(*paths)
        assert "x00.csv" in str(caught.value.fix)
    write(tmp_path, "x01.csv", f"{header}\n")  # a part without rows
    assert len(read(tmp_path)[0]) == 2
