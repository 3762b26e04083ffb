"""A corpus on disk: the same documents in the same order, however it came to be."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.data import corpus as corpus_module
from limbeck.data.chat.encode import MASKED, WORDS, Encoded, encode, encode_batch
from limbeck.data.corpus import Corpus, Encoder, Enough, holdout_count, open_corpus, write_corpus, write_encoded
from limbeck.data.documents.document import Document
from limbeck.data.documents.spool import Spool, fingerprint_of
from limbeck.errors import InputError
from limbeck.pipeline.shared.tokenising import cuts_of, read_into
from limbeck.recipe import Data
from limbeck.workflow.stage import Context

HALF = "half \ud800"
CHAT = Document(
    messages=({"role": "user", "content": "hi"}, {"role": "assistant", "content": "a cat"}), chat=False, template=False
)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some ten documents a block, some three a batch."""
    whole = Spool.block_end
    monkeypatch.setattr(Spool, "block_end", lambda self, start, stop: whole(self, start, stop, 1_500))
    monkeypatch.setattr(corpus_module, "BATCH_BYTES", 400)


def spool_of(folder: Path, texts: list[str]) -> Spool:
    return Spool.write(folder, (Document(text=text) for text in texts))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rows(corpus: Corpus) -> list[tuple[list[int], list[int], int]]:
    parts = (corpus.document(d) for d in range(len(corpus)))
    return [(ids.tolist(), mask.tolist(), int(n)) for (ids, mask), n in zip(parts, corpus.n_bytes, strict=True)]


# ------------------------------------------------------------------------------------------ spool


def test_a_spool_gives_each_document_once_by_its_hash(tmp_path: Path, texts: list[str]) -> None:
    found = [Document(text=text) for text in [*texts, *texts[:9], "", "half \ud800"]] + [CHAT]
    spool = Spool.write(tmp_path / "spool", iter(found))
    different = sorted({document.key: document for document in found}.values(), key=lambda document: document.key)
    assert [document for _, document in sorted(spool.read(0, len(spool)), key=lambda pair: pair[0])] == different
    assert spool.keys.tolist() == [int(document.key[:16], 16) for document in different]
    again = Spool(tmp_path / "spool")
    assert again.fingerprint == spool.fingerprint == fingerprint_of(reversed(different))
    assert fingerprint_of(different[1:]) != spool.fingerprint
    assert spool.duplicates == len(found) - len(different) == again.duplicates


def test_of_equal_documents_the_first_is_kept(tmp_path: Path) -> None:
    pair = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"})
    spool = Spool.write(tmp_path / "spool", iter([Document(messages=pair, chat=False), Document(messages=pair)]))
    assert [document.chat for _, document in spool.read(0, len(spool))] == [False]


def test_blocks_cover_a_spool_and_a_large_document_is_one(tmp_path: Path) -> None:
    spool = spool_of(tmp_path / "spool", [f"document {i}" for i in range(50)] + ["long " * 1_000])
    borders = [0]
    while borders[-1] < len(spool):
        borders.append(spool.block_end(borders[-1], len(spool), 100))
    sizes = [int(spool.sizes[a:b].sum()) for a, b in itertools.pairwise(borders)]
    assert sum(sizes) == int(spool.sizes.sum())
    assert sum(size > 100 for size in sizes) == 1
    assert len(sizes) > 5


def test_what_was_read_is_said(tmp_path: Path) -> None:
    """Duplicates within a source and across two, and control tokens in a text."""
    for name, texts in {"a": ["one", "two", "one", "<|im_end|>"], "b": ["two", "three"]}.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    events: list[dict[str, Any]] = []
    data = Data.model_validate({"corpus": [{"files": str(tmp_path / f"{name}.jsonl")} for name in "ab"]})
    spool = read_into(tmp_path / "spool", data, None, Context(tmp_path, "data", events.append))
    assert len(spool) == 4
    said = [event["text"] for event in events if event["event"] in ("note", "warning")]
    assert said[0] == "data.corpus.0: 4 plain texts (`text`)"
    assert said[2] == "data.corpus: 2 duplicates were left out (4 documents remain)"
    assert said[3].startswith("data.corpus: 1 documents hold what another model's template writes (<|im_end|>)")


