"""What a run of a recipe does, as far as it is known before: what `limbeck check` prints."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from limbeck.commands.checking.look import Seen
from limbeck.data.questions import questions
from limbeck.errors import counted
from limbeck.pipeline.beforehand.estimates import Labels, Sample
from limbeck.pipeline.stored.room import room_of_signals
from limbeck.recipe import (
    Co,
    ConfigModel,
    ConfigTeacher,
    CutStudent,
    FilesSource,
    Generation,
    HubSource,
    JsonlSource,
    PackageModel,
    ParquetSource,
    PathModel,
    Recipe,
    ServedTeacher,
    Source,
    StdlibSource,
    TextSource,
    Training,
)
from limbeck.workflow.lock import is_run, run_path

ADAMW = 16
"""Bytes of a trained parameter: weight, gradient and two moments, in float32."""
CHECKPOINTS = 2 * 12
"""Bytes of a trained parameter in checkpoints: the newest two, each with its weight and two moments."""
FP32 = 4
MANY = 10_000
"""Questions of ``data.prompts`` that are counted."""


@dataclass
class Plan:
    """What a run does. Sizes are bytes; None is not known.

    Attributes:
        sources: of the corpus, by name.
        data: what is known of its documents.
        models: each model, by its name: what it is and its parameters.
        training: what is trained, and how long.
        text: what teachers write.
        signals: what is kept of the teacher's distributions, and the disk that it takes.
        memory: of the largest training: its weights, gradients and the optimiser's state; activations are not counted.
        students: on disk, all together.
        checkpoints: on disk, of one arm while it trains.
        free: on the run folder's disk.
        run: the run folder.
        stages: how many are kept, run and refused, where the run folder is there.
        notes, warnings: what people should know, and what is hardly meant so.
    """

    sources: list[str]
    data: list[str]
    models: dict[str, list[str]]
    training: list[str]
    text: list[str]
    signals: list[str]
    memory: int | None
    students: int | None
    checkpoints: int | None
    free: int | None
    run: str
    stages: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def plan_of(recipe: Recipe, seen: Seen) -> Plan:
    """What a run of a recipe that is right does."""
    labels = seen.labels
    memory, students, checkpoints = _sizes(recipe, seen.parameters)
    plan = Plan(
        sources=[_source(source) for source in recipe.data.corpus],
        data=list(_data(recipe, seen.sample, labels)),
        models=dict(_models(recipe, seen.parameters, labels)),
        training=list(_training(recipe, labels)),
        text=list(_text(recipe)),
        signals=room_of_signals(recipe.techniques, recipe.training.tokens * len(recipe.seeds), run_path(recipe.run)),
        memory=memory,
        students=students,
        checkpoints=checkpoints,
        free=_free(run_path(recipe.run)),
        run=recipe.run,
        notes=list(seen.notes),
        warnings=list(seen.warnings),
    )
    if plan.free is not None and students is not None and checkpoints is not None:
        most = students + checkpoints
        if most > plan.free:
            plan.warnings.append(
                f"run: students and checkpoints take up to {size_of(most)}, and its disk has {size_of(plan.free)} free"
            )
    _stages(recipe, plan)
    return plan


def _source(source: Source) -> str:
    match source:
        case StdlibSource():
            return f"Python's own library: {source.stdlib}"
        case HubSource():
            return f"{source.dataset} of the hub, {source.split}"
        case FilesSource(files=named) | JsonlSource(jsonl=named) | ParquetSource(parquet=named):
            return named if isinstance(named, str) else ", ".join(named)
        case TextSource():
            return source.text


def _data(recipe: Recipe, sample: Sample, labels: Labels | None) -> Iterator[str]:
    data, many = recipe.data, counted(len(sample.documents), "document")
    here = any(not isinstance(source, HubSource) for source in data.corpus)
    if sample.whole:
        read = many
    elif here:
        read = f"{size_of(sample.n_bytes)}; the first {many} were read" if sample.n_bytes else f"first {many} read"
    else:
        read = "read when it runs"
    if labels is not None and labels.documents:
        each = "" if sample.whole else " a document"
        tokens, learned = labels.tokens, labels.labels
        if not sample.whole:
            tokens, learned = round(tokens / labels.documents), round(learned / labels.documents)
        read += f": {tokens:,} tokens{each}, {learned:,} of them labels"
    yield read
    if data.prompts and not any(isinstance(source, HubSource) for source in data.prompts):
        asked = sum(1 for _ in islice(questions(data.prompts), MANY + 1))
        yield f"data.prompts: {f'more than {MANY:,} questions' if asked > MANY else counted(asked, 'question')}"
    packed = "packed" if data.pack else "one document a row"
    yield f"rows of {data.seq_len:,} tokens, {packed}; {100 * data.heldout:g}% of the documents held out"


def _models(recipe: Recipe, parameters: Mapping[str, int], labels: Labels | None) -> Iterator[tuple[str, list[str]]]:
    teacher = recipe.teacher
    lines = [_model(teacher, parameters.get("teacher"))]
    if isinstance(teacher, ConfigTeacher):
        lines.append(f"trained first: {_loop(teacher.pretraining, recipe, labels)}")
    elif not isinstance(teacher, ServedTeacher) and teacher.correct is not None:
        lines.append(f"corrected first: {_loop(teacher.correct, recipe, labels)}")
    yield "teacher", lines
    for name, student in recipe.named_students.items():
        adapted = getattr(student, "lora", None)
        yield (
            name,
            [
                _model(student, parameters.get(name)),
                *([f"adapters of rank {adapted.rank} are trained"] if adapted is not None else []),
            ],
        )


def _model(spec: Any, parameters: int | None) -> str:
    most = ""
    match spec:
        case ServedTeacher():
            return f"{spec.model}, asked over {spec.protocol}"
        case PackageModel():
            what = spec.package
        case PathModel():
            what = spec.path
        case ConfigModel():
            what = f"a new {spec.config['model_type']}"
        case CutStudent():
            cut = {name: getattr(spec, name) for name in ("layers", "hidden", "ffn", "heads", "kv_heads")}
            kept = [_kept(name, value) for name, value in cut.items() if value is not None]
            if spec.vocabulary is not None:
                kept.append("only tokens of the data")
                most = "at most "
            what = f"cut from the teacher: {', '.join(kept)}"
        case _:
            what = type(spec).__name__
    return what if parameters is None else f"{what}; {most}{parameters:,} parameters"


def _kept(name: str, value: Any) -> str:
    if name == "layers":
        return counted(value, "layer") if isinstance(value, int) else f"layers {', '.join(map(str, value))}"
    return f"{name} {value:,}"


def _loop(section: Training, recipe: Recipe, labels: Labels | None) -> str:
    rows = section.micro_batch_size * section.gradient_accumulation_steps
    said = f"{section.tokens:,} labels"
    if labels is not None:
        said += f", about {counted(labels.steps(section, recipe.data), 'step')}"
    said += f" of {counted(rows, 'row')}"
    epochs = labels.epochs(section.tokens) if labels is not None else None
    if epochs is None:
        return said
    least = "" if labels is not None and labels.exact else "at least "
    return f"{said}, {least}{epochs:,.{0 if epochs >= 10 else 1}f} epochs"


def _training(recipe: Recipe, labels: Labels | None) -> Iterator[str]:
    techniques, seeds = recipe.techniques, recipe.seeds
    arms = f"{counted(len(techniques), 'technique')} x {counted(len(seeds), 'seed')}"
    yield f"{arms}: {', '.join(technique.label for technique in techniques)}"
    yield f"each {_loop(recipe.training, recipe, labels)}"


def _text(recipe: Recipe) -> Iterator[str]:
    for technique in recipe.techniques:
        section: Generation | None = getattr(technique, "generation", None)
        if section is None:
            continue
        if section.is_selected or isinstance(recipe.teacher, ServedTeacher):
            prompts = "all prompts" if section.max_prompts is None else f"up to {section.max_prompts:,} prompts"
            yield f"{technique.label}: {prompts}, {counted(section.samples or 1, 'answer')} each"
        else:
            yield f"{technique.label}: {section.tokens or recipe.training.tokens:,} tokens"


def _sizes(recipe: Recipe, parameters: Mapping[str, int]) -> tuple[int | None, int | None, int | None]:
    """Memory of the largest training, and bytes of students and of checkpoints on disk.

    All are the most where students keep only some tokens, and without what adapters save.
    """
    students = [parameters.get(name) for name in recipe.named_students]
    adapted = any(getattr(student, "lora", None) is not None for student in recipe.named_students.values())
    known = [each for each in students if each is not None]
    if len(known) < len(students) or adapted:
        return None, None, None
    trained, teacher = sum(known), parameters.get("teacher", 0)
    together = any(isinstance(technique, Co) for technique in recipe.techniques)
    held = 0 if all(not technique.uses_teacher for technique in recipe.techniques) else FP32 * teacher
    memory = ADAMW * trained + (ADAMW * teacher if together else held)
    first = not isinstance(recipe.teacher, ServedTeacher) and (
        isinstance(recipe.teacher, ConfigTeacher) or recipe.teacher.correct is not None
    )
    if first:
        memory = max(memory, ADAMW * teacher)
    arms = len(recipe.techniques) * len(recipe.seeds)
    kept = FP32 * (arms * trained + (teacher if first else 0))
    cut = sum(parameters[name] for name, student in recipe.named_students.items() if isinstance(student, CutStudent))
    most = CHECKPOINTS * max(trained + (teacher if together else 0), teacher if first else 0)
    return memory, kept + FP32 * cut, most


def _free(run: Path) -> int | None:
    place = next((each for each in (run, *run.absolute().parents) if each.exists()), None)
    try:
        return shutil.disk_usage(place).free if place is not None else None
    except OSError:
        return None


def _stages(recipe: Recipe, plan: Plan) -> None:
    """What would be kept, run and refused of a run folder that is there, as ``limbeck run --dry-run`` says it."""
    folder = run_path(recipe.run)
    if not folder.is_dir() or not is_run(folder):
        return
    from limbeck.pipeline.build import build  # torch
    from limbeck.workflow.runner import Runner

    for decision in Runner(folder).decide(build(recipe)):
        plan.stages[decision.action] = plan.stages.get(decision.action, 0) + 1
        if decision.error is not None:
            plan.warnings.append(f"`limbeck run` would refuse this: {decision.error}")


def size_of(n_bytes: int) -> str:
    """``1.2 GB``, in powers of ten."""
    for unit, one in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= one:
            return f"{n_bytes / one:.{1 if n_bytes < 10 * one else 0}f} {unit}"
    return f"{n_bytes} bytes"
