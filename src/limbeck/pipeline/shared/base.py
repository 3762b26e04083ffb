"""What the stages of a distillation share: names, folders, and the models that they ask for."""

from __future__ import annotations

import errno
import functools
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from limbeck.data.corpus import Corpus, open_corpus
from limbeck.errors import MachineError, RecipeError, under
from limbeck.formats.localise import localised
from limbeck.models.causal_lm import CausalLM
from limbeck.models.folders.saved import quiet
from limbeck.models.restricted import KeptTokens, read_kept_tokens
from limbeck.models.tokenizer import load_tokenizer, require_equal_maps
from limbeck.recipe import Data, PackageModel, PathModel, PathTokenizer, Tokenizer, TrainedTokenizer, Training
from limbeck.runtime.pool import ModelPool, ModelRef
from limbeck.workflow.stage import UNKNOWN, Context, Facts, Plain, Stage

MACHINE, DATA, TEACHER = "machine", "data", "teacher"
HELDOUT_OWN = "heldout-teacher"
"""The held-out documents in the teacher's own tokens, where its students have fewer."""

OPERATIONAL = {"checkpoint_every_steps", "log_every_steps", "cache"}
"""Settings of a training that change nothing of what is learned."""


@dataclass(frozen=True, kw_only=True)
class PipelineStage(Stage):
    """A stage that works with models.

    Attributes:
        threads: CPU threads, where the recipe says so; None: what was found best on this machine.
        keys: how parts of keys are called in the recipe.
    """

    threads: int | None = None
    keys: Mapping[str, str] = field(default_factory=dict)

    def recipe_keys(self) -> Mapping[str, str]:
        return self.keys

    def run(self, up: Facts, context: Context) -> dict[str, Plain]:
        torch.set_num_threads(self.n_threads(up))
        quiet()
        with failures_named(context.folder):
            return self.work(up, context)

    def n_threads(self, up: Facts) -> int:
        """CPU threads of this stage."""
        return int(self.threads or up[MACHINE]["threads"])

    @abstractmethod
    def work(self, up: Facts, context: Context) -> dict[str, Plain]:
        """As ``run``, with threads set and failures of the machine named."""


@contextmanager
def failures_named(folder: Path) -> Iterator[None]:
    """Say of a disk that is full where it is (numpy and safetensors do not), and of memory what needs less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        raise MachineError(
            "there is not enough memory",
            key="training.micro_batch_size",
            fix="Lower it and raise training.gradient_accumulation_steps, or set training.gradient_checkpointing, or "
            "take a smaller model",
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


# ------------------------------------------------------------------------------------------- keys


def settings(training: Training, machine: Mapping[str, Plain] | None = None) -> dict[str, Plain]:
    """The part of a training section that changes what is learned, with its precision resolved."""
    plain = training.model_dump(mode="json", exclude=OPERATIONAL)
    if machine is not None:
        plain["precision"] = precision(training.precision, machine)
    return plain


def precision(asked: str, machine: Mapping[str, Plain]) -> str:
    """``auto`` as it was decided for this run."""
    decided: str = machine["precision"]
    return decided if asked == "auto" else asked


def data_key(data: Data, facts: Mapping[str, Plain], *, pack: bool = True) -> dict[str, Plain]:
    """What a later stage takes from the data: which documents, which of them are held out, in which tokens and
    rows. ``pack``: how they share rows matters too."""
    train = facts["train"]
    return {
        "fingerprint": facts["fingerprint"],
        "tokenizer": facts["tokenizer"],
        "heldout": data.heldout,
        "end": data.end,
        "seq_len": data.seq_len,
        **({"pack": data.pack} if pack else {}),
        # Of a corpus that was tokenised in part, which part.
        **({} if train is not UNKNOWN and is_whole(train) else {"documents": train["documents"]}),
    }


def is_whole(part: Mapping[str, Plain]) -> bool:
    """Whether all documents of a part of the corpus were tokenised (facts of the data stage)."""
    return bool(part["documents"] == part["of"])


# -------------------------------------------------------------------------------------- the corpus


@dataclass(frozen=True)
class Text:
    """The corpus of a run in tokens.

    Attributes:
        tokenizer: the run's.
        train, heldout: its documents.
        kept: which of the teacher's tokens the students have; None: all.
        heldout_own: then, the held-out documents in the teacher's own tokens, in the same order.
    """

    tokenizer: Any
    train: Corpus
    heldout: Corpus
    kept: KeptTokens | None
    heldout_own: Corpus | None


def open_text(run: Path) -> Text:
    home = run / DATA
    kept = read_kept_tokens(home / "vocabulary.json")
    return Text(
        run_tokenizer(home),
        open_corpus(home / "train"),
        open_corpus(home / "heldout"),
        kept,
        open_corpus(home / HELDOUT_OWN) if kept is not None else None,
    )


@functools.cache
def _tokenizer(folder: Path, stamp: int) -> Any:
    with under("tokenizer"):
        return load_tokenizer(str(folder))


def run_tokenizer(home: Path) -> Any:
    """The tokenizer of a run's data folder, loaded once a process."""
    folder = home / "tokenizer"
    return _tokenizer(folder, folder.stat().st_mtime_ns)


