"""What was written is read: by document and offset, in any order, whatever else is in the store."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import MissingSignalError, StoreError, StoreWriteError
from limbeck.signals.codec import Encoded, decode
from limbeck.signals.store import Span, Store, StoreWriter
from limbeck.signals.store.manifest import FILE
from limbeck.signals.upkeep.look import summary_of
from limbeck.signals.upkeep.mend import repair
from tests.unit.signals.stores import IDENTITY, WIDE, encoded, equal, grid, identity, signal, write


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))


def positions(spans: list[Span], **settings: object) -> list[tuple[int, int, int, Encoded, int]]:
    """(key, offset, context, arrays of its span, place in it) of each position with a signal."""
    found = []
    for span in spans:
        arrays = encoded(span, **settings)  # type: ignore[arg-type]
        for p in np.flatnonzero(arrays.counts).tolist():
            found.append((span.key, span.start + p, span.context, arrays, p))
    return found


def expected(asked: list[tuple[int, int, int, Encoded, int]]) -> Encoded:
    """The slow way."""
    words, counts, entropy, tail = [], [], [], []
    for *_, arrays, p in asked:
        begin = int(arrays.counts[:p].sum())
        words.append(arrays.words[begin : begin + int(arrays.counts[p])])
        counts.append(arrays.counts[p])
        entropy.append(arrays.entropy[p])
        if arrays.tail is not None:
            tail.append(arrays.tail[p])
    return Encoded(
        np.concatenate(words),
        np.array(counts, np.uint16),
        np.array(entropy, np.uint16),
        np.array(tail, np.uint16) if tail else None,
    )


def ask(asked: list[tuple[int, int, int, Encoded, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    keys, offsets, contexts = zip(*(each[:3] for each in asked), strict=True)
    return np.array(keys, np.uint64), np.array(offsets, np.int64), np.array(contexts, np.int64)


@pytest.mark.parametrize("whose", [IDENTITY, WIDE], ids=["narrow", "wide"])
@pytest.mark.parametrize("tail", [False, True])
def test_every_position_is_read_as_it_was_written(tmp_path: Path, whose, tail: bool) -> None:
    spans = grid(40)
    write(tmp_path / "store", spans, whose, tail=tail)
    store = Store(tmp_path / "store", whose)
    assert len(store) == len(spans)
    assert len(store.shards) > 3
    assert store.missing(spans) == []
    asked = positions(spans, vocab_size=whose.vocab_size, tail=tail)
    random = np.random.default_rng(1)
    for order in (np.arange(len(asked)), random.permutation(len(asked)), random.integers(0, len(asked), 999)):
        some = [asked[i] for i in order]
        keys, offsets, contexts = ask(some)
        want = expected(some)
        assert equal(store.encoded(keys, offsets), want)
        assert equal(store.encoded(keys, offsets, contexts), want)
        read, wanted = store.read(keys, offsets), decode(want, whose.vocab_size)
        assert np.array_equal(read.ids, wanted.ids)
        assert np.array_equal(read.logprobs, wanted.logprobs)
    assert store.positions == len(asked)


def test_keys_may_be_signed_but_not_floating(tmp_path: Path) -> None:
    span = Span(2**64 - 3, 0, 20, 0, 9)
    write(tmp_path / "store", [span], unlabelled=0.0)
    store, offsets = Store(tmp_path / "store"), np.arange(20)
    unsigned = np.full(20, span.key, np.uint64)
    assert equal(store.encoded(unsigned.view(np.int64), offsets), store.encoded(unsigned, offsets))
    with pytest.raises(ValueError, match="keys must be uint64"):
        store.encoded(unsigned.astype(np.float64), offsets)


def test_nothing_is_read_of_nothing(tmp_path: Path) -> None:
    nothing = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    with StoreWriter(tmp_path / "store", IDENTITY):
        pass
    store = Store(tmp_path / "store")
    assert len(store.read(*nothing).ids) == 0
    assert store.missing(grid(2)) == grid(2)
    write(tmp_path / "store", grid(3), tail=True)
    read = Store(tmp_path / "store").read(*nothing)
    assert len(read.ids) == 0
    assert read.tail is not None


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    there = Span(2**64 - 1, 64, 64, 0, 7)
    write(tmp_path / "store", [there], unlabelled=0.0)
    store = Store(tmp_path / "store")

    def read(key: int, offset: int, context: int | None = None) -> None:
        contexts = None if context is None else np.array([0, context])
        store.read(np.array([there.key, key], np.uint64), np.array([64, offset]), contexts)

    read(there.key, 127, 0)
    for key, offset, context in [(there.key, 128, None), (there.key, 63, None), (5, 64, None), (there.key, 64, 64)]:
        with pytest.raises(MissingSignalError, match=rf"document {key:016x} at offset {offset}\b.*limbeck capture"):
            read(key, offset, context)


def test_a_position_without_a_label_has_no_signal(tmp_path: Path) -> None:
    span = Span(1, 0, 64, 0, 7)
    write(tmp_path / "store", [span])
    unlabelled = int(np.argmin(encoded(span).counts))
    with pytest.raises(MissingSignalError, match=f"offset {unlabelled}"):
        Store(tmp_path / "store").read(np.array([1], np.uint64), np.array([unlabelled]))


def test_a_span_for_other_tokens_is_missing_and_replaced(tmp_path: Path) -> None:
    spans = grid(10)
    write(tmp_path / "store", spans)
    changed = dataclasses.replace(spans[3], digest=1)
    longer = dataclasses.replace(spans[5], length=spans[5].length + 1)
    elsewhere = dataclasses.replace(spans[-1], context=0, start=10_000)
    assert Store(tmp_path / "store").missing([changed, spans[4], longer, elsewhere]) == [changed, longer, elsewhere]
    write(tmp_path / "store", [changed])
    store = Store(tmp_path / "store")
    assert store.missing([changed]) == []
    assert store.missing(spans) == [spans[3]]
    asked = positions([changed])
    assert equal(store.encoded(*ask(asked)), expected(asked))


def test_of_equal_spans_the_first_counts(tmp_path: Path) -> None:
    span = Span(3, 0, 20, 0, 9)
    write(tmp_path / "store", [span], unlabelled=0.0)
    before = Store(tmp_path / "store").encoded(np.full(20, 3, np.uint64), np.arange(20))
    with StoreWriter(tmp_path / "store", IDENTITY) as writer:
        writer.add(dataclasses.replace(signal(span), encoded=encoded(dataclasses.replace(span, digest=1))))
    store = Store(tmp_path / "store")
    assert len(store) == 1
    assert len(store.shards) == 2
    assert len(list(store.signals())) == 1
    assert equal(store.encoded(np.full(20, 3, np.uint64), np.arange(20)), before)


span_lists = st.lists(
    st.builds(
        lambda key, context, into, length, digest: Span(key, context + into, length, context, digest),
        st.integers(0, 2),
        st.integers(0, 30),
        st.integers(0, 20),
        st.integers(1, 40),
        st.integers(0, 1),
    ),
    max_size=12,
)


@settings(max_examples=50, deadline=None)
@given(span_lists, st.integers(1, 60))
def test_spans_may_overlap_in_every_way(tmp_path_factory: pytest.TempPathFactory, spans: list[Span], size: int) -> None:
    folder = tmp_path_factory.mktemp("overlap") / "store"
    write(folder, spans, shard_tokens=size, unlabelled=0.0)
    store = Store(folder)
    for offset in range(0, 92, 7):
        for key in range(3):
            for context in (None, 0, 5):
                holding = [
                    span
                    for span in spans
                    if span.key == key
                    and span.start <= offset < span.start + span.length
                    and context in (None, span.context)
                ]
                asked = np.array([key], np.uint64), np.array([offset]), None if context is None else np.array([context])
                if not holding:
                    with pytest.raises(MissingSignalError):
                        store.encoded(*asked)
                    continue
                read = store.encoded(*asked)
                assert any(
                    equal(read, expected([(key, offset, 0, encoded(span, unlabelled=0.0), offset - span.start)]))
                    for span in holding
                )


def test_datasets_opens_a_shard(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    spans = grid(5)
    write(tmp_path / "store", spans, shard_tokens=10**6, tail=True)
    (shard,) = Store(tmp_path / "store").shards
    rows = datasets.Dataset.from_file(str(tmp_path / "store" / shard.name))
    assert len(rows) == len(spans)
    row, arrays = rows[4], encoded(spans[4], tail=True)
    assert {name: row[name] for name in vars(spans[4])} == vars(spans[4])
    for name in ("words", "counts", "entropy", "tail"):
        assert row[name] == getattr(arrays, name).tolist()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"teacher": "weights-2"}, "another teacher: weights-1, not weights-2"),
        ({"tokenizer": "map-2"}, "another tokenizer: map-1, not map-2"),
        ({"vocab_size": 1_001}, "vocabulary of another size: 1000, not 1001"),
        ({"codec": 2}, "another codec version: 1, not 2"),
        ({"scheme": {**IDENTITY.scheme, "threshold": 0.01}}, "another scheme: threshold 0.02, not threshold 0.01"),
        ({"scheme": {"kind": "top_k", "k": 16}}, "another scheme: k unset, kind threshold, "),
        ({"context": "row"}, "another context: document, not row"),
        ({"encoding": "format-5"}, "another encoding of the documents"),
        ({"window": 1_024}, "another window"),
    ],
)
def test_signals_of_another_identity_are_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    write(tmp_path / "store", grid(2))
    for refused in (
        lambda: Store(tmp_path / "store", identity(**change)),
        lambda: write(tmp_path / "store", [], identity(**change)),
    ):
        with pytest.raises(StoreError) as error:
            refused()
        assert said in error.value.line()
        assert str(tmp_path / "store" / FILE) in error.value.line()
        assert error.value.fix
        assert error.value.line().lower().count("another folder") == 1
        assert "\n" not in error.value.line()


def test_a_teacher_has_a_name_for_people(tmp_path: Path) -> None:
    StoreWriter(tmp_path / "store", IDENTITY, teacher="models/big")
    write(tmp_path / "store", grid(2))  # the name is no part of the identity
    with pytest.raises(StoreError, match=r"another teacher: models/big \(weights-1\), not weights-2"):
        Store(tmp_path / "store", identity(teacher="weights-2"))
    (shard, *_) = Store(tmp_path / "store").shards
    (tmp_path / "store" / shard.name).unlink()
    assert repair(tmp_path / "store").changed
    assert Store(tmp_path / "store").teacher == summary_of(tmp_path / "store").teacher == "models/big"
    write(tmp_path / "old", grid(2))
    assert Store(tmp_path / "old").teacher == ""


def test_a_codec_that_this_limbeck_cannot_read_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "store", grid(2), identity(codec=99))
    with pytest.raises(StoreError, match="codec version 99, and this limbeck reads"):
        Store(tmp_path / "store")


def test_a_layout_that_this_limbeck_cannot_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.signals.store.manifest.FORMAT", 2)
    write(tmp_path / "store", [])
    monkeypatch.undo()
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    with pytest.raises(StoreError, match="layout 2, and this limbeck reads layout 1"):
        Store(tmp_path / "store")


def test_where_there_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no store of signals in .*limbeck capture"):
        Store(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreWriteError, match="cannot be made"):
        StoreWriter(tmp_path / "file", IDENTITY)


def test_fingerprints_of_identities() -> None:
    assert identity().fingerprint == IDENTITY.fingerprint != identity(window=1).fingerprint
    assert len(IDENTITY.fingerprint) == 16


def test_arrays_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    span = Span(1, 0, 8, 0, 7)
    good = encoded(span)
    bad = [
        dataclasses.replace(good, words=good.words[:-1]),
        dataclasses.replace(good, counts=good.counts[:-1]),
        dataclasses.replace(good, entropy=good.entropy[:-1]),
        dataclasses.replace(good, tail=good.entropy[:-1]),
        dataclasses.replace(good, words=good.words.astype(np.uint64)),
    ]
    with StoreWriter(tmp_path / "store", IDENTITY) as writer:
        writer.add(signal(span))
        for arrays in bad:
            with pytest.raises(ValueError, match="Span"):
                writer.add(dataclasses.replace(signal(span), encoded=arrays))
        for wrong in (Span(1, 4, 8, 5, 7), Span(1, 0, 0, 0, 7), Span(1, 2**31 - 4, 8, 0, 7)):
            with pytest.raises(ValueError, match="no span"):
                writer.add(dataclasses.replace(signal(span), span=wrong))
    assert len(Store(tmp_path / "store")) == 1


def test_an_interrupted_block_keeps_what_was_added(tmp_path: Path) -> None:
    span = Span(1, 0, 8, 0, 7)

    def capture() -> None:
        with StoreWriter(tmp_path / "store", IDENTITY) as writer:
            writer.add(signal(span))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture()
    assert Store(tmp_path / "store").missing([span]) == []


def test_bytes_read_are_counted(tmp_path: Path) -> None:
    spans = grid(8)
    write(tmp_path / "store", spans)
    store = Store(tmp_path / "store")
    read = store.encoded(*ask(positions(spans)))
    assert store.bytes_read == read.words.nbytes + read.counts.nbytes + read.entropy.nbytes > 0


def test_reading_more_than_stays_in_memory_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.signals.store.reader.RELEASE_BYTES", -1)
    spans = grid(8)
    write(tmp_path / "store", spans)
    store, asked = Store(tmp_path / "store"), positions(spans)
    for _ in range(3):
        assert equal(store.encoded(*ask(asked)), expected(asked))


def test_a_folder_that_only_can_be_read_is_read(tmp_path: Path) -> None:
    write(tmp_path / "store", grid(3))
    before = sorted(os.listdir(tmp_path / "store"))
    (tmp_path / "cache").write_text("no folder: no stamp can be kept")
    for _ in range(2):
        assert len(Store(tmp_path / "store")) == len(grid(3))
    assert sorted(os.listdir(tmp_path / "store")) == before
