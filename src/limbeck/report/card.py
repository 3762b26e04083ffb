"""A model card for a student, in the Hugging Face form: YAML front matter and Markdown.

Text that a model wrote stands in fences longer than any fence inside it; all other text from outside is
escaped, so that neither can add headings, links or metadata to the card.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from limbeck.report.markup import one_line, visible
from limbeck.report.model import Estimate, Key, ReportData, Row, Sample, known
from limbeck.report.numbers import ABSENT, between, compact, decimals_for, number, percent
from limbeck.report.results import weights
from limbeck.report.verdict import Standing, control_of, quoted, standing, teacher_of, verdict

_LONGEST_TEXT = 600
_LONGEST_EXAMPLE = 300


@dataclass(frozen=True)
class HubFacts:
    """What the hub wants to know of a model, where it is known.

    Args:
        license: identifier as the hub knows it (``apache-2.0``).
        base_model: hub name or names of what the weights started from, where they did not start from nothing.
        language: language code or codes.
        datasets: hub names of the training data.
        tags: added to ``distillation`` and ``limbeck``.
    """

    license: str | None = None
    base_model: str | Sequence[str] | None = None
    language: str | Sequence[str] | None = None
    datasets: Sequence[str] = ()
    tags: Sequence[str] = ()


@dataclass(frozen=True)
class Example:
    """What the card's code asks: a question of a conversation (``chat``), or a beginning of text."""

    words: str
    chat: bool = False


