"""``limbeck generate``: what teachers wrote for a run, as the journals and the stages of the run tell it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from limbeck.errors import InputError, RunFolderError, counted
from limbeck.files import whole_folder
from limbeck.generation.asked import FILE
from limbeck.generation.candidate import Candidate, Verdict
from limbeck.generation.journal.journal import Journal
from limbeck.generation.journal.rows import Counts, Row, RowState, Spent
from limbeck.generation.journal.storage.database import is_written
from limbeck.generation.prompts import Prompt
from limbeck.generation.select.data_set.card import UNSOLVED, usd
from limbeck.generation.select.data_set.rows import continuation, conversation, json_lines
from limbeck.report.markup import one_line
from limbeck.workflow.lock import is_run
from limbeck.workflow.markers import Markers

SAMPLE, SELECT, TRAIN = "sample-", "select-", "train-"
"""Beginnings of the names of stages that ask a teacher, that choose among its answers, and that train an arm."""


LOOKED_UP = 50_000
"""Requests of a run that are looked up one by one: status answers at once, also of a million."""


@dataclass(frozen=True)
class JournalStatus:
    """A journal. It may serve other runs with the same teacher, too.

    Attributes:
        wrote: answers by teacher.
        failure: kind and message of the first request that failed.
        asked, got: requests of this run, and those of them that are answered; None: the run has not listed them yet.
        is_written: a process writes it, or a provider's batch is under way; else what is sent has no one who waits.
    """

    path: str
    counts: Counts
    spent: Spent
    wrote: dict[str, int]
    failure: str | None = None
    asked: int | None = None
    got: int | None = None
    is_written: bool = True


@dataclass(frozen=True)
class TextStatus:
    """What of the answers is learned, as the stage left it.

    Attributes:
        name: of the stage.
        data_set: folder of the data set.
        answers: how many there are.
        outcomes, verdicts, taken: answers by how they ended, by verdict, and by the filter that took them.
        unsolved: prompts of which every answer is wrong.
        unsolved_file: where they are; None: there are none.
        learned: answers that are kept.
    """

    name: str
    data_set: str
    answers: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    verdicts: dict[str, int] = field(default_factory=dict)
    taken: dict[str, int] = field(default_factory=dict)
    unsolved: int = 0
    unsolved_file: str | None = None
    learned: int = 0

    @property
    def pass_rate(self) -> float | None:
        """Share of correct answers among the decided."""
        correct, wrong = self.verdicts.get("correct", 0), self.verdicts.get("wrong", 0)
        return correct / (correct + wrong) if correct + wrong else None


@dataclass(frozen=True)
class GenerationStatus:
    journals: list[JournalStatus]
    texts: list[TextStatus]


def status_of(run: Path) -> GenerationStatus:
    """What teachers wrote for a run, or what a journal holds. Nothing is written.

    Raises:
        RunFolderError: there is no such run, or it asked no teacher yet.
    """
    return GenerationStatus([_journal_status(path, run) for path in journals_of(run)], texts_of(run))


def _journal_status(path: Path, run: Path) -> JournalStatus:
    with Journal(path, read_only=True) as journal:
        first = next(journal.rows(RowState.FAILED), None)
        failure = None if first is None else one_line(f"{first.failure}: {first.message}")
        wrote: dict[str, int] = {}
        for teacher, count in journal.wrote():
            name = teacher_name(teacher)
            wrote[name] = wrote.get(name, 0) + count
        listed = _listed_keys(run, path)
        asked: int | None = None
        got: int | None = None
        if 0 < len(listed) <= LOOKED_UP:
            asked, got = len(listed), sum(journal.state(key) is RowState.ANSWERED for key in listed)
        written = is_written(path) or journal.has_open_batch()
        return JournalStatus(str(path), journal.counts(), journal.spent(), wrote, failure, asked, got, written)


def _listed_keys(run: Path, journal: Path) -> set[str]:
    """Keys of the requests that stages of a run listed when they had asked, of one journal."""
    markers = Markers(run)
    keys: set[str] = set()
    for path in run.glob(f"text/{SAMPLE}*/{FILE}"):
        marker = markers.read(path.parent.name)
        named = (marker.last or {}).get("journal") if marker is not None else None
        if named is None or Path(named).resolve() == journal.resolve():
            with path.open(encoding="utf-8") as lines:
                keys |= {key for line in lines for key in json.loads(line)["keys"]}
    return keys


def teacher_name(identity: Mapping[str, str]) -> str:
    """What a teacher is called: its model, or a local model's name."""
    return next((identity[name] for name in ("model", "local", "weights") if identity.get(name)), "unknown")


