"""The verdict, the terminal table, the model card and the numbers in them."""

from __future__ import annotations

import ast
import dataclasses
import re

import pytest
import yaml

from limbeck.report.card import Example, HubFacts, losses, model_card, plain
from limbeck.report.model import Estimate, ReportData, Row, Sample
from limbeck.report.numbers import compact, decimals_for, number, percent, significant, size
from limbeck.report.text import cells_wide, table
from limbeck.report.verdict import best_student, speed_up, verdict

from . import example

_TEACHER = Row("teacher", "teacher", 4000, 8000, bits_per_byte=Estimate(1.0, 0.9, 1.1))
_ALONE = Row("alone", "control", 1000, 2000, bits_per_byte=Estimate(1.4, 1.3, 1.5))


def _student(name: str, bits: float | None, low: float | None = None, high: float | None = None) -> Row:
    value = None if bits is None else Estimate(bits)
    difference = None if bits is None or low is None else Estimate(bits - 1.4, low, high)
    closed = None if bits is None else Estimate((1.4 - bits) / 0.4)
    return Row(name, "student", 1000, 2000, bits_per_byte=value, versus_control=difference, gap_closed=closed)


def _of(row: Row) -> Row:
    """A row of several students, called by its technique and its member."""
    technique, member = row.name.split(" / ")
    return dataclasses.replace(row, technique=technique, member=member)


def test_verdict_names_the_best_and_every_failure() -> None:
    words = verdict(example.rows())
    assert words.startswith("`soft` is the best student: 1.628 bits per byte, at 11% of the teacher's parameters.")
    assert "beats `alone` by 0.026 bits per byte (0.023 to 0.030)" in words
    assert "closes 31% (26% to 36%) of the gap" in words
    assert "`hard` does not beat `alone`: it is worse by 0.038" in words
    assert "`co` cannot be told apart from `alone`: −0.002 bits per byte (−0.006 to 0.003)." in words


def test_verdict_where_several_beat_the_control() -> None:
    words = verdict([_TEACHER, _ALONE, _student("soft", 1.2, -0.25, -0.15), _student("co", 1.3, -0.12, -0.08)])
    assert words.endswith("`co` (by 0.100) also beats `alone`.")


def test_verdict_where_nothing_beats_the_control() -> None:
    words = verdict([_TEACHER, _ALONE, _student("soft", 1.39, -0.02, 0.01), _student("co", 1.5, 0.05, 0.15)])
    assert words.startswith("No technique beats `alone`. `soft` has the fewest bits per byte of the students")
    assert "It cannot be told apart from `alone`: −0.010 bits per byte (−0.020 to 0.010)." in words
    assert "closes" not in words
    assert "`co` does not beat `alone`" in words


def test_verdict_where_the_interval_touches_zero_is_unclear() -> None:
    assert "cannot be told apart" in verdict([_TEACHER, _ALONE, _student("soft", 1.3, -0.2, 0.0)])


def test_verdict_where_only_a_worse_student_exists() -> None:
    words = verdict([_TEACHER, _ALONE, _student("soft", 1.5, 0.05, 0.15)])
    assert best_student([_TEACHER, _ALONE, _student("soft", 1.5, 0.05, 0.15)]) is None
    assert "best" not in words
    assert "`soft` does not beat `alone`: it is worse by 0.100 bits per byte" in words


def test_verdict_without_a_control() -> None:
    words = verdict([_TEACHER, _student("soft", 1.3)])
    assert words.startswith("`soft` reaches 1.300 bits per byte, at 25% of the teacher's parameters.")
    assert "no control" in words


def test_verdict_without_an_interval_claims_nothing() -> None:
    words = verdict([_TEACHER, _ALONE, dataclasses.replace(_student("soft", 1.3), versus_control=Estimate(-0.1))])
    assert "without an interval, so it may be chance" in words
    assert "beats" not in words


def test_verdict_without_a_comparison_or_a_measurement() -> None:
    assert "was not compared with `alone`" in verdict([_TEACHER, _ALONE, _student("soft", 1.3)])
    assert "no verdict" in verdict([_TEACHER, _ALONE, _student("soft", None)])
    assert "nothing to judge" in verdict([_TEACHER])


def test_verdict_of_controls_alone() -> None:
    words = verdict([_TEACHER, _ALONE])
    assert words.startswith("`alone` reaches 1.400 bits per byte, at 25% of the teacher's parameters.")
    assert "No technique was run beside `alone`" in words
    several = [dataclasses.replace(_ALONE, name=f"alone / {name}") for name in ("small", "large")]
    words = verdict([_TEACHER, *several])
    assert "`alone / small` reaches 1.400" in words
    assert "beside the controls: they learned without a teacher" in words
    assert "No student was trained" not in words


