"""The journal: on disk before it counts, never paid twice, and the same after any kill."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from limbeck.errors import InputError, MachineError, RunFolderError
from limbeck.generation.journal.journal import Journal
from limbeck.generation.journal.rows import RowState, Spent
from limbeck.generation.journal.storage import database
from limbeck.generation.journal.storage.database import APPLICATION, TABLES
from limbeck.generation.journal.storage.salvage import RECOUNT
from limbeck.generation.request import Completion, Outcome, Request, TokenLogprobs, Usage

TEACHER = {"api": "https://a.example/v1", "model": "m", "protocol": "chat"}
OTHER = {"api": "https://b.example/v1", "model": "n", "protocol": "chat"}
EVERYTHING = Completion(
    outcome=Outcome.TOOL_CALL,
    text="lone \udc80 surrogate, NUL \0, é\u2028",
    reasoning="why",
    message={"content": None, "signature": "s" * 99, "nested": [{"a": 1.5}]},
    tool_calls=({"id": "1", "function": {"name": "f", "arguments": "{}"}},),
    usage=Usage(10, 5, cached=3, cache_write=2, reasoning=1, tier="batch"),
    model="m-2026",
    logprobs=(TokenLogprobs("a", -0.5, (("a", -0.5), ("b", float("-inf"))), b"\xff", 7), TokenLogprobs("c", -1.0)),
    ids=(3, 1, 2),
)


def ask(n: int, sample: int = 0) -> Request:
    return Request(messages=({"role": "user", "content": f"question {n}"},), sample=sample)


def said(text: str = "yes", usage: Usage | None = Usage(10, 5)) -> Completion:  # noqa: B008
    return Completion(Outcome.COMPLETE, text, usage=usage)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "j" / "a.sqlite") as opened:
        yield opened


def recount(path: Path) -> dict[str, int]:
    """What the counters must say, by the tables themselves."""
    db = sqlite3.connect(path)
    counted = dict(db.execute(RECOUNT))
    stored = dict(db.execute("SELECT name, value FROM counters"))
    db.close()
    found = {name: int(n) for name, n in counted.items() if n}
    assert found == {name: n for name, n in stored.items() if n}
    return found


def test_a_journal_of_version_1_is_read_and_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    db = sqlite3.connect(path, isolation_level=None)
    tables = TABLES.replace(",\n  lead INTEGER", "")
    assert tables != TABLES
    db.executescript(f"BEGIN; {tables} PRAGMA application_id={APPLICATION}; PRAGMA user_version=1; COMMIT;")
    db.close()
    key = ask(0).key(TEACHER)
    with Journal(path, read_only=True) as journal:
        assert journal.exchange(key) is None
    with Journal(path) as journal:
        journal.add([ask(0), ask(0, 1)], TEACHER)

        async def way() -> None:
            attempts = await journal.sent_together([key, ask(0, 1).key(TEACHER)], TEACHER, b"body", 100, 50)
            await journal.answered_together(attempts, b"raw", [said()], 60)

        asyncio.run(way())
        assert journal.exchange(key) == (b"body", b"raw")
        assert (journal.counts().answered, journal.counts().todo) == ({"complete": 1}, 1)
        assert journal.spent() == Spent(60, 15)
    recount(path)


def test_an_answer_comes_back_as_it_was(journal: Journal) -> None:
    request = Request(
        messages=({"role": "user", "content": "x\udc80"},),
        tools=({"type": "function"},),
        stop=("\n",),
        extra={"b": 1, "a": [2]},
        sample=3,
    )
    key = request.key(TEACHER)
    raw, body = b'{"id": "\xff\xfe\0 not UTF-8"', b"\x00exact body"

    async def way() -> None:
        assert journal.add([request], TEACHER) == 1
        assert journal.state(key) is RowState.TODO
        assert journal.get(key) is None
        attempt = await journal.sent(key, OTHER, body, 900, 70)
        assert journal.state(key) is RowState.SENT
        assert journal.spent() == Spent(900, 70, 900, 70)
        await journal.answered(attempt, raw, EVERYTHING, 400)

    asyncio.run(way())
    assert journal.get(key) == EVERYTHING
    assert journal.exchange(key) == (body, raw)
    assert journal.who_wrote(key) == OTHER
    assert journal.spent() == Spent(400, 15)
    row = journal.row(key)
    assert row is not None
    assert (row.request, row.teacher, row.cost, row.attempts) == (request, TEACHER, 400, 1)
    assert journal.counts().answered == {"tool_call": 1}
    assert journal.state("00" * 32) is journal.get("00" * 32) is journal.who_wrote("00" * 32) is None
    assert journal.exchange("00" * 32) is None
    recount(journal.path)


def test_rows_that_exist_are_left_as_they_are(journal: Journal) -> None:
    assert journal.add((ask(i % 700, i // 700) for i in range(1400)), TEACHER) == 1400
    journal.put(ask(3), TEACHER, said("three"))
    journal.put(ask(3), TEACHER, said("again"))
    assert journal.add((ask(i) for i in range(702)), TEACHER) == 2
    assert journal.add([ask(0)], OTHER) == 1  # another teacher is another row
    assert [row.request for row in journal.rows()][:1400] == [ask(i % 700, i // 700) for i in range(1400)]
    assert [row.completion for row in journal.rows(RowState.ANSWERED)] == [said("three")]
    counts = journal.counts()
    assert (counts.todo, counts.answered, counts.total) == (1402, {"complete": 1}, 1403)
    recount(journal.path)


def test_failures_release_what_was_reserved_unless_they_may_have_been_served(journal: Journal) -> None:
    keys = [ask(i).key(TEACHER) for i in range(4)]

    async def way() -> None:
        journal.add(map(ask, range(4)), TEACHER)
        attempts = [await journal.sent(key, TEACHER, b"{}", 100, 10) for key in keys]
        await journal.failed(attempts[0], "429", "slow down", final=False, maybe_served=False)
        await journal.failed(attempts[1], "billing", "no money", final=True, maybe_served=False)
        await journal.failed(attempts[2], "timeout", "no answer", final=False, maybe_served=True)
        await journal.failed(attempts[3], "timeout", "no answer", final=True, maybe_served=True)
        assert [journal.state(key) for key in keys] == ["todo", "failed", "unknown", "failed"]
        assert journal.spent() == Spent(200, 20, 200, 20)
        assert journal.counts().possibly_paid_twice == 0
        again = await journal.sent(keys[2], TEACHER, b"{}", 100, 10)
        assert journal.counts().possibly_paid_twice == 1
        await journal.failed(again, "429", "", final=False, maybe_served=False)
        assert journal.state(keys[2]) is RowState.TODO
        again = await journal.sent(keys[2], TEACHER, b"{}", 100, 10)
        await journal.answered(again, b"{}", said(usage=None), 60)
        assert journal.counts().possibly_paid_twice == 1
        with pytest.raises(ValueError, match="answered already"):
            await journal.sent(keys[2], TEACHER, b"{}", 1)
        with pytest.raises(KeyError, match="not in flight"):
            await journal.answered(again, b"{}", said(), 1)
        with pytest.raises(KeyError):
            await journal.sent("00" * 32, TEACHER, b"{}", 1)

    asyncio.run(way())
    assert journal.spent() == Spent(260, 30, 200, 20)  # an answer without usage took what was reserved
    counts = journal.counts()
    assert counts.failed == {"billing": 1, "timeout": 1}
    row = journal.row(keys[2])
    assert row is not None
    assert (row.attempts, row.unknown, row.cost) == (3, 1, 160)
    assert (row.failure, row.message) == (None, None)
    assert journal.retry("billing") == 1
    assert journal.retry() == 1
    assert [journal.state(key) for key in keys] == ["todo", "todo", "answered", "unknown"]
    recount(journal.path)


def test_what_was_in_flight_is_unknown_after_a_kill_and_resends_are_capped(tmp_path: Path) -> None:
    path, key = tmp_path / "a.sqlite", ask(0).key(TEACHER)
    for life in range(6):
        with Journal(path) as journal:
            journal.add([ask(0)], TEACHER)
            if life < 5:
                assert journal.state(key) is (RowState.UNKNOWN if life else RowState.TODO)
                asyncio.run(journal.sent(key, TEACHER, b"{}", 100))
            else:
                assert journal.state(key) is RowState.FAILED
                assert journal.counts().failed == {"unknown": 1}
                assert journal.counts().possibly_paid_twice == 4
                assert journal.spent().nano_usd == 500
                assert journal.retry() == 1
                assert journal.state(key) is RowState.UNKNOWN
        recount(path)


CHILD = """
import asyncio, sys
from pathlib import Path
from limbeck.generation.journal.journal import Journal
from tests.unit.generation.test_journal import TEACHER, ask, said

