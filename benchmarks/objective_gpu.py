"""The objective beside its peers on a CUDA GPU: time over the floor of its matmuls, memory, gradient error.

    python benchmarks/objective_gpu.py --save

Needs the peers of ``requirements.txt`` in the same environment; one that is not there is left out, and said.
All variants of a case run in one process on the same inputs, one after the other: time is the median of some
runs by CUDA events after two that warm up, and extra memory is the allocator's peak over what was allocated
before, gradients included. Gradient errors are relative to float64.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import statistics
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from objective_variants import VARIANTS, Problem, applies, make_problem, reference

# name: (positions, vocabulary, student's width, teacher's width)
SHAPES = {
    "Llama 3.2 1B from 8B": (8192, 128_256, 2048, 4096),
    "Gemma 3 1B from 4B": (8192, 262_144, 1152, 2560),
    "Llama 2's vocabulary": (8192, 32_000, 2048, 4096),
}
LEFT_OUT = ("floor, summed", "limbeck eager")  # of the CPU's table
HEADER = "| variant | time / floor | ms | extra GB | gradient error |\n|---|---|---|---|---|"


def measure(run: Callable[[Problem], Any], problem: Problem, runs: int) -> dict[str, float]:
    times, peak = [], 0.0
    for turn in range(runs + 2):
        problem.hidden_ND.grad = problem.head_VD.grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        run(problem)
        ended.record()
        torch.cuda.synchronize()
        if turn >= 2:
            times.append(begun.elapsed_time(ended))
            peak = (torch.cuda.max_memory_allocated() - before) / 1e9
    return {"ms": statistics.median(times), "spread": max(times) - min(times), "memory_gb": peak}


def error(gradients: Any, answer: Any) -> float:
    return max(float((got.float() - want).norm() / want.norm()) for got, want in zip(gradients, answer, strict=True))


def run_case(shape: str, dtype: str, target: str, divergence: str, arguments: argparse.Namespace) -> list[dict]:
    positions, vocabulary, *widths = SHAPES[shape]
    problem = make_problem(
        positions, vocabulary, getattr(torch, dtype), divergence, target, widths=tuple(widths), device="cuda"
    )
    answer = reference(problem)
    rows: list[dict[str, Any]] = []
    for name, run in VARIANTS.items():
        if name in LEFT_OUT or not applies(name, dtype, divergence, target):
            continue
        if arguments.only and name not in arguments.only:
            continue
        row: dict[str, Any] = {"shape": shape, "dtype": dtype, "target": target, "divergence": divergence}
        row["variant"] = name
        try:
            row |= measure(run, problem, arguments.runs)
            if name != "floor":
                problem.hidden_ND.grad = problem.head_VD.grad = None
                row["error"] = error(run(problem), answer)
        except ImportError as missing:
            row["failed"] = f"not installed ({missing})"
        except Exception as broken:  # whatever a peer does here is its result
            row["failed"] = f"{type(broken).__name__}: {str(broken)[:120]}".splitlines()[0]
        rows.append(row)
        problem.hidden_ND.grad = problem.head_VD.grad = None
        torch.cuda.empty_cache()
    return rows


def show(row: dict[str, Any], floor_ms: float) -> str:
    if "failed" in row:
        return f"| {row['variant']} | {row['failed']} | | | |"
    shown = f"{row['error']:.1e}" if "error" in row else ""
    time = f"{row['ms'] / floor_ms:.2f} | {row['ms']:.2f} ±{row['spread'] / 2:.2f}"
    return f"| {row['variant']} | {time} | {row['memory_gb']:.2f} | {shown} |"


def machine() -> str:
    import triton

    return (
        f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}, Triton {triton.__version__}, "
        f"Python {platform.python_version()}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--dtypes", nargs="*", default=["bfloat16"])
    parser.add_argument("--targets", nargs="*", default=["dense", "sparse"])
    parser.add_argument("--divergences", nargs="*", default=["forward_kl", "jsd"])
    parser.add_argument("--only", nargs="*", help="variants; the floor is needed")
    parser.add_argument("--runs", type=int, default=7, help="of which the median counts")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/objective-gpu-DATE.md")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for --save")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this benchmark needs a CUDA GPU; benchmarks/objective.py is for CPUs")
    lines: list[str] = []

    def say(text: str) -> None:
        print(text, flush=True)
        lines.append(text)

    say(f"# The objective on a GPU, {date.today()}\n\n{machine()}.")
    grid = itertools.product(arguments.shapes, arguments.dtypes, arguments.targets, arguments.divergences)
    for shape, dtype, target, divergence in grid:
        rows = run_case(shape, dtype, target, divergence, arguments)
        N, V, D, E = SHAPES[shape]
        say(f"\n## {shape}: N={N:,}, V={V:,}, widths {D} and {E}, {dtype}, {divergence}, {target}\n\n{HEADER}")
        for row in rows:
            say(show(row, rows[0]["ms"]))
        if arguments.save:
            (arguments.out / f"objective-gpu-{date.today()}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
