"""Signals from a served teacher: what its store holds is what a capture of the same weights holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.data.corpus import Corpus
from limbeck.data.packing import IGNORED, Batch, Rows, collate
from limbeck.errors import TeacherGoneError
from limbeck.generation.api.scoring.capturing import capture_served
from limbeck.generation.api.scoring.probe import probe_scoring
from limbeck.generation.api.scoring.scorer import Scorer
from limbeck.generation.journal.budget import Ledger
from limbeck.generation.journal.rows import Spent
from limbeck.models.causal_lm import CausalLM
from limbeck.objectives import Dense, Sparse, Term, logits_of
from limbeck.recipe.served import Endpoint
from limbeck.signals.capture import Captured, capture
from limbeck.signals.codec import CODEC, LOGPROB_SCALE
from limbeck.signals.live import LiveTeacher
from limbeck.signals.scheme import Decoded, Scheme
from limbeck.signals.source import Access
from limbeck.signals.spans import lacking, readings
from limbeck.signals.store import Identity, Store, StoreWriter
from limbeck.signals.stored import StoredTeacher
from tests.servers.clock import JumpingClock
from tests.servers.faulty import Fault
from tests.servers.scoring import ScoringServer
from tests.unit.test_data import corpus_of

K = 6
SCHEME = Scheme("top_k", k=K)
STEP = 2 * 2 / LOGPROB_SCALE
"""Two steps of the codec at a log-probability of -1."""


@pytest.fixture
def teacher(make_lm: Any) -> CausalLM:
    lm = make_lm(seed=3)
    lm.model.eval().requires_grad_(False)
    for weight in lm.model.parameters():
        weight.mul_(2.5)  # a trained model is sure of itself
    return lm  # type: ignore[no-any-return]


@pytest.fixture
def corpus(tokenizer: Any, texts: list[str]) -> Corpus:
    """Documents of several lengths, some longer than a window, with tokens that are not learned."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(0, len(texts), 4):
        ids = tokenizer.encode(" ".join(texts[i : i + 1 + i % 7]))
        rows.append((ids, (rng.random(len(ids)) > 0.2).tolist()))
    made = corpus_of([*rows, ([5], [True]), ([5, 6], [False, False])])
    return replace(made, keys=np.sort(rng.integers(2**63, 2**64, len(made), np.uint64)))


def identity_of(lm: CausalLM, context: str, window: int) -> Identity:
    return Identity("teacher", "tokenizer", lm.vocab_size, SCHEME.plain(), context, "1", CODEC, window)  # type: ignore[arg-type]


def scorer_of(server: ScoringServer, lm: CausalLM, **more: Any) -> Scorer:
    # The clock of these tests jumps: on a busy machine an hour may pass before a real server answers.
    plain = {"deadline_seconds": 1e6, "patience_seconds": 1e6, "prices": {"input": 0, "output": 0}, **more}
    place = Endpoint(api=f"{server.url}/v1", model="toy", **plain)
    reveals = probe_scoring(place, lm.tokenizer, K)
    return Scorer(place, reveals, 1.0, lm.vocab_size, Ledger(None, Spent(0, 0, 0, 0)), JumpingClock())


def served(server: ScoringServer, lm: CausalLM, rows: Rows, folder: Path, identity: Identity, **more: Any) -> Captured:
    """Capture what the store lacks."""
    scorer = scorer_of(server, lm, **more)
    found = readings(rows, range(len(rows)), identity.context, identity.window)
    store = Store(folder, identity) if folder.exists() else None
    with StoreWriter(folder, identity, shard_tokens=200) as writer:
        return capture_served(scorer, lacking(found, store), writer)


def local(lm: CausalLM, rows: Rows, folder: Path, identity: Identity) -> Store:
    with StoreWriter(folder, identity) as writer:
        capture(lm, readings(rows, range(len(rows)), identity.context, identity.window), writer, SCHEME)
    return Store(folder, identity)


def entries_of(decoded: Decoded, at: int, count: int) -> dict[int, float]:
    """Log-probabilities of a position, by token."""
    part = slice(int(at), int(at) + int(count))
    return dict(zip(decoded.ids[part].tolist(), decoded.logprobs[part].tolist(), strict=True))


def all_of(rows: Rows) -> Batch:
    return collate([rows[r] for r in range(len(rows))])


