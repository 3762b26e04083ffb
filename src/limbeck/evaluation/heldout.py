"""The documents that models are measured on, and what a model knows of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from limbeck.data.corpus import Corpus
from limbeck.data.packing import Rows, collate
from limbeck.errors import InputError
from limbeck.evaluation.diagnosis import fault_of
from limbeck.evaluation.gap import Measured, measure
from limbeck.models.causal_lm import CausalLM


@dataclasses.dataclass(frozen=True)
class Heldout:
    """The documents that are measured.

    Attributes:
        corpus: the first held-out documents by hash, so that a larger number only adds to them.
        rows: they as rows.
        own_rows: the same in the teacher's own tokens, if it has more than the run; None: it has the run's.
    """

    corpus: Corpus
    rows: Rows
    own_rows: Rows | None

    @classmethod
    def of(cls, corpus: Corpus, own: Corpus | None, seq_len: int, max_documents: int) -> Heldout:
        corpus = _first(corpus, max_documents)
        own_rows = Rows(_first(own, max_documents), seq_len, pack=False) if own is not None else None
        return cls(corpus, Rows(corpus, seq_len, pack=False), own_rows)

    def measure(
        self, lm: CausalLM, against: CausalLM | None = None, progress: Callable[[int], None] = lambda n: None
    ) -> Measured:
        """A model, and its distance to a teacher.

        Raises:
            InputError: the model's logits are not finite on a document.
        """
        measured = measure(lm, self.rows, against, progress=progress)
        if self.own_rows is not None and lm.own_tokenizer is not lm.tokenizer:
            # A teacher knows the text in its own tokens, not in the pieces that its students read; nats over
            # the same documents compare, and stay counted per token of the students'.
            whole = measure(CausalLM(lm.model, lm.own_tokenizer), self.own_rows)
            measured = dataclasses.replace(measured, nats=whole.nats, nats_words=whole.nats_words)
        failed = np.flatnonzero(~np.isfinite(measured.nats))
        if len(failed):
            batches = (collate([self.rows[r]]).to(lm.device) for r in self._rows_of(int(failed[0])))
            raise fault_of(lm, batches, ".") or InputError(
                f"its loss is not finite on {len(failed)} held-out documents", fix="Use another model"
            )
        return measured

    def _rows_of(self, document: int) -> list[int]:
        return [r for r in range(len(self.rows)) if self.rows.document_of(r) == document]


def bits_per_byte(measured: Measured) -> float:
    """Over the words alone; NaN where the documents have none."""
    n_bytes = float(measured.n_bytes.sum())
    return float(measured.nats_words.sum()) / n_bytes / math.log(2) if n_bytes else math.nan


def said(measured: Measured) -> str:
    """In a line."""
    line = f"{bits_per_byte(measured):.3f} bits/byte"
    if measured.kl is not None:
        line += f", KL {measured.kl.sum() / measured.tokens.sum():.3f}"
    return line


def _first(corpus: Corpus, max_documents: int) -> Corpus:
    n = min(max_documents, len(corpus))
    return dataclasses.replace(
        corpus,
        starts=corpus.starts[:n],
        lengths=corpus.lengths[:n],
        n_bytes=corpus.n_bytes[:n],
        keys=corpus.keys[:n],
    )
