"""What a scheme keeps of a teacher's distributions, what it costs on disk, and how wrong its gradients are.

    python benchmarks/signals.py --text TinyStories-train.txt --smollm FOLDER --gemma FOLDER

The distributions are real: what SmolLM2-135M (49,152 tokens) and Gemma 3 270M (262,144) think of every token of the
first documents of the text, each read from its beginning. In between lies a made-up vocabulary of the usual size:
Gemma's distributions given that the token is one of the first 128,256, which its byte-pair encoding learned first.
The student is the same model with some layers left out (``--without``), untrained: another real distribution, near
the teacher's. Every scheme goes through the codec, so its rounding is in the errors.

Columns:

- **entries**, of a position, on average.
- **bytes**, of a position: the files of a store that holds the signals as often as fills a shard, over its positions.
- **mass**: the teacher's probability of the tokens that are entries.
- **error a token**: of the gradient of forward KL by the student's logits, q - t for a target t, against q - p: root
  of the mean squared error over the root of the mean square of q - p. Of top-k with its tail, t outside the entries is
  the student's own q, scaled to the teacher's tail, for that is its gradient.
- **error of 512**: the same of the gradients' sums over 512 positions that follow each other: what a bias of the head
  would learn from a small batch.
- **error of the mean of 16 draws** of the same position: a quarter of the error where it is noise alone, all of it
  where it is bias. Of the first 512 positions.

Multinomial sampling is also run with as many draws as give threshold sampling's entries. The rows of peers are their
bytes, worked out from their settings where they pack bits (DistillKit: k ids of log2 V bits, then 16-bit values and
32-bit coefficients of a polynomial) and taken over where they do not (Megatron-LM: 382 bytes at 128,256 tokens), and
the errors of what these hold at best, the k likeliest probabilities exactly, renormalised.

Speed: one thread, the fewest CPU-seconds of ``--repeats`` runs in turn over the same float32 logits;
``torch.topk(128)`` of the logits beside whole draws, with labels, entropies and log-probabilities.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from limbeck.models.folders.saved import quiet
from limbeck.models.load import load_model
from limbeck.models.tokenizer import load_tokenizer
from limbeck.pruning.depth import cut_depth
from limbeck.recipe import PathModel
from limbeck.signals.codec import CODEC, Encoded, decode, encode
from limbeck.signals.sampling import Scheme, draw, to_sparse, uniforms
from limbeck.signals.store import Identity, Span, SpanSignal, StoreWriter
from limbeck.signals.store.writer import SHARD_TOKENS
from objective import machine

ROOT = Path(__file__).parent.parent
GROUP, CHUNK, DRAWS = 512, 128, 16
USUAL = 128_256

SCHEMES = {
    "threshold 1/50": Scheme("threshold"),
    "threshold 1/100": Scheme("threshold", threshold=0.01),
    "multinomial 12": Scheme("multinomial", samples=12),
    "multinomial 50": Scheme("multinomial", samples=50),
    "top 16, renormalised": Scheme("top_k_renormalised", k=16),
    "top 16 and tail": Scheme("top_k", k=16),
    "top 64, renormalised": Scheme("top_k_renormalised", k=64),
    "top 64 and tail": Scheme("top_k", k=64),
    "Gemma, 256 samples": Scheme("gemma", samples=256),
}


@dataclass(frozen=True)
class Peer:
    """What another library stores: k tokens' ids, and so many bytes beside them; or just so many."""

    scheme: Scheme
    beside: int | None = None
    whole: int | None = None

    def bytes(self, vocab_size: int) -> float | None:
        if self.beside is not None:
            return math.ceil(self.scheme.k * math.ceil(math.log2(vocab_size)) / 8) + self.beside
        return self.whole if vocab_size == USUAL else None


PEERS = {
    "DistillKit, k 50": Peer(Scheme("top_k_renormalised", k=50), beside=2 + 3 * 4),
    "DistillKit, k 128": Peer(Scheme("top_k_renormalised", k=128), beside=16 * 2 + 6 * 4),
    "Megatron-LM, top 128": Peer(Scheme("top_k_renormalised", k=128), whole=382),
}


