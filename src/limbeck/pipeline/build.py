"""From a recipe to stages. This is the only file of the pipeline that reads a whole recipe.

Stages are listed in the order in which they are run where they do not need each other: every model is measured as
soon as it is trained, so that a long run shows what it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck.data.chat.encode import MASKED, encode_batch
from limbeck.data.corpus import Enough
from limbeck.data.documents.document import Document
from limbeck.data.documents.sources import first_documents
from limbeck.errors import under
from limbeck.generation.prompts import sampling_of
from limbeck.generation.request import Request
from limbeck.generation.verify.judge import judge_settings
from limbeck.models.folders.saved import quiet
from limbeck.pipeline import checks
from limbeck.pipeline.beforehand.estimates import FIRST_DOCUMENTS
from limbeck.pipeline.checks_served import check_served, check_verifiers, endpoints_of, unreachable
from limbeck.pipeline.measuring.accuracy import AccuracyOfTeacher, AccuracyOfTrained
from limbeck.pipeline.measuring.evaluate import MeasureServed, MeasureTeacher, MeasureTrained
from limbeck.pipeline.measuring.speed import Speed
from limbeck.pipeline.results.comparison import Comparison
from limbeck.pipeline.results.report import Report
from limbeck.pipeline.sections import (
    existing_models,
    generation_of,
    generations_of,
    given_teacher,
    resolved,
    student_key,
    verifiers_of,
)
from limbeck.pipeline.served.capture import CaptureServed
from limbeck.pipeline.served.probe import ProbeSignals
from limbeck.pipeline.served.signals import ServedSignals, SignalsAsking
from limbeck.pipeline.shared.asking import Asking
from limbeck.pipeline.shared.base import given_tokenizer, located
from limbeck.pipeline.stages.capture import Capture
from limbeck.pipeline.stages.corpus import CorpusStage
from limbeck.pipeline.stages.cut import Cut
from limbeck.pipeline.stages.machine import Machine
from limbeck.pipeline.stages.teacher import GIVEN, CorrectedTeacher, GivenTeacher, TrainedTeacher, UntunedTeacher
from limbeck.pipeline.stages.train import Arm, Train
from limbeck.pipeline.stored.checks import biased, check_stored, check_windows, stored_signals
from limbeck.pipeline.text.generate import Generate
from limbeck.pipeline.text.probe import Probe
from limbeck.pipeline.text.questions import Questions, check_questions
from limbeck.pipeline.text.sample import Sample
from limbeck.pipeline.text.select import Select
from limbeck.recipe import (
    Co,
    ConfigModel,
    ConfigStudent,
    ConfigTeacher,
    CutStudent,
    Generation,
    PackageModel,
    PackageStudent,
    PathModel,
    PathStudent,
    Recipe,
    ServedTeacher,
    Signals,
    Soft,
    Technique,
    TrainedTokenizer,
    fingerprint,
)
from limbeck.recipe.verify import Judge
from limbeck.workflow.lock import run_path
from limbeck.workflow.stage import Stage

TRAIN_FLOOR = 16_000_000
"""Labels below which all documents to train on are tokenised, so that a small corpus is whole whatever the budget."""

HELDOUT_FLOOR = 4_000_000
"""The same for held-out documents."""

WHOLE = 1 << 62
"""Documents: all there are."""


def build(recipe: Recipe, *, workers: int = 1) -> list[Stage]:
    """The stages of a recipe, in order. Nothing is read but the recipe.

    Args:
        workers: processes that capture a teacher's signals side by side, one stage each.
    """
    threads = recipe.threads if isinstance(recipe.threads, int) else None
    common: dict[str, Any] = {"threads": threads, "keys": recipe_keys(recipe)}
    data, evaluation, teacher = recipe.data, recipe.evaluation, given_teacher(recipe)
    place, tokenized = _brings_tokenizer(recipe)
    machine = Machine(
        threads=threads,
        student=_trained_shape(recipe),
        teacher=_fitted(recipe),
        vocabulary=_to_be_trained(recipe),
        rows=recipe.training.micro_batch_size,
        seq_len=data.seq_len,
        arms=len(recipe.techniques) * len(recipe.seeds),
    )
    corpus = CorpusStage(
        data=data,
        tokenizer=recipe.tokenizer,
        teacher=tokenized,
        place=place,
        vocabulary=recipe.vocabulary,
        train=enough_to_train(recipe),
        heldout=Enough(HELDOUT_FLOOR, evaluation.max_documents),
        generations=generations_of(recipe),
        models=existing_models(recipe),
        **common,
    )
    stages: list[Stage] = [machine, corpus, *_teacher(recipe, common)]
    for name, student in recipe.named_students.items():
        if isinstance(student, CutStudent):
            stages.append(Cut(student=name, spec=student, data=data, place=student_key(recipe, name), **common))
    served = recipe.teacher if isinstance(recipe.teacher, ServedTeacher) else None
    measure = MeasureServed if served is not None else MeasureTeacher
    stages.append(measure(data=data, evaluation=evaluation, **common))
    compared, texts = _compared(recipe), _Texts(recipe, common)
    captures: dict[str, Capture] = {}
    for arm in compared.arms():
        text = texts.of(arm.index)
        stages += texts.new()
        found = _capture(recipe, arm.index, text.name if text is not None else None, texts.last, common)
        if found is not None and found.name not in captures:
            captures[found.name] = found
            if served is not None:  # signals are paid from the same budget
                texts.last = (found.name,)
            stages += found.side_by_side(workers)
        stages.append(_train(recipe, arm, text, common, found.name if found is not None else None))
        stages += [
            MeasureTrained(arm=arm, member=member, data=data, evaluation=evaluation, served=bool(served), **common)
            for member in compared.members(arm.technique)
        ]
    stages += _accuracy(recipe, compared, texts, common)
    if evaluation.speed_tokens and evaluation.samples:
        first = tuple(arm for arm in compared.arms() if arm.seed == recipe.seeds[0])
        members = {arm.name: arm.members(list(recipe.named_students)) for arm in first}
        speed = Speed(tokens=evaluation.speed_tokens, arms=first, members=members, served=bool(served), **common)
        stages.append(speed)
    stages.append(
        Report(
            title_=recipe.title or f"{Path(recipe.run).name}: what the students kept",
            compared=compared,
            teacher=teacher,
            vocabulary=recipe.vocabulary,
            recipe_yaml=resolved(recipe),
            served=served,
            upstream=tuple(stage.name for stage in stages),
        )
    )
    return stages


def _compared(recipe: Recipe) -> Comparison:
    students = tuple(recipe.named_students)
    single = recipe.student is not None
    return Comparison(recipe.techniques, recipe.seeds, students, single, recipe.evaluation.bootstrap)


def _brings_tokenizer(recipe: Recipe) -> tuple[str, PathModel | PackageModel | None]:
    """The model whose tokenizer is the run's, and its place: the teacher, or the student of one that is called."""
    if isinstance(recipe.teacher, ServedTeacher):
        for name, student in recipe.named_students.items():
            if isinstance(student, PathModel | PackageModel):
                return student_key(recipe, name), student
    return "teacher", given_teacher(recipe)


