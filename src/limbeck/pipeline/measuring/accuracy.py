"""Letting models answer held-out prompts, and checking what they say against the data's own answers."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from limbeck.data.chat.encode import encode_prompt
from limbeck.data.documents.sources import documents
from limbeck.errors import InputError, under
from limbeck.generation.candidate import Candidate, Verdict
from limbeck.generation.journal.journal import Journal
from limbeck.generation.local import LocalTeacher, as_document
from limbeck.generation.prompts import Prompt, prompts_among, shown
from limbeck.generation.request import Completion, Request
from limbeck.generation.text import SHORTEST_ANSWER
from limbeck.generation.verify import verify
from limbeck.models.causal_lm import CausalLM
from limbeck.pipeline.measuring.evaluate import lease_trained
from limbeck.pipeline.shared.asking import ask_chain, journal_of, judge_of, probed_of
from limbeck.pipeline.shared.base import DATA, MACHINE, TEACHER, PipelineStage, Text, data_key, lease_teacher, open_text
from limbeck.pipeline.stages.teacher import teacher_spec
from limbeck.pipeline.stages.train import Arm
from limbeck.recipe import Accuracy, Data, Example, ServedTeacher
from limbeck.recipe.verify import Judge
from limbeck.workflow.stage import Context, Facts, Plain

PROMPT_TOKENS = 12
"""Of a plain text, how much of it is given."""


@dataclass(frozen=True, kw_only=True)
class _AccuracyOf(PipelineStage):
    """A verdict on a model's answer to each held-out prompt: ``{"verdicts": [...], "accuracy": share}``.

    Attributes:
        examples: turns that the model is shown before every conversation: the teacher is asked as for its students.
    """

    section: Accuracy
    data: Data
    judge: ServedTeacher | None = None
    examples: tuple[Example, ...] = ()
    recomputable = True
    urgency = 3
    needs = (MACHINE, DATA, TEACHER)

    @property
    def drains(self) -> bool:  # type: ignore[override]
        """Money is in flight while a judge is asked."""
        return isinstance(self.section.verify, Judge)

    @property
    @abstractmethod
    def model_name(self) -> str: ...

    @property
    def name(self) -> str:
        return f"accuracy-{self.model_name}"

    @property
    def title(self) -> str:
        return f"answers of {self.model_name}"

    def key(self, up: Facts) -> dict[str, Plain]:
        examples = {"examples": [each.model_dump() for each in self.examples]} if self.examples else {}
        section = self.section.model_dump(mode="json")
        return {"accuracy": section, "data": data_key(self.data, up[DATA], pack=False), **examples}

    @abstractmethod
    def answers(self, requests: list[Request], up: Facts, context: Context, text: Text) -> list[Completion | None]:
        """The model's answers, in the order of the requests; None: it gave none."""

    def work(self, up: Facts, context: Context) -> dict[str, Plain]:
        text = open_text(context.folder)
        asked = self._prompts(text)
        requests = [
            Request(messages=shown(p, self.examples), text=p.text, tools=p.tools,
                    max_new_tokens=self.section.max_new_tokens, temperature=self._temperature())
            for p in asked
        ]  # fmt: skip
        answers = self.answers(requests, up, context, text)
        candidates = [
            Candidate(request.prompt_key(), prompt.messages, prompt.text, prompt.tools, prompt.reference, 0, answer,
                      self.model_name, prompt.document)
            for prompt, request, answer in zip(asked, requests, answers, strict=True) if answer is not None
        ]  # fmt: skip
        with under("evaluation.accuracy.verify"):
            ask = judge_of(self.section.verify, self.judge, context.folder)
            found = {each.key: str(each.verdict) for each in verify(candidates, self.section.verify, ask=ask)}
        verdicts = [found.get(prompt.document, str(Verdict.WRONG)) for prompt in asked]
        counts = Counter(verdicts)
        share = counts[str(Verdict.CORRECT)] / len(verdicts)
        context.note(f"accuracy of {self.model_name}: {100 * share:.1f}% of {len(verdicts):,} held-out prompts")
        return {"accuracy": share, "counts": dict(counts), "verdicts": verdicts,
                "examples": [[p.reference, a.text if a is not None else None]
                             for p, a in zip(asked[:3], answers[:3], strict=True)]}  # fmt: skip

    def _temperature(self) -> float | None:
        return 0.0

    def _prompts(self, text: Text) -> list[Prompt]:
        found = prompts_among(
            documents(self.data.corpus),
            text.heldout.keys,
            text.tokenizer,
            prompt_tokens=PROMPT_TOKENS,
            system=self.section.system,
        )
        room = self.data.seq_len - SHORTEST_ANSWER
        kept: list[Prompt] = []
        for prompt in found:
            asked = as_document(Request(messages=prompt.messages, text=prompt.text, tools=prompt.tools))
            if prompt.reference and len(encode_prompt(asked, text.tokenizer, self.data.date)) <= room:
                kept.append(prompt)
                if len(kept) == self.section.max_documents:
                    break
        if not kept:
            raise InputError(
                "no held-out document asks anything that has an answer",
                key="evaluation.accuracy",
                fix="Leave it out, or add conversations to data.corpus",
            )
        return kept


