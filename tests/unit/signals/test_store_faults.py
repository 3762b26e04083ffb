"""Damage is found before anything is learned from it, and costs what it touches and no more."""

from __future__ import annotations

import dataclasses
import fcntl
import multiprocessing
import multiprocessing.process
import os
import resource
import shutil
import signal as signals
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import StoreError, StoreWriteError
from limbeck.signals.store import Span, Store, StoreWriter
from limbeck.signals.store.hashes import sha256_of
from limbeck.signals.store.manifest import FILE, is_store
from limbeck.signals.store.shards import WRITING
from limbeck.signals.upkeep.mend import repair
from tests.unit.signals.stores import IDENTITY, encoded, equal, grid, signal, write

SPANS = grid(40)
fork = multiprocessing.get_context("fork")  # spawned children would import torch for seconds


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that nobody changes."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    write(folder, SPANS, shard_tokens=1_500)
    return folder


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "store"))


def a_shard(folder: Path, n: int = 1) -> Path:
    return folder / Store(folder).shards[n].name


def refused(folder: Path, *said: str) -> None:
    with pytest.raises(StoreError) as error:
        Store(folder, IDENTITY)
    line = error.value.line()
    assert all(each in line for each in (*said, f"`limbeck signals repair {folder}`")), line
    assert "\n" not in line


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_any_flipped_bit_of_a_shard_is_found(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, where: float, bit: int
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path_factory.mktemp("flip") / "store"))
    shard = a_shard(folder)  # opened: it was found right before
    with shard.open("rb+") as file:
        place = int(where * shard.stat().st_size)
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))
    refused(folder, str(shard), "is damaged")


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 1, exclude_max=True))
def test_any_truncation_of_a_shard_is_found(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, where: float
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path_factory.mktemp("cut") / "store"))
    shard = a_shard(folder)
    os.truncate(shard, int(where * shard.stat().st_size))
    refused(folder, str(shard), "is truncated")


def test_a_shard_that_grew_or_went_is_found(store: Path) -> None:
    shard = a_shard(store)
    with shard.open("ab") as file:
        file.write(b"more")
    refused(store, str(shard), "longer")
    shard.unlink()
    refused(store, str(shard), "is missing")


def test_hashes_are_checked_once_and_again_after_a_change(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def hash_it(path: Path) -> str:
        hashed.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr("limbeck.signals.store.hashes.sha256_of", hash_it)
    names = sorted(shard.name for shard in Store(store).shards)
    assert sorted(hashed) == names
    Store(store)
    assert len(hashed) == len(names)
    os.utime(store / names[0])
    Store(store)
    assert len(hashed) == len(names) + 1
    assert hashed[-1] == names[0]
    # A byte that is flipped by a program that restores the times of the file is found by the inode's own time.
    found = (store / names[0]).stat()
    with (store / names[0]).open("rb+") as file:
        file.write(b"\0")
    os.utime(store / names[0], ns=(found.st_atime_ns, found.st_mtime_ns))
    refused(store, names[0])


def test_a_damaged_cache_only_costs_time(store: Path, tmp_path: Path) -> None:
    Store(store)
    for cached in (tmp_path / "cache").rglob("*.json"):
        cached.write_text('["torn')
    assert len(Store(store)) == len(SPANS)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1, exclude_max=True))
def test_a_torn_last_line_costs_that_line_only(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, where: float
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path_factory.mktemp("torn") / "store"))
    text = (folder / FILE).read_bytes()
    start = text.rstrip(b"\n").rfind(b"\n") + 1
    os.truncate(folder / FILE, start + int(where * (len(text) - start)))
    torn = Store(folder, IDENTITY)
    assert len(torn.shards) in (len(Store(whole).shards) - 1, len(Store(whole).shards))
    lost = torn.missing(SPANS)
    write(folder, lost)
    again = Store(folder, IDENTITY)
    assert again.missing(SPANS) == []
    assert len(again) == len(SPANS)


