"""Text of a sampler: on disk before it is used, and the same however often its writing was killed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from limbeck.data.chat.encode import MASKED, WORDS
from limbeck.errors import InputError, under
from limbeck.generation.batches import Answer, Journal
from limbeck.generation.local import LocalSampler
from limbeck.generation.sampler import Sampler
from limbeck.generation.text import as_documents, find_prompts, write_text
from limbeck.models.causal_lm import CausalLM
from limbeck.models.generate import Sampling
from limbeck.recipe import Generation
from tests.unit.test_data import corpus_of

Make = Callable[..., CausalLM]

CORPUS = corpus_of([(list(range(5, 5 + n)), [True] * n) for n in (30, 12, 20, 17)])
GENERATION = Generation(batch_size=3, prompt_tokens=4, max_new_tokens=6, seed=1)


class Killed(Exception):  # noqa: N818
    pass


def written(sampler: Sampler, path: Path, tokens: int, kill_after: int = 10**9) -> Journal:
    journal = Journal(path)

    def progress(so_far: int) -> None:
        if so_far >= kill_after:
            raise Killed

    write_text(sampler, GENERATION, CORPUS, 24, journal, tokens, progress)
    return journal


def test_a_journal_holds_what_was_appended(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "text" / "a.jsonl")
    assert journal.batches == []
    assert not journal.path.exists()
    batches: list[list[Answer]] = [[([1, 2], [3, 4]), ([5], [6])], [([7], [])]]
    for batch in batches:
        journal.append(batch)
        assert json.loads(journal.path.read_text().splitlines()[-1]) == [[list(a), list(b)] for a, b in batch]
    again = Journal(journal.path)
    assert again.batches == journal.batches == batches
    assert again.tokens == journal.tokens == 3


@pytest.mark.parametrize("torn", [b"[[[1, 2], [3", b"\xff\xfe\n", b"[[1, 2, 3]]\n", b"17\n", b"[[[9], [9]]]\n[[[8"])
def test_a_torn_line_and_what_follows_it_are_written_again(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "a.jsonl"
    Journal(path).append([([1, 2], [3, 4])])
    whole = path.read_bytes()
    path.write_bytes(whole + torn + b"\n[[[1], [2]]]\n")
    journal = Journal(path)
    kept = whole + (b"[[[9], [9]]]\n" if torn.startswith(b"[[[9]") else b"")
    assert path.read_bytes() == kept
    assert len(journal.batches) == kept.count(b"\n")
    journal.append([([5], [6])])
    assert path.read_bytes() == kept + b"[[[5], [6]]]\n"


@pytest.mark.parametrize("kill_after", [1, 20, 40])
def test_a_killed_writing_goes_on_to_the_same_bytes(tmp_path: Path, make_lm: Make, kill_after: int) -> None:
    whole = written(LocalSampler(make_lm(2)), tmp_path / "whole.jsonl", 60)
    assert whole.tokens >= 60
    assert whole.tokens - sum(len(new) for _, new in whole.batches[-1]) < 60
    with pytest.raises(Killed):
        written(LocalSampler(make_lm(2)), tmp_path / "cut.jsonl", 60, kill_after)
    assert 0 < (tmp_path / "cut.jsonl").stat().st_size < (tmp_path / "whole.jsonl").stat().st_size
    written(LocalSampler(make_lm(2)), tmp_path / "cut.jsonl", 60)
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_what_is_there_is_not_asked_for_again(tmp_path: Path) -> None:
    class Counter:
        asked = 0

        def sample(self, prompts: list[list[int]], sampling: Sampling) -> list[tuple[int, list[int]]]:
            self.asked += 1
            return [(i, [1, 2]) for i in reversed(range(len(prompts)))]

    sampler = Counter()
    journal = written(sampler, tmp_path / "a.jsonl", 13)
    assert sampler.asked == 3  # of six tokens each
    assert all(len(batch) == 3 for batch in journal.batches)
    written(sampler, tmp_path / "a.jsonl", 18)
    assert sampler.asked == 3
    assert written(sampler, tmp_path / "a.jsonl", 19).tokens == 24
    assert sampler.asked == 4


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
        written(LocalSampler(lm), tmp_path / "a.jsonl", 60)
