"""Asking teachers that can only be called: their journals, the models behind them, and judges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import RecipeError, under
from limbeck.generation.api.probe import Capabilities, probe
from limbeck.generation.api.protocols import wire_format
from limbeck.generation.api.scoring.spending import spent_on_signals
from limbeck.generation.api.served import ServedSampler
from limbeck.generation.api.summary import Summary
from limbeck.generation.api.teacher import Probed
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


@dataclass(frozen=True)
class Asking:
    """What an endpoint will be asked, before there is a prompt.

    Attributes:
        place: of the endpoint in the recipe.
        endpoint: who is asked.
        settings: requests without a prompt, by the section of the recipe that sets them.
    """

    place: str
    endpoint: Endpoint
    settings: Mapping[str, Request]

    def check(self) -> None:
        """Refuse what the protocol has no field for.

        Raises:
            RecipeError: names the setting.
        """
        for place, request in self.settings.items():
            with settings_under(place), under(self.place):
                wire_format(self.endpoint.protocol).check(self.endpoint, request)

    def probe(self) -> Capabilities:
        """Ask the endpoint what it takes and reveals, and refuse settings that it does not take.

        Raises:
            RecipeError: it refuses a setting, the key or the model.
            TeacherGoneError: it does not answer.
            BudgetError: the account has no credit.
        """
        with under(self.place):
            found = probe(self.endpoint, list(self.settings.values()))
        for place, request in self.settings.items():
            with under(place):
                found.check(request)
        return found


def probed_of(facts: Mapping[str, Any]) -> list[Probed]:
    """What the stage ``teacher`` found of endpoints."""
    return [Probed(**each) for each in facts.get("probed", ())]


@contextmanager
def settings_under(place: str) -> Iterator[None]:
    """Complete the keys of errors about settings of the sampling; others are about the endpoint, and pass."""
    try:
        yield
    except RecipeError as error:
        if error.key is not None and error.key.rpartition(".")[2] in SETTINGS and ".extra." not in error.key:
            error.key = f"{place}.{error.key.rpartition('.')[2]}"
            error.args = (error.line(),)
        raise


SETTINGS = ("temperature", "top_p", "top_k", "seed", "stop", "max_new_tokens")
"""Keys of a section with settings of the sampling that requests carry."""


def ask_chain(
    served: ServedTeacher,
    requests: Sequence[Request],
    journal: Journal,
    progress: Callable[[int, str], None],
    place: str = "techniques",
    probed: Sequence[Probed] = (),
) -> Summary:
    """Have requests answered by a teacher that is called, or by what stands behind it, within its budget.

    Args:
        place: of the section with the settings of the sampling, for errors.
        probed: what was found of its endpoints.
    """
    chain = [each if isinstance(each, Endpoint) else local_fallback(each) for each in served.chain]
    sampler = ServedSampler(chain, journal, ledger_of(served.budget, journal), probed=probed)
    with settings_under(place):
        return sampler.write(requests, progress)


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