def test_a_damaged_line_costs_that_line_only(store: Path) -> None:
    lines = (store / FILE).read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"rows": ', b'"rows": 9')
    (store / FILE).write_bytes(b"".join(lines))
    assert len(Store(store).shards) == len(lines) - 2
    lines[0] = lines[0].replace(b"weights-1", b"weights-2")
    (store / FILE).write_bytes(b"".join(lines))
    refused(store, str(store / FILE), "does not say whose")


def test_a_shard_of_another_store_is_refused(store: Path, tmp_path: Path) -> None:
    """Its bytes are those of the manifest, which somebody wrote by hand."""
    other = dataclasses.replace(IDENTITY, teacher="weights-2")
    write(tmp_path / "other", SPANS[:3], other)
    theirs = (tmp_path / "other" / FILE).read_bytes().splitlines(keepends=True)
    shard = a_shard(tmp_path / "other", 0)
    shutil.copy(shard, store)
    with (store / FILE).open("ab") as file:
        file.write(theirs[1])
    with pytest.raises(StoreError, match=rf"{shard.name} is of another teacher"):
        Store(store)


def test_what_the_manifest_does_not_name_is_left_alone(store: Path) -> None:
    (store / "shard-9-00.arrow").write_bytes(b"torn")
    (store / f"shard-9-01.arrow{WRITING}").write_bytes(b"torn")
    assert len(Store(store)) == len(SPANS)
    write(store, grid(2, seed=5))
    assert (store / "shard-9-00.arrow").exists()
    assert (store / f"shard-9-01.arrow{WRITING}").exists()


def test_shards_without_a_manifest_are_no_new_store(store: Path, tmp_path: Path) -> None:
    (store / FILE).unlink()
    shards = sorted(file.name for file in store.glob("*.arrow"))
    for refused_by in (lambda: StoreWriter(store, IDENTITY), lambda: Store(store), lambda: is_store(store)):
        with pytest.raises(StoreError, match=rf"{len(shards)} files of shards.*lost.*signals repair {store}"):
            refused_by()
    assert sorted(file.name for file in store.glob("*.arrow")) == shards
    assert not (store / FILE).exists()
    repair(store)
    assert Store(store).missing(SPANS) == []
    # A folder that is missing, is empty, or holds only what another writer is at is a new store.
    for name in ("missing", "empty", "begun"):
        folder = tmp_path / name
        if name != "missing":
            folder.mkdir()
        with (
            (tmp_path / name if name == "begun" else tmp_path).joinpath(f"shard-0-0.arrow{WRITING}").open("wb") as file
        ):
            fcntl.flock(file, fcntl.LOCK_EX)
            assert not is_store(folder)
            write(folder, SPANS[:3])
        assert len(Store(folder)) == 3
    begun = tmp_path / "killed"
    begun.mkdir()
    (begun / f"shard-0-0.arrow{WRITING}").write_bytes(b"torn")
    with pytest.raises(StoreError, match="1 file of shards"):
        write(begun, SPANS[:3])


