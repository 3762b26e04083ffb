"""Training models on a corpus, as stages do it: progress is shown, and a killed one goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from limbeck.data.corpus import Corpus
from limbeck.data.packing import Rows
from limbeck.errors import DivergedError, RecipeError, under
from limbeck.models.causal_lm import CausalLM
from limbeck.recipe import Data, Training
from limbeck.signals.source import SignalSource
from limbeck.training.loop import Peak, TrainingJob, train
from limbeck.training.loss_graph import HiddenLossTerm, LossGraph, LossTerm
from limbeck.training.metrics import loss_said
from limbeck.training.sources import CorpusBatches
from limbeck.workflow.stage import Context, Plain


@dataclass(frozen=True)
class Fit:
    """What is trained on what.

    Attributes:
        trainable: models by name.
        loss_terms: what is minimised.
        corpus, data: what is read, and how it is cut into rows.
        section: the recipe's numbers, its precision resolved; ``place``: where they stand in it.
        teachers: what else they learn from, by name.
        seed: of the order of rows, and of dropout.
        peaks: peak learning rates of models that do not use the section's.
        hidden_place: where layers of loss terms on hidden states are named in the recipe.
    """

    trainable: Mapping[str, CausalLM]
    loss_terms: Sequence[LossTerm | HiddenLossTerm]
    corpus: Corpus
    data: Data
    section: Training
    place: str
    teachers: Mapping[str, SignalSource]
    seed: int = 0
    peaks: Mapping[str, Peak] | None = None
    hidden_place: str = ""

    def run(self, folder: Path, context: Context, title: str) -> dict[str, Plain]:
        """Train, and go on from the newest checkpoint in ``folder``.

        Returns:
            Steps, tokens, seconds, and skipped updates by model if there were any.
        """
        section = self.section
        if section.gradient_checkpointing:
            for lm in self.trainable.values():
                lm.model.gradient_checkpointing_enable()
        try:
            graph = LossGraph(self.trainable, self.loss_terms, self.teachers, section.precision)
        except ValueError as error:  # a layer that does not exist: known only now that the models are here
            raise RecipeError(str(error), key=self.hidden_place, fix="Layers count from 0") from None
        rows = Rows(self.corpus, self.data.seq_len, pack=self.data.pack)
        source = batches_of(rows, section, self.seed)
        job = TrainingJob(section, folder, self.seed, self.peaks or {})
        with context.task(title, section.tokens, "tokens") as task, under(self.place, DivergedError):
            return train(
                graph, source, job, on_step=lambda step, steps, tokens, losses: task.update(tokens, loss_said(losses))
            )


def batches_of(rows: Rows, section: Training, seed: int) -> CorpusBatches:
    """The batches of a training, by its section of the recipe."""
    return CorpusBatches(
        rows,
        tokens=section.tokens,
        micro_batch_size=section.micro_batch_size,
        gradient_accumulation_steps=section.gradient_accumulation_steps,
        seed=seed,
    )
