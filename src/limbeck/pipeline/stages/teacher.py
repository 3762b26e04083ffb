"""The teacher: at hand, trained on the corpus first, or corrected (tuned on the data) first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import under
from limbeck.evaluation.heldout import Heldout, bits_per_byte
from limbeck.models.causal_lm import CausalLM
from limbeck.models.folders.save import save_model
from limbeck.models.folders.saved import stored_dtype
from limbeck.models.load import load_model, weights_fingerprint, with_lora
from limbeck.pipeline.shared.base import (
    DATA,
    MACHINE,
    TEACHER,
    PipelineStage,
    Text,
    data_key,
    lease_teacher,
    located,
    open_text,
    pool,
    precision,
    require_packing,
    settings,
)
from limbeck.pipeline.shared.fit import Fit
from limbeck.pipeline.shared.shelf import Shelf
from limbeck.recipe import ConfigModel, ConfigTeacher, Correction, Data, PackageModel, PathModel, Training, fingerprint
from limbeck.runtime.pool import ModelRef, stamp_of
from limbeck.runtime.world import device
from limbeck.training.checkpoint import tokens_of_newest
from limbeck.training.loss_graph import LossTerm
from limbeck.workflow.stage import Context, Facts, Plain

GIVEN, UNTUNED, TRAINING = "teacher-given", "teacher-before", "teacher-training"


def teacher_spec(up: Facts, run: Path, name: str = TEACHER) -> PathModel:
    """Where the weights of a run's teacher are."""
    spec = PathModel(**up[name]["spec"])
    return spec if up[name]["given"] else spec.model_copy(update={"path": str(run / spec.path)})


def _facts(lm: CausalLM) -> dict[str, Plain]:
    return {"fingerprint": weights_fingerprint(lm.model), "parameters": lm.n_parameters()}


@dataclass(frozen=True, kw_only=True)
class GivenTeacher(PipelineStage):
    """A teacher whose weights exist.

    Attributes:
        spec, data: sections of the recipe.
        name_: ``teacher``, or ``teacher-given`` for one that is corrected before it teaches.
    """

    spec: PathModel | PackageModel
    data: Data
    name_: str = TEACHER
    needs = (MACHINE, DATA)

    @property
    def name(self) -> str:
        return self.name_

    def key(self, up: Facts) -> dict[str, Plain]:
        found, _ = located(self.spec)
        return {"teacher": {"files": fingerprint(stamp_of(ModelRef.of(found))), "dtype": found.dtype}}

    def is_equivalent(self, was: Mapping[str, Plain], now: Mapping[str, Plain], result: Mapping[str, Plain]) -> bool:
        """The same weights in another place are the same teacher."""
        if was["teacher"]["dtype"] != now["teacher"]["dtype"]:
            return False
        with under(TEACHER), pool().lease(ModelRef.of(located(self.spec)[0])) as lm:
            return bool(weights_fingerprint(lm.model) == result["fingerprint"])

    def work(self, up: Facts, context: Context) -> dict[str, Plain]:
        found, note = located(self.spec)
        text = open_text(context.folder)
        with lease_teacher(found, text, seq_len=self.data.seq_len) as lm:
            require_packing(lm, self.data)
            facts = _facts(lm)
        return {
            "spec": {name: getattr(found, name) for name in PathModel.model_fields},  # without `correct`
            "given": True,
            **facts,
            "stored": stored_dtype(found),
            "notes": [f"teacher: {note}"] if note else [],
        }


@dataclass(frozen=True, kw_only=True)
class UntunedTeacher(PipelineStage):
    """What a teacher knows of the held-out text before it is corrected."""

    data: Data
    max_documents: int
    recomputable = True
    needs = (MACHINE, DATA, GIVEN)

    @property
    def name(self) -> str:
        return UNTUNED

    def key(self, up: Facts) -> dict[str, Plain]:
        return {
            "teacher": up[GIVEN]["fingerprint"],
            "data": data_key(self.data, up[DATA]),
            "documents": self.max_documents,
        }

    def work(self, up: Facts, context: Context) -> dict[str, Plain]:
        return {"bits_per_byte": self.measured(teacher_spec(up, context.folder, GIVEN), context, "the untuned teacher")}

    def measured(self, spec: PathModel, context: Context, what: str) -> float:
        text = open_text(context.folder)
        heldout = Heldout.of(text.heldout, text.heldout_own, self.data.seq_len, self.max_documents)
        with context.task(f"measure {what}", len(heldout.rows), "rows") as task, lease_teacher(spec, text) as lm:
            with under(TEACHER):
                found = bits_per_byte(heldout.measure(lm, progress=task.advance))
            task.summary = f"{found:.3f} bits/byte"
        return found


