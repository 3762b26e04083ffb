"""Spans, capture and the stored teacher: what comes out of a store is what the live teacher says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.data.corpus import Corpus
from limbeck.data.packing import IGNORED, Batch, Rows, collate
from limbeck.errors import InputError, MissingSignalError
from limbeck.models.causal_lm import CausalLM
from limbeck.models.restricted import KeptTokens, RestrictedModel
from limbeck.objectives import Dense, Sparse, Term, logits_of
from limbeck.signals.capture import capture
from limbeck.signals.codec import CODEC
from limbeck.signals.live import LiveTeacher
from limbeck.signals.scheme import Scheme
from limbeck.signals.source import Access, SignalSource
from limbeck.signals.spans import Reading, context_of, digest_of, grid_of, lacking, readings, shared
from limbeck.signals.store import Identity, Span, Store, StoreWriter
from limbeck.signals.stored import StoredTeacher
from tests.unit.test_data import corpus_of
from tests.unit.test_training import ragged_rows

Make = Callable[..., CausalLM]


def corpus(n: int = 30, vocab: int = 200) -> Corpus:
    """Documents with prompts that are not learned, and keys of 64 bits."""
    made = corpus_of([([i % vocab for i in ids], learn) for ids, learn in ragged_rows(n)])
    return replace(made, keys=np.sort(np.random.default_rng(0).integers(2**63, 2**64, len(made), np.uint64)))


def long_corpus(lengths: Iterable[int]) -> Corpus:
    rng = np.random.default_rng(1)
    rows = [(rng.integers(0, 200, n).tolist(), (rng.random(n) > 0.2).tolist()) for n in lengths]
    return corpus_of(rows)


def identity_of(lm: CausalLM, scheme: Scheme, context: str, window: int = 0) -> Identity:
    return Identity("teacher", "tokenizer", lm.vocab_size, scheme.plain(), context, "1", CODEC, window)  # type: ignore[arg-type]


def stored(
    lm: CausalLM, rows: Rows, folder: Path, scheme: Scheme, window: int = 0, precision: str = "fp32"
) -> StoredTeacher:
    """A store of all labels. ``window``: of whole documents; 0: of rows."""
    identity = identity_of(lm, scheme, "document" if window else "row", window)
    with StoreWriter(folder, identity) as writer:
        capture(lm, readings(rows, range(len(rows)), identity.context, window), writer, scheme, precision=precision)
    return StoredTeacher(Store(folder, identity))


def all_of(rows: Rows) -> Batch:
    return collate([rows[r] for r in range(len(rows))])


def places(batch: Batch) -> list[tuple[int, int]]:
    """Document and offset of every label."""
    learned = batch.labels_BT != IGNORED
    return list(zip(batch.keys_BT[learned].tolist(), batch.offsets_BT[learned].tolist(), strict=True))


def probabilities(lm: CausalLM, rows: Rows) -> torch.Tensor:
    target = LiveTeacher(lm).signal(all_of(rows)).target
    assert isinstance(target, Dense)
    return torch.cat([x.softmax(-1) for _, x in logits_of(target, vocab_size=lm.vocab_size)])


def frozen(lm: CausalLM) -> CausalLM:
    """As a teacher, whose distributions are far from uniform."""
    lm.model.eval()
    lm.model.requires_grad_(False)
    lm.head().weight_VD.mul_(15)
    for layer in lm.linear_layers():
        layer.weight.mul_(5)
    return lm


def loss(
    source: SignalSource, student: CausalLM, batch: Batch, divergence: str = "forward_kl"
) -> tuple[float, torch.Tensor]:
    """The student's mean divergence, and its gradient by the head."""
    signal = source.signal(batch)
    hidden = student.hidden(batch.ids_BT, batch.positions_BT)[batch.labels_BT != IGNORED]
    outcome = student.compare(hidden, [Term(signal.target, divergence, weight=1 / len(hidden))])
    head = student.head().weight_VD
    return float(outcome.loss_sum.detach()), torch.autograd.grad(outcome.loss_sum, head)[0]


# ------------------------------------------------------------------------------------------- spans