@pytest.mark.parametrize("pack", [False, True])
def test_what_the_ends_of_rows_cut_is_said(tmp_path: Path, *, pack: bool) -> None:
    asked, said = [MASKED] * 6, [WORDS] * 4
    lengths = [asked + said, asked + [WORDS] * 5, [MASKED] + [WORDS] * 30, asked + [WORDS] * 7 + asked + said]
    write_encoded(tmp_path / "c", iter([Encoded(list(range(len(mask))), mask, 4) for mask in lengths]), {})
    data = Data.model_validate({"corpus": [{"text": "x"}], "seq_len": 10, "pack": pack})
    line, lost = cuts_of(tmp_path / "c", data)
    assert line is not None
    assert "2 of 4 documents to train on are longer than data.seq_len (10 tokens) and are cut into rows" in line
    assert f"{3 if pack else 2} answers are learned without all of their question" in line
    assert ("data.pack: false" in line) == pack
    assert lost
    assert cuts_of(tmp_path / "c", Data.model_validate({"corpus": [{"text": "x"}], "seq_len": 99, "pack": False})) == (
        None,
        False,
    )


# --------------------------------------------------------------------------------------- held out


def keys_of(texts: list[str]) -> np.ndarray:
    return np.array(sorted(int(Document(text=text).key[:16], 16) for text in texts), np.uint64)


def test_what_is_held_out_survives_growth() -> None:
    keys = keys_of([f"document {i}" for i in range(400)])
    held = set(keys[: holdout_count(keys, 0.1)].tolist())
    assert 20 <= len(held) <= 60
    assert all(key < 0.1 * 2.0**64 for key in held)
    more = keys_of([f"document {i}" for i in range(400)] + [f"another {i}" for i in range(400)])
    assert held <= set(more[: holdout_count(more, 0.1)].tolist())


def test_a_small_corpus_still_has_both_sides() -> None:
    keys = keys_of(["a", "b"])
    assert holdout_count(keys, 0.0001) == holdout_count(keys, 0.9999) == 1
    with pytest.raises(InputError, match="single document"):
        holdout_count(keys[:1], 0.1)


# ----------------------------------------------------------------------------------------- corpus


def test_a_corpus_is_its_documents_by_hash(
    tmp_path: Path, tokenizer: Any, texts: list[str], small_blocks: None
) -> None:
    spool = spool_of(tmp_path / "spool", [*texts, texts[0], ""])
    write_corpus(tmp_path / "c", Encoder(spool, tokenizer), range(5, len(spool)))
    found = open_corpus(tmp_path / "c")
    wanted = sorted({Document(text=text).key: Document(text=text) for text in [*texts, ""]}.items())[5:]
    encoded = [encode(document, tokenizer) for _, document in wanted]
    assert rows(found) == [(list(e.ids), list(e.loss_mask), e.n_bytes) for e in encoded]
    assert found.keys.tolist() == [int(key[:16], 16) for key, _ in wanted]
    assert len(list((tmp_path / "c").iterdir())) == 7  # nothing is left of how it was made


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_number_of_workers_changes_no_byte(
    tmp_path: Path, tokenizer: Any, texts: list[str], small_blocks: None, workers: int
) -> None:
    spool = spool_of(tmp_path / "spool", texts)
    for name, encoder in (
        ("one", Encoder(spool, tokenizer, workers=1)),
        ("n", Encoder(spool, tokenizer, workers=workers)),
    ):
        write_corpus(tmp_path / name, encoder, range(len(spool)))
    assert files(tmp_path / "one") == files(tmp_path / "n")


class Killed(BaseException):
    pass


def killed_after(encoder: Encoder, documents: int, monkeypatch: pytest.MonkeyPatch, folder: Path, span: range) -> None:
    """Write a corpus and die after some documents, with what is in the files' buffers on disk."""
    add, count = corpus_module._Writer.add, iter(range(1, 1_000))

    def dying(self: Any, encoded: Encoded, key: int) -> None:
        add(self, encoded, key)
        if next(count) == documents:
            for file in self.files.values():
                file.flush()
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(corpus_module._Writer, "add", dying)
        with pytest.raises(Killed):
            write_corpus(folder, encoder, span)


