"""Measuring the models of a run on its held-out documents; every measurement is kept on disk."""

from __future__ import annotations

import dataclasses
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.data.chat import words_asked
from limbeck.data.corpus import Corpus
from limbeck.data.packing import Rows, collate
from limbeck.data.prompts import first_prompts
from limbeck.display import Display
from limbeck.errors import InputError
from limbeck.evaluation.gap import Measured, dropped_share, measure
from limbeck.files import whole_folder
from limbeck.models.generate import Sampling, generate
from limbeck.models.language_model import LanguageModel
from limbeck.models.load import load_model
from limbeck.models.restricted import RestrictedModel
from limbeck.recipe import Evaluation, PathModel, Recipe
from limbeck.run.arms import Arm, arm_inputs
from limbeck.run.folder import RunFolder
from limbeck.run.prepare import Prepared, data_inputs, load_teacher
from limbeck.run.weights import folder_of
from limbeck.training.diagnosis import fault_of
from limbeck.training.techniques import TEACHER

SAMPLE_TEMPERATURE = 0.7
REQUIRED = ("nats", "tokens", "n_bytes", "nats_words", "tokens_words")  # sums that every model has


@dataclasses.dataclass(frozen=True)
class Examined:
    """A model measured: its sums per document, and facts (parameters, texts)."""

    measured: Measured
    facts: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Heldout:
    """The documents that are measured.

    Attributes:
        corpus: the first held-out documents by hash, so that a larger number only adds to them.
        rows: they as rows.
        own_rows: the same in the teacher's own tokens, if it has more than the run; None: it has the run's.
    """

    corpus: Corpus
    rows: Rows
    own_rows: Rows | None

    @classmethod
    def of(cls, recipe: Recipe, corpus: Corpus, own: Corpus | None) -> Heldout:
        seq_len, corpus = recipe.data.seq_len, _first(corpus, recipe.evaluation)
        own_rows = Rows(_first(own, recipe.evaluation), seq_len, pack=False) if own is not None else None
        return cls(corpus, Rows(corpus, seq_len, pack=False), own_rows)

    def measure(
        self,
        lm: LanguageModel,
        against: LanguageModel | None = None,
        progress: Callable[[int], None] = lambda n: None,
        key: str = TEACHER,
    ) -> Measured:
        """A model, and its distance to a teacher.

        Raises:
            InputError: the model's logits are not finite on a document; names ``key``.
        """
        measured = measure(lm, self.rows, against, progress=progress)
        if self.own_rows is not None and lm.own_tokenizer is not lm.tokenizer:
            # A teacher knows the text in its own tokens, not in the pieces that its students read; nats over
            # the same documents compare, and stay counted per token of the students'.
            whole = measure(LanguageModel(lm.model, lm.own_tokenizer), self.own_rows)
            measured = dataclasses.replace(measured, nats=whole.nats, nats_words=whole.nats_words)
        failed = np.flatnonzero(~np.isfinite(measured.nats))
        if len(failed):
            batches = (collate([self.rows[r]]).to(lm.device) for r in self._rows_of(int(failed[0])))
            raise fault_of(lm, batches, key) or InputError(
                f"its loss is not finite on {len(failed)} held-out documents", key=key, fix="Use another model"
            )
        return measured

    def _rows_of(self, document: int) -> list[int]:
        return [r for r in range(len(self.rows)) if self.rows.document_of(r) == document]


def bits_per_byte(measured: Measured) -> float:
    """Over the words alone; NaN where the documents have none."""
    n_bytes = float(measured.n_bytes.sum())
    return float(measured.nats_words.sum()) / n_bytes / math.log(2) if n_bytes else math.nan


def _first(corpus: Corpus, evaluation: Evaluation) -> Corpus:
    n = min(evaluation.max_documents, len(corpus))
    return dataclasses.replace(
        corpus,
        starts=corpus.starts[:n],
        lengths=corpus.lengths[:n],
        n_bytes=corpus.n_bytes[:n],
        keys=corpus.keys[:n],
    )