def _to_be_trained(recipe: Recipe) -> int | None:
    """Tokens of a tokenizer that is still to be trained; None for one that exists."""
    return recipe.tokenizer.train.vocab_size if isinstance(recipe.tokenizer, TrainedTokenizer) else None


def _trained_shape(recipe: Recipe) -> PathModel | PackageModel | ConfigModel:
    """What has the shape of what is trained most: a student, or the teacher that it is cut from."""
    student = next(iter(recipe.named_students.values()))
    if not isinstance(student, CutStudent):
        return student
    assert not isinstance(recipe.teacher, ServedTeacher)  # the recipe made sure
    return recipe.teacher


def _fitted(recipe: Recipe) -> PathModel | PackageModel | ConfigModel | None:
    """A teacher that is trained or corrected before it teaches."""
    teacher = recipe.teacher
    if isinstance(teacher, ServedTeacher):
        return None
    return teacher if isinstance(teacher, ConfigTeacher) or teacher.correct is not None else None


def _teacher(recipe: Recipe, common: dict[str, Any]) -> list[Stage]:
    teacher, data, documents = recipe.teacher, recipe.data, recipe.evaluation.max_documents
    if isinstance(teacher, ConfigTeacher):
        return [TrainedTeacher(teacher=teacher, section=teacher.pretraining, data=data, **common)]
    if isinstance(teacher, ServedTeacher):
        probes = {
            probe.name: probe
            for i in range(len(recipe.techniques))
            if (asked := _served_signals(recipe, i)) is not None
            for probe in [ProbeSignals(asked=asked, **common)]
        }
        return [Probe(teacher=teacher, asked=askings(recipe), **common), *probes.values()]
    if teacher.correct is None:
        return [GivenTeacher(spec=teacher, data=data, **common)]
    return [
        GivenTeacher(spec=teacher, data=data, name_=GIVEN, **common),
        UntunedTeacher(data=data, max_documents=documents, **common),
        CorrectedTeacher(section=teacher.correct, data=data, max_documents=documents, **common),
    ]


