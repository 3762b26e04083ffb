"""Stores of signals as stages use them: where they are, whose they are, and how large they become."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.data.corpus import FORMAT, Corpus
from limbeck.errors import RecipeError
from limbeck.models.causal_lm import Traits
from limbeck.models.folders.configuration import configuration
from limbeck.models.tokenizer import vocabulary_size
from limbeck.pipeline.stored.room import home_of
from limbeck.recipe import Data, PathModel, Signals, fingerprint
from limbeck.signals.codec import CODEC
from limbeck.signals.scheme import Scheme
from limbeck.signals.source import SignalSource
from limbeck.signals.spans import WINDOW
from limbeck.signals.store import Identity
from limbeck.signals.store.manifest import is_store
from limbeck.signals.stored import StoredTeacher
from limbeck.workflow.stage import Plain


def scheme_of(section: Signals, temperature: float) -> Scheme:
    return Scheme(section.scheme, section.threshold, section.k, section.draws, temperature, section.seed)


@dataclass(frozen=True)
class Asked:
    """What is asked of a teacher, and by which settings it is kept.

    Attributes:
        section: of the recipe; ``temperature``: of its technique.
        teacher: fingerprint of what answers, its precision in it.
        window: the most tokens that it reads at a time; 0 where it reads rows, which say it themselves.
        vocab_size: tokens of its distributions.
    """

    section: Signals
    temperature: float
    teacher: str
    window: int
    vocab_size: int

    @classmethod
    def of(cls, section: Signals, temperature: float, teacher: str, spec: PathModel, tokenizer: Any) -> Asked:
        """By the teacher's configuration, so that its weights are not read.

        Args:
            spec: where the teacher is.
            tokenizer: the run's, which may be a part of the teacher's.

        Raises:
            RecipeError: a window that the teacher cannot read; the key is relative to the section.
        """
        config = configuration(spec).get_text_config()
        vocab_size = min(vocabulary_size(tokenizer), int(config.vocab_size))
        return cls(section, temperature, teacher, window_of(section, Traits.of(config).max_positions), vocab_size)

    @property
    def scheme(self) -> Scheme:
        return scheme_of(self.section, self.temperature)

    def identity(self, data: Data, facts: Mapping[str, Plain], text: str | None) -> Identity:
        """Whose signals these are.

        Args:
            data: section of the recipe; ``facts``: of its stage: tokenizer and chat template.
            text: fingerprint of text that a teacher wrote, whose documents are known by their numbers; None: the
                corpus, whose documents are known by their hashes.
        """
        encoding = fingerprint(FORMAT, facts["chat_template"], facts["date"], data.end)
        return Identity(
            teacher=self.teacher,
            tokenizer=facts["tokenizer"],
            vocab_size=self.vocab_size,
            scheme=self.scheme.plain(),
            context=self.section.context,
            encoding=encoding if text is None else f"{encoding}-{text}",
            codec=CODEC,
            window=self.window,
        )


def window_of(section: Signals, longest: int | None) -> int:
    """The most tokens that the teacher reads at a time; 0 where it reads rows.

    Args:
        longest: that it can read; None: any.

    Raises:
        RecipeError: it cannot read as many as the recipe says; the key is relative to the section.
    """
    if section.context == "row":
        return 0
    if section.window is not None and longest is not None and section.window > longest:
        raise RecipeError(
            f"got {section.window}, but the teacher reads {longest} positions", key=".window", fix="Lower it"
        )
    return section.window or min(longest or WINDOW, WINDOW)


def store_of(section: Signals, run: Path, identity: Identity) -> Path:
    """The folder of a store: what the recipe names, if that is a store itself, else one in the folder of stores.

    Raises:
        StoreError: what it names is a store whose manifest is lost.
    """
    home = home_of(section, run)
    return home if is_store(home) else home / f"{section.scheme}-{section.context}-{identity.fingerprint}"


def fingerprint_of_text(corpus: Corpus) -> str:
    """Of documents that are known by their number alone."""
    digest = hashlib.sha256()
    for array in (corpus.ids, corpus.loss_mask, corpus.lengths):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def read_of(teacher: SignalSource | None, result: Mapping[str, Plain]) -> dict[str, float]:
    """Bytes of a store that a training reads, a step and a token; empty where it read none in this process."""
    if not isinstance(teacher, StoredTeacher) or not teacher.positions:
        return {}
    token = teacher.store.bytes_read / teacher.positions
    return {"bytes_a_token": round(token, 2), "bytes_a_step": round(token * result["tokens"] / result["steps"])}