def _fill(folder: Path, limit: int, queue: object) -> None:
    """Write until no file may be larger than ``limit`` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        write(folder, SPANS, shard_tokens=1_500)
    except StoreWriteError as error:
        queue.put((error.line(), error.exit_code))  # type: ignore[attr-defined]
    else:
        queue.put(("nothing was refused", 0))  # type: ignore[attr-defined]


@pytest.mark.parametrize("limit", [30_000, 1_000], ids=["a shard", "a line of the manifest"])
def test_a_full_disk_leaves_the_store_whole(tmp_path: Path, limit: int) -> None:
    folder = tmp_path / "store"
    write(folder, SPANS[:5], shard_tokens=100)
    before = (folder / FILE).read_bytes()
    queue = fork.SimpleQueue()
    child = fork.Process(target=_fill, args=(folder, limit, queue))
    child.start()
    line, code = queue.get()
    child.join()
    assert str(folder) in line
    assert "Free space" in line
    assert code == 4
    assert (folder / FILE).read_bytes() == before, "nothing is half named"
    assert not list(folder.glob(f"*{WRITING}"))
    assert Store(folder).missing(SPANS[:5]) == []
    write(folder, Store(folder).missing(SPANS))
    assert Store(folder).missing(SPANS) == []


def test_a_flush_that_failed_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    span = Span(1, 0, 8, 0, 7)
    writer = StoreWriter(tmp_path / "store", IDENTITY)
    writer.add(signal(span))
    monkeypatch.setattr("limbeck.signals.store.writer.write_shard", full)
    for _ in range(2):
        with pytest.raises(StoreWriteError, match="No space left on device"):
            writer.flush()
    monkeypatch.undo()
    writer.close()
    assert Store(tmp_path / "store").missing([span]) == []


MANY = grid(400, seed=3)


def _capture(folder: Path, worker: int, seconds: float) -> None:
    """One of two workers: what is missing of its half, slowly enough to be killed."""
    with StoreWriter(folder, IDENTITY, str(worker), shard_tokens=200) as writer:
        spans = Store(folder, IDENTITY).missing(MANY[worker::2])
        (folder.parent / f"ready-{worker}").touch()
        for span in spans:
            time.sleep(seconds)
            writer.add(signal(span))


def _start(folder: Path, seconds: float) -> list[multiprocessing.process.BaseProcess]:
    workers: list[multiprocessing.process.BaseProcess] = []
    for n in range(2):
        (folder.parent / f"ready-{n}").unlink(missing_ok=True)
        workers.append(fork.Process(target=_capture, args=(folder, n, seconds)))
        workers[-1].start()
    return workers


def _kill_at(folder: Path, moment: float) -> None:
    workers = _start(folder, 0.002)
    deadline = time.monotonic() + 60
    while not all((folder.parent / f"ready-{n}").exists() for n in range(2)) and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(moment)
    for worker in workers:
        assert worker.pid is not None
        os.kill(worker.pid, signals.SIGKILL)
    for worker in workers:
        worker.join()


def check_whole(folder: Path, named_before: set[str]) -> set[str]:
    """What the manifest names is there, as it was written; nothing that was named is lost."""
    store = Store(folder, IDENTITY)
    for shard in store.shards:
        assert sha256_of(folder / shard.name) == shard.sha256
    for each in store.signals():
        assert equal(each.encoded, encoded(each.span))
    named = {shard.name for shard in store.shards}
    assert named >= named_before
    return named


def killed_at(folder: Path, moments: list[float]) -> None:
    named: set[str] = set()
    for number, moment in enumerate(moments, 1):
        _kill_at(folder, moment)
        named = check_whole(folder, named)
        unnamed = {path.name.removesuffix(WRITING) for path in folder.glob("shard-*")} - named
        assert len(unnamed) <= 2 * number, "a killed worker leaves one shard that is not named"
    for worker in range(2):
        _capture(folder, worker, 0.0)
    store = Store(folder, IDENTITY)
    assert store.missing(MANY) == []
    assert len(store) == len(MANY)
    assert sum(shard.rows for shard in store.shards) == len(MANY), "every span exactly once"
    check_whole(folder, named)


def test_workers_that_are_killed_lose_only_what_was_not_named(tmp_path: Path) -> None:
    killed_at(tmp_path / "store", [0.1, 0.4, 0.2])


@pytest.mark.slow
def test_workers_that_are_killed_at_20_moments(tmp_path: Path) -> None:
    killed_at(tmp_path / "store", np.random.default_rng(7).uniform(0, 0.3, 20).tolist())


def test_writers_side_by_side(tmp_path: Path) -> None:
    for worker in _start(tmp_path / "store", 0.0):
        worker.join()
        assert worker.exitcode == 0
    check_whole(tmp_path / "store", set())
    assert Store(tmp_path / "store").missing(MANY) == []