def model_card(
    data: ReportData,
    row: Key,
    *,
    name: str | None = None,
    technique: str | None = None,
    hub: HubFacts | None = None,
    use_notes: Sequence[str] = (),
    example: Example | None = None,
) -> str:
    """The card of one model of a report.

    Args:
        data: the report.
        row: key of the model's row in it.
        name: heading of the card; the name of its row by default.
        technique: how it was distilled, a sentence or two.
        hub: for the front matter.
        example: what its code asks; default: the beginning of a sentence.
        use_notes: what whoever runs the model must know, a sentence or two each.

    Raises:
        KeyError: no row of that key.
    """
    model = next((candidate for candidate in data.rows if candidate.key == row), None)
    if model is None:
        raise KeyError(f"no row {row!r}; there are {[candidate.key for candidate in data.rows]}")
    hub = hub or HubFacts()
    sections = [
        _front_matter(
            {
                "license": hub.license,
                "language": [hub.language] if isinstance(hub.language, str) else list(hub.language or ()),
                "base_model": hub.base_model if isinstance(hub.base_model, str | None) else list(hub.base_model),
                "datasets": list(hub.datasets),
                "library_name": "transformers",
                "pipeline_tag": "text-generation",
                "tags": list(dict.fromkeys(["distillation", "limbeck", *hub.tags])),
            }
        ),
        f"# {plain(name or model.name)}",
        _summary(data, model),
        _use(example or Example("The")),
        *[plain(note) for note in use_notes],
        f"## Results\n\n{_table(data.rows, model)}\n\n{_reading(data.rows)}",
        "" if model.role == "teacher" else f"## What this student lost\n\n{_bullets(losses(model, data.rows))}",
        _warnings(data.warnings),
        _making(model, technique),
        _samples(data.samples, model),
        _provenance(data),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def plain(text: str, limit: int = 400) -> str:
    """Text on one line with everything that Markdown or HTML would act on escaped."""
    return re.sub(r"^(\d*)([-+=#.)])", r"\1\\\2", _escaped(one_line(text, limit)))


def _escaped(text: str) -> str:
    text = re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", text)
    # A bare address would still become a link.
    return re.sub(r"(?i)(?:https?|ftp)://|www\.", lambda m: re.sub(r"([:.])", r"\\\1", m[0]), text)


def fenced(text: str, language: str = "text") -> str:
    """Text in a fence that is longer than any run of backticks in it."""
    shown = visible(text).strip("\n")
    longest = max((len(run) for run in re.findall(r"`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{shown}\n{fence}"


def losses(row: Row, rows: Sequence[Row]) -> list[str]:
    """What ``row`` lost against its teacher, a sentence each: the measured first, then the rest."""
    found: list[str] = []
    teacher, control = teacher_of(rows), control_of(row, rows)
    here, there = known(row.bits_per_byte), known(teacher.bits_per_byte) if teacher else None
    if here and there:
        difference = here.value - there.value
        digits = decimals_for([here, there])
        if difference > 0:
            found.append(
                f"It needs {number(difference, digits)} bits per byte more than its teacher on held-out text "
                f"({number(here.value, digits)} against {number(there.value, digits)})."
            )
        else:
            found.append(
                f"On held-out text it needs no more bits per byte than its teacher "
                f"({number(here.value, digits)} against {number(there.value, digits)}); elsewhere it may."
            )
    if agreement := known(row.agreement):
        found.append(f"At {percent(1 - agreement.value, 1)} of the tokens its first choice is not the teacher's.")
    if kl := known(row.kl):
        found.append(f"Its predictions are {number(kl.value)} nats per token (KL) away from the teacher's.")
    if (closed := known(row.gap_closed)) and 0 <= closed.value < 1:
        found.append(
            f"{percent(1 - closed.value)} of the gap between a student without a teacher and the teacher is still open."
        )
    if standing(row) is Standing.UNCLEAR:
        found.append(f"It cannot be told apart from {_beside(control)}, which had no teacher.")
    elif standing(row) is Standing.WORSE:
        found.append(f"It is worse than {_beside(control)}, which had no teacher.")
    elif control is None and row.role == "student":
        found.append("It was not compared with a student that had no teacher, so what the teacher added is not known.")
    if not (here and there):
        found.insert(0, "How much it lost on held-out text was not measured.")
    found.append(
        "Only what stands above was measured. Knowledge, reasoning, long texts, other domains, bias and "
        "safety may have suffered more: small models lose rare facts first. It inherits its teacher's "
        "faults and adds its own."
    )
    return found


def _beside(control: Row | None) -> str:
    return quoted(control.name) if control else "its control"


def _front_matter(fields: Mapping[str, str | Sequence[str] | None]) -> str:
    """YAML with every string quoted as JSON, which YAML reads as written."""
    lines = ["---"]
    for key, value in fields.items():
        if not value:
            continue
        if isinstance(value, str):
            lines.append(f"{key}: {_quoted(value)}")
        else:
            lines += [f"{key}:", *[f"- {_quoted(item)}" for item in value]]
    return "\n".join([*lines, "---"])


def _quoted(text: str) -> str:
    return json.dumps(one_line(text), ensure_ascii=False)


def _summary(data: ReportData, row: Row) -> str:
    words = verdict(data.rows) if data.verdict is None else data.verdict
    pieces = re.split(r"(`[^`]+`)", one_line(words, 4000))
    said = "".join(piece if index % 2 else _escaped(piece) for index, piece in enumerate(pieces))
    kind = "teacher" if row.role in ("teacher", "co-teacher") else "student"
    model = f"A {kind} of {compact(row.parameters or 0)} parameters ({weights(row)})"
    teacher = teacher_of(data.rows)
    if row.role == "student" and teacher:
        size = f" of {compact(teacher.parameters)}" if teacher.parameters is not None else ""
        model += f", distilled from a teacher{size}" + (
            f" ({_escaped(one_line(teacher.note, 200))})" if not size and teacher.note else ""
        )
    elif row.role == "control":
        model += ", trained without a teacher"
    return f"{model}.\n\n{said}"


def _use(example: Example) -> str:
    words = json.dumps(visible(example.words)[:_LONGEST_EXAMPLE], ensure_ascii=False)  # a string of Python's, too
    code = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n",
        'folder = "."  # this folder, or the name it has on the hub',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        "model = AutoModelForCausalLM.from_pretrained(folder)",
    ]
    if example.chat:
        code += [
            f'messages = [{{"role": "user", "content": {words}}}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ")",
            'written = model.generate(**inputs, max_new_tokens=60)[0, inputs["input_ids"].shape[1] :]',
            "print(tokenizer.decode(written, skip_special_tokens=True))",
        ]
    else:
        code += [
            f'inputs = tokenizer({words}, return_tensors="pt")',
            "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=60)[0], skip_special_tokens=True))",
        ]
    return f"## Use\n\n{fenced(chr(10).join(code), 'python')}"


def _table(rows: Sequence[Row], model: Row) -> str:
    bits, kls = decimals_for([r.bits_per_byte for r in rows]), decimals_for([r.kl for r in rows])
    differences = decimals_for([r.versus_control for r in rows])
    accurate = any(known(row.accuracy) for row in rows)
    lines = [
        f"| model | parameters{' | accuracy' if accurate else ''} | bits per byte | cross-entropy | words alone "
        "| against control | gap closed | KL to teacher | agreement | tokens/s |",
        f"|:--|{'--:|' if accurate else ''}--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        name = plain(row.name)
        cells = [
            f"**{name}** (this model)" if row is model else name,
            ABSENT if row.parameters is None else compact(row.parameters),
            *([_cell(row.accuracy, 1, share=True)] if accurate else []),
            _cell(row.bits_per_byte, bits),
            _cell(row.cross_entropy, 3),
            _cell(row.cross_entropy_words, 3),
            _cell(row.versus_control, differences, sign=True),
            _cell(row.gap_closed, 0, share=True),
            _cell(row.kl, kls),
            _cell(row.agreement, 1, share=True),
            _cell(row.tokens_per_second, 1),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(estimate: Estimate | None, decimals: int, *, share: bool = False, sign: bool = False) -> str:
    measured = known(estimate)
    if measured is None:
        return ABSENT
    scale, unit = (100, "%") if share else (1, "")
    text = number(scale * measured.value, decimals, sign=sign) + unit
    if measured.interval:
        text += f" ({between(measured.interval, decimals, scale=scale)})"
    return text


def _reading(rows: Sequence[Row]) -> str:
    words = (
        "In brackets: 95% intervals. Bits per byte are measured on held-out text, lower is better; "
        "*against control* is the paired difference to a student of the same size trained without the "
        "teacher, negative is better. Cross-entropy is in nats per token, over all labels and over the words alone, "
        "without the tokens that end or surround them; bits per byte count the words alone. Tokens/s: the median and "
        "the range of several rounds in which all models were timed in turn."
    )
    if {row.seeds for row in rows if row.role == "student"} == {1}:
        words += " Each student was trained once, so no interval covers the luck of training."
    return words


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    return f"## Before you believe the numbers\n\n{_bullets([plain(warning) for warning in warnings])}"


def _making(row: Row, technique: str | None) -> str:
    lines = [plain(technique, 1000)] if technique else []
    if row.note:
        lines.append(plain(row.note))
    if row.train_tokens is not None:
        lines.append(f"Trained on {compact(row.train_tokens)} tokens.")
    return f"## How it was made\n\n{_bullets(lines)}" if lines else ""


def _samples(samples: Sequence[Sample], row: Row) -> str:
    shown = [sample for sample in samples if row.key in sample.continuations][:3]
    if not shown:
        return ""
    parts = [
        f"Prompt:\n\n{fenced(sample.prompt[:_LONGEST_TEXT])}\n\n"
        f"Continuation:\n\n{fenced(sample.continuations[row.key][:_LONGEST_TEXT])}"
        for sample in shown
    ]
    return "## Samples\n\nWritten by the model, not chosen for quality.\n\n" + "\n\n".join(parts)


def _provenance(data: ReportData) -> str:
    parts = []
    for heading, facts in data.provenance.items():
        lines = _bullets([f"{plain(fact.label)}: {plain(fact.value)}" for fact in facts])
        parts.append(f"### {plain(heading)}\n\n{lines}")
    if data.recipe_yaml.strip():
        parts.append(f"### Resolved recipe\n\n{fenced(data.recipe_yaml, 'yaml')}")
    if data.command.strip():
        parts.append(f"### Make it again\n\n{fenced(data.command, 'sh')}")
    if data.created:
        parts.append(f"Written by limbeck, {plain(data.created)}.")
    return "## Provenance\n\n" + "\n\n".join(parts) if parts else ""
