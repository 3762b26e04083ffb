"""Held-out documents whose tokens are learned: they differ from a document to train on, and its tokens do not."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from limbeck.data import corpus as corpus_module
from limbeck.data.chat.encode import Encoded
from limbeck.data.corpus import Encoder, Enough, Twins, holdout_count, left_out_of, open_corpus, write_corpus
from limbeck.data.documents.document import Document
from limbeck.data.documents.spool import Spool
from limbeck.errors import InputError
from limbeck.pipeline.shared.base import HELDOUT_OWN, is_whole
from limbeck.pipeline.shared.tokenising import facts_of, write_heldout_own, write_parts
from limbeck.workflow.stage import Context
from tests.unit.test_corpus import Killed, files

TRIMMING = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% for t in m.tool_calls or [] %}"
    "[{{ t.function.name }} {{ t.function.arguments | tojson }}]{% endfor %}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ALL = {"train": Enough(10**9), "heldout": Enough(10**9)}


@pytest.fixture(scope="module")
def trimming(tokenizer: Any) -> Any:
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = TRIMMING
    return chatty


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def call(i: int, name: str) -> dict[str, Any]:
    return {"id": f"{name}{i}", "type": "function", "function": {"name": "f", "arguments": {"x": i}}}


def ends(i: int, twin: bool) -> tuple[dict[str, Any], ...]:
    return user(f"q{i}"), said(f"a{i}" + "\n" * twin)


def ids(i: int, twin: bool) -> tuple[dict[str, Any], ...]:
    name = "b" if twin else "a"
    result = {"role": "tool", "tool_call_id": f"{name}{i}", "content": "r"}
    return user(f"q{i}"), said("", tool_calls=[call(i, name)]), result, said("ok")


def thoughts(i: int, twin: bool) -> tuple[dict[str, Any], ...]:
    return user(f"q{i}"), said(f"a{i}", reasoning_content=f"think {twin}")


def weights(i: int, twin: bool) -> tuple[dict[str, Any], ...]:
    return user(f"q{i}"), said(f"a{i}", **({"learn": False} if twin else {})), user("x"), said("y")


def spool_of(folder: Path, kind: Any, singles: int = 0) -> Spool:
    found = [Document(messages=kind(i, twin)) for i in range(60) for twin in (False, True)]
    found += [Document(messages=(user(f"single {i}"), said("a"))) for i in range(singles)]
    return Spool.write(folder, iter(found))


def parts_of(spool: Spool, share: float = 0.2) -> dict[str, range]:
    held_out = holdout_count(spool.keys, share)
    return {"train": range(held_out, len(spool)), "heldout": range(held_out)}


def context(folder: Path, events: list[Any] | None = None) -> Context:
    return Context(folder, "data", (events if events is not None else []).append)


@pytest.mark.parametrize("kind", [ends, ids, thoughts, weights])
def test_held_out_documents_that_are_learned_are_left_out(tmp_path: Path, trimming: Any, kind: Any) -> None:
    spool = spool_of(tmp_path / "spool", kind, singles=40)
    assert spool.duplicates == 0
    parts, events = parts_of(spool), list[Any]()
    write_parts(tmp_path, Encoder(spool, trimming), parts, ALL, context(tmp_path, events))
    train, heldout = open_corpus(tmp_path / "train"), open_corpus(tmp_path / "heldout")
    learned = {tuple(train.document(d)[0].tolist()) for d in range(len(train))}
    assert not any(tuple(heldout.document(d)[0].tolist()) in learned for d in range(len(heldout)))
    left_out = left_out_of(tmp_path / "heldout")
    assert 0 < left_out == len(parts["heldout"]) - len(heldout)
    assert len(train) == len(parts["train"])
    assert all(is_whole(facts_of(tmp_path / name, part)) for name, part in parts.items())
    assert [e["text"] for e in events if e["event"] == "note" and f"{left_out} held-out document" in e["text"]]


def test_a_corpus_without_twins_has_the_bytes_that_it_had(tmp_path: Path, trimming: Any) -> None:
    spool = Spool.write(tmp_path / "spool", (Document(messages=ends(i, False)) for i in range(80)))
    parts = parts_of(spool)
    write_parts(tmp_path / "a", Encoder(spool, trimming), parts, ALL, context(tmp_path))
    for name, part in parts.items():
        write_corpus(tmp_path / "b" / name, Encoder(spool, trimming), part)
        assert files(tmp_path / "a" / name) == files(tmp_path / "b" / name)
    assert "left_out" not in json.loads((tmp_path / "a" / "heldout" / "manifest.json").read_text())


@pytest.mark.parametrize("documents", [1, 7, 20])
def test_a_killed_one_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, trimming: Any, monkeypatch: pytest.MonkeyPatch, documents: int
) -> None:
    """Documents that are left out are passed once, also by two processes."""
    whole = Spool.block_end
    monkeypatch.setattr(Spool, "block_end", lambda self, start, stop: whole(self, start, stop, 900))
    spool = spool_of(tmp_path / "spool", ends, singles=40)
    parts, encoder = parts_of(spool, 0.5), Encoder(spool, trimming)
    write_parts(tmp_path / "quiet", encoder, parts, ALL, context(tmp_path))
    write_corpus(tmp_path / "train", encoder, parts["train"])
    twins = Twins(open_corpus(tmp_path / "train"))
    add, count = corpus_module._Writer.add, iter(range(1, 1_000))

    def dying(self: Any, encoded: Encoded, key: int) -> None:
        add(self, encoded, key)
        if next(count) == documents:
            raise Killed

    def write(folder: Path, told: list[int]) -> None:
        write_corpus(
            folder, encoder, parts["heldout"], None, lambda _, encoded: encoded in twins, lambda n, _: told.append(n)
        )

    with monkeypatch.context() as patch:
        patch.setattr(corpus_module._Writer, "add", dying)
        with pytest.raises(Killed):
            write(tmp_path / "heldout", [])
    told: list[int] = []
    write(tmp_path / "heldout", told)
    assert files(tmp_path / "heldout") == files(tmp_path / "quiet" / "heldout")
    assert sum(told) == len(parts["heldout"])
    assert left_out_of(tmp_path / "heldout") > 5


@pytest.mark.parametrize("enough", [Enough(10**9), Enough(1, documents=8)])
def test_the_teachers_own_tokens_are_of_the_same_documents(
    tmp_path: Path, trimming: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, enough: Enough
) -> None:
    """Its template may write what tells two documents apart."""
    whole = Spool.block_end
    monkeypatch.setattr(Spool, "block_end", lambda self, start, stop: whole(self, start, stop, 900))
    own = copy.deepcopy(tokenizer)
    own.chat_template = TRIMMING.replace(" | trim", "")
    spool = spool_of(tmp_path / "spool", ends, singles=40)
    parts = parts_of(spool, 0.5)
    write_parts(tmp_path, Encoder(spool, trimming), parts, {**ALL, "heldout": enough}, context(tmp_path))
    write_heldout_own(tmp_path, Encoder(spool, own), parts["heldout"], enough)
    heldout, theirs = open_corpus(tmp_path / "heldout"), open_corpus(tmp_path / HELDOUT_OWN)
    assert left_out_of(tmp_path / "heldout")
    assert heldout.keys.tolist() == theirs.keys[: len(heldout)].tolist()
    assert heldout.lengths.sum() < theirs.lengths[: len(heldout)].sum()


def test_nothing_left_to_measure_on_is_refused(tmp_path: Path, trimming: Any) -> None:
    pair = (Document(messages=ends(0, False)), Document(messages=ends(0, True)))
    spool = Spool.write(tmp_path / "spool", iter(pair))
    with pytest.raises(InputError, match="nothing is left to measure on") as caught:
        write_parts(tmp_path, Encoder(spool, trimming), parts_of(spool), ALL, context(tmp_path))
    assert caught.value.line().startswith("data.corpus")
