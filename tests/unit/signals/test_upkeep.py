"""Stores are looked into, verified, mended, joined and moved, and no span of them changes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from limbeck import cli
from limbeck.commands.signals.stores import show_summary
from limbeck.errors import InputError, StoreError
from limbeck.signals.codec import PAIR, decode
from limbeck.signals.exchange.parquet import export_parquet, exported_signals
from limbeck.signals.store import Span, SpanSignal, Store, StoreWriter, manifest
from limbeck.signals.store.manifest import FILE
from limbeck.signals.store.shards import WRITING
from limbeck.signals.upkeep.check import verify
from limbeck.signals.upkeep.join import copy_into, merge
from limbeck.signals.upkeep.look import summary_of, unnamed_files
from limbeck.signals.upkeep.mend import ASIDE, repair
from tests.unit.signals.stores import IDENTITY, WIDE, encoded, equal, grid, identity, write

SPANS = grid(30)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write(tmp_path / "store", SPANS, shard_tokens=1_200)
    return tmp_path / "store"


def all_signals(folder: Path) -> dict[Span, SpanSignal]:
    return {signal.span: signal for signal in Store(folder).signals()}


def same(folder: Path, spans: list[Span], **settings: object) -> None:
    found = all_signals(folder)
    assert set(found) == set(spans)
    for span, signal in found.items():
        assert equal(signal.encoded, encoded(span, **settings))  # type: ignore[arg-type]


def flip(file: Path, place: int = 2_000) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


@pytest.fixture
def limbeck(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["limbeck", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as left:
            code = int(left.code or 0)
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


def test_a_summary_counts_what_is_there(store: Path) -> None:
    write(store, SPANS[:2])
    found = summary_of(store)
    arrays = [encoded(span) for span in [*SPANS, *SPANS[:2]]]
    assert (found.documents, found.spans, found.twice) == (30, len(SPANS), 2)
    assert found.positions == sum(int(np.count_nonzero(each.counts)) for each in arrays)
    assert found.entries == sum(len(decode(each, 1_000).ids) for each in arrays)
    assert found.bytes == sum(file.stat().st_size for file in store.glob("*.arrow"))
    assert found.fingerprint == IDENTITY.fingerprint
    assert not found.faults
    assert not found.unnamed


@pytest.mark.parametrize("damaged", [False, True])
def test_a_summary_fits_80_columns(store: Path, damaged: bool, capsys: pytest.CaptureFixture[str]) -> None:
    if damaged:
        os.truncate(store / Store(store).shards[0].name, 100)
        (store / "shard-0-00.arrow").write_bytes(b"")
    found = dataclasses.replace(summary_of(store), folder="runs/demo-signals")
    show_summary(found, Console(width=80))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for said in ("weights-1", "threshold: ", "threshold 0.02", "a token", " spans"):
        assert said in out
    assert ("repair" in out) == damaged


def test_commands(store: Path, tmp_path: Path, limbeck: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = limbeck("signals", "inspect", store, "--json")
    assert code == 0
    assert json.loads(out)["spans"] == len(SPANS)
    assert limbeck("signals", "inspect", store)[0] == 0
    code, out, _ = limbeck("signals", "verify", store)
    assert (code, "positions" in out) == (0, True)
    assert "nothing was done" in limbeck("signals", "repair", store)[1]
    assert "added from 1 store" in limbeck("signals", "merge", store, "--into", tmp_path / "merged")[1]
    assert "bytes of Parquet" in limbeck("signals", "export", store, tmp_path / "cold")[1]
    assert "added" in limbeck("signals", "import", tmp_path / "cold", tmp_path / "back")[1]
    same(tmp_path / "back", SPANS)
    flip(store / Store(store).shards[1].name)
    code, out, _ = limbeck("signals", "verify", store)
    assert (code, "is damaged" in out, "1 fault" in out) == (2, True, True)
    code, _, err = limbeck("signals", "merge", store, "--into", tmp_path / "merged-2")
    assert (code, err.count("\n")) == (2, 1)
    assert "repair" in err
    with (store / FILE).open("a") as file:
        file.write('{"torn')
    code, out, _ = limbeck("signals", "inspect", store)
    assert (code, "cannot be read" in out) == (2, True)
    code, _, err = limbeck("signals", "inspect", tmp_path / "nothing")
    assert (code, "no store" in err) == (2, True)


def test_verify_names_every_fault(store: Path) -> None:
    assert verify(store).faults == ()
    names = [shard.name for shard in Store(store).shards]
    flip(store / names[0])
    os.truncate(store / names[1], 1_000)
    (store / names[2]).unlink()
    with (store / FILE).open("ab") as file:
        file.write(b"torn")
    faults = "\n".join(verify(store).faults)
    for said in (f"{names[0]} is damaged", f"{names[1]} is truncated", f"{names[2]} is missing", "line "):
        assert said in faults


def test_verify_reads_entries(tmp_path: Path) -> None:
    """An id beyond the vocabulary is hashed as it was written, and is wrong all the same."""
    span = Span(1, 0, 8, 0, 7)
    good = encoded(span)
    with StoreWriter(tmp_path / "store", IDENTITY) as writer:
        writer.add(SpanSignal(span, dataclasses.replace(good, words=(good.words | np.uint32(0x3FFFF)) & ~PAIR)))
    (fault,) = verify(tmp_path / "store").faults
    assert "no token's probability" in fault


def test_repair_leaves_a_whole_store_alone(store: Path) -> None:
    before = {file.name: file.read_bytes() for file in store.iterdir()}
    assert repair(store).said == []
    assert {file.name: file.read_bytes() for file in store.iterdir()} == before


def test_repair_sets_aside_what_fails(store: Path) -> None:
    lines = Store(store).shards
    flip(store / lines[0].name)
    (store / lines[1].name).unlink()
    done = repair(store)
    assert done.changed
    assert len(done.said) == 2
    assert (store / ASIDE / lines[0].name).exists()
    lost = Store(store).missing(SPANS)
    assert len(lost) == lines[0].rows + lines[1].rows
    write(store, lost)
    same(store, SPANS)


@pytest.mark.parametrize("suffix", ["", WRITING])
def test_repair_adopts_what_is_whole(store: Path, suffix: str) -> None:
    """A writer that was killed after the shard was renamed, and before the manifest named it; or before both."""
    name = Store(store).shards[-1].name
    lines = (store / FILE).read_bytes().splitlines(keepends=True)
    (store / FILE).write_bytes(b"".join(lines[:-1]))
    os.rename(store / name, store / (name + suffix))
    assert Store(store).missing(SPANS)
    assert "adopted" in " ".join(repair(store).said)
    assert not verify(store).unnamed
    same(store, SPANS)


def test_repair_sets_aside_what_is_torn_or_not_needed(store: Path, tmp_path: Path) -> None:
    shard = store / Store(store).shards[0].name
    torn = store / f"shard-9-00.arrow{WRITING}"
    torn.write_bytes(shard.read_bytes()[:-8])
    (store / "shard-9-01.arrow").write_bytes(b"no shard")
    shutil.copy(shard, store / "shard-9-02.arrow")
    write(tmp_path / "other", SPANS[:3], identity(teacher="weights-2"))
    shutil.copy(tmp_path / "other" / Store(tmp_path / "other").shards[0].name, store / "shard-9-03.arrow")
    said = "\n".join(repair(store).said)
    for why in ("its end is missing", "no whole shard", "has all of its spans", "another teacher"):
        assert why in said
    assert len(list((store / ASIDE).iterdir())) == 4
    assert repair(store).said == []
    same(store, SPANS)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7), st.booleans())
def test_repair_takes_whatever_lies_there(
    tmp_path_factory: pytest.TempPathFactory, where: float, bit: int, cut: bool
) -> None:
    """An unnamed shard with a flipped bit, or cut: adopted or set aside, and the store is whole afterwards."""
    folder = tmp_path_factory.mktemp("lies") / "store"
    write(folder, SPANS[:20], shard_tokens=600)
    lines = (folder / FILE).read_bytes().splitlines(keepends=True)
    (folder / FILE).write_bytes(b"".join(lines[:-1]))
    (unnamed,) = unnamed_files(folder, {shard.name for shard in Store(folder).shards})
    place = int(where * unnamed.stat().st_size)
    if cut:
        os.truncate(unnamed, place)
    else:
        data = bytearray(unnamed.read_bytes())
        data[place] ^= 1 << bit
        unnamed.write_bytes(data)
    assert repair(folder).said
    assert not verify(folder).faults
    assert not summary_of(folder).unnamed


def test_other_files_are_left_alone(store: Path) -> None:
    (store / "cache-1.arrow").write_bytes(b"another program's")
    assert repair(store).said == []
    assert (store / "cache-1.arrow").exists()


def test_a_shard_lies_in_the_folder(store: Path) -> None:
    """A manifest that somebody wrote names nothing outside."""
    line = dataclasses.asdict(Store(store).shards[0])
    with (store / FILE).open("a") as file:
        file.write(manifest._line({**line, "name": "../elsewhere.arrow"}) + "\n")
    assert len(summary_of(store).faults) == 1
    same(store, SPANS)


def test_repair_leaves_what_is_being_written(store: Path) -> None:
    import fcntl

    writing = store / f"shard-9-00.arrow{WRITING}"
    with writing.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "left alone" in repair(store).said[0]
        assert writing.exists()


@pytest.mark.parametrize("lost", ["all of it", "its first line", "a line"])
def test_repair_writes_a_lost_manifest_again(store: Path, lost: str) -> None:
    lines = (store / FILE).read_bytes().splitlines(keepends=True)
    kept = {"all of it": [], "its first line": [b"torn\n", *lines[1:]], "a line": [*lines[:2], b"torn\n", *lines[3:]]}
    (store / FILE).write_bytes(b"".join(kept[lost]))
    if lost == "all of it":
        (store / FILE).unlink()
    assert repair(store).changed
    assert not verify(store).faults
    same(store, SPANS)
    assert Store(store).identity == IDENTITY


def test_repair_refuses_what_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "nothing"):
        with pytest.raises(StoreError):
            repair(folder)


def test_stores_are_merged(tmp_path: Path) -> None:
    write(tmp_path / "a", SPANS[:40], shard_tokens=100)
    write(tmp_path / "b", SPANS[30:], shard_tokens=100)
    copied = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    assert (copied.spans, copied.there) == (len(SPANS), 10)
    same(tmp_path / "both", SPANS)
    assert len(Store(tmp_path / "both").shards) < len(Store(tmp_path / "a").shards)
    assert merge([tmp_path / "a"], tmp_path / "both").spans == 0
    with pytest.raises(StoreError, match="both a source and the target"):
        merge([tmp_path / "a", tmp_path / "both"], tmp_path / "both")
    write(tmp_path / "other", SPANS, identity(teacher="weights-2"))
    with pytest.raises(StoreError, match="another teacher"):
        merge([tmp_path / "a", tmp_path / "other"], tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()


@pytest.mark.parametrize("whose", [IDENTITY, WIDE], ids=["narrow", "wide"])
@pytest.mark.parametrize("tail", [False, True])
def test_parquet_and_back_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose, tail: bool) -> None:
    monkeypatch.setattr("limbeck.signals.exchange.parquet.SPANS", 20)
    monkeypatch.setattr("limbeck.signals.exchange.parquet.GROUP", 7)
    write(tmp_path / "store", SPANS, whose, tail=tail)
    export_parquet(tmp_path / "store", tmp_path / "cold")
    assert len(list((tmp_path / "cold").iterdir())) > 1
    found, signals = exported_signals(tmp_path / "cold")
    assert found == whose
    copy_into(tmp_path / "back", found, signals)
    same(tmp_path / "back", SPANS, vocab_size=whose.vocab_size, tail=tail)


def test_what_cannot_be_exported_or_imported(store: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(StoreError, match="is there already"):
        export_parquet(store, tmp_path / "there")
    with pytest.raises(InputError, match="no Parquet files"):
        exported_signals(tmp_path / "there")
    (tmp_path / "there" / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="not exported by limbeck"):
        exported_signals(tmp_path / "there")
    export_parquet(store, tmp_path / "cold")
    (file,) = (tmp_path / "cold").iterdir()
    flip(file, file.stat().st_size // 2)
    _, signals = exported_signals(tmp_path / "cold")
    with pytest.raises(InputError, match="is damaged"):
        copy_into(tmp_path / "back", IDENTITY, signals)
