"""Asking a teacher: every prompt as often as the recipe says, through the journal, so that nothing is asked twice."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.data.chat.encode import encode_prompt
from limbeck.data.documents.sources import documents
from limbeck.errors import InputError, TeacherGoneError, under
from limbeck.files import whole_folder
from limbeck.generation.api.summary import Summary
from limbeck.generation.api.teacher import Probed
from limbeck.generation.asked import Asked, candidates_of, write_asked
from limbeck.generation.candidate import Candidate, Verdict
from limbeck.generation.journal.journal import Journal
from limbeck.generation.journal.prices import prices_of
from limbeck.generation.journal.rows import RowState
from limbeck.generation.local import LocalTeacher, as_document
from limbeck.generation.prompts import Prompt, prompts_among, requests_for
from limbeck.generation.request import Outcome, Request
from limbeck.generation.select import more_samples
from limbeck.generation.select.prompts import ToAsk, prompts_to_ask
from limbeck.generation.text import SHORTEST_ANSWER
from limbeck.generation.verify import verify
from limbeck.models.causal_lm import CausalLM
from limbeck.pipeline.shared.asking import ask_chain, journal_of, probed_of
from limbeck.pipeline.shared.base import (
    DATA,
    MACHINE,
    TEACHER,
    PipelineStage,
    Text,
    data_key,
    lease_teacher,
    open_text,
    precision,
)
from limbeck.pipeline.stages.teacher import teacher_spec
from limbeck.pipeline.text.questions import QUESTIONS, read_questions
from limbeck.recipe import Data, Endpoint, Generation, Keep, ServedTeacher, fingerprint
from limbeck.workflow.stage import Context, Facts, Plain


@dataclass(frozen=True, kw_only=True)
class Sample(PipelineStage):
    """What a teacher answers. The journal holds it; this stage leaves a list of what was asked.

    Attributes:
        generation, data: sections of the recipe.
        asked_precision: the recipe's, of a teacher whose weights are in hand.
        served: section of a teacher that is called; None: its weights are in hand.
        journals: folder of the journals of teachers that are called.
        after: stages that write the same journal before.
    """

    generation: Generation
    data: Data
    asked_precision: str
    served: ServedTeacher | None = None
    journals: str = ""
    after: tuple[str, ...] = ()
    place: str = "techniques"
    urgency = 2  # others wait for it
    version = 2

    @property
    def drains(self) -> bool:  # type: ignore[override]
        return self.served is not None

    @property
    def recomputable(self) -> bool:  # type: ignore[override]
        """Answers of a teacher that is called are in its journal, whatever becomes of the run."""
        return self.served is not None

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return (MACHINE, DATA, TEACHER, *((QUESTIONS,) if self.data.prompts else ()), *self.after)

    @property
    def name(self) -> str:
        teacher = self.served.endpoint.identity if self.served is not None else self.asked_precision
        return f"sample-{fingerprint(self.generation.sampling(), teacher, self.data.seq_len)[:8]}"

    @property
    def title(self) -> str:
        return f"{self.served.model} answers" if self.served is not None else "the teacher answers"

    def key(self, up: Facts) -> dict[str, Plain]:
        return {
            "generation": self.generation.sampling(),
            "data": data_key(self.data, up[DATA], pack=False),
            "teacher": up[TEACHER]["fingerprint"],
            **({"questions": up[QUESTIONS]["fingerprint"]} if self.data.prompts else {}),
            **({} if self.served else {"precision": precision(self.asked_precision, up[MACHINE])}),
        }

    def outputs(self) -> Sequence[str]:
        return (f"text/{self.name}",)

    def partial(self) -> Sequence[str]:
        # A shared journal is begun by no stage of this run alone.
        return () if self.served is not None else (f"text/{self.name}.sqlite",)

    def journal(self, run: Path) -> Path:
        """Where the answers are."""
        if self.served is None:
            return run / "text" / f"{self.name}.sqlite"
        return journal_of(self.served.endpoint, run, self.journals)

    def work(self, up: Facts, context: Context) -> dict[str, Plain]:
        run, text = context.folder, open_text(context.folder)
        found = self._prompts(text, run)
        prompts, said = found.prompts, [f"{self.place}: {line}" for line in found.lines()]
        path = self.journal(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        local = self._local(up, run, text) if self.served is None else None
        identity = local.identity if local is not None else self._endpoint.identity
        with Journal(path) as journal:
            asked, notes = self._rounds(prompts, (identity, probed_of(up[TEACHER])), local, journal, context)
            facts = self._facts(asked, identity, journal)
        with whole_folder(run / "text" / self.name) as scratch:
            write_asked(scratch, asked, identity)
        return {**facts, "overlapping": found.overlapping, "journal": str(path), "notes": [*said, *notes]}

    def _rounds(
        self,
        prompts: list[Prompt],
        teacher: tuple[Mapping[str, str], Sequence[Probed]],
        local: LocalTeacher | None,
        journal: Journal,
        context: Context,
    ) -> tuple[list[Asked], list[str]]:
        """(what was asked, notes). Where prompts are asked until enough answers are right, again and again.

        Args:
            teacher: who is asked first, and what was found of endpoints.
        """
        identity, probed = teacher
        generation, keep = self.generation, self.generation.keep or Keep()
        samples = [more_samples(0, 0, keep, generation.samples)] * len(prompts)
        notes: list[str] = []
        while True:
            asked: list[Asked] = [
                (prompt, list(requests_for(prompt, generation, self.data.seq_len, samples=count)))
                for prompt, count in zip(prompts, samples, strict=True)
            ]
            requests = [request for _, each in asked for request in each]
            with context.task(self.title, len(requests), "answers") as task, under(TEACHER):
                if local is not None:
                    write_batches(requests, local, journal, task.update)
                else:
                    assert self.served is not None
                    summary = ask_chain(self.served, requests, journal, task.update, f"{self.place}.generation", probed)
                    self._require_answers(summary, len(requests))
                    task.summary = summary.line()
                    notes.append(f"{self.title}: {summary.line()}")
            more = self._more(asked, samples, identity, journal, context)
            if not any(more):
                return asked, notes
            samples = [count + extra for count, extra in zip(samples, more, strict=True)]

    def _more(
        self,
        asked: list[Asked],
        samples: list[int],
        identity: Mapping[str, str],
        journal: Journal,
        context: Context,
    ) -> list[int]:
        """How many more samples each prompt needs."""
        keep, section = self.generation.keep or Keep(), self.generation.verify
        if keep.at_most is None:
            return [0] * len(asked)
        found: Iterable[Candidate] = candidates_of(asked, identity, journal)
        if section is not None:
            with under(f"{self.place}.generation.verify"):
                found = verify(found, section)
        right = Counter(
            candidate.prompt
            for candidate in found
            if candidate.completion.outcome is Outcome.COMPLETE
            and (section is None or candidate.verdict is Verdict.CORRECT)
        )
        return [
            more_samples(right[requests[0].prompt_key()], count, keep, self.generation.samples)
            for (_, requests), count in zip(asked, samples, strict=True)
        ]

    def _facts(self, asked: list[Asked], identity: Mapping[str, str], journal: Journal) -> dict[str, Plain]:
        digest, answered, requests = hashlib.sha256(), 0, 0
        for _, each in asked:
            for request in each:
                key = request.key(identity)
                there = journal.state(key) is RowState.ANSWERED
                digest.update(f"{key} {there}\n".encode())
                answered, requests = answered + there, requests + 1
        spent, counts = journal.spent(), journal.counts()
        facts: dict[str, Plain] = {
            "prompts": len(asked),
            "requests": requests,
            "answered": answered,
            "fingerprint": digest.hexdigest()[:16],
            "tokens": spent.tokens,
        }
        if self.served is not None:
            facts["nano_usd"] = spent.nano_usd
            facts["possibly_paid_twice"] = counts.possibly_paid_twice
            facts["prices"] = prices_of(self.served.endpoint).line()
        return facts

    @staticmethod
    def _require_answers(summary: Summary, requests: int) -> None:
        if not summary.kept and not summary.answered:
            failed = ", ".join(f"{n:,} {kind}" for kind, n in summary.failed.items())
            raise TeacherGoneError(
                f"none of {requests:,} requests was answered ({failed})",
                key=TEACHER,
                fix="Is the server up? `limbeck generate retry` asks again",
            )
        if summary.left:
            raise TeacherGoneError(
                f"{summary.left:,} of {requests:,} requests have no answer yet",
                key=TEACHER,
                fix="What was answered is kept. Run the same command again to go on",
            )

    @property
    def _endpoint(self) -> Endpoint:
        assert self.served is not None
        return self.served.endpoint

    def _prompts(self, text: Text, run: Path) -> ToAsk:
        generation, data = self.generation, self.data
        tokens, system = generation.prompt_tokens, generation.system
        own, heldout = (
            prompts_among(documents(data.corpus), part.keys, text.tokenizer, prompt_tokens=tokens, system=system)
            for part in (text.train, text.heldout)
        )

        def fits(prompt: Prompt) -> bool:
            asked = as_document(Request(messages=prompt.messages, text=prompt.text, tools=prompt.tools))
            return len(encode_prompt(asked, text.tokenizer, data.date)) <= data.seq_len - SHORTEST_ANSWER

        given = read_questions(run, system) if data.prompts else ()
        found = prompts_to_ask(own, given, heldout, generation, fits)
        if not found.prompts:
            raise InputError(
                f"there is nothing to ask{': ' if any(found.lines()) else ''}{'; '.join(found.lines())}",
                key="data.corpus",
                fix="Raise data.seq_len, add documents, or name questions in data.prompts",
            )
        return found

    def _local(self, up: Facts, run: Path, text: Text) -> LocalTeacher:
        asked = precision(self.asked_precision, up[MACHINE])
        spec, rounded = teacher_spec(up, run), asked == "bf16"

        @contextmanager
        def opened() -> Iterator[tuple[CausalLM, Any]]:
            with lease_teacher(spec, text, rounded=rounded) as lm:
                yield lm, text.tokenizer

        identity = {
            "weights": up[TEACHER]["fingerprint"],
            "tokenizer": up[DATA]["tokenizer"],
            "chat_template": str(up[DATA].get("chat_template")),
            "precision": asked,
        }
        return LocalTeacher(identity, opened, self.generation.batch_size, asked, self.data.date)


def write_batches(
    requests: Sequence[Request], teacher: LocalTeacher, journal: Journal, progress: Callable[[int], None]
) -> None:
    """Have a model whose weights are in hand write what the journal lacks.

    It writes whole batches, so that a run that was killed ends with the same answers as one left alone.
    """
    done = 0
    missing = []
    for batch in teacher.batches(requests):
        if all(journal.get(request.key(teacher.identity)) is not None for request in batch):
            done += len(batch)
        else:
            missing.append(batch)
    progress(done)
    if not missing:
        return
    with teacher.opened() as (lm, tokenizer):
        for batch in missing:
            journal.put_many(teacher.write_batch(batch, lm, tokenizer), teacher.identity)
            done += len(batch)
            progress(done)
