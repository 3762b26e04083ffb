"""Before anything is trained: the corpus in tokens, the teacher at hand, and what cannot work refused."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.data.corpus import Corpus, holdout_cut, open_corpus, write_corpora
from limbeck.data.packing import Rows
from limbeck.data.sources import Spool, documents
from limbeck.display import Display
from limbeck.errors import RecipeError
from limbeck.files import whole_folder
from limbeck.models.language_model import LanguageModel
from limbeck.models.load import load_model, quiet, weights_fingerprint
from limbeck.models.tokenizer import (
    load_tokenizer,
    require_equal_maps,
    token_map_fingerprint,
    train_tokenizer,
)
from limbeck.recipe import (
    ConfigModel,
    ConfigTeacher,
    Data,
    PathModel,
    PathTokenizer,
    Recipe,
    TrainedTokenizer,
    Training,
    fingerprint,
)
from limbeck.run.folder import RunFolder
from limbeck.training.batches import CorpusBatches
from limbeck.training.cohort import Cohort, Lesson, Member
from limbeck.training.loop import train
from limbeck.training.techniques import TEACHER, lessons_of

OPERATIONAL = {"checkpoint_every_steps", "log_every_steps", "threads", "cache"}


def settings(training: Training) -> dict[str, Any]:
    """The part of ``training`` that changes what is learned."""
    return training.model_dump(mode="json", exclude=OPERATIONAL)


@dataclass
class Prepared:
    """What every technique starts from."""

    tokenizer: Any
    train: Corpus
    heldout: Corpus
    data: dict[str, Any]  # facts about the corpus: fingerprint, documents, tokens
    teacher_spec: PathModel  # where the teacher's weights are, also if they were trained here
    teacher_facts: dict[str, Any]


def check(recipe: Recipe) -> Any:
    """Everything that can be refused before work begins. Returns the tokenizer, None if it is to be trained.

    Raises:
        RecipeError: names the key and the fix.
    """
    quiet()
    for i, technique in enumerate(recipe.techniques):
        lessons_of(technique, list(recipe.cohort), f"techniques.{i}")
    tokenizer = None
    match recipe.tokenizer:
        case PathTokenizer(path=path):
            tokenizer = load_tokenizer(path, key="tokenizer.path")
        case None:
            assert isinstance(recipe.teacher, PathModel)  # the recipe made sure
            tokenizer = load_tokenizer(recipe.teacher.path, key="teacher.path", revision=recipe.teacher.revision)
    if tokenizer is not None and recipe.data.end == "bos":
        if tokenizer.bos_token is None:
            raise RecipeError("the tokenizer has no beginning mark", key="data.end", fix="Write `end: eos`")
        tokenizer.eos_token = tokenizer.bos_token
    if isinstance(recipe.teacher, PathModel) and recipe.tokenizer is not None:
        own = load_tokenizer(recipe.teacher.path, key="teacher.path", revision=recipe.teacher.revision)
        require_equal_maps(own, tokenizer, key="tokenizer.path")
    for name, student in recipe.cohort.items():
        key = "student" if recipe.student is not None else f"students.{name}"
        if isinstance(student, PathModel):
            if tokenizer is None:
                raise RecipeError(
                    "a trained student cannot follow a new tokenizer",
                    key=f"{key}.path",
                    fix="Name its tokenizer's path",
                )
            theirs = load_tokenizer(student.path, key=f"{key}.path", revision=student.revision)
            require_equal_maps(tokenizer, theirs, key=f"{key}.path")
        elif tokenizer is not None:
            load_student(recipe, name, tokenizer, seed=0)
    if isinstance(recipe.teacher, PathModel):
        _check_packs(load_model(recipe.teacher, tokenizer, key="teacher", seq_len=recipe.data.seq_len), recipe.data)
    return tokenizer


def load_student(recipe: Recipe, name: str, tokenizer: Any, *, seed: int) -> LanguageModel:
    """A student as the recipe describes it, untrained (adapters come with training)."""
    key = "student" if recipe.student is not None else f"students.{name}"
    lm = load_model(recipe.cohort[name], tokenizer, key=key, seed=seed, seq_len=recipe.data.seq_len)
    _check_packs(lm, recipe.data)
    return lm


def _check_packs(lm: LanguageModel, data: Data) -> None:
    if data.pack and not lm.packs:
        raise RecipeError(
            f"{type(lm.core).__name__} lets packed documents see each other", key="data.pack", fix="Write `pack: false`"
        )


# ------------------------------------------------------------------------------------------ data


def prepare_data(recipe: Recipe, folder: RunFolder, tokenizer: Any, display: Display) -> tuple[Any, dict[str, Any]]:
    """Tokenizer and corpora in the run folder. Returns the tokenizer and the facts about the data."""
    data = recipe.data
    inputs: dict[str, Any] = {
        "data": {
            "corpus": [source.model_dump(mode="json") for source in data.corpus],
            "heldout": data.heldout,
            "end": data.end,
        },
        "tokenizer": token_map_fingerprint(tokenizer) if tokenizer is not None else recipe.tokenizer.model_dump(),  # type: ignore[union-attr]
    }
    facts = folder.done("data", inputs)
    home = folder.path / "data"
    if facts is not None:
        display.kept("data")
        return load_tokenizer(str(home / "tokenizer"), key="tokenizer"), facts
    with display.stage("data", unit="documents") as bar, whole_folder(home) as scratch:
        spool = Spool(scratch / "documents.jsonl", documents(data.corpus))
        cut = holdout_cut(spool.keys, data.heldout)
        if tokenizer is None:
            assert isinstance(recipe.tokenizer, TrainedTokenizer)
            texts = (text for document in spool if document.key > cut for text in document.texts())
            tokenizer = train_tokenizer(texts, recipe.tokenizer.train.vocab_size)
        tokenizer.save_pretrained(scratch / "tokenizer")
        bar.total = len(spool.keys)
        write_corpora(scratch, spool, tokenizer, cut, progress=bar.advance)
        spool.path.unlink()
    train, heldout = open_corpus(home / "train"), open_corpus(home / "heldout")
    facts = {
        "fingerprint": hashlib.sha256("".join(sorted(spool.keys)).encode()).hexdigest()[:16],
        "tokenizer": token_map_fingerprint(tokenizer),
        "vocabulary": len(tokenizer.get_vocab()),
        "train": {"documents": len(train), "labels": train.labels(), "bytes": int(train.n_bytes.sum())},
        "heldout": {"documents": len(heldout), "labels": heldout.labels(), "bytes": int(heldout.n_bytes.sum())},
    }
    return tokenizer, folder.finish("data", facts)


# --------------------------------------------------------------------------------------- teacher


def prepare_teacher(
    recipe: Recipe, folder: RunFolder, tokenizer: Any, train_corpus: Corpus, facts: dict[str, Any], display: Display
) -> tuple[PathModel, dict[str, Any]]:
    """Where the teacher's weights are (trained first, if it starts from a config), and facts about it."""
    teacher = recipe.teacher
    if isinstance(teacher, PathModel):
        inputs = {"teacher": teacher.model_dump(mode="json")}
        kept = folder.done("teacher", inputs)
        lm = load_model(teacher, tokenizer, key="teacher", seq_len=recipe.data.seq_len)
        now = {"fingerprint": weights_fingerprint(lm.model), "parameters": lm.parameters()}
        if kept is not None and kept["fingerprint"] != now["fingerprint"]:
            raise RecipeError(
                f"the weights of {teacher.path} have changed since this run began", key="teacher.path",
                fix="Bring the old ones back, or name another `run:` folder",
            )  # fmt: skip
        return teacher, folder.finish("teacher", now) if kept is None else kept
    pretraining = teacher.pretraining
    spec = PathModel(path=str(folder.path / "teacher"), dtype=teacher.dtype)
    shape = {"seq_len": recipe.data.seq_len, "pack": recipe.data.pack, "heldout": recipe.data.heldout}
    inputs = {
        "teacher": {"config": teacher.config, "dtype": teacher.dtype, "pretraining": settings(pretraining)},
        "data": {**shape, "fingerprint": facts["fingerprint"]},
        "tokenizer": facts["tokenizer"],
    }
    kept = folder.done("teacher", inputs)
    if kept is not None:
        display.kept("teacher")
        return spec, kept
    shelf = _cache() / "teachers" / fingerprint(inputs)
    if pretraining.cache and (shelf / "limbeck.json").exists():
        with whole_folder(Path(spec.path)) as scratch:
            shutil.copytree(shelf, scratch, dirs_exist_ok=True)
        display.line("teacher", note="from the cache")
        result: dict[str, Any] = {"seconds": 0.0, "cached": True}
    else:
        result = _pretrain(recipe, teacher, folder, tokenizer, train_corpus, display)
        if pretraining.cache:
            _put_on_shelf(Path(spec.path), shelf, display)
    lm = load_model(spec, tokenizer, key="teacher")
    result |= {"fingerprint": weights_fingerprint(lm.model), "parameters": lm.parameters()}
    return spec, folder.finish("teacher", result)


