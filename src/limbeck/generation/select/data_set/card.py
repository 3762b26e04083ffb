"""The card of a data set, in the Hugging Face form: who wrote it, under which terms, what was dropped, what it cost.

Text of models stands in fences that are longer than any fence inside; all other text from outside is escaped.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from limbeck.generation.select.data_set.rows import is_repaired
from limbeck.generation.select.filters import Filtered
from limbeck.generation.select.keep import Chosen
from limbeck.generation.select.words import asked
from limbeck.recipe.served import Terms
from limbeck.report.card import fenced, plain
from limbeck.report.markup import one_line

LONGEST_QUOTE = 1_000
UNSOLVED = "unsolved.jsonl"
"""Beside the data: prompts that no answer solved."""
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass(frozen=True)
class TeacherFacts:
    """A teacher, as the card names it.

    Attributes:
        name: as in the column ``teacher``.
        identity: ``Endpoint.identity``, or the fingerprint of a local model.
        terms: None: a local model, whose licence is not in the recipe.
        capabilities: the line of what the endpoint reveals.
    """

    name: str
    identity: Mapping[str, str]
    terms: Terms | None = None
    capabilities: str | None = None


@dataclass(frozen=True)
class CardFacts:
    """What the card says beside counts of rows.

    Attributes:
        title: heading.
        teachers: who may have answered.
        prompts: where prompts come from, a line each.
        settings: how answers were sampled (``temperature: 0.8``).
        answers: all answers, by outcome.
        verifier: how answers were verified; None: they were not.
        filtered: what the filters took.
        nano_usd: what was paid, in 10⁻⁹ US dollars; None: nothing was bought.
        tokens: of prompts and answers.
        prices: where prices are from, and of which date.
        possibly_paid_twice: requests that may have been served without an answer.
        not_asked: prompts that were not asked, because they overlap with evaluation texts.
        notes: more sentences, for example of what limbeck warned about.
    """

    title: str
    teachers: Sequence[TeacherFacts] = ()
    prompts: Sequence[str] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    answers: Mapping[str, int] = field(default_factory=dict)
    verifier: str | None = None
    filtered: Filtered | None = None
    nano_usd: int | None = None
    tokens: int | None = None
    prices: str | None = None
    possibly_paid_twice: int = 0
    not_asked: int = 0
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Table:
    """A table of the folder: ``name.parquet`` and ``name.jsonl``."""

    name: str
    columns: str
    rows: int


def data_set_card(chosen: Chosen, facts: CardFacts, tables: Sequence[Table]) -> str:
    """The whole card."""
    parts = [
        _front_matter(chosen, facts, tables),
        f"# {plain(facts.title)}",
        _summary(chosen, facts, tables),
        _teachers(chosen, facts),
        _prompts(chosen, facts),
        _verification(chosen, facts),
        _filters(facts),
        _cost(facts),
        _files(chosen, tables),
        "\n\n".join(plain(note, LONGEST_QUOTE) for note in facts.notes),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(chosen: Chosen, facts: CardFacts, tables: Sequence[Table]) -> str:
    """YAML whose values are JSON, which YAML reads as written."""
    rows = len(chosen.kept)
    values: dict[str, Any] = {
        "pretty_name": one_line(facts.title),
        "tags": ["synthetic", "distillation", "limbeck"],
        "task_categories": ["text-generation"],
        "size_categories": [next((name for most, name in _SIZES if rows < most), "n>1M")],
        "configs": [
            {"config_name": "default" if table.name == "data" else table.name, "data_files": f"{table.name}.parquet"}
            for table in tables
        ],
    }
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
    return "\n".join(["---", *lines, "---"])


def _summary(chosen: Chosen, facts: CardFacts, tables: Sequence[Table]) -> str:
    prompts = len({candidate.prompt for candidate in chosen.kept})
    names = ", ".join(plain(name) for name in sorted({candidate.teacher for candidate in chosen.kept}))
    by = f", written by {names}" if names else ""
    said = f"{_count(len(chosen.kept), 'answer')} to {_count(prompts, 'prompt')}{by}. Made with limbeck for training "
    said += f"smaller models. Policy: `{chosen.policy}`."
    if facts.settings:
        said += f" Sampling: {', '.join(plain(f'{name} {value}') for name, value in facts.settings.items())}."
    return said


def _teachers(chosen: Chosen, facts: CardFacts) -> str:
    rows = Counter(candidate.teacher for candidate in chosen.kept)
    lines = [
        "## Teachers and their terms",
        "",
        "| teacher | rows | may train students | licence | source | read on |",
        "|---|---|---|---|---|---|",
    ]
    below = []
    for teacher in facts.teachers:
        terms = teacher.terms
        cells = ["not stated", "", "", ""]
        if terms is not None:
            read = terms.date.isoformat() if terms.date else ""
            cells = [terms.verdict, plain(terms.licence or ""), plain(terms.source or ""), read]
            if terms.quote:
                below.append(f"The terms of {plain(teacher.name)} say:\n\n{fenced(terms.quote[:LONGEST_QUOTE])}")
            if terms.verdict == "no" and terms.override:
                below.append(
                    f"**Used against the terms of {plain(teacher.name)}**, because:\n\n{fenced(terms.override)}"
                )
            if terms.verdict == "unknown":
                below.append(
                    f"Whether the terms of {plain(teacher.name)} allow training students on its text is **not known**."
                )
        lines.append(f"| {plain(teacher.name)} | {rows.pop(teacher.name, 0):,} | {' | '.join(cells)} |")
    lines += [f"| {plain(name)} | {count:,} | not stated | | | |" for name, count in sorted(rows.items())]
    for teacher in facts.teachers:
        identity = ", ".join(f"{plain(name)} {plain(value)}" for name, value in sorted(teacher.identity.items()))
        revealed = f". {plain(teacher.capabilities)}" if teacher.capabilities else ""
        below.append(f"{plain(teacher.name)}: {identity}{revealed}")
    return "\n\n".join(["\n".join(lines), *below])


def _prompts(chosen: Chosen, facts: CardFacts) -> str:
    lines = ["## Prompts", ""]
    lines += [f"- {plain(source)}" for source in facts.prompts] or ["- source not stated"]
    if facts.answers:
        outcomes = ", ".join(f"{plain(name)} {count:,}" for name, count in facts.answers.items())
        lines += ["", f"Answers by outcome: {outcomes}."]
    if chosen.repeated or chosen.set_aside:
        lines += [
            "",
            f"Of equal answers to the same prompt one was kept; {_count(chosen.repeated, 'answer')} dropped. "
            f"Set aside by `keep`: {_count(len(chosen.set_aside), 'prompt')}.",
        ]
    return "\n".join(lines)


def _verification(chosen: Chosen, facts: CardFacts) -> str:
    if not chosen.pass_rates:
        return "## Verification\n\nThe answers were **not verified**: some of them may be wrong."
    verdicts = chosen.verdicts
    lines = [
        "## Verification",
        "",
        f"Verified by {plain(facts.verifier or 'a verifier')}: {verdicts.correct:,} answers correct, "
        f"{verdicts.wrong:,} wrong, {verdicts.undecided:,} undecided (neither right nor wrong).",
        "",
        f"Of {_count(len(chosen.pass_rates), 'prompt')}, {len(chosen.unsolved):,} were never solved, and "
        f"{len(chosen.undecided):,} have no correct answer and at least one undecided.",
        "",
        "| share of answers correct | prompts |",
        "|---|---|",
    ]
    counts = chosen.difficulty()
    for i, count in enumerate(counts):
        upper = "100%" if i == len(counts) - 1 else f"below {10 * (i + 1)}%"
        lines.append(f"| {10 * i}% to {upper} | {count:,} |")
    if chosen.examples:
        lines += ["", "Prompts that were not solved, with one of their answers:"]
    blocks = ["\n".join(lines)]
    for candidate in chosen.examples[:3]:
        prompt, answer = one_line(asked(candidate), 400), one_line(candidate.completion.text, 400)
        blocks.append(fenced(f"{prompt}\n→ {answer}"))
    return "\n\n".join(blocks)


def _filters(facts: CardFacts) -> str:
    if facts.filtered is None:
        return ""
    lines = ["## Filters", "", "| filter | answers dropped |", "|---|---|"]
    lines += [f"| {plain(taken.name)} | {taken.count:,} |" for taken in facts.filtered.taken]
    blocks = ["\n".join(lines)]
    if overlap := facts.filtered.overlap:
        counts = ", ".join(f"{count:,} by runs of {size} words" for size, count in overlap.items())
        blocks.append(f"Overlap with evaluation texts: {counts}.")
    else:
        blocks.append("The answers were not compared with evaluation texts.")
    if facts.not_asked:
        said = "Not asked, because of an overlap with evaluation texts: "
        blocks.append(f"{said}{_count(facts.not_asked, 'prompt')}.")
    for taken in facts.filtered.taken:
        if taken.examples:
            blocks.append(f"Examples of {plain(taken.name)}:\n\n{fenced(chr(10).join(taken.examples))}")
    return "\n\n".join(blocks)


def _cost(facts: CardFacts) -> str:
    if facts.nano_usd is None and facts.tokens is None:
        return ""
    parts = []
    if facts.nano_usd is not None:
        parts.append(f"{usd(facts.nano_usd)}")
    if facts.tokens is not None:
        parts.append(f"{facts.tokens:,} tokens")
    said = f"## Cost\n\n{' for '.join(parts)}, of all answers, those that were dropped included."
    if facts.prices:
        said += f" Prices: {plain(facts.prices)}."
    if facts.possibly_paid_twice:
        said += f" Possibly paid twice: {_count(facts.possibly_paid_twice, 'request')}."
    return said


def usd(nano: int) -> str:
    """An amount in US dollars: to the cent, or to what is not zero of it."""
    value = nano / 1e9
    return f"${value:,.2f}" if nano == 0 or value >= 1 else f"${value:.2g}" if value < 0.01 else f"${value:.3f}"


def _files(chosen: Chosen, tables: Sequence[Table]) -> str:
    lines = ["## Files", ""]
    for table in tables:
        lines.append(
            f"- `{table.name}.parquet`, `{table.name}.jsonl`: the same {_count(table.rows, 'row')}, with "
            f"{table.columns}; beside them `prompt_id`, `sample`, `teacher`, `model`, `outcome`, `verdict`, "
            "`reference` and `key` (of the row in the journal)."
        )
    if chosen.unsolved:
        lines.append(f"- `{UNSOLVED}`: the {_count(len(chosen.unsolved), 'prompt')} that no answer solved.")
    lines += [
        "",
        "Reasoning is in `reasoning_content` of the last message. Arguments of tool calls, and `tools`, are JSON.",
    ]
    if repaired := sum(map(is_repaired, chosen.kept)):
        lines += ["", f"{_count(repaired, 'answer')} held halves of surrogate pairs; each is U+FFFD here."]
    first = tables[0].name
    example = (
        f'from datasets import load_dataset\n\nrows = load_dataset("parquet", data_files="{first}.parquet")["train"]'
    )
    return "\n".join([*lines, "", "```python", example, "```"])


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
