"""Batches and pieces give the ids of a plain call of the tokenizer, whatever the text."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.data import tokenise
from limbeck.data.tokenise import plain_ids, plain_ids_and_offsets

PARTS = (
    "a", " the", "don't", "123", "  ", " ", "\n", "\n\n", "\t", "\u00a0", "é", "e\u0301", "漢字", "😀", "👩‍👩‍👧",
    "<|endoftext|>", "<|im_start|>", "\u2581", "s" * 40, " " * 70, "=" * 60, "ab" * 90, "_", "ﬁ", "\r\n", "مرحبا",
)  # fmt: skip
REAL = ("tokenizers/qwen2", "tokenizers/smollm", "tokenizers/gpt2", "models/babyllama_tok361", "models/llama2xs")


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LONG": 600, "PIECE": 512, "OVERLAP": 128, "PIECES": 3}.items():
        monkeypatch.setattr(tokenise, name, value)


def check(text: str, tokenizer: Any) -> None:
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert list(plain_ids([text], tokenizer)[0]) == whole["input_ids"]
    ids, offsets = plain_ids_and_offsets([text], tokenizer)[0]
    assert list(ids) == whole["input_ids"]
    assert offsets.tolist() == [list(span) for span in whole["offset_mapping"]]


def of_parts(seed: int, count: int) -> str:
    rng = random.Random(seed)
    return "".join(rng.choice(PARTS) * rng.choice((1, 1, 1, 2, 9)) for _ in range(count))


@settings(deadline=None, max_examples=60)
@given(parts=st.lists(st.tuples(st.sampled_from(PARTS), st.integers(1, 30)), min_size=1, max_size=120))
def test_pieces_are_the_whole(tokenizer: Any, parts: list[tuple[str, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"LONG": 200, "PIECE": 256, "OVERLAP": 64, "PIECES": 3}.items():
            patch.setattr(tokenise, name, value)
        check("".join(part * count for part, count in parts), tokenizer)


@pytest.mark.parametrize("name", REAL)
def test_pieces_are_the_whole_in_real_tokenizers(real_data: Path, small_pieces: None, name: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real_data / name)
    story = (real_data / "tinystories/train.txt").read_text(encoding="utf-8")[:60_000]
    code = Path(random.__file__).read_text(encoding="utf-8")
    for text in (story, code, of_parts(0, 4_000), of_parts(1, 4_000), "a" * 3_000 + " " * 3_000 + "=-" * 2_000):
        check(text, tokenizer)


@pytest.mark.parametrize("needed", [256, 10**9])
def test_pieces_that_disagree_share_more_and_at_last_are_one(
    tokenizer: Any, small_pieces: None, monkeypatch: pytest.MonkeyPatch, needed: int
) -> None:
    agreement, tried = tokenise._agreement, []

    def reluctant(left: Any, right: Any, border: int, shared: int) -> tuple[int, int] | None:
        tried.append(shared)
        return agreement(left, right, border, shared) if shared >= needed else None

    monkeypatch.setattr(tokenise, "_agreement", reluctant)
    check(of_parts(4, 1_500), tokenizer)
    assert tried[:2] == [128, 256]


def test_a_batch_is_its_texts(tokenizer: Any, small_pieces: None) -> None:
    texts = ["", "the cat", of_parts(2, 300), "", " ", of_parts(3, 10)]
    assert [list(ids) for ids in plain_ids(texts, tokenizer)] == tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert plain_ids([], tokenizer) == []


def test_truncation_and_padding_that_a_tokenizer_was_left_with_are_undone(tokenizer: Any) -> None:
    texts = ["the cat sat on a mat", "rain"]
    want = tokenizer(texts, add_special_tokens=False)["input_ids"]
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    assert [list(ids) for ids in plain_ids(texts, tokenizer)] == want
