from __future__ import annotations

import pytest

from limbeck.errors import RecipeError
from limbeck.generation.candidate import Candidate
from limbeck.generation.select import choose, final_answer, more_samples, pass_rates
from limbeck.recipe.filters import Keep
from tests.unit.generation.candidates import answer


def answers(prompt: str, verdicts: str, texts: list[str] | None = None) -> list[Candidate]:
    return [
        answer(texts[i] if texts else f"{prompt}{i}", prompt, sample=i, verdict=verdict)
        for i, verdict in enumerate(verdicts)
    ]


def texts(kept: list[Candidate]) -> list[str]:
    return [candidate.completion.text for candidate in kept]


THREE = [*answers("a", "cwc"), *answers("b", "ww"), *answers("d", "wu")]


def test_correct_answers_are_kept_and_prompts_that_nobody_solved_set_aside() -> None:
    chosen = choose(THREE, Keep())
    assert chosen.policy == "all_correct"
    assert texts(chosen.kept) == ["a0", "a2"]
    assert chosen.unsolved == ["id:b"]
    assert chosen.undecided == ["id:d"], "undecided is not wrong"
    assert [c.prompt for c in chosen.examples] == ["id:b"]
    assert chosen.pass_rates["id:a"].value == pytest.approx(2 / 3)
    assert chosen.pass_rates["id:d"].value == 0.0
    assert (chosen.verdicts.correct, chosen.verdicts.wrong, chosen.verdicts.undecided) == (2, 4, 1)
    assert chosen.difficulty() == [2, 0, 0, 0, 0, 0, 1, 0, 0, 0]


def test_nothing_decided_has_no_pass_rate() -> None:
    chosen = choose(answers("a", "uu"), Keep(max_pass_rate=0.5))
    assert chosen.pass_rates["id:a"].value is None
    assert chosen.difficulty() == [0] * 10
    assert chosen.kept == []
    assert chosen.undecided == ["id:a"]


def test_all_keeps_wrong_answers_too() -> None:
    assert len(choose(THREE, Keep(policy="all")).kept) == 7
    unverified = [answer("x"), answer("y", sample=1)]
    assert choose(unverified, Keep()).policy == "all"
    assert choose(unverified, Keep()).kept == unverified


@pytest.mark.parametrize("policy", ["all_correct", "shortest_correct", "diverse"])
def test_correctness_needs_verdicts(policy: str) -> None:
    with pytest.raises(RecipeError, match="needs verified answers") as caught:
        choose([answer("x")], Keep.model_validate(policy))
    assert caught.value.key == ".policy"


def test_the_shortest_counts_its_reasoning() -> None:
    found = [
        answer("4", sample=0, verdict="c", reasoning="a long thought"),
        answer("four", sample=1, verdict="c"),
        answer("3", sample=2, verdict="w"),
        answer("IV is 4", sample=3, verdict="c"),
    ]
    assert texts(choose(found, Keep.model_validate("shortest_correct")).kept) == ["four"]
    assert texts(choose(found, Keep(policy="shortest_correct", accepted=2)).kept) == ["four", "IV is 4"]


def test_diverse_answers_differ() -> None:
    found = answers(
        "a", "ccccw",
        ["add two and two to get four", "add two and two to get four now", "count on your fingers", "look it up", "no"],
    )  # fmt: skip
    assert texts(choose(found, Keep(policy="diverse")).kept) == ["add two and two to get four", "count on your fingers"]
    assert len(choose(found, Keep(policy="diverse", accepted=9)).kept) == 4


def test_the_majority_is_of_final_answers() -> None:
    said = ["so \\boxed{4}", "hence \\boxed{ 4. }", "\\boxed{5}", "I do not know"]
    chosen = choose(answers("a", "    ".replace(" ", "u"), said), Keep.model_validate("majority"))
    assert texts(chosen.kept) == said[:2]
    tie = choose([answer("4"), answer("5", sample=1)], Keep.model_validate("majority"))
    assert (tie.kept, tie.set_aside) == ([], ["id:What is it?"])
    assert choose([answer("4")], Keep.model_validate("majority")).kept


def test_wrong_answers_do_not_vote() -> None:
    chosen = choose(answers("a", "wwu", ["5", "5", "4"]), Keep.model_validate("majority"))
    assert texts(chosen.kept) == ["4"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("x \\boxed{\\frac{1}{2}} y", "\\boxed{\\frac{1}{2}}", True),
        ("first \\boxed{1}, then \\boxed{2}", "\\boxed{2}", True),
        ("work\n#### 1,234", "#### 1234", True),
        ('{"a": 1, "b": [2]}', '```json\n{"b":[2],"a":1}\n```', True),
        ('{"a": 1}', '{"a": 2}', False),
        ("The answer is 7.", "Final answer: **7**", True),
        ("Paris", " paris. ", True),
        ("Paris", "London", False),
        ("\\boxed{unclosed", "\\boxed{unclosed}", True),
    ],
)
def test_final_answers(one: str, other: str, same: bool) -> None:
    assert (final_answer(one) == final_answer(other)) is same


def test_accepted_and_at_most() -> None:
    found = answers("a", "wcccc")
    assert texts(choose(found, Keep(accepted=2)).kept) == ["a1", "a2"]
    assert texts(choose(found, Keep(accepted=2, at_most=2)).kept) == ["a1"], "samples beyond at_most do not count"
    shuffled = [found[i] for i in (4, 2, 0, 3, 1)]
    assert choose(shuffled, Keep(accepted=2)).kept == choose(found, Keep(accepted=2)).kept


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_more_samples_end_when_enough_are_kept_or_asked_for(rate: float) -> None:
    keep = Keep(accepted=3, at_most=16)
    sampled = kept = rounds = 0
    while more := more_samples(kept, sampled, keep, samples=4):
        sampled += more
        kept = int(sampled * rate)
        rounds += 1
        assert sampled <= 16
    assert kept >= 3 or sampled == 16
    assert rounds <= 5
    if rate == 1.0:
        assert sampled == 4
    assert more_samples(0, 4, Keep(), 4) == 0
    assert more_samples(0, 0, Keep(accepted=1, at_most=2), 4) == 2


def test_equal_answers_of_a_prompt_are_kept_once() -> None:
    chosen = choose(answers("a", "ccc", ["same", "same", "other"]), Keep())
    assert texts(chosen.kept) == ["same", "other"]
    assert chosen.repeated == 1
    assert chosen.pass_rates["id:a"].correct == 3


def test_limits_on_pass_rates_use_all_answers() -> None:
    everything = [*answers("easy", "cccc"), *answers("fair", "ccww"), *answers("hard", "cwww")]
    passed = [c for c in everything if c.sample < 2]
    chosen = choose(passed, Keep(min_pass_rate=0.3, max_pass_rate=0.9), everything)
    assert texts(chosen.kept) == ["fair0", "fair1"]
    assert chosen.set_aside == ["id:easy", "id:hard"]
    assert pass_rates(everything)["id:hard"].value == 0.25


def test_a_draw_has_a_seed() -> None:
    many = answers("a", "c" * 50)
    one = choose(many, Keep(max_answers=10)).kept
    assert len(one) == 10
    assert one == choose(many, Keep(max_answers=10)).kept
    assert one != choose(many, Keep(max_answers=10, seed=1)).kept
    assert [c.sample for c in one] == sorted(c.sample for c in one)
