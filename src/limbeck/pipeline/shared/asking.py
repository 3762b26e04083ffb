"""Asking teachers that can only be called: their journals, the models behind them, and judges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from limbeck.generation.api.served import ServedSampler
from limbeck.generation.api.summary import Summary
from limbeck.generation.journal.budget import Ledger
from limbeck.generation.journal.journal import Journal
from limbeck.generation.local import LocalTeacher
from limbeck.generation.request import Completion, Request
from limbeck.generation.verify.judge import Ask
from limbeck.models.causal_lm import CausalLM
from limbeck.models.tokenizer import load_tokenizer
from limbeck.pipeline.shared.base import located, pool
from limbeck.recipe import Endpoint, PackageModel, PathModel, ServedTeacher, Verify, fingerprint
from limbeck.recipe.verify import Judge
from limbeck.runtime.pool import ModelRef


def journal_of(endpoint: Endpoint, run: Path, folder: str | None) -> Path:
    """The journal of a teacher that is called; ``folder``: the recipe's, else beside the run folder."""
    home = Path(folder).expanduser() if folder else run.parent / "journals"
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in endpoint.model)[:60].strip(".-")
    return home / f"{plain}-{fingerprint(endpoint.identity)[:8]}.sqlite"


def ask_chain(
    served: ServedTeacher, requests: Sequence[Request], journal: Journal, progress: Callable[[int, str], None]
) -> Summary:
    """Have requests answered by a teacher that is called, or by what stands behind it, within its budget."""
    chain = [each if isinstance(each, Endpoint) else local_fallback(each) for each in served.chain]
    return ServedSampler(chain, journal, Ledger(served.budget, journal.spent())).write(requests, progress)


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
            ledger = Ledger(budget, journal.spent())
            ServedSampler([endpoint], journal, ledger).write(requests, lambda done, line: None)
            found = [(request, journal.get(request.key(endpoint.identity))) for request in requests]
        return [(request, completion) for request, completion in found if completion is not None]

    return ask
