"""Steps on the tables of a journal, inside a transaction of its writer."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections import Counter
from dataclasses import dataclass

from limbeck.generation.journal.rows import RowState, Teacher
from limbeck.generation.journal.storage.codec import pack, unpack
from limbeck.generation.request import Request, canonical

UNREADABLE = "unreadable"
"""Kind of failure of a row whose answer is damaged on disk."""

SHARED = "first prompt"
"""The fact that holds the first prompt: what later ones share with it takes no room."""


@dataclass(frozen=True)
class Standing:
    """A row of ``requests``, as steps need it.

    Attributes:
        unknown: attempts that may have been served without an answer.
        resent: how many of those were followed by another attempt.
        most_unknown: the row fails for good at so many.
    """

    id: int
    prompt: int
    state: RowState
    outcome: str | None
    failure: str | None
    answer: int | None
    unknown: int
    resent: int
    most_unknown: int

    @property
    def counter(self) -> str:
        """The name of the counter that the row is in."""
        return _counter(self.state, self.outcome, self.failure)


def _counter(state: RowState, outcome: str | None, failure: str | None) -> str:
    if state is RowState.ANSWERED:
        return f"answered/{outcome}"
    return f"failed/{failure}" if state is RowState.FAILED else state.value


def find(db: sqlite3.Connection, key: bytes) -> int | None:
    found = db.execute("SELECT id FROM requests WHERE key = ?", (key,)).fetchone()
    return None if found is None else int(found[0])


def standing(db: sqlite3.Connection, which: str | int) -> Standing:
    """A row by its key or its number.

    Raises:
        KeyError: there is none.
    """
    column, value = ("key", bytes.fromhex(which)) if isinstance(which, str) else ("id", which)
    found = db.execute(
        "SELECT id, prompt, state, outcome, failure, answer, unknown, resent, most_unknown "
        f"FROM requests WHERE {column} = ?",
        (value,),
    ).fetchone()
    if found is None:
        raise KeyError(which)
    return Standing(found[0], found[1], RowState(found[2]), *found[3:])


def move(
    db: sqlite3.Connection,
    changes: Counter[str],
    row: Standing,
    state: RowState,
    *,
    outcome: str | None = None,
    failure: tuple[str, str] | None = None,
) -> None:
    """Change the state of a row. The last failure of a row stays until it is answered or sent again."""
    kind, message = failure or (None, None)
    db.execute(
        "UPDATE requests SET state = ?, outcome = ?, failure = ?, message = ? WHERE id = ?",
        (state.value, outcome, kind, message, row.id),
    )
    changes[row.counter] -= 1
    changes[_counter(state, outcome, kind)] += 1


def hold_teacher(db: sqlite3.Connection, teacher: Teacher) -> int:
    identity = canonical(dict(teacher))
    found = db.execute("SELECT id FROM teachers WHERE identity = ?", (identity,)).fetchone()
    if found is None:
        found = db.execute("INSERT INTO teachers (identity) VALUES (?) RETURNING id", (identity,)).fetchone()
    return int(found[0])


def hold_prompt(db: sqlite3.Connection, changes: Counter[str], key: bytes, request: Request, teacher: int) -> int:
    """A new row to do. All samples of a prompt share the prompt's text."""
    plain = canonical({**request.plain(), "sample": 0})
    name = hashlib.sha256(plain).digest()[:16]
    found = db.execute("SELECT id FROM prompts WHERE key = ?", (name,)).fetchone()
    if found is None:
        shared = _shared(db)
        if shared is None:
            db.execute("INSERT INTO facts VALUES (?, ?)", (SHARED, plain))
        found = db.execute(
            "INSERT INTO prompts (key, request) VALUES (?, ?) RETURNING id", (name, pack(plain, shared or plain))
        ).fetchone()
    row = db.execute(
        "INSERT INTO requests (key, prompt, sample, teacher, state) VALUES (?, ?, ?, ?, 'todo') RETURNING id",
        (key, found[0], request.sample, teacher),
    ).fetchone()
    changes["todo"] += 1
    return int(row[0])


def _shared(db: sqlite3.Connection) -> bytes | None:
    found = db.execute("SELECT value FROM facts WHERE name = ?", (SHARED,)).fetchone()
    return None if found is None else bytes(found[0])


def prompt_bytes(db: sqlite3.Connection, prompt: int) -> bytes:
    packed = db.execute("SELECT request FROM prompts WHERE id = ?", (prompt,)).fetchone()[0]
    return unpack(packed, _shared(db) or b"")


def request_of(db: sqlite3.Connection, prompt: int, sample: int) -> Request:
    return Request.of({**json.loads(prompt_bytes(db, prompt)), "sample": sample})


def teacher_of(db: sqlite3.Connection, number: int) -> Teacher:
    found: dict[str, str] = json.loads(
        db.execute("SELECT identity FROM teachers WHERE id = ?", (number,)).fetchone()[0]
    )
    return found


def near_answer(sample: bytes | None, attempt: int) -> bytes:
    """What answers of a teacher are like: the first one. It stands alone itself."""
    if sample is None or int.from_bytes(sample[:8], "big") == attempt:
        return b""
    return sample[8:]


def end_attempt(
    db: sqlite3.Connection,
    changes: Counter[str],
    attempt: int,
    state: str,
    *,
    cost: int = 0,
    tokens: int | None = None,
    failure: tuple[str, str] | None = None,
) -> tuple[int, int]:
    """Settle what was reserved for an attempt. Of one whose outcome is unknown it stays reserved.

    Args:
        tokens: None, or more than was reserved: not known; what was reserved counts.

    Returns:
        The numbers of its row and of its teacher.

    Raises:
        KeyError: there is no such attempt in flight.
    """
    found = db.execute(
        "SELECT request, teacher, reserved, reserved_tokens, state FROM attempts WHERE id = ?", (attempt,)
    ).fetchone()
    if found is None or found[4] != "sent":
        raise KeyError(f"attempt {attempt} is not in flight")
    request, teacher, reserved, reserved_tokens, _ = found
    kind, message = failure or (None, None)
    if state == "answered":
        if tokens is None or not 0 < tokens <= (reserved_tokens or tokens):  # unknown, or a lie
            tokens = reserved_tokens
        changes["nano_usd"] += cost
        changes["tokens"] += tokens
    else:
        tokens = 0
    if state == "unknown":
        db.execute("UPDATE requests SET unknown = unknown + 1 WHERE id = ?", (request,))
    else:
        changes["reserved_nano_usd"] -= reserved
        changes["reserved_tokens"] -= reserved_tokens
    db.execute(
        "UPDATE attempts SET state = ?, cost = ?, tokens = ?, ended = ?, failure = ?, message = ? WHERE id = ?",
        (state, cost, tokens, time.time(), kind, message, attempt),
    )
    return int(request), int(teacher)
