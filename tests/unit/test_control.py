"""Control tokens that stand in documents as text are counted."""

from __future__ import annotations

from typing import Any

import pytest

from limbeck.data.documents.control import Control
from limbeck.data.documents.document import Document
from limbeck.models.tokenizer import train_tokenizer

TEMPLATED = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n"


@pytest.fixture
def tokenizer() -> Any:
    found = train_tokenizer(["what is a cat. a dog."], 300)
    found.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "_odd one_"]})
    return found


def said(tokenizer: Any, *documents: Document) -> list[str]:
    control = Control(tokenizer)
    assert tuple(control.counting(documents)) == documents
    return list(control.remarks())


def pair(asked: str, answer: str = "yo", **more: Any) -> Document:
    return Document(
        messages=({"role": "user", "content": asked}, {"role": "assistant", "content": answer, **more}),
    )


def test_text_that_a_template_wrote(tokenizer: Any) -> None:
    (remark,) = said(tokenizer, Document(TEMPLATED), Document("plain < text > [x]"), Document("<|im_end|>"))
    assert remark.startswith("2 documents hold the tokenizer's control tokens as text (<|im_end|>, <|im_start|>)")


@pytest.mark.parametrize("token", ["<|im_end|>", "_odd one_", "<|endoftext|>"])
def test_tokens_that_somebody_typed(tokenizer: Any, token: str) -> None:
    for document in (pair(f"what is {token}?"), pair("q", f"it is <{token}>"), pair("q", reasoning_content=token)):
        (remark,) = said(tokenizer, document, pair("q"))
        assert remark.startswith(f"1 documents hold the tokenizer's control tokens as text ({token})")


def test_what_another_template_wrote_is_words(tokenizer: Any) -> None:
    (remark,) = said(tokenizer, Document("<s>[INST] q [/INST] a </s>"))
    assert "1 documents hold what another model's template writes ([/INST], [INST])" in remark
    assert said(None, Document(TEMPLATED))[0].startswith("1 documents hold what another model's template writes")
    assert said(tokenizer, Document("a <b>c</b> [d]"), pair("a < b")) == []