async def main(journal, n):
    async def one(i):
        key = ask(i).key(TEACHER)
        if journal.state(key) == "answered":
            return
        attempt = await journal.sent(key, TEACHER, b"{}", 100)
        print("sent", i, flush=True)
        await journal.answered(attempt, b"{}", said(str(i)), 50)
        print("kept", i, flush=True)
    lanes = iter(range(n))
    async def lane():
        for i in lanes:
            await one(i)
    await asyncio.gather(*(lane() for _ in range(16)))

with Journal(Path(sys.argv[1])) as journal:
    journal.add((ask(i) for i in range(400)), TEACHER)
    asyncio.run(main(journal, 400))
"""


def test_a_killed_process_loses_nothing_that_it_said_was_kept(tmp_path: Path) -> None:
    path, kept, sent = tmp_path / "a.sqlite", set[int](), list[int]()
    for life in range(4):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for number, line in enumerate(child.stdout):
            word, _, i = line.partition(" ")
            if word == "kept":
                kept.add(int(i))
            elif line.endswith("\n"):
                sent.append(int(i))
            if life < 3 and number == 100:
                os.kill(child.pid, signal.SIGKILL)
        child.wait()
        with Journal(path) as journal:
            assert {i for i in kept if journal.get(ask(i).key(TEACHER)) != said(str(i))} == set()
            counts = journal.counts()
            assert counts.sent == 0
            assert len(sent) - 400 <= counts.possibly_paid_twice + counts.unknown <= 16 * 3
        recount(path)
    assert kept | set(sent) == set(range(400))
    assert sum(counts.answered.values()) == 400


def test_many_at_once_are_committed_in_groups(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = 0

    def count(statement: str) -> None:
        nonlocal commits
        commits += statement == "COMMIT"

    async def way() -> None:
        journal.add(map(ask, range(640)), TEACHER)
        journal._db.set_trace_callback(count)
        attempts = await asyncio.gather(*(journal.sent(ask(i).key(TEACHER), TEACHER, b"{}", 1) for i in range(640)))
        assert len(set(attempts)) == 640

    asyncio.run(way())
    journal._db.set_trace_callback(None)
    assert 10 <= commits <= 320
    assert journal.counts().sent == 640


def test_a_cancelled_sending_is_withdrawn(journal: Journal) -> None:
    async def way() -> None:
        journal.add([ask(0)], TEACHER)
        task = asyncio.create_task(journal.sent(ask(0).key(TEACHER), TEACHER, b"{}", 100))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while journal.state(ask(0).key(TEACHER)) is not RowState.TODO or journal.spent().nano_usd:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)

    asyncio.run(asyncio.wait_for(way(), 30))
    recount(journal.path)


def test_one_writer_and_any_number_of_readers(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "WAIT_SECONDS", 0.1)
    journal.add([ask(0)], TEACHER)
    with pytest.raises(RunFolderError, match=rf"written by another limbeck \(process {os.getpid()}\)"):
        Journal(journal.path)
    with Journal(journal.path, read_only=True) as reader:
        assert reader.counts().todo == 1
        journal.put(ask(1), TEACHER, said())
        assert reader.get(ask(1).key(TEACHER)) == said()
        with pytest.raises(ValueError, match="not open for writing"):
            reader.add([ask(2)], TEACHER)


def test_reading_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with Journal(path) as journal:
        journal.put(ask(0), TEACHER, said())
    before = {each: (each.stat().st_mtime_ns, each.read_bytes()) for each in tmp_path.iterdir()}
    assert {each.name for each in before} == {"a.sqlite", "a.sqlite.lock"}
    with Journal(path, read_only=True) as reader:
        assert [row.completion for row in reader.rows()] == [said()]
    assert before == {each: (each.stat().st_mtime_ns, each.read_bytes()) for each in tmp_path.iterdir()}
    with pytest.raises(InputError, match="there is no journal"):
        Journal(tmp_path / "b.sqlite", read_only=True)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").write_text("[[[1], [2]]]\n" * 100)
    with pytest.raises(InputError, match="is not a journal of limbeck"):
        Journal(tmp_path / "old.jsonl")
    db = sqlite3.connect(tmp_path / "other.sqlite")
    db.execute("CREATE TABLE mine (id)")
    db.commit()
    with pytest.raises(InputError, match="of another program"):
        Journal(tmp_path / "other.sqlite")
    with Journal(tmp_path / "new.sqlite"):
        pass
    sqlite3.connect(tmp_path / "new.sqlite").execute("PRAGMA user_version = 99")
    with pytest.raises(InputError, match="made by a newer limbeck"):
        Journal(tmp_path / "new.sqlite")


def test_a_damaged_answer_costs_its_own_row(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with Journal(path) as journal:
        journal.put_many([(ask(i), said(str(i))) for i in range(5)], TEACHER)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE answers SET completion = substr(completion, 1, 12) WHERE attempt = 3")
    db.close()
    with Journal(path, read_only=True) as journal:
        assert [row.state for row in journal.rows()] == ["answered", "answered", "failed", "answered", "answered"]
    with Journal(path) as journal:
        assert [row.completion and row.completion.text for row in journal.rows()] == ["0", "1", None, "3", "4"]
        assert journal.state(ask(2).key(TEACHER)) is RowState.TODO
        journal.put(ask(2), TEACHER, said("again"))
        assert journal.counts().answered == {"complete": 5}
    recount(path)


@pytest.mark.parametrize("where", [0.2, 0.6, 0.97])
def test_a_torn_page_costs_what_is_on_it(tmp_path: Path, where: float) -> None:
    path = tmp_path / "a.sqlite"
    with Journal(path) as journal:
        journal.put_many([(ask(i), said(f"{i} {os.urandom(400).hex()}")) for i in range(1000)], TEACHER)
    pages = path.stat().st_size // 4096
    with path.open("r+b") as file:
        file.seek(int(pages * where) * 4096)
        file.write(os.urandom(4096))
    with Journal(path) as journal:
        assert journal.note is not None
        assert "was damaged" in journal.note
        kept = {row.request.messages[0]["content"]: row for row in journal.rows(RowState.ANSWERED)}
        assert len(kept) >= 900
        assert all(row.completion and row.completion.text.startswith(f"{q[9:]} ") for q, row in kept.items())
        journal.add(map(ask, range(1000)), TEACHER)
        assert journal.counts().total == 1000
        journal.put_many([(ask(i), said("again")) for i in range(1000)], TEACHER)
        assert journal.counts().answered == {"complete": 1000}
    recount(path)
    with Journal(path) as journal:
        assert journal.note is None
    assert (tmp_path / "a.sqlite.damaged").exists()


def test_a_torn_first_page_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with Journal(path) as journal:
        journal.put(ask(0), TEACHER, said())
    with path.open("r+b") as file:
        file.seek(100)
        file.write(os.urandom(3000))
    for read_only in (False, True):
        with pytest.raises(MachineError, match=r"the journal .* is damaged .*move it away"):
            Journal(path, read_only=read_only).counts()


def test_a_usage_that_lies_counts_as_what_was_reserved(journal: Journal) -> None:
    async def way() -> None:
        journal.add(map(ask, range(3)), TEACHER)
        for i, usage in enumerate((Usage(10**9, 3), Usage(-5, 1), Usage(30, 5))):
            attempt = await journal.sent(ask(i).key(TEACHER), TEACHER, b"{}", 100, 40)
            await journal.answered(attempt, b"{}", said(usage=usage), 100)

    asyncio.run(way())
    assert journal.spent() == Spent(300, 40 + 40 + 35)


def test_a_full_disk_refuses_new_requests_and_keeps_the_answers_in_flight(tmp_path: Path) -> None:
    """The limit is SQLite's own; the answers fit into what was held back."""
    with Journal(tmp_path / "a.sqlite") as journal:
        journal.add(map(ask, range(300)), TEACHER)

        async def way() -> None:
            attempts = [await journal.sent(ask(i).key(TEACHER), TEACHER, b"{}", 100) for i in range(64)]
            [(pages,)] = journal._db.execute("PRAGMA page_count").fetchall()
            journal._db.execute(f"PRAGMA max_page_count = {pages}")
            unlink = Path.unlink

            def make_room(path: Path, missing_ok: bool = False) -> None:
                unlink(path, missing_ok)
                journal._db.execute("PRAGMA max_page_count = 1000000")

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Path, "unlink", make_room)
                for i, attempt in enumerate(attempts):
                    await journal.answered(attempt, os.urandom(3000), said(str(i)), 50)
            with pytest.raises(MachineError, match=r"disk of the journal .* is full. Free some space and run again"):
                await journal.sent(ask(70).key(TEACHER), TEACHER, b"{}", 100)

        asyncio.run(way())
        assert journal.counts().answered == {"complete": 64}
        assert journal.spent() == Spent(64 * 50, 64 * 15)
    recount(tmp_path / "a.sqlite")


