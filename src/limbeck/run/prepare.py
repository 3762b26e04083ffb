"""The corpus in tokens, and the small pieces that every stage of a run shares."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from limbeck.data.chat import encode
from limbeck.data.corpus import Corpus, holdout_cut, open_corpus, write_corpora, write_corpus
from limbeck.data.packing import Rows
from limbeck.data.rows import Seen
from limbeck.data.sources import Spool, documents, file_stamps
from limbeck.display import Display
from limbeck.errors import InputError
from limbeck.files import whole_folder
from limbeck.models.language_model import PROJECTIONS, LanguageModel
from limbeck.models.load import load_model
from limbeck.models.restricted import RestrictedModel
from limbeck.models.tokenizer import OTHER, load_tokenizer, token_map_fingerprint, train_tokenizer
from limbeck.models.vocabulary import KeptTokens, cut_tokenizer
from limbeck.recipe import ConfigModel, Data, PathModel, Recipe, TrainedTokenizer, Training
from limbeck.run.check import student_tokens
from limbeck.run.folder import RunFolder
from limbeck.training.batches import CorpusBatches

OWN_HELDOUT = "heldout-teacher"
OPERATIONAL = {"checkpoint_every_steps", "log_every_steps", "cache"}


@dataclass
class Prepared:
    """What every technique starts from.

    Attributes:
        tokenizer: everybody's.
        train, heldout: the corpus in tokens.
        data: facts about it: fingerprint, documents, tokens.
        teacher: where the weights of who teaches are, also if they were trained or tuned here.
        teacher_facts: its fingerprint and size.
        students: how each starts: weights (also if they were cut here), or a configuration.
        student_facts: what was cut, by student.
        notes: what people should know of the models' origin.
        kept: which of the teacher's tokens the students have; None: all.
        heldout_own: then, the held-out documents in the teacher's own tokens, in the same order.
    """

    tokenizer: Any
    train: Corpus
    heldout: Corpus
    data: dict[str, Any]
    teacher: PathModel
    teacher_facts: dict[str, Any]
    students: dict[str, PathModel | ConfigModel]
    student_facts: dict[str, dict[str, Any]]
    notes: list[str]
    kept: KeptTokens | None = None
    heldout_own: Corpus | None = None

    def note(self, text: str, display: Display) -> None:
        """Something to know of the models: said now, and kept for the report."""
        self.notes.append(text)
        display.note(text)

    def load_teacher(self, seq_len: int | None = None) -> LanguageModel:
        """The teacher, seen through the students' vocabulary if theirs is smaller."""
        return load_teacher(self.teacher, self.tokenizer, self.kept, seq_len)


def load_teacher(spec: PathModel, tokenizer: Any, kept: KeptTokens | None, seq_len: int | None = None) -> LanguageModel:
    if kept is None:
        return load_model(spec, tokenizer, key="teacher", seq_len=seq_len)
    own = load_tokenizer(spec.path, key="teacher.path", revision=spec.revision)
    own.eos_token = tokenizer.eos_token  # the recipe's (`data.end`): it says where the teacher stops
    return RestrictedModel(load_model(spec, own, key="teacher", seq_len=seq_len), kept, tokenizer)


def settings(training: Training) -> dict[str, Any]:
    """The part of ``training`` that changes what is learned."""
    return training.model_dump(mode="json", exclude=OPERATIONAL)


def data_inputs(recipe: Recipe, facts: dict[str, Any], *, pack: bool = True) -> dict[str, Any]:
    """What a later stage takes from the data: which documents, which of them are held out, in which tokens and
    rows. ``pack``: how they share rows matters too."""
    data = recipe.data
    return {
        "fingerprint": facts["fingerprint"],
        "tokenizer": facts["tokenizer"],
        "heldout": data.heldout,
        "end": data.end,
        "seq_len": data.seq_len,
        **({"pack": data.pack} if pack else {}),
    }


