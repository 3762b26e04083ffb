"""Verdicts on answers."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from limbeck.errors import RecipeError
from limbeck.generation.candidate import Candidate, Verdict
from limbeck.generation.request import Completion, Outcome
from limbeck.generation.verify import verify
from limbeck.recipe.verify import VERIFIERS, Verify

CORRECT, WRONG, UNDECIDED = Verdict.CORRECT, Verdict.WRONG, Verdict.UNDECIDED
SECTION: TypeAdapter[Any] = TypeAdapter(Verify)


def candidate(text: str, reference: str | None = None, outcome: Outcome = Outcome.COMPLETE) -> Candidate:
    return Candidate("p", (), "Q", (), reference, 0, Completion(outcome, text), "teacher", text[:50])


def verdict(section: Any, text: str, reference: str | None = None) -> Verdict | None:
    return next(verify([candidate(text, reference)], SECTION.validate_python(section))).verdict


# ------------------------------------------------------------------ the recipe


@pytest.mark.parametrize("name", [name for name in VERIFIERS if name not in ("regex", "plugin")])
def test_a_bare_name_is_a_section(name: str) -> None:
    assert SECTION.validate_python(name).kind == name


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ("regex", "pattern"),
        ({"kind": "regex", "pattern": "("}, "no regular expression"),
        ({"kind": "json", "reference": False}, "write `keys` or `schema`"),
        ({"kind": "json", "keys": {"a": "text"}}, "string"),
        ({"kind": "exact", "ignore": ["colour"]}, "case"),
        ("sympy", "sympy"),
    ],
)
def test_what_cannot_be_meant_is_refused(section: Any, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        SECTION.validate_python(section)


def test_the_schema_knows_bare_names() -> None:
    schema = SECTION.json_schema()
    assert "maths" in schema["anyOf"][0]["enum"]
    assert "regex" not in schema["anyOf"][0]["enum"]


# ------------------------------------------------------------------ exact, regex


@pytest.mark.parametrize(
    ("section", "text", "reference", "expected"),
    [
        ("exact", " Paris \n", "Paris", CORRECT),
        ("exact", "paris", "Paris", WRONG),
        ("exact", "Paris", None, UNDECIDED),
        ("exact", "cafe\u0301", "caf\u00e9", CORRECT),
        (
            {"kind": "exact", "ignore": ["case", "punctuation", "articles", "whitespace"]},
            "The  Hague!",
            "hague",
            CORRECT,
        ),
        ({"kind": "exact", "ignore": []}, "Paris ", "Paris", WRONG),
        ({"kind": "exact", "after": "####"}, "1 + 1\n#### 2\nDone.", "So it is\n#### 2", CORRECT),
        ({"kind": "exact", "after": "####"}, "#### 3\n#### 2", "2", CORRECT),
        ({"kind": "exact", "after": "####"}, "2", "2", WRONG),
        ({"kind": "regex", "pattern": r"^\d+$"}, "42", None, CORRECT),
        ({"kind": "regex", "pattern": r"^\d+$"}, "x42", None, WRONG),
        ({"kind": "regex", "pattern": r"answer is (\w+)", "reference": True}, "The answer is B.", "B", CORRECT),
        ({"kind": "regex", "pattern": r"answer is (\w+)", "reference": True}, "The answer is C.", "B", WRONG),
        ({"kind": "regex", "pattern": r"a", "reference": True}, "a", None, UNDECIDED),
    ],
)
def test_strings(section: Any, text: str, reference: str | None, expected: Verdict) -> None:
    assert verdict(section, text, reference) is expected


def test_a_pattern_that_explodes_is_undecided_and_the_next_answer_is_not() -> None:
    section = SECTION.validate_python({"kind": "regex", "pattern": "^(a+)+$", "seconds": 0.5})
    hostile = candidate("a" * 40 + "!")
    found = [each.verdict for each in verify([candidate("aa"), hostile, candidate("b"), candidate("a")], section)]
    assert found == [CORRECT, UNDECIDED, WRONG, CORRECT]


# ------------------------------------------------------------------ JSON

PERSON = {"name": "string", "age": "integer"}


@pytest.mark.parametrize(
    ("section", "text", "reference", "expected"),
    [
        ("json", '{"age": 3.0, "name": "Ann"}', '{"name": "Ann", "age": 3}', CORRECT),
        ("json", '{"name": "ann"}', '{"name": "Ann"}', WRONG),
        ({"kind": "json", "ignore": ["case", "whitespace"]}, '{"n": " ann"}', '{"n": "Ann"}', CORRECT),
        ("json", "1", "true", WRONG),
        ("json", "[1, true]", "[1, 1]", WRONG),
        ("json", '{"a": 1}', None, UNDECIDED),
        ("json", '{"a": 1}', "not JSON", UNDECIDED),
        ("json", "not JSON", None, WRONG),
        ("json", '{"a": 1, "a": 1}', '{"a": 1}', WRONG),
        ("json", "NaN", "NaN", WRONG),
        ("json", "1e999", "1e999", WRONG),
        ("json", "[" * 100_000, "[]", WRONG),
        ("json", "9" * 5_000, "9", WRONG),
        ("json", '"\\ud800"', '"\\ud800"', CORRECT),
        ("json", 'Here:\n```json\n{"a": 1}\n```', '{"a": 1}', WRONG),
        ({"kind": "json", "fenced": True}, 'Here:\n```json\n{"a": 1}\n```\nDone.', '{"a": 1}', CORRECT),
        ({"kind": "json", "fenced": True}, '{"a": 1}', '{"a": 1}', CORRECT),
        ({"kind": "json", "fenced": True}, '```json\n{"a": 2}\n```\n~~~\n{"a": 1}\n~~~', '{"a": 1}', WRONG),
        ({"kind": "json", "keys": PERSON, "reference": False}, '{"name": "Ann", "age": 3}', None, CORRECT),
        ({"kind": "json", "keys": PERSON, "reference": False}, '{"name": "Ann", "age": "3"}', None, WRONG),
        ({"kind": "json", "keys": PERSON, "reference": False}, '{"name": "Ann", "age": true}', None, WRONG),
        ({"kind": "json", "keys": ["a"], "reference": False}, '{"a": 1, "b": 2}', None, WRONG),
        ({"kind": "json", "keys": ["a"], "other_keys": True, "reference": False}, '{"a": 1, "b": 2}', None, CORRECT),
        ({"kind": "json", "keys": ["a"], "reference": False}, '["a"]', None, WRONG),
    ],
)
def test_json(section: Any, text: str, reference: str | None, expected: Verdict) -> None:
    assert verdict(section, text, reference) is expected


# ------------------------------------------------------------------ the stream


def test_answers_that_are_not_complete_are_undecided() -> None:
    for outcome in Outcome:
        [found] = verify([candidate("x", "x", outcome)], SECTION.validate_python("exact"))
        assert found.verdict is (CORRECT if outcome is Outcome.COMPLETE else UNDECIDED)


def test_it_is_a_stream_in_order_and_reports_progress() -> None:
    seen: list[tuple[int, Verdict]] = []
    taken = 0

    def source() -> Any:
        nonlocal taken
        for i in range(200):
            taken += 1
            yield candidate(str(i), str(i - i % 2))

    section = SECTION.validate_python({"kind": "regex", "pattern": r"^(\d+)$", "reference": True})
    stream = verify(source(), section, progress=lambda done, last: seen.append((done, last)))
    first = [next(stream) for _ in range(3)]
    assert taken < 100
    rest = list(stream)
    assert [each.completion.text for each in [*first, *rest]] == [str(i) for i in range(200)]
    assert [each.verdict for each in [*first, *rest]] == [CORRECT, WRONG] * 100
    assert seen == [(i + 1, [CORRECT, WRONG][i % 2]) for i in range(200)]


def test_processes_that_verify_hold_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    monkeypatch.setenv("TEACHER_API_KEY", "sk-not-for-them")
    section = SECTION.validate_python({"kind": "regex", "pattern": "a"})
    stream = verify((candidate("a") for _ in range(20)), section)
    assert next(stream).verdict is CORRECT
    workers = [each for each in psutil.Process().children() if "limbeck.generation.verify.worker" in each.cmdline()]
    assert workers
    assert all("sk-not-for-them" not in each.environ().values() for each in workers)
    stream.close()


def test_a_stream_that_is_left_ends_its_processes() -> None:
    import psutil

    section = SECTION.validate_python({"kind": "regex", "pattern": "a"})
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    stream = verify((candidate("a") for _ in range(100)), section)
    assert next(stream).verdict is CORRECT
    stream.close()
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


# ------------------------------------------------------------------ JSON Schema

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}, "required": ["n"]}


def test_a_schema_decides() -> None:
    section = {"kind": "json", "schema": SCHEMA, "reference": False}
    assert verdict(section, '{"n": 2}') is CORRECT
    assert verdict(section, '{"n": 0}') is WRONG
    assert verdict({**section, "reference": True}, '{"n": 2}', '{"n": 3}') is WRONG


@pytest.mark.parametrize(
    ("schema", "says"), [({"type": "text"}, "no JSON Schema"), ({"$ref": "http://127.0.0.1:9/s.json"}, "not in it")]
)
def test_a_schema_that_cannot_be_used_is_an_error(schema: Any, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        verdict({"kind": "json", "schema": schema}, "1", "1")


def test_a_schema_whose_pattern_explodes_is_undecided() -> None:
    schema = {"type": "string", "pattern": "^(a+)+$"}
    section = {"kind": "json", "schema": schema, "reference": False, "seconds": 0.5}
    assert verdict(section, f'"{"a" * 40}!"') is UNDECIDED


# ------------------------------------------------------------------ mathematics

MATHS = [
    ("So it is \\boxed{\\frac{1}{2}}.", "0.5", CORRECT),
    ("The answer is $x^2 + 2x + 1$.", "(x+1)^2", CORRECT),
    ("The answer is 41.", "42", WRONG),
    ("The answer is $1,000$.", "1000", CORRECT),
    ("I do not know.", "42", WRONG),
    ("The answer is 42.", None, UNDECIDED),
    ("The answer is 42.", "forty-two", UNDECIDED),
    ("\\boxed{\\{1, 2\\}}", "\\{2, 1\\}", CORRECT),
    ("\\boxed{\\begin{pmatrix}1\\\\2\\end{pmatrix}}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", CORRECT),
    ("\\boxed{50\\%}", "0.5", CORRECT),
    ("\\boxed{[1,2]}", "(1,2)", WRONG),
    ("$\\sqrt{2}$", "sqrt(2)", UNDECIDED),
    ("\\boxed{10^{10^{10}}}", "7", UNDECIDED),
]


def test_mathematics() -> None:
    section = SECTION.validate_python("maths")
    found = verify([candidate(text, reference) for text, reference, _ in MATHS], section)
    assert [each.verdict for each in found] == [expected for _, _, expected in MATHS]
    marked = SECTION.validate_python({"kind": "maths", "after": "####"})
    found = verify([candidate("6 * 7 = 42\n#### 42", "3 + 39\n#### 42"), candidate("42", "#### 42")], marked)
    assert [each.verdict for each in found] == [CORRECT, WRONG]
