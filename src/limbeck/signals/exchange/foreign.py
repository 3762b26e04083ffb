"""Other people's log-probabilities into a store of top-k signals, after it is proven what they are.

Shape letters: T tokens of a text; n positions of a span.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from limbeck.data.chat.encode import MASKED
from limbeck.data.corpus import Corpus
from limbeck.errors import InputError, StoreError
from limbeck.models.causal_lm import CausalLM
from limbeck.signals.codec import encode
from limbeck.signals.exchange import distillkit
from limbeck.signals.exchange.json_lines import AXOLOTL, read_axolotl_parquet, read_json_lines
from limbeck.signals.exchange.match import Documents
from limbeck.signals.exchange.proof import POSITIONS, Proof, places, prove
from limbeck.signals.exchange.scored import Scored, top_k
from limbeck.signals.spans import context_of, digest_of, grid_of
from limbeck.signals.store import Identity, Span, SpanSignal
from limbeck.signals.upkeep.join import Copied, copy_into


@dataclass
class Seen:
    """Texts in a file; ``matched``: of them, those that are documents of the corpus."""

    texts: int = 0
    matched: int = 0


@dataclass(frozen=True)
class Imported:
    """What came of an import.

    Attributes:
        copied: spans that were added, and that were there.
        texts: in the file; ``matched``: of them, those that are documents of the corpus.
        proof: how well the file and the teacher agree.
    """

    copied: Copied
    texts: int
    matched: int
    proof: Proof


def texts_of(source: Path) -> Iterator[Scored]:
    """The texts in a file, or in all files of a folder, of any of the formats that are known.

    Raises:
        InputError: there is no such file, or its format is unknown.
    """
    if source.is_dir():
        files = sorted(file for file in source.iterdir() if file.suffix in (".parquet", ".jsonl"))
    else:
        files = [source] if source.exists() else []
    if not files:
        raise InputError(f"there are no .parquet or .jsonl files in {source}", fix="Check the path")
    return chain.from_iterable(map(_texts, files))


def _texts(file: Path) -> Iterator[Scored]:
    if file.suffix != ".parquet":
        return read_json_lines(file)
    names = set(pq.read_schema(file).names)
    if names >= AXOLOTL:
        return read_axolotl_parquet(file)
    if "input_ids" in names and any(names >= each for each in (distillkit.RAW, distillkit.PACKED, distillkit.LEGACY)):
        return distillkit.read_distillkit(file)
    raise InputError(
        f"{file} has columns {', '.join(sorted(names))}, of no format that is known",
        fix="Known are DistillKit's, vLLM's and axolotl's, and limbeck's own export",
    )


def import_texts(
    source: Path,
    folder: Path,
    identity: Identity,
    corpus: Corpus,
    lm: CausalLM,
    progress: Callable[[int], None] = lambda n: None,
) -> Imported:
    """Read a file into a store, after 32 positions of it were scored again.

    A text is a document of the corpus, or its beginning, by its tokens. Spans that it holds whole are stored, with
    the k likeliest entries and the tail that they leave; of other spans nothing.

    Args:
        source: a file or folder.
        folder: of the store; made if it is not there.
        identity: of the store: scheme ``top_k``, context ``document``.
        corpus: the documents of the run.
        lm: the teacher that the file is said to be of.
        progress: is told of spans.

    Raises:
        InputError: the file is of an unknown format, of other documents, or not what the teacher says.
        StoreError: the store's scheme or context cannot be had of such a file.
    """
    scheme = identity.scheme
    if scheme["kind"] != "top_k" or identity.context != "document":
        raise StoreError(
            f"an import makes signals of scheme top_k and context document, not {scheme['kind']} and "
            f"{identity.context}",
            fix="Write `scheme: top_k` and `context: document` into `signals`",
        )
    documents = Documents(corpus)
    proof = prove(lm, _first(source, documents, identity.vocab_size), float(scheme["temperature"]))
    seen = Seen()
    signals = _signals(texts_of(source), documents, corpus, identity, proof.shift, seen)
    copied = copy_into(folder, identity, signals, progress)
    return Imported(copied, seen.texts, seen.matched, proof)


def _first(source: Path, documents: Documents, vocab_size: int) -> list[Scored]:
    """Texts to be scored again: the first that are documents, and have room for a shift."""
    found: list[Scored] = []
    seen = 0
    for text in texts_of(source):
        seen += 1
        text.check(vocab_size)
        if places(text) and documents.find(text.ids):
            found.append(text)
            if sum(len(places(each)) for each in found) >= POSITIONS:
                break
    if not found:
        raise InputError(
            f"none of the {seen:,} texts in {source} is a document of this recipe",
            fix="Name the data that it was made of in `data.corpus`; a text must begin where the document begins",
        )
    return found


def _signals(
    texts: Iterable[Scored],
    documents: Documents,
    corpus: Corpus,
    identity: Identity,
    shift: int,
    seen: Seen,
) -> Iterator[SpanSignal]:
    for text in texts:
        seen.texts += 1
        text.check(identity.vocab_size)
        found = documents.find(text.ids)
        seen.matched += bool(found)
        for d, common in found:
            yield from _of_document(text.shifted(shift), corpus, d, common, identity)


def _of_document(text: Scored, corpus: Corpus, d: int, common: int, identity: Identity) -> Iterator[SpanSignal]:
    """The spans of a document that a text holds whole."""
    ids, mask = corpus.document(d)
    n, grid = len(ids) - 1, grid_of(identity.window)
    k = min(int(identity.scheme["k"]), identity.vocab_size)
    for start in range(0, n, grid):
        length = min(grid, n - start)
        if context_of(start, identity.window) != 0:  # the teacher would have seen less than the file's did
            return
        labels = mask[start + 1 : start + length + 1] != MASKED
        counts, tokens, logprobs = text.part(start, labels)
        known = np.arange(start, start + length) < common - 1
        if not labels.any() or not (counts > 0)[labels].all() or not known[labels].all():
            continue
        fewest = int(counts[labels].min())
        if fewest < k:
            raise InputError(
                f"{text.where} has a position with {fewest} entries, and the recipe asks for {k}",
                fix=f"Write `k: {fewest}` into `signals`",
            )
        encoded = encode(top_k(counts, tokens, logprobs, k), identity.vocab_size)
        yield SpanSignal(Span(int(corpus.keys[d]), start, length, 0, digest_of(ids[: start + length + 1])), encoded)