def _pretrain(
    recipe: Recipe, teacher: ConfigTeacher, folder: RunFolder, tokenizer: Any, corpus: Corpus, display: Display
) -> dict[str, Any]:
    section = teacher.pretraining
    bare = ConfigModel(config=teacher.config, dtype=teacher.dtype)
    lm = load_model(bare, tokenizer, key="teacher", seq_len=recipe.data.seq_len)
    _check_packs(lm, recipe.data)
    cohort = Cohort({TEACHER: Member(lm, learns=True)}, [Lesson(TEACHER)], section.precision)
    batches = make_batches(corpus, recipe.data, section, seed=0)
    home = folder.path / "teacher-training"
    with display.stage("teacher", section.tokens, "tokens") as bar:
        result = train(
            cohort, batches, section, home, seed=0,
            on_step=lambda step, steps, tokens, loss: bar.update(tokens, f"loss {loss:.3f}"),
        )  # fmt: skip
        save_model(lm, folder.path / "teacher")
    shutil.rmtree(home / "checkpoints", ignore_errors=True)
    return {**result, "cached": False}


def make_batches(
    corpus: Corpus, data: Data, section: Training, *, seed: int, pack: bool | None = None
) -> CorpusBatches:
    rows = Rows(corpus, data.seq_len, pack=data.pack if pack is None else pack)
    return CorpusBatches(
        rows, tokens=section.tokens, batch_rows=section.batch_rows, accumulation=section.accumulation, seed=seed
    )


def save_model(lm: LanguageModel, target: Path) -> None:
    """A plain ``save_pretrained`` folder with its tokenizer; adapters are merged into the weights."""
    core = lm.model.merge_and_unload() if hasattr(lm.model, "peft_config") else lm.model
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if core.generation_config is not None and getattr(core.generation_config, name, None) is None:
            setattr(core.generation_config, name, getattr(lm.tokenizer, name, None))
    with whole_folder(target) as scratch:
        core.save_pretrained(scratch)
        lm.tokenizer.save_pretrained(scratch)


def _cache() -> Path:
    if own := os.environ.get("LIMBECK_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "limbeck"


def _put_on_shelf(model: Path, shelf: Path, display: Display) -> None:
    try:
        with whole_folder(shelf) as scratch:
            shutil.copytree(model, scratch, dirs_exist_ok=True)
            (scratch / "limbeck.json").write_text("{}")
    except OSError as error:  # a full or read-only home must not cost the run
        display.warn(f"the teacher was not kept in the cache ({error.strerror})")
