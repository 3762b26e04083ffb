"""Training one technique with one seed: an arm of the comparison."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.data.chat import MASKED, WORDS, Encoded
from limbeck.data.corpus import Corpus, open_corpus, write_encoded
from limbeck.data.prompts import prompts_of
from limbeck.display import Display
from limbeck.errors import InputError, RecipeError
from limbeck.files import whole_folder
from limbeck.models.generate import Sampling
from limbeck.models.language_model import LanguageModel
from limbeck.models.load import load_model, reinitialised, with_lora
from limbeck.recipe import Co, ConfigStudent, Hard, Recipe, Soft, Technique, Writing, fingerprint
from limbeck.run.check import check_packs, student_key
from limbeck.run.folder import RunFolder
from limbeck.run.prepare import Prepared, data_inputs, make_batches, recipe_keys, save_model, settings
from limbeck.teachers.local import LocalTeacher
from limbeck.training.cohort import Cohort, HiddenLesson, Lesson, Member
from limbeck.training.loop import Peak, train
from limbeck.training.meter import loss_said
from limbeck.training.techniques import TEACHER, hidden_lessons, lessons_of, matched_layers, needs_teacher


@dataclass(frozen=True)
class Arm:
    """One technique, one seed."""

    index: int
    technique: Technique
    seed: int

    @property
    def name(self) -> str:
        return f"{self.technique.label}-seed{self.seed}"

    def folder(self, run: Path) -> Path:
        return run / "arms" / self.name

    def model(self, run: Path, member: str) -> Path:
        """Where a trained student is (or, after ``co``, the teacher)."""
        return self.folder(run) / (member if member == TEACHER else f"students/{member}")


def arms_of(recipe: Recipe) -> list[Arm]:
    return [Arm(i, technique, seed) for seed in recipe.seeds for i, technique in enumerate(recipe.techniques)]


def arm_inputs(recipe: Recipe, arm: Arm, prepared: Prepared) -> dict[str, Any]:
    """What an arm is made from: a change of any of it makes another arm."""
    students = {
        name: {**student.model_dump(mode="json"), **prepared.student_facts.get(name, {})}
        for name, student in recipe.cohort.items()
    }
    inputs: dict[str, Any] = {
        "technique": arm.technique.model_dump(mode="json", exclude={"name"}),
        "seed": arm.seed,
        "students": students,
        "training": settings(recipe.training),
        "data": data_inputs(recipe, prepared.data),
    }
    if arm.technique.kind != "alone":
        inputs["teacher"] = prepared.teacher_facts["fingerprint"]
    return inputs


def finished_arm(recipe: Recipe, arm: Arm, prepared: Prepared, folder: RunFolder) -> dict[str, Any] | None:
    """Facts about an arm that is trained, None for one that is still to be.

    Raises:
        RunFolderError: it was trained with other settings.
    """
    members = [*recipe.cohort, *([TEACHER] if isinstance(arm.technique, Co) else [])]
    home = arm.folder(folder.path)
    return folder.done(
        f"train-{arm.name}",
        arm_inputs(recipe, arm, prepared),
        made=[arm.model(folder.path, member) for member in members],
        under_way=[home / "checkpoints"],
        keys={"technique": f"techniques.{arm.index}", **recipe_keys(recipe)},
    )


def train_arm(recipe: Recipe, arm: Arm, prepared: Prepared, folder: RunFolder, display: Display) -> dict[str, Any]:
    """Train an arm's students (or go on with them, or find them done). Returns facts about it."""
    kept = finished_arm(recipe, arm, prepared, folder)
    if kept is not None:
        shutil.rmtree(arm.folder(folder.path) / "checkpoints", ignore_errors=True)  # what a kill at the end left
        display.kept(arm.name)
        return kept
    corpus = prepared.train
    if isinstance(arm.technique, Hard | Soft) and arm.technique.writing is not None:
        corpus = write_text(recipe, arm.technique.writing, prepared, folder, display)
    section, key = recipe.training, f"techniques.{arm.index}"
    members = {name: Member(_learner(recipe, name, prepared, arm.seed), learns=True) for name in recipe.cohort}
    lrs: dict[str, Peak] = {}
    if needs_teacher(arm.technique):
        learns = isinstance(arm.technique, Co)
        teacher = prepared.load_teacher(recipe.data.seq_len)
        if isinstance(arm.technique, Co):
            if arm.technique.teacher_start == "scratch":
                teacher = reinitialised(teacher, arm.seed)
            named = arm.technique.teacher_lr is not None
            lrs[TEACHER] = Peak(arm.technique.peak_lr(section.lr), f"{key}.teacher_lr" if named else "training.lr")
        members[TEACHER] = Member(teacher, learns)
    if section.gradient_checkpointing:
        for member in members.values():
            if member.learns:
                member.lm.model.gradient_checkpointing_enable()
    lessons: list[Lesson | HiddenLesson] = [
        *lessons_of(arm.technique, list(recipe.cohort), key),
        *_hidden(recipe, arm, prepared, members),
    ]
    try:
        cohort = Cohort(members, lessons, section.precision)
    except ValueError as error:  # a layer that does not exist: known only now that the models are here
        raise RecipeError(str(error), key=f"{key}.hidden.layers", fix="Layers count from 0") from None
    batches = make_batches(corpus, recipe.data, section, seed=arm.seed)
    home = arm.folder(folder.path)
    with display.stage(arm.name, section.tokens, "tokens") as bar:
        result = train(
            cohort, batches, section, home, seed=arm.seed, lrs=lrs,
            on_step=lambda step, steps, tokens, losses: bar.update(tokens, loss_said(losses)),
        )  # fmt: skip
        for name, lm in cohort.learners.items():
            save_model(lm, arm.model(folder.path, name), _saved_dtype(recipe, name, prepared))
    facts = folder.finish(f"train-{arm.name}", {**result, "learners": sorted(cohort.learners)})
    # The result is saved and marked: the checkpoints are of no more use.
    shutil.rmtree(home / "checkpoints", ignore_errors=True)
    return facts


