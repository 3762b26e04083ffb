"""The teacher at hand, trained or tuned first if the recipe says so, and the students cut from it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from limbeck.data.corpus import Corpus
from limbeck.data.packing import Batch, Rows, collate, row_order
from limbeck.display import Display
from limbeck.evaluation.gap import mean_kl, taught
from limbeck.files import cache_folder, whole_folder
from limbeck.models.architectures import llama_cpp_reads_windows
from limbeck.models.depth import Chooser, choose_layers, cut_depth, layer_cosines
from limbeck.models.language_model import LanguageModel
from limbeck.models.load import load_model, weights_fingerprint, with_lora
from limbeck.models.saved import stored_dtype
from limbeck.models.vocabulary import KeptTokens, cut_vocabulary
from limbeck.models.width import cut_width, measure_importance
from limbeck.recipe import (
    ConfigModel,
    ConfigTeacher,
    Correction,
    CutStudent,
    PathModel,
    Recipe,
    Training,
    fingerprint,
)
from limbeck.run.check import Origins, check_packs, student_key
from limbeck.run.folder import RunFolder
from limbeck.run.measure import Heldout, bits_per_byte
from limbeck.run.prepare import (
    Prepared,
    data_inputs,
    load_teacher,
    make_batches,
    recipe_keys,
    save_model,
    settings,
)
from limbeck.training.cohort import Cohort, Lesson, Member
from limbeck.training.loop import train
from limbeck.training.meter import loss_said
from limbeck.training.techniques import TEACHER


def prepare_teacher(
    recipe: Recipe,
    origins: Origins,
    folder: RunFolder,
    tokenizer: Any,
    kept_ids: KeptTokens | None,
    corpus: Corpus,
    heldout: Heldout,
    facts: dict[str, Any],
    display: Display,
) -> tuple[PathModel, dict[str, Any]]:
    """Where the weights of who teaches are, and facts about it: fingerprint, parameters, and of one that was tuned
    what it knew of the held-out text before and after, in bits per byte."""
    shape = data_inputs(recipe, facts)
    if isinstance(recipe.teacher, ConfigTeacher):
        return _from_nothing(recipe, recipe.teacher, folder, tokenizer, corpus, shape, display)
    assert origins.teacher is not None
    lm = load_teacher(origins.teacher, tokenizer, kept_ids, recipe.data.seq_len)
    found = {**_facts(lm), "stored": stored_dtype(origins.teacher)}
    correct = recipe.teacher.correct
    if correct is None:
        inputs = {"teacher": {"weights": found["fingerprint"]}}
        kept = folder.done("teacher", inputs, later=_taught(folder), keys=recipe_keys(recipe))
        return origins.teacher, folder.finish("teacher", found) if kept is None else kept
    inputs = {
        "teacher": {"weights": found["fingerprint"], "correct": settings(correct)},
        "data": shape,
    }
    spec = PathModel(path=str(folder.path / "teacher"), dtype=origins.teacher.dtype)
    kept = _kept(recipe, folder, inputs)
    if kept is not None:
        display.kept("teacher correction")
        return spec, kept
    before = _bits_before(lm, found["fingerprint"], recipe, heldout, folder, shape, display)
    if correct.lora is not None:
        lm = with_lora(lm, correct.lora, seed=0, key="teacher.correct.lora")
    result = _tune(lm, "teacher correction", recipe, correct, corpus, folder, display)
    lm = load_teacher(spec, tokenizer, kept_ids)
    known = {"before": before, "after": bits_per_byte(heldout.measure(lm))}
    return spec, folder.finish("teacher", {**result, **known, **_facts(lm), "stored": found["stored"]})


def _bits_before(
    lm: LanguageModel,
    weights: str,
    recipe: Recipe,
    heldout: Heldout,
    folder: RunFolder,
    shape: dict[str, Any],
    display: Display,
) -> float:
    """What the teacher knows of the held-out text before it is tuned, in bits per byte; measured once."""
    inputs = {"teacher": weights, "data": shape, "documents": recipe.evaluation.max_documents}
    kept = folder.done("teacher-before", inputs, derived=True)
    if kept is not None:
        return float(kept["bits_per_byte"])
    with display.stage("measure the untuned teacher", len(heldout.rows), "rows") as bar:
        found = bits_per_byte(heldout.measure(lm, progress=bar.advance))
        bar.note = f"{found:.3f} bits/byte"
    folder.finish("teacher-before", {"bits_per_byte": found})
    return found


def correction_said(facts: dict[str, Any]) -> str | None:
    """What the tuning did to the teacher, in words; None for one that was not tuned."""
    if "before" not in facts:
        return None
    return (
        f"teacher: tuned on {facts['tokens']:,} tokens first; held-out text took {facts['before']:.3f} bits per byte, "
        f"then {facts['after']:.3f}"
    )


def is_worse(facts: dict[str, Any]) -> bool:
    """Whether a tuned teacher knows the held-out text less well than before."""
    return bool(facts.get("after", 0.0) > facts.get("before", 0.0))


def _kept(recipe: Recipe, folder: RunFolder, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """Facts about a teacher that is trained already; None for one that is still to be.

    Raises:
        RunFolderError: it was trained, or begun, from other inputs, or students were already cut or trained
            beside another one: said before anything is spent on this one.
    """
    return folder.done(
        "teacher",
        inputs,
        made=[folder.path / "teacher"],
        under_way=[folder.path / "teacher-training" / "checkpoints"],
        later=_taught(folder),
        keys=recipe_keys(recipe),
    )


def _taught(folder: RunFolder) -> list[Path]:
    """What is made from a teacher."""
    return [folder.path / "cut", folder.path / "arms"]


def _facts(lm: LanguageModel) -> dict[str, Any]:
    return {"fingerprint": weights_fingerprint(lm.model), "parameters": lm.parameters()}


def _from_nothing(
    recipe: Recipe,
    teacher: ConfigTeacher,
    folder: RunFolder,
    tokenizer: Any,
    corpus: Corpus,
    shape: dict[str, Any],
    display: Display,
) -> tuple[PathModel, dict[str, Any]]:
    """A teacher that is trained on the corpus, or taken from the cache if the same one was before."""
    pretraining = teacher.pretraining
    spec = PathModel(path=str(folder.path / "teacher"), dtype=teacher.dtype)
    inputs = {
        "teacher": {"config": teacher.config, "dtype": teacher.dtype, "pretraining": settings(pretraining)},
        "data": shape,
    }
    kept = _kept(recipe, folder, inputs)
    if kept is not None:
        display.kept("teacher")
        return spec, kept
    shelf = cache_folder() / "teachers" / fingerprint(inputs)
    if pretraining.cache and _whole(shelf):
        with whole_folder(Path(spec.path)) as scratch:
            shutil.copytree(shelf, scratch, dirs_exist_ok=True)
        display.line("teacher", note="from the cache")
        result: dict[str, Any] = {"seconds": 0.0, "cached": True}
    else:
        bare = ConfigModel(config=teacher.config, dtype=teacher.dtype)
        lm = load_model(bare, tokenizer, key="teacher", seq_len=recipe.data.seq_len)
        check_packs(lm, recipe.data)
        result = {**_tune(lm, "teacher", recipe, pretraining, corpus, folder, display), "cached": False}
        if pretraining.cache:
            _put_on_shelf(Path(spec.path), shelf, display)
    return spec, folder.finish("teacher", {**result, **_facts(load_model(spec, tokenizer, key="teacher"))})


def _tune(
    lm: LanguageModel,
    title: str,
    recipe: Recipe,
    section: Training | Correction,
    corpus: Corpus,
    folder: RunFolder,
    display: Display,
) -> dict[str, Any]:
    """Train the teacher on the corpus and save it in the run folder; goes on from its checkpoints."""
    cohort = Cohort({TEACHER: Member(lm, learns=True)}, [Lesson(TEACHER)], section.precision)
    batches = make_batches(corpus, recipe.data, section, seed=0)
    home = folder.path / "teacher-training"
    if section.gradient_checkpointing:
        lm.model.gradient_checkpointing_enable()
    with display.stage(title, section.tokens, "tokens") as bar:
        result = train(
            cohort,
            batches,
            section,
            home,
            seed=0,
            key="teacher.correct" if isinstance(section, Correction) else "teacher.pretraining",
            on_step=lambda step, steps, tokens, losses: bar.update(tokens, loss_said(losses)),
        )
        save_model(lm, folder.path / "teacher")
    shutil.rmtree(home / "checkpoints", ignore_errors=True)
    return dict(result)


def _put_on_shelf(model: Path, shelf: Path, display: Display) -> None:
    try:
        with whole_folder(shelf, shared=True) as scratch:
            shutil.copytree(model, scratch, dirs_exist_ok=True)
            (scratch / "limbeck.json").write_text(json.dumps(_sums(scratch)))
    except OSError as error:  # a full or read-only home must not cost the run
        display.warn(f"the teacher was not kept in the cache ({error.strerror})")


def _whole(shelf: Path) -> bool:
    """Whether a cached teacher is there, byte for byte as it was put there."""
    try:
        return bool(json.loads((shelf / "limbeck.json").read_text()) == _sums(shelf))
    except (OSError, ValueError):
        return False


def _sums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.safetensors"))}


# ------------------------------------------------------------------------- students cut from it


def cut_students(recipe: Recipe, origins: Origins, folder: RunFolder, prepared: Prepared, display: Display) -> None:
    """Say in ``prepared`` how each student starts: cut ones as folders of the run."""
    for name, spec in origins.students.items():
        if not isinstance(spec, CutStudent):
            prepared.students[name] = spec
            continue
        key = student_key(recipe, name)
        target = folder.path / "cut" / name
        prepared.students[name] = PathModel(path=str(target), dtype=spec.dtype)
        inputs = {
            key: spec.model_dump(mode="json", exclude={"lora", "save_dtype"}),
            "teacher": prepared.teacher_facts["fingerprint"],
            "data": data_inputs(recipe, prepared.data),
        }
        later = [folder.path / "arms"]
        kept = folder.done(f"cut-{name}", inputs, made=[target], later=later, keys=recipe_keys(recipe))
        if kept is not None:
            display.kept(f"cut {name}")
            _adopt(name, kept, prepared, display)
            continue
        with display.stage(f"cut {name} from the teacher"):
            lm = prepared.load_teacher(recipe.data.seq_len)
            rows = Rows(prepared.train, recipe.data.seq_len, pack=recipe.data.pack)
            cut, layers = _cut(lm, spec, rows, prepared.kept, key)
            student = LanguageModel(cut, prepared.tokenizer)
            student.prove(key)
            save_model(student, target)
        facts = {
            "layers": layers,
            "parameters": student.parameters(),
            "usual_windows": llama_cpp_reads_windows(student.config),
            "fingerprint": weights_fingerprint(cut),
        }
        _adopt(name, folder.finish(f"cut-{name}", facts), prepared, display)


def _adopt(name: str, facts: dict[str, Any], prepared: Prepared, display: Display) -> None:
    prepared.student_facts[name] = facts
    if not facts.get("usual_windows", True):
        prepared.note(
            f"{name}: its sliding windows are not on Gemma's usual layers. transformers and vLLM read where they are; "
            "llama.cpp's converter does not, and a GGUF file of it would be wrong",
            display,
        )


def _cut(lm: LanguageModel, spec: CutStudent, rows: Rows, kept: KeptTokens | None, key: str) -> tuple[Any, list[int]]:
    """The cut model, and which of the teacher's layers it keeps. Calibration is in the teacher's ids."""
    model = lm.model

    def calibration() -> Iterator[Batch]:
        wanted = max(spec.calibration_tokens // rows.seq_len, 1)
        chosen = list(islice(row_order(len(rows), 0), min(wanted, len(rows))))
        for start in range(0, len(chosen), 4):
            batch = collate([rows[r] for r in chosen[start : start + 4]])
            yield replace(batch, ids_BT=lm.own_ids(batch.ids_BT))

    layers = list(range(lm.n_layers))
    if spec.layers is not None:
        layers = list(spec.layers) if not isinstance(spec.layers, int) else choose_kept(lm, spec, calibration, key)
        model = cut_depth(model, layers, key=f"{key}.layers")
    narrower = {"ffn": spec.ffn, "heads": spec.heads, "kv_heads": spec.kv_heads, "hidden": spec.hidden}
    if any(narrower.values()):
        model = cut_width(model, measure_importance(model, calibration(), key=key), **narrower, key=key)
    if kept is not None:
        counts = dict.fromkeys(kept.ids_K.tolist(), 1)
        found = cut_vocabulary(
            model,
            lm.own_tokenizer,
            counts,
            other=True,
            added="used",
            calibration=calibration(),
            key=f"{key}.vocabulary",
        )
        if not torch.equal(found.kept.ids_K, kept.ids_K):
            raise AssertionError("the vocabulary of the data and of the student are not the same")
        model = found.model
    return model, layers


def choose_kept(lm: LanguageModel, spec: CutStudent, calibration: Callable[[], Iterator[Batch]], key: str) -> list[int]:
    """Which layers to keep, ascending. Of ``auto``'s two choices, those whose cut is nearer to the teacher (KL on the
    calibration set) before any training; one that keeps the pattern of Gemma's sliding windows comes first.

    Args:
        lm: the teacher.
        spec: with a number of layers.
        calibration: batches in the teacher's own ids, anew at each call.
        key: the student's place in the recipe.
    """
    assert isinstance(spec.layers, int)
    types: list[str] | None = getattr(lm.config, "layer_types", None)
    cosines = None if spec.chooser == "even" else layer_cosines(lm.model, calibration(), key=f"{key}.layers")
    choosers: list[Chooser] = ["block_influence", "contiguous"] if spec.chooser == "auto" else [spec.chooser]
    found = [
        choose_layers(
            lm.n_layers,
            spec.layers,
            chooser,
            cosines=cosines,
            keep_ends=spec.keep_ends,
            layer_types=types,
            key=f"{key}.layers",
        )
        for chooser in choosers
    ]
    if len(found) == 1 or found[0] == found[1]:
        return found[0]
    targets = taught(LanguageModel(lm.model, lm.own_tokenizer), calibration())

    def worse(layers: list[int]) -> tuple[bool, float]:
        cut = LanguageModel(cut_depth(lm.model, layers, key=key), lm.own_tokenizer)
        irregular = types is not None and [types[i] for i in layers] != types[: len(layers)]
        return irregular, mean_kl(cut, targets)

    return min(found, key=worse)
