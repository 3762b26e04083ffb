"""Which prompts a teacher is asked, before anything is bought."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from limbeck.generation.prompts import Prompt
from limbeck.generation.request import canonical
from limbeck.generation.select.contamination import REPORTED, EvaluationIndex
from limbeck.generation.select.words import asked
from limbeck.recipe import Generation
from limbeck.recipe.filters import Filters


@dataclass
class ToAsk:
    """Prompts that a teacher is asked, and how many others are not.

    Attributes:
        prompts: by the hash of their documents.
        heldout: prompts of ``data.prompts`` that are held out to measure on.
        overlap: prompts that share a run of words with a held-out document, by the size of the run.
        overlapping: those among them that are not asked.
        too_long: prompts that leave no room for an answer.
    """

    prompts: list[Prompt]
    heldout: int = 0
    overlap: dict[int, int] = field(default_factory=dict)
    overlapping: int = 0
    too_long: int = 0

    def lines(self) -> Iterator[str]:
        """For people: what is not asked, and why."""
        if self.too_long:
            yield f"{self.too_long:,} prompts leave no room for an answer in a row, and are not asked"
        if self.heldout:
            yield f"{self.heldout:,} prompts are held out to measure on, and are not asked"
        if self.overlapping:
            counts = ", ".join(f"{count:,} by {size}-grams" for size, count in self.overlap.items())
            yield f"{self.overlapping:,} prompts overlap with held-out documents ({counts}), and are not asked"


def prompts_to_ask(
    own: Sequence[Prompt],
    given: Iterable[Prompt],
    heldout: Sequence[Prompt],
    generation: Generation,
    fits: Callable[[Prompt], bool],
) -> ToAsk:
    """What a teacher is asked: nothing that is measured on, at most ``max_prompts``.

    Args:
        own: of the documents to train on.
        given: of ``data.prompts``; what the documents ask already is left out.
        heldout: of the held-out documents.
        generation: section of the recipe.
        fits: whether a prompt leaves room for an answer.
    """
    found = ToAsk([])
    measured = {_said(prompt) for prompt in heldout}
    known = {_said(prompt) for prompt in own}
    new: dict[bytes, Prompt] = {}
    for prompt in given:
        if (said := _said(prompt)) in measured:
            found.heldout += 1
        elif said not in known and (said not in new or new[said].reference is None):
            new[said] = prompt
    prompts = sorted([*own, *new.values()], key=lambda prompt: prompt.document)
    dropped = _overlapping(prompts, heldout, generation, found)
    for prompt, is_dropped in zip(prompts, dropped, strict=True):
        if generation.max_prompts is not None and len(found.prompts) == generation.max_prompts:
            break
        if is_dropped:
            found.overlapping += 1
        elif fits(prompt):
            found.prompts.append(prompt)
        else:
            found.too_long += 1
    return found


def evaluation_texts(heldout: Iterable[Prompt]) -> Iterator[str]:
    """What held-out documents ask and answer."""
    for prompt in heldout:
        yield (prompt.text or "") + (str(prompt.messages[-1]["content"]) if prompt.messages else "")
        yield prompt.reference or ""


def _overlapping(
    prompts: Sequence[Prompt], heldout: Sequence[Prompt], generation: Generation, found: ToAsk
) -> list[bool]:
    section = (generation.filters or Filters()).decontaminate
    if section is None:
        return [False] * len(prompts)
    index = EvaluationIndex(evaluation_texts(heldout), {*REPORTED, section.ngram}, section.common)
    texts = [asked(prompt) for prompt in prompts]
    dropped = [False] * len(prompts)
    for size in index.sizes if index else ():
        hits = [run is not None for run in index.hits(texts, size)]
        found.overlap[size] = sum(hits)
        if size == section.ngram:
            dropped = hits
    return dropped


def _said(prompt: Prompt) -> bytes:
    return canonical([prompt.messages, prompt.text, prompt.tools])
