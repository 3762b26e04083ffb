"""Filters that look at one answer: how it ended, its form, its length."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from limbeck.generation.candidate import Candidate
from limbeck.generation.request import Outcome
from limbeck.generation.select.words import pieces, words
from limbeck.recipe.filters import Filters, Length

Why = Callable[[Candidate], str | None]
"""Why an answer is dropped; None: it is kept."""

REPEATED_PIECES = 8
SHORTEST_LOOP = 40
"""Words and marks. A shorter answer cannot be called repetitive."""

_TAG = re.compile(
    r"<(/?)(?:think|thinking|thought|reasoning)>|\[(/?)THINK\]|<\|(begin|end)_of_thought\|>|◁(/?)think▷", re.IGNORECASE
)

_APOSTROPHE = "['’]"
_REFUSALS = re.compile(
    "|".join(
        (
            rf"(?:i{_APOSTROPHE}m|i am) (?:very |really |truly )?sorry[,;.]? (?:but )?(?:as an ai|i "
            rf"(?:can{_APOSTROPHE}t|cannot|can not|won{_APOSTROPHE}t|am (?:not able|unable)))",
            rf"(?:i{_APOSTROPHE}m sorry, (?:but )?|sorry, (?:but )?|unfortunately, |i apologi[sz]e, (?:but )?)?"
            rf"i (?:can{_APOSTROPHE}t|cannot|can not|won{_APOSTROPHE}t|will not|am unable to|am not able to|"
            rf"must decline to) (?:be able to )?(?:help|assist|comply|fulfil?l|provide|create|generate|engage|support|"
            r"participate|discuss|answer|do that|continue with|produce|share|offer|write)\b",
            rf"i{_APOSTROPHE}m (?:unable|not able) to (?:help|assist|comply|fulfil?l|provide|create|generate|answer)",
            r"as an ai(?: language)? (?:model|assistant)?,? ?i (?:can|don|do not|am|must|will)",
            r"(?:es )?tut mir leid,? (?:aber )?(?:ich kann|dabei kann ich|das kann ich) (?:\w+ ){0,4}nicht",
            r"ich kann (?:ihnen |dir )?(?:dabei |bei dieser anfrage )(?:leider )?nicht helfen",
            r"(?:je suis )?désolée?,? (?:mais )?je ne (?:peux|suis) pas",
            r"lo siento,? (?:pero )?no puedo",
            r"mi dispiace,? (?:ma )?non posso",
            r"(?:sinto muito|desculpe|lamento),? (?:mas )?não posso",
            r"(?:很抱歉|对不起|抱歉)[,，]?我(?:不能|无法)",
            r"申し訳(?:ありません|ございません)が",
        )
    ),
    re.IGNORECASE,
)
_OPENING = 160
"""Characters. A refusal stands at the beginning of an answer."""


def rules(section: Filters) -> Iterator[tuple[str, Why]]:
    """Filters by name, in the order in which they are asked."""
    yield "outcome", lambda candidate: outcome(candidate, section.outcomes)
    yield "empty", empty
    if section.think_tags:
        yield "think_tags", think_tags
    if section.require_reasoning:
        yield "require_reasoning", lambda c: None if (c.completion.reasoning or "").strip() else "no reasoning"
    if section.refusals and "refused" not in section.outcomes:
        yield "refusals", refusal
    if section.length != Length():
        yield "length", lambda candidate: length(candidate, section.length)
    if section.repetition is not None:
        most = section.repetition
        yield "repetition", lambda candidate: repetition(candidate, most)


def outcome(candidate: Candidate, learned: tuple[str, ...]) -> str | None:
    """An answer that did not end by itself."""
    ended = candidate.completion.outcome
    return None if ended is Outcome.COMPLETE or ended.value in learned else f"outcome {ended.value}"


def empty(candidate: Candidate) -> str | None:
    """An answer that says nothing and calls no tool."""
    said = candidate.completion
    return None if said.text.strip() or said.tool_calls else "no text"


def think_tags(candidate: Candidate) -> str | None:
    """Think tags other than one block before the answer, and reasoning that no answer follows."""
    said = candidate.completion
    tags = list(_TAG.finditer(said.text))
    if said.reasoning and not said.text.strip() and not said.tool_calls:
        return "reasoning without an answer"
    if said.reasoning and _TAG.search(said.reasoning):
        return "a think tag inside the reasoning"
    if not tags:
        return None
    if said.reasoning:
        return "a think tag in the answer"
    closing = [_closes(tag) for tag in tags]
    if closing != [False, True]:
        return "an unclosed think tag" if closing == [False] else "stray think tags"
    if said.text[: tags[0].start()].strip():
        return "a think tag inside the answer"
    if not said.text[tags[1].end() :].strip():
        return "reasoning without an answer"
    return None


def _closes(tag: re.Match[str]) -> bool:
    return "/" in tag[0][:2] or tag[0].startswith("◁/") or (tag[3] or "").lower() == "end"


def refusal(candidate: Candidate) -> str | None:
    """An answer that begins with a refusal."""
    found = _REFUSALS.search(candidate.completion.text.lstrip()[:_OPENING])
    return f'"{found[0]}"' if found else None


def length(candidate: Candidate, limits: Length) -> str | None:
    """An answer outside the limits."""
    said = candidate.completion
    measured = [(len(said.text), "characters", limits.min_characters, limits.max_characters)]
    if limits.min_words is not None or limits.max_words is not None:
        measured.append((len(words(said.text)), "words", limits.min_words, limits.max_words))
    if limits.max_reasoning_words is not None:
        measured.append((len(words(said.reasoning or "")), "words of reasoning", None, limits.max_reasoning_words))
    for count, unit, least, most in measured:
        if (least is not None and count < least) or (most is not None and count > most):
            return f"{count:,} {unit}"
    return None


def repetition(candidate: Candidate, most: float) -> str | None:
    """An answer, or its reasoning, that says the same again and again."""
    for name, text in (("answer", candidate.completion.text), ("reasoning", candidate.completion.reasoning or "")):
        if (share := repeated_share(text)) > most:
            return f"{100 * share:.0f}% of the {name} is repeated"
    return None


def repeated_share(text: str) -> float:
    """Share of words and marks that stand in a run of eight that occurred before."""
    found = pieces(text)
    if len(found) < SHORTEST_LOOP:
        return 0.0
    seen: set[tuple[str, ...]] = set()
    covered, end = 0, 0  # `end`: first piece that is not counted yet
    for start in range(len(found) - REPEATED_PIECES + 1):
        run = tuple(found[start : start + REPEATED_PIECES])
        if run in seen:
            covered += start + REPEATED_PIECES - max(end, start)
            end = start + REPEATED_PIECES
        else:
            seen.add(run)
    return covered / len(found)
