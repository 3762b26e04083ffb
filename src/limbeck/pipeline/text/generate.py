"""Text that the teacher writes, as a corpus; the same for every seed and every technique that asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from limbeck.data.corpus import Corpus, write_encoded
from limbeck.errors import InputError, under
from limbeck.files import whole_folder
from limbeck.generation.journal.journal import Journal
from limbeck.generation.local import LocalSampler
from limbeck.generation.text import Answer, Plan, as_documents, find_prompts, write_text, written
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

    Every batch of answers is on disk before the next is asked for; a killed run has no batch written twice.

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
        return (f"text/{self.name}.sqlite",)

    def work(self, up: Facts, context: Context) -> dict[str, Plain]:
        text, home = open_text(context.folder), context.folder / "text" / self.name
        rounded = precision(self.asked_precision, up[MACHINE]) == "bf16"
        spec = teacher_spec(up, context.folder)
        teacher = {"fingerprint": str(up[TEACHER]["fingerprint"]), "precision": "bf16" if rounded else "fp32"}
        plan = Plan.of(self.generation, text.train, self.data.seq_len, teacher)
        with (
            context.task(self.title, self.tokens, "tokens") as task,
            Journal(home.with_suffix(".sqlite")) as journal,
        ):
            tokens = sum(len(new) for batch in written(plan, journal, self.tokens) for _, new in batch)
            task.update(tokens)
            if tokens < self.tokens:
                with lease_teacher(spec, text, rounded=rounded) as lm, under(TEACHER):
                    write_text(LocalSampler(lm, teacher["precision"]), plan, journal, self.tokens, task.update)
            tokens = documents = 0

            def batches() -> Iterator[list[Answer]]:
                nonlocal tokens, documents
                for batch in written(plan, journal, self.tokens):
                    tokens += sum(len(new) for _, new in batch)
                    documents += len(batch)
                    yield batch

            with whole_folder(home) as scratch:
                write_encoded(scratch / "corpus", as_documents(batches()), {"stage": self.name})
        return {"tokens": tokens, "documents": documents}


def require_room(generation: Generation, corpus: Corpus, seq_len: int, place: str) -> None:
    """Refuse to have text written where no document leaves room for it, before a teacher is tuned for it."""
    if next(find_prompts(generation, corpus, seq_len), None) is None:
        raise InputError(
            f"no document leaves room for an answer in rows of {seq_len} tokens",
            key=place,
            fix="Raise data.seq_len, or lower prompt_tokens",
        )
