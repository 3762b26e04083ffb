"""Sparse Logit Sampling (arXiv 2503.16870) in small: what students learn from a few entries a token.

    python benchmarks/sparse_logits.py --save

Runs ``recipes/reproduce/sparse-logits.yaml`` and ``recipes/gemma.yaml``, or goes on with them where they stopped, and
prints for every technique, over all seeds:

- held-out cross-entropy and KL to the teacher, nats a token, and their differences to the student of whole
  distributions, paired, with 95% intervals over documents and seeds (``*`` better, ``!`` worse);
- **overconfidence**: the probability of a student's likeliest token less how often it is the next one, on average,
  with its interval;
- **ECE**: the expected calibration error of the same (Guo et al. 2017, arXiv 1706.04599), 15 bins of equal width, all
  seeds together; of the teacher in the line above the table.

A student that sees no teacher (``alone``) is fitted to the text itself, and is the measure of what calibration these
sizes allow.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import torch

from limbeck.data.packing import IGNORED, collate
from limbeck.evaluation import gap
from limbeck.evaluation.heldout import Heldout
from limbeck.models.causal_lm import CausalLM
from limbeck.models.load import load_model
from limbeck.pipeline.shared.base import TEACHER, lease_teacher, open_text
from limbeck.pipeline.stages.teacher import teacher_spec
from limbeck.recipe import PathModel, Recipe, load_recipe
from limbeck.statistics import Interval, bootstrap
from limbeck.workflow.markers import Markers
from objective import machine
from recovery import RESAMPLES, against, measured, teachers_line, value

ROOT = Path(__file__).parent.parent
RECIPES = ("reproduce/sparse-logits", "gemma")
BINS = 15
BASE = "whole"
"""What the others are compared with: the student of whole distributions."""


@dataclass(frozen=True)
class Confidence:
    """A model's likeliest tokens on held-out documents.

    Attributes:
        sure_D: float64 [D], their probabilities, summed over each document's labels.
        right_D: float64 [D], how many are the label.
        bins: float64 [BINS, 3], probability, hits and number of those in each bin of probability.
    """

    sure_D: np.ndarray
    right_D: np.ndarray
    bins: np.ndarray


@torch.no_grad()
def confidence(lm: CausalLM, heldout: Heldout) -> Confidence:
    documents = len(heldout.corpus)
    sure_D, right_D, bins = np.zeros(documents), np.zeros(documents), np.zeros((BINS, 3))
    with lm.evaluating():
        for start in range(0, len(heldout.rows), 8):
            chosen = range(start, min(start + 8, len(heldout.rows)))
            batch = collate([heldout.rows[r] for r in chosen]).to(lm.device)
            learned_BT = batch.labels_BT != IGNORED
            hidden_ND = lm.hidden(batch.ids_BT, batch.positions_BT)[learned_BT]
            sure_N, token_N = lm.head().logits(hidden_ND)[:, : lm.vocab_size].float().softmax(1).max(1)
            right_N = (token_N == batch.labels_BT[learned_BT]).double().cpu().numpy()
            probability_N = sure_N.double().cpu().numpy()
            of_row = torch.tensor([heldout.rows.document_of(r) for r in chosen])[:, None].expand(learned_BT.shape)
            document_N = of_row[learned_BT.cpu()].numpy()
            np.add.at(sure_D, document_N, probability_N)
            np.add.at(right_D, document_N, right_N)
            bin_N = np.minimum((probability_N * BINS).astype(int), BINS - 1)
            np.add.at(bins, bin_N, np.stack([probability_N, right_N, np.ones_like(right_N)], 1))
    return Confidence(sure_D, right_D, bins)


def calibration_error(runs: list[Confidence]) -> float:
    sure, right, count = sum(run.bins for run in runs).T  # type: ignore[union-attr]
    return float(np.abs(sure - right).sum() / count.sum())


def overconfidence(runs: list[Confidence], tokens_D: np.ndarray) -> Interval:
    surplus_SD = np.stack([run.sure_D - run.right_D for run in runs])
    return bootstrap(lambda a, n: a / n, surplus_SD, tokens_D[None], resamples=RESAMPLES)


def of_recipe(recipe: Recipe) -> list[str]:
    run = Path(recipe.run)
    text = open_text(run)
    heldout = Heldout.of(text.heldout, text.heldout_own, recipe.data.seq_len, recipe.evaluation.max_documents)
    up: dict[str, Any] = {TEACHER: Markers(run).read(TEACHER).result}  # type: ignore[union-attr]
    with lease_teacher(teacher_spec(up, run), text) as teacher:
        teachers = calibration_error([confidence(teacher, heldout)])
    base = measured(recipe, BASE, "student")
    lines = [
        f"{teachers_line(recipe)} Its ECE {100 * teachers:.1f}%.",
        "",
        "| technique | cross-entropy | KL | less `whole`: cross-entropy | KL | overconfidence | ECE |",
        "|---|---|---|---|---|---|---|",
    ]
    for technique in recipe.techniques:
        runs = measured(recipe, technique.label, "student")
        found = []
        for seed in recipe.seeds:
            folder = run / "arms" / f"{technique.label}-seed{seed}" / "students" / "student"
            found.append(confidence(load_model(PathModel(path=str(folder)), text.tokenizer), heldout))
        surplus = overconfidence(found, runs[0].tokens)
        quantities: tuple[gap.Quantity, ...] = ("cross_entropy", "kl")
        cells = [value(quantity, gap.mean(quantity, runs, RESAMPLES)) for quantity in quantities]
        for quantity in quantities:
            other = gap.difference(quantity, runs, base, RESAMPLES)
            cells.append("" if technique.label == BASE else against(quantity, other))
        cells.append(f"{100 * surplus.value:+.1f}% ({100 * surplus.low:+.1f} to {100 * surplus.high:+.1f})")
        cells.append(f"{100 * calibration_error(found):.1f}%")
        lines.append(f"| {technique.label} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="*", default=RECIPES, help="below recipes/")
    parser.add_argument("--runs", type=Path, help="folder for their runs; default: as the recipes say")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the recipes")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/sparse_logits-DATE.md")
    arguments = parser.parse_args()
    lines = [f"# Students of sparse logits, {date.today()}", "", machine(), ""]
    for name in arguments.recipes:
        path = ROOT / "recipes" / f"{name}.yaml"
        overrides = list(arguments.set)
        if arguments.runs:
            overrides.append(f"run={arguments.runs / Path(name).name}")
        ran = subprocess.run([sys.executable, "-m", "limbeck", "run", str(path), *overrides])
        if ran.returncode:
            sys.exit(ran.returncode)  # it has said why
        recipe = load_recipe(path, overrides)
        added = [f"## {name}: {recipe.training.tokens:,} tokens each", "", *of_recipe(recipe), ""]
        print("\n".join(added), flush=True)
        lines += added
    if arguments.save:
        (ROOT / "benchmarks" / "results" / f"sparse_logits-{date.today()}.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
