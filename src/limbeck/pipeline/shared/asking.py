"""Asking teachers that can only be called: their journals, the models behind them, and judges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from limbeck.generation.api.scoring.spending import spent_on_signals
from limbeck.generation.api.served import ServedSampler
from limbeck.generation.api.summary import Summary
from limbeck.generation.journal.budget import Ledger
from limbeck.generation.journal.journal import Journal
from limbeck.generation.journal.rows import Spent
from limbeck.generation.local import LocalTeacher
from limbeck.generation.request import Completion, Request
from limbeck.generation.verify.judge import Ask
from limbeck.models.causal_lm import CausalLM
from limbeck.models.tokenizer import load_tokenizer
from limbeck.pipeline.shared.base import located, pool
from limbeck.recipe import Budget, Endpoint, PackageModel, PathModel, ServedTeacher, Verify, fingerprint
from limbeck.recipe.verify import Judge
from limbeck.runtime.pool import ModelRef


def journal_of(endpoint: Endpoint, run: Path, folder: str | None) -> Path:
    """The journal of a teacher that is called; ``folder``: the recipe's, else beside the run folder."""
    home = Path(folder).expanduser() if folder else run.parent / "journals"
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in endpoint.model)[:60].strip(".-")
    return home / f"{plain}-{fingerprint(endpoint.identity)[:8]}.sqlite"


def spending_of(journal: Path) -> Path:
    """Beside a teacher's journal, the file that says what its signals cost."""
    return journal.with_suffix(".signals.json")


def spent_on_text(path: Path) -> Spent:
    """What the answers in a journal cost; nothing where there is none."""
    if not path.exists():
        return Spent()
    with Journal(path, read_only=True) as journal:
        return journal.spent()


def ledger_of(budget: Budget | None, journal: Journal) -> Ledger:
    """A budget, less what a teacher's answers and signals cost so far."""
    text, signals = journal.spent(), spent_on_signals(spending_of(journal.path))
    return Ledger(budget, Spent(text.nano_usd + signals.nano_usd, text.tokens + signals.tokens))


def ask_chain(
    served: ServedTeacher, requests: Sequence[Request], journal: Journal, progress: Callable[[int, str], None]
) -> Summary:
    """Have requests answered by a teacher that is called, or by what stands behind it, within its budget."""
    chain = [each if isinstance(each, Endpoint) else local_fallback(each) for each in served.chain]
    return ServedSampler(chain, journal, ledger_of(served.budget, journal)).write(requests, progress)


def local_fallback(spec: PathModel | PackageModel) -> LocalTeacher:
    """A local model behind teachers that are called. It reads its own tokens: only its text is used."""
    found, _ = located(spec)

    @contextmanager
    def opened() -> Iterator[tuple[CausalLM, Any]]:
        tokenizer = load_tokenizer(found.path, revision=found.revision)
        with pool().lease(ModelRef.of(found), tokenizer=tokenizer) as lm:
            yield lm, tokenizer

    named = spec.package if isinstance(spec, PackageModel) else spec.path
    return LocalTeacher({"local": named, "dtype": spec.dtype}, opened)


def judge_of(section: Verify, served: ServedTeacher | None, run: Path) -> Ask | None:
    """Has the requests of a judge answered through the judge's own journal; None: the verifier is no judge."""
    if not isinstance(section, Judge):
        return None
    endpoint = section.teacher or (served.endpoint if served is not None else None)
    assert endpoint is not None  # `check` made sure
    journals = served.journal if served is not None else None
    budget = served.budget if served is not None and section.teacher is None else None
    path = journal_of(endpoint, run, journals)

    def ask(requests: Sequence[Request]) -> list[tuple[Request, Completion]]:
        path.parent.mkdir(parents=True, exist_ok=True)
        with Journal(path) as journal:
            ServedSampler([endpoint], journal, ledger_of(budget, journal)).write(requests, lambda done, line: None)
            found = [(request, journal.get(request.key(endpoint.identity))) for request in requests]
        return [(request, completion) for request, completion in found if completion is not None]

    return ask