def _saved_dtype(recipe: Recipe, name: str, prepared: Prepared) -> str | None:
    """In which dtype a learner is saved: the recipe's, else that in which its teacher was stored."""
    asked = recipe.cohort[name].save_dtype if name in recipe.cohort else "teacher"
    return prepared.teacher_facts.get("stored") if asked == "teacher" else asked


def _hidden(recipe: Recipe, arm: Arm, prepared: Prepared, members: dict[str, Member]) -> list[HiddenLesson]:
    if TEACHER not in members:
        return []
    depth = members[TEACHER].lm.n_layers
    matched = {
        name: matched_layers(members[name].lm.n_layers, depth, prepared.student_facts.get(name, {}).get("layers"))
        for name in recipe.cohort
    }
    return hidden_lessons(arm.technique, matched)


def _learner(recipe: Recipe, name: str, prepared: Prepared, seed: int) -> LanguageModel:
    key = student_key(recipe, name)
    lm = load_model(prepared.students[name], prepared.tokenizer, key=key, seed=seed, seq_len=recipe.data.seq_len)
    check_packs(lm, recipe.data)
    student = recipe.cohort[name]
    if not isinstance(student, ConfigStudent) and student.lora is not None:
        return with_lora(lm, student.lora, seed, key=f"{key}.lora")
    return lm


# ----------------------------------------------------------------------------- the teacher writes


