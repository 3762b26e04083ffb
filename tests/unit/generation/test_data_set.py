from __future__ import annotations

import datetime
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck.data.documents.sources import first_documents
from limbeck.errors import RecipeError
from limbeck.generation.candidate import Candidate
from limbeck.generation.select import CardFacts, TeacherFacts, choose, filter_candidates, write_data_set, write_prompts
from limbeck.generation.terms import check_terms
from limbeck.recipe import FilesSource
from limbeck.recipe.filters import Filters, Keep
from limbeck.recipe.served import Endpoint, Terms
from tests.unit.generation.candidates import answer

HOSTILE = "# A heading\n---\nlicense: mit\n---\n<script>x</script>\n```\n[link](http://x.y) | \x1b[31m \u202e \ud800 \0"
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"city": "Paris"}'}}


def conversations() -> list[Candidate]:
    system = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"})
    tool = (
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    )
    definition = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    return [
        answer("4", "2+2?", verdict="c", messages=system, reasoning="two and two", reference="4", model="m-2026"),
        answer("sunny", "Weather?", verdict="c", messages=tool, tools=(definition,)),
        answer(HOSTILE, "Say something odd", verdict="c"),
        answer("line\u2028end \x85 ü 漢", "lines", verdict="c"),
        answer("5", "2+3?", verdict="w", reference="5, of course"),
    ]


def facts(**more: Any) -> CardFacts:
    terms = Terms(
        licence="MIT | <b>x</b>", may_train_students="yes", source="https://x.y/terms", date=datetime.date(2026, 11, 1),
        quote="You may train.\n```\n# not a heading",
    )  # fmt: skip
    return CardFacts(
        **{
            "title": "Sums\n# and more",
            "teachers": (TeacherFacts("teacher", {"api": "https://x.y/v1", "model": "m"}, terms),),
            "prompts": ("data/sums.jsonl",),
            "settings": {"temperature": 0.8, "samples": 4},
            "answers": {"complete": 5},
            "verifier": "exact",
            "nano_usd": 12_345_678_901,
            "tokens": 9_876,
            "prices": "genai-prices 0.2.3 of 2026-11-01",
            **more,
        }
    )


def written(folder: Path, candidates: list[Candidate], **more: Any) -> Path:
    filtered = filter_candidates(candidates, Filters())
    write_data_set(folder, choose(filtered.kept, Keep(), candidates), facts(filtered=filtered, **more))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("set") / "data set", conversations())


def test_limbeck_reads_what_it_wrote(folder: Path) -> None:
    found = {}
    for name in ("data.parquet", "data.jsonl"):
        documents = [document for _, document in first_documents([FilesSource(files=str(folder / name))], 99, {})]
        found[name] = [(document.key, document.messages, document.tools) for document in documents]
    assert found["data.parquet"] == found["data.jsonl"]
    sums, weather, odd, lines = (messages for _, messages, _ in found["data.jsonl"])
    assert sums[0] == {"role": "system", "content": "Be brief."}
    assert sums[-1] == {"role": "assistant", "content": "4", "reasoning_content": "two and two"}
    assert weather[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"city": "Paris"}}
    assert weather[2]["tool_call_id"] == "c1"
    assert odd[-1]["content"] == HOSTILE.replace("\ud800", "\ufffd")
    assert lines[-1]["content"] == "line\u2028end \x85 ü 漢"
    assert found["data.jsonl"][1][2][0]["function"]["name"] == "f"


def test_datasets_reads_both_files_and_the_folder(folder: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    cache = str(tmp_path / "cache")
    parquet = datasets.load_dataset("parquet", data_files=str(folder / "data.parquet"), cache_dir=cache)["train"]
    lines = datasets.load_dataset("json", data_files=str(folder / "data.jsonl"), cache_dir=cache)["train"]
    whole = datasets.load_dataset(str(folder), cache_dir=cache)["train"]
    assert len(parquet) == len(lines) == len(whole) == 4
    assert [row["messages"][-1]["content"] for row in parquet] == [row["messages"][-1]["content"] for row in lines]
    assert parquet[0]["messages"][-1]["reasoning_content"] == "two and two"
    assert parquet[0]["reference"] == "4"
    assert parquet[0]["model"] == "m-2026"
    assert set(parquet["verdict"]) == {"correct"}
    assert parquet.column_names == whole.column_names


@pytest.mark.slow  # importing trl takes long
def test_trl_sees_conversations(folder: Path, tmp_path: Path) -> None:
    data_utils = pytest.importorskip("trl.data_utils")
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset("parquet", data_files=str(folder / "data.parquet"), cache_dir=str(tmp_path))["train"]
    assert all(data_utils.is_conversational(row) for row in rows)


def test_the_bytes_depend_on_the_input_only(folder: Path, tmp_path: Path) -> None:
    again = written(tmp_path / "again", conversations())
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "data.jsonl", "data.parquet"]
    for path in folder.iterdir():
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256((again / path.name).read_bytes()).digest()


def test_plain_text_is_a_prompt_and_a_completion(tmp_path: Path) -> None:
    text = answer(" a time", "Once upon", verdict="c", messages=(), continued="Once upon")
    written(tmp_path / "texts", [text])
    row = json.loads((tmp_path / "texts/data.jsonl").read_text(encoding="utf-8"))
    assert (row["prompt"], row["completion"]) == ("Once upon", " a time")
    written(tmp_path / "both", [text, *conversations()])
    assert sorted(p.name for p in (tmp_path / "both").iterdir()) == [
        "README.md", "data.jsonl", "data.parquet", "text.jsonl", "text.parquet",
    ]  # fmt: skip
    documents = first_documents([FilesSource(files=str(tmp_path / "both/text.parquet"))], 9, {})
    assert [document.template for _, document in documents] == [False]


