"""A teacher that can only be called: whether signals can be taken from it. Asked before anything is bought."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from limbeck.pipeline.served.signals import ServedSignals
from limbeck.pipeline.shared.base import DATA, MACHINE, PipelineStage, run_tokenizer
from limbeck.recipe import fingerprint
from limbeck.workflow.stage import Context, Facts, Plain


@dataclass(frozen=True, kw_only=True)
class ProbeSignals(PipelineStage):
    """Asks the server what it says of a text.

    Attributes:
        asked: what is wanted of it.
    """

    asked: ServedSignals
    recomputable = True
    urgency = 3
    needs = (MACHINE, DATA)

    @property
    def name(self) -> str:
        return f"probe-signals-{fingerprint(self.asked.key)[:8]}"

    @property
    def title(self) -> str:
        return f"probe {self.asked.teacher.model} for signals"

    def key(self, up: Facts) -> dict[str, Plain]:
        return {**self.asked.key, "tokenizer": up[DATA]["tokenizer"]}

    def work(self, up: Facts, context: Context) -> dict[str, Plain]:
        with context.task(self.title) as task:
            reveals, warnings = self.asked.probe(run_tokenizer(context.folder / DATA), context.folder)
            task.summary = reveals.line()
        return {"reveals": asdict(reveals), "notes": [f"teacher: {reveals.line()}"], "warnings": warnings}
