"""Other people's log-probabilities become what a capture would have stored, or are refused with what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import save_file

from limbeck.data.chat.encode import MASKED, WORDS
from limbeck.data.corpus import Corpus
from limbeck.data.packing import Rows
from limbeck.errors import InputError, StoreError
from limbeck.models.causal_lm import CausalLM
from limbeck.signals.capture import capture
from limbeck.signals.codec import CODEC, decode
from limbeck.signals.exchange.distillkit import CONFIG, Packing, export_distillkit, read_distillkit
from limbeck.signals.exchange.foreign import import_texts
from limbeck.signals.exchange.scored import Scored, top_k
from limbeck.signals.exchange.states import import_states
from limbeck.signals.scheme import Scheme
from limbeck.signals.spans import readings
from limbeck.signals.store import Identity, Store, StoreWriter

K, WINDOW, V = 8, 64, 200


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def lm(make_lm: Callable[..., CausalLM]) -> CausalLM:
    lm = make_lm(seed=3, initializer_range=0.2)  # far from uniform, so that what is wrong shows
    lm.model.eval().requires_grad_(False)
    lm.decoder.norm.weight.copy_(
        torch.linspace(0.3, 2.0, 32)
    )  # a norm of ones changes nothing when it is applied twice
    return lm


def corpus() -> Corpus:
    random = np.random.default_rng(0)
    lengths = random.integers(12, 150, 12)
    ids = random.integers(0, V, int(lengths.sum())).astype(np.uint32)
    mask = np.full(len(ids), WORDS, np.uint8)
    mask[: int(lengths[0]) // 2] = MASKED  # a prompt
    keys = np.sort(random.integers(0, 2**64, len(lengths), np.uint64, endpoint=False))
    return Corpus(ids, mask, np.cumsum(lengths) - lengths, lengths, lengths, keys)


def identity(lm: CausalLM, temperature: float = 1.0, k: int = K, **changes: Any) -> Identity:
    plain = {
        "teacher": "t",
        "tokenizer": "m",
        "vocab_size": lm.vocab_size,
        "scheme": Scheme("top_k", k=k, temperature=temperature).plain(),
        "context": "document",
        "encoding": "e",
        "codec": CODEC,
        "window": WINDOW,
    }
    return Identity(**{**plain, **changes})


def logprobs(lm: CausalLM, ids: np.ndarray, temperature: float = 1.0) -> torch.Tensor:
    """float32 [T, V] by the model itself, without anything of the store or the objective."""
    rows = torch.from_numpy(ids.astype(np.int64))[None]
    logits = lm.model(input_ids=rows).logits[0, :, : lm.vocab_size]
    return torch.log_softmax(logits.float() / temperature, -1)


Said = list[tuple[list[int], list[list[int]], list[list[float]]]]


def said(lm: CausalLM, data: Corpus, k: int = K, temperature: float = 1.0) -> Said:
    """Of each document: its ids, and of each position but the last the k likeliest tokens."""
    found = []
    for d in range(len(data)):
        ids = data.document(d)[0]
        top = logprobs(lm, ids, temperature)[:-1].topk(k)
        found.append((ids.astype(int).tolist(), top.indices.tolist(), top.values.tolist()))
    return found


def vllm(path: Path, texts: Said, *, nested: bool = False) -> Path:
    lines = []
    for ids, tokens, values in texts:
        entries = [
            {
                str(t): {"logprob": p, "rank": r, "decoded_token": "x"}
                for r, (t, p) in enumerate(zip(*each, strict=True), 1)
            }
            for each in zip(tokens, values, strict=True)
        ]
        line: dict[str, Any] = {"prompt_token_ids": ids, "prompt_logprobs": [None, *entries]}
        lines.append(json.dumps({"choices": [line], "model": "m"} if nested else line))
    path.write_text("\n".join(lines) + "\n")
    return path


def raw(path: Path, texts: Said) -> Path:
    path.mkdir()
    rows = [{"input_ids": ids, "token_ids": tokens, "top_values": values} for ids, tokens, values in texts]
    pq.write_table(pa.Table.from_pylist(rows), path / "data_0.parquet")
    return path


def axolotl(path: Path, texts: Said) -> Path:
    lines = []
    for ids, tokens, values in texts:
        padded = [*tokens, list(range(K))], [*values, [-1e9] * K]
        lines.append(
            {
                "input_ids": ids,
                "labels": ids,
                "target_token_ids": padded[0],
                "target_logprobs": padded[1],
                "target_mask": [[1] * K] * len(ids),
            }
        )
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def bits(numbers: list[int], size: int) -> list[int]:
    """Bytes of numbers of so many bits, by hand."""
    text = "".join(format(number, f"0{size}b") for number in numbers)
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


def packed(path: Path, texts: Said, vocab_size: int) -> Path:
    """Four exact float32 differences, and four in a bin of 8 bits with a float16 scale."""
    path.mkdir()
    config = {
        "d": vocab_size,
        "k": K,
        "exact_k": 4,
        "exact_dtype": "float32",
        "polynomial_terms": None,
        "term_dtype": "float32",
        "residual_bins": [{"scale_dtype": "float16", "element_bits": 8, "num_elements": 4}],
        "delta_encoding": True,
        "error_diffusion": False,
    }
    (path / CONFIG).write_text(yaml.safe_dump(config))
    size = int(np.ceil(np.log2(vocab_size)))
    rows = []
    for ids, tokens, values in texts:
        compressed = []
        for row in values:
            deltas = np.diff(np.array(row), prepend=0.0)
            scale = np.float16(np.abs(deltas[4:]).max() / 128 or 1.0)
            codes = np.clip(np.round(deltas[4:] / float(scale)), -128, 127).astype(int) + 128
            raw_bytes = deltas[:4].astype("<f4").tobytes() + np.array([scale], "<f2").tobytes()
            compressed.append([*raw_bytes, *codes.tolist()])
        rows.append(
            {
                "input_ids": ids,
                "compressed_logprobs": compressed,
                "bytepacked_indices": [bits(row, size) for row in tokens],
            }
        )
    types = pa.schema(
        [
            ("input_ids", pa.list_(pa.uint64())),
            ("compressed_logprobs", pa.list_(pa.list_(pa.uint8()))),
            ("bytepacked_indices", pa.list_(pa.list_(pa.uint8()))),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, types), path / "data_0.parquet")
    return path


def captured(lm: CausalLM, data: Corpus, folder: Path, whose: Identity) -> Store:
    scheme = Scheme(**whose.scheme)
    rows = Rows(data, 32, pack=True)
    with StoreWriter(folder, whose) as writer:
        capture(lm, readings(rows, range(len(rows)), "document", WINDOW), writer, scheme)
    return Store(folder, whose)


MAKE: dict[str, Callable[[Path, Said, int], Path]] = {
    "vllm": lambda path, texts, v: vllm(path / "a.jsonl", texts),
    "vllm choices": lambda path, texts, v: vllm(path / "a.jsonl", texts, nested=True),
    "raw": lambda path, texts, v: raw(path / "raw", texts),
    "packed": lambda path, texts, v: packed(path / "packed", texts, v),
    "axolotl": lambda path, texts, v: axolotl(path / "a.jsonl", texts),
}


@pytest.mark.parametrize("kind", MAKE)
def test_an_import_is_what_a_capture_stores(lm: CausalLM, tmp_path: Path, kind: str) -> None:
    data, whose = corpus(), identity(lm)
    source = MAKE[kind](tmp_path, said(lm, data), lm.vocab_size)
    done = import_texts(source, tmp_path / "store", whose, data, lm)
    assert (done.texts, done.matched, done.proof.shift) == (len(data), len(data), 0)
    assert done.proof.positions >= 32
    store, wanted = Store(tmp_path / "store", whose), captured(lm, data, tmp_path / "captured", whose)
    signals = {signal.span: signal.encoded for signal in store.signals()}
    compared = 0
    for signal in wanted.signals():
        if signal.span.context:  # beyond the window: a file's teacher saw more
            continue
        ours = decode(signals.pop(signal.span), lm.vocab_size)
        theirs = decode(signal.encoded, lm.vocab_size)
        assert np.array_equal(ours.counts, theirs.counts)
        tolerance = 0.05 if kind == "packed" else 2e-3
        assert np.allclose(np.exp(ours.logprobs), np.exp(theirs.logprobs), atol=tolerance)
        assert ours.tail is not None
        assert theirs.tail is not None
        assert np.allclose(ours.tail, theirs.tail, atol=tolerance)
        assert (ours.entropy <= theirs.entropy + 0.1 * tolerance + 0.05).all(), "a lower bound"
        compared += len(ours)
    assert compared > 300
    assert not signals
    lacking = store.missing([signal.span for signal in wanted.signals()])
    assert all(span.context for span in lacking), "what it does not hold is captured"


def shifted(texts: Said, by: int) -> Said:
    """Rows that say what the position before, or after, says."""
    return [
        (ids, (t[1:] + t[-1:]) if by > 0 else (t[:1] + t[:-1]), (v[1:] + v[-1:]) if by > 0 else (v[:1] + v[:-1]))
        for ids, t, v in texts
    ]


@pytest.mark.parametrize("by", [-1, 1])
def test_a_shift_is_found_and_undone(lm: CausalLM, tmp_path: Path, by: int) -> None:
    data, whose = corpus(), identity(lm)
    done = import_texts(raw(tmp_path / "raw", shifted(said(lm, data), by)), tmp_path / "store", whose, data, lm)
    assert done.proof.shift == by
    store, wanted = Store(tmp_path / "store"), captured(lm, data, tmp_path / "captured", whose)
    compared = 0
    for signal in store.signals():
        n = signal.span.length
        keys = np.full(n, signal.span.key, np.uint64)
        here = np.flatnonzero(signal.encoded.counts)
        offsets = (signal.span.start + np.arange(n))[here]
        assert np.array_equal(store.read(keys[here], offsets).ids, wanted.read(keys[here], offsets).ids)
        compared += len(here)
    assert compared > 100


def test_a_temperature_is_proven(lm: CausalLM, tmp_path: Path) -> None:
    data = corpus()
    source = raw(tmp_path / "raw", said(lm, data, temperature=2.0))
    assert import_texts(source, tmp_path / "two", identity(lm, temperature=2.0), data, lm).copied.spans
    with pytest.raises(InputError, match=r"differ by .* at temperature 2\.0 they agree"):
        import_texts(source, tmp_path / "one", identity(lm), data, lm)
    assert not (tmp_path / "one").exists()


def test_renormalised_entries_have_lost_their_tail(lm: CausalLM, tmp_path: Path) -> None:
    data = corpus()
    texts = [(i, t, torch.log_softmax(torch.tensor(v), -1).tolist()) for i, t, v in said(lm, data)]
    with pytest.raises(InputError, match="renormalised, so that their tail is lost"):
        import_texts(axolotl(tmp_path / "a.jsonl", texts), tmp_path / "store", identity(lm), data, lm)


def test_another_teacher_is_refused(lm: CausalLM, make_lm: Callable[..., CausalLM], tmp_path: Path) -> None:
    data = corpus()
    other = make_lm(seed=4, initializer_range=0.2)
    other.model.eval()
    with torch.no_grad():
        source = raw(tmp_path / "raw", said(other, data))
    with pytest.raises(InputError, match="does not say what the teacher says"):
        import_texts(source, tmp_path / "store", identity(lm), data, lm)


def test_texts_may_be_beginnings_and_strangers(lm: CausalLM, tmp_path: Path) -> None:
    """A sampler cuts long texts, and appends padding to short ones; other texts are told and left out."""
    data, whose = corpus(), identity(lm)
    texts = said(lm, data)
    cut = [(ids[:40], t[: min(39, len(t))], v[: min(39, len(v))]) for ids, t, v in texts]
    padded = [([*ids, 0], t + t[-1:], v + v[-1:]) if len(ids) < 40 else (ids, t, v) for ids, t, v in cut]
    strange = [([5, 4, *ids[2:]], t, v) for ids, t, v in cut[:3]]
    done = import_texts(raw(tmp_path / "raw", padded + strange), tmp_path / "store", whose, data, lm)
    assert (done.texts, done.matched) == (len(data) + 3, len(data))
    for signal in Store(tmp_path / "store").signals():
        assert signal.span.start + signal.span.length <= 39
    with pytest.raises(InputError, match=r"none of the 3 texts .* is a document"):
        import_texts(raw(tmp_path / "strange", strange), tmp_path / "other", whose, data, lm)


def test_what_cannot_be_imported(lm: CausalLM, tmp_path: Path) -> None:
    data = corpus()
    texts = said(lm, data)
    logits = [(i, t, [[p + 7 for p in row] for row in v]) for i, t, v in texts]
    beyond = [(i, [[x + 10_000 for x in row] for row in t], v) for i, t, v in texts]
    twice = [(i, [[row[0], row[0], *row[2:]] for row in t], v) for i, t, v in texts]
    for n, (wrong, match) in enumerate([(logits, "no log-probabilities"), (beyond, "10"), (twice, "a token twice")]):
        with pytest.raises(InputError, match=match):
            import_texts(raw(tmp_path / f"{n}", wrong), tmp_path / "store", identity(lm), data, lm)
    with pytest.raises(InputError, match=f"{K} entries, and the recipe asks for 16.*k: {K}"):
        import_texts(raw(tmp_path / "few", texts), tmp_path / "store", identity(lm, k=16), data, lm)
    for wrong_identity in (identity(lm, scheme=Scheme("threshold").plain()), identity(lm, context="row")):
        with pytest.raises(StoreError, match="scheme top_k and context document"):
            import_texts(tmp_path / "few", tmp_path / "store", wrong_identity, data, lm)
    (tmp_path / "packed").mkdir()
    source = packed(tmp_path / "p", texts, lm.vocab_size)
    (source / CONFIG).unlink()
    with pytest.raises(InputError, match=f"{CONFIG} is missing"):
        import_texts(source, tmp_path / "store", identity(lm), data, lm)
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="of no format that is known"):
        import_texts(tmp_path / "x.parquet", tmp_path / "store", identity(lm), data, lm)
    (tmp_path / "x.jsonl").write_text('{"text": "hello"}\n')
    with pytest.raises(InputError, match="line 1 has neither"):
        import_texts(tmp_path / "x.jsonl", tmp_path / "store", identity(lm), data, lm)
    columns = {"packed_indices": [[[1]]], "exact_values": [[[1.0]]], "coeffs": [[[1.0]]], "input_ids": [[1]]}
    pq.write_table(pa.table(columns), tmp_path / "legacy.parquet")
    with pytest.raises(InputError, match="legacy format"):
        import_texts(tmp_path / "legacy.parquet", tmp_path / "store", identity(lm), data, lm)
    with pytest.raises(InputError, match=r"no .parquet or .jsonl"):
        import_texts(tmp_path / "nothing", tmp_path / "store", identity(lm), data, lm)


def test_a_curve_and_bins_of_few_bits_are_unpacked() -> None:
    """By hand: exact -1; a curve 2 + 3 * sqrt(rank) of four ranks; bins of one and of three bits; no differences."""
    packing = Packing(1000, 5, 1, "bfloat16", "float16", (0, "sqrt"), (("float32", 1, 2), ("float16", 3, 1)), False, False)  # fmt: skip # noqa: E501
    exact = (np.array([-1.0], np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
    curve = np.array([2.0, 3.0], "<f2").tobytes()
    first = np.array([0.5], "<f4").tobytes() + bytes([0b10000000])
    second = np.array([0.25], "<f2").tobytes() + bytes([0b11000000])
    row = {
        "compressed_logprobs": [list(exact + curve + first + second)],
        "bytepacked_indices": [bits([999, 0, 1, 512, 7], 10)],
    }
    tokens, values = packing.unpack(row, "here")
    assert tokens.tolist() == [[999, 0, 1, 512, 7]]
    ranks = 2 + 3 * np.sqrt(np.arange(4))
    assert np.allclose(values, [[-1, *(ranks + np.array([0.5, -0.5, 0.5, 0.0]))]])


def test_export_to_distillkit_and_back(lm: CausalLM, tmp_path: Path) -> None:
    data, whose = corpus(), identity(lm, window=1_000)
    rows = Rows(data, 32, pack=True)
    with StoreWriter(tmp_path / "store", whose) as writer:
        capture(lm, readings(rows, range(len(rows)), "document", 1_000), writer, Scheme("top_k", k=K))
    written, left_out = export_distillkit(tmp_path / "store", data, tmp_path / "out")
    assert (written, left_out) == (len(data) - 1, 1), "the one with a prompt has no signal in it"
    (file,) = (tmp_path / "out").iterdir()
    for text in read_distillkit(file):
        p = np.exp(logprobs(lm, text.ids).numpy())[:-1]
        position = np.repeat(np.arange(len(text.counts)), text.counts)
        assert np.allclose(np.exp(text.logprobs), p[position, text.tokens], atol=1e-3)
        assert set(text.counts.tolist()) == {K}
    done = import_texts(tmp_path / "out", tmp_path / "back", whose, data, lm)
    assert done.matched == written
    parts = identity(lm, window=0, context="row")
    short = Rows(data, 8, pack=True)
    plain = {int(data.keys[d]) for d in range(len(data)) if data.document(d)[1][1:].all() and data.lengths[d] > 10}
    of_one = [r for r in range(len(short)) if {piece.key for piece in short[r].pieces} <= plain][:1]
    with StoreWriter(tmp_path / "parts", parts) as writer:
        capture(lm, readings(short, of_one, "row", 0), writer, Scheme("top_k", k=K))
    with pytest.raises(StoreError, match=r"context row: only parts .* were captured.*`context: document`"):
        export_distillkit(tmp_path / "parts", data, tmp_path / "no")
    with StoreWriter(tmp_path / "draws", identity(lm, scheme=Scheme("threshold").plain())):
        pass
    with pytest.raises(StoreError, match="scheme threshold, which DistillKit would renormalise"):
        export_distillkit(tmp_path / "draws", data, tmp_path / "no")


def test_top_k_of_more_entries() -> None:
    text = Scored("here", np.arange(4), np.array([3, 0, 2]), np.array([5, 6, 7, 8, 9]), np.log([0.1, 0.5, 0.2, 0.3, 0.6]).astype(np.float32))  # fmt: skip # noqa: E501
    found = top_k(text.counts, text.tokens, text.logprobs, 2)
    assert found.counts.tolist() == [2, 0, 2]
    assert found.ids.tolist() == [6, 7, 9, 8]
    assert found.tail is not None
    assert np.allclose(found.tail, [0.3, 1.0, 0.1]), "of nothing, all is tail"
    assert np.allclose(found.entropy[2], -(0.6 * np.log(0.6) + 0.3 * np.log(0.3) + 0.1 * np.log(0.1)))


def keep_states(lm: CausalLM, data: Corpus, folder: Path, layers: int = 3, *, normed: bool = False) -> Path:
    """What vLLM's ``extract_hidden_states`` writes: a file a text, the last layer last, before the final norm."""
    folder.mkdir()
    last = lm.n_layers - 1
    for d in range(len(data)):
        ids = torch.from_numpy(data.document(d)[0].astype(np.int64))
        hidden, states = lm.hidden_of_layers(ids[None], torch.arange(len(ids))[None], [last])
        kept = torch.stack([torch.zeros_like(states[0][0])] * (layers - 1) + [hidden[0] if normed else states[0][0]], 1)
        save_file({"hidden_states": kept.contiguous(), "token_ids": ids}, folder / f"{d:03d}.safetensors")
    return folder


