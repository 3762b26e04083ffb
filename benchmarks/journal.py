"""The journal at size: how fast it takes answers, how large a row is, and what a million rows cost.

    python benchmarks/journal.py [--rows 1000000] [--folder DIR]

Prints: rows added a second; exchanges a second with 64 in flight (two commits each) and CPU a call; bytes a row; how
much the process grows; how long `status` takes in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from limbeck.generation.journal.journal import Journal
from limbeck.generation.request import Completion, Outcome, Request, Usage

TEACHER = {"api": "https://api.example.com/v1", "model": "m", "protocol": "chat"}
WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "st", "r", "ck", "ll")]

STATUS = """
import sys, time
from pathlib import Path
start = time.perf_counter()
from limbeck.generation.journal.journal import Journal
imported = time.perf_counter()
with Journal(Path(sys.argv[1]), read_only=True) as journal:
    counts, spent = journal.counts(), journal.spent()
print(f"{time.perf_counter() - imported:.4f} {imported - start:.2f} {counts.total}")
"""


def text(n: int, words: int) -> str:
    return " ".join(random.Random(n).choices(WORDS, k=words))


def request(n: int) -> Request:
    system = "You turn sentences into JSON with the keys name, place and date. Answer with the JSON object alone."
    messages = ({"role": "system", "content": system}, {"role": "user", "content": text(n, 25)})
    return Request(messages=messages, max_new_tokens=256, temperature=0.8)


def requests(count: int) -> Iterator[Request]:
    return (request(n) for n in range(count))


def answer(n: int) -> tuple[bytes, Completion]:
    said, thought = text(-n, 40), text(n + 10**9, 60)
    usage = {"prompt_tokens": 70 + n % 9, "completion_tokens": 130 + n % 40, "total_tokens": 200 + n % 49}
    message = {"role": "assistant", "content": said, "reasoning_content": thought, "refusal": None, "annotations": []}
    plain = {
        "id": f"chatcmpl-{random.Random(n).getrandbits(128):032x}",
        "object": "chat.completion",
        "created": 1_790_000_000 + n // 30,
        "model": "m-2026-08-01",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": usage,
        "service_tier": "default",
        "system_fingerprint": "fp_44709d6fcb",
    }
    counted = Usage(usage["prompt_tokens"], usage["completion_tokens"])
    return json.dumps(plain).encode(), Completion(
        Outcome.COMPLETE, said, reasoning=thought, message=message, usage=counted, model="m-2026-08-01"
    )


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


async def exchange(journal: Journal, numbers: range, in_flight: int) -> None:
    left = iter(numbers)

    async def lane() -> None:
        for n in left:
            asked = request(n)
            raw, completion = answer(n)
            attempt = await journal.sent(asked.key(TEACHER), TEACHER, json.dumps(asked.plain()).encode(), 500_000, 400)
            await journal.answered(attempt, raw, completion, 1500)

    await asyncio.gather(*(lane() for _ in range(in_flight)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--exchanges", type=int, default=4_000, help="through sent and answered; the rest is put")
    parser.add_argument("--folder", type=Path, help="default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "journal.sqlite"
        with Journal(path) as journal:
            exchanges = min(options.exchanges, options.rows)
            journal.add(requests(1000), TEACHER)
            asyncio.run(exchange(journal, range(500), 64))  # everything is loaded
            before = resident_mb()
            start, added = time.perf_counter(), min(100_000, options.rows)
            journal.add(requests(added), TEACHER)
            print(f"added            {(added - 1000) / (time.perf_counter() - start):10,.0f} rows/s", flush=True)
            start, cpu = time.perf_counter(), time.process_time()
            for n in range(exchanges):
                answer(n), request(n)
            making = time.process_time() - cpu
            start, cpu = time.perf_counter(), time.process_time()
            asyncio.run(exchange(journal, range(500, exchanges), 64))
            took, spent = time.perf_counter() - start, time.process_time() - cpu - making
            print(f"exchanged        {(exchanges - 500) / took:10,.0f} rows/s with 64 in flight", flush=True)
            print(f"CPU              {1000 * spent / (exchanges - 500):10.2f} ms an exchange", flush=True)
            start = time.perf_counter()
            for first in range(exchanges, options.rows, 1000):
                several = range(first, min(first + 1000, options.rows))
                journal.put_many(((request(n), answer(n)[1]) for n in several), TEACHER)
            print(f"put              {(options.rows - exchanges) / (time.perf_counter() - start):10,.0f} rows/s")
            start = time.perf_counter()
            read = sum(1 for _ in journal.rows())
            print(f"read             {read / (time.perf_counter() - start):10,.0f} rows/s")
            print(f"grown            {resident_mb() - before:10.1f} MB", flush=True)
            assert journal.counts().answered == {"complete": options.rows}
        size = path.stat().st_size
        print(f"file             {size / 2**20:10,.0f} MB, {size / options.rows:.0f} bytes a row")
        for _ in range(3):
            out = subprocess.run([sys.executable, "-c", STATUS, str(path)], capture_output=True, text=True, check=True)
            opened, imported, total = out.stdout.split()
            assert int(total) == options.rows
            print(f"status           {float(opened):10.4f} s (imports {imported} s)")
        start = time.perf_counter()
        with Journal(path):
            print(f"opened to write  {time.perf_counter() - start:10.2f} s, with its check")


if __name__ == "__main__":
    main()