@given(
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=8),
    window=st.integers(1, 40),
    seq_len=st.integers(1, 24),
    pack=st.booleans(),
    context=st.sampled_from(["document", "row"]),
    seed=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_every_label_is_read_once_and_by_a_teacher_that_sees_no_more_than_its_window(
    lengths: list[int], window: int, seq_len: int, pack: bool, context: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    corpus = corpus_of([(rng.integers(0, 99, n).tolist(), (rng.random(n) > 0.4).tolist()) for n in lengths])
    rows = Rows(corpus, seq_len, pack=pack)
    chosen = [r for r in range(len(rows)) if rng.random() > 0.3]
    asked = {place for r in chosen for place in places(collate([rows[r]]))}
    found: list[tuple[int, int]] = []
    for reading in readings(rows, chosen, context, window):  # type: ignore[arg-type]
        assert context == "row" or len(reading.row) <= window
        batch = collate([reading.row])
        learned = batch.labels_BT != IGNORED
        assert int(learned.sum()) == reading.count() > 0
        at = places(batch)
        begun = (batch.offsets_BT - batch.positions_BT)[learned].tolist()
        for span in reading.spans:
            inside = [
                c
                for (key, p), c in zip(at, begun, strict=True)
                if key == span.key and 0 <= p - span.start < span.length
            ]
            assert inside
            assert set(inside) == {span.context}
            ids, _ = corpus.document(span.key)
            assert span.digest == digest_of(ids[span.context : span.start + span.length + 1])
            assert span.start + span.length < len(ids)
        assert [key for key, _ in at] == [s.key for s in reading.spans for _ in range(_labels(reading, s))]
        found += at
    assert len(found) == len(set(found))
    assert asked <= set(found)
    if context == "row":
        assert asked == set(found)


def _labels(reading: Reading, span: Span) -> int:
    return sum(
        int(np.count_nonzero(p.mask[1:][max(span.start - p.offset, 0) : max(span.start - p.offset + span.length, 0)]))
        for p in reading.row.pieces
        if p.key == span.key and p.offset == span.context
    )


@pytest.mark.parametrize("window", [1, 2, 3, 7, 100, 512, 1024, 1500, 2048, 3000, 8192])
def test_a_sliding_context_keeps_a_quarter_of_the_window_before_a_position(window: int) -> None:
    grid = grid_of(window)
    for start in range(0, 40 * grid, grid):
        context = context_of(start, window)
        assert 0 <= context <= start
        assert start + grid - context <= window
        assert context == 0 or start - context >= window // 4 - 1
        assert context % grid == 0


def test_documents_have_the_same_spans_whatever_the_rows() -> None:
    corpus = long_corpus([50, 3000, 1, 700])
    spans = {
        frozenset(span for reading in readings(rows, range(len(rows)), "document", 2048) for span in reading.spans)
        for seq_len in (16, 100, 512)
        for pack in (True, False)
        for rows in [Rows(corpus, seq_len, pack=pack)]
    }
    assert len(spans) == 1
    (only,) = spans
    assert sorted((s.key, s.start, s.length, s.context) for s in only) == [
        (0, 0, 49, 0), (1, 0, 1024, 0), (1, 1024, 1024, 0), (1, 2048, 951, 1024), (3, 0, 699, 0),
    ]  # fmt: skip


def test_what_is_there_is_not_read_again() -> None:
    rows = Rows(long_corpus([50, 3000, 60]), 64, pack=True)
    found = list(readings(rows, range(len(rows)), "document", 2048))
    gone = {span for reading in found for span in reading.spans if (span.key, span.start) in {(1, 0), (2, 0)}}

    class Half:
        def missing(self, spans: list[Span]) -> list[Span]:
            return [span for span in spans if span in gone]

    left = list(lacking(found, Half()))
    assert {span for reading in left for span in reading.spans} == gone
    assert sorted(len(reading.row) for reading in left) == [59, 1024]  # nothing after the span
    assert sum(reading.count() for reading in left) < sum(reading.count() for reading in found)
    for reading in left:
        batch = collate([reading.row])
        offsets = batch.offsets_BT[batch.labels_BT != IGNORED]
        assert offsets.max() < 1024


def test_workers_share_all_readings() -> None:
    rows = Rows(corpus(), 16, pack=True)
    whole = [reading.spans for reading in readings(rows, range(len(rows)), "document", 64)]
    parts = [[r.spans for r in shared(readings(rows, range(len(rows)), "document", 64), i, 3)] for i in range(3)]
    assert sorted(span for part in parts for spans in part for span in map(str, spans)) == sorted(
        span for spans in whole for span in map(str, spans)
    )
    assert all(parts)


# -------------------------------------------------------------------------------- stored is live


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "soft cap and scale": {
        "model_type": "gemma2",
        "final_logit_softcapping": 1.0,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
    },
    "scaled": {"model_type": "cohere", "logit_scale": 3.0},
    "padded head": {"vocab_size": 512},
    "biased head": {"model_type": "phi", "tie_word_embeddings": False},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("pack", [True, False], ids=["packed", "padded"])
def test_stored_rows_teach_as_the_live_teacher(make_lm: Make, tmp_path: Path, case: str, pack: bool) -> None:
    """All of a small vocabulary is kept, so that only rounding is left."""
    lm, student = frozen(make_lm(3, **CASES[case])), make_lm(1)
    rows = Rows(corpus(vocab=lm.vocab_size), 16, pack=pack)
    source = stored(lm, rows, tmp_path / "s", Scheme("top_k", k=lm.vocab_size))
    batch = all_of(rows)
    assert source.count(batch) == batch.count()
    for divergence in ("forward_kl", "reverse_kl"):
        own, own_grad = loss(source, student, batch, divergence)
        live, live_grad = loss(LiveTeacher(lm), student, batch, divergence)
        assert own == pytest.approx(live, abs=3e-5, rel=1e-3)
        assert float((own_grad - live_grad).norm() / live_grad.norm()) < 3e-3


def test_a_restricted_teacher_is_the_same_through_a_store(make_lm: Make, tokenizer: Any, tmp_path: Path) -> None:
    from limbeck.pruning.vocabulary import cut_tokenizer

    lm = frozen(make_lm(3))
    ids = torch.arange(0, lm.vocab_size, 2)
    special = [i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) if i is not None]
    ids = torch.tensor(sorted({*ids.tolist(), *special, *range(260)}))
    kept = KeptTokens(ids, lm.vocab_size, len(ids))
    teacher = RestrictedModel(lm, kept, cut_tokenizer(tokenizer, kept))
    from limbeck.models.load import load_model
    from limbeck.recipe import ConfigModel
    from tests.conftest import LLAMA

    student = load_model(ConfigModel(config=LLAMA), teacher.tokenizer, seed=1)
    assert teacher.vocab_size == student.vocab_size == kept.size
    rows = Rows(corpus(vocab=len(ids)), 16, pack=True)
    source = stored(teacher, rows, tmp_path / "s", Scheme("top_k", k=kept.size))
    own, own_grad = loss(source, student, all_of(rows))
    live, live_grad = loss(LiveTeacher(teacher), student, all_of(rows))
    assert own == pytest.approx(live, abs=3e-5, rel=1e-3)
    assert float((own_grad - live_grad).norm() / live_grad.norm()) < 3e-3


