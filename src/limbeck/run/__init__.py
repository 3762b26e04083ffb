"""A run: stages in order, each marked when done; calling it again goes on where it stopped."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError

from limbeck.data.corpus import open_corpus
from limbeck.display import Display
from limbeck.errors import MachineError
from limbeck.files import write_whole
from limbeck.models.tokenizer import OTHER
from limbeck.recipe import Recipe
from limbeck.report.card import model_card
from limbeck.report.html import render
from limbeck.report.model import ReportData
from limbeck.run.arms import arms_of, check_writing, finished_arm, train_arm
from limbeck.run.check import check, check_ids
from limbeck.run.data import prepare_data
from limbeck.run.folder import RunFolder, run_path
from limbeck.run.measure import Examiner, Heldout
from limbeck.run.prepare import OWN_HELDOUT, Prepared, kept_tokens
from limbeck.run.provenance import command, machine, versions
from limbeck.run.results import build
from limbeck.run.teacher import correction_said, cut_students, is_worse, prepare_teacher
from limbeck.run.timing import time_models, timed_models
from limbeck.training.techniques import TEACHER


def run(recipe: Recipe, display: Display | None = None) -> ReportData:
    """Do what a recipe says, or go on with it, and write the report.

    Args:
        recipe: from :func:`limbeck.load_recipe`.
        display: where progress is shown; default: the terminal.

    Returns:
        What the report shows. The run folder holds ``report.html`` and, below ``arms/``, the students
        as plain ``save_pretrained`` folders.

    Raises:
        LimbeckError: what the user can mend: the recipe, the input, the run folder.
    """
    display = display or Display()
    torch.set_num_threads(recipe.threads or os.cpu_count() or 1)
    with RunFolder(run_path(recipe.run)) as folder, _naming(folder.path):
        origins = check(recipe)
        for note in origins.notes:
            display.note(note)
        tokenizer, data = prepare_data(recipe, folder, origins.tokenizer, origins.teacher, display)
        home = folder.path / "data"
        train, heldout = open_corpus(home / "train"), open_corpus(home / "heldout")
        kept = kept_tokens(folder.path)
        check_writing(recipe, train)
        if kept is None:  # a cut vocabulary has no token without a row
            check_ids(origins, tokenizer, [train, heldout])
        own = open_corpus(home / OWN_HELDOUT) if kept is not None else None
        text = Heldout.of(recipe, heldout, own)
        teacher, facts = prepare_teacher(recipe, origins, folder, tokenizer, kept, train, text, data, display)
        prepared = Prepared(tokenizer, train, heldout, data, teacher, facts, {}, {}, origins.notes, kept, own)
        _say_what_the_cut_costs(prepared, display)
        _say_what_the_correction_did(prepared, display)
        _say_what_was_skipped("teacher", prepared.teacher_facts, prepared, display)
        cut_students(recipe, origins, folder, prepared, display)
        for arm in arms_of(recipe):  # what cannot go on is refused before anything is spent
            finished_arm(recipe, arm, prepared, folder)
        _write_provenance(recipe, folder)
        examiner = Examiner(recipe, prepared, text, folder, display)
        _say_what_was_dropped(examiner.examine_teacher().facts, prepared, display)
        arm_facts = {}
        for arm in arms_of(recipe):  # each is measured as soon as it is trained: a long run shows what it has
            examiner.forget_teacher()
            arm_facts[arm.name] = train_arm(recipe, arm, prepared, folder, display)
            _say_what_was_skipped(arm.name, arm_facts[arm.name], prepared, display)
            for member in arm_facts[arm.name]["learners"]:
                examiner.examine(arm, member)
        learners = {name: facts["learners"] for name, facts in arm_facts.items()}
        timed = time_models(examiner, timed_models(recipe, arms_of(recipe), learners), arm_facts)
        report = build(recipe, prepared, examiner, arm_facts, timed, folder.path)
        _write_cards(recipe, report, arm_facts, folder, prepared)
        write_whole(folder.path / "report.html", render(report))
        return report


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Say of a disk that is full where it is (numpy and safetensors do not), and of memory what needs less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        raise MachineError(
            "there is not enough memory",
            key="training.batch_rows",
            fix="Lower it and raise training.accumulation, or set training.gradient_checkpointing, or take a "
            "smaller model",
        ) from error
    except OSError as error:
        if error.errno is None and "written" in str(error):  # numpy counts what it could not write
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        if error.errno is not None and error.filename is None:
            error.filename = str(folder)
        raise
    except SafetensorError as error:
        if "I/O error" in str(error):
            raise OSError(errno.EIO, str(error), str(folder)) from error
        raise


def _is_lack_of_memory(error: Exception) -> bool:
    """On the CPU torch has no class of its own for it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _say_what_the_cut_costs(prepared: Prepared, display: Display) -> None:
    """Text with dropped tokens falls into pieces: more of them to read, and not those the teacher learned."""
    if prepared.kept is None or prepared.heldout_own is None:
        return
    both = min(len(prepared.heldout), len(prepared.heldout_own))  # of a large corpus, one may hold more of it
    ours, own = (int(corpus.lengths[:both].sum()) for corpus in (prepared.heldout, prepared.heldout_own))
    more = 100 * (ours / max(own, 1) - 1)
    prepared.note(
        f"vocabulary: {prepared.kept.size:,} of the teacher's {prepared.kept.teacher_size:,} tokens; held-out text "
        f"takes {abs(more):.1f}% {'fewer' if more < 0 else 'more'} of them than of the teacher's own",
        display,
    )