@pytest.mark.parametrize("documents", [1, 17, 40, 79])
def test_a_killed_corpus_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path,
    tokenizer: Any,
    texts: list[str],
    small_blocks: None,
    monkeypatch: pytest.MonkeyPatch,
    documents: int,
) -> None:
    spool = spool_of(tmp_path / "spool", texts)
    encoder, span = Encoder(spool, tokenizer), range(len(spool))
    write_corpus(tmp_path / "quiet", encoder, span)
    killed_after(encoder, documents, monkeypatch, tmp_path / "c", span)
    left = (tmp_path / "c" / "marks.jsonl").read_text().splitlines()
    done = json.loads(left[-1])["documents"] if left else 0
    assert done < documents
    told: list[int] = []
    write_corpus(tmp_path / "c", encoder, span, progress=lambda n, n_bytes: told.append(n))
    assert files(tmp_path / "c") == files(tmp_path / "quiet")
    assert told[0] == done  # what was done is not done again
    assert sum(told) == len(spool)


@pytest.mark.parametrize("torn", ["ids.bin", "loss_mask.bin", "keys.bin", "marks.jsonl"])
def test_a_torn_tail_is_made_again(
    tmp_path: Path, tokenizer: Any, texts: list[str], small_blocks: None, monkeypatch: pytest.MonkeyPatch, torn: str
) -> None:
    spool = spool_of(tmp_path / "spool", texts)
    encoder, span = Encoder(spool, tokenizer), range(len(spool))
    write_corpus(tmp_path / "quiet", encoder, span)
    killed_after(encoder, 60, monkeypatch, tmp_path / "c", span)
    path = tmp_path / "c" / torn
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 2])
    write_corpus(tmp_path / "c", encoder, span)
    assert files(tmp_path / "c") == files(tmp_path / "quiet")


def test_it_stops_after_the_block_that_brings_enough(
    tmp_path: Path, tokenizer: Any, texts: list[str], small_blocks: None
) -> None:
    spool = spool_of(tmp_path / "spool", texts)
    encoder, span = Encoder(spool, tokenizer), range(4, len(spool))
    write_corpus(tmp_path / "whole", encoder, span)
    write_corpus(tmp_path / "part", encoder, span, Enough(400))
    write_corpus(tmp_path / "documents", encoder, span, Enough(1, documents=30))
    write_corpus(tmp_path / "all", encoder, span, Enough(10**9))
    whole, part = open_corpus(tmp_path / "whole"), open_corpus(tmp_path / "part")
    assert 400 <= part.labels() < whole.labels() / 2
    assert rows(part) == rows(whole)[: len(part)]  # the first by hash
    assert 30 <= len(open_corpus(tmp_path / "documents")) < len(whole)
    assert files(tmp_path / "all") == files(tmp_path / "whole")


def test_a_finished_corpus_is_kept(tmp_path: Path, tokenizer: Any, texts: list[str]) -> None:
    spool = spool_of(tmp_path / "spool", texts)
    write_corpus(tmp_path / "c", Encoder(spool, tokenizer), range(len(spool)))
    before = (tmp_path / "c" / "ids.bin").stat().st_mtime_ns
    write_corpus(tmp_path / "c", Encoder(spool, None), range(len(spool)))
    assert (tmp_path / "c" / "ids.bin").stat().st_mtime_ns == before


def test_remarks_are_counted_over_kills(
    tmp_path: Path, tokenizer: Any, texts: list[str], small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remarking(documents: list[Document], *args: Any) -> Iterator[Encoded]:
        for e in encode_batch(documents, *args):
            yield Encoded(e.ids, e.loss_mask, e.n_bytes, frozenset({"odd"} if len(e.ids) % 2 else ()))

    monkeypatch.setattr(corpus_module, "encode_batch", lambda *args: list(remarking(*args)))
    spool = spool_of(tmp_path / "spool", texts)
    encoder, span = Encoder(spool, tokenizer), range(len(spool))
    killed_after(encoder, 50, monkeypatch, tmp_path / "c", span)
    found = write_corpus(tmp_path / "c", encoder, span)
    assert found == write_corpus(tmp_path / "c", encoder, span)
    assert found["odd"] == sum(len(ids) % 2 for ids, _, _ in rows(open_corpus(tmp_path / "c"))) > 0


def test_half_a_surrogate_is_refused_and_named(tmp_path: Path, tokenizer: Any, texts: list[str]) -> None:
    spool = spool_of(tmp_path / "spool", [*texts, HALF])
    with pytest.raises(InputError, match=f"{Document(text=HALF).key[:12]}.*surrogate"):
        write_corpus(tmp_path / "c", Encoder(spool, tokenizer), range(len(spool)))