# ---- distributions ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class States:
    """What a model thinks at N positions, as hidden states and a head."""

    hidden_NE: Tensor
    head_VE: Tensor

    def logits(self, index: slice) -> Tensor:
        return self.hidden_NE[index] @ self.head_VE.T


@dataclass(frozen=True)
class Case:
    """Distributions of teacher and student at N positions."""

    name: str
    teacher: States
    student: States
    labels_N: Tensor
    uniform_N: Tensor
    lengths: list[int]

    @property
    def vocab_size(self) -> int:
        return len(self.teacher.head_VE)

    def restricted(self, vocab_size: int) -> Case:
        """Given that the token is one of the first ``vocab_size``; positions with another label are left out."""
        keep_N = self.labels_N < vocab_size
        lengths = [int(part.sum()) for part in keep_N.split(self.lengths)]
        teacher, student = (
            States(states.hidden_NE[keep_N], states.head_VE[:vocab_size]) for states in (self.teacher, self.student)
        )
        return Case(
            f"{self.name}, of its first {vocab_size:,} tokens",
            teacher,
            student,
            self.labels_N[keep_N],
            self.uniform_N[keep_N],
            [length for length in lengths if length],
        )


@torch.no_grad()
def case_of(name: str, folder: Path, documents: list[str], positions: int, without: float) -> Case:
    """Teacher and student over the first documents; the student is without evenly spaced layers in the middle."""
    tokenizer = load_tokenizer(str(folder))
    lm = load_model(PathModel(path=str(folder)), tokenizer)
    model = lm.core.float().eval()
    layers = len(lm.layers())
    dropped = {round(x) for x in np.linspace(layers * 0.4, layers * 0.8, max(1, round(without * layers)))}
    cut = cut_depth(model, [layer for layer in range(layers) if layer not in dropped]).float().eval()
    ids, count = [], 0
    for document in documents:
        tokens = tokenizer(document)["input_ids"]
        ids.append(torch.tensor(tokens))
        count += len(tokens) - 1
        if count >= positions:
            break
    states = []
    for one in (model, cut):
        hidden = [one.get_decoder()(input_ids=row[None], use_cache=False).last_hidden_state[0, :-1] for row in ids]
        assert lm.traits.softcap is None
        assert lm.traits.scale == 1.0
        states.append(States(torch.cat(hidden), one.get_output_embeddings().weight.detach()[: lm.vocab_size]))
    lengths = [len(row) - 1 for row in ids]
    keys = np.repeat(np.arange(len(ids), dtype=np.uint64), lengths)
    offsets = np.concatenate([np.arange(length) for length in lengths])
    uniform_N = torch.from_numpy(uniforms(0, keys, offsets))
    return Case(name, *states, torch.cat([row[1:] for row in ids]), uniform_N, lengths)


# ---- errors -------------------------------------------------------------------------------------------------


@dataclass
class Sums:
    """Of one scheme, over all positions."""

    encoded: list[Encoded] = field(default_factory=list)
    entries: int = 0
    mass: float = 0.0
    token_error: float = 0.0
    group_error: float = 0.0
    mean_error: float = 0.0
    error_V: Tensor | None = None  # Of the group at hand, summed over its positions.


@dataclass(frozen=True)
class Chunk:
    """Distributions of some positions, in float64 sums where they are sums."""

    p_nV: Tensor
    q_nV: Tensor
    pp_n: Tensor
    qq_n: Tensor
    pq_n: Tensor

    @classmethod
    def of(cls, teacher_nV: Tensor, student_nV: Tensor) -> Chunk:
        p_nV, q_nV = teacher_nV.softmax(1), student_nV.softmax(1)
        sums = [(a * b).sum(1, dtype=torch.float64) for a, b in ((p_nV, p_nV), (q_nV, q_nV), (p_nV, q_nV))]
        return cls(p_nV, q_nV, *sums)


