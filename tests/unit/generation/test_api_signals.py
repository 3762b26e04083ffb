"""Top logprobs as targets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from limbeck.generation.api.signals import TokenMap
from limbeck.generation.request import Completion, Outcome, TokenLogprobs

TEXT = "the cat sat on a mat"


def completion(tokenizer: Any, *, ids: bool) -> Completion:
    """An answer as a server with the same tokenizer gives it."""
    tokens = tokenizer.encode(TEXT, add_special_tokens=False)
    words = [f"token_id:{each}" if ids else tokenizer.decode([each]) for each in tokens]
    other = tokenizer.decode(tokenizer.encode(" dog", add_special_tokens=False)[-1:])
    logprobs = tuple(
        TokenLogprobs(word, -0.25, top=((word, -0.25), (other, -2.0), ("no such token", -3.0), (other + "zz", -9999.0)))
        for word in words
    )
    return Completion(Outcome.COMPLETE, TEXT, logprobs=logprobs)


@pytest.mark.parametrize("ids", [True, False], ids=["by id", "by text"])
def test_tokens_become_entries(tokenizer: Any, ids: bool) -> None:
    found = TokenMap(tokenizer).targets(completion(tokenizer, ids=ids), temperature=0.5)
    assert found is not None
    tokens, sparse = found
    assert tokens == tokenizer.encode(TEXT, add_special_tokens=False)
    assert len(sparse) == len(tokens)
    assert sparse.temperature == 0.5
    for i, token in enumerate(tokens):
        start, end = sparse.offsets[i], sparse.offsets[i + 1]
        entries = dict(zip(sparse.ids[start:end].tolist(), sparse.logprobs[start:end].tolist(), strict=True))
        assert entries[token] == -0.25
        assert 1 <= len(entries) <= 2, "what has no id is in the tail"
        assert float(torch.tensor(list(entries.values())).exp().sum()) < 1


def test_a_text_that_the_tokens_do_not_make_is_no_target(tokenizer: Any) -> None:
    answer = completion(tokenizer, ids=True)
    tokens = TokenMap(tokenizer)
    assert tokens.targets(replace(answer, text="another text")) is None
    assert tokens.targets(replace(answer, logprobs=answer.logprobs[:-1])) is None  # type: ignore[index]
    assert tokens.targets(replace(answer, logprobs=None)) is None


def test_a_token_without_an_exact_id_is_no_target(tokenizer: Any) -> None:
    answer = completion(tokenizer, ids=False)
    odd = replace(answer, logprobs=(TokenLogprobs("no such token", -1.0), *answer.logprobs[1:]))  # type: ignore[index]
    assert TokenMap(tokenizer).targets(odd) is None
    beyond = replace(answer, logprobs=(TokenLogprobs("token_id:999999", -1.0), *answer.logprobs[1:]))  # type: ignore[index]
    assert TokenMap(tokenizer).targets(beyond) is None


def test_reasoning_may_come_before_the_text(tokenizer: Any) -> None:
    answer = completion(tokenizer, ids=True)
    found = TokenMap(tokenizer).targets(replace(answer, text="on a mat", reasoning="the cat sat"))
    assert found is not None
