"""Which answers of a prompt are kept, and how hard prompts are for their teacher."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from limbeck.errors import RecipeError
from limbeck.generation.candidate import Candidate, Verdict
from limbeck.generation.request import canonical
from limbeck.generation.select.words import jaccard, shingles
from limbeck.recipe.filters import Keep, Policy

DIVERSE = 2
"""Answers of a prompt that ``diverse`` keeps by default."""
_SHINGLE = 2


@dataclass(frozen=True)
class PassRate:
    """How the answers of a prompt were verified. Undecided ones are neither right nor wrong."""

    correct: int = 0
    wrong: int = 0
    undecided: int = 0

    @property
    def value(self) -> float | None:
        """Share of correct answers among the decided; None: none is decided."""
        decided = self.correct + self.wrong
        return self.correct / decided if decided else None


@dataclass(frozen=True)
class Chosen:
    """What is learned.

    Attributes:
        kept: answers, in their order.
        unsolved: prompts (their hashes) of which every answer is wrong.
        pass_rates: for every prompt with verified answers.
        undecided: prompts without a correct answer of which some could not be decided.
        set_aside: prompts that are outside the limits on pass rates, or have no majority.
        repeated: equal answers to one prompt that were kept once.
        policy: the policy that was used.
        examples: of unsolved prompts, one answer each, for the card.
    """

    kept: list[Candidate]
    unsolved: list[str]
    pass_rates: dict[str, PassRate]
    undecided: list[str] = field(default_factory=list)
    set_aside: list[str] = field(default_factory=list)
    repeated: int = 0
    policy: Policy = "all"
    examples: list[Candidate] = field(default_factory=list)

    @property
    def verdicts(self) -> PassRate:
        """All verified answers together."""
        rates = self.pass_rates.values()
        return PassRate(sum(r.correct for r in rates), sum(r.wrong for r in rates), sum(r.undecided for r in rates))

    def difficulty(self, bins: int = 10) -> list[int]:
        """Prompts by their pass rate: from never solved to always, in equal steps."""
        counts = [0] * bins
        for rate in self.pass_rates.values():
            if rate.value is not None:
                counts[min(int(rate.value * bins), bins - 1)] += 1
        return counts


def pass_rates(candidates: Iterable[Candidate]) -> dict[str, PassRate]:
    """How often each prompt was solved, of all that are verified."""
    counts: dict[str, Counter[Verdict]] = {}
    for candidate in candidates:
        if candidate.verdict is not None:
            counts.setdefault(candidate.prompt, Counter())[candidate.verdict] += 1
    return {
        prompt: PassRate(n[Verdict.CORRECT], n[Verdict.WRONG], n[Verdict.UNDECIDED]) for prompt, n in counts.items()
    }


def choose(candidates: Sequence[Candidate], section: Keep, verified: Iterable[Candidate] | None = None) -> Chosen:
    """Choose answers by a policy, prompt by prompt.

    Args:
        candidates: answers that passed the filters.
        section: the policy.
        verified: all verified answers, of which pass rates are counted; default: ``candidates``. Filters that drop
            cut or repetitive answers would otherwise make prompts look easier than they are.

    Raises:
        RecipeError: the policy needs verdicts, and no answer has one; the key is relative to the section.
    """
    verified = list(candidates if verified is None else verified)
    rates = pass_rates(verified)
    policy = policy_of(section, bool(rates))
    by_prompt: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_prompt.setdefault(candidate.prompt, []).append(candidate)
    for answers in by_prompt.values():
        answers.sort(key=lambda candidate: candidate.sample)
    kept: list[Candidate] = []
    set_aside: list[str] = []
    repeated = 0
    for prompt, answers in by_prompt.items():
        rate = rates[prompt].value if prompt in rates else None
        if rate is not None and not section.min_pass_rate <= rate <= section.max_pass_rate:
            set_aside.append(prompt)
            continue
        if section.at_most is not None:
            answers = [candidate for candidate in answers if candidate.sample < section.at_most]
        eligible = _eligible(answers, policy)
        if not eligible and policy == "majority":
            set_aside.append(prompt)
        distinct = _distinct(eligible)
        repeated += len(eligible) - len(distinct)
        kept += _best(distinct, policy, section.accepted)
    if section.max_answers is not None and len(kept) > section.max_answers:
        drawn = sorted(random.Random(section.seed).sample(range(len(kept)), section.max_answers))
        kept = [kept[i] for i in drawn]
    unsolved = [prompt for prompt, rate in rates.items() if not rate.correct and not rate.undecided]
    undecided = [prompt for prompt, rate in rates.items() if not rate.correct and rate.undecided]
    return Chosen(kept, unsolved, rates, undecided, set_aside, repeated, policy, _one_each(verified, unsolved))


def policy_of(section: Keep, verified: bool) -> Policy:
    """The policy, its default resolved.

    Raises:
        RecipeError: it needs verdicts, and there are none.
    """
    policy: Policy = section.policy or ("all_correct" if verified else "all")
    if policy in ("all_correct", "shortest_correct", "diverse") and not verified:
        raise RecipeError(
            f"`{policy}` needs verified answers",
            key=".policy",
            fix="Write `verify`, or `keep: all` or `keep: majority`",
        )
    return policy


def more_samples(kept: int, sampled: int, section: Keep, samples: int) -> int:
    """How many more samples of a prompt to ask for: 0 once enough are kept or ``at_most`` were asked for.

    Args:
        kept: its answers that are kept so far.
        sampled: its samples that were asked for so far.
        section: with ``accepted`` and ``at_most``.
        samples: how many are asked for at first.
    """
    if sampled == 0:
        return samples if section.at_most is None else min(samples, section.at_most)
    if section.accepted is None or section.at_most is None or kept >= section.accepted:
        return 0
    # As many as are needed at the rate so far; twice as many in all where none was kept yet.
    needed = -(-(section.accepted - kept) * sampled // kept) if kept else sampled
    return max(0, min(needed, section.at_most - sampled))


def _eligible(answers: list[Candidate], policy: Policy) -> list[Candidate]:
    if policy == "all":
        return answers
    if policy != "majority":
        return [candidate for candidate in answers if candidate.verdict is Verdict.CORRECT]
    voters = [candidate for candidate in answers if candidate.verdict is not Verdict.WRONG]
    votes = Counter(final_answer(candidate.completion.text) for candidate in voters)
    ranked = votes.most_common(2)
    if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
        return []
    return [candidate for candidate in voters if final_answer(candidate.completion.text) == ranked[0][0]]


def _distinct(answers: list[Candidate]) -> list[Candidate]:
    """One of equal answers."""
    seen: set[bytes] = set()
    found = []
    for candidate in answers:
        said = candidate.completion
        whole = canonical([said.text, said.reasoning, said.tool_calls])
        if whole not in seen:
            seen.add(whole)
            found.append(candidate)
    return found


def _best(answers: list[Candidate], policy: Policy, accepted: int | None) -> list[Candidate]:
    if policy == "shortest_correct":
        return sorted(answers, key=lambda candidate: (_length(candidate), candidate.sample))[: accepted or 1]
    if policy == "diverse":
        return _most_different(answers, accepted or DIVERSE)
    return answers[:accepted]


def _length(candidate: Candidate) -> int:
    """Characters, reasoning included: what the student learns to spend."""
    return len(candidate.completion.text) + len(candidate.completion.reasoning or "")


def _most_different(answers: list[Candidate], count: int) -> list[Candidate]:
    """The first answer, then again and again the one that is least similar to those chosen."""
    if len(answers) <= count:
        return answers
    sets = [shingles(f"{c.completion.reasoning or ''} {c.completion.text}", _SHINGLE) for c in answers]
    chosen = [0]
    nearest = [jaccard(each, sets[0]) for each in sets]
    while len(chosen) < count:
        best = min((i for i in range(len(answers)) if i not in chosen), key=lambda i: (nearest[i], i))
        chosen.append(best)
        nearest = [max(near, jaccard(each, sets[best])) for near, each in zip(nearest, sets, strict=True)]
    return [answers[i] for i in sorted(chosen)]


_BOXED = re.compile(r"\\boxed\s*\{")
_MARKED = re.compile(r"(?:^|\n)\s*####\s*(.+)")
_SAID = re.compile(r"(?:final )?answer(?: is|:)\s*\**\s*(.+)", re.IGNORECASE)


def final_answer(text: str) -> str:
    r"""What an answer comes to, for votes: in ``\boxed{}``, after ``####`` or "answer is", JSON without its layout,
    or the whole text."""
    if boxed := list(_BOXED.finditer(text)):
        return _plain(_in_braces(text, boxed[-1].end()))
    if marked := _MARKED.findall(text):
        return _plain(marked[-1])
    stripped = text.strip()
    fenced = re.fullmatch(r"```\w*\s*\n(.*?)\n?```", stripped, re.DOTALL)
    try:
        value = json.loads(fenced[1] if fenced else stripped)
    except (ValueError, RecursionError):
        pass
    else:
        return canonical(value).decode("ascii")
    if said := _SAID.findall(text):
        return _plain(said[-1])
    return _plain(text)


def _in_braces(text: str, start: int) -> str:
    depth = 1
    for i in range(start, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[start:i]
    return text[start:]


def _plain(text: str) -> str:
    said = " ".join(text.split()).strip("*$ .").casefold()
    return re.sub(r"(?<=\d),(?=\d{3}\b)", "", said)


def _one_each(candidates: Iterable[Candidate], prompts: Iterable[str]) -> list[Candidate]:
    wanted = set(prompts)
    found: list[Candidate] = []
    for candidate in candidates:
        if candidate.prompt in wanted:
            wanted.remove(candidate.prompt)
            found.append(candidate)
    return found