def _say_what_was_dropped(teacher: dict[str, Any], prepared: Prepared, display: Display) -> None:
    if "dropped" in teacher:
        share = f"{100 * teacher['dropped']:.1f}%"
        prepared.note(f"vocabulary: the teacher gives {share} of its probability to tokens left out", display)


def _say_what_the_correction_did(prepared: Prepared, display: Display) -> None:
    said = correction_said(prepared.teacher_facts)
    if said is not None:
        prepared.note(said, display)
        if is_worse(prepared.teacher_facts):
            display.warn("it is worse for it: lower teacher.correct.lr, or leave `correct` out")


def _say_what_was_skipped(name: str, facts: dict[str, Any], prepared: Prepared, display: Display) -> None:
    for learner, n in facts.get("skipped", {}).items():
        of = f" of {learner}" if learner != name else ""
        prepared.note(
            f"{name}: {n:,} of {facts['steps']:,} updates{of} were skipped, their gradients were not finite", display
        )


def _write_provenance(recipe: Recipe, folder: RunFolder) -> None:
    """The resolved recipe, and a line for every process that worked on the run."""
    resolved = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_whole(folder.path / "recipe.yaml", resolved)
    path = folder.path / "run.json"
    try:
        history = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        history = []
    now = {"command": command(), "versions": versions(), "machine": machine(), "seeds": list(recipe.seeds)}
    if not history or history[-1] != now:
        history.append(now)
    write_whole(path, json.dumps(history, indent=1))


def _origin(prepared: Prepared, member: str) -> list[str]:
    """How a student was cut, if it was."""
    if member not in prepared.student_facts:
        return []
    layers = ", ".join(map(str, prepared.student_facts[member]["layers"]))
    said = f"It started from its teacher's own weights: the teacher's layers {layers} (from 0)"
    if prepared.kept is not None:
        said += f", and {prepared.kept.size:,} of its {prepared.kept.teacher_size:,} tokens"
    return [f"{said}."]


def _write_cards(
    recipe: Recipe, report: ReportData, arm_facts: dict[str, Any], folder: RunFolder, prepared: Prepared
) -> None:
    notes, kept = [], prepared.kept
    if kept is not None and kept.other is not None:
        notes.append(
            f"Token {kept.other}, {OTHER}, stands for all tokens that this model does not have. transformers never "
            f'writes it; other servers must be told: in a request to vLLM "logit_bias": {{"{kept.other}": -100}}, for '
            f"llama.cpp --logit-bias {kept.other}-inf."
        )
    for arm in arms_of(recipe):
        for member in arm_facts[arm.name]["learners"]:
            student = member != TEACHER
            card = model_card(
                report,
                (arm.technique.label, member),
                technique=arm.technique.kind if student else None,
                use_notes=[*_origin(prepared, member), *notes] if student else (),
            )
            write_whole(arm.model(folder.path, member) / "README.md", card)