def write_text(recipe: Recipe, writing: Writing, prepared: Prepared, folder: RunFolder, display: Display) -> Corpus:
    """What the teacher writes, as a corpus; the same for every seed and every technique that asks for it.

    Every batch of answers is on disk before the next is asked for; a killed run asks for no batch twice.
    """
    wanted = writing.tokens or recipe.training.tokens
    inputs = {
        "writing": writing.model_dump(mode="json"),
        "precision": recipe.training.precision,
        "tokens": wanted,
        "data": data_inputs(recipe, prepared.data, pack=False),
        "teacher": prepared.teacher_facts["fingerprint"],
    }
    stage = f"text-{fingerprint(inputs)[:8]}"
    home = folder.path / "text" / stage
    facts = folder.done(stage, inputs, made=[home / "corpus"])
    if facts is None:
        journal = home.with_suffix(".jsonl")
        journal.parent.mkdir(parents=True, exist_ok=True)
        with display.stage("the teacher writes", wanted, "tokens") as bar:
            answers, tokens = _read_journal(journal)
            bar.update(tokens)
            if tokens < wanted:
                teacher = LocalTeacher(prepared.load_teacher(recipe.data.seq_len), recipe.training.precision)
                with journal.open("a") as out:
                    for batch in _written(teacher, writing, prepared.train, recipe.data.seq_len, len(answers)):
                        out.write(json.dumps(batch) + "\n")
                        out.flush()
                        os.fsync(out.fileno())
                        answers.append(batch)
                        tokens += sum(len(new) for _, new in batch)
                        bar.update(tokens)
                        if tokens >= wanted:
                            break
            with whole_folder(home) as scratch:
                write_encoded(scratch / "corpus", _encoded(answers), {"stage": stage})
        folder.finish(stage, {"tokens": tokens, "documents": sum(map(len, answers))})
    return open_corpus(home / "corpus")


def _read_journal(journal: Path) -> tuple[list[list[Any]], int]:
    """Batches that are whole; from the first torn line on, batches are written again."""
    if not journal.exists():
        return [], 0
    batches, good = [], 0
    with journal.open("r+b") as file:
        for line in file:
            try:
                batches.append([(list(prompt), list(new)) for prompt, new in json.loads(line)])
            except (ValueError, TypeError):
                break
            good += len(line)
        file.truncate(good)
    return batches, sum(len(new) for batch in batches for _, new in batch)


def check_writing(recipe: Recipe, corpus: Corpus) -> None:
    """Refuse to have text written where no document leaves room for it, before a teacher is tuned for it.

    Raises:
        InputError: names the technique.
    """
    for i, technique in enumerate(recipe.techniques):
        writing = technique.writing if isinstance(technique, Hard | Soft) else None
        if writing is not None and next(_prompts(writing, corpus, recipe.data.seq_len), None) is None:
            raise InputError(
                f"no document leaves room for an answer in rows of {recipe.data.seq_len} tokens",
                key=f"techniques.{i}.writing",
                fix="Raise data.seq_len, or lower prompt_tokens",
            )


def _prompts(writing: Writing, corpus: Corpus, seq_len: int) -> Iterator[list[int]]:
    room = 8  # an answer shorter than this teaches nothing
    for d in range(len(corpus)):
        for prompt in prompts_of(*corpus.document(d), writing.prompt_tokens, every=seq_len):
            if len(prompt) <= seq_len - room:
                yield prompt


def _written(
    teacher: LocalTeacher, writing: Writing, corpus: Corpus, seq_len: int, start: int
) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Batches of (prompt, answer) for ever, from number ``start``: every prompt in turn, then again."""
    found = list(_prompts(writing, corpus, seq_len))
    # Shuffled, so that a small budget covers the whole corpus.
    prompts = [found[i] for i in np.random.default_rng(writing.seed).permutation(len(found))]
    for number in range(start, 1_000_000_000):
        chosen = [prompts[(number * writing.batch_rows + i) % len(prompts)] for i in range(writing.batch_rows)]
        longest = max(len(prompt) for prompt in chosen)
        sampling = Sampling(
            max_new_tokens=min(writing.max_new_tokens or seq_len, seq_len - longest + 1),
            temperature=writing.temperature,
            top_p=writing.top_p,
            top_k=writing.top_k,
            seed=(writing.seed * 1_000_003 + number) % 2**32,  # a generator multiplies it once more
        )
        try:
            answers = dict(teacher.write(chosen, sampling))
        except InputError as error:
            raise InputError(error.what, key=TEACHER, fix=error.fix) from None
        yield [(chosen[i], answers[i]) for i in sorted(answers)]


def _encoded(batches: list[list[Any]]) -> Iterator[Encoded]:
    for batch in batches:
        for prompt, new in batch:
            yield Encoded([*prompt, *new], [MASKED] * len(prompt) + [WORDS] * len(new), 0)
