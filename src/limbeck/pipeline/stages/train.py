"""Training one technique with one seed: an arm of the comparison."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from limbeck.data.corpus import open_corpus
from limbeck.errors import StoreError, under
from limbeck.models.causal_lm import CausalLM
from limbeck.models.folders.save import save_model
from limbeck.models.load import load_model, reinitialised, weights_fingerprint, with_lora
from limbeck.pipeline.shared.base import (
    DATA,
    MACHINE,
    TEACHER,
    PipelineStage,
    Text,
    data_key,
    lease,
    lease_teacher,
    located,
    open_text,
    pool,
    precision,
    require_packing,
    settings,
)
from limbeck.pipeline.shared.fit import Fit
from limbeck.pipeline.stages.cut import cut_folder, cut_name
from limbeck.pipeline.stages.teacher import skipped_notes, teacher_spec
from limbeck.pipeline.stored.stores import read_of, store_of
from limbeck.recipe import (
    AnyStudent,
    Co,
    ConfigStudent,
    CutStudent,
    Data,
    PackageModel,
    PathModel,
    Soft,
    Technique,
    Training,
)
from limbeck.report.numbers import size
from limbeck.runtime.world import device
from limbeck.signals.live import LiveTeacher
from limbeck.signals.source import SignalSource
from limbeck.signals.store import Identity, Store
from limbeck.signals.stored import StoredTeacher
from limbeck.training.checkpoint import tokens_of_newest
from limbeck.training.loop import Peak
from limbeck.training.loss_graph import HiddenLossTerm, LossTerm
from limbeck.training.techniques import hidden_loss_terms, loss_terms_of, matched_layers, needs_teacher
from limbeck.workflow.stage import Context, Facts, Plain


@dataclass(frozen=True)
class Arm:
    """One technique, one seed. ``index``: of the technique in the recipe."""

    index: int
    technique: Technique
    seed: int

    @property
    def name(self) -> str:
        return f"{self.technique.label}-seed{self.seed}"

    @property
    def folder(self) -> str:
        return f"arms/{self.name}"

    def model(self, member: str) -> str:
        """Where a trained student is (or, after ``co``, the teacher), below the run folder."""
        return f"{self.folder}/{member if member == TEACHER else f'students/{member}'}"

    def members(self, students: Sequence[str]) -> list[str]:
        """Who is trained."""
        return sorted([*students, *([TEACHER] if isinstance(self.technique, Co) else [])])


@dataclass(frozen=True, kw_only=True)
class Train(PipelineStage):
    """Trains the students of an arm.

    Attributes:
        arm: which.
        students: sections of the recipe, by name; ``places``: where they stand in it.
        training, data: sections of the recipe.
        text: the stage that writes what is learned; None: the corpus.
        stored: the stage that knows in which dtype the teacher was stored; None: it was not.
        capture: the stage that has the teacher's signals captured; None: it answers every batch.
    """

    arm: Arm
    students: Mapping[str, AnyStudent]
    places: Mapping[str, str]
    training: Training
    data: Data
    text: str | None
    stored: str | None
    capture: str | None = None

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        cuts = [cut_name(name) for name, student in self.students.items() if isinstance(student, CutStudent)]
        teacher = [TEACHER] if self.arm.technique.uses_teacher else []
        more = [name for name in (self.text, self.stored, self.capture) if name is not None]
        return tuple(dict.fromkeys([MACHINE, DATA, *cuts, *teacher, *more]))

    @property
    def urgency(self) -> int:  # type: ignore[override]
        """What takes longest starts first: in ``co``, the teacher learns along."""
        return 1 if isinstance(self.arm.technique, Co) else 0

    @property
    def name(self) -> str:
        return f"train-{self.arm.name}"

    @property
    def title(self) -> str:
        return self.arm.name

    def key(self, up: Facts) -> dict[str, Plain]:
        students = {
            name: {**student.model_dump(mode="json"), **self._cut(name, up)} for name, student in self.students.items()
        }
        key: dict[str, Plain] = {
            "technique": self.arm.technique.model_dump(mode="json", exclude={"name", "signals"}),
            "seed": self.arm.seed,
            "students": students,
            "training": settings(self.training, up[MACHINE]),
            "data": data_key(self.data, up[DATA]),
        }
        if self.arm.technique.uses_teacher:
            key["teacher"] = up[TEACHER]["fingerprint"]
        if self.text is not None and "fingerprint" in up[self.text]:
            key["text"] = up[self.text]["fingerprint"]  # of answers that were chosen: they may be chosen anew
        if self.capture is not None and (signals := up[self.capture]["signals"]) is not None:
            key["signals"] = signals
        return key

    def why_refused(self, was: Mapping[str, Plain], now: Mapping[str, Plain]) -> tuple[str, str] | None:
        before, after = was["students"].keys(), now["students"].keys()
        for names, what in ((after - before, "added to"), (before - after, "taken out of")):
            for name in sorted(names):
                why = f"students cannot be {what} a run that has begun to train: all students of an arm learn together"
                return self.places.get(name, f"students.{name}"), why
        if {**was, "text": None} == {**now, "text": None}:
            why = f"the answers that are learned have changed since {self.arm.name} was trained on them"
            return f"techniques.{self.arm.index}.generation", why
        return None

    def share_done(self, folder: Path) -> float | None:
        return tokens_of_newest(folder / self.partial()[0]) / self.training.tokens

    @staticmethod
    def _cut(name: str, up: Facts) -> dict[str, Plain]:
        facts = up.get(cut_name(name), {})
        return {key: facts[key] for key in ("layers", "parameters", "fingerprint") if key in facts}

    def outputs(self) -> Sequence[str]:
        return [self.arm.model(member) for member in self.arm.members(list(self.students))]

    def untouched(self) -> Sequence[str]:
        return ("README.md",)  # cards are written anew with every report

    def partial(self) -> Sequence[str]:
        return (f"{self.arm.folder}/checkpoints",)

    def scratch(self) -> Sequence[str]:
        return self.partial()

    def work(self, up: Facts, context: Context) -> dict[str, Plain]:
        arm, run, text = self.arm, context.folder, open_text(context.folder)
        section = self.training.model_copy(update={"precision": precision(self.training.precision, up[MACHINE])})
        corpus = open_corpus(run / "text" / self.text / "corpus") if self.text is not None else text.train
        with self._models(up, run, text, section) as (learners, teachers):
            place = f"techniques.{arm.index}"
            with under(place):
                loss_terms: list[LossTerm | HiddenLossTerm] = [
                    *loss_terms_of(arm.technique, list(self.students)),
                    *hidden_loss_terms(arm.technique, self._matched(learners, teachers, up)),
                ]
            job = Fit(
                learners, loss_terms, corpus, self.data, section, "training", teachers, arm.seed,
                self._peaks(section, place), f"{place}.hidden.layers",
            )  # fmt: skip
            result = job.run(run / arm.folder, context, self.title)
            read = read_of(teachers.get(TEACHER), result)
            weights = {}
            for name, lm in learners.items():
                target = run / arm.model(name)
                save_model(lm, target, self._saved_dtype(name, up))
                pool().forget(str(target))
                weights[name] = weights_fingerprint(lm.model)
        return {
            **result,
            **({"store": read} if read else {}),
            "learners": sorted(learners),
            "weights": weights,
            "notes": [*self._origins(), *self._read_said(read), *skipped_notes(arm.name, result)],
        }

    @contextmanager
    def _models(
        self, up: Facts, run: Path, text: Text, section: Training
    ) -> Iterator[tuple[dict[str, CausalLM], dict[str, SignalSource]]]:
        """(models that are trained, what else teaches), by name."""
        technique = self.arm.technique
        with ExitStack() as stack:
            learners = {name: stack.enter_context(self._student(name, up, run, text)) for name in self.students}
            teachers: dict[str, SignalSource] = {}
            if (store := self._store(up, run)) is not None:
                teachers[TEACHER] = StoredTeacher(store)
            elif needs_teacher(technique):
                spec, trainable = teacher_spec(up, run), isinstance(technique, Co)
                rounded = section.precision == "bf16" and not trainable
                teacher = stack.enter_context(
                    lease_teacher(spec, text, trainable=trainable, rounded=rounded, seq_len=self.data.seq_len)
                )
                if isinstance(technique, Co) and technique.teacher_start == "scratch":
                    teacher = reinitialised(teacher, self.arm.seed)
                if trainable:
                    learners[TEACHER] = teacher
                else:
                    teachers[TEACHER] = LiveTeacher(teacher, section.precision)
            yield learners, teachers

    def _store(self, up: Facts, run: Path) -> Store | None:
        """The teacher's signals, where they were captured."""
        if self.capture is None or up[self.capture]["signals"] is None:
            return None
        assert isinstance(self.arm.technique, Soft)
        assert self.arm.technique.stored is not None
        identity = Identity.from_plain(up[self.capture]["identity"])
        with under(f"techniques.{self.arm.index}.signals.folder", StoreError):
            return Store(store_of(self.arm.technique.stored, run, identity), identity)

    @contextmanager
    def _student(self, name: str, up: Facts, run: Path, text: Text) -> Iterator[CausalLM]:
        student, place = self.students[name], self.places[name]
        with under(place):
            if isinstance(student, ConfigStudent):
                lm = load_model(student, text.tokenizer, seed=self.arm.seed, seq_len=self.data.seq_len, device=device())
                require_packing(lm, self.data)
                yield lm
                return
            spec = located(student)[0] if not isinstance(student, CutStudent) else None
            spec = spec or PathModel(path=str(run / cut_folder(name)), dtype=student.dtype)
        with lease(spec, text, place, trainable=True, seq_len=self.data.seq_len) as lm:
            require_packing(lm, self.data)
            if student.lora is not None:
                with under(f"{place}.lora"):
                    lm = with_lora(lm, student.lora, self.arm.seed)
            yield lm

    def _read_said(self, read: Mapping[str, float]) -> list[str]:
        if not read:
            return []
        step, token = size(read["bytes_a_step"]), read["bytes_a_token"]
        return [f"{self.arm.name}: a step reads {step} of stored signals, {token:.1f} bytes a token"]

    def _origins(self) -> list[str]:
        """What a quantised file of a student has lost."""
        given = {name: spec for name, spec in self.students.items() if isinstance(spec, PathModel | PackageModel)}
        notes = {self.places[name]: located(spec)[1] for name, spec in given.items()}
        return [f"{place}: {note}" for place, note in notes.items() if note]

    def _peaks(self, section: Training, place: str) -> dict[str, Peak]:
        """The teacher's peak learning rate, where it learns along."""
        technique = self.arm.technique
        if not isinstance(technique, Co):
            return {}
        named = technique.teacher_lr is not None
        return {TEACHER: Peak(technique.peak_lr(section.lr), f"{place}.teacher_lr" if named else ".lr")}

    def _matched(
        self, learners: Mapping[str, CausalLM], teachers: Mapping[str, SignalSource], up: Facts
    ) -> dict[str, list[tuple[int, int]]]:
        shape = teachers[TEACHER].hidden_shape if TEACHER in teachers else None
        if shape is None:
            return {}
        return {
            name: matched_layers(learners[name].n_layers, shape.layers, up.get(cut_name(name), {}).get("layers"))
            for name in self.students
        }

    def _saved_dtype(self, name: str, up: Facts) -> str | None:
        """In which dtype a learner is saved: the recipe's, else that in which its teacher was stored."""
        asked = self.students[name].save_dtype if name in self.students else "teacher"
        if asked != "teacher":
            return asked
        return up[self.stored]["stored"] if self.stored is not None else None
