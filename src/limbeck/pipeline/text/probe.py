"""A teacher that can only be called: what its server reveals."""

from __future__ import annotations

from dataclasses import dataclass

from limbeck.errors import TeacherGoneError, under
from limbeck.generation.api.probe import probe
from limbeck.pipeline.shared.base import MACHINE, TEACHER, PipelineStage
from limbeck.recipe import ServedTeacher, fingerprint
from limbeck.workflow.stage import Context, Facts, Plain


@dataclass(frozen=True, kw_only=True)
class Probe(PipelineStage):
    """Asks the server once what it reveals. A server that is down is not an error here: answers may be in the journal,
    and fallbacks may stand behind it.

    Attributes:
        teacher: section of the recipe.
        writes: whether it is asked for text; of its signals, another stage asks.
    """

    teacher: ServedTeacher
    writes: bool = True
    recomputable = True
    needs = (MACHINE,)

    @property
    def name(self) -> str:
        return TEACHER

    @property
    def title(self) -> str:
        return f"probe {self.teacher.model}"

    def key(self, up: Facts) -> dict[str, Plain]:
        return {"teacher": {"endpoint": self.teacher.endpoint.identity}, **({} if self.writes else {"writes": False})}

    def work(self, up: Facts, context: Context) -> dict[str, Plain]:
        teacher = self.teacher
        facts: dict[str, Plain] = {
            "fingerprint": fingerprint(teacher.endpoint.identity),
            "served": teacher.model,
            "notes": [],
        }
        if not self.writes:
            return facts
        with context.task(self.title) as task:
            try:
                with under(TEACHER):
                    found = probe(teacher.endpoint)
            except TeacherGoneError as error:  # a wrong key, address or parameter is another error, and ends the run
                task.summary = "does not answer"
                return {**facts, "warnings": [error.line()]}
            task.summary = found.line()
        return {**facts, "capabilities": found.line(), "notes": [f"teacher: {found.line()}"]}
