"""Filters over all answers, in turn; what each took is counted and shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from limbeck.generation.candidate import Candidate
from limbeck.generation.select.answers import rules
from limbeck.generation.select.contamination import REPORTED, EvaluationIndex
from limbeck.generation.select.duplicates import ExactDuplicates, NearDuplicates
from limbeck.generation.select.language import LanguageFilter
from limbeck.generation.select.words import asked
from limbeck.recipe.filters import Decontamination, Filters
from limbeck.report.markup import one_line

EXAMPLES = 3
EXAMPLE_CHARACTERS = 160


@dataclass(frozen=True)
class Taken:
    """What a filter took.

    Attributes:
        name: of the filter.
        count: answers.
        examples: the first few: the reason, and the beginning of the answer.
    """

    name: str
    count: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Filtered:
    """What filters kept and took.

    Attributes:
        kept: answers that passed, in their order.
        taken: every filter that was asked, in order, also where it took nothing. An answer is counted by the first.
        by: for every answer that was taken (its key), the name of the filter.
        overlap: answers that share a run of so many words with an evaluation text, by the size of the run, of those
            that all other filters for single answers passed; empty where nothing was compared.
    """

    kept: list[Candidate]
    taken: list[Taken]
    by: dict[str, str] = field(default_factory=dict)
    overlap: dict[int, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """For people: a line for every filter that took something, and the overlap."""
        said = [f"{taken.name}: {taken.count:,}" for taken in self.taken if taken.count]
        if self.overlap:
            counts = ", ".join(f"{count:,} by {size}-grams" for size, count in self.overlap.items())
            said.append(f"overlap with evaluation texts: {counts}")
        return said


def filter_candidates(
    candidates: Iterable[Candidate], section: Filters, evaluation_texts: Iterable[str] = ()
) -> Filtered:
    """Drop answers that are not to be learned, right or wrong.

    Single answers are judged first, then contamination, then duplicates, so that a dropped answer never hides a
    good one.

    Args:
        candidates: answers; of duplicates the first stays.
        section: which filters.
        evaluation_texts: questions and answers of held-out and evaluation sets.

    Raises:
        RecipeError: a filter needs a package that is not installed; the key is relative to the section.
    """
    passes = _Passes(list(candidates))
    for name, why in rules(section):
        passes.ask(name, why)
    if section.languages is not None:
        passes.ask("languages", LanguageFilter(section.languages, section.min_language_score))
    overlap: dict[int, int] = {}
    if section.decontaminate is not None:
        overlap = _decontaminate(passes, section.decontaminate, evaluation_texts)
    if section.exact_duplicates:
        passes.ask("exact_duplicates", ExactDuplicates())
    if section.near_duplicates is not None:
        passes.ask("near_duplicates", NearDuplicates(section.near_duplicates))
    return Filtered(passes.left, passes.taken, passes.by, overlap)


class _Passes:
    def __init__(self, candidates: list[Candidate]) -> None:
        self.left = candidates
        self.taken: list[Taken] = []
        self.by: dict[str, str] = {}

    def ask(self, name: str, why: Callable[[Candidate], str | None]) -> None:
        """Drop what ``why`` has a reason against."""
        kept: list[Candidate] = []
        examples: list[str] = []
        for candidate in self.left:
            reason = why(candidate)
            if reason is None:
                kept.append(candidate)
                continue
            self.by[candidate.key] = name
            if len(examples) < EXAMPLES:
                answer = one_line(candidate.completion.text, EXAMPLE_CHARACTERS)
                examples.append(f"{one_line(reason, EXAMPLE_CHARACTERS)}: {answer}" if answer else reason)
        self.taken.append(Taken(name, len(self.left) - len(kept), tuple(examples)))
        self.left = kept


def _decontaminate(passes: _Passes, section: Decontamination, texts: Iterable[str]) -> dict[int, int]:
    """Drop overlap with evaluation texts; returns how many answers overlap, by size."""
    index = EvaluationIndex(texts, {*REPORTED, section.ngram}, section.common)
    if not index:
        return {}
    overlap: dict[int, int] = {}
    reasons: dict[str, str] = {}
    for size in index.sizes:
        found = overlapping(index, passes.left, size)
        overlap[size] = len(found)
        if size == section.ngram:
            reasons = found
    passes.ask("decontaminate", lambda candidate: reasons.get(candidate.key))
    return overlap


def overlapping(index: EvaluationIndex, candidates: list[Candidate], size: int) -> dict[str, str]:
    """Answers (by key) that share a run of words with an evaluation text in prompt, answer or reasoning: the run."""
    prompts = {candidate.prompt: asked(candidate) for candidate in candidates}
    of_prompts = dict(zip(prompts, index.hits(list(prompts.values()), size, list(prompts)), strict=True))
    said = [f"{c.completion.reasoning or ''}\n{c.completion.text}" for c in candidates]
    of_answers = index.hits(said, size, [candidate.prompt for candidate in candidates])
    found: dict[str, str] = {}
    for candidate, run in zip(candidates, of_answers, strict=True):
        if shared := of_prompts[candidate.prompt] or run:
            found[candidate.key] = f'shares "{shared}"'
    return found
