"""Which answers are learned: verified, filtered, chosen, and written as a data set and as a corpus."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from limbeck.data.chat.encode import Encoded, encode
from limbeck.data.corpus import write_encoded
from limbeck.data.documents.sources import documents
from limbeck.errors import InputError, under
from limbeck.files import whole_folder
from limbeck.generation.candidate import Candidate
from limbeck.generation.journal.journal import Journal
from limbeck.generation.learned import Learned
from limbeck.generation.prompts import Prompt, prompts_among
from limbeck.generation.request import Request
from limbeck.generation.select.data_set import CardFacts, write_data_set
from limbeck.generation.select.filters import Filtered, filter_candidates
from limbeck.generation.select.keep import choose
from limbeck.generation.verify import verify
from limbeck.pipeline.shared.base import DATA, MACHINE, TEACHER, PipelineStage, Text, data_key, open_text
from limbeck.recipe import Data, Filters, Generation, Keep, ServedTeacher, fingerprint
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
        answers = self._verified(found, context)
        verdicts = Counter(str(candidate.verdict) for candidate in answers if candidate.verdict is not None)
        with under(f"{self.place}.generation.filters"):
            filtered = filter_candidates(answers, generation.filters or Filters(), self._evaluation_texts(text))
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
                f"no answer is left to learn: {said}",
                key=f"{self.place}.generation",
                fix="Ask for more samples, or loosen verify, filters or keep",
            )
        tokens = sum(int(np.count_nonzero(np.asarray(each.loss_mask))) for each in encoded)
        with whole_folder(run / "text" / self.name) as scratch:
            write_encoded(scratch / "corpus", iter(encoded), {"stage": self.name})
            write_data_set(scratch / "dataset", replace(chosen, kept=kept), self._card(up, filtered, said))
        notes = [f"{self.place}.generation: {said}"]
        if generation.filters is None or generation.filters.decontaminate is not None:
            notes += [f"{self.place}.generation: {line}" for line in filtered.lines() if line.startswith("overlap")]
        return {**counts, "tokens": tokens, "fingerprint": _fingerprint(kept), "notes": notes}

    def _verified(self, found: list[Candidate], context: Context) -> list[Candidate]:
        section = self.generation.verify
        if section is None:
            return found
        with context.task("verify", len(found), "answers") as task, under(f"{self.place}.generation.verify"):
            return list(verify(found, section, progress=lambda done, _: task.update(done)))

    def _evaluation_texts(self, text: Text) -> Iterator[str]:
        """What the held-out documents ask and answer."""
        for prompt in self._heldout(text):
            yield (prompt.text or "") + (str(prompt.messages[-1]["content"]) if prompt.messages else "")
            yield prompt.reference or ""

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

    def _card(self, up: Facts, filtered: Filtered, said: str) -> CardFacts:
        raise NotImplementedError


def read_candidates(folder: Path, journal: Path) -> list[Candidate]:
    """The answers to what a stage asked, in its order; what has no answer is left out.

    Raises:
        InputError: the journal is gone.
    """
    if not journal.exists():
        raise InputError(f"there is no journal {journal}", fix=f"Bring it back, or delete {folder} to ask again")
    found: list[Candidate] = []
    with Journal(journal, read_only=True) as opened, (folder / "requests.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            prompt, group = Prompt.of(row["prompt"]), Request.of(row["request"]).prompt_key()
            for sample, key in enumerate(row["keys"]):
                completion = opened.get(key)
                if completion is not None:
                    found.append(
                        Candidate(
                            prompt=group,
                            messages=prompt.messages,
                            text=prompt.text,
                            tools=prompt.tools,
                            reference=prompt.reference,
                            sample=sample,
                            completion=completion,
                            teacher=_name_of(opened.who_wrote(key)),
                            key=key,
                        )
                    )
    return found


def at_random(candidates: list[Candidate], count: int) -> list[Candidate]:
    """So many of them, by their hash."""
    drawn = set(sorted(candidate.key for candidate in candidates)[:count])
    return [candidate for candidate in candidates if candidate.key in drawn]


def _name_of(teacher: Mapping[str, str] | None) -> str:
    names = ("model", "local", "weights")
    return next((teacher[name] for name in names if name in teacher), "") if teacher else ""


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