def test_nothing_kept_is_an_empty_table(tmp_path: Path) -> None:
    written(tmp_path / "none", [answer("5", verdict="w")])
    assert (tmp_path / "none/data.jsonl").read_bytes() == b""
    assert "0 answers to 0 prompts" in (tmp_path / "none/README.md").read_text(encoding="utf-8")


def test_the_card_says_what_was_dropped_by_keep(tmp_path: Path) -> None:
    twice = [answer("4", "2+2?", sample=s, key=str(s)) for s in range(3)]
    write_data_set(tmp_path / "set", choose(twice, Keep()), facts())
    card = (tmp_path / "set/README.md").read_text(encoding="utf-8")
    assert "1 answer to 1 prompt" in card
    assert "2 answers dropped" in card
    assert "**not verified**" in card


def test_prompts_that_nobody_solved_are_written(tmp_path: Path) -> None:
    wrong = [
        *(answer(str(i), "2+3?", sample=i, verdict="w", reference="5") for i in range(3)),
        answer("x", continued="On"),
    ]
    assert write_prompts(tmp_path / "unsolved.jsonl", wrong) == 2
    first, second = map(json.loads, (tmp_path / "unsolved.jsonl").read_text(encoding="utf-8").splitlines())
    assert first == {"prompt_id": "id:2+3?", "reference": "5", "messages": [{"role": "user", "content": "2+3?"}]}
    assert second["prompt"] == "On"


def test_the_card(folder: Path) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["pretty_name"] == "Sums # and more"
    assert front["configs"] == [{"config_name": "default", "data_files": "data.parquet"}]
    assert "license" not in front
    for said in (
        "4 answers to 4 prompts", "temperature 0.8", "| teacher | 4 | yes |", "2026-11-01", "data/sums.jsonl",
        "Verified by exact: 4 answers correct, 1 wrong, 0 undecided", "1 were never solved", "| think\\_tags | 0 |",
        "$12.35", "9,876 tokens", "genai-prices 0.2.3 of 2026-11-01", "1 answer held halves of surrogate pairs",
    ):  # fmt: skip
        assert said in card, said


def test_nothing_that_was_said_becomes_markup(tmp_path: Path) -> None:
    bad = [
        answer(HOSTILE, HOSTILE, verdict="w", teacher="<img src=x> | `t`", key="1"),
        answer(HOSTILE, "q", verdict="w", outcome="refused", key="2"),
        answer("ok", verdict="c", teacher="a\n# b"),
    ]
    terms = Terms(may_train_students="no", override=HOSTILE, source=HOSTILE, licence=HOSTILE, quote=HOSTILE)
    written(
        tmp_path / "bad", bad, title=HOSTILE, prompts=(HOSTILE,), verifier=HOSTILE, prices=HOSTILE, notes=(HOSTILE,),
        settings={HOSTILE: HOSTILE}, answers={HOSTILE: 1}, teachers=(TeacherFacts(HOSTILE, {HOSTILE: HOSTILE}, terms),),
    )  # fmt: skip
    card = (tmp_path / "bad/README.md").read_text(encoding="utf-8")
    body = card.split("---\n", 2)[2]
    fence: str | None = None
    outside = []
    for line in body.splitlines():
        marks = line[: len(line) - len(line.lstrip("`"))]
        if fence is None and len(marks) >= 3:
            fence = marks
        elif fence is not None and line == fence:
            fence = None
        elif fence is None:
            outside.append(line)
    assert fence is None
    said = "\n".join(outside)
    headings = [line for line in outside if line.startswith("#")]
    assert headings[0].startswith("# \\# A heading --- license")
    names = ("Teachers and their terms", "Prompts", "Verification", "Filters", "Cost", "Files")
    assert headings[1:] == [f"## {name}" for name in names]
    assert "<script" not in said.replace("\\<script", "")
    assert "<img" not in said.replace("\\<img", "")
    assert not any(c in card for c in "\x1b\u202e\0")
    assert "license" not in yaml.safe_load(card.split("---\n")[1])


def endpoint(**terms: Any) -> Endpoint:
    return Endpoint(api="https://x.y/v1", model="m", terms=Terms(**terms))


DOCUMENTED = {"source": "https://x.y", "date": datetime.date(2026, 1, 1), "quote": "You may."}


def test_terms() -> None:
    assert check_terms([endpoint(may_train_students="yes", **DOCUMENTED)]) == []
    (unknown,) = check_terms([endpoint()])
    assert "not known" in unknown
    (undocumented,) = check_terms([endpoint(may_train_students="yes", source="https://x.y")])
    assert "lacks date, quote" in undocumented
    for terms in ({}, DOCUMENTED):
        with pytest.raises(RecipeError, match="do not allow") as caught:
            check_terms([endpoint(), endpoint(may_train_students="no", **terms)])
        assert caught.value.key == ".fallbacks.0.terms.may_train_students"
    with pytest.raises(RecipeError):
        check_terms([endpoint(may_train_students="no", override=" ")])
    (used,) = check_terms([endpoint(may_train_students="no", override="a written permission", **DOCUMENTED)])
    assert "a written permission" in used
