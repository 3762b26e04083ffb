"""A process that sends requests, to be killed: ``python -m tests.servers.sender URL JOURNAL ROWS [CONCURRENCY]``."""

from __future__ import annotations

import sys
from pathlib import Path

from limbeck.generation.api.served import ServedSampler
from limbeck.generation.journal.budget import Ledger
from limbeck.generation.journal.journal import Journal
from limbeck.generation.request import Request
from limbeck.recipe.served import Endpoint, Prices


def question(number: int) -> Request:
    return Request(messages=({"role": "user", "content": f"Question {number}"},), max_new_tokens=64)


def main() -> None:
    url, path, rows = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    concurrency = int(sys.argv[4]) if len(sys.argv) > 4 else 16
    endpoint = Endpoint(api=url, model="m", prices=Prices(input=1, output=2), concurrency=concurrency)
    with Journal(path) as journal:
        sampler = ServedSampler([endpoint], journal, Ledger(None, journal.spent()))
        print("ready", flush=True)
        try:
            summary = sampler.write(
                (question(i) for i in range(rows)), lambda done, line: print(done, line, flush=True)
            )
        except KeyboardInterrupt:
            sys.exit(130)
        print(summary.line(), flush=True)


if __name__ == "__main__":
    main()
