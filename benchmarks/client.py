"""Rows a second and CPU a call of clients that have 2,000 prompts answered: limbeck beside its peers.

    python benchmarks/client.py --python .venv-bench-client/bin/python --save

The server is a process of its own on loopback (``tests/servers/faulty.py``), which takes 50 ms an answer. Every client
is a process of its own; its CPU time is counted from the first request to the last answer. limbeck's includes its
journal: every request is on disk before it is sent, and every answer before it counts. *Ideal* is the time of a client
that costs nothing and keeps its slots full in the order of the rows. Beside it stands the older figure: all waiting,
divided by the slots, which no client reaches where answers near the end are slow. A peer that is not installed in
``--python`` is left out, and said so.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MISSING = 77


def prompts(rows: int) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": f"Question {i}: what is {i} times {i + 1}?"}] for i in range(rows)]


def with_aiohttp(url: str, rows: int, concurrency: int) -> int:
    """The floor: nothing is kept, checked or tried again."""
    import aiohttp

    async def work() -> int:
        slots, done = asyncio.Semaphore(concurrency), 0
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def one(messages: Any) -> None:
                nonlocal done
                async with slots:
                    body = json.dumps({"model": "m", "messages": messages, "max_tokens": 64}).encode()
                    headers = {"Content-Type": "application/json"}
                    async with session.post(f"{url}/v1/chat/completions", data=body, headers=headers) as response:
                        json.loads(await response.read())
                        done += response.status == 200

            await asyncio.gather(*map(one, prompts(rows)))
        return done

    return asyncio.run(work())


def with_limbeck(url: str, rows: int, concurrency: int) -> int:
    from limbeck.generation.api.served import ServedSampler
    from limbeck.generation.journal.budget import Ledger
    from limbeck.generation.journal.journal import Journal
    from limbeck.generation.request import Request
    from limbeck.recipe.served import Budget, Endpoint, Prices

    endpoint = Endpoint(api=f"{url}/v1", model="m", prices=Prices(input=1, output=2), concurrency=concurrency)
    with (
        tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_FOLDER")) as folder,
        Journal(Path(folder) / "journal.sqlite") as journal,
    ):
        sampler = ServedSampler([endpoint], journal, Ledger(Budget(usd=1000), journal.spent()))
        requests = (Request(messages=tuple(each), max_new_tokens=64) for each in prompts(rows))
        summary = sampler.write(requests, lambda done, line: None)
    return sum(summary.answered.values())


def with_openai(url: str, rows: int, concurrency: int) -> int:
    import openai

    async def work() -> int:
        slots, done = asyncio.Semaphore(concurrency), 0
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:

            async def one(messages: Any) -> None:
                nonlocal done
                async with slots:
                    answer = await client.chat.completions.create(model="m", messages=messages, max_tokens=64)
                    done += bool(answer.choices[0].message.content)

            await asyncio.gather(*map(one, prompts(rows)))
        return done

    return asyncio.run(work())


def with_curator(url: str, rows: int, concurrency: int) -> int:
    os.environ |= {"CURATOR_DISABLE_CACHE": "1", "TELEMETRY_ENABLED": "false", "OPENAI_API_KEY": "none"}
    from bespokelabs import curator

    class Asker(curator.LLM):
        def prompt(self, row: Any) -> Any:
            return row["messages"]

        def parse(self, row: Any, response: Any) -> Any:
            return {"answer": response}

    asker = Asker(
        model_name="m",
        backend="openai",
        backend_params={
            "base_url": f"{url}/v1",
            "max_concurrent_requests": concurrency,
            "max_requests_per_minute": 10_000_000,
            "max_tokens_per_minute": 10_000_000_000,
        },
        generation_params={"max_tokens": 64},
    )
    from datasets import Dataset

    answers = asker(Dataset.from_list([{"messages": each} for each in prompts(rows)]))
    return len(getattr(answers, "dataset", answers))


def with_distilabel(url: str, rows: int, concurrency: int) -> int:
    from distilabel.models import OpenAILLM

    llm = OpenAILLM(model="m", base_url=f"{url}/v1", api_key="none", generation_kwargs={"max_new_tokens": 64})
    llm.load()
    done, asked = 0, prompts(rows)
    for start in range(0, rows, concurrency):  # its steps ask a batch at a time
        done += sum(bool(each["generations"][0]) for each in llm.generate(inputs=asked[start : start + concurrency]))
    return done


@dataclass(frozen=True)
class Case:
    name: str
    client: Callable[[str, int, int], int]
    concurrency: int = 64
    settings: str = '{"latency": 0.05}'
    own: bool = True


FAST, SLOW_SECONDS = 0.05, 1.0
SLOW = '{"latency": 0.05, "slow_share": 0.05, "slow_seconds": 1.0}'
CASES = {
    "aiohttp": Case("aiohttp alone, no journal", with_aiohttp),
    "limbeck": Case("limbeck, with its journal", with_limbeck),
    "limbeck-512": Case("limbeck, 512 at once", with_limbeck, 512),
    "aiohttp-512": Case("aiohttp alone, 512 at once", with_aiohttp, 512),
    "limbeck-slow": Case("limbeck, 5% of answers take 1 s", with_limbeck, 64, SLOW),
    "aiohttp-slow": Case("aiohttp alone, 5% slow", with_aiohttp, 64, SLOW),
    "openai": Case("openai SDK, no journal", with_openai, own=False),
    "curator": Case("curator", with_curator, own=False),
    "distilabel": Case("distilabel", with_distilabel, own=False),
}


def child(name: str, url: str, rows: int) -> None:
    case = CASES[name]
    try:
        case.client(url, 8, 8)  # libraries are loaded, connections are made
    except ImportError as error:
        print(error, file=sys.stderr)
        sys.exit(MISSING)
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    done = case.client(url, rows, case.concurrency)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"done": done, "wall": wall, "cpu": cpu}))


def measure(case: str, python: str, rows: int, seconds: float) -> dict[str, float] | str:
    """The figures of one case in fresh processes, or why there are none."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.servers.faulty", CASES[case].settings],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        client = subprocess.run(
            [python, __file__, "--child", case, "--url", url, "--rows", str(rows)],
            capture_output=True, text=True, timeout=seconds, cwd=ROOT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"not done within {seconds:.0f} s"
    finally:
        server.kill()
        server.wait()
    if client.returncode == MISSING:
        return f"not installed: {client.stderr.strip().splitlines()[-1]}"
    if client.returncode:
        return f"failed: {(client.stderr.strip().splitlines() or ['?'])[-1].partition(':')[0]}"
    return dict(json.loads(client.stdout.strip().splitlines()[-1]))


def waiting(case: Case, rows: int) -> float:
    """Seconds of waiting, divided by the slots: no client reaches it where the last answers are slow ones."""
    slow = json.loads(case.settings).get("slow_share", 0.0)
    return rows * ((1 - slow) * FAST + slow * SLOW_SECONDS) / case.concurrency


def ideal(case: Case, rows: int) -> float:
    """Seconds that a client takes which costs nothing: its slots are always full, in the order of the rows.

    That is list scheduling (Graham, 1966): each row goes into the slot that is free first, and the time is that of the
    last slot to end. A slow answer near the end has nothing beside it to hide behind, for any client that does not know
    which are slow. The mean over 200 seeded orders of the same share of slow answers.
    """
    slow = round(rows * json.loads(case.settings).get("slow_share", 0.0))
    seconds = [SLOW_SECONDS] * slow + [FAST] * (rows - slow)
    orders, total = 200 if slow else 1, 0.0
    for seed in range(orders):
        random.Random(seed).shuffle(seconds)
        slots = [0.0] * case.concurrency
        for each in seconds:
            heapq.heapreplace(slots, slots[0] + each)
        total += max(slots)
    return total / orders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="a Python that has the peers")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=180.0, help="the most that a client may take")
    parser.add_argument("--only", nargs="*", choices=CASES)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--child", choices=CASES)
    parser.add_argument("--url")
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.url, arguments.rows)
        return
    found: dict[str, list[dict[str, float]]] = {}
    notes: dict[str, str] = {}
    for _ in range(arguments.rounds):  # in turn: a busy moment meets everybody
        for name in arguments.only or CASES:
            if name in notes:
                continue
            python = sys.executable if CASES[name].own else arguments.python
            figures = measure(name, python, arguments.rows, arguments.seconds)
            if isinstance(figures, str):
                notes[name] = figures
            else:
                found.setdefault(name, []).append(figures)
                print(name, figures, file=sys.stderr, flush=True)
    lines = [
        f"# Clients, {arguments.rows:,} calls of 50 ms ({date.today()})",
        "",
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; "
        f"the best and the worst of {arguments.rounds} rounds in turn. Load average {os.getloadavg()[0]:.1f}.",
        "",
        "| client | at once | rows/s | ms of CPU a call | time / ideal | time / (waiting / slots) |",
        "|---|---|---|---|---|---|",
    ]
    for name in arguments.only or CASES:
        case = CASES[name]
        if name not in found:
            lines.append(f"| {case.name} | {case.concurrency} | {notes[name]} | | | |")
            continue
        rates = [each["done"] / each["wall"] for each in found[name]]
        cpu = [1000 * each["cpu"] / each["done"] for each in found[name]]
        best, least = ideal(case, arguments.rows), waiting(case, arguments.rows)
        ratio = [each["wall"] / best for each in found[name]]
        shares = [each["wall"] / least for each in found[name]]
        lines.append(
            f"| {case.name} | {case.concurrency} | {max(rates):,.0f} ({min(rates):,.0f}) | {min(cpu):.2f} "
            f"({max(cpu):.2f}) | {min(ratio):.2f} ({max(ratio):.2f}) | {min(shares):.2f} ({max(shares):.2f}) |"
        )
    text = "\n".join(lines)
    print(text)
    if arguments.save:
        path = ROOT / "benchmarks" / "results" / f"client-{date.today()}.md"
        path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
