"""Which answers are learned: verified, filtered, chosen, and written as a data set and as a corpus."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from limbeck.data.chat.encode import Encoded, encode
from limbeck.data.corpus import write_encoded
from limbeck.data.documents.sources import documents
from limbeck.errors import InputError, under
from limbeck.files import whole_folder
from limbeck.generation.asked import read_candidates
from limbeck.generation.candidate import Candidate, Verdict
from limbeck.generation.learned import Learned
from limbeck.generation.prompts import Prompt, prompts_among
from limbeck.generation.select import (
    CardFacts,
    Filtered,
    TeacherFacts,
    choose,
    filter_candidates,
    write_data_set,
    write_prompts,
)
from limbeck.generation.select.data_set.card import UNSOLVED
from limbeck.generation.select.prompts import evaluation_texts
from limbeck.generation.verify import verify
from limbeck.pipeline.shared.asking import judge_of
from limbeck.pipeline.shared.base import DATA, MACHINE, TEACHER, PipelineStage, Text, data_key, open_text
from limbeck.recipe import Data, Endpoint, Filters, Generation, Keep, PackageModel, ServedTeacher, fingerprint
from limbeck.recipe.verify import Judge
from limbeck.workflow.stage import Context, Facts, Plain


@dataclass(frozen=True, kw_only=True)
class Select(PipelineStage):
    """What of a teacher's answers is learned. Made again whenever a setting changes: answers stay in the journal.

    Attributes:
        generation, data: sections of the recipe.
        sample: the stage that asked.
        like: the stage as many of whose answers are learned, drawn at random; None: all that are kept.
        served: section of a teacher that is called.
    """

    generation: Generation
    data: Data
    sample: str
    like: str | None = None
    served: ServedTeacher | None = None
    place: str = "techniques"
    recomputable = True
    urgency = 2

    @property
    def drains(self) -> bool:  # type: ignore[override]
        return isinstance(self.generation.verify, Judge)

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return (MACHINE, DATA, TEACHER, self.sample, *([self.like] if self.like is not None else []))

    @property
    def name(self) -> str:
        return f"select-{fingerprint(self.generation, self.sample, self.like)[:8]}"

    @property
    def title(self) -> str:
        return "choose answers"

    def key(self, up: Facts) -> dict[str, Plain]:
        return {
            "generation": self.generation.model_dump(mode="json"),
            "data": data_key(self.data, up[DATA], pack=False),
            "answers": up[self.sample]["fingerprint"],
            **({"like": up[self.like]["learned"]} if self.like is not None else {}),
        }

    def outputs(self) -> Sequence[str]:
        return (f"text/{self.name}",)

    def work(self, up: Facts, context: Context) -> dict[str, Plain]:
        run, text, generation = context.folder, open_text(context.folder), self.generation
        found = read_candidates(run / "text" / self.sample, Path(up[self.sample]["journal"]))
        if not found:
            raise InputError("the teacher has answered nothing yet", key=self.place, fix="Run it again to go on")
        outcomes = Counter(str(candidate.completion.outcome) for candidate in found)
        answers = self._verified(found, run, context)
        verdicts = Counter(str(candidate.verdict) for candidate in answers if candidate.verdict is not None)
        with under(f"{self.place}.generation.filters"):
            filtered = filter_candidates(
                answers, generation.filters or Filters(), evaluation_texts(self._heldout(text))
            )
        with under(f"{self.place}.generation.keep"):
            chosen = choose(filtered.kept, generation.keep or Keep(), answers)
        if self.like is not None:
            chosen = replace(chosen, kept=at_random(chosen.kept, up[self.like]["learned"]))
        kept, encoded, unreadable = self._encoded(chosen.kept, text)
        counts: dict[str, Plain] = {
            "answers": len(found),
            "outcomes": dict(outcomes),
            "verdicts": dict(verdicts),
            "taken": {taken.name: taken.count for taken in filtered.taken if taken.count},
            "unsolved": len(chosen.unsolved),
            "learned": len(kept),
            "unreadable": unreadable,
        }
        said = _said(counts)
        if not kept:
            raise InputError(
                f"no answer is left to learn: {said}{examples(answers)}",
                key=f"{self.place}.generation",
                fix="Ask for more samples, or loosen verify, filters or keep",
            )
        tokens = sum(int(np.count_nonzero(np.asarray(each.loss_mask))) for each in encoded)
        with whole_folder(run / "text" / self.name) as scratch:
            write_encoded(scratch / "corpus", iter(encoded), {"stage": self.name})
            chosen = replace(chosen, kept=kept)
            write_data_set(scratch / "dataset", chosen, self._card(up, filtered, counts))
            if chosen.unsolved:
                nobody = set(chosen.unsolved)
                unsolved = (candidate for candidate in answers if candidate.prompt in nobody)
                write_prompts(scratch / "dataset" / UNSOLVED, unsolved)
        notes = [f"{self.place}.generation: {said}"]
        if generation.filters is None or generation.filters.decontaminate is not None:
            notes += [f"{self.place}.generation: {line}" for line in filtered.lines() if line.startswith("overlap")]
        return {**counts, "tokens": tokens, "fingerprint": _fingerprint(kept), "notes": notes}

    def _verified(self, found: list[Candidate], run: Path, context: Context) -> list[Candidate]:
        section = self.generation.verify
        if section is None:
            return found
        with context.task("verify", len(found), "answers") as task, under(f"{self.place}.generation.verify"):
            ask = judge_of(section, self.served, run)
            return list(verify(found, section, progress=lambda done, _: task.update(done), ask=ask))

    def _heldout(self, text: Text) -> list[Prompt]:
        tokens = self.generation.prompt_tokens
        return prompts_among(documents(self.data.corpus), text.heldout.keys, text.tokenizer, prompt_tokens=tokens)

    def _encoded(self, chosen: Sequence[Candidate], text: Text) -> tuple[list[Candidate], list[Encoded], int]:
        """(answers in tokens, and they; how many the students' chat template cannot write)."""
        learned = Learned(text.tokenizer, self.generation.reasoning)
        kept: list[Candidate] = []
        encoded: list[Encoded] = []
        for candidate in chosen:
            try:
                found = encode(learned.document(candidate), text.tokenizer, self.data.date)
            except InputError:
                continue
            if any(found.loss_mask):
                kept.append(candidate)
                encoded.append(found)
        return kept, encoded, len(chosen) - len(kept)

    def _card(self, up: Facts, filtered: Filtered, counts: Mapping[str, Plain]) -> CardFacts:
        sampled, verifier = up[self.sample], self.generation.verify
        sources = [
            source.model_dump(mode="json", exclude_none=True) for source in (*self.data.corpus, *self.data.prompts)
        ]
        return CardFacts(
            title=f"Answers of {self._teachers(up)[0].name}",
            teachers=self._teachers(up),
            prompts=[", ".join(f"{name}: {value}" for name, value in source.items()) for source in sources],
            settings=self.generation.sampling(),
            answers=counts["outcomes"],
            verifier=None if verifier is None else json.dumps(verifier.model_dump(mode="json", exclude_defaults=True)),
            filtered=filtered,
            nano_usd=sampled.get("nano_usd"),
            tokens=sampled.get("tokens"),
            prices=sampled.get("prices"),
            possibly_paid_twice=sampled.get("possibly_paid_twice", 0),
            not_asked=sampled.get("overlapping", 0),
        )

    def _teachers(self, up: Facts) -> list[TeacherFacts]:
        if self.served is None:
            return [TeacherFacts(up[TEACHER]["fingerprint"], {"weights": up[TEACHER]["fingerprint"]})]
        found = []
        for number, each in enumerate(self.served.chain):
            if isinstance(each, Endpoint):
                said = up[TEACHER].get("capabilities") if number == 0 else None
                found.append(TeacherFacts(each.model, each.identity, each.terms, said))
            else:
                name = each.package if isinstance(each, PackageModel) else each.path
                found.append(TeacherFacts(name, {"local": name}))
        return found


def at_random(candidates: list[Candidate], count: int) -> list[Candidate]:
    """So many of them, by their hash."""
    drawn = set(sorted(candidate.key for candidate in candidates)[:count])
    return [candidate for candidate in candidates if candidate.key in drawn]


EXAMPLES, SHOWN = 3, 60
"""Wrong answers that an error shows, and characters of each."""


def examples(answers: Sequence[Candidate]) -> str:
    """Some verified answers against their references, for an error; empty where none is wrong or undecided."""
    open_ = [each for each in answers if each.verdict not in (None, Verdict.CORRECT)]
    found = [
        f"{each.verdict}: {_short(each.completion.text)}"
        + (f" against {_short(each.reference)}" if each.reference is not None else ", without a reference")
        for each in open_[:EXAMPLES]
    ]
    return f". For example: {'; '.join(found)}" if found else ""


def _short(text: str) -> str:
    """In quotes, escaped. What decides an answer stands at its end: so that is shown."""
    text = " ".join(text.split())
    return json.dumps(text if len(text) <= SHOWN else f"…{text[1 - SHOWN :]}", ensure_ascii=True).replace(
        "\\u2026", "…"
    )


def _said(counts: Mapping[str, Plain]) -> str:
    line = f"{counts['learned']:,} of {counts['answers']:,} answers are learned"
    if set(counts["outcomes"]) != {"complete"}:
        line += f"; {_counted(counts['outcomes'])}"
    if counts["verdicts"]:
        line += f"; {_counted(counts['verdicts'])}; {counts['unsolved']:,} prompts without a right answer"
    if counts["taken"]:
        line += f"; left out: {_counted(counts['taken'])}"
    if counts["unreadable"]:
        line += f"; {counts['unreadable']:,} cannot be written by the chat template"
    return line


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {name}" for name, n in sorted(counts.items(), key=lambda pair: -pair[1]))


def _fingerprint(kept: Sequence[Candidate]) -> str:
    digest = hashlib.sha256()
    for candidate in kept:
        digest.update(candidate.key.encode())
    return digest.hexdigest()[:16]