def test_the_best_student_is_never_one_that_is_worse_than_its_control() -> None:
    small, large = (_of(dataclasses.replace(_ALONE, name=f"alone / {name}")) for name in ("small", "large"))
    students = _student("soft / small", 1.3, -0.2, -0.1), _student("soft / large", 1.2, 0.05, 0.1)
    rows = [_TEACHER, small, large, *map(_of, students)]
    best = best_student(rows)
    assert best is not None
    assert best.name == "soft / small"
    assert "`soft / large` does not beat `alone / large`" in verdict(rows)
    worse = [_TEACHER, _ALONE, _student("soft", 1.5, 0.05, 0.15), _student("co", 1.6, 0.1, 0.3)]
    assert verdict(worse).startswith("No technique beats `alone`. `soft` does not beat `alone`: it is worse by 0.100")
    assert "best" not in verdict(worse)


def test_verdict_of_nothing() -> None:
    assert verdict([]) == verdict([_TEACHER])


def test_verdict_where_the_teacher_is_no_better() -> None:
    teacher = dataclasses.replace(_TEACHER, bits_per_byte=Estimate(1.6))
    words = verdict([teacher, _ALONE, _student("soft", 1.3, -0.15, -0.05)])
    assert "The teacher itself is no better than `alone` here (1.600 against 1.400)" in words
    assert "closes" not in words


def test_verdict_pairs_each_student_with_its_own_control() -> None:
    rows = [
        _TEACHER,
        _of(dataclasses.replace(_ALONE, name="alone / small")),
        _of(dataclasses.replace(_ALONE, name="alone / large", parameters=2000)),
        _of(_student("soft / small", 1.3, -0.15, -0.05)),
        _of(_student("soft / large", 1.2, -0.01, 0.02)),
    ]
    words = verdict(rows)
    assert "It cannot be told apart from `alone / large`" in words
    assert "`soft / small` (by 0.100) beats its control." in words


def test_co_teacher_is_no_student() -> None:
    rows = [_TEACHER, _ALONE, Row("co / teacher", "co-teacher", 4000, 8000, bits_per_byte=Estimate(0.9))]
    assert best_student(rows) is None


@pytest.mark.parametrize("width", [24, 40, 60, 80, 120])
def test_table_fits(width: int) -> None:
    rows = [
        *example.rows(),
        _student("a technique of a very long name indeed", 1.5, 0.05, 0.15),
        _student("先生の名前はとても長いです先生の名前はとても長いです", 123456.789, 1.0, 2.0),
        _student("two\nlines\x1b[31m", None),
    ]
    lines = table(rows, width).split("\n")
    assert all(cells_wide(line) <= width for line in lines)
    assert "\x1b" not in "".join(lines)
    assert len(lines) >= 2 + len(rows)


def test_table_holds_the_key_numbers_in_80_columns() -> None:
    text = table(example.rows())
    for words in (
        "params",
        "bits/byte",
        "KL",
        "agree",
        "gap closed",
        "tok/s",
        "1.628 ±0.029 *",
        "31 ±5%",
        "1,291",
    ):
        assert words in text
    assert "* beats its control" in text
    assert "! worse than it" in text


def test_table_leaves_out_what_nobody_measured() -> None:
    text = table([_TEACHER, _student("soft", 1.2)])
    assert "KL" not in text
    assert "±" in text
    assert table([]) == "no models to compare"


def _front(card: str) -> dict[str, object]:
    _, matter, _ = card.split("---\n", 2)
    return yaml.safe_load(matter)


@pytest.mark.parametrize("words", ["What is `x`?", 'say "no"\n```\n# and more', "the cat"])
def test_the_cards_code_asks_as_the_model_was_taught(words: str) -> None:
    chat = model_card(example.data(), ("soft", ""), example=Example(words, chat=True))
    text = model_card(example.data(), ("soft", ""), example=Example(words))
    for card, asks in ((chat, "apply_chat_template"), (text, "tokenizer(")):
        code = re.search(r"^(`{3,})python\n(.*?)^\1$", card, re.MULTILINE | re.DOTALL)
        assert code is not None
        assert asks in code[2]
        strings = [node.value for node in ast.walk(ast.parse(code[2])) if isinstance(node, ast.Constant)]
        assert words in strings
    assert "apply_chat_template" not in text


def test_card_front_matter() -> None:
    card = model_card(
        example.data(),
        ("soft", ""),
        hub=HubFacts(license="apache-2.0", base_model=["a/b"], language="no", tags=["tiny", "yes", "1: 2\n---\nx: y"]),
    )
    front = _front(card)
    assert front["license"] == "apache-2.0"
    assert front["base_model"] == ["a/b"]
    assert front["language"] == ["no"]
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "text-generation"
    assert front["tags"] == ["distillation", "limbeck", "tiny", "yes", "1: 2 --- x: y"]
    assert {"license", "base_model", "language", "datasets"}.isdisjoint(
        _front(model_card(example.data(), ("soft", "")))
    )


