"""A store of many tokens: how fast it opens, how much memory its reader takes, and what a batch costs.

    python benchmarks/signal_store.py --tokens 50_000_000

The text is synthetic: documents of 600 tokens on average (log-normal, to 16,384), every token a label, with entries as
threshold sampling has them (on average five exact ones and eight drawn ones of one weight; 256 spans of them, in turn)
and the entropy. It is written by the writer of limbeck, in its default shards. Then a fresh process opens the store
twice (the first time every shard is hashed) and reads batches of 16 rows of 1,024 positions, packed as a training packs
them: one document after another, rows in a random order and in the order of the documents; and once more with the
context that was asked for (``context: row`` asks so). Reported are the wall time of opening, the resident memory beyond
what was resident after the imports (mapped pages included), and the CPU time of the process for a batch: to look it up,
and with its entries decoded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck.signals.codec import Encoded

ROOT = Path(__file__).parent.parent
ROWS, ROW = 16, 1_024
GRID = 1_024
V = 128_256


def documents(tokens: int) -> tuple[list[int], list[int]]:
    """Keys and lengths (in positions) of documents that have so many positions together."""
    import numpy as np

    random = np.random.default_rng(0)
    lengths = np.exp(random.normal(6.0, 0.9, tokens // 300)).astype(np.int64).clip(2, 16_384)
    lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), tokens)) + 1]
    keys = np.sort(random.integers(0, 2**64, len(lengths), np.uint64, endpoint=False))
    return keys.tolist(), lengths.tolist()


def identity() -> object:
    from limbeck.signals.codec import CODEC
    from limbeck.signals.scheme import Scheme
    from limbeck.signals.store import Identity

    return Identity("synthetic", "synthetic", V, Scheme("threshold").plain(), "document", "synthetic", CODEC, 2_048)


def entries(random: Any, n: int) -> Encoded:
    """Of n positions; small ids are likelier, as tokens are."""
    import numpy as np

    from limbeck.signals.codec import encode
    from limbeck.signals.scheme import Decoded

    exact, drawn = 1 + random.poisson(4, n), random.poisson(8, n)
    position = np.repeat(np.arange(n), exact + drawn)
    places = np.unique(position * V + (V * random.random(len(position)) ** 3).astype(np.int64))
    counts = np.bincount(places // V, minlength=n)
    is_exact = random.random(len(places)) < np.repeat(exact / (exact + drawn), counts)
    logprobs = np.where(is_exact, -3.9 * random.random(len(places)), np.log(0.02)).astype(np.float32)
    return encode(Decoded(counts, places % V, logprobs, 5 * random.random(n), None), V)


def cut(encoded: Encoded, n: int) -> Encoded:
    """The first n positions."""
    words = encoded.words[: int(encoded.counts[:n].sum())]
    return type(encoded)(words, encoded.counts[:n], encoded.entropy[:n], None)


def write(folder: Path, tokens: int) -> float:
    """Returns CPU-seconds of the writer alone."""
    import numpy as np

    from limbeck.signals.store import Span, SpanSignal, StoreWriter

    random = np.random.default_rng(1)
    pool, number = [entries(random, GRID) for _ in range(256)], 0
    took = 0.0
    with StoreWriter(folder, identity()) as writer:  # type: ignore[arg-type]
        for key, length in zip(*documents(tokens), strict=True):
            for start in range(0, length, GRID):
                n = min(GRID, length - start)
                encoded = cut(pool[number % len(pool)], n)
                number += 1
                began = time.process_time()
                writer.add(SpanSignal(Span(key, start, n, 0, key ^ start), encoded))
                took += time.process_time() - began
        began = time.process_time()
    return took + time.process_time() - began


def resident() -> dict[str, int]:
    """Bytes that are resident now, and at most so far."""
    status = Path("/proc/self/status").read_text()
    values = dict(line.split(":", 1) for line in status.splitlines())
    return {name: int(values[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM")}


def read(folder: Path, tokens: int, batches: int) -> dict[str, float]:
    import numpy as np

    from limbeck.signals.codec import decode
    from limbeck.signals.store import Store

    numbers, counts = documents(tokens)
    keys, lengths = np.array(numbers, np.uint64), np.array(counts)
    ends = np.cumsum(lengths)
    before = resident()["VmRSS"]
    began = time.perf_counter()
    Store(folder)
    first = time.perf_counter() - began
    began = time.perf_counter()
    store = Store(folder)
    found: dict[str, float] = {"hashed": first, "open": time.perf_counter() - began}
    found["opened_mb"] = (resident()["VmRSS"] - before) / 1e6
    random = np.random.default_rng(2)
    starts = np.arange(int(ends[-1]) // ROW) * ROW
    for name in ("random", "ordered", "with_context"):
        order = starts if name == "ordered" else random.permutation(starts)
        took: list[float] = []
        looked_up: list[float] = []
        for n in range(batches):
            place = (order[np.arange(n * ROWS, (n + 1) * ROWS) % len(order), None] + np.arange(ROW)).ravel()
            document = np.searchsorted(ends, place, "right")
            offsets = place - (ends - lengths)[document]
            contexts = np.zeros_like(offsets) if name == "with_context" else None
            asked = keys[document], offsets, contexts
            began = time.process_time()
            encoded = store.encoded(*asked)
            middle = time.process_time()
            decoded = decode(encoded, V)
            looked_up.append(1e3 * (middle - began))
            took.append(1e3 * (time.process_time() - began))
            assert len(decoded.counts) == ROWS * ROW
            assert decoded.counts.sum() == len(decoded.ids)
        found[name], found[f"{name}_lookup"] = statistics.median(took), statistics.median(looked_up)
    found["read_mb"] = store.bytes_read / 1e6
    found["peak_mb"] = (resident()["VmHWM"] - before) / 1e6
    found["positions"], found["spans"], found["shards"] = store.positions, len(store), len(store.shards)
    found["bytes"] = sum(shard.bytes for shard in store.shards)
    return found


def table(found: dict[str, float], written: float) -> str:
    positions = found["positions"]
    rows = [
        ("tokens, spans, shards", f"{positions:,.0f}, {found['spans']:,.0f}, {found['shards']:,.0f}"),
        ("bytes a token, all in", f"{found['bytes'] / positions:.1f}"),
        ("written, tokens per CPU-second", f"{positions / written:,.0f}"),
        ("opened the first time (every shard hashed), s", f"{found['hashed']:.2f}"),
        ("opened again, s", f"{found['open']:.2f}"),
        ("resident after opening, MB", f"{found['opened_mb']:.0f}"),
        (f"resident at most, after {found['read_mb']:,.0f} MB were read, MB", f"{found['peak_mb']:.0f}"),
        *(
            (
                f"16 x 1,024 positions, {said}, CPU-ms: looked up, and decoded",
                f"{found[f'{name}_lookup']:.2f}, {found[name]:.2f}",
            )
            for name, said in (
                ("random", "rows in a random order"),
                ("ordered", "rows in order"),
                ("with_context", "random, with a context"),
            )
        ),
    ]
    return "\n".join(["| what | figure |", "|---|---|", *(f"| {what} | {figure} |" for what, figure in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=lambda text: int(text.replace("_", "")), default=50_000_000)
    parser.add_argument("--batches", type=int, default=400, help="of each kind")
    parser.add_argument("--folder", type=Path, help="where the store is made and kept; default: a temporary folder")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/signal_store-DATE.md")
    parser.add_argument("--child", choices=["write", "read"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child == "write":
        print(json.dumps(write(arguments.folder, arguments.tokens)))
        return
    if arguments.child == "read":
        print(json.dumps(read(arguments.folder, arguments.tokens, arguments.batches)))
        return
    kept = arguments.folder
    scratch = Path(tempfile.mkdtemp(prefix="limbeck-store-"))
    folder = kept or scratch / "store"
    os.environ.update(LIMBECK_CACHE=str(scratch / "cache"), OMP_NUM_THREADS="1")
    shared = [sys.executable, __file__, "--tokens", str(arguments.tokens), "--batches", str(arguments.batches)]
    try:
        noted = folder / "written.json"
        if not noted.exists():
            command = [*shared, "--folder", str(folder), "--child", "write"]
            noted.write_text(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        command = [*shared, "--folder", str(folder), "--child", "read"]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        text = table(found, json.loads(noted.read_text()))
    finally:
        shutil.rmtree(scratch)
    print(text)
    if arguments.save:
        path = ROOT / "benchmarks" / "results" / f"signal_store-{date.today()}.md"
        machine = (
            f"{os.cpu_count()} CPUs ({platform.processor() or platform.machine()}), Python {platform.python_version()}"
        )
        said = (
            f"`python benchmarks/signal_store.py --tokens {arguments.tokens}`, {date.today()}; {machine}, one thread."
        )
        path.write_text(f"{said}\n\n{text}\n")


if __name__ == "__main__":
    main()