def test_a_student_with_more_tokens_than_its_teacher_shares_the_teachers(make_lm: Make, tmp_path: Path) -> None:
    lm, student = frozen(make_lm(3)), make_lm(1)
    lm.vocab_size -= 20  # as a tokenizer with tokens that this teacher has no rows for
    rows = Rows(corpus(), 16, pack=True)
    source = stored(lm, rows, tmp_path / "s", Scheme("top_k", k=lm.vocab_size))
    batch = all_of(rows)
    own, _ = loss(source, student, batch)
    hidden = lm.hidden(batch.ids_BT, batch.positions_BT)[batch.labels_BT != IGNORED]
    logits = lm.head().logits(hidden)[:, : lm.vocab_size]
    mine = student.head().logits(student.hidden(batch.ids_BT, batch.positions_BT)[batch.labels_BT != IGNORED])
    theirs, ours = logits.log_softmax(-1), mine[:, : lm.vocab_size].log_softmax(-1)
    assert own == pytest.approx(float((theirs.exp() * (theirs - ours)).sum(-1).mean().detach()), abs=3e-5, rel=1e-3)


def test_half_precision_is_captured_as_it_answers(make_lm: Make, tmp_path: Path) -> None:
    lm, student = frozen(make_lm(3)), make_lm(1)
    live_source = LiveTeacher(lm, "bf16")
    rows = Rows(corpus(), 16, pack=True)
    source = stored(lm, rows, tmp_path / "s", Scheme("top_k", k=lm.vocab_size), precision="bf16")
    own, _ = loss(source, student, all_of(rows))
    live, _ = loss(live_source, student, all_of(rows))
    assert own == pytest.approx(live, rel=2e-2)


def test_documents_are_seen_from_their_beginning(make_lm: Make, tmp_path: Path) -> None:
    """Cut to short rows, a store gives what the teacher says of the whole document."""
    lm = frozen(make_lm(3))
    made = long_corpus([40, 90])
    whole, short = Rows(made, 100, pack=False), Rows(made, 16, pack=True)
    source = stored(lm, short, tmp_path / "s", Scheme("top_k", k=lm.vocab_size), 256)
    sparse = source.signal(all_of(short)).target
    assert isinstance(sparse, Sparse)
    rebuilt = torch.zeros(len(sparse), lm.vocab_size)
    rebuilt[torch.arange(len(sparse)).repeat_interleave(sparse.offsets.diff()), sparse.ids] = sparse.logprobs.exp()
    assert places(all_of(short)) == places(all_of(whole))  # no document ends within a row before the next
    torch.testing.assert_close(rebuilt, probabilities(lm, whole), atol=5e-4, rtol=0)
    assert float((rebuilt - probabilities(lm, short)).abs().max()) > 0.1  # the live teacher sees rows


