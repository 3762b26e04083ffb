"""Signals of a teacher that can only be called, on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from limbeck.errors import under
from limbeck.generation.api.scoring.capturing import capture_served
from limbeck.generation.api.scoring.probe import Reveals
from limbeck.generation.api.scoring.scorer import Scorer
from limbeck.generation.api.scoring.spending import KeptLedger
from limbeck.generation.journal.budget import usd
from limbeck.pipeline.served.signals import ServedSignals
from limbeck.pipeline.shared.asking import journal_of, spending_of, spent_on_text
from limbeck.pipeline.shared.base import TEACHER, Text
from limbeck.pipeline.stages.capture import Capture
from limbeck.pipeline.stored.needed import Missing
from limbeck.pipeline.stored.stores import Asked
from limbeck.recipe import ServedTeacher
from limbeck.signals.capture import Captured
from limbeck.workflow.stage import Context, Facts, Plain, Stage


@dataclass(frozen=True, kw_only=True)
class CaptureServed(Capture):
    """Has a server say what it thinks of what the arms read, as far as the store lacks it.

    Attributes:
        teacher: section of the recipe.
        probe: the stage that asked what the server reveals.
        after: stages that spend the same budget before.
    """

    teacher: ServedTeacher
    probe: str
    after: tuple[str, ...] = ()

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*super().needs, self.probe, *self.after)

    def side_by_side(self, workers: int) -> list[Stage]:
        return [self]  # a server is asked for many texts at once, by one process

    def key(self, up: Facts) -> dict[str, Plain]:
        return {name: value for name, value in super().key(up).items() if name != "precision"}

    @property
    def _signals(self) -> ServedSignals:
        place = self.place.removesuffix(".signals")
        return ServedSignals(self.teacher, self.section, self.temperature, place)

    def asked(self, up: Facts, run: Path, text: Text) -> Asked:
        plain = up[self.probe]["reveals"]
        reveals = Reveals(**{**plain, "own_P": tuple(plain["own_P"])})
        return self._signals.asked(reveals, text.tokenizer, self.data.seq_len)

    def teacher_name(self, up: Facts, run: Path) -> str:
        return self.teacher.endpoint.model

    def have_read(self, work: Missing, up: Facts, context: Context, text: Text) -> Captured:
        # Since it was probed, another model may have taken the server's place.
        reveals, _ = self._signals.probe(text.tokenizer, context.folder, must_answer=True)
        endpoint = self.teacher.endpoint
        journal = journal_of(endpoint, context.folder, self.teacher.journal)
        vocab_size = work.writer.identity.vocab_size
        with under(TEACHER), KeptLedger(self.teacher.budget, spending_of(journal), spent_on_text(journal)) as ledger:
            scorer = Scorer(endpoint, reveals, self.temperature, vocab_size, ledger)
            captured = capture_served(scorer, work.found, work.writer, work.progress)
        context.note(f"{self.place}: {scorer.tokens:,} tokens, {usd(ledger.own.nano_usd)} spent on signals")
        return captured