def test_card_says_what_was_measured_and_lost() -> None:
    card = model_card(example.data(), ("co", ""), name="co-mini", technique="Teacher and student learn together.")
    for words in (
        "# co-mini",
        "## Results",
        "## What this student lost",
        "## How it was made",
        "## Provenance",
    ):
        assert f"\n{words}\n" in card
    assert "| **co** (this model) | 419k | 1.653 (1.624 to 1.682) |" in card
    assert "It cannot be told apart from `alone`, which had no teacher." in card
    assert "`soft` is the best student: " in card


def test_card_neutralises_text() -> None:
    hostile = "```\n---\n# Owned\n<script>x</script> [click](http://evil.example) ````\n| a |"
    data = dataclasses.replace(
        example.data(),
        warnings=[hostile],
        samples=[Sample(hostile, {("soft", ""): hostile + "\x1b\u202e"})],
    )
    card = model_card(data, ("soft", ""), technique=hostile)
    assert "`````text\n```\n---\n# Owned\n" in card  # inside a fence that is longer than any in the text
    outside = "".join(part for i, part in enumerate(card.split("`````")) if i % 2 == 0)
    assert "\n# Owned" not in outside
    assert "<script>" not in outside
    assert not re.search(r"(?<!\\)\]\(", outside)
    assert "http://" not in outside
    assert "\x1b" not in card
    assert "\u202e" not in card
    assert plain("# a") == "\\# a"
    assert plain("1. a") == "1\\. a"


def test_card_of_an_unknown_row() -> None:
    with pytest.raises(KeyError, match=r"no row \('nobody', ''\)"):
        model_card(example.data(), ("nobody", ""))


def test_a_name_that_looks_like_a_student_of_several_has_the_only_control() -> None:
    row = dataclasses.replace(_student("a / b", 1.3, -0.15, -0.05), technique="a / b", member="student")
    control = dataclasses.replace(_ALONE, technique="alone", member="student")
    other = dataclasses.replace(_ALONE, name="c / b", technique="c / b", member="other")
    assert "It beats `alone` by" in verdict([_TEACHER, other, control, row])


def test_the_card_of_a_row_is_its_own_where_names_are_alike() -> None:
    row = example.rows()[2]
    keys = [("a / b", "c"), ("a", "b / c")]
    rows = [dataclasses.replace(row, name="a / b / c", technique=key[0], member=key[1]) for key in keys]
    rows[1] = dataclasses.replace(rows[1], parameters=777)
    samples = [Sample("p", {keys[0]: "from the first", keys[1]: "from the second"})]
    card = model_card(ReportData("t", rows, samples=samples), keys[1])
    assert "A student of 777 parameters" in card
    assert "from the second" in card
    assert "from the first" not in card


def test_losses_admit_what_was_not_measured() -> None:
    lost = losses(Row("soft", "student", 1, 1), [])
    assert lost[0] == "How much it lost on held-out text was not measured."
    assert model_card(ReportData("t", [Row("soft", "student", 1, 1)]), ("soft", ""))


def test_numbers() -> None:
    assert number(-0.0001, 3) == "0.000"
    assert number(-1234.5, 1) == "−1,234.5"
    assert number(float("nan")) == "–"
    assert number(0.5, 1, sign=True) == "+0.5"
    assert percent(0.342) == "34%"
    assert [compact(v) for v in (0, 999, 999_999, 419_424, 3_912_960, 1.2e9)] == [
        "0",
        "999",
        "1M",
        "419k",
        "3.91M",
        "1.2B",
    ]
    assert [size(v) for v in (12, 1_677_696, 538_000_000)] == ["12 B", "1.68 MB", "538 MB"]
    assert [significant(v) for v in (0.1083, 41.7, 9.33, 0.0042, 123)] == [
        "0.11",
        "42",
        "9.3",
        "0.0042",
        "120",
    ]
    assert decimals_for([Estimate(1, 0.9995, 1.0005)]) == 4
    assert decimals_for([None, Estimate(1), Estimate(1, 1, 1)]) == 3


def _timed(name: str, median: float, low: float, high: float, shape: str) -> Row:
    role = "teacher" if name == "teacher" else "student"
    return Row(name, role, 1, 1, tokens_per_second=Estimate(median, low, high), shape=shape)  # type: ignore[arg-type]


def test_a_speed_up_is_given_only_where_it_can_be_told_from_noise() -> None:
    teacher, soft, co = (
        _timed("teacher", 100, 95, 105, "large"),
        _timed("soft", 200, 190, 210, "small"),
        _timed("co", 205, 195, 215, "small"),
    )
    assert speed_up(soft, [teacher, soft, co]) == (2.0, "")
    noisy = dataclasses.replace(co, tokens_per_second=Estimate(480.0, 470.0, 490.0))
    ratio, why = speed_up(soft, [teacher, soft, noisy])
    assert ratio is None
    assert "`soft` and `co` have one shape, and were timed at 200 and 480 tokens/s" in why
    near = dataclasses.replace(soft, tokens_per_second=Estimate(110.0, 100.0, 120.0))
    assert speed_up(near, [teacher, near])[0] is None
    assert speed_up(dataclasses.replace(soft, tokens_per_second=Estimate(200.0)), [teacher, soft])[0] is None