def test_a_draw_follows_from_document_and_offset(make_lm: Make, tmp_path: Path) -> None:
    """Whatever is read beside it: the same entries, but where rounding decides."""
    lm, scheme = frozen(make_lm(3, hidden_size=48)), Scheme("threshold", threshold=0.02, seed=5)
    rows = Rows(corpus(), 16, pack=False)
    one, two = (identity_of(lm, scheme, "document", 64) for _ in range(2))
    with StoreWriter(tmp_path / "a", one) as writer:
        capture(lm, readings(rows, range(len(rows)), "document", 64), writer, scheme)
    with StoreWriter(tmp_path / "b", two) as writer:
        for part in range(3):
            capture(lm, shared(readings(rows, range(len(rows)), "document", 64), part, 3), writer, scheme)
    batch = all_of(rows)
    a, b = (StoredTeacher(Store(tmp_path / name)).signal(batch).target for name in "ab")
    assert float((a.offsets.diff() == b.offsets.diff()).float().mean()) > 0.99


@pytest.mark.parametrize("kind", ["threshold", "top_k", "top_k_renormalised", "multinomial", "gemma"])
def test_every_scheme_teaches(make_lm: Make, tmp_path: Path, kind: Any) -> None:
    lm, student = frozen(make_lm(3)), make_lm(1)
    rows = Rows(corpus(), 16, pack=True)
    source = stored(lm, rows, tmp_path / "s", Scheme(kind, temperature=2.0), 64)
    assert source.access == Access.TOP_LOGPROBS
    assert source.hidden_shape is None
    signal = source.signal(all_of(rows))
    assert signal.target.temperature == 2.0
    assert source.positions == len(signal.target) == all_of(rows).count()
    assert source.store.bytes_read > 0
    hidden = student.hidden(all_of(rows).ids_BT, all_of(rows).positions_BT)[all_of(rows).labels_BT != IGNORED]
    student.compare(hidden, [Term(signal.target, temperature=2.0)]).loss_sum.backward()
    with pytest.raises(ValueError, match="no hidden states"):
        source.signal(all_of(rows), [0])


# ------------------------------------------------------------------------------------------ errors


def test_a_position_that_was_not_captured_is_told(make_lm: Make, tmp_path: Path) -> None:
    lm, scheme = frozen(make_lm(3)), Scheme("threshold")
    rows, other = Rows(corpus(), 16, pack=True), Rows(corpus(), 10, pack=True)
    source = stored(lm, rows, tmp_path / "s", scheme)
    with pytest.raises(MissingSignalError, match=r"no signal for document [0-9a-f]{16} at offset"):
        source.signal(all_of(other))  # rows that were cut elsewhere
    stored(lm, other, tmp_path / "s", scheme)
    assert len(StoredTeacher(Store(tmp_path / "s")).signal(all_of(other)).target) == all_of(other).count()


def test_a_teacher_of_nan_is_told_with_the_document(make_lm: Make, tmp_path: Path) -> None:
    lm = frozen(make_lm(3))
    token = 7
    made = corpus_of([([5, 6, 8, 9], [True] * 4), ([5, token, 6], [True] * 3)])
    lm.core.get_input_embeddings().weight.data = lm.core.get_input_embeddings().weight.data.clone()
    lm.core.get_input_embeddings().weight.data[token] = torch.nan
    lm.core.lm_head.weight = torch.nn.Parameter(lm.core.lm_head.weight.nan_to_num(0.0), requires_grad=False)
    with pytest.raises(InputError, match=r"not finite after token [01] of document 0000000000000001") as error:
        stored(lm, Rows(made, 8, pack=False), tmp_path / "s", Scheme("threshold"))
    assert error.value.key == "teacher"


def test_logits_are_read_in_chunks() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(70, 8, generator=generator), torch.randn(40, 8, generator=generator)
    dense = Dense(hidden, head, torch.randn(40, generator=generator), softcap=2.0, scale=0.5)
    chunks = [(index, x.clone()) for index, x in logits_of(dense, vocab_size=33, chunk_tokens=32)]
    assert [index for index, _ in chunks] == [slice(0, 32), slice(32, 64), slice(64, 70)]
    expected = 2 * torch.tanh(0.5 * (hidden @ head.T + dense.bias_V) / 2)
    torch.testing.assert_close(torch.cat([x for _, x in chunks]), expected[:, :33])
    given_ = Dense.from_logits(expected)
    assert torch.equal(torch.cat([x for _, x in logits_of(given_, vocab_size=33)]), expected[:, :33])
    assert list(logits_of(Dense(hidden[:0], head), vocab_size=40)) == []
