"""Where turns begin and end beside turns without words, in the wrong place, or in a row; and several thoughts."""

from __future__ import annotations

from typing import Any

import pytest

from limbeck.data.chat.encode import encode
from limbeck.data.chat.turns.remarks import ENDLESS
from limbeck.data.documents.document import Document
from tests.unit.test_chat import CALL, CALLING, INSTEAD, learned, said, user, with_template

# As Llama 3.1 does it with tools of its own: a call ends with another token than an answer.
OTHER_END = INSTEAD.replace(
    "<|eot_id|>{% endfor %}", "{{ '<|eom_id|>' if m.tool_calls else '<|eot_id|>' }}{% endfor %}"
)
OTHER_END_XML = CALLING.replace(
    "<|im_end|>\n{% endfor %}{% if add",
    "{{ '<|call_end|>' if m.tool_calls else '<|im_end|>' }}\n{% endfor %}{% if add",
)
LLAMA_CALL = '{"name": "weather", "parameters": {"city": "Oslo"}}'
XML_CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
COUNTING = "{{ messages | map(attribute='content') | map('trim') | select | list | length }} turns with words\n"


@pytest.mark.parametrize("before", ["", COUNTING])
@pytest.mark.parametrize("silent", ["tool", "user", "system"])
@pytest.mark.parametrize("nothing", ["", "  ", "\n"])
@pytest.mark.parametrize(
    ("template", "call", "answer"),
    [
        (OTHER_END, f"{LLAMA_CALL}<|eom_id|>", "ok<|eot_id|>"),
        (OTHER_END.replace("m.content | trim", "m.content"), f"{LLAMA_CALL}<|eom_id|>", "ok<|eot_id|>"),
        (OTHER_END.replace("m.content | trim", "(m.content | trim) or 'none'"), f"{LLAMA_CALL}<|eom_id|>", "ok<|eot_id|>"),
        (OTHER_END_XML, f"{XML_CALL}<|call_end|>", "ok<|im_end|>"),
        (CALLING, f"{XML_CALL}<|im_end|>", "ok<|im_end|>"),
        (INSTEAD, f"{LLAMA_CALL}<|eot_id|>", "ok<|eot_id|>"),
    ],
)  # fmt: skip
def test_a_call_ends_with_its_own_token_before_a_turn_without_words(
    tokenizer: Any, template: str, call: str, answer: str, nothing: str, silent: str, before: str
) -> None:
    template = before + template
    assert "eom_id" not in call or "eom_id" in template
    asked = (user("W?"), said("", tool_calls=[CALL]))
    blank = {"role": silent, "content": nothing, **({"tool_call_id": "c1"} if silent == "tool" else {})}
    spoken = {**blank, "content": "4 C"}
    for between in ((blank,), (blank, blank), (blank, spoken)):
        found = learned(tokenizer, template, *asked, *between, said("ok"))
        found = [piece.removeprefix("<think>\n\n</think>\n\n") for piece in found]
        assert found == [call, answer]
        assert (
            ENDLESS
            not in encode(Document(messages=(*asked, *between, said("ok"))), with_template(tokenizer, template)).remarks
        )
    found = learned(tokenizer, template, *asked, blank)
    assert [piece.removeprefix("<think>\n\n</think>\n\n") for piece in found] == [call]


def test_a_call_ends_with_its_own_token_where_a_template_takes_no_marks_in_results(tokenizer: Any) -> None:
    strict = OTHER_END.replace("m.content | trim", "m.content | trim if m.role != 'tool' else m.content | length")
    result = {"role": "tool", "tool_call_id": "c1", "content": "4 C"}
    found = learned(tokenizer, strict, user("W?"), said("", tool_calls=[CALL]), result, said("ok"))
    assert found == [f"{LLAMA_CALL}<|eom_id|>", "ok<|eot_id|>"]


@pytest.mark.parametrize("result", ["", "4 C"])
@pytest.mark.parametrize("role", ["tool", "user"])
def test_a_call_without_an_end_is_learned_whole(tokenizer: Any, role: str, result: str) -> None:
    endless = INSTEAD.replace("<|eot_id|>{% endfor %}", "{{ '' if m.tool_calls else '<|eot_id|>' }}{% endfor %}")
    assert endless != INSTEAD
    messages = (
        user("W?"),
        said("", tool_calls=[CALL]),
        {"role": role, "content": result, "tool_call_id": "c1"},
        said("ok"),
    )
    assert learned(tokenizer, endless, *messages) == [LLAMA_CALL, "ok<|eot_id|>"]
    assert ENDLESS in encode(Document(messages=messages), with_template(tokenizer, endless)).remarks