FULL_DISK = """
import asyncio, os, sys
from contextlib import suppress
from pathlib import Path
from limbeck.errors import MachineError
from limbeck.generation.journal.journal import Journal
from tests.unit.generation.test_journal import TEACHER, ask, said

async def main(journal):
    paid = kept = 0
    async def lane(numbers):
        nonlocal paid, kept
        for i in numbers:
            attempt = await journal.sent(ask(i).key(TEACHER), TEACHER, b"{}", 1)
            paid += 1
            await journal.answered(attempt, os.urandom(20_000), said(str(i)), 1)
            kept += 1
    numbers = iter(range(5000))
    ends = await asyncio.gather(*(lane(numbers) for _ in range(64)), return_exceptions=True)
    assert all(isinstance(end, MachineError) for end in ends), ends
    print(paid, kept)

with Journal(Path(sys.argv[1])) as journal:
    journal.add((ask(i) for i in range(5000)), TEACHER)
    asyncio.run(main(journal))
with suppress(OSError), open(sys.argv[1] + ".other", "wb", buffering=0) as other:
    while True:
        other.write(bytes(4096))
try:
    Journal(Path(sys.argv[1]))
except MachineError as error:
    print(error)
"""


def test_a_disk_that_really_fills_loses_nothing(tmp_path: Path) -> None:
    mount = f'mount -t tmpfs -o size=24m tmpfs {tmp_path} && exec {sys.executable} -c "$0" {tmp_path}/a.sqlite'
    child = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", mount, FULL_DISK], capture_output=True, text=True, check=False
    )
    if "unshare" in child.stderr or "mount:" in child.stderr:
        pytest.skip(f"no mounts here: {child.stderr}")
    assert child.returncode == 0, child.stderr
    counted, refused = child.stdout.splitlines()
    paid, kept = counted.split()
    assert int(paid) == int(kept) > 100
    assert "is full" in refused or "has no room for 8 MB" in refused