def journals_of(run: Path) -> list[Path]:
    """The journals that a run reads and writes; a journal itself is the one.

    Raises:
        RunFolderError: there is no such run, or no journal of it is found.
    """
    if run.is_file():
        return [run]
    if not run.is_dir() or not is_run(run):
        raise RunFolderError(f"there is no run in {run}", fix="Name a run folder, for example runs/demo, or a journal")
    markers, found = Markers(run), {}
    for name in markers.names():
        marker = markers.read(name)
        if marker is None or not name.startswith(SAMPLE):
            continue
        named = (marker.last or {}).get("journal")
        teacher = str(marker.key.get("teacher", ""))[:8]
        places = [
            *([Path(named)] if named else []),
            run / "text" / f"{name}.sqlite",
            *(sorted((run.absolute().parent / "journals").glob(f"*-{teacher}.sqlite")) if teacher else []),
        ]
        if path := next((place for place in places if place.is_file()), None):
            found[path.resolve()] = path
    if not found:
        raise RunFolderError(
            f"{run} has no journal of a teacher's answers yet",
            fix="Start it with `limbeck run`, or name the journal's file",
        )
    return list(found.values())


def texts_of(run: Path) -> list[TextStatus]:
    """What a run chose of the answers, for every stage that did so."""
    if not run.is_dir():
        return []
    markers, found = Markers(run), []
    for name in markers.names():
        marker = markers.read(name)
        if name.startswith(SELECT) and marker is not None and marker.result is not None:
            names = TextStatus.__dataclass_fields__.keys() - {"name", "data_set", "unsolved_file"}
            facts = {each: marker.result[each] for each in names if each in marker.result}
            home = run / "text" / name / "dataset"
            unsolved = home / UNSOLVED
            facts["unsolved_file"] = str(unsolved) if unsolved.is_file() else None
            found.append(TextStatus(name, str(home), **facts))
    return found


def as_json(status: GenerationStatus) -> str:
    plain = asdict(status)
    for text, plainly in zip(status.texts, plain["texts"], strict=True):
        plainly["pass_rate"] = text.pass_rate
    return json.dumps(plain, indent=1)


def show_status(status: GenerationStatus, console: Console) -> None:
    """Journals, then texts."""
    for journal in status.journals:
        counts, spent = journal.counts, journal.spent
        console.print(Text(journal.path, "bold"), soft_wrap=True)
        table = _table()
        answered = sum(counts.answered.values())
        if journal.asked is not None:
            _row(table, "of this run", f"{journal.got:,} of {journal.asked:,} answered", "")
        _row(table, "journal", f"{answered:,} of {counts.total:,} requests", _listed(counts.answered))
        sent = ""
        if counts.sent and journal.is_written:
            sent = f"{counts.sent:,} in flight"
        elif counts.sent:
            sent = f"{counts.sent:,} unknown: sent, and the process ended; possibly paid"
        _row(table, "to do", f"{counts.todo + counts.sent:,}", sent)
        if counts.failed:
            kinds = f"{_listed(counts.failed)}; the first: {journal.failure}"
            _row(table, "failed", f"{sum(counts.failed.values()):,}", kinds)
        if counts.unknown:
            _row(table, "unknown", f"{counts.unknown:,}", "sent, and no answer came; they are sent again")
        if counts.possibly_paid_twice:
            _row(table, "possibly paid twice", f"{counts.possibly_paid_twice:,}", "")
        _row(table, "who wrote", _listed(journal.wrote) or "nobody yet", "")
        reserved = f"{usd(spent.reserved_nano_usd)} of it reserved" if spent.reserved_nano_usd else ""
        _row(table, "spent", f"{usd(spent.nano_usd)}, {spent.tokens:,} tokens", reserved)
        console.print(table)
    for text in status.texts:
        console.print(Text(text.name, "bold"))
        table = _table()
        _row(table, "learned", f"{text.learned:,} of {text.answers:,} answers", "")
        if text.pass_rate is not None:
            _row(table, "verified", f"{100 * text.pass_rate:.1f}% correct", _listed(text.verdicts))
            _row(table, "unsolved prompts", f"{text.unsolved:,}", "")
        if text.taken:
            _row(table, "filtered", f"{sum(text.taken.values()):,}", _listed(text.taken))
        console.print(table)
        for what, path in (("data set", text.data_set), ("unsolved", text.unsolved_file)):
            if path:
                # On a line of its own, whole: it is there to be copied.
                console.print(Text(f"{what}: {path}"), soft_wrap=True)


def _table() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(width=20)
    table.add_column()
    table.add_column(style="dim", overflow="fold")
    return table


def _row(table: Table, *cells: str) -> None:
    # Text, not markup: names and messages come from servers.
    table.add_row(*[Text(one_line(cell, 400)) for cell in cells])


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items(), key=lambda each: -each[1]))


