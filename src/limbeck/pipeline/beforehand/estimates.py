"""What is known of a training before it runs: documents, steps, epochs. No torch: ``limbeck check`` asks here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from limbeck.data.documents.document import Document
from limbeck.data.documents.sources import documents, first_documents, named_files
from limbeck.data.reading.containers import COMPRESSED
from limbeck.errors import counted
from limbeck.recipe import Data, HubSource, ParquetSource, Source, StdlibSource, Training

FIRST_DOCUMENTS = 20
"""Of every source, how many documents are read and tokenised before anything is spent."""

SMALL_CORPUS = 1 << 18
"""Bytes of files up to which all documents are."""

FEW_STEPS = 50

MANY_EPOCHS = 40
"""More teach nothing, or next to nothing (Muennighoff et al. 2023, arXiv 2305.16264, figure 3)."""

_BINARY = (".parquet", ".pq", ".arrow", ".feather", ".ipc")


@dataclass(frozen=True)
class Sample:
    """Documents that were read before a run.

    Attributes:
        documents: all of a small corpus, else the first of every source on this machine.
        whole: whether they are all.
        n_bytes: of the files of the whole corpus; None where that says nothing of its text (compressed and binary
            files, the standard library, data sets of the hub).
    """

    documents: Sequence[Document]
    whole: bool
    n_bytes: int | None


def sample_of(data: Data) -> Sample:
    """Read a small corpus whole, and of another the first documents.

    Raises:
        RecipeError, InputError: a source is missing, unreadable, or holds no document.
    """
    sizes = [_bytes_of(source, f"data.corpus.{number}") for number, source in enumerate(data.corpus)]
    known = [size for size in sizes if size is not None]
    n_bytes = sum(known) if len(known) == len(sizes) else None
    first = [document for _, document in first_documents(data.corpus, FIRST_DOCUMENTS)]
    if n_bytes is None or n_bytes > SMALL_CORPUS:
        return Sample(first, False, n_bytes)
    whole = list({document.key: document for document in documents(data.corpus)}.values())
    return Sample(whole, True, n_bytes)


def _bytes_of(source: Source, key: str) -> int | None:
    """Bytes of a source's files, where they are plain text."""
    if isinstance(source, StdlibSource | HubSource | ParquetSource):
        return None
    files = named_files(source, key)
    if any(file.suffix.lower() in (*COMPRESSED, *_BINARY) for file in files):
        return None
    return sum(file.stat().st_size for file in files)


@dataclass(frozen=True)
class Labels:
    """What the tokens of a sample say of a corpus.

    Attributes:
        documents, tokens, labels: of the sample.
        to_train: labels of all documents to train on; None: not known.
        exact: whether ``to_train`` was counted. Otherwise it is the most that there can be.
    """

    documents: int
    tokens: int
    labels: int
    to_train: int | None
    exact: bool

    @classmethod
    def of(cls, sample: Sample, read: Sequence[int], data: Data) -> Labels:
        """``read``: documents of the sample, their tokens and labels."""
        count, tokens, labels = read
        if sample.whole:
            return cls(count, tokens, labels, round(labels * (1 - data.heldout)), True)
        text = sum(len(text.encode("utf-8", "surrogatepass")) for each in sample.documents for text in each.texts())
        if sample.n_bytes is None or not text:
            return cls(count, tokens, labels, None, False)
        # A file has more bytes than the text in it: names of columns, escapes, what is left out.
        return cls(count, tokens, labels, round(sample.n_bytes * labels / text * (1 - data.heldout)), False)

    def epochs(self, tokens: int) -> float | None:
        """How often a training reads its documents, at least; None: not known."""
        return tokens / self.to_train if self.to_train else None

    def too_many(self, tokens: int, key: str) -> list[str]:
        """A warning where a training reads the same documents again and again."""
        epochs = self.epochs(tokens)
        if epochs is None or epochs <= MANY_EPOCHS:
            return []
        assert self.to_train is not None
        most = "" if self.exact else "at most "
        least = "" if self.exact else "at least "
        return [
            f"{key}.tokens: {tokens:,} tokens of {most}{self.to_train:,} labels are {least}{epochs:,.0f} epochs; past "
            f"about {MANY_EPOCHS} little is learned: lower it, or bring more text"
        ]

    def steps(self, section: Training, data: Data) -> int:
        """About how many steps a training takes: packed rows are full of tokens, others hold a document."""
        if not self.documents or not self.tokens:
            labels = float(data.seq_len)
        elif data.pack:
            labels = data.seq_len * self.labels / self.tokens
        else:
            labels = self.labels / self.documents
        step = section.micro_batch_size * section.gradient_accumulation_steps * min(labels, data.seq_len)
        return max(1, -(-section.tokens // max(1, round(step))))


def few_steps(section: Training, data: Data, labels: Labels | None) -> list[str]:
    """A warning where a training is over before it has begun. ``labels``: None: rows are taken to be full of them."""
    rows = section.micro_batch_size * section.gradient_accumulation_steps
    steps = (labels or Labels(0, 0, 0, None, False)).steps(section, data)
    if steps >= FEW_STEPS:
        return []
    return [
        f"training: {section.tokens:,} labels are about {counted(steps, 'step')} of {counted(rows, 'row')}, which "
        "teach little; raise training.tokens, or lower micro_batch_size or gradient_accumulation_steps"
    ]