@dataclass(frozen=True, kw_only=True)
class AccuracyOfTrained(_AccuracyOf):
    """Of a trained model of an arm."""

    arm: Arm
    member: str

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return (MACHINE, DATA, f"train-{self.arm.name}")

    @property
    def model_name(self) -> str:
        return f"{self.arm.name}-{self.member}"

    def key(self, up: Facts) -> dict[str, Plain]:
        return {**super().key(up), "weights": up[f"train-{self.arm.name}"]["weights"][self.member]}

    def answers(self, requests: list[Request], up: Facts, context: Context, text: Text) -> list[Completion | None]:
        run = context.folder
        return _local(lambda: lease_trained(self.arm, self.member, run, text), self, requests, context, text)


@dataclass(frozen=True, kw_only=True)
class AccuracyOfTeacher(_AccuracyOf):
    """Of the teacher; one that is called answers through its journal.

    Attributes:
        served: section of a teacher that is called; None: its weights are in hand.
        after: stages that write the same journal before.
    """

    served: ServedTeacher | None = None
    after: tuple[str, ...] = ()

    @property
    def drains(self) -> bool:  # type: ignore[override]
        return self.served is not None or super().drains

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return (MACHINE, DATA, TEACHER, *self.after)

    @property
    def model_name(self) -> str:
        return TEACHER

    def key(self, up: Facts) -> dict[str, Plain]:
        return {**super().key(up), "teacher": up[TEACHER]["fingerprint"]}

    def _temperature(self) -> float | None:
        return self.section.temperature if self.served is not None else 0.0

    def answers(self, requests: list[Request], up: Facts, context: Context, text: Text) -> list[Completion | None]:
        run = context.folder
        if self.served is None:
            spec = teacher_spec(up, run)
            return _local(lambda: lease_teacher(spec, text), self, requests, context, text)
        path = journal_of(self.served.endpoint, run, self.served.journal or "")
        path.parent.mkdir(parents=True, exist_ok=True)
        with Journal(path) as journal, context.task(self.title, len(requests), "answers") as task, under(TEACHER):
            task.summary = ask_chain(
                self.served, requests, journal, task.update, "evaluation.accuracy", probed_of(up[TEACHER])
            ).line()
            identity = self.served.endpoint.identity
            return [journal.get(request.key(identity)) for request in requests]


def _local(
    lease: Callable[[], AbstractContextManager[CausalLM]],
    stage: _AccuracyOf,
    requests: list[Request],
    context: Context,
    text: Text,
) -> list[Completion | None]:
    @contextmanager
    def opened() -> Iterator[tuple[CausalLM, Any]]:
        with lease() as lm:
            yield lm, text.tokenizer

    teacher = LocalTeacher({"local": stage.model_name}, opened, date=stage.data.date)
    found: dict[str, Completion] = {}
    with context.task(stage.title, len(requests), "answers") as task, under(stage.model_name):
        for request, completion in teacher.write(requests):
            found[request.key(teacher.identity)] = completion
            task.advance()
    return [found[request.key(teacher.identity)] for request in requests]
