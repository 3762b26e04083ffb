"""The report, and the cards of the models."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.data.chat.encode import MORE_BEFORE
from limbeck.data.corpus import open_corpus
from limbeck.data.prompts import is_conversation
from limbeck.files import write_whole
from limbeck.generation.journal.budget import usd
from limbeck.models.restricted import read_kept_tokens
from limbeck.models.tokenizer import OTHER
from limbeck.pipeline.measuring.evaluate import SAMPLE_TEMPERATURE
from limbeck.pipeline.results.charts import by_size, charts_of
from limbeck.pipeline.results.comparison import Comparison, model_name
from limbeck.pipeline.results.rows import rows_of
from limbeck.pipeline.shared.base import DATA, TEACHER
from limbeck.pipeline.stages.cut import cut_name
from limbeck.recipe import PackageModel, PathModel, ServedTeacher, Vocabulary
from limbeck.report.card import Example, model_card
from limbeck.report.html import render
from limbeck.report.model import Fact, ReportData, Sample
from limbeck.runtime.provenance import command, machine, versions
from limbeck.workflow.stage import Context, Facts, Plain, Stage

FILE = "report.html"
MUCH_DROPPED = 0.1  # of the teacher's probability: where a cut vocabulary begins to be what is compared
NOT_HELD = "The models did not fit into memory together: each was loaded anew for its turn."
FEW_DOCUMENTS = 30  # below, a bootstrap over documents is not to be trusted


@dataclass(frozen=True, kw_only=True, eq=False)
class Report(Stage):
    """What the students kept and what they lost. It is made anew by every run: it costs a second.

    Attributes:
        title: of the page.
        compared: the arms.
        teacher: the recipe's section of one whose weights exist.
        served: the recipe's section of one that is called.
        vocabulary: which tokens students keep; None: all.
        recipe_yaml: the resolved recipe.
        upstream: all other stages.
    """

    title_: str
    compared: Comparison
    teacher: PathModel | PackageModel | None
    served: ServedTeacher | None
    vocabulary: Vocabulary | None
    recipe_yaml: str
    upstream: tuple[str, ...]
    always = True

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.upstream

    @property
    def name(self) -> str:
        return "report"

    def key(self, up: Facts) -> dict[str, Plain]:
        return {}

    def outputs(self) -> Sequence[str]:
        return (FILE,)

    def run(self, up: Facts, context: Context) -> dict[str, Plain]:
        data = self.data(up, context.folder)
        self._write_cards(data, up, context.folder)
        write_whole(context.folder / FILE, render(data))
        return {}

    def data(self, up: Facts, run: Path) -> ReportData:
        """What the report shows."""
        rows = rows_of(self.compared, self.teacher, run, up)
        return ReportData(
            title=self.title_,
            rows=rows,
            warnings=self._warnings(up),
            charts=[*by_size(self.compared, rows), *charts_of(self.compared, run)],
            samples=self._samples(up),
            speed_note=None if up.get("speed", {}).get("held", True) else NOT_HELD,
            provenance=self._provenance(up),
            recipe_yaml=self.recipe_yaml,
            command=command(),
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )

    def _warnings(self, up: Facts) -> list[str]:
        found, teacher, measured = [], up[TEACHER], up[f"measure-{TEACHER}"]
        documents = measured["documents"]
        if documents < FEW_DOCUMENTS:
            found.append(
                f"Only {documents} held-out documents were measured: intervals over so few are too narrow to be relied "
                "on."
            )
        if self.compared.control is None:
            found.append("No control (`alone`) was trained, so nothing here says whether the teacher helped.")
        if (dropped := measured.get("dropped", 0.0)) > MUCH_DROPPED:
            found.append(
                f"The teacher gives {100 * dropped:.0f}% of its probability to tokens that the students do not have. "
                f"They count as one, so KL and agreement say little about text: {keep_more(self.vocabulary)}."
            )
        if teacher.get("after", 0.0) > teacher.get("before", 0.0):
            said = next(note for note in teacher["notes"] if note.startswith("teacher: tuned on"))
            found.append(f"The tuning made the teacher worse: {said.removeprefix('teacher: ')}.")
        return found

    def _samples(self, up: Facts) -> list[Sample]:
        first, found = self.compared.seeds[0], []
        for i, (asked, rest) in enumerate(up[f"measure-{TEACHER}"]["questions"]):
            own = up[f"measure-{TEACHER}"].get("samples")
            texts = {("", TEACHER): own[i]} if own is not None else {}
            for arm, member in self.compared.models():
                if arm.seed == first:
                    texts[arm.technique.label, member] = up[f"measure-{model_name(arm, member)}"]["samples"][i]
            found.append(Sample(asked, texts, rest))
        return found

    def _notes(self, up: Facts) -> list[str]:
        """What stages said that is worth keeping, once each."""
        return list(dict.fromkeys(note for name in self.upstream for note in up[name].get("notes") or ()))

    def _provenance(self, up: Facts) -> dict[str, list[Fact]]:
        def facts(pairs: Mapping[str, Any]) -> list[Fact]:
            return [Fact(label, str(value)) for label, value in pairs.items()]

        data, teacher = up[DATA], up[TEACHER]
        cut = {name: up[cut_name(name)] for name in self.compared.students if cut_name(name) in up}
        return {
            "Data": facts({
                "Trained on": _size(data["train"]),
                "Held out": _size(data["heldout"]),
                "Measured on": f"{up[f'measure-{TEACHER}']['documents']:,} held-out documents",
                "Fingerprint": data["fingerprint"],
                "Tokenizer": f"{data['vocabulary']:,} tokens, map {data['tokenizer']}",
                **template_said(data),
            }),
            "Models": facts({
                **_teacher_said(teacher, self.served),
                **{f"Note {i}": note for i, note in enumerate(self._notes(up), 1)},
                **{f"Cut {name}": f"{each['parameters']:,} parameters; layers {', '.join(map(str, each['layers']))}"
                   for name, each in cut.items()},
                "Seeds": ", ".join(map(str, self.compared.seeds)),
                "Samples": f"temperature {SAMPLE_TEMPERATURE}, not chosen: the first held-out documents",
            }),
            **({"Text": facts(_texts_said(up))} if _texts_said(up) else {}),
            "Machine": facts(machine()),
            "Versions": facts(versions()),
        }  # fmt: skip

    def _write_cards(self, report: ReportData, up: Facts, run: Path) -> None:
        notes, kept = [], read_kept_tokens(run / DATA / "vocabulary.json")
        if kept is not None and kept.other is not None:
            notes.append(
                f"Token {kept.other}, {OTHER}, stands for all tokens that this model does not have. transformers never "
                f'writes it; other servers must be told: in a request to vLLM "logit_bias": {{"{kept.other}": -100}}, '
                f"for llama.cpp --logit-bias {kept.other}-inf."
            )
        example = _example(up, run)
        for arm, member in self.compared.models():
            student = member != TEACHER
            origin = self._origin(up, member, None if kept is None else (kept.size, kept.teacher_size))
            card = model_card(
                report,
                (arm.technique.label, member),
                technique=arm.technique.kind if student else None,
                example=example,
                use_notes=[*origin, *notes] if student else (),
            )
            write_whole(run / arm.model(member) / "README.md", card)

    @staticmethod
    def _origin(up: Facts, member: str, tokens: tuple[int, int] | None) -> list[str]:
        """How a student was cut, if it was."""
        if cut_name(member) not in up:
            return []
        layers = ", ".join(map(str, up[cut_name(member)]["layers"]))
        said = f"It started from its teacher's own weights: the teacher's layers {layers} (from 0)"
        if tokens is not None:
            said += f", and {tokens[0]:,} of its {tokens[1]:,} tokens"
        return [f"{said}."]


def _texts_said(up: Facts) -> dict[str, str]:
    """What teachers were asked prompt by prompt, what it cost, and what of it is learned."""
    said: dict[str, str] = {}
    for name, facts in up.items():
        if name.startswith("sample-"):
            cost = (
                f", {usd(facts['nano_usd'])} in all for this teacher ({facts['prices']})" if "nano_usd" in facts else ""
            )
            said[f"Asked ({name})"] = f"{facts['answered']:,} of {facts['requests']:,} requests are answered{cost}"
            if twice := facts.get("possibly_paid_twice"):
                said[f"Possibly paid twice ({name})"] = f"{twice:,} requests"
        elif name.startswith("select-"):
            said[f"Learned ({name})"] = (
                f"{facts['learned']:,} of {facts['answers']:,} answers, {facts['tokens']:,} tokens"
            )
    return said


def _teacher_said(teacher: Mapping[str, Plain], served: ServedTeacher | None) -> dict[str, str]:
    if served is None:
        return {"Teacher": f"{teacher['parameters']:,} parameters", "Teacher's weights": teacher["fingerprint"]}
    return {"Teacher": f"{served.model}, called at {served.api} ({served.protocol})"}


def keep_more(vocabulary: Vocabulary | None) -> str:
    """What to do where too many tokens were dropped."""
    fixes = []
    if vocabulary is not None and vocabulary.min_count > 1:
        fixes.append("lower vocabulary.min_count")
    if vocabulary is not None and vocabulary.size is not None:
        fixes.append("raise vocabulary.size")
    return ", or ".join(fixes) or "bring more text, whose tokens are kept, or leave `vocabulary` out"


def _example(up: Facts, run: Path) -> Example | None:
    """The first held-out question, or beginning of a text."""
    questions = up[f"measure-{TEACHER}"]["questions"]
    if not questions:
        return None
    chat = up[DATA].get("chat_template") is not None and is_conversation(open_corpus(run / DATA / "heldout"))
    return Example(questions[0][0].removeprefix(MORE_BEFORE), chat)


def template_said(data: Mapping[str, Plain]) -> dict[str, str]:
    """What conversations in tokens depend on beside the tokenizer, where there is a chat template."""
    labels = {"chat_template": "Chat template", "date": "Template date"}
    return {label: str(data[key]) for key, label in labels.items() if data.get(key) is not None}


def _size(part: Mapping[str, Plain]) -> str:
    return f"{part['documents']:,} documents, {part['labels']:,} tokens, {part['bytes']:,} bytes"
