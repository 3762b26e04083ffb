"""A teacher that can only be called: what its server reveals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from limbeck.errors import LimbeckError, under
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
    """

    teacher: ServedTeacher
    recomputable = True
    needs = (MACHINE,)

    @property
    def name(self) -> str:
        return TEACHER

    @property
    def title(self) -> str:
        return f"probe {self.teacher.model}"

    def key(self, up: Facts) -> dict[str, Plain]:
        return {"teacher": {"endpoint": self.teacher.endpoint.identity}}

    def work(self, up: Facts, context: Context) -> dict[str, Plain]:
        teacher = self.teacher
        facts: dict[str, Plain] = {
            "fingerprint": fingerprint(teacher.endpoint.identity),
            "served": teacher.model,
            "notes": [terms_said(teacher)],
        }
        with context.task(self.title) as task:
            try:
                with under(TEACHER):
                    found = probe(teacher.endpoint)
            except LimbeckError as error:
                if error.exit_code != 3:  # a wrong key, address or parameter: nothing would come of it
                    raise
                task.summary = "does not answer"
                return {**facts, "warnings": [error.line()]}
            task.summary = found.line()
        return {**facts, "capabilities": _plain(asdict(found)), "notes": [f"teacher: {found.line()}", *facts["notes"]]}


def terms_said(teacher: ServedTeacher) -> str:
    """What a teacher's terms say about training students on its text, in a line."""
    terms = teacher.terms
    match terms.verdict:
        case "yes":
            return f"terms: {terms.licence or 'its terms'} allow training students ({terms.source}, {terms.date})"
        case "no":
            return f"terms: {terms.licence or 'its terms'} do not allow training students; used because: {terms.override}"
    return "terms: it is not documented whether students may be trained on this teacher's text"


def _plain(facts: Mapping[str, Plain]) -> dict[str, Plain]:
    return {name: str(value) if not isinstance(value, int | float | bool | str | None) else value
            for name, value in facts.items()}  # fmt: skip
