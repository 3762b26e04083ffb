"""Which answers are right: verdicts on candidates, by the verifier that the recipe names."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec

from limbeck.errors import RecipeError
from limbeck.generation.candidate import Candidate, Verdict
from limbeck.generation.request import Outcome
from limbeck.generation.sandbox.programs import available
from limbeck.generation.verify.judge import Ask, judge_all
from limbeck.generation.verify.maths import maths_check
from limbeck.generation.verify.plugins import find_plugin, plugin_check
from limbeck.generation.verify.programs import code_check
from limbeck.generation.verify.strings import exact_check, regex_check
from limbeck.generation.verify.structured import json_check, schema_validator
from limbeck.generation.verify.workers import Job, Verdicts, check_in_workers, cores, in_order
from limbeck.recipe.verify import Code, Exact, Json, Judge, Maths, Plugin, Regex, Verify

Progress = Callable[[int, Verdict], None]
"""Told how many are verified, and the last verdict."""


def verify(
    candidates: Iterable[Candidate],
    section: Verify,
    *,
    progress: Progress | None = None,
    ask: Ask | None = None,
    jobs: int | None = None,
) -> Iterator[Candidate]:
    """Candidates with verdicts, in the order they come in, as a stream.

    An answer that is not complete (cut at its length, filtered, refused, a tool call) is undecided. What may take for
    ever runs in processes that are killed, and programs run in the sandbox.

    Args:
        section: the verifier.
        progress: told after every candidate.
        ask: has the requests of a judge answered.
        jobs: processes; default: one for each core.

    Raises:
        RecipeError: a package is missing, or a setting cannot be used.
        SandboxError: the system does not let programs be locked in.
    """
    with closing(_verdicts(candidates, section, ask, jobs or cores())) as found:
        for done, (candidate, verdict) in enumerate(found, 1):
            if candidate.completion.outcome is not Outcome.COMPLETE:
                verdict = Verdict.UNDECIDED
            yield replace(candidate, verdict=verdict)
            if progress is not None:
                progress(done, verdict)


def check_verifier(section: Verify) -> str:
    """Whether a verifier can work here; a line about it, which may be empty.

    Raises:
        RecipeError: a package is missing, a setting cannot be used, or programs cannot be locked in.
    """
    if isinstance(section, Maths) and find_spec("math_verify") is None:
        raise RecipeError("needs the package math-verify", key=".kind", fix="Run `pip install 'limbeck[api]'`")
    if isinstance(section, Json) and section.schema_ is not None:
        schema_validator(section.schema_)
    if isinstance(section, Plugin):
        find_plugin(section.name)
    if isinstance(section, Code):
        return _check_sandbox(section)
    return ""


def _check_sandbox(section: Code) -> str:
    if section.sandbox == "weak":
        return "programs run in a weak sandbox: without namespaces"
    if not (kind := available()):
        raise RecipeError(
            "this system does not let programs be locked in",
            key=".sandbox",
            fix="Allow user namespaces, or write `sandbox: weak`",
        )
    return f"programs run in a sandbox of {kind}"


def _verdicts(candidates: Iterable[Candidate], section: Verify, ask: Ask | None, jobs: int) -> Verdicts:
    if isinstance(section, Exact):
        return _here(candidates, exact_check(section))
    if isinstance(section, Json) and section.schema_ is None:
        return _here(candidates, json_check(section))
    if isinstance(section, Judge):
        if ask is None:
            raise ValueError("a judge is asked through `ask`")
        return judge_all(candidates, section, ask)
    if isinstance(section, Code):
        cancelled = threading.Event()
        return in_order(candidates, [code_check(section, cancelled)] * jobs, cancelled.set)
    return check_in_workers(candidates, _job(section), jobs)


def _job(section: Maths | Regex | Json | Plugin) -> Job:
    if isinstance(section, Maths):
        return Job(maths_check, section, section.seconds)
    if isinstance(section, Regex):
        return Job(regex_check, section, section.seconds)
    if isinstance(section, Json):
        return Job(json_check, section, section.seconds)
    return Job(plugin_check, section, section.seconds, whole_environment=True)


def _here(candidates: Iterable[Candidate], check: Callable[[Candidate], Verdict]) -> Verdicts:
    for candidate in candidates:
        yield candidate, check(candidate)