def where(batch: Batch, context: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    learned_BT = batch.labels_BT != IGNORED
    offsets_N = batch.offsets_BT[learned_BT].numpy()
    begins_N = offsets_N - batch.positions_BT[learned_BT].numpy()
    return batch.keys_BT[learned_BT].numpy().view(np.uint64), offsets_N, begins_N if context == "row" else None


@pytest.mark.parametrize("speaks", ["vllm", "sglang"])
@pytest.mark.parametrize(("context", "window"), [("row", 0), ("document", 64)])
def test_the_same_as_a_local_capture(
    speaks: str, context: str, window: int, teacher: CausalLM, corpus: Corpus, tmp_path: Path
) -> None:
    rows, identity = Rows(corpus, 48, pack=True), identity_of(teacher, context, window)
    with ScoringServer(teacher.model, teacher.tokenizer, speaks=speaks) as server:
        captured = served(server, teacher, rows, tmp_path / "served", identity)
    theirs, ours = Store(tmp_path / "served", identity), local(teacher, rows, tmp_path / "local", identity)
    batch = all_of(rows)
    labels_N = batch.labels_BT[batch.labels_BT != IGNORED].numpy()
    assert captured.positions == len(labels_N) == batch.count()
    one, two = (store.read(*where(batch, context)) for store in (theirs, ours))
    assert np.isnan(one.entropy).all()
    assert np.isfinite(two.entropy).all()
    starts, places = np.cumsum(one.counts) - one.counts, np.cumsum(two.counts) - two.counts
    outside = 0
    for n, label in enumerate(labels_N):
        ours = entries_of(one, starts[n], one.counts[n])
        theirs_n = entries_of(two, places[n], two.counts[n])
        assert len(theirs_n) == K
        assert set(ours) == set(theirs_n) | {label}
        outside += len(ours) - K
        assert all(abs(ours[token] - value) < STEP * abs(value) ** 0.5 for token, value in theirs_n.items())
        assert one.tail is not None
        assert two.tail is not None
        more = np.exp(ours[label]) if label not in theirs_n else 0.0
        np.testing.assert_allclose(one.tail[n] + more, two.tail[n], atol=5e-4)
    assert outside > 50


def test_a_student_learns_the_same(teacher: CausalLM, make_lm: Any, corpus: Corpus, tmp_path: Path) -> None:
    """Loss and gradient are those of the teacher's own probabilities, merged outside the entries."""
    rows, identity = Rows(corpus, 48, pack=True), identity_of(teacher, "row", 0)
    with ScoringServer(teacher.model, teacher.tokenizer) as server:
        served(server, teacher, rows, tmp_path / "store", identity)
    source, batch, student = StoredTeacher(Store(tmp_path / "store", identity)), all_of(rows), make_lm(seed=5)
    assert source.access is Access.TOP_LOGPROBS
    target = source.signal(batch).target
    assert isinstance(target, Sparse)
    assert target.entropy_N is None
    learned_BT = batch.labels_BT != IGNORED
    live = LiveTeacher(teacher).signal(batch).target
    assert isinstance(live, Dense)
    logp_NV = torch.cat([x_nV.log_softmax(-1) for _, x_nV in logits_of(live, vocab_size=teacher.vocab_size)])
    place_R = torch.arange(len(target)).repeat_interleave(target.offsets.diff())
    exact = replace(target, logprobs=logp_NV[place_R, target.ids], tail_N=None)
    found = []
    for each in (target, exact):
        hidden_NE = student.hidden(batch.ids_BT, batch.positions_BT)[learned_BT]
        outcome = student.compare(hidden_NE, [Term(each, "forward_kl", weight=1 / len(each))])
        (gradient,) = torch.autograd.grad(outcome.loss_sum, student.head().weight_VD)
        found.append((float(outcome.loss_sum.detach()), gradient))
    assert found[0][0] > 0.02
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=4e-3)
    assert float((found[0][1] - found[1][1]).norm() / found[1][1].norm()) < 1e-2


@pytest.mark.parametrize("kinds", [("429", "cut", "500"), ("null", "later", "nan", "malformed")])
def test_faults_change_nothing(kinds: tuple[str, ...], teacher: CausalLM, corpus: Corpus, tmp_path: Path) -> None:
    rows, identity = Rows(corpus, 48, pack=True), identity_of(teacher, "document", 64)
    with ScoringServer(teacher.model, teacher.tokenizer) as server:
        served(server, teacher, rows, tmp_path / "clean", identity)
        scorer = scorer_of(server, teacher)
        server.settings.faults = [Fault(kind, share=0.15, tries=1, retry_after="float") for kind in kinds]
        with StoreWriter(tmp_path / "faulty", identity, shard_tokens=200) as writer:
            capture_served(scorer, readings(rows, range(len(rows)), "document", 64), writer)
    batch = all_of(rows)
    one, other = (Store(tmp_path / name, identity).read(*where(batch, "document")) for name in ("clean", "faulty"))
    for name in ("counts", "ids", "logprobs", "tail"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_a_capture_goes_on_where_it_stopped(teacher: CausalLM, corpus: Corpus, tmp_path: Path) -> None:
    rows, identity = Rows(corpus, 48, pack=True), identity_of(teacher, "document", 64)
    with ScoringServer(teacher.model, teacher.tokenizer) as server:
        scorer = scorer_of(server, teacher, concurrency=1)
        before = server.scored
        whole = sum(len(reading.row) + 1 for reading in readings(rows, range(len(rows)), "document", 64))

        def dies() -> str | None:
            return "402" if server.scored - before > whole / 2 else None

        server.when = dies
        with pytest.raises(Exception, match="refuses the request"), StoreWriter(tmp_path / "store", identity) as writer:
            capture_served(scorer, readings(rows, range(len(rows)), "document", 64), writer)
        server.when = None
        kept = Store(tmp_path / "store", identity).positions
        assert 0 < kept < all_of(rows).count()
        bought = server.scored
        rest = served(server, teacher, rows, tmp_path / "store", identity)
        probe = scorer.reveals.tokens
        assert server.scored - bought < whole * 0.6 + probe
        assert served(server, teacher, rows, tmp_path / "store", identity).positions == 0
    assert rest.positions + kept == all_of(rows).count()
    store = Store(tmp_path / "store", identity)
    assert sum(shard.positions for shard in store.shards) == store.positions == all_of(rows).count()


def test_a_server_that_dies_leaves_what_it_said(teacher: CausalLM, corpus: Corpus, tmp_path: Path) -> None:
    rows, identity = Rows(corpus, 48, pack=True), identity_of(teacher, "row", 0)
    with ScoringServer(teacher.model, teacher.tokenizer) as server:
        scorer = scorer_of(server, teacher, concurrency=2, patience_seconds=5.0, deadline_seconds=5.0)
        server.when = lambda: "503" if sum(server.billed.values()) > 20 else None
        with pytest.raises(TeacherGoneError, match="answers no more"), StoreWriter(tmp_path, identity) as writer:
            capture_served(scorer, readings(rows, range(len(rows)), "row", 0), writer)
    assert Store(tmp_path, identity).positions > 0