@dataclass(frozen=True, kw_only=True)
class _FitTeacher(PipelineStage):
    """A teacher that is trained in the run. ``section``: how."""

    data: Data
    section: Training

    @property
    def name(self) -> str:
        return TEACHER

    def n_threads(self, up: Facts) -> int:
        return int(self.threads or up[MACHINE]["teacher_threads"])

    def is_undisturbed(self, up: Facts) -> bool:
        return self.n_threads(up) > 1

    def outputs(self) -> Sequence[str]:
        return (TEACHER,)

    def partial(self) -> Sequence[str]:
        return (f"{TRAINING}/checkpoints",)

    def share_done(self, folder: Path) -> float | None:
        return tokens_of_newest(folder / self.partial()[0]) / self.section.tokens

    def scratch(self) -> Sequence[str]:
        return self.partial()

    def _fit(self, lm: CausalLM, title: str, text: Text, up: Facts, context: Context) -> dict[str, Plain]:
        """Train on the corpus and save in the run folder; goes on from its checkpoints."""
        section = self.section.model_copy(update={"precision": precision(self.section.precision, up[MACHINE])})
        place = "teacher.correct" if isinstance(section, Correction) else "teacher.pretraining"
        job = Fit({TEACHER: lm}, [LossTerm(TEACHER)], text.train, self.data, section, place, teachers={})
        result = job.run(context.folder / TRAINING, context, title)
        save_model(lm, context.folder / TEACHER)
        pool().forget(str(context.folder / TEACHER))
        return result


@dataclass(frozen=True, kw_only=True)
class CorrectedTeacher(_FitTeacher):
    """A given teacher, tuned on the data before it teaches."""

    max_documents: int
    needs = (MACHINE, DATA, GIVEN, UNTUNED)

    def key(self, up: Facts) -> dict[str, Plain]:
        return {
            "teacher": {"weights": up[GIVEN]["fingerprint"], "correct": settings(self.section, up[MACHINE])},
            "data": data_key(self.data, up[DATA]),
        }

    def work(self, up: Facts, context: Context) -> dict[str, Plain]:
        section, text = self.section, open_text(context.folder)
        assert isinstance(section, Correction)
        given = teacher_spec(up, context.folder, GIVEN)
        with lease_teacher(given, text, trainable=True) as lm:
            if section.lora is not None:
                with under("teacher.correct.lora"):
                    lm = with_lora(lm, section.lora, seed=0)
            result = self._fit(lm, "teacher correction", text, up, context)
        spec = PathModel(path=TEACHER, dtype=given.dtype)
        tuned = spec.model_copy(update={"path": str(context.folder / TEACHER)})
        before = up[UNTUNED]["bits_per_byte"]
        after = UntunedTeacher(data=self.data, max_documents=self.max_documents).measured(
            tuned, context, "the tuned teacher"
        )
        with lease_teacher(tuned, text) as lm:
            facts = _facts(lm)
        said = (
            f"teacher: tuned on {result['tokens']:,} tokens first; held-out text took {before:.3f} bits per byte, then "
            f"{after:.3f}"
        )
        worse = "it is worse for it: lower teacher.correct.lr, or leave `correct` out"
        return {
            "spec": spec.model_dump(mode="json"),
            "given": False,
            **result,
            "before": before,
            "after": after,
            **facts,
            "stored": up[GIVEN]["stored"],
            "notes": [*up[GIVEN]["notes"], said, *skipped_notes(TEACHER, result)],
            "warnings": [worse] if after > before else [],
        }


@dataclass(frozen=True, kw_only=True)
class TrainedTeacher(_FitTeacher):
    """A teacher that starts from nothing, or from the cache if the same one was trained before."""

    teacher: ConfigTeacher
    needs = (MACHINE, DATA)

    def key(self, up: Facts) -> dict[str, Plain]:
        teacher = self.teacher
        pretraining = settings(teacher.pretraining, up[MACHINE])
        return {
            "teacher": {"config": teacher.config, "dtype": teacher.dtype, "pretraining": pretraining},
            "data": data_key(self.data, up[DATA]),
        }

    def work(self, up: Facts, context: Context) -> dict[str, Plain]:
        text, home = open_text(context.folder), context.folder / TEACHER
        spec = PathModel(path=TEACHER, dtype=self.teacher.dtype)
        shelf = Shelf("teachers", fingerprint(self.key(up), self.n_threads(up)))
        if self.teacher.pretraining.cache and shelf.is_whole():
            shelf.take(home)
            with context.task("teacher") as task:
                task.summary = "from the cache"
            result: dict[str, Any] = {"seconds": 0.0, "cached": True}
        else:
            bare = ConfigModel(config=self.teacher.config, dtype=self.teacher.dtype)
            with under(TEACHER):
                lm = load_model(bare, text.tokenizer, seq_len=self.data.seq_len, device=device())
            require_packing(lm, self.data)
            result = {**self._fit(lm, "teacher", text, up, context), "cached": False}
            if self.teacher.pretraining.cache:
                try:
                    shelf.put(home)
                except OSError as error:  # a full or read-only home must not cost the run
                    context.warn(f"the teacher was not kept in the cache ({error.strerror})")
        with lease_teacher(spec.model_copy(update={"path": str(home)}), text) as lm:
            facts = _facts(lm)
        return {
            "spec": spec.model_dump(mode="json"),
            "given": False,
            **result,
            **facts,
            "notes": skipped_notes(TEACHER, result),
        }


def skipped_notes(name: str, facts: Mapping[str, Plain]) -> list[str]:
    """What is to be said of updates that were left out."""
    return [
        f"{name}: {n:,} of {facts['steps']:,} updates{f' of {learner}' if learner != name else ''} were skipped, their "
        "gradients were not finite"
        for learner, n in facts.get("skipped", {}).items()
    ]
