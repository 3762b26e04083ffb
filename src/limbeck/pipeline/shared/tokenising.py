"""The corpus stage's work on documents: tokenising them, counting tokens, and what is said of it."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.data.corpus import Corpus, Encoder, Enough, Twins, left_out_of, open_corpus, write_corpus
from limbeck.data.documents.control import Control
from limbeck.data.documents.seen import Seen
from limbeck.data.documents.sources import documents
from limbeck.data.documents.spool import Spool
from limbeck.data.packing import Rows
from limbeck.errors import InputError, RecipeError, counted
from limbeck.models.tokenizer import OTHER, vocabulary_size
from limbeck.pipeline.shared.base import HELDOUT_OWN
from limbeck.recipe import Data
from limbeck.workflow.stage import Context, Task


def check_ids(rows: Mapping[str, int], tokenizer: Any, corpora: Sequence[Corpus]) -> None:
    """Refuse a corpus that uses a token which a model has no embedding for. Templates write such tokens too.

    A tokenizer may have more tokens than its model has rows (Gemma 3 1B: an image token); most texts use none.

    Args:
        rows: token embeddings of each model whose weights exist, by its place in the recipe.
        tokenizer: that of the corpora.
        corpora: in the ids of ``tokenizer``.
    """
    fewest = min(rows, key=rows.__getitem__, default=None)
    if fewest is None or vocabulary_size(tokenizer) <= rows[fewest]:
        return
    greatest = max((int(corpus.ids.max()) for corpus in corpora if len(corpus.ids)), default=0)
    if greatest >= rows[fewest]:
        raise RecipeError(
            f"the data uses token {greatest} ({tokenizer.convert_ids_to_tokens(greatest)!r}), but the model has "
            f"{rows[fewest]} token embeddings",
            key=fewest,
            fix="Use the tokenizer that the model was trained with, or remove that token from the data",
        )


def facts_of(folder: Path, part: range) -> dict[str, int]:
    """Documents (and of how many that are not left out), labels and bytes of a part of the corpus."""
    corpus = open_corpus(folder)
    of = len(part) - left_out_of(folder)
    return {"documents": len(corpus), "of": of, "labels": corpus.labels(), "bytes": int(corpus.n_bytes.sum())}


def cost_of_a_cut(home: Path) -> str:
    """Text with dropped tokens falls into pieces: more of them to read, and not those the teacher learned."""
    kept = json.loads((home / "vocabulary.json").read_text())
    heldout, own = open_corpus(home / "heldout"), open_corpus(home / HELDOUT_OWN)
    both = min(len(heldout), len(own))  # of a large corpus, one may hold more of it
    ours, theirs = (int(corpus.lengths[:both].sum()) for corpus in (heldout, own))
    more = 100 * (ours / max(theirs, 1) - 1)
    size = len(kept["ids"]) + (kept["other"] is not None)
    takes = f"{abs(more):.1f}% {'fewer' if more < 0 else 'more'} of them than"
    if ours == theirs:
        takes = "as many of them as"
    elif abs(more) < 0.05:
        takes = "about as many of them as"
    return (
        f"vocabulary: {size:,} of the teacher's {kept['teacher_size']:,} tokens; held-out text takes {takes} of the "
        "teacher's own"
    )


def read_into(folder: Path, data: Data, tokenizer: Any, context: Context) -> Spool:
    """Read the documents of a recipe, and say what was recognised and left out.

    Args:
        tokenizer: of the run; None for one that is still to be trained.
    """
    seen: dict[str, Seen] = {}
    control = Control(tokenizer)
    with context.task("read the corpus", unit="documents") as task, showing(task) as progress:
        spool = Spool.write(folder, control.counting(documents(data.corpus, seen)), progress)
    for key, found in seen.items():
        context.note(f"{key}: {found.line()}")
        if left_out := found.left_out():
            context.warn(f"{key}: {left_out}, and were left out")
        for doubt in found.doubts():
            context.warn(f"{key}: {doubt}")
    if spool.duplicates:
        context.note(f"data.corpus: {spool.duplicates:,} duplicates were left out ({len(spool):,} documents remain)")
    for remark in control.remarks():
        context.warn(f"data.corpus: {remark}")
    return spool


def cuts_of(folder: Path, data: Data) -> tuple[str | None, bool]:
    """What the ends of rows do to the documents to train on, in a line (None: nothing), and whether answers lose
    their questions by it."""
    cuts = Rows(open_corpus(folder), data.seq_len, pack=data.pack).cuts()
    said = []
    if cuts.longer:
        said.append(
            f"{cuts.longer:,} of {cuts.documents:,} documents to train on are longer than data.seq_len "
            f"({data.seq_len} tokens) and are cut into rows"
        )
    if cuts.answers:
        unpacked = " and `data.pack: false` keep" if data.pack else " keeps"
        said.append(
            f"{cuts.answers:,} answers are learned without all of their question, because a row ends between; a larger "
            f"data.seq_len{unpacked} more of them together"
        )
    return "; ".join(said) or None, bool(cuts.answers)


def write_parts(
    folder: Path, encoder: Encoder, parts: dict[str, range], enough: dict[str, Enough], context: Context
) -> Counter[str]:
    """Tokenise both parts. Held-out documents that have the tokens of one to train on are left out.

    Returns:
        What is to be said of them.

    Raises:
        InputError: nothing is left to measure on.
    """
    remarks: Counter[str] = Counter()
    with context.task("data", len(encoder.spool), "documents") as task, showing(task) as progress:
        remarks += write_corpus(folder / "train", encoder, parts["train"], enough["train"], progress=progress)
        twins = Twins(open_corpus(folder / "train"))
        remarks += write_corpus(
            folder / "heldout",
            encoder,
            parts["heldout"],
            enough["heldout"],
            lambda _, encoded: encoded in twins,
            progress,
        )
    if left_out := left_out_of(folder / "heldout"):
        whose = "has the tokens of a document" if left_out == 1 else "have the tokens of documents"
        were = "was" if left_out == 1 else "were"
        context.note(f"data: {counted(left_out, 'held-out document')} {whose} to train on, and {were} left out")
        if not len(open_corpus(folder / "heldout")):
            raise InputError(
                "every held-out document has the tokens of a document to train on: nothing is left to measure on",
                key="data.corpus",
                fix="Add other documents, or raise data.heldout",
            )
    return remarks


def write_heldout_own(folder: Path, encoder: Encoder, heldout: range, enough: Enough) -> None:
    """The held-out documents in the tokens of another tokenizer: those that the corpus in ``folder`` holds out."""
    kept = open_corpus(folder / "heldout").keys
    read = range(heldout.start, heldout.start + len(kept) + left_out_of(folder / "heldout"))
    left_out = set(read) - set(np.flatnonzero(np.isin(encoder.spool.keys[: read.stop], kept)).tolist())
    write_corpus(folder / HELDOUT_OWN, encoder, heldout, enough, lambda number, _: number in left_out)


@contextmanager
def showing(task: Task) -> Iterator[Callable[[int, int], None]]:
    """A function that is told of documents and bytes, and shows them a megabyte at a time."""
    documents = n_bytes = shown = 0
    start: tuple[float, int] | None = None

    def show() -> None:
        nonlocal shown
        shown = n_bytes
        seconds = time.monotonic() - start[0] if start is not None else 0.0
        task.update(documents, f"{(n_bytes - start[1]) / 1e6 / max(seconds, 1e-3):.1f} MB/s" if start else "")

    def progress(more: int, more_bytes: int) -> None:
        nonlocal documents, n_bytes, start
        documents, n_bytes = documents + more, n_bytes + more_bytes
        if start is None:  # what an earlier process did has no part in the speed
            start = time.monotonic(), n_bytes
            show()
        elif n_bytes - shown >= 1_000_000:
            show()

    yield progress
    show()


def texts_of(spool: Spool, start: int, end: int) -> Iterator[str]:
    """Texts of the documents with these numbers, a block in memory at a time."""
    while start < end:
        stop = spool.block_end(start, end)
        for _, document in spool.read(start, stop):
            yield from document.texts()
        start = stop


def token_counts(encoder: Encoder, train: range, enough: Enough) -> Counter[int]:
    """How often the documents to train on use each token, as far as they are needed; held-out ones have no say.

    Raises:
        InputError: a document holds the name of the bucket as text, and would be read as one.
    """
    counts, labels = Counter[int](), 0
    for _, document in encoder.spool.read(0, len(encoder.spool)):
        if any(OTHER in text for text in document.texts()):
            raise InputError(
                f"document {document.key[:12]} holds the text {OTHER}, which a cut vocabulary gives to what it drops",
                key="data.corpus",
                fix="Remove it, or leave `vocabulary` out",
            )
    for block in encoder.blocks(train.start, train.stop):
        for _, encoded in block:
            counts.update(encoded.ids)
            labels += len(encoded.loss_mask) - bytes(encoded.loss_mask).count(0)
        if labels >= enough.labels:
            break
    return counts
