"""Measuring the models of a run on its held-out documents."""

from __future__ import annotations

import zipfile
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from limbeck.data.chat.encode import words_asked
from limbeck.data.prompts import first_prompts
from limbeck.errors import under
from limbeck.evaluation.gap import Measured, dropped_share
from limbeck.evaluation.heldout import Heldout, said
from limbeck.files import whole_folder
from limbeck.models.causal_lm import CausalLM
from limbeck.models.generate import Sampling, generate
from limbeck.models.restricted import RestrictedModel
from limbeck.pipeline.shared.base import (
    DATA,
    MACHINE,
    TEACHER,
    PipelineStage,
    Text,
    data_key,
    lease,
    lease_teacher,
    open_text,
)
from limbeck.pipeline.stages.teacher import teacher_spec
from limbeck.pipeline.stages.train import Arm
from limbeck.recipe import Data, Evaluation, PathModel
from limbeck.workflow.stage import Context, Facts, Plain

MATTERS = {"max_documents", "samples", "sample_tokens"}
"""Settings of the evaluation that change a measurement."""

SAMPLE_TEMPERATURE = 0.7
REQUIRED = ("nats", "tokens", "n_bytes", "nats_words", "tokens_words")  # sums that every model has


@dataclass(frozen=True, kw_only=True)
class _Measure(PipelineStage):
    """Sums per held-out document in ``measured/NAME/documents.npz``, and facts (parameters, texts)."""

    data: Data
    evaluation: Evaluation
    recomputable = True
    urgency = 3  # it is short, and shows what a long run has
    needs = (MACHINE, DATA, TEACHER)

    @property
    @abstractmethod
    def model_name(self) -> str: ...

    @property
    def name(self) -> str:
        return f"measure-{self.model_name}"

    @property
    def title(self) -> str:
        return f"measure {self.model_name}"

    @property
    def folder(self) -> str:
        return f"measured/{self.model_name}"

    def outputs(self) -> Sequence[str]:
        return (self.folder,)

    def key(self, up: Facts) -> dict[str, Plain]:
        return {
            "evaluation": self.evaluation.model_dump(mode="json", include=MATTERS),
            "data": data_key(self.data, up[DATA]),
            "teacher": up[TEACHER]["fingerprint"],
        }

    @abstractmethod
    def model(self, up: Facts, run: Path, text: Text) -> AbstractContextManager[CausalLM]:
        """The model that is measured."""

    def against(self, up: Facts, run: Path, text: Text) -> AbstractContextManager[CausalLM | None]:
        """The teacher that it is compared with."""
        return lease_teacher(teacher_spec(up, run), text)

    def work(self, up: Facts, context: Context) -> dict[str, Plain]:
        run, text = context.folder, open_text(context.folder)
        heldout = Heldout.of(text.heldout, text.heldout_own, self.data.seq_len, self.evaluation.max_documents)
        prompts = asked(heldout, self.evaluation, self.data.seq_len)
        facts: dict[str, Plain] = {}
        with (
            context.task(self.title, len(heldout.rows), "rows") as task,
            self.model(up, run, text) as lm,
            self.against(up, run, text) as teacher,
        ):
            with under(self.model_name):
                measured = heldout.measure(lm, teacher, task.advance)
            task.summary = said(measured)
            with whole_folder(run / self.folder) as scratch:
                arrays = {name: array for name, array in vars(measured).items() if array is not None}
                np.savez(scratch / "documents.npz", keys=heldout.corpus.keys, **arrays)
            facts = {"parameters": lm.n_parameters(), "samples": self._samples(lm, prompts, text)}
            if teacher is None and isinstance(lm, RestrictedModel):
                facts |= _dropped(lm, heldout)
        return facts

    def _samples(self, lm: CausalLM, prompts: list[tuple[list[int], list[int]]], text: Text) -> list[str]:
        if not prompts:
            return []
        sampling = Sampling(self.evaluation.sample_tokens, temperature=SAMPLE_TEMPERATURE, seed=0)
        answers = dict(generate(lm, [prompt for prompt, _ in prompts], sampling, batch_size=len(prompts)))
        return [decoded(answers[i], text) for i in range(len(prompts))]


