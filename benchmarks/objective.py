"""The objective beside its peers: CPU-seconds over the floor of its matmuls, memory, gradient error.

    python benchmarks/objective.py --python .venv-bench/bin/python

Every measurement is a fresh process, which builds its inputs, warms up on a small problem, and then runs
the variant some times; reported is the run of the fewest CPU-seconds. The rounds of a case are interleaved
(all variants once, then again), so that a noisy spell does not fall on one of them; what is slow is run less
often (``--spend``), and what is far from the floor in one round is not run in the next. Extra memory is the
peak of the resident set during a process' first run over what was resident before it, gradients included.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from objective_variants import (
    STUDENT_WIDTH,
    TEACHER_WIDTH,
    VARIANTS,
    applies,
    copies,
    make_problem,
    reference,
)

ROOT = Path(__file__).parent.parent
FAR = 1.6  # Times the floor: here a noisy spell changes no conclusion.


@dataclass(frozen=True)
class Case:
    positions: int
    vocabulary: int
    dtype: str
    divergence: str
    target: str

    def problem(self) -> Any:
        return make_problem(self.positions, self.vocabulary, getattr(torch, self.dtype), self.divergence, self.target)

    def title(self) -> str:
        return f"N={self.positions}, V={self.vocabulary:,}, {self.dtype}, {self.divergence}, {self.target}"


# ---- the child: one measurement -----------------------------------------------------------------------------


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure(variant: str, case: Case, runs: int, spend: float, answer: str | None) -> dict[str, float]:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    run = VARIANTS[variant]
    # Libraries loaded, kernels built, threads started; the sizes are others, so nothing is cached for the case.
    run(make_problem(64, 1024, getattr(torch, case.dtype), case.divergence, case.target))
    problem = case.problem()
    if variant == "Liger compiled":
        run(problem)  # Compiles for these shapes.
    best: dict[str, float] = {}
    begun, memory_mb = time.process_time(), 0.0
    for turn in range(runs):
        if turn and time.process_time() - begun > spend:
            break
        # What an earlier problem left in the allocator would hide what this one takes.
        ctypes.CDLL(None).malloc_trim(0)
        problem.hidden_ND.grad = problem.head_VD.grad = None
        Path("/proc/self/clear_refs").write_text("5")  # Resets the peak.
        before, wall = resident("VmRSS"), time.perf_counter()
        cpu = time.process_time()
        gradients = run(problem)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        if not turn:  # Later, memory that a freed run left with the allocator counts as there before.
            memory_mb = (resident("VmHWM") - before) / 1e6
        row = {"cpu_s": cpu, "wall_s": wall, "memory_mb": memory_mb}
        best = min((row, best or row), key=lambda r: r["cpu_s"])
    if answer and "floor" not in variant:
        expected = torch.load(answer)
        errors = [
            float((got.float() - want).norm() / want.norm()) for got, want in zip(gradients, expected, strict=True)
        ]
        best["error"] = max(errors)
    return best


# ---- the parent: the table ----------------------------------------------------------------------------------


def child(python: str, *arguments: str) -> dict[str, float] | None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(
        [python, __file__, "--child", *arguments], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        print(f"  failed: {' '.join(arguments)}\n{done.stderr[-800:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def run_case(case: Case, arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    answer = folder / "answer.pt"
    answer.unlink(missing_ok=True)
    if case.positions <= 1024:
        torch.save(reference(case.problem()), answer)
    variants = [
        name
        for name in VARIANTS
        if applies(name, case.dtype, case.divergence, case.target) and (not arguments.only or name in arguments.only)
    ]
    rows: dict[str, dict[str, Any]] = {}
    for turn in range(arguments.rounds):
        for name in variants:
            if turn and rows.get(name, {}).get("cpu_s", math.inf) > FAR * rows["floor"]["cpu_s"]:
                continue
            need = copies(name, case.divergence) * case.positions * case.vocabulary * 4
            if need > arguments.memory_gb * 1e9:
                rows[name] = {"skipped": f"needs about {need / 1e9:.0f} GB"}
                continue
            path = str(answer) if answer.exists() else ""
            row = child(
                arguments.python, name, json.dumps(asdict(case)), str(arguments.runs), str(arguments.spend), path
            )
            if row is not None:
                before = rows.get(name, row)
                rows[name] = min((row, before), key=lambda r: r["cpu_s"]) | {
                    "memory_mb": min(row["memory_mb"], before["memory_mb"])
                }
    base = rows["floor"]
    return [
        {
            **asdict(case),
            "variant": name,
            **row,
            "ratio": row["cpu_s"] / base["cpu_s"] if "cpu_s" in row else None,
            "memory_ratio": row["memory_mb"] / base["memory_mb"] if "cpu_s" in row else None,
        }
        for name, row in rows.items()
    ]


def show(row: dict[str, Any]) -> str:
    if "skipped" in row:
        return f"| {row['variant']} | {row['skipped']} | | | | |"
    error = f"{row['error']:.1e}" if "error" in row else ""
    return (
        f"| {row['variant']} | {row['ratio']:.2f} | {row['cpu_s']:.2f} | {row['memory_mb']:,.0f} | "
        f"{row['memory_ratio']:.2f} | {error} |"
    )


HEADER = "| variant | CPU-s / floor | CPU-s | extra MB | / floor | gradient error |\n|---|---|---|---|---|---|"


def machine() -> str:
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    flags = Path("/proc/cpuinfo").read_text()
    amx = ", AMX" if "amx_bf16" in flags else ""
    cores = len(os.sched_getaffinity(0))
    return f"{model}{amx}, {cores} cores, torch {torch.__version__}, Python {platform.python_version()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="interpreter with the peers installed")
    parser.add_argument("--positions", type=int, nargs="*", default=[1024, 4096])
    parser.add_argument("--vocabularies", type=int, nargs="*", default=[32_000, 128_256])
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--divergences", nargs="*", default=["forward_kl", "jsd"])
    parser.add_argument("--targets", nargs="*", default=["dense", "sparse"])
    parser.add_argument("--only", nargs="*", help="variants; the floor is needed")
    parser.add_argument("--runs", type=int, default=3, help="runs in a process, of which the best counts")
    parser.add_argument("--spend", type=float, default=25.0, help="CPU-seconds after which a process runs no more")
    parser.add_argument("--rounds", type=int, default=2, help="processes a variant, of which the best counts")
    parser.add_argument("--memory-gb", type=float, default=18.0, help="skip what would take more")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/objective-DATE.md")
    arguments = parser.parse_args()

    lines: list[str] = []

    def say(text: str) -> None:
        print(text, flush=True)
        lines.append(text)

    say(f"# The objective, {date.today()}\n\n{machine()}; student {STUDENT_WIDTH} wide, teacher {TEACHER_WIDTH}.")
    everything = []
    grid = itertools.product(
        arguments.vocabularies, arguments.positions, arguments.dtypes, arguments.targets, arguments.divergences
    )
    with tempfile.TemporaryDirectory() as folder:
        for vocabulary, positions, dtype, target, divergence in grid:
            case = Case(positions, vocabulary, dtype, divergence, target)
            rows = run_case(case, arguments, Path(folder))
            everything += rows
            say(f"\n## {case.title()}\n\n{HEADER}")
            for row in rows:
                say(show(row))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    say(f"\nCPU-seconds of all of it: {used.ru_utime + used.ru_stime:,.0f}.")
    if arguments.save:
        results = ROOT / "benchmarks" / "results"
        (results / f"objective-{date.today()}.md").write_text("\n".join(lines) + "\n")
        (results / f"objective-{date.today()}.json").write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        name, case_json, runs, spend, path = sys.argv[2:]
        print(json.dumps(measure(name, Case(**json.loads(case_json)), int(runs), float(spend), path or None)))
    else:
        main()