def recipe_keys(recipe: Recipe) -> dict[str, str]:
    """How the inputs of stages are called in the recipe, for errors."""
    one = recipe.student is not None
    vocabulary = "student.vocabulary" if one else "students.*.vocabulary"
    keys = {
        "data.fingerprint": "data.corpus",
        "data.tokenizer": vocabulary if recipe.vocabulary is not None else "tokenizer",
        "vocabulary": vocabulary,
        "teacher.weights": "teacher",
    }
    for name in recipe.cohort:
        keys[f"students.{name}.fingerprint"] = "teacher"  # it was cut from another one
    for name in recipe.cohort:
        keys[f"students.{name}"] = "student" if one else f"students.{name}"
    return keys


def make_batches(corpus: Corpus, data: Data, section: Training, *, seed: int) -> CorpusBatches:
    return CorpusBatches(
        Rows(corpus, data.seq_len, pack=data.pack),
        tokens=section.tokens,
        batch_rows=section.batch_rows,
        accumulation=section.accumulation,
        seed=seed,
    )


def save_model(lm: LanguageModel, target: Path, dtype: str | None = None) -> None:
    """A plain ``save_pretrained`` folder with its tokenizer; adapters are merged into the weights.

    ``dtype``: in which the weights are written; the model is left in it. None: as they are held.
    """
    if hasattr(lm.model, PROJECTIONS):
        delattr(lm.model, PROJECTIONS)  # they belonged to the lesson, not to the student
    core = lm.model.merge_and_unload() if hasattr(lm.model, "peft_config") else lm.model
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if core.generation_config is not None and getattr(core.generation_config, name, None) is None:
            setattr(core.generation_config, name, getattr(lm.own_tokenizer, name, None))
    if dtype is not None:
        core.to(getattr(torch, dtype))
    with whole_folder(target) as scratch:
        core.save_pretrained(scratch)
        lm.own_tokenizer.save_pretrained(scratch)


