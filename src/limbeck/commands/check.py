"""``limbeck check``: whether a recipe is right, and what a run of it does.

What needs torch is proven once and kept (``pipeline/proofs.py``); all else is looked at every time.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck.errors import counted
from limbeck.pipeline.checks_served import check_served, check_verifiers
from limbeck.pipeline.estimates import Labels, Sample, few_steps, sample_of
from limbeck.pipeline.proofs import keep_proof, proof_key, read_proof
from limbeck.pipeline.sections import existing_models, generations_of, verifiers_of
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
    PathTokenizer,
    Recipe,
    ServedTeacher,
    Source,
    StdlibSource,
    TextSource,
    Training,
)
from limbeck.workflow.lock import is_run, run_path

WIDTH = 80
"""Columns of what is printed."""

ADAMW = 16
"""Bytes of a trained parameter: weight, gradient and two moments, in float32."""
CHECKPOINTS = 2 * 12
"""Bytes of a trained parameter in checkpoints: the newest two, each with its weight and two moments."""
FP32 = 4


@dataclass(frozen=True)
class Seen:
    """What looking at a recipe has shown.

    Attributes:
        sample: documents that were read.
        notes, warnings, parameters, read: as of ``pipeline.build.Checked``.
    """

    sample: Sample
    notes: list[str]
    warnings: list[str]
    parameters: dict[str, int]
    read: tuple[int, int, int] | None


def look(recipe: Recipe) -> Seen:
    """Refuse a recipe that cannot work, as ``pipeline.build.check`` does, without torch where it was proven before.

    Raises:
        RecipeError, InputError: names the key and the fix.
    """
    run_path(recipe.run)
    said = check_verifiers(verifiers_of(recipe), isinstance(recipe.teacher, ServedTeacher))
    sample = sample_of(recipe.data)
    if isinstance(recipe.teacher, ServedTeacher):
        said += check_served(recipe.teacher, recipe.data, generations_of(recipe))
    steps = few_steps(recipe.training, recipe.data.seq_len)
    key = _key(recipe, sample, said)
    if key is None or (proof := read_proof(key)) is None:
        proof = _prove(recipe, sample, key)
    read = tuple(proof["read"]) if proof["read"] is not None else None
    others = [line for line in proof["warnings"] if line not in steps]
    return Seen(sample, proof["notes"], [*steps, *others], proof["parameters"], read)


def _prove(recipe: Recipe, sample: Sample, key: str | None) -> dict[str, Any]:
    from limbeck.pipeline.build import check  # torch
    from limbeck.pipeline.shared.base import located

    found = check(recipe, sample.documents)
    steps = few_steps(recipe.training, recipe.data.seq_len)
    proof = {
        "notes": found.notes,
        "warnings": [line for line in found.warnings if line not in steps],
        "parameters": found.parameters,
        "read": found.read,
    }
    if key is not None:
        folders = {Path(located(spec)[0].path) for spec in existing_models(recipe).values()}
        keep_proof(key, proof, sorted(folder for folder in folders if folder.is_dir()))
    return proof


_RUN_ONLY = {"title", "run", "seeds", "threads", "jobs", "training", "evaluation"}
"""Sections on which no proof depends. What of them is checked needs no torch."""

_LOOP_ONLY = set(Training.model_fields) - {"gradient_checkpointing"}


def _key(recipe: Recipe, sample: Sample, said: list[str]) -> str | None:
    """The key of a proof (``proof_key``). A section that is new in a recipe is part of it unless it is named above."""
    plain = recipe.model_dump(mode="json", exclude=_RUN_ONLY)
    data = plain.pop("data")
    data.pop("heldout")
    for section in ("pretraining", "correct"):
        if plain["teacher"].get(section) is not None:
            plain["teacher"][section] = {k: v for k, v in plain["teacher"][section].items() if k not in _LOOP_ONLY}
    plain["gradient_checkpointing"] = recipe.training.gradient_checkpointing
    models = [*existing_models(recipe).values()]
    if isinstance(recipe.tokenizer, PathTokenizer):
        models.append(PathModel(path=recipe.tokenizer.path))
    # The corpus itself is not hashed: its first documents are read every time.
    said = [*said, json.dumps(data), str(sample.whole), *(document.key for document in sample.documents)]
    return proof_key(plain, models, said)


# ---------------------------------------------------------------------------------- what will happen


@dataclass
class Plan:
    """What a run does. Sizes are bytes; None is not known.

    Attributes:
        sources: of the corpus, by name.
        data: what is known of its documents.
        models: each model, by its name: what it is and its parameters.
        training: what is trained, and how long.
        text: what teachers write.
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
    labels = Labels.of(seen.sample, seen.read, recipe.data) if seen.read is not None else None
    memory, students, checkpoints = _sizes(recipe, seen.parameters)
    plan = Plan(
        sources=[_source(source) for source in recipe.data.corpus],
        data=list(_data(recipe, seen.sample, labels)),
        models=dict(_models(recipe, seen.parameters, labels)),
        training=list(_training(recipe, labels)),
        text=list(_text(recipe)),
        memory=memory,
        students=students,
        checkpoints=checkpoints,
        free=_free(run_path(recipe.run)),
        run=recipe.run,
        notes=list(seen.notes),
        warnings=list(seen.warnings),
    )
    plan.warnings += _epochs(recipe, labels)
    if plan.free is not None and students is not None and checkpoints is not None:
        most = students + checkpoints
        if most > plan.free:
            plan.warnings.append(
                f"run: students and checkpoints take up to {_size(most)}, and its disk has {_size(plan.free)} free"
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
        read = f"{_size(sample.n_bytes)}; the first {many} were read" if sample.n_bytes else f"first {many} read"
    else:
        read = "read when it runs"
    if labels is not None and labels.documents:
        each = "" if sample.whole else " a document"
        tokens, learned = labels.tokens, labels.labels
        if not sample.whole:
            tokens, learned = round(tokens / labels.documents), round(learned / labels.documents)
        read += f": {tokens:,} tokens{each}, {learned:,} of them labels"
    yield read
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
        said += f", about {counted(labels.steps(section, recipe.data.seq_len), 'step')}"
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


def _epochs(recipe: Recipe, labels: Labels | None) -> list[str]:
    if labels is None:
        return []
    found, teacher = [], recipe.teacher
    if isinstance(teacher, ConfigTeacher):
        found += labels.too_many(teacher.pretraining.tokens, "teacher.pretraining")
    elif not isinstance(teacher, ServedTeacher) and teacher.correct is not None:
        found += labels.too_many(teacher.correct.tokens, "teacher.correct")
    if any(getattr(technique, "generation", None) is None for technique in recipe.techniques):
        found += labels.too_many(recipe.training.tokens, "training")
    return found


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


# -------------------------------------------------------------------------------------- how it is shown


def show_plan(plan: Plan) -> Iterator[str]:
    """Lines of ``WIDTH`` columns."""
    for number, source in enumerate(plan.sources):
        yield from _line("data" if not number else "", source)
    for line in plan.data:
        yield from _line("", line)
    for name, lines in plan.models.items():
        for number, line in enumerate(lines):
            yield from _line("" if number else name, line)
    for number, line in enumerate(plan.training):
        yield from _line("" if number else "training", line)
    for number, line in enumerate(plan.text):
        yield from _line("" if number else "text", line)
    if plan.memory is not None:
        yield from _line("memory", f"about {_size(plan.memory)} for the largest training, and its activations")
    if plan.students is not None and plan.checkpoints is not None:
        free = f"; {_size(plan.free)} are free" if plan.free is not None else ""
        models, checkpoints = _size(plan.students), _size(plan.checkpoints)
        yield from _line("disk", f"models up to {models}, checkpoints up to {checkpoints} while an arm trains{free}")
    yield from _line("run", f"{plan.run}: {_so_far(plan.stages)}")


def _so_far(stages: Mapping[str, int]) -> str:
    if not stages:
        return "new"
    waiting = stages.get("run", 0) + stages.get("wait", 0)
    said = [f"{counted(stages.get('keep', 0), 'stage')} kept", f"{waiting} to run"]
    if stages.get("refuse"):
        said.append(f"{stages['refuse']} refused")
    return ", ".join(said)


def _line(name: str, text: str) -> list[str]:
    first, rest = f"{name:<10} ", " " * 11
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def _size(n_bytes: int) -> str:
    """``1.2 GB``, in powers of ten."""
    for unit, one in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= one:
            return f"{n_bytes / one:.{1 if n_bytes < 10 * one else 0}f} {unit}"
    return f"{n_bytes} bytes"


def as_json(plan: Plan) -> str:
    return json.dumps(dataclasses.asdict(plan), indent=1)
