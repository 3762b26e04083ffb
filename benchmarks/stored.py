"""A student taught from disk beside one taught by a live teacher: what it knows, and what a step costs.

    python benchmarks/stored.py --text TinyStories-train.txt --save

Runs ``recipes/stored.yaml`` (SmolLM2 at 15 of 30 layers: live, ``context: row``, ``context: document``), or goes on
with it where it stopped, and prints cross-entropy, KL to the teacher and agreement with it on held-out stories, with
95% intervals over documents, and the paired differences to the live teacher. Then it times training: the same student,
in a process of its own each, on labels alone, from the store, and beside the live teacher; tokens per CPU-second from
the third step on, and the peak of the resident set. Rounds take turns, so that what else the machine does falls on all.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import torch

from limbeck.data.corpus import open_corpus
from limbeck.data.packing import Rows
from limbeck.evaluation import gap
from limbeck.pipeline.build import build
from limbeck.pipeline.shared.base import MACHINE, open_text, precision
from limbeck.pipeline.shared.fit import batches_of
from limbeck.pipeline.stages.capture import Capture
from limbeck.pipeline.stages.train import Train
from limbeck.recipe import Recipe, load_recipe
from limbeck.signals.stored import StoredTeacher
from limbeck.training.loop import TrainingJob, train
from limbeck.training.loss_graph import LossGraph
from limbeck.training.techniques import loss_terms_of
from limbeck.workflow.markers import Markers
from objective import machine
from recovery import HEADER, QUANTITIES, RESAMPLES, against, measured, teachers_line, value

ROOT = Path(__file__).parent.parent
SKIPPED = 2
"""Steps that are not timed: memory is touched for the first time."""

TIMED = ("alone", "row", "live")


def quality(recipe: Recipe) -> list[str]:
    """Every technique's student, beside the live teacher's."""
    live, lines = measured(recipe, "live", "student"), [HEADER.replace("the control's", "the live teacher's")]
    for technique in recipe.techniques:
        runs = measured(recipe, technique.label, "student")
        cells = [value(q, gap.mean(q, runs, RESAMPLES)) for q in QUANTITIES]
        others = [against(q, gap.difference(q, runs, live, RESAMPLES)) for q in QUANTITIES]
        cells += [""] * len(QUANTITIES) if technique.label == "live" else others
        lines.append(f"| 15 layers | {technique.label} | {' | '.join(cells)} |")
    return lines


def store_lines(recipe: Recipe) -> list[str]:
    lines = []
    for stage in build(recipe):
        marker = Markers(Path(recipe.run)).read(stage.name) if isinstance(stage, Capture) else None
        if marker is not None and marker.result is not None:
            lines += [f"- {note}" for note in marker.result["notes"]]
    return lines


def step_costs(name: str, overrides: list[str], steps: int) -> dict[str, float]:
    """Train an arm's student for some steps, in this process: tokens a CPU-second, and the peak of memory."""
    recipe = load_recipe(ROOT / "recipes" / "stored.yaml", overrides)
    run = Path(recipe.run)
    stage = next(each for each in build(recipe) if isinstance(each, Train) and each.arm.technique.label == name)
    up = {needed: Markers(run).read(needed).result for needed in stage.needs}  # type: ignore[union-attr]
    torch.set_num_threads(stage.n_threads(up))
    text = open_text(run)
    section = recipe.training.model_copy(
        update={"precision": precision(recipe.training.precision, up[MACHINE]), "checkpoint_every_steps": 10**9}
    )
    source = batches_of(
        Rows(open_corpus(run / "data" / "train"), recipe.data.seq_len, pack=recipe.data.pack), section, 0
    )
    source.steps = steps
    marks: list[tuple[float, float, int]] = []

    def on_step(step: int, of: int, tokens: int, losses: object) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        marks.append((used.ru_utime + used.ru_stime, time.monotonic(), tokens))

    with stage._models(up, run, text, section) as (learners, teachers), tempfile.TemporaryDirectory() as folder:
        graph = LossGraph(learners, loss_terms_of(stage.arm.technique, ["student"]), teachers, section.precision)
        train(graph, source, TrainingJob(section, Path(folder), 0), on_step=on_step)
        teacher = teachers.get("teacher")
    (cpu, wall, tokens), (cpu_end, wall_end, tokens_end) = marks[SKIPPED - 1], marks[-1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "tokens_per_cpu_second": (tokens_end - tokens) / (cpu_end - cpu),
        "tokens_per_second": (tokens_end - tokens) / (wall_end - wall),
        "peak_mb": peak / 1e6,
        "read_per_token": teacher.store.bytes_read / teacher.positions if isinstance(teacher, StoredTeacher) else 0.0,
    }


def timed(overrides: list[str], steps: int, rounds: int) -> list[str]:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in TIMED}
    for _ in range(rounds):
        for name in TIMED:
            command = [sys.executable, __file__, "--child", name, "--steps", str(steps), "--set", *overrides]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    best = {name: max(runs, key=lambda run: run["tokens_per_cpu_second"]) for name, runs in found.items()}
    base = best["alone"]["tokens_per_cpu_second"]
    names = {"alone": "labels alone", "row": "from the store", "live": "live teacher"}
    lines = [
        "| training | tokens per CPU-second | of labels alone | all rounds | peak MB | bytes read a token |",
        "|---|---|---|---|---|---|",
    ]
    for name, run in best.items():
        rates = ", ".join(f"{each['tokens_per_cpu_second']:.0f}" for each in found[name])
        rate = run["tokens_per_cpu_second"]
        lines.append(
            f"| {names[name]} | {rate:.1f} | {rate / base:.3f} | {rates} | {run['peak_mb']:,.0f} | "
            f"{run['read_per_token']:.1f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", help="TinyStories, stories parted by <|endoftext|>; default: the recipe's corpus")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the recipe")
    parser.add_argument("--steps", type=int, default=16, help="of a timed training")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/stored-DATE.md")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    overrides = list(arguments.set)
    if arguments.text:
        overrides.append(f'data.corpus=[{{text: {arguments.text}, separator: "<|endoftext|>"}}]')
    if arguments.child:
        print(json.dumps(step_costs(arguments.child, overrides, arguments.steps)))
        return
    path = ROOT / "recipes" / "stored.yaml"
    ran = subprocess.run([sys.executable, "-m", "limbeck", "run", str(path), *overrides])
    if ran.returncode:
        sys.exit(ran.returncode)  # it has said why
    recipe = load_recipe(path, overrides)
    tokens = f"{recipe.training.tokens:,} tokens each, learning rate {recipe.training.lr:g}"
    lines = [
        f"# A teacher on disk and a live one, {date.today()}", "", machine(), "",
        f"## What the student knows: {tokens}", "", teachers_line(recipe), "", *quality(recipe), "",
        *store_lines(recipe), "", "## What a step costs", "", *timed(overrides, arguments.steps, arguments.rounds), "",
    ]  # fmt: skip
    print("\n".join(lines))
    if arguments.save:
        (ROOT / "benchmarks" / "results" / f"stored-{date.today()}.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