class Examiner:
    """Examines models against one teacher, which is loaded when the first is asked for."""

    def __init__(self, recipe: Recipe, prepared: Prepared, text: Heldout, folder: RunFolder, display: Display) -> None:
        self.recipe, self.prepared, self.folder, self.display = recipe, prepared, folder, display
        self.text_measured, self.corpus = text, text.corpus
        self._teacher: LanguageModel | None = None

    @property
    def teacher(self) -> LanguageModel:
        if self._teacher is None:
            self._teacher = self.prepared.load_teacher()
        return self._teacher

    def forget_teacher(self) -> None:
        """Let its memory go while others train."""
        self._teacher = None

    def examine_teacher(self) -> Examined:
        return self._examine(TEACHER, {"data": data_inputs(self.recipe, self.prepared.data), **self._taught_by()}, None)

    def examine(self, arm: Arm, member: str) -> Examined:
        spec = self._spec(arm, member)
        # Of `alone` too, the distance to the teacher depends on the teacher.
        inputs = {**arm_inputs(self.recipe, arm, self.prepared), **self._taught_by()}
        return self._examine(f"{arm.name}-{member}", inputs, spec)

    def load(self, arm: Arm | None, member: str) -> LanguageModel:
        """A trained model of an arm, or without one the teacher."""
        return self.teacher if arm is None else self._load(self._spec(arm, member))

    def weights(self, arm: Arm | None, member: str) -> Path:
        """The folder that ``load`` reads."""
        return folder_of(self.prepared.teacher if arm is None else self._spec(arm, member))

    def _spec(self, arm: Arm, member: str) -> PathModel:
        return PathModel(path=str(arm.model(self.folder.path, member)), dtype="auto")

    def _taught_by(self) -> dict[str, Any]:
        return {"teacher": self.prepared.teacher_facts["fingerprint"]}

    def _load(self, spec: PathModel) -> LanguageModel:
        """A trained student, or the teacher after `co`: which may have a vocabulary of its own."""
        if Path(spec.path).name == TEACHER:
            return load_teacher(spec, self.prepared.tokenizer, self.prepared.kept)
        return load_model(spec, self.prepared.tokenizer, key="the trained student")

    def _examine(self, name: str, inputs: dict[str, Any], spec: PathModel | None) -> Examined:
        evaluation = self.recipe.evaluation
        stage = f"measure-{name}"
        home = self.folder.path / "measured" / name
        inputs = {"evaluation": evaluation.model_dump(mode="json", exclude={"bootstrap", "speed_tokens"}), **inputs}
        facts = self.folder.done(stage, inputs, derived=True, made=[home])
        measured = read_measured(home) if facts is not None else None
        if facts is not None and measured is not None:
            return Examined(measured, facts)
        with self.display.stage(f"measure {name}", len(self.text_measured.rows), "rows") as bar:
            lm = self.teacher if spec is None else self._load(spec)
            against = None if spec is None else self.teacher
            measured = self.text_measured.measure(lm, against, bar.advance, TEACHER if spec is None else name)
            bar.note = _in_a_line(measured)
            with whole_folder(home) as scratch:
                np.savez(
                    scratch / "documents.npz",
                    keys=self.corpus.keys,
                    **{k: v for k, v in vars(measured).items() if v is not None},
                )
            facts = {
                "parameters": lm.parameters(),
                "samples": self._samples(lm),
            }
            if spec is None and isinstance(lm, RestrictedModel):
                facts["dropped"] = dropped_share(lm, self.text_measured.rows)
        return Examined(measured, self.folder.finish(stage, facts))

    def prompts(self) -> list[tuple[list[int], list[int]]]:
        """(prompt, what really follows) of the first held-out documents."""
        evaluation = self.recipe.evaluation
        pairs = first_prompts(self.corpus, evaluation.samples, self.recipe.data.seq_len)
        return [(prompt, rest[: evaluation.sample_tokens]) for prompt, rest in pairs]

    def text(self, ids: list[int]) -> str:
        return str(self.prepared.tokenizer.decode(ids, skip_special_tokens=True))

    def asked(self, prompt: list[int]) -> str:
        """A prompt as people read it: the question without the template around it."""
        return words_asked(prompt, self.prepared.tokenizer)

    def _samples(self, lm: LanguageModel) -> list[str]:
        prompts = [prompt for prompt, _ in self.prompts()]
        if not prompts:
            return []
        sampling = Sampling(self.recipe.evaluation.sample_tokens, temperature=SAMPLE_TEMPERATURE, seed=0)
        answers = dict(generate(lm, prompts, sampling, batch_rows=len(prompts)))
        return [self.text(answers[i]) for i in range(len(prompts))]


def _in_a_line(measured: Measured) -> str:
    said = f"{bits_per_byte(measured):.3f} bits/byte"
    if measured.kl is not None:
        said += f", KL {measured.kl.sum() / measured.tokens.sum():.3f}"
    return said


def read_measured(home: Path) -> Measured | None:
    """What was measured, None if the file is torn or of an older version: it is then measured again."""
    try:
        with np.load(home / "documents.npz", allow_pickle=False) as arrays:
            optional = {name: arrays.get(name) for name in ("kl", "agreement")}
            return Measured(**{name: arrays[name] for name in REQUIRED}, **optional)
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None
