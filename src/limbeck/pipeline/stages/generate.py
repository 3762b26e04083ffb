"""Text that the teacher writes, as a corpus; the same for every seed and every technique that asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from limbeck.data.corpus import Corpus, write_encoded
from limbeck.errors import InputError, under
from limbeck.files import whole_folder
from limbeck.generation.batches import Journal
from limbeck.generation.local import LocalSampler
from limbeck.generation.text import as_documents, find_prompts, write_text
from limbeck.pipeline.shared.base import (
    DATA,
    MACHINE,
    TEACHER,
    PipelineStage,
    data_key,
    lease_teacher,
    open_text,
    precision,
)
from limbeck.pipeline.stages.teacher import teacher_spec
from limbeck.recipe import Data, Generation, fingerprint
from limbeck.workflow.stage import Context, Facts, Plain


@dataclass(frozen=True, kw_only=True)
class Generate(PipelineStage):
    """What the teacher writes.

    Every batch of answers is on disk before the next is asked for; a killed run asks for no batch twice.

    Attributes:
        generation, data: sections of the recipe.
        tokens: how many to write.
        asked_precision: the recipe's.
    """

    generation: Generation
    data: Data
    tokens: int
    asked_precision: str
    urgency = 2  # others wait for it
    needs = (MACHINE, DATA, TEACHER)

    @property
    def name(self) -> str:
        return f"text-{fingerprint(self.generation, self.tokens, self.asked_precision)[:8]}"

    @property
    def title(self) -> str:
        return "the teacher writes"

    def key(self, up: Facts) -> dict[str, Plain]:
        return {
            "generation": self.generation.model_dump(mode="json"),
            "precision": precision(self.asked_precision, up[MACHINE]),
            "tokens": self.tokens,
            "data": data_key(self.data, up[DATA], pack=False),
            "teacher": up[TEACHER]["fingerprint"],
        }

    def outputs(self) -> Sequence[str]:
        return (f"text/{self.name}/corpus",)

    def partial(self) -> Sequence[str]:
        return (f"text/{self.name}.jsonl",)

    def work(self, up: Facts, context: Context) -> dict[str, Plain]:
        text, home = open_text(context.folder), context.folder / "text" / self.name
        rounded = precision(self.asked_precision, up[MACHINE]) == "bf16"
        spec = teacher_spec(up, context.folder)
        with context.task(self.title, self.tokens, "tokens") as task:
            journal = Journal(home.with_suffix(".jsonl"))
            task.update(journal.tokens)
            if journal.tokens < self.tokens:
                with lease_teacher(spec, text, rounded=rounded) as lm, under(TEACHER):
                    sampler = LocalSampler(lm, "bf16" if rounded else "fp32")
                    write_text(
                        sampler, self.generation, text.train, self.data.seq_len, journal, self.tokens, task.update
                    )
            with whole_folder(home) as scratch:
                write_encoded(scratch / "corpus", as_documents(journal.batches), {"stage": self.name})
        return {"tokens": journal.tokens, "documents": sum(map(len, journal.batches))}


def require_room(generation: Generation, corpus: Corpus, seq_len: int, place: str) -> None:
    """Refuse to have text written where no document leaves room for it, before a teacher is tuned for it."""
    if next(find_prompts(generation, corpus, seq_len), None) is None:
        raise InputError(
            f"no document leaves room for an answer in rows of {seq_len} tokens",
            key=place,
            fix="Raise data.seq_len, or lower prompt_tokens",
        )