def export(run: Path, out: Path, name: str | None) -> str:
    """Copy the data set that a run made to a new folder; returns a line for people.

    Raises:
        RunFolderError: there is no such run, or it chose nothing yet.
        InputError: the folder exists, or the run has several texts and none is named.
    """
    if not run.is_dir() or not is_run(run):
        raise RunFolderError(f"there is no run in {run}", fix="Name a run folder, for example runs/demo")
    found = [text for text in texts_of(run) if Path(text.data_set).is_dir()]
    if not found:
        raise RunFolderError(
            f"{run} has chosen no answers yet",
            fix="Let `limbeck run` go on; or take all answers as they are with `--answers`",
        )
    chosen = [text for text in found if name in (None, text.name)]
    if len(chosen) != 1:
        what = f"has no text {name}" if name else f"has {len(chosen)} texts"
        raise InputError(f"{run} {what}", key="--text", fix=f"Name one: {', '.join(text.name for text in found)}")
    _require_new(out)
    with whole_folder(out) as scratch:
        shutil.copytree(chosen[0].data_set, scratch, dirs_exist_ok=True)
    return f"{out}: {chosen[0].learned:,} answers"


def export_answers(run: Path, out: Path) -> str:
    """Write every answer in a run's journals, right or wrong, as JSON lines in a new folder; returns a line for people.

    Raises:
        RunFolderError: there is no such run, or no journal.
        InputError: the folder exists.
    """
    journals = journals_of(run)
    _require_new(out)
    count = 0
    with whole_folder(out) as scratch, (scratch / "answers.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        for line in json_lines(_answers(journals, _known(run))):
            file.write(line)
            count += 1
    return f"{out / 'answers.jsonl'}: {count:,} answers"


def _known(run: Path) -> dict[str, dict[str, Any]]:
    """By the key of an answer: its reference, and its verdict where the answer was kept."""
    found: dict[str, dict[str, Any]] = {}
    for path in run.glob(f"text/{SAMPLE}*/{FILE}"):
        with path.open(encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                found |= {key: {"reference": Prompt.of(row["prompt"]).reference} for key in row["keys"]}
    for path in run.glob(f"text/{SELECT}*/dataset/*.jsonl"):
        with path.open(encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                if row.get("key") and row.get("verdict"):
                    found.setdefault(row["key"], {})["verdict"] = Verdict(row["verdict"])
    return found


def _answers(journals: Sequence[Path], known: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for path in journals:
        with Journal(path, read_only=True) as journal:
            for row in journal.rows(RowState.ANSWERED):
                candidate = _candidate(row)
                if candidate is not None:
                    candidate = replace(candidate, **known.get(candidate.key, {}))
                    yield conversation(candidate) if candidate.text is None else continuation(candidate)


def _candidate(row: Row) -> Candidate | None:
    request = row.request
    if row.completion is None:
        return None
    return Candidate(
        prompt=request.prompt_key(),
        messages=request.messages,
        text=request.text,
        tools=request.tools,
        reference=None,
        sample=request.sample,
        completion=row.completion,
        teacher=teacher_name(row.written_by or row.teacher),
        key=row.key,
    )


def _require_new(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists", key="OUT", fix="Name a new folder")


def retry(run: Path, kinds: Sequence[str]) -> str:
    """Make requests that failed requests to do; returns a line for people.

    A run whose students have begun to train keeps the answers that they learn: the requests are asked by another run
    with the same teacher. Else the run itself asks them when it goes on.

    Raises:
        RunFolderError: there is no such run, or another process writes its journal.
        InputError: no request failed in one of those ways.
    """
    journals = journals_of(run)
    known: dict[str, int] = {}
    for path in journals:
        with Journal(path, read_only=True) as journal:
            for kind, count in journal.counts().failed.items():
                known[kind] = known.get(kind, 0) + count
    if unknown := sorted(set(kinds) - known.keys()):
        failed = f"Failed are: {_listed(known)}" if known else "No request failed"
        raise InputError(f"no request failed with {unknown[0]}", key="--kind", fix=failed)
    total = 0
    for path in journals if known else []:
        with Journal(path) as journal:
            total += journal.retry(*kinds)
    if not total:
        return "no request has failed"
    said = f"{counted(total, 'request')} {'is' if total == 1 else 'are'} to do again"
    if not run.is_dir():
        return f"{said}; `limbeck run` asks them"
    arms = [name for name in Markers(run).names() if name.startswith(TRAIN)]
    if arms:
        return (
            f"{said}. {counted(len(arms), 'arm')} of {run} learned from the answers that are there, and "
            f"{'stays as it is' if len(arms) == 1 else 'stay as they are'}. To learn from all of them, run the recipe "
            f"under another name: `limbeck run RECIPE run={run}-retried`; nothing else is bought"
        )
    for asked in sorted((run / "text").glob(f"{SAMPLE}*/{FILE}")):
        asked.unlink()  # what lists the requests is gone, so that the run asks again
    return f"{said}; `limbeck run` asks them"