def dense_error(chunk: Chunk, encoded: Encoded, scheme: Scheme) -> tuple[Tensor, Tensor, Tensor]:
    """Squared error of the gradient a position [n], its sum over the positions [V], the entries' mass [n]."""
    count, vocab_size = chunk.p_nV.shape
    target = to_sparse(decode(encoded, vocab_size), scheme)
    row_r = torch.arange(count).repeat_interleave(target.offsets.diff())
    ids_r, t_r = target.ids, target.logprobs.double().exp()
    p_r, q_r = (x_nV[row_r, ids_r].double() for x_nV in (chunk.p_nV, chunk.q_nV))

    def sums(values_r: Tensor) -> Tensor:
        return torch.zeros(count, dtype=torch.float64).index_add_(0, row_r, values_r)

    mass_n = sums(p_r)
    error_V = torch.zeros(vocab_size, dtype=torch.float64).index_add_(0, ids_r, t_r)
    error_V -= chunk.p_nV.sum(0, dtype=torch.float64)
    error_n = chunk.pp_n + sums((t_r - p_r).square() - p_r.square())
    if scheme.kind == "top_k":
        assert target.tail_N is not None
        share_n = target.tail_N.double() / (1 - sums(q_r)).clamp_min(1e-12)
        qq_n, pq_n = chunk.qq_n - sums(q_r.square()), chunk.pq_n - sums(p_r * q_r)
        error_n = error_n + share_n.square() * qq_n - 2 * share_n * pq_n
        error_V += (share_n.float() @ chunk.q_nV).double()
        error_V.index_add_(0, ids_r, -share_n[row_r] * q_r)
    return error_n.clamp_min(0.0), error_V, mass_n


def mean_of_draws(chunk: Chunk, teacher_nV: Tensor, labels_n: Tensor, scheme: Scheme, first: int) -> Tensor:
    """Squared error a position [n] of the mean over ``DRAWS`` draws; of ``t`` itself, so not of top-k with its tail."""
    mean_nV = torch.zeros_like(chunk.p_nV)
    keys_n = np.arange(first, first + len(labels_n), dtype=np.uint64)
    for seed in range(DRAWS):
        uniform_n = torch.from_numpy(uniforms(seed, keys_n, np.zeros(len(labels_n), np.int64)))
        encoded = encode(draw(teacher_nV, scheme, labels_n, uniform_n), chunk.p_nV.shape[1])
        target = to_sparse(decode(encoded, chunk.p_nV.shape[1]), scheme)
        row_r = torch.arange(len(labels_n)).repeat_interleave(target.offsets.diff())
        mean_nV.index_put_((row_r, target.ids), target.logprobs.exp() / DRAWS, accumulate=True)
    return (mean_nV - chunk.p_nV).square().sum(1, dtype=torch.float64)


@dataclass(frozen=True)
class Row:
    entries: float
    bytes: float
    mass: float
    token: float
    group: float
    mean: float | None


def measured(case: Case, schemes: set[Scheme]) -> dict[Scheme, Row]:
    """All columns of schemes."""
    count = len(case.labels_N) // GROUP * GROUP
    found = {scheme: Sums() for scheme in schemes}
    token, group, token_of_mean = 0.0, 0.0, 0.0
    gradient_V = torch.zeros(case.vocab_size, dtype=torch.float64)
    for start in range(0, count, CHUNK):
        index = slice(start, start + CHUNK)
        teacher_nV = case.teacher.logits(index)
        labels_n, uniform_n = case.labels_N[index], case.uniform_N[index]
        chunk = Chunk.of(teacher_nV, case.student.logits(index))
        squares = float((chunk.qq_n - 2 * chunk.pq_n + chunk.pp_n).sum())
        token += squares
        gradient_V += (chunk.q_nV - chunk.p_nV).sum(0, dtype=torch.float64)
        if start < GROUP:
            token_of_mean += squares
        for scheme, sums in found.items():
            drawn = draw(teacher_nV, scheme, labels_n, uniform_n)
            encoded = encode(drawn, case.vocab_size)
            sums.entries += len(drawn.ids)
            error_n, error_V, mass_n = dense_error(chunk, encoded, scheme)
            sums.encoded.append(encoded)
            sums.mass += float(mass_n.sum())
            sums.token_error += float(error_n.sum())
            sums.error_V = error_V if sums.error_V is None else sums.error_V + error_V
            if start < GROUP and scheme.kind != "top_k":
                sums.mean_error += float(mean_of_draws(chunk, teacher_nV, labels_n, scheme, start).sum())
        if (start + CHUNK) % GROUP == 0:
            group += float(gradient_V.square().sum())
            gradient_V.zero_()
            for sums in found.values():
                assert sums.error_V is not None
                sums.group_error += float(sums.error_V.square().sum())
                sums.error_V = None
    return {
        scheme: Row(
            entries=sums.entries / count,
            bytes=bytes_on_disk(case, sums.encoded, scheme),
            mass=sums.mass / count,
            token=math.sqrt(sums.token_error / token),
            group=math.sqrt(sums.group_error / group),
            mean=math.sqrt(sums.mean_error / token_of_mean) if sums.mean_error else None,
        )
        for scheme, sums in found.items()
    }