def askings(recipe: Recipe) -> tuple[Asking, ...]:
    """Who is asked over HTTP, and with which settings: a called teacher, its fallbacks, and judges."""
    teacher = recipe.teacher
    found: list[Asking] = []
    settings = {
        place: sampling_of(section) for place, section in generations_of(recipe).items() if is_sampled(recipe, section)
    }
    if recipe.evaluation.accuracy is not None:
        settings["evaluation.accuracy"] = Request(temperature=recipe.evaluation.accuracy.temperature)
    judges = {place: section for place, section in verifiers_of(recipe).items() if isinstance(section, Judge)}
    if isinstance(teacher, ServedTeacher) and (settings or judges):  # else it is asked for signals alone
        own = {place: judge_settings(section) for place, section in judges.items() if section.teacher is None}
        for place, endpoint in endpoints_of(teacher):
            found.append(Asking(place, endpoint, settings | (own if place == "teacher" else {})))
    for place, section in judges.items():
        if section.teacher is not None:
            found.append(Asking(f"{place}.teacher", section.teacher, {place: judge_settings(section)}))
    return tuple(found)


class _Texts:
    """The stages that make text for students, each once."""

    def __init__(self, recipe: Recipe, common: dict[str, Any]) -> None:
        self.recipe, self.common = recipe, common
        self.stages: dict[str, Stage] = {}
        self._told = 0
        self.last: tuple[str, ...] = ()
        """The last stage that writes the journal of a teacher that is called."""

    def of(self, index: int) -> Generate | Select | None:
        """The stage that makes the text of a technique; None: it learns the corpus."""
        recipe, generation = self.recipe, generation_of(self.recipe.techniques[index])
        served = recipe.teacher if isinstance(recipe.teacher, ServedTeacher) else None
        if generation is None:
            return None
        if not is_sampled(recipe, generation):
            text = Generate(
                generation=generation,
                data=recipe.data,
                tokens=generation.tokens or recipe.training.tokens,
                asked_precision=recipe.training.precision,
                **self.common,
            )
            self.stages.setdefault(text.name, text)
            return text
        if recipe.data.prompts:
            questions = Questions(data=recipe.data, **self.common)
            self.stages.setdefault(questions.name, questions)
        place = f"techniques.{index}"
        sample, like = self._sample(generation, place), None
        if generation.as_many_as is not None:
            labels = [technique.label for technique in recipe.techniques]
            other = self.of(labels.index(generation.as_many_as))
            like = other.name if other is not None else None
        chosen = Select(
            generation=generation,
            data=recipe.data,
            sample=sample.name,
            like=like,
            served=served,
            place=place,
            **self.common,
        )
        self.stages.setdefault(chosen.name, chosen)
        if served is not None and isinstance(generation.verify, Judge):  # it writes the journal, too
            self.last = (chosen.name,)
        return chosen

    def _sample(self, generation: Generation, place: str) -> Sample:
        recipe = self.recipe
        served = recipe.teacher if isinstance(recipe.teacher, ServedTeacher) else None
        sample = Sample(
            generation=generation,
            data=recipe.data,
            asked_precision=recipe.training.precision,
            served=served,
            journals=(served.journal or "") if served is not None else "",
            after=self.last,
            place=place,
            **self.common,
        )
        if sample.name not in self.stages:
            self.stages[sample.name] = sample
            if served is not None:  # a journal has one writer
                self.last = (sample.name,)
        return sample

    def new(self) -> list[Stage]:
        """Stages that were not told yet, in order."""
        found = list(self.stages.values())[self._told :]
        self._told = len(self.stages)
        return found


