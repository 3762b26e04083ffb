"""The results as an HTML table, and what each of its numbers means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from limbeck.report.markup import Html, el, escape, join, one_line
from limbeck.report.model import Estimate, Key, Row, known
from limbeck.report.numbers import ABSENT, compact, decimals_for, number, size
from limbeck.report.verdict import Standing, best_student, standing


def results(rows: Sequence[Row], series: Mapping[Key, str]) -> Html | None:
    """The section with the table; on a narrow screen its style turns each row into a card."""
    if not rows:
        return None
    columns = [(label, cells) for label, cells in _columns(rows) if any(cell is not None for cell in cells)]
    best = best_student(rows)
    head = el(
        "tr",
        el("th", "Model", scope="col", role="columnheader"),
        *[el("th", label, scope="col", role="columnheader") for label, _ in columns],
        role="row",
    )
    body = []
    for index, row in enumerate(rows):
        cells = [
            el(
                "td",
                cells[index] or ABSENT,
                data_label=label,
                role="cell",
                class_=None if cells[index] else "absent",
            )
            for label, cells in columns
        ]
        body.append(
            el(
                "tr",
                _name_cell(row, series, row is best, sum(other.role == "student" for other in rows) == 1),
                *cells,
                role="row",
                class_="best" if row is best else None,
            )
        )
    return el(
        "section",
        el("h2", "Results"),
        el(
            "table",
            el("thead", head, role="rowgroup"),
            el("tbody", *body, role="rowgroup"),
            role="table",
            aria_describedby="results-note",
        ),
        el("p", _caption(rows), id="results-note", class_="table-note"),
    )


_BEST = {
    Standing.BETTER: "best student",
    Standing.UNCLEAR: "fewest bits per byte of the students, not told apart from its control",
}
_ONLY = {
    Standing.BETTER: "student, beats its control",
    Standing.UNCLEAR: "student, not told apart from its control",
}


def _name_cell(row: Row, series: Mapping[Key, str], best: bool, only: bool) -> Html:
    roles = {
        "teacher": "teacher",
        "control": "control, no teacher",
        "student": "student",
        "co-teacher": "learns along",
    }
    role = roles.get(row.role, row.role)
    if best and only:
        role = _ONLY.get(standing(row), role)
    elif best:
        role = _BEST.get(standing(row), "fewest bits per byte of the students")
    if role == row.name:
        role = ""
    return el(
        "th",
        el("span", class_=f"swatch {series[row.key]}"),
        el("span", one_line(row.name, 60), class_="who"),
        el("span", role, class_="sub") if role else None,
        el("span", one_line(row.note, 200), class_="sub note") if row.note else None,
        scope="row",
        role="rowheader",
    )


def _columns(rows: Sequence[Row]) -> list[tuple[str, list[Html | None]]]:
    bits = [row.bits_per_byte for row in rows]
    differences = [row.versus_control for row in rows]
    kls = [row.kl for row in rows]
    digits, finer, kl_digits = decimals_for(bits), decimals_for(differences), decimals_for(kls)

    def column(label: str, cell: Callable[[Row], Html | None]) -> tuple[str, list[Html | None]]:
        return label, [cell(row) for row in rows]

    return [
        column("Parameters", _parameters),
        column("Accuracy", lambda row: _estimate(row.accuracy, 1, share=True)),
        column("Bits per byte", lambda row: _estimate(row.bits_per_byte, digits)),
        column("Cross-entropy", lambda row: _entropies(row, decimals_for([r.cross_entropy for r in rows]))),
        column("Against control", lambda row: _difference(row, finer)),
        column("Gap closed", lambda row: _estimate(row.gap_closed, 0, share=True)),
        column("KL to teacher", lambda row: _estimate(row.kl, kl_digits)),
        column("Agreement", lambda row: _estimate(row.agreement, 1, share=True)),
        column(
            "Tokens/s",
            lambda row: (
                None if (rate := known(row.tokens_per_second)) is None else join(speed(rate), _sub(_rates(rate)))
            ),
        ),
        column(
            "Trained on",
            lambda row: None if row.train_tokens is None else escape(f"{compact(row.train_tokens)} tokens"),
        ),
    ]


def _parameters(row: Row) -> Html | None:
    return None if row.parameters is None else join(compact(row.parameters), _sub(weights(row)))


def _estimate(estimate: Estimate | None, decimals: int, *, share: bool = False) -> Html | None:
    measured = known(estimate)
    if measured is None:
        return None
    scale, unit = (100, "%") if share else (1, "")
    value = number(scale * measured.value, decimals) + unit
    return join(value, _sub(_range(measured.interval, decimals, scale)) if measured.interval else None)


def _range(interval: tuple[float, float], decimals: int, scale: float = 1) -> str:
    """An interval in a cell: "1.230–1.238", or "−0.037 to −0.025" where there is a minus."""
    low, high = number(scale * interval[0], decimals), number(scale * interval[1], decimals)
    return f"{low}–{high}" if interval[0] >= 0 else f"{low} to {high}"


def _entropies(row: Row, decimals: int) -> Html | None:
    """Over all labels, and of the words alone where that is another number."""
    whole, words = known(row.cross_entropy), known(row.cross_entropy_words)
    if whole is None:
        return None
    differs = words is not None and number(words.value, decimals) != number(whole.value, decimals)
    of_words = _sub(f"words alone {number(words.value, decimals)}") if words is not None and differs else None
    return join(_estimate(whole, decimals), of_words)


def _rates(rate: Estimate) -> str:
    return f"{speed(Estimate(rate.interval[0]))}–{speed(Estimate(rate.interval[1]))}" if rate.interval else ""


def weights(row: Row) -> str:
    """Size of the weight files and their type: "269 MB, BF16"."""
    if row.bytes is None:
        return ""
    return f"{size(row.bytes)}, {row.dtype}" if row.dtype else size(row.bytes)


def _difference(row: Row, decimals: int) -> Html | None:
    measured = known(row.versus_control)
    if measured is None:
        return None
    words = {
        Standing.BETTER: ("better", "better"),
        Standing.WORSE: ("worse", "worse"),
        Standing.UNCLEAR: ("no clear difference", "unclear"),
    }
    word, class_ = words.get(standing(row), ("no interval", "unclear"))
    return join(
        number(measured.value, decimals, sign=True),
        _sub(_range(measured.interval, decimals)) if measured.interval else None,
        el("span", word, class_=f"sub {class_}"),
    )


def _caption(rows: Sequence[Row]) -> str:
    words = "Small figures are 95% intervals; of tokens/s, the range of the rounds around their median."
    seeds = {row.seeds for row in rows if row.role == "student"}
    if seeds == {1}:
        words += " Each student was trained once, so no interval covers the luck of training."
    elif len(seeds) == 1:
        words += f" Each student was trained with {seeds.pop()} seeds."
    elif seeds:
        words += f" Students were trained with {min(seeds)} to {max(seeds)} seeds."
    return words + f" {ABSENT} is not measured, or has no meaning for that model."


def _sub(text: str) -> Html:
    return el("span", text, class_="sub")


def speed(rate: Estimate) -> str:
    """Tokens per second: whole from a hundred on."""
    return number(rate.value, 0) if rate.value >= 100 else number(rate.value, 1)


def glossary(rows: Sequence[Row]) -> Html | None:
    """The section that explains the numbers that were measured, and no others."""

    def measured(name: str) -> bool:
        return any(getattr(row, name) is not None for row in rows)

    entries: list[tuple[str, str]] = []
    if measured("accuracy"):
        entries.append(
            (
                "Accuracy",
                "The share of held-out prompts that the model answers right, as a verifier judges it against the "
                "data's own answers. Every model answers greedily, once; what could not be decided counts as wrong.",
            )
        )
    if measured("bits_per_byte"):
        entries.append(
            (
                "Bits per byte",
                "How many bits the model needs to encode a byte of text it has never seen. Lower is better. "
                "Only the text itself counts, not the tokens that end it or stand around it. "
                "It does not depend on the tokenizer, so models of different vocabularies can be compared.",
            )
        )
    if measured("cross_entropy"):
        entries.append(
            (
                "Cross-entropy",
                "Nats per token over all tokens that are predicted, also those that end a text or a turn; words alone: "
                "without these. It depends on the tokenizer.",
            )
        )
    if measured("versus_control"):
        entries.append(
            (
                "Against control",
                "Bits per byte less those of the control: a student of the same size trained on as many "
                "tokens without the teacher. Below zero the teacher helped. The interval comes from "
                "comparing the two document by document, which is sharper than comparing their separate "
                "intervals.",
            )
        )
    if measured("gap_closed"):
        entries.append(
            (
                "Gap closed",
                "The share of the distance from control to teacher, in bits per byte, that the technique "
                "won: 0% is the control, 100% the teacher, less than zero is worse than no teacher at all.",
            )
        )
    if measured("kl"):
        entries.append(
            (
                "KL to teacher",
                "How far the student's predictions are from the teacher's, in nats per token; 0 is a "
                "perfect copy. It says how faithful the student is, not how good.",
            )
        )
    if measured("agreement"):
        entries.append(
            (
                "Agreement",
                "The share of tokens where the student's most likely next token is also the teacher's.",
            )
        )
    if measured("tokens_per_second"):
        entries.append(
            (
                "Tokens/s",
                "Speed of generation on the machine of this run, one answer at a time. All models take turns, "
                "for several rounds. Compare within this page only.",
            )
        )
    if not entries:
        return None
    entries.append(
        (
            "95% interval",
            "If the measurement were repeated on other documents of the same kind, about 19 in 20 such "
            "intervals would hold the true value.",
        )
    )
    items = [part for term, meaning in entries for part in (el("dt", term), el("dd", meaning))]
    return el("section", el("h2", "What each number means"), el("dl", *items, class_="glossary"))