def given_tokenizer(section: Tokenizer | None, teacher: PathModel | None, end: str, place: str = TEACHER) -> Any:
    """The recipe's tokenizer, else that of a model; its EOS token as the recipe says. None for one that is still to be
    trained.

    Args:
        section: of the recipe.
        teacher: the model whose tokens the run has: the teacher, or a student of a teacher that is called.
        end: the recipe's ``data.end``.
        place: the model's in the recipe.
    """
    if isinstance(section, TrainedTokenizer):
        return None
    own: Any = None
    if teacher is not None:
        with under(f"{place}.path"):
            own = load_tokenizer(teacher.path, revision=teacher.revision)
    tokenizer = own
    if isinstance(section, PathTokenizer):
        with under("tokenizer.path"):
            tokenizer = load_tokenizer(section.path)
            if own is not None:
                require_equal_maps(own, tokenizer)
    if end == "bos":
        if tokenizer.bos_token is None:
            raise RecipeError("the tokenizer has no BOS token", key="data.end", fix="Write `end: eos`")
        tokenizer.eos_token = tokenizer.bos_token
    return tokenizer


# ---------------------------------------------------------------------------------------- models


@functools.cache
def located(spec: PathModel | PackageModel) -> tuple[PathModel, str | None]:
    """Where a model's weights are, and a line on what a quantised file has lost; a GGUF file is read into the cache."""
    found, note = localised(spec)
    return found, note


@functools.cache
def pool() -> ModelPool:
    """The models of this process."""
    return ModelPool()


@contextmanager
def lease(
    spec: PathModel, text: Text, key: str, *, trainable: bool = False, seq_len: int | None = None
) -> Iterator[CausalLM]:
    """A model that has the run's tokens.

    Args:
        spec: where it is.
        text: the run's.
        key: its place in the recipe, for errors.
        trainable: a private copy.
        seq_len: the longest row that it will see.
    """
    with ExitStack() as stack:
        with under(key):  # around the loading alone: what is done with the model has a place of its own
            lm = stack.enter_context(
                pool().lease(ModelRef.of(spec), tokenizer=text.tokenizer, trainable=trainable, seq_len=seq_len)
            )
        yield lm


@contextmanager
def lease_teacher(
    spec: PathModel, text: Text, *, trainable: bool = False, rounded: bool = False, seq_len: int | None = None
) -> Iterator[CausalLM]:
    """A teacher; where its students have fewer tokens, it is seen through their vocabulary.

    ``rounded``: with its linear layers held in bfloat16.
    """
    reference = ModelRef.of(spec, rounded=rounded)
    with ExitStack() as stack:
        with under(TEACHER):
            lm = stack.enter_context(
                pool().lease(reference, tokenizer=text.tokenizer, kept=text.kept, trainable=trainable, seq_len=seq_len)
            )
        yield lm


def require_packing(lm: CausalLM, data: Data) -> None:
    """Refuse packed rows of a model that lets their documents see each other."""
    if data.pack and not lm.packs:
        raise RecipeError(
            f"{type(lm.core).__name__} lets packed documents see each other", key="data.pack", fix="Write `pack: false`"
        )
