"""Questions for teachers that the data has no answers to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from limbeck.data.documents.rows import Seen
from limbeck.data.documents.sources import file_stamps
from limbeck.data.questions import PLACE, questions
from limbeck.errors import RecipeError
from limbeck.files import whole_folder
from limbeck.generation.prompts import Prompt, question_of
from limbeck.pipeline.shared.base import MACHINE, PipelineStage
from limbeck.recipe import Data, Generation, HubSource, StdlibSource, TextSource
from limbeck.recipe.verify import Exact, Maths
from limbeck.workflow.stage import Context, Facts, Plain

QUESTIONS = "questions"
FILE = "questions.jsonl"


@dataclass(frozen=True, kw_only=True)
class Questions(PipelineStage):
    """Reads ``data.prompts``. They are no part of the corpus: nothing but a teacher's answers to them is learned.

    Attributes:
        data: section of the recipe.
    """

    data: Data
    recomputable = True
    urgency = 3
    needs = (MACHINE,)

    @property
    def name(self) -> str:
        return QUESTIONS

    def key(self, up: Facts) -> dict[str, Plain]:
        sources = [source.model_dump(mode="json") for source in self.data.prompts]
        return {"data": {"prompts": sources, "files": file_stamps(self.data.prompts, PLACE)}}

    def outputs(self) -> Sequence[str]:
        return (f"text/{QUESTIONS}",)

    def work(self, up: Facts, context: Context) -> dict[str, Plain]:
        seen: dict[str, Seen] = {}
        found: dict[str, Prompt] = {}
        with context.task("read the questions", unit="questions") as task:
            for document in questions(self.data.prompts, seen):
                found.setdefault(document.key, question_of(document))
                task.advance()
        digest = hashlib.sha256()
        lines = []
        for key in sorted(found):
            digest.update(key.encode())
            lines.append(json.dumps(found[key].plain()) + "\n")
        with whole_folder(context.folder / "text" / QUESTIONS) as scratch:
            (scratch / FILE).write_text("".join(lines), encoding="utf-8")
        notes = [f"{place}: {each.line()}" for place, each in seen.items()]
        warnings = [f"{place}: {left}, and were left out" for place, each in seen.items() if (left := each.left_out())]
        return {"questions": len(found), "fingerprint": digest.hexdigest()[:16], "notes": notes, "warnings": warnings}


def read_questions(run: Path, system: str | None) -> Iterator[Prompt]:
    """What the stage wrote. ``system``: put before those that have no system text."""
    with (run / "text" / QUESTIONS / FILE).open(encoding="utf-8") as lines:
        for line in lines:
            yield Prompt.of(json.loads(line)).after(system)


FIRST_QUESTIONS = 20
"""Of every source of ``data.prompts``, how many are read before anything is spent."""


def check_questions(data: Data, sampled: Mapping[str, Generation]) -> list[str]:
    """Refuse questions that cannot be read; returns warnings.

    Args:
        sampled: sections that have a teacher asked, by their place.
    """
    for source in data.prompts:
        if isinstance(source, TextSource | StdlibSource):
            raise RecipeError("plain text asks nothing", key="data.prompts", fix="Name files of rows with a `prompt`")
    first = [source.model_copy(update={"max_documents": FIRST_QUESTIONS}) for source in data.prompts]
    local = tuple(source for source in first if not isinstance(source, HubSource))
    open_ = sum(question_of(document).reference is None for document in questions(local))
    if data.prompts and not sampled:
        return ["data.prompts: no technique has a teacher answer them; `alone` and `soft` learn the corpus"]
    return [
        f"{place}.verify: {open_:,} of the first questions of data.prompts have no answer, so that "
        f"`{section.verify.kind}` cannot decide, and what a teacher answers is not learned"
        for place, section in sampled.items()
        if open_ and isinstance(section.verify, Maths | Exact)
    ]
