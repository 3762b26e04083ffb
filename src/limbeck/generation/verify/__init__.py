"""Which answers are right: verdicts on candidates, by the verifier that the recipe names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from limbeck.generation.candidate import Candidate, Verdict
from limbeck.generation.request import Outcome
from limbeck.generation.verify.maths import maths_check
from limbeck.generation.verify.strings import exact_check, regex_check
from limbeck.generation.verify.structured import json_check
from limbeck.generation.verify.workers import Job, check_in_workers, cores
from limbeck.recipe.verify import Exact, Json, Maths, Regex, Verify

Progress = Callable[[int, Verdict], None]
"""Told how many are verified, and the last verdict."""


def verify(
    candidates: Iterable[Candidate], section: Verify, *, progress: Progress | None = None
) -> Iterator[Candidate]:
    """Candidates with verdicts, in the order they come in, as a stream.

    An answer that is not complete (cut at its length, filtered, refused, a tool call) is undecided.

    Args:
        section: the verifier.
        progress: told after every candidate.
    """
    for done, (candidate, verdict) in enumerate(_verdicts(candidates, section), 1):
        if candidate.completion.outcome is not Outcome.COMPLETE:
            verdict = Verdict.UNDECIDED
        yield replace(candidate, verdict=verdict)
        if progress is not None:
            progress(done, verdict)


def _verdicts(candidates: Iterable[Candidate], section: Verify) -> Iterator[tuple[Candidate, Verdict]]:
    if isinstance(section, Exact):
        return _here(candidates, exact_check(section))
    if isinstance(section, Json) and section.schema_ is None:
        return _here(candidates, json_check(section))
    return check_in_workers(candidates, _job(section), cores())


def _job(section: Verify) -> Job:
    if isinstance(section, Json):
        return Job(json_check, section, section.seconds)
    if isinstance(section, Regex):
        return Job(regex_check, section, section.seconds)
    if isinstance(section, Maths):
        return Job(maths_check, section, section.seconds)
    raise TypeError(f"no verifier {type(section).__name__}")


def _here(
    candidates: Iterable[Candidate], check: Callable[[Candidate], Verdict]
) -> Iterator[tuple[Candidate, Verdict]]:
    for candidate in candidates:
        yield candidate, check(candidate)