def prepare_data(
    recipe: Recipe, folder: RunFolder, tokenizer: Any, teacher: PathModel | None, display: Display
) -> tuple[Any, dict[str, Any]]:
    """Tokenizer and corpora in the run folder. Returns the run's tokenizer and the facts about the data.

    The run's tokenizer is the teacher's, one trained on the corpus, or the teacher's cut to the tokens
    that the corpus uses.
    """
    data = recipe.data
    inputs: dict[str, Any] = {
        "data": {
            "corpus": [source.model_dump(mode="json") for source in data.corpus],
            "heldout": data.heldout,
            "end": data.end,
        },
        "tokenizer": token_map_fingerprint(tokenizer) if tokenizer is not None else recipe.tokenizer.model_dump(),  # type: ignore[union-attr]
    }
    if recipe.vocabulary is not None:
        inputs["vocabulary"] = recipe.vocabulary.model_dump(mode="json")
    home = folder.path / "data"
    _adopt_moved_corpus(recipe, folder, inputs)
    later = [folder.path / part for part in ("teacher", "cut", "arms")]
    before = folder.last("data")
    facts = folder.done("data", inputs, made=[home], later=later, keys=recipe_keys(recipe))
    if facts is not None:
        display.kept("data")
        if facts["files"] != file_stamps(data.corpus) and _fingerprint_of(recipe) != facts["fingerprint"]:
            display.warn("the corpus has changed since this run read it; the run goes on with what it read")
        return load_tokenizer(str(home / "tokenizer"), key="tokenizer"), facts
    with display.stage("data", unit="documents") as bar, whole_folder(home) as scratch:
        seen: dict[str, Seen] = {}
        spool = Spool(scratch / "documents.jsonl", documents(data.corpus, seen))
        for key, found in seen.items():
            display.note(f"{key}: {found.line()}")
            if left_out := found.left_out():
                display.warn(f"{key}: {left_out}, and were left out")
        if before is not None and before["fingerprint"] != _hash(spool.keys) and any(path.exists() for path in later):
            raise InputError(
                f"{home} is torn, and the corpus has changed since it was read",
                key="data.corpus",
                fix="Bring back the corpus as it was, or name another `run:` folder",
            )
        cut = holdout_cut(spool.keys, data.heldout)
        if tokenizer is None:
            assert isinstance(recipe.tokenizer, TrainedTokenizer)
            texts = (text for document in spool if document.key > cut for text in document.texts())
            tokenizer = train_tokenizer(texts, recipe.tokenizer.train.vocab_size)
        if recipe.vocabulary is not None:
            assert teacher is not None  # the recipe made sure
            lm = load_model(teacher, tokenizer, key="teacher")
            kept = student_tokens(recipe.vocabulary, _counts(spool, cut, tokenizer), lm, tokenizer)
            del lm
            (scratch / "vocabulary.json").write_text(
                json.dumps({"ids": kept.ids_K.tolist(), "teacher_size": kept.teacher_size, "other": kept.other})
            )
            held_out = (document for document in spool if document.key <= cut)
            write_corpus(scratch / OWN_HELDOUT, held_out, tokenizer)
            tokenizer = cut_tokenizer(tokenizer, kept)
        tokenizer.save_pretrained(scratch / "tokenizer")
        bar.total = len(spool.keys)
        write_corpora(scratch, spool, tokenizer, cut, progress=bar.advance)
        spool.path.unlink()
    train, heldout = open_corpus(home / "train"), open_corpus(home / "heldout")
    facts = {
        "fingerprint": _hash(spool.keys),
        "files": file_stamps(data.corpus),
        "tokenizer": token_map_fingerprint(tokenizer),
        "vocabulary": len(tokenizer.get_vocab()),
        "train": {"documents": len(train), "labels": train.labels(), "bytes": int(train.n_bytes.sum())},
        "heldout": {"documents": len(heldout), "labels": heldout.labels(), "bytes": int(heldout.n_bytes.sum())},
    }
    return tokenizer, folder.finish("data", facts)


def _counts(spool: Spool, cut: str, tokenizer: Any) -> Counter[int]:
    """How often the documents to train on use each token; the held-out ones have no say.

    Raises:
        InputError: a document holds the name of the bucket as text, and would be read as one.
    """
    counts: Counter[int] = Counter()
    for document in spool:
        if any(OTHER in text for text in document.texts()):
            raise InputError(
                f"document {document.key[:12]} holds the text {OTHER}, which a cut vocabulary gives to what it drops",
                key="data.corpus",
                fix="Remove it, or leave `vocabulary` out",
            )
        if document.key > cut:
            counts.update(encode(document, tokenizer).ids)
    return counts


def kept_tokens(run: Path) -> KeptTokens | None:
    """Which of the teacher's tokens a run's students have; None: all."""
    path = run / "data" / "vocabulary.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    return KeptTokens(torch.tensor(found["ids"]), found["teacher_size"], found["other"])


def _hash(keys: set[str]) -> str:
    """Fingerprint of a set of documents: the order they stand in says nothing."""
    return hashlib.sha256("".join(sorted(keys)).encode()).hexdigest()[:16]


def _fingerprint_of(recipe: Recipe) -> str:
    return _hash({document.key for document in documents(recipe.data.corpus)})


def _adopt_moved_corpus(recipe: Recipe, folder: RunFolder, inputs: dict[str, Any]) -> None:
    """The same documents under another path, or in other files, are the same corpus."""
    was = folder.inputs("data")
    if was is None or was["data"].get("corpus") == inputs["data"]["corpus"]:
        return
    if {**was, "data": {**was["data"], "corpus": inputs["data"]["corpus"]}} != inputs:
        return  # more than the place has changed: let the marker say what
    made = folder.done("data", was)
    if made is not None and made["fingerprint"] == _fingerprint_of(recipe):
        folder.adopt("data", inputs)
