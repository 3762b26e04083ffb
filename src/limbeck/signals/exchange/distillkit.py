"""DistillKit's Parquet: raw rows (token ids and log-probabilities), and packed ones; and raw rows written for it.

A row is a text: ``input_ids`` [T], and for each position that predicts a token either ``token_ids`` and ``top_values``
(lists of k), or ``bytepacked_indices`` and ``compressed_logprobs`` (bytes), with ``compression_config.yaml`` beside the
files. Packed: indices in ``ceil(log2(d))`` bits each, the most significant first; log-probabilities in descending
order as exact values, then the coefficients of a sum of powers of the rank, then what is left in bins of few bits with
a scale each; optionally all of that of the differences between neighbours. As DistillKit 1.0 reads it
(``distillkit/compression``).

Shape letters: T tokens; n positions; k entries a position.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from limbeck.data.chat.encode import MASKED
from limbeck.data.corpus import Corpus
from limbeck.errors import InputError, MissingSignalError, StoreError
from limbeck.files import whole_folder
from limbeck.signals.exchange.scored import Scored
from limbeck.signals.store import Store

CONFIG = "compression_config.yaml"
RAW, PACKED = {"token_ids", "top_values"}, {"bytepacked_indices", "compressed_logprobs"}
LEGACY = {"packed_indices", "exact_values", "coeffs"}
ROWS = 16
"""Texts that are read, and written, together."""

_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


def read_distillkit(file: Path) -> Iterator[Scored]:
    """The rows of a Parquet file.

    Raises:
        InputError: its columns are others, or its configuration is missing.
    """
    names = set(pq.read_schema(file).names)
    if names >= LEGACY:
        raise InputError(
            f"{file} is in DistillKit's legacy format, which holds centred logits: they have no tail",
            fix="Sample the logits again with a DistillKit that writes `compressed_logprobs`",
        )
    packing = None if names >= RAW else Packing.read(file.parent / CONFIG)
    number = 0
    for batch in pq.ParquetFile(file).iter_batches(batch_size=ROWS):
        for row in batch.to_pylist():
            where = f"{file}, row {number}"
            ids = np.array(row["input_ids"], np.int64)
            tokens, logprobs = _raw(row) if packing is None else packing.unpack(row, where)
            here = np.isfinite(logprobs)
            counts = here.sum(1)
            yield Scored(where, ids, counts, tokens[here], logprobs[here].astype(np.float32))
            number += 1


def _raw(row: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and log-probabilities [n, k]; where a position has fewer, -inf."""
    k = max((len(each) for each in row["token_ids"]), default=0)
    tokens = np.zeros((len(row["token_ids"]), k), np.int64)
    logprobs = np.full(tokens.shape, -np.inf)
    for n, (ids, values) in enumerate(zip(row["token_ids"], row["top_values"], strict=True)):
        tokens[n, : len(ids)], logprobs[n, : len(ids)] = ids, values
    return tokens, logprobs