def is_sampled(recipe: Recipe, generation: Generation) -> bool:
    """Whether answers are asked for prompt by prompt, rather than so many tokens of text."""
    return generation.is_selected or bool(recipe.data.prompts) or isinstance(recipe.teacher, ServedTeacher)


def _accuracy(recipe: Recipe, compared: Comparison, texts: _Texts, common: dict[str, Any]) -> list[Stage]:
    section, data = recipe.evaluation.accuracy, recipe.data
    if section is None:
        return []
    served = recipe.teacher if isinstance(recipe.teacher, ServedTeacher) else None
    shared = {"section": section, "data": data, "judge": served, **common}
    examples = next((each.examples for each in generations_of(recipe).values() if each.examples), ())
    return [
        AccuracyOfTeacher(served=served, after=texts.last, examples=examples, **shared),
        *(AccuracyOfTrained(arm=arm, member=member, **shared) for arm, member in compared.models()),
    ]


def _capture(
    recipe: Recipe, index: int, text: str | None, after: tuple[str, ...], common: dict[str, Any]
) -> Capture | None:
    """The stage that has signals captured for a technique, and for all that ask for the same; None: its teacher
    answers every batch, if there is one.

    Args:
        text: the stage that writes what is learned; None: the corpus.
        after: the last stage that spends the budget of a teacher that is called.
    """
    asked = _asked(recipe.techniques[index])
    if asked is None:
        return None
    section, temperature, decides, _ = asked
    alike = [i for i, technique in enumerate(recipe.techniques) if _asked(technique) == asked]
    settings: dict[str, Any] = {
        "section": section,
        "temperature": temperature,
        "data": recipe.data,
        "training": recipe.training,
        "seeds": recipe.seeds,
        "arms": len(alike) * len(recipe.seeds),
        "text": text,
        "decides": decides,
        "place": f"techniques.{alike[0]}.signals",
        **{**common, "keys": {"rows": "training.tokens", **common["keys"]}},
    }
    if (served := _served_signals(recipe, alike[0])) is None:
        return Capture(**settings)
    probe = ProbeSignals(asked=served)
    return CaptureServed(teacher=served.teacher, probe=probe.name, after=after, **settings)


def signal_askings(recipe: Recipe, tokenizer: Any) -> list[SignalsAsking]:
    """What a called teacher is asked for besides text; nothing where the run's tokenizer is not known yet."""
    if tokenizer is None:
        return []
    found = [_served_signals(recipe, i) for i in range(len(recipe.techniques))]
    each = {fingerprint(asked.key): asked for asked in found if asked is not None}
    return [SignalsAsking(asked, tokenizer) for asked in each.values()]


def _served_signals(recipe: Recipe, index: int) -> ServedSignals | None:
    """What is asked of a teacher that is called so that a technique has its signals; None: nothing."""
    asked = _asked(recipe.techniques[index])
    if asked is None or not isinstance(recipe.teacher, ServedTeacher):
        return None
    return ServedSignals(recipe.teacher, asked[0], asked[1], f"techniques.{index}")


def _asked(technique: Technique) -> tuple[Signals, float, bool, Generation | None] | None:
    """What is asked of the teacher and kept on disk, or may be: settings, temperature, whether it is to be decided
    (`auto`), and of which text."""
    section = stored_signals(technique)
    if section is None:
        return None
    assert isinstance(technique, Soft)
    return section, technique.temperature, technique.signals == "auto", technique.generation


def _train(
    recipe: Recipe, arm: Arm, text: Generate | Select | None, common: dict[str, Any], capture: str | None
) -> Train:
    students = recipe.named_students
    teacher = recipe.teacher
    stored = None
    if not isinstance(teacher, ConfigTeacher | ServedTeacher):
        stored = GIVEN if teacher.correct is not None else "teacher"
    keys = {"technique": f"techniques.{arm.index}", **common["keys"]}
    return Train(
        arm=arm,
        students=students,
        places={name: student_key(recipe, name) for name in students},
        training=recipe.training,
        data=recipe.data,
        text=text.name if text is not None else None,
        stored=stored,
        capture=capture,
        **{**common, "keys": keys},
    )


