"""What was asked of a teacher, on disk, and its answers as candidates."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from limbeck.errors import InputError
from limbeck.generation.candidate import Candidate
from limbeck.generation.journal.journal import Journal
from limbeck.generation.prompts import Prompt
from limbeck.generation.request import Request

Asked = tuple[Prompt, Sequence[Request]]
"""A prompt, and the requests for its samples."""

FILE = "requests.jsonl"


def write_asked(folder: Path, asked: Iterable[Asked], teacher: Mapping[str, str]) -> None:
    """Write what was asked, a line a prompt; its answers are in the journal.

    Args:
        teacher: the first that was asked.
    """
    with (folder / FILE).open("w", encoding="utf-8") as out:
        for prompt, requests in asked:
            keys = [request.key(teacher) for request in requests]
            row = {"prompt": prompt.plain(), "group": requests[0].prompt_key(), "keys": keys}
            out.write(json.dumps(row) + "\n")


def read_candidates(folder: Path, journal: Path) -> list[Candidate]:
    """The answers to what :func:`write_asked` wrote, in its order; what has no answer is left out.

    Raises:
        InputError: the journal is gone.
    """
    if not journal.exists():
        raise InputError(f"there is no journal {journal}", fix=f"Bring it back, or delete {folder} to ask again")
    found: list[Candidate] = []
    with Journal(journal, read_only=True) as opened, (folder / FILE).open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            found += _candidates(Prompt.of(row["prompt"]), row["group"], row["keys"], opened)
    return found


def candidates_of(asked: Iterable[Asked], teacher: Mapping[str, str], journal: Journal) -> Iterator[Candidate]:
    """The answers that a journal holds to what is asked."""
    for prompt, requests in asked:
        keys = [request.key(teacher) for request in requests]
        yield from _candidates(prompt, requests[0].prompt_key(), keys, journal)


def _candidates(prompt: Prompt, group: str, keys: Sequence[str], journal: Journal) -> Iterator[Candidate]:
    for sample, key in enumerate(keys):
        completion = journal.get(key)
        if completion is None:
            continue
        yield Candidate(
            prompt=group,
            messages=prompt.messages,
            text=prompt.text,
            tools=prompt.tools,
            reference=prompt.reference,
            sample=sample,
            completion=completion,
            teacher=_name_of(journal.who_wrote(key)),
            key=key,
        )


def _name_of(teacher: Mapping[str, str] | None) -> str:
    names = ("model", "local", "weights")
    return next((teacher[name] for name in names if name in teacher), "") if teacher else ""
