"""A teacher that can only be called: what its server reveals, and whether it takes what the recipe asks for."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from limbeck.errors import TeacherGoneError, under
from limbeck.generation.api.probe import settings_of
from limbeck.generation.api.teacher import Probed
from limbeck.generation.request import Request, canonical
from limbeck.pipeline.shared.asking import Asking
from limbeck.pipeline.shared.base import MACHINE, TEACHER, PipelineStage
from limbeck.recipe import ServedTeacher, fingerprint
from limbeck.workflow.stage import Context, Facts, Plain


@dataclass(frozen=True, kw_only=True)
class Probe(PipelineStage):
    """Asks every server of the recipe once what it reveals, before anything is bought, and refuses what it does not
    take. A server that is down is not an error here: answers may be in the journal, and fallbacks may stand behind it.

    Attributes:
        teacher: section of the recipe.
        asked: the teacher, its fallbacks and judges, with what each is asked.
    """

    teacher: ServedTeacher
    asked: tuple[Asking, ...]
    recomputable = True
    needs = (MACHINE,)

    @property
    def name(self) -> str:
        return TEACHER

    @property
    def title(self) -> str:
        return f"probe {self.teacher.model}"

    def key(self, up: Facts) -> dict[str, Plain]:
        asked = [
            {"endpoint": each.endpoint.identity, "settings": sorted({_settings(r) for r in each.settings.values()})}
            for each in self.asked
        ]
        return {"teacher": {"endpoint": self.teacher.endpoint.identity}, "asked": asked}

    def work(self, up: Facts, context: Context) -> dict[str, Plain]:
        notes: list[str] = []
        warnings: list[str] = []
        probed: list[dict[str, Plain]] = []
        facts: dict[str, Plain] = {
            "fingerprint": fingerprint(self.teacher.endpoint.identity),
            "served": self.teacher.model,
            "notes": notes,
            "warnings": warnings,
            "probed": probed,
        }
        with context.task(self.title) as task:
            for asking in self.asked:
                try:
                    with under(asking.place):
                        found = asking.probe()
                except TeacherGoneError as error:  # a wrong key, address or setting is another error, and ends the run
                    warnings.append(error.line())
                    continue
                notes.append(f"{asking.place}: {found.line()}")
                probed.append(asdict(Probed(asking.endpoint.identity, found.several, found.length_field)))
                if asking.place == TEACHER:
                    facts["capabilities"] = found.line()
            if self.asked:  # else no text is wanted of it
                task.summary = str(facts.get("capabilities", "does not answer"))
        return facts


def _settings(request: Request) -> str:
    return canonical({**settings_of(request), "top_logprobs": request.top_logprobs}).decode("ascii")
