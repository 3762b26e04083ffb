"""Which files of a folder are read, and what is said of the others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from limbeck.data.documents.seen import Seen
from limbeck.data.documents.sources import documents
from limbeck.errors import RecipeError
from limbeck.recipe import TextSource
from tests.unit.reading.given import read, write


def folder_of(folder: Path, *names: str) -> Path:
    """A folder of files that hold their own names."""
    for name in names:
        write(folder, name, [{"text": name}] if not name.endswith((".txt", ".md")) else name)
    return folder


def texts(folder: Path | str) -> set[str]:
    return {str(document.text) for document in read(folder)[0]}


def of_texts(folder: Path, **more: str) -> tuple[set[str], Seen]:
    seen: dict[str, Seen] = {}
    found = {str(d.text) for d in documents((TextSource(text=str(folder), **more),), seen)}
    return found, seen["data.corpus.0"]


# --------------------------------------------------------------------------------------------------------- links


@pytest.mark.parametrize("name", ["train-b.jsonl", "deep/b.parquet", "b", "b.txt"])
@pytest.mark.parametrize("pattern", [None, "**/*"])
def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path, name: str, pattern: str | None) -> None:
    folder_of(tmp_path, "a.jsonl", "deep/c.jsonl")
    (tmp_path / name).symlink_to("../blobs/gone")
    with pytest.raises(RecipeError, match=rf"{name} is a link to \.\./blobs/gone, which is not there") as caught:
        read(tmp_path / pattern if pattern else tmp_path)
    assert caught.value.line().startswith("data.corpus.0.files")


@pytest.mark.parametrize("glob", ["**/*.txt", "*.txt"])
def test_of_texts_too(tmp_path: Path, glob: str) -> None:
    folder_of(tmp_path, "a.txt")
    (tmp_path / "b.txt").symlink_to("gone")
    with pytest.raises(RecipeError, match=r"b\.txt is a link to gone"):
        of_texts(tmp_path, glob=glob)


@pytest.mark.parametrize("name", [".b.jsonl", "_b/c.jsonl"])
def test_one_that_would_not_be_read_is_named(tmp_path: Path, name: str) -> None:
    folder_of(tmp_path, "a.jsonl")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).symlink_to("gone")
    assert read(tmp_path)[1].line() == f"1 plain texts (`text`); not read: {name}"


def test_links_to_files_are_read_and_links_to_folders_are_named(tmp_path: Path) -> None:
    folder_of(tmp_path, "blobs/x", "other/y.jsonl")
    snapshot = folder_of(tmp_path / "snapshot", "a.jsonl")
    (snapshot / "b.jsonl").symlink_to("../blobs/x")
    (snapshot / "more").symlink_to("../other")
    found, seen = read(snapshot)
    assert {d.text for d in found} == {"a.jsonl", "blobs/x"}
    assert seen.line() == "2 plain texts (`text`); not read: more/"


# -------------------------------------------------------------------------------------------------- what is named


def test_readmes_and_hidden_files_are_named(tmp_path: Path) -> None:
    folder_of(tmp_path, "repo1/README.md", "repo2/README.md", "repo1/guide.md", ".hidden.md")
    found, seen = read(tmp_path)
    assert [d.text for d in found] == ["repo1/guide.md"]
    assert seen.line() == "1 plain texts; not read: .hidden.md, repo1/README.md, repo2/README.md"
    folder_of(tmp_path, ".git/config", ".git/HEAD", "LICENSE")
    assert read(tmp_path)[1].line() == "1 plain texts; not read: 3 files (.md, LICENSE), 3 hidden files"


@pytest.mark.parametrize("name", ["readme.jsonl", "changelog.csv", "License.parquet.jsonl"])
def test_tables_are_none_of_them(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, "text\nhere\n" if name.endswith("csv") else [{"text": "here"}])
    assert texts(folder_of(tmp_path, "a.jsonl")) == {"a.jsonl", "here"}


@pytest.mark.parametrize(
    "name",
    [
        "abc0123.incomplete/a.arrow",
        "tmp0k2_ab3x",
        "x/tmpabcdefgh",
        "a.jsonl.tmp/part-0",
        "#a.jsonl#",
        "b.jsonl.lock",
        "~$a.csv",
    ],
)
def test_what_was_not_written_to_its_end_is_named(tmp_path: Path, name: str) -> None:
    folder_of(tmp_path, "a.jsonl", name)
    assert read(tmp_path)[1].line() == f"1 plain texts (`text`); not read: {name}"


# --------------------------------------------------------------------------------------------------------- copies

COPIES = [
    "a - Copy.jsonl", "a - Copy (2).jsonl", "a copy.jsonl", "a copy 2.jsonl", "a (1).jsonl", "a(2).jsonl",
    "a.orig.jsonl", "a.backup.jsonl", "a_backup.jsonl", "a-old.jsonl", "a.bak2.jsonl", "Copy of a.jsonl",
    "a (conflicted copy 2026-11-28).jsonl", "a (Ann's conflicted copy 2026-11-28).jsonl",
    "a.sync-conflict-20261128-101010-ABCDEFG.jsonl", "backup/a.jsonl", "old/a.jsonl", "Backups/a.jsonl", "a.jsonl.1",
]  # fmt: skip


@pytest.mark.parametrize("copy", COPIES)
def test_copies_beside_their_originals_are_left_out(tmp_path: Path, copy: str) -> None:
    folder_of(tmp_path, "a.jsonl", "b.jsonl", copy)
    found, seen = read(tmp_path)
    assert [d.text for d in found] == ["a.jsonl", "b.jsonl"]
    assert (seen.line(), seen.doubts()) == (f"2 plain texts (`text`); not read: {copy}", [])
    assert len(read(tmp_path / copy)[0]) == 1


@pytest.mark.parametrize(
    "copy", [name for name in COPIES if "(1)" not in name and "(2)." not in name and "l.1" not in name]
)
def test_a_copy_of_what_is_not_there_is_doubted(tmp_path: Path, copy: str) -> None:
    folder_of(tmp_path, "b.jsonl", copy)
    found, seen = read(tmp_path)
    assert {d.text for d in found} == {"b.jsonl", copy}
    (doubt,) = seen.doubts()
    assert copy in doubt


@pytest.mark.parametrize(
    "names",
    [("a (1).jsonl", "a (2).jsonl"), ("goldcopy.jsonl", "gold.jsonl"), ("a.jsonl", "b (1).jsonl"),
     ("origin.jsonl", "in.jsonl"), ("a.jsonl", "deep/a.jsonl"), ("bold.jsonl", "b.jsonl")],
)  # fmt: skip
def test_names_that_are_no_copies(tmp_path: Path, names: tuple[str, ...]) -> None:
    found, seen = read(folder_of(tmp_path, *names))
    assert ({d.text for d in found}, seen.doubts()) == ({*names}, [])


def test_copies_of_texts_and_compressed_ones(tmp_path: Path) -> None:
    assert of_texts(folder_of(tmp_path, "a.txt", "a copy.txt"))[0] == {"a.txt"}
    folder_of(tmp_path, "t/a.jsonl.gz", "t/a (1).jsonl.gz")
    assert texts(tmp_path / "t") == {"t/a.jsonl.gz"}


def test_a_pattern_reads_copies_and_says_so(tmp_path: Path) -> None:
    found, seen = read(folder_of(tmp_path, "a.jsonl", "a - Copy.jsonl") / "*.jsonl")
    assert len(found) == 2
    assert [doubt for doubt in seen.doubts() if "a - Copy.jsonl" in doubt]


# --------------------------------------------------------------------------------------------------------- shards


@pytest.mark.parametrize(
    ("names", "lacks"),
    [
        (("train-00000-of-00003.jsonl", "train-00002-of-00003.jsonl"), "train-00001-of-00003.jsonl"),
        (("train-00001-of-00003.jsonl", "train-00002-of-00003.jsonl"), "train-00000-of-00003.jsonl"),
        (("a_1_of_2.jsonl", "b_1_of_2.jsonl", "b_2_of_2.jsonl"), "a_0_of_2.jsonl"),
        (("part-2-of-3.jsonl.gz", "part-3-of-3.jsonl.gz"), "part-1-of-3.jsonl.gz"),
        (("en/x-0-of-2.jsonl", "de/x-0-of-2.jsonl", "de/x-1-of-2.jsonl"), "en/x-1-of-2.jsonl"),
    ],
)
def test_a_set_that_lacks_a_file_is_refused(tmp_path: Path, names: tuple[str, ...], lacks: str) -> None:
    folder_of(tmp_path, *names)
    with pytest.raises(RecipeError, match=rf"there is no {lacks}"):
        read(tmp_path)
    found, seen = read(tmp_path / "**" / "*.jsonl*")
    assert len(found) == len(names)
    assert [doubt for doubt in seen.doubts() if lacks in doubt]
    assert not read(*(tmp_path / name for name in names))[1].doubts()


@pytest.mark.parametrize(
    "names",
    [("a-00000-of-00002.jsonl", "a-00001-of-00002.jsonl"), ("a-1-of-2.jsonl", "a-2-of-2.jsonl"), ("best-of-3.jsonl",),
     ("a-0-of-1.jsonl", "b-0-of-1.jsonl")],
)  # fmt: skip
def test_whole_sets(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert texts(folder_of(tmp_path, *names)) == {*names}


# --------------------------------------------------------------------------------------------------------- splits

HELD_OUT = ["held_out", "held-out", "hold_out", "HeldOut", "heldout", "tests", "evals", "devtest", "testdev",
            "evaluations", "test-set", "datatest", "validations", "HOLD-OUT"]  # fmt: skip


@pytest.mark.parametrize("name", HELD_OUT)
@pytest.mark.parametrize("form", ["{}.jsonl", "{}/a.jsonl", "squad_{}.jsonl", "x.{}.jsonl"])
def test_splits_under_other_names(tmp_path: Path, name: str, form: str) -> None:
    folder_of(tmp_path, form.format("train"), form.format(name))
    with pytest.raises(RecipeError, match="holds several splits"):
        read(tmp_path)


@pytest.mark.parametrize(
    "name", ["dev-v2.0", "public_test", "test_a", "held_out_test", "validation_matched", "test.clean", "dev other"]
)
def test_folders_that_say_more_than_the_split(tmp_path: Path, name: str) -> None:
    folder_of(tmp_path, "train/a.jsonl", f"{name}/a.jsonl")
    with pytest.raises(RecipeError, match="holds several splits"):
        read(tmp_path)
    folder_of(tmp_path / "t", "train/a.txt", f"{name}/a.txt")
    with pytest.raises(RecipeError, match="holds several splits"):
        of_texts(tmp_path / "t")


@pytest.mark.parametrize(
    ("other", "held_out"),
    [
        ("faq.jsonl", "faq_test.jsonl"),
        ("faq.jsonl", "test_faq.jsonl"),
        ("faq.jsonl", "faq.dev.jsonl"),
        ("faq.jsonl", "faqTest.jsonl"),
        ("data.jsonl", "test.jsonl"),
        ("data.jsonl", "eval.jsonl"),
        ("data.jsonl", "validation-00000-of-00001.jsonl"),
        ("data.csv.jsonl", "held_out.jsonl"),
        ("a/0.jsonl", "test/0.jsonl"),
        ("0.jsonl", "test/0.jsonl"),
        ("en/faq.jsonl", "en/faq_dev.jsonl"),
    ],
)
def test_one_split_beside_other_files_is_refused(tmp_path: Path, other: str, held_out: str) -> None:
    folder_of(tmp_path, other, held_out)
    with pytest.raises(RecipeError, match=r"holds a split \(.*\) beside other files") as caught:
        read(tmp_path)
    assert f"{tmp_path / other}" in str(caught.value.fix)
    assert len(read(tmp_path / "**" / "*.jsonl")[0]) == 2


@pytest.mark.parametrize(
    ("other", "held_out"),
    [("cooking.jsonl", "web_dev.jsonl"), ("a.jsonl", "unit_test.jsonl"), ("a/0.jsonl", "dev_notes/0.jsonl")],
)
def test_a_word_that_may_name_a_split_is_doubted(tmp_path: Path, other: str, held_out: str) -> None:
    found, seen = read(folder_of(tmp_path, other, held_out))
    assert len(found) == 2
    assert [doubt for doubt in seen.doubts() if held_out in doubt]


@pytest.mark.parametrize("kind", ["files", "text"])
def test_of_texts_names_may_say_what_they_are_about(tmp_path: Path, kind: str) -> None:
    """Among many. Of two, one is a split."""
    few = folder_of(tmp_path / "few", "input.txt", "test.txt")
    with pytest.raises(RecipeError, match="holds a split"):
        read(few) if kind == "files" else of_texts(few)
    many = folder_of(tmp_path / "many", *(f"{n}.txt" for n in range(6)), "validation.txt")
    found, seen = read(many) if kind == "files" else of_texts(many)
    assert len(found) == 7
    assert [doubt for doubt in seen.doubts() if "validation.txt" in doubt]
    folder_of(many, "test/a.txt")
    with pytest.raises(RecipeError, match="holds several splits"):
        read(many) if kind == "files" else of_texts(many)


@pytest.mark.parametrize(
    "names",
    [("train.jsonl", "extra.jsonl"), ("latest.jsonl", "contest.jsonl"), ("a_test_b.jsonl", "c.jsonl"),
     ("test.jsonl",), ("test/a.jsonl", "test/b.jsonl"), ("fold.jsonl", "out.jsonl")],
)  # fmt: skip
def test_files_that_are_read_without_a_word(tmp_path: Path, names: tuple[str, ...]) -> None:
    found, seen = read(folder_of(tmp_path, *names))
    assert (len(found), seen.doubts()) == (len(names), [])


def test_folders_of_texts_may_say_what_is_in_them(tmp_path: Path) -> None:
    found, seen = read(folder_of(tmp_path, "dev-guide/a.md", "test-plan/b.md", "c.md"))
    assert len(found) == 3
    assert [doubt for doubt in seen.doubts() if "dev-guide/a.md" in doubt]
    folder_of(tmp_path / "tables", "dev-guide/a.jsonl", "test-plan/b.jsonl")
    with pytest.raises(RecipeError, match="several splits"):
        read(tmp_path / "tables")


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert read(tmp_path)[1].line() == "1 plain texts (`text`); not read: pipe.jsonl"


def test_many_copies_are_counted_apart(tmp_path: Path) -> None:
    names = [name for name in COPIES if "/" not in name][:9]
    folder_of(tmp_path, "a.jsonl", "b.jsonl", *names)
    write(tmp_path, "x.log", "started")
    said = read(tmp_path)[1].line()
    assert "not read: 9 files that are copies of others (a (1).jsonl, " in said
    assert said.endswith(" and 1 more), x.log")