@dataclass(frozen=True)
class Packing:
    """How packed rows are to be read: what ``compression_config.yaml`` says.

    Attributes:
        d: tokens of the vocabulary.
        k, exact_k: entries a position, and how many of them are exact.
        exact_dtype, term_dtype: names of floating types.
        terms: of the curve: exponents, ``sqrt`` or ``exp``.
        bins: of what is left: (type of the scale, bits of an element, elements).
        delta: whether neighbours' differences are stored.
        normalize_t: whether ranks run from 0 to 1.
    """

    d: int
    k: int
    exact_k: int
    exact_dtype: str
    term_dtype: str
    terms: tuple[int | str, ...]
    bins: tuple[tuple[str, int, int], ...]
    delta: bool
    normalize_t: bool

    @classmethod
    def read(cls, path: Path) -> Packing:
        try:
            plain = yaml.safe_load(path.read_text(encoding="utf-8"))
            return cls(
                d=int(plain["d"]),
                k=int(plain["k"]),
                exact_k=int(plain["exact_k"]),
                exact_dtype=plain.get("exact_dtype", "float32"),
                term_dtype=plain.get("term_dtype", "float32"),
                terms=tuple(plain.get("polynomial_terms") or ()),
                bins=tuple(
                    (each["scale_dtype"], int(each["element_bits"]), int(each["num_elements"]))
                    for each in plain["residual_bins"]
                ),
                delta=bool(plain.get("delta_encoding", True)),
                normalize_t=bool(plain.get("normalize_t", False)),
            )
        except OSError:
            raise InputError(
                f"{path} is missing: packed rows cannot be read without it", fix="Copy it from where the rows were made"
            ) from None
        except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path} does not say how the rows are packed ({error!r})") from None

    @property
    def index_bits(self) -> int:
        return math.ceil(math.log2(self.d))

    def unpack(self, row: Mapping[str, Any], where: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and log-probabilities [n, k] of a row."""
        try:
            indices = np.array(row["bytepacked_indices"], np.uint8)
            packed = np.array(row["compressed_logprobs"], np.uint8)
            if not len(indices):
                return np.zeros((0, self.k), np.int64), np.zeros((0, self.k))
            return _unpacked(indices, self.index_bits, self.k), self._logprobs(packed)
        except (ValueError, IndexError) as error:
            raise InputError(f"{where} does not fit {CONFIG} ({error})") from None

    def _logprobs(self, packed: np.ndarray) -> np.ndarray:
        at = 0

        def take(n_bytes: int) -> np.ndarray:
            nonlocal at
            at += n_bytes
            return np.ascontiguousarray(packed[:, at - n_bytes : at])

        exact = _floats(take(self.exact_k * _BYTES[self.exact_dtype]), self.exact_dtype)
        ranks = self.k - self.exact_k
        rest = np.zeros((len(packed), ranks))
        if self.terms:
            coefficients = _floats(take(len(self.terms) * _BYTES[self.term_dtype]), self.term_dtype)
            t = np.linspace(0, 1, ranks) if self.normalize_t else np.arange(ranks, dtype=np.float64)
            curve = np.stack([t**term if isinstance(term, int) else getattr(np, term)(t) for term in self.terms])
            rest += coefficients @ curve
        begin = 0
        for dtype, bits, elements in self.bins:
            scale = _floats(take(_BYTES[dtype]), dtype)
            codes = _unpacked(take((elements * bits + 7) // 8), bits, elements)
            signed = codes * 2.0 - 1.0 if bits == 1 else codes - 2.0 ** (bits - 1)
            rest[:, begin : begin + elements] += signed * scale
            begin += elements
        values = np.concatenate([exact, rest], 1)
        return np.cumsum(values, 1) if self.delta else values


def _floats(raw: np.ndarray, dtype: str) -> np.ndarray:
    """float64 [n, m] of bytes [n, m * size]."""
    if dtype == "bfloat16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return raw.view(np.dtype(dtype).newbyteorder("<")).astype(np.float64)


def _unpacked(raw: np.ndarray, bits: int, elements: int) -> np.ndarray:
    """int64 [n, elements] of numbers of so many bits each, the most significant first."""
    flat = np.unpackbits(raw, axis=1)[:, : bits * elements]
    return flat.reshape(len(raw), elements, bits) @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int64))


def export_distillkit(folder: Path, corpus: Corpus, out: Path) -> tuple[int, int]:
    """Write the documents of a top-k store as raw rows, for DistillKit to train on.

    Its reader renormalises what it gets, or spreads the tail: draws would be read wrongly, so only ``top_k`` is
    exported. Documents of which a position has no signal are left out: its rows have no mask.

    Args:
        corpus: the documents, for their token ids.

    Returns:
        How many documents were written, and how many were left out.

    Raises:
        StoreError: another scheme, or ``out`` is there.
    """
    store = Store(folder)
    kind = store.identity.scheme["kind"]
    if kind != "top_k":
        raise StoreError(
            f"{folder} holds signals of scheme {kind}, which DistillKit would renormalise: they would be biased",
            fix="Capture with `scheme: top_k` to export",
        )
    if out.exists():
        raise StoreError(f"{out} is there already", fix="Name a new folder")
    held = set(store.keys.tolist())
    schema = pa.schema(
        [
            ("input_ids", pa.list_(pa.uint64())),
            ("token_ids", pa.list_(pa.list_(pa.int64()))),
            ("top_values", pa.list_(pa.list_(pa.float32()))),
        ]
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    written = left_out = 0
    plain = False  # whether every token of a document that is left out would be learned
    with whole_folder(out) as scratch, pq.ParquetWriter(scratch / "data_0.parquet", schema) as writer:
        rows: list[dict[str, Any]] = []
        for d, key in enumerate(corpus.keys.tolist()):
            if key not in held:
                continue
            row = _row(store, int(key), corpus.document(d)[0])
            written, left_out = written + (row is not None), left_out + (row is None)
            plain |= row is None and bool((corpus.document(d)[1][1:] != MASKED).all())
            rows += [row] if row is not None else []
            if len(rows) >= ROWS:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))
        if not written and plain:
            raise StoreError(
                f"no document has a signal at every position in {folder}, of context {store.identity.context}: only "
                "parts of documents were captured, and DistillKit's rows have no mask",
                fix="Capture with `context: document`, and more `training.tokens`, so that documents are read whole",
            )
        if not written:
            raise StoreError(
                f"no document has a signal at every position in {folder}: DistillKit's rows have no mask",
                fix="Capture plain text, of which every token is learned",
            )
    return written, left_out


def _row(store: Store, key: int, ids: np.ndarray) -> dict[str, Any] | None:
    """A document as a row; None: a position has no signal."""
    n = len(ids) - 1
    try:
        found = store.read(np.full(n, key, np.uint64), np.arange(n))
    except MissingSignalError:
        return None
    ends = np.cumsum(found.counts)[:-1]
    return {
        "input_ids": ids.tolist(),
        "token_ids": [part.tolist() for part in np.split(found.ids, ends)],
        "top_values": [part.tolist() for part in np.split(found.logprobs, ends)],
    }