@pytest.mark.parametrize("kind", ["threshold", "top_k"])
def test_kept_hidden_states_are_what_a_capture_stores(lm: CausalLM, tmp_path: Path, kind: Any) -> None:
    data, whose = corpus(), identity(lm, scheme=Scheme(kind, k=K).plain())
    done = import_states(keep_states(lm, data, tmp_path / "states"), tmp_path / "store", whose, data, lm)
    assert (done.texts, done.matched) == (len(data), len(data))
    assert done.proof.positions >= 32
    assert done.proof.error < 1e-4
    store, wanted = Store(tmp_path / "store", whose), captured(lm, data, tmp_path / "captured", whose)
    ours = {signal.span: decode(signal.encoded, lm.vocab_size) for signal in store.signals()}
    compared = 0
    for signal in wanted.signals():
        if signal.span.context == 0:
            theirs = decode(signal.encoded, lm.vocab_size)
            mine = ours.pop(signal.span)
            assert np.array_equal(mine.counts, theirs.counts)
            assert np.array_equal(mine.ids, theirs.ids)
            assert np.allclose(mine.logprobs, theirs.logprobs, atol=5e-3)
            compared += len(theirs)
    assert compared > 300
    assert not ours


def test_hidden_states_of_something_else_are_refused(
    lm: CausalLM, make_lm: Callable[..., CausalLM], tmp_path: Path
) -> None:
    data, whose = corpus(), identity(lm)
    other = make_lm(seed=4, initializer_range=0.2)
    with torch.no_grad():
        keep_states(other, data, tmp_path / "other")
    keep_states(lm, data, tmp_path / "normed", normed=True)
    for source in ("other", "normed"):
        with pytest.raises(InputError, match="not what this teacher's last layer gives to its final norm"):
            import_states(tmp_path / source, tmp_path / "store", whose, data, lm)
    keep_states(make_lm(hidden_size=48), data, tmp_path / "wide")
    with pytest.raises(InputError, match="width 48, and the teacher 32"):
        import_states(tmp_path / "wide", tmp_path / "store", whose, data, lm)
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="holds no"):
        import_states(tmp_path / "torn.safetensors", tmp_path / "store", whose, data, lm)
    with pytest.raises(StoreError, match="context row"):
        import_states(tmp_path / "other", tmp_path / "store", identity(lm, context="row"), data, lm)
    assert not (tmp_path / "store").exists()
