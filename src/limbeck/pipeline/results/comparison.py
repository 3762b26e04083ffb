"""What of a recipe is compared, and where its measurements are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from limbeck.evaluation.gap import Measured
from limbeck.pipeline.measuring.evaluate import read_measured
from limbeck.pipeline.stages.train import Arm
from limbeck.recipe import Alone, Technique
from limbeck.report.model import Estimate
from limbeck.statistics import bootstrap
from limbeck.workflow.stage import Facts, Plain


@dataclass(frozen=True)
class Comparison:
    """The arms of a run.

    Attributes:
        techniques, seeds: of the recipe.
        students: their names.
        single: the recipe has one ``student``, whose name is not shown.
        bootstrap: resamples behind each interval.
    """

    techniques: tuple[Technique, ...]
    seeds: tuple[int, ...]
    students: tuple[str, ...]
    single: bool
    bootstrap: int

    def arms(self) -> list[Arm]:
        return [Arm(i, technique, seed) for seed in self.seeds for i, technique in enumerate(self.techniques)]

    def arm(self, technique: Technique, seed: int) -> Arm:
        return next(arm for arm in self.arms() if arm.technique is technique and arm.seed == seed)

    def members(self, technique: Technique) -> Sequence[str]:
        """Who is trained: students in the recipe's order, the teacher last."""
        trained = self.arm(technique, self.seeds[0]).members(list(self.students))
        return [*self.students, *(name for name in trained if name not in self.students)]

    def models(self) -> Iterator[tuple[Arm, str]]:
        for arm in self.arms():
            for member in self.members(arm.technique):
                yield arm, member

    @property
    def control(self) -> Technique | None:
        return next((technique for technique in self.techniques if isinstance(technique, Alone)), None)


@dataclass(frozen=True)
class Measurements:
    """What was measured of each model of a run."""

    run: Path
    up: Facts

    def of(self, name: str) -> Measured:
        found = read_measured(self.run / "measured" / name)
        if found is None:
            raise AssertionError(f"measured/{name} is torn although its stage is done")
        return found

    def accuracy(self, names: Sequence[str], resamples: int) -> Estimate | None:
        """Share of held-out prompts that a model answers right, with its interval; ``names``: it with several seeds.
        None: it was not measured."""
        found = [self.up.get(f"accuracy-{name}") for name in names]
        if any(facts is None or not facts["verdicts"] for facts in found):
            return None
        right = np.array([[verdict == "correct" for verdict in facts["verdicts"]] for facts in found if facts], float)
        of = np.ones((1, right.shape[1]))
        interval = bootstrap(lambda correct, prompts: correct / prompts, right, of, resamples=resamples)
        return Estimate(interval.value, interval.low, interval.high)

    def facts(self, name: str) -> Plain:
        return self.up[f"measure-{name}"]


def model_name(arm: Arm, member: str) -> str:
    return f"{arm.name}-{member}"