def bytes_on_disk(case: Case, parts: list[Encoded], scheme: Scheme) -> float:
    """All files of a store over its positions: the case's documents, over and over under other keys, fill a shard."""
    signals = list(spans(parts, case.lengths))
    positions = sum(len(encoded) for encoded in signals)
    identity = Identity("teacher", "tokenizer", case.vocab_size, scheme.plain(), "document", "text", CODEC, 8192)
    with tempfile.TemporaryDirectory() as folder:
        with StoreWriter(Path(folder), identity) as writer:
            for key in range(SHARD_TOKENS // positions):
                for i, encoded in enumerate(signals):
                    writer.add(SpanSignal(Span(key * len(signals) + i, 0, len(encoded), 0, 0), encoded))
        total = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        return total / (SHARD_TOKENS // positions * positions)


def spans(parts: list[Encoded], lengths: list[int]) -> Iterator[Encoded]:
    """Signals of whole documents out of those of chunks; of the last one as far as it goes."""
    counts = np.concatenate([part.counts for part in parts])
    entropy = np.concatenate([part.entropy for part in parts])
    words = np.concatenate([part.words for part in parts])
    tails = [part.tail for part in parts if part.tail is not None]
    tail = np.concatenate(tails) if tails else None
    ends = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    start = 0
    for length in lengths:
        stop = min(start + length, len(counts))
        if stop == start:
            return
        own = slice(start, stop)
        yield Encoded(words[ends[start] : ends[stop]], counts[own], entropy[own], None if tail is None else tail[own])
        start = stop


def equal_draws(case: Case) -> int:
    """How many multinomial draws give as many entries as threshold 1/50, on the first positions."""
    logits_nV = case.teacher.logits(slice(0, GROUP))

    def entries(scheme: Scheme) -> int:
        return len(draw(logits_nV, scheme, case.labels_N[:GROUP], case.uniform_N[:GROUP]).ids)

    wanted = entries(SCHEMES["threshold 1/50"])
    low, high = 1, 1024
    while high - low > 1:
        middle = (low + high) // 2
        below = entries(Scheme("multinomial", samples=middle)) <= wanted
        low, high = (middle, high) if below else (low, middle)
    return low


# ---- speed --------------------------------------------------------------------------------------------------


def speeds(case: Case, positions: int, repeats: int) -> dict[str, float]:
    """Tokens a CPU-second, of one thread."""
    index = slice(0, positions)
    logits_nV, labels_n, uniform_n = case.teacher.logits(index), case.labels_N[index], case.uniform_N[index]
    half_nV = logits_nV.bfloat16()

    def drawing(scheme: Scheme, of_nV: Tensor) -> Callable[[], Any]:
        return lambda: draw(of_nV, scheme, labels_n, uniform_n)

    works: dict[str, Callable[[], Any]] = {
        "torch.topk(128)": lambda: logits_nV.topk(128),
        "threshold 1/50": drawing(Scheme("threshold"), logits_nV),
        "and encoded": lambda: encode(draw(logits_nV, Scheme("threshold"), labels_n, uniform_n), case.vocab_size),
        "threshold 1/100": drawing(Scheme("threshold", threshold=0.01), logits_nV),
        "top 64 and tail": drawing(Scheme("top_k", k=64), logits_nV),
        "torch.topk(128), bfloat16": lambda: half_nV.topk(128),
        "threshold 1/50, bfloat16": drawing(Scheme("threshold"), half_nV),
    }
    best = dict.fromkeys(works, math.inf)
    for round_ in range(repeats + 1):
        for name, work in works.items():
            begun = time.thread_time()
            work()
            if round_:
                best[name] = min(best[name], time.thread_time() - begun)
    return {name: len(labels_n) / seconds for name, seconds in best.items()}


# ---- tables -------------------------------------------------------------------------------------------------


def shown(number: float | None, digits: int = 3) -> str:
    return "" if number is None else f"{number:.{digits}g}"


def tables(case: Case, repeats: int) -> list[str]:
    samples = equal_draws(case)
    equal = f"multinomial {samples}, entries as threshold 1/50"
    schemes = {**SCHEMES, equal: Scheme("multinomial", samples=samples)}
    found = measured(case, {*schemes.values(), *(peer.scheme for peer in PEERS.values())})
    lines = [
        "| scheme | entries | bytes | mass | error a token | error of 512 | error of the mean of 16 draws |",
        "|---|---|---|---|---|---|---|",
    ]
    sizes = {name: found[scheme].bytes for name, scheme in schemes.items()}
    sizes |= {name: peer.bytes(case.vocab_size) for name, peer in PEERS.items()}
    for name, size in sizes.items():
        row = found[schemes[name] if name in schemes else PEERS[name].scheme]
        cells = [f"{row.entries:.1f}", shown(size), f"{row.mass:.3f}"]
        cells += map(shown, (row.token, row.group, row.mean))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    threshold, multinomial = found[SCHEMES["threshold 1/50"]], found[schemes[equal]]
    lines += [
        "",
        f"threshold 1/50: {threshold.bytes:.1f} bytes a token (target: 62 at most); error {threshold.token:.3f} a "
        f"token, {threshold.token / multinomial.token:.2f} of multinomial's at equal entries (target: .5 at most).",
        "",
        "| tokens a CPU-second | | of torch.topk(128) |",
        "|---|---|---|",
    ]
    rates = speeds(case, 2**25 // case.vocab_size, repeats)
    lines += [f"| {name} | {rate:,.0f} | {rate / rates['torch.topk(128)']:.2f} |" for name, rate in rates.items()]
    return lines


def summary(case: Case) -> str:
    """What the distributions are like."""
    teacher = case.teacher.logits(slice(0, GROUP)).log_softmax(1)
    student = case.student.logits(slice(0, GROUP)).log_softmax(1)
    labels_n1 = case.labels_N[:GROUP, None]
    kl = float((teacher.exp() * (teacher - student)).sum(1).mean())
    losses = [-float(one.gather(1, labels_n1).mean()) for one in (teacher, student)]
    entropy = -float((teacher.exp() * teacher).sum(1).mean())
    return (
        f"{len(case.labels_N) // GROUP * GROUP:,} positions of {len(case.lengths)} documents, {case.vocab_size:,} "
        f"tokens. Of the first {GROUP}: the teacher's loss {losses[0]:.2f} nats and entropy {entropy:.2f}, "
        f"the student's loss {losses[1]:.2f}, forward KL {kl:.2f}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, type=Path, help="documents parted by <|endoftext|>")
    parser.add_argument("--smollm", type=Path, help="folder of SmolLM2-135M")
    parser.add_argument("--gemma", type=Path, help="folder of Gemma 3 270M")
    parser.add_argument("--positions", type=int, default=4096)
    parser.add_argument("--without", type=float, default=0.15, help="part of the layers that the student is without")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/signals-DATE.md")
    arguments = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    with arguments.text.open(encoding="utf-8") as file:
        text = file.read(40 * arguments.positions)
    documents = [one.strip() for one in re.split(r"<\|endoftext\|>", text) if one.strip()]
    lines = [
        f"# Signals on disk, {date.today()}",
        "",
        f"{machine()}; one thread. Columns: `benchmarks/signals.py`.",
        "",
    ]

    def add(case: Case) -> None:
        nonlocal lines
        added = [f"## {case.name}", "", summary(case), "", *tables(case, arguments.repeats), ""]
        print("\n".join(added), flush=True)
        lines += added

    if arguments.smollm:
        add(case_of("SmolLM2-135M", arguments.smollm, documents, arguments.positions, arguments.without))
    if arguments.gemma:
        case = case_of("Gemma 3 270M", arguments.gemma, documents, arguments.positions, arguments.without)
        add(case.restricted(USUAL))
        add(case)
    if arguments.save:
        (ROOT / "benchmarks" / "results" / f"signals-{date.today()}.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
