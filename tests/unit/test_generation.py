"""Text of a sampler: on disk before it is used, and the same however often its writing was killed."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from limbeck.data.chat.encode import MASKED, WORDS
from limbeck.errors import InputError, under
from limbeck.generation.journal.journal import Journal
from limbeck.generation.local import LocalSampler
from limbeck.generation.request import Completion, Outcome
from limbeck.generation.sampler import Sampler
from limbeck.generation.text import Answer, Plan, as_documents, find_prompts, write_text, written
from limbeck.models.causal_lm import CausalLM
from limbeck.models.generate import Sampling
from limbeck.recipe import Generation
from tests.unit.test_data import corpus_of

Make = Callable[..., CausalLM]

CORPUS = corpus_of([(list(range(5, 5 + n)), [True] * n) for n in (30, 12, 20, 17)])
GENERATION = Generation(batch_size=3, prompt_tokens=4, max_new_tokens=6, seed=1)


class Killed(Exception):  # noqa: N818
    pass


TEACHER = {"fingerprint": "f"}
PLAN = Plan.of(GENERATION, CORPUS, 24, TEACHER)


def write(sampler: Sampler, path: Path, tokens: int, kill_after: int = 10**9) -> list[list[Answer]]:
    def progress(so_far: int) -> None:
        if so_far >= kill_after:
            raise Killed

    with Journal(path) as journal:
        write_text(sampler, PLAN, journal, tokens, progress)
        return list(written(PLAN, journal, tokens))


def new_tokens(batches: list[list[Answer]]) -> int:
    return sum(len(new) for batch in batches for _, new in batch)


class Counter:
    """Answers every prompt by the number of its batch."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def sample(self, prompts: list[list[int]], sampling: Sampling) -> list[tuple[int, list[int]]]:
        self.asked.append((sampling.seed - 1_000_003) % 2**32)
        return [(i, [1, self.asked[-1]]) for i in reversed(range(len(prompts)))]


@pytest.mark.parametrize("kill_after", [1, 20, 40])
def test_a_killed_writing_goes_on_to_the_same_text(tmp_path: Path, make_lm: Make, kill_after: int) -> None:
    whole = write(LocalSampler(make_lm(2)), tmp_path / "whole.sqlite", 60)
    assert new_tokens(whole) >= 60
    assert new_tokens(whole[:-1]) < 60
    with pytest.raises(Killed):
        write(LocalSampler(make_lm(2)), tmp_path / "cut.sqlite", 60, kill_after)
    with Journal(tmp_path / "cut.sqlite", read_only=True) as journal:
        cut = list(written(PLAN, journal, 60))
        assert 0 < len(cut) < len(whole)
    assert write(LocalSampler(make_lm(2)), tmp_path / "cut.sqlite", 60) == whole


def test_what_is_there_is_not_asked_for_again(tmp_path: Path) -> None:
    sampler = Counter()
    batches = write(sampler, tmp_path / "a.sqlite", 13)
    assert sampler.asked == [0, 1, 2]  # of six tokens each
    assert all(len(batch) == 3 for batch in batches)
    assert write(sampler, tmp_path / "a.sqlite", 18) == batches
    assert sampler.asked == [0, 1, 2]
    assert new_tokens(write(sampler, tmp_path / "a.sqlite", 19)) == 24
    assert sampler.asked == [0, 1, 2, 3]


def test_a_torn_answer_costs_its_batch_and_nothing_after_it(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    whole = write(Counter(), path, 30)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE answers SET completion = x'00ff' WHERE attempt = 5")
    db.close()
    sampler = Counter()
    assert write(sampler, path, 30) == whole
    assert sampler.asked == [1]


def test_answers_in_any_order_are_one_text(tmp_path: Path) -> None:
    whole = write(Counter(), tmp_path / "a.sqlite", 30)
    with Journal(tmp_path / "b.sqlite") as journal:
        for number in (3, 0, 4, 1, 2):
            for request, (_, new) in reversed(list(zip(PLAN.requests(number), whole[number], strict=True))):
                journal.put(request, TEACHER, Completion(Outcome.COMPLETE, "", ids=tuple(new)))
    sampler = Counter()
    assert write(sampler, tmp_path / "b.sqlite", 30) == whole
    assert sampler.asked == []


def test_another_teacher_or_setting_is_asked_anew(tmp_path: Path) -> None:
    write(Counter(), tmp_path / "a.sqlite", 12)
    with Journal(tmp_path / "a.sqlite") as journal:
        for plan in (
            Plan.of(GENERATION, CORPUS, 24, {"fingerprint": "g"}),
            Plan.of(GENERATION.model_copy(update={"temperature": 0.5}), CORPUS, 24, TEACHER),
            Plan.of(GENERATION.model_copy(update={"seed": 2}), CORPUS, 24, TEACHER),
        ):
            assert list(written(plan, journal, 12)) == []


def test_prompts_leave_room_and_answers_become_documents() -> None:
    prompts = list(find_prompts(GENERATION, CORPUS, 24))
    assert prompts[:2] == [[5, 6, 7, 8], [29, 30, 31, 32]]  # a long document is asked about twice
    assert all(len(prompt) == 4 for prompt in prompts)
    assert list(find_prompts(GENERATION, CORPUS, 11)) == []
    (document,) = as_documents([[([5, 6], [7, 8, 9])]])
    assert list(document.ids) == [5, 6, 7, 8, 9]
    assert list(document.loss_mask) == [MASKED, MASKED, WORDS, WORDS, WORDS]


def test_a_sampler_of_nan_is_blamed(tmp_path: Path, make_lm: Make) -> None:
    lm = make_lm(2)
    with torch.no_grad():
        lm.head().weight_VD[5] = math.nan
    with pytest.raises(InputError, match="teacher: its logits are not finite while it writes"), under("teacher"):
        write(LocalSampler(lm), tmp_path / "a.sqlite", 60)