def test_a_network_file_system_gets_no_write_ahead_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.read_text
    table = "1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:1 / {}\\040x rw - nfs4 server:/ rw\n3 1 0:1 / {} rw - xfs /dev/b rw"
    (tmp_path / "net x").mkdir()
    (tmp_path / "near").mkdir()

    def mounts(path: Path, *args: object, **more: object) -> str:
        if str(path) == "/proc/self/mountinfo":
            return table.format(tmp_path / "net", tmp_path / "near")
        return real(path, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", mounts)
    modes: dict[str, str] = {}
    for name in ("net x", "near"):
        with Journal(tmp_path / name / "a.sqlite") as journal:
            journal.put(ask(0), TEACHER, said())
            modes[name] = journal._db.execute("PRAGMA journal_mode").fetchone()[0]
            assert journal._db.execute("PRAGMA synchronous").fetchone()[0] == 2
            assert journal.get(ask(0).key(TEACHER)) == said()
    assert modes == {"net x": "delete", "near": "wal"}


def test_reading_all_rows_while_others_are_written(journal: Journal) -> None:
    journal.put_many([(ask(i), said(str(i))) for i in range(300)], TEACHER)
    stop = threading.Event()

    def write() -> None:
        n = 300
        while not stop.is_set():
            journal.put(ask(n), TEACHER, said())
            n += 1

    thread = threading.Thread(target=write)
    thread.start()
    seen = [row.completion.text for row in journal.rows(RowState.ANSWERED) if row.completion]
    stop.set()
    thread.join()
    assert seen[:300] == [str(i) for i in range(300)]