@dataclass(frozen=True, kw_only=True)
class MeasureTeacher(_Measure):
    """The teacher, and the questions that all models are asked."""

    @property
    def model_name(self) -> str:
        return TEACHER

    def model(self, up: Facts, run: Path, text: Text) -> AbstractContextManager[CausalLM]:
        return lease_teacher(teacher_spec(up, run), text)

    def against(self, up: Facts, run: Path, text: Text) -> AbstractContextManager[CausalLM | None]:
        return nullcontext()

    def work(self, up: Facts, context: Context) -> dict[str, Plain]:
        facts = super().work(up, context)
        return {**facts, **questions_of(open_text(context.folder), self.data, self.evaluation)}


@dataclass(frozen=True, kw_only=True)
class MeasureServed(PipelineStage):
    """Of a teacher that is called nothing is measured here: the questions that all models are asked."""

    data: Data
    evaluation: Evaluation
    recomputable = True
    needs = (MACHINE, DATA)

    @property
    def name(self) -> str:
        return f"measure-{TEACHER}"

    @property
    def title(self) -> str:
        return "held-out questions"

    def key(self, up: Facts) -> dict[str, Plain]:
        matters = self.evaluation.model_dump(mode="json", include=MATTERS)
        return {"evaluation": matters, "data": data_key(self.data, up[DATA])}

    def work(self, up: Facts, context: Context) -> dict[str, Plain]:
        text = open_text(context.folder)
        return questions_of(text, self.data, self.evaluation)


@dataclass(frozen=True, kw_only=True)
class MeasureTrained(_Measure):
    """A trained model of an arm, and its distance to the teacher.

    Attributes:
        arm, member: which.
        served: the teacher is only called, and has no distance.
    """

    arm: Arm
    member: str
    served: bool = False

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return (MACHINE, DATA, TEACHER, f"train-{self.arm.name}")

    @property
    def model_name(self) -> str:
        return f"{self.arm.name}-{self.member}"

    def key(self, up: Facts) -> dict[str, Plain]:
        key = {**super().key(up), "weights": up[f"train-{self.arm.name}"]["weights"][self.member]}
        return {name: value for name, value in key.items() if not (self.served and name == "teacher")}

    def against(self, up: Facts, run: Path, text: Text) -> AbstractContextManager[CausalLM | None]:
        return nullcontext() if self.served else super().against(up, run, text)

    def model(self, up: Facts, run: Path, text: Text) -> AbstractContextManager[CausalLM]:
        return lease_trained(self.arm, self.member, run, text)


@contextmanager
def lease_trained(arm: Arm, member: str, run: Path, text: Text) -> Iterator[CausalLM]:
    """A trained student, or the teacher after ``co``, which may have a vocabulary of its own."""
    spec = PathModel(path=str(run / arm.model(member)), dtype="auto")
    with lease_teacher(spec, text) if member == TEACHER else lease(spec, text, "the trained student") as lm:
        yield lm


def questions_of(text: Text, data: Data, evaluation: Evaluation) -> dict[str, Plain]:
    """What all models are asked: ``{"documents": how many are measured, "questions": [[asked, what really follows]],
    "prompt": token ids of the first}``."""
    heldout = Heldout.of(text.heldout, text.heldout_own, data.seq_len, evaluation.max_documents)
    prompts = asked(heldout, evaluation, data.seq_len)
    # A prompt as people read it: the question without the template around it.
    shown = [[words_asked(prompt, text.tokenizer), decoded(rest, text)] for prompt, rest in prompts]
    return {"documents": len(heldout.corpus), "questions": shown, "prompt": prompts[0][0] if prompts else []}


def asked(heldout: Heldout, evaluation: Evaluation, seq_len: int) -> list[tuple[list[int], list[int]]]:
    """(prompt, what really follows) of the first held-out documents."""
    pairs = first_prompts(heldout.corpus, evaluation.samples, seq_len)
    return [(prompt, rest[: evaluation.sample_tokens]) for prompt, rest in pairs]


def decoded(ids: list[int], text: Text) -> str:
    return str(text.tokenizer.decode(ids, skip_special_tokens=True))


def _dropped(lm: RestrictedModel, heldout: Heldout) -> dict[str, Plain]:
    share = dropped_share(lm, heldout.rows)
    return {
        "dropped": share,
        "notes": [f"vocabulary: the teacher gives {100 * share:.1f}% of its probability to tokens left out"],
    }


def read_measured(home: Path) -> Measured | None:
    """What was measured; None if the file is torn."""
    try:
        with np.load(home / "documents.npz", allow_pickle=False) as arrays:
            optional = {name: arrays.get(name) for name in ("kl", "agreement")}
            return Measured(**{name: arrays[name] for name in REQUIRED}, **optional)
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None