def recipe_keys(recipe: Recipe) -> dict[str, str]:
    """How parts of the keys of stages are called in the recipe, for errors. The longer ones come first."""
    vocabulary = "student.vocabulary" if recipe.student is not None else "students.*.vocabulary"
    keys = {
        "data.fingerprint": "data.corpus",
        "data.documents": "training.tokens",
        "data.tokenizer": vocabulary if recipe.vocabulary is not None else "tokenizer",
        "vocabulary": vocabulary,
        "teacher.weights": "teacher",
        "teacher.files": "teacher",
        "chat_template": "tokenizer" if recipe.tokenizer is not None else "teacher",
    }
    for name in recipe.named_students:
        keys[f"students.{name}.fingerprint"] = "teacher"  # it was cut from another one
    for name in recipe.named_students:
        keys[f"students.{name}"] = student_key(recipe, name)
    return keys


def enough_to_train(recipe: Recipe) -> Enough:
    """Labels for the longest training of a recipe, so that none reads a document twice while another is unread."""
    asked = [TRAIN_FLOOR, recipe.training.tokens]
    if isinstance(recipe.teacher, ConfigTeacher):
        asked.append(recipe.teacher.pretraining.tokens)
    elif not isinstance(recipe.teacher, ServedTeacher) and recipe.teacher.correct is not None:
        asked.append(recipe.teacher.correct.tokens)
    prompts_asked = 0
    for generation in generations_of(recipe).values():
        if is_sampled(recipe, generation):
            prompts_asked = max(prompts_asked, generation.max_prompts or WHOLE)
            continue
        # There is a prompt every `seq_len` tokens; short answers take more prompts.
        prompts = -(-recipe.data.seq_len // (generation.max_new_tokens or recipe.data.seq_len))
        asked.append((generation.tokens or recipe.training.tokens) * prompts)
    return Enough(max(asked), prompts_asked)


# ------------------------------------------------------------------------------------------ check


@dataclass
class Checked:
    """What looking at a recipe has shown.

    Attributes:
        tokenizer: the run's; None for one that is still to be trained.
        notes: what people should know of its models.
        warnings: what is hardly meant so.
        parameters: of every model, by its name (``teacher``, and students). Of a student that keeps only the tokens of
            its data, as many as it has at most.
        read: of the documents that were tokenised, how many there are, their tokens, and those that are labels.
    """

    tokenizer: Any
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    parameters: dict[str, int] = field(default_factory=dict)
    read: tuple[int, int, int] | None = None


def check(recipe: Recipe, first: Sequence[Document] | None = None) -> Checked:
    """Refuse what cannot work, spending nothing: configurations, headers and tokenizers are read, never weights.

    What it finds is kept for files and sections that are the same (``commands/checking/look.py``). So what it asks of
    `training`, `evaluation` or the machine has to be in the key there, or be asked every time, in ``look``.

    Args:
        recipe: the recipe.
        first: documents to tokenise; default: the first of every source.

    Raises:
        RecipeError: names the key and the fix.
    """
    quiet()
    run_path(recipe.run)
    data, students = recipe.data, recipe.named_students
    checks.check_techniques(recipe.techniques, list(students), data)
    check_stored(recipe.techniques)
    notes = check_verifiers(verifiers_of(recipe), isinstance(recipe.teacher, ServedTeacher))
    if first is None:
        first = [document for _, document in first_documents(data.corpus, FIRST_DOCUMENTS)]
    absent = _unreachable(recipe)
    found = Checked(run_tokenizer(recipe) if not absent else None, [*notes, *absent.values()])
    sampled = {place: section for place, section in generations_of(recipe).items() if is_sampled(recipe, section)}
    found.warnings += check_questions(data, sampled)
    if found.tokenizer is not None:
        encoded = encode_batch(first, found.tokenizer, data.date)
        masks = [each.loss_mask for each in encoded]
        labels = sum(sum(kind != MASKED for kind in mask) for mask in masks)
        found.read = len(encoded), sum(map(len, masks)), labels
    if isinstance(recipe.teacher, ServedTeacher):
        _check_served(recipe, recipe.teacher, found, absent)
        return found
    teacher = _check_teacher(recipe, found)
    check_windows(recipe.techniques, teacher.lm.traits.max_positions)
    found.warnings += biased(recipe.techniques)
    found.parameters["teacher"] = teacher.n_parameters(_to_be_trained(recipe))
    for name, student in students.items():
        key = student_key(recipe, name)
        if isinstance(student, CutStudent):
            with under(key):
                found.parameters[name] = checks.check_cut(teacher, student)
            layers = teacher.lm.n_layers if student.layers is None else student.layers
            depth = layers if isinstance(layers, int) else len(layers)
            checks.check_layer_pairs(recipe.techniques, depth, teacher.lm.n_layers)
            if student.lora is not None:
                with under(f"{key}.lora"):
                    checks.check_adapters(teacher, student.lora)  # a cut model has its teacher's modules
            continue
        checks.check_layer_pairs(recipe.techniques, None, teacher.lm.n_layers)
        model = _check_student(recipe, student, name, found)
        found.warnings += checks.not_smaller(model, teacher, key)
    return found


def _check_student(
    recipe: Recipe, student: ConfigStudent | PathStudent | PackageStudent, name: str, found: Checked
) -> checks.Inspected:
    key = student_key(recipe, name)
    with under(key):
        if not isinstance(student, ConfigStudent):
            checks.check_tokenizer_of(student, found.tokenizer)
        model = checks.inspect(student, found.tokenizer, recipe.data)
    checks.check_layer_pairs(recipe.techniques, model.lm.n_layers, None)
    checks.check_hidden(model, recipe.techniques)
    with under("training"):
        checks.check_checkpointing(model, recipe.training)
    if not isinstance(student, ConfigStudent) and student.lora is not None:
        with under(f"{key}.lora"):
            checks.check_adapters(model, student.lora)
    found.parameters[name] = model.n_parameters(_to_be_trained(recipe))
    return model


def _unreachable(recipe: Recipe) -> dict[str, str]:
    """Of a recipe whose teacher is called, students on a hub that cannot be reached now, by their place."""
    if not isinstance(recipe.teacher, ServedTeacher):
        return {}
    lines = {
        student_key(recipe, name): unreachable(student, student_key(recipe, name))
        for name, student in recipe.named_students.items()
    }
    return {place: line for place, line in lines.items() if line is not None}


def _check_served(recipe: Recipe, teacher: ServedTeacher, found: Checked, absent: Mapping[str, str]) -> None:
    """A teacher that is called. No server is asked: the run shows what it reveals, and whether the key is right.

    Args:
        absent: places of students that cannot be read now.
    """
    found.notes += check_served(teacher, recipe.data, generations_of(recipe))
    for asking in askings(recipe):
        asking.check()
    for name, student in recipe.named_students.items():
        assert not isinstance(student, CutStudent)  # the recipe made sure
        if student_key(recipe, name) not in absent:
            _check_student(recipe, student, name, found)


def _check_teacher(recipe: Recipe, found: Checked) -> checks.Inspected:
    section = recipe.teacher
    assert not isinstance(section, ServedTeacher)
    with under("teacher"):
        teacher = checks.inspect(section, found.tokenizer, recipe.data)
    trained = any(isinstance(technique, Co) for technique in recipe.techniques) or any(
        isinstance(student, CutStudent) for student in recipe.named_students.values()
    )
    if trained:  # an arm trains the teacher, or a student that is cut from it and is of its architecture
        with under("training"):
            checks.check_checkpointing(teacher, recipe.training)
    if isinstance(section, ConfigTeacher):
        with under("teacher.pretraining"):
            checks.check_checkpointing(teacher, section.pretraining)
        return teacher
    checks.check_hidden(teacher, recipe.techniques)
    if recipe.vocabulary is not None:
        with under(student_key(recipe, next(iter(recipe.named_students))) + ".vocabulary"):
            checks.check_vocabulary(teacher, recipe.vocabulary)
    if section.correct is not None:
        with under("teacher.correct"):
            checks.check_checkpointing(teacher, section.correct)
        if section.correct.lora is not None:
            with under("teacher.correct.lora"):
                checks.check_adapters(teacher, section.correct.lora)
    return teacher


def run_tokenizer(recipe: Recipe) -> Any:
    """A run's tokenizer before anything is cut; None for one that is still to be trained. No weights are loaded."""
    place, model = _brings_tokenizer(recipe)
    with under(place):
        found = located(model)[0] if model is not None else None
    return given_tokenizer(recipe.tokenizer, found, recipe.data.end, place)
