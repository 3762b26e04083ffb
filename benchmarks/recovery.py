"""What brings back a model that was cut: SmolLM2 at 24, 20 and 15 of 30 layers, each technique, and choosers.

    python benchmarks/recovery.py --text TinyStories-train.txt recovery recovery-uncorrected recovery-300k choosers

Runs the recipes of these names (``recipes/NAME.yaml``) and the variants of them below, or goes on with them
where they stopped, and prints for every student cross-entropy, KL to the teacher and agreement with it on
held-out stories, with 95% intervals over documents, and the paired differences to the control (``alone``), or to
the first student where a run has none. A difference whose interval holds no zero is marked: ``*`` better, ``!``
worse.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from limbeck.evaluation import gap
from limbeck.pipeline.measuring.evaluate import read_measured
from limbeck.recipe import Alone, Recipe, load_recipe
from limbeck.statistics import Interval
from objective import machine

ROOT = Path(__file__).parent.parent
RESAMPLES = 2000
TAUGHT = (
    "alone, {kind: soft, kd_weight: 1.0, ce_weight: 0.0}, {kind: soft, name: soft+hard, kd_weight: 0.5, ce_weight: 0.5}"
)
# Name → recipe and what is changed in it.
VARIANTS: dict[str, tuple[str, list[str]]] = {
    "recovery-uncorrected": (
        "recovery",
        [
            "teacher.correct=null",
            f"techniques=[{TAUGHT}, {{kind: soft, name: soft+hidden, kd_weight: 1.0, ce_weight: 0.0, hidden: {{}}}}]",
        ],
    ),
    "recovery-300k": (
        "recovery",
        ["training.tokens=300_000", f"techniques=[{TAUGHT}]"],
    ),
    **{
        f"choosers-{layers}": (
            "choosers",
            [
                f"students={{block-influence: {{from: teacher, layers: {layers}, chooser: block_influence}}, "
                f"contiguous: {{from: teacher, layers: {layers}, chooser: contiguous}}}}"
            ],
        )
        for layers in (24, 20)
    },
}
QUANTITIES: tuple[gap.Quantity, ...] = ("cross_entropy", "kl", "agreement")
HEADER = (
    "| student | technique | cross-entropy | KL | agreement | less the control's: cross-entropy | KL | agreement |\n"
    "|---|---|---|---|---|---|---|---|"
)


def measured(recipe: Recipe, technique: str, student: str) -> list[gap.Measured]:
    found = [
        read_measured(Path(recipe.run) / "measured" / f"{technique}-seed{seed}-{student}") for seed in recipe.seeds
    ]
    return [one for one in found if one is not None]


def value(quantity: gap.Quantity, interval: Interval) -> str:
    half = (interval.high - interval.low) / 2
    if quantity == "agreement":
        return f"{100 * interval.value:.1f}% ±{100 * half:.1f}"
    return f"{interval.value:.3f} ±{half:.3f}"


def against(quantity: gap.Quantity, interval: Interval) -> str:
    scale, unit = (100, "%") if quantity == "agreement" else (1, "")
    better = interval.low > 0 if quantity == "agreement" else interval.high < 0
    worse = interval.high < 0 if quantity == "agreement" else interval.low > 0
    digits = 1 if quantity == "agreement" else 3
    low, high = f"{scale * interval.low:+.{digits}f}", f"{scale * interval.high:+.{digits}f}"
    return f"{scale * interval.value:+.{digits}f}{unit} ({low} to {high}){' *' if better else ' !' if worse else ''}"


def table(recipe: Recipe) -> list[str]:
    """The run's students in order, each technique beside the control of the same student."""
    control = next((technique.label for technique in recipe.techniques if isinstance(technique, Alone)), None)
    lines = [HEADER]
    first = next(iter(recipe.named_students))
    for student in recipe.named_students:
        for technique in recipe.techniques:
            runs = measured(recipe, technique.label, student)
            if not runs:
                continue
            base = measured(recipe, control or technique.label, student if control else first)
            same = technique.label == control or (control is None and student == first)
            cells = [value(q, gap.mean(q, runs, RESAMPLES)) for q in QUANTITIES]
            cells += ["" if same else against(q, gap.difference(q, runs, base, RESAMPLES)) for q in QUANTITIES]
            lines.append(f"| {student} | {technique.label} | {' | '.join(cells)} |")
    return lines


def teachers_line(recipe: Recipe) -> str:
    found = read_measured(Path(recipe.run) / "measured" / "teacher")
    if found is None:
        return ""
    documents = len(found.nats)
    entropy = value("cross_entropy", gap.mean("cross_entropy", [found], RESAMPLES))
    return f"Teacher's cross-entropy {entropy}; {documents} held-out documents, seeds {list(recipe.seeds)}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", help="names of recipes, or paths of recipe files")
    parser.add_argument("--text", required=True, help="TinyStories, stories parted by <|endoftext|>")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides for every recipe")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/recovery-DATE.md")
    arguments = parser.parse_args()
    lines = [f"# Recovery of a cut model, {date.today()}", "", machine(), ""]
    for name in arguments.recipes:
        recipe_name, changed = VARIANTS.get(name, (name, []))
        path = Path(name) if name.endswith(".yaml") else ROOT / "recipes" / f"{recipe_name}.yaml"
        run = [f"run=runs/{name}"] if name in VARIANTS else []
        overrides = [f"data.corpus.0.text={arguments.text}", *changed, *run, *arguments.set]
        ran = subprocess.run([sys.executable, "-m", "limbeck", "run", str(path), *overrides])
        if ran.returncode:
            sys.exit(ran.returncode)  # it has said why
        recipe = load_recipe(path, overrides)
        tokens = f"{recipe.training.tokens:,} tokens each, learning rate {recipe.training.lr:g}"
        lines += [f"## {Path(name).stem}: {tokens}", "", teachers_line(recipe), "", *table(recipe), ""]
    print("\n".join(lines))
    if arguments.save:
        (ROOT / "benchmarks" / "results" / f"recovery-{date.today()}.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
