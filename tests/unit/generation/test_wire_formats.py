"""Bodies of requests and what answers say, in each protocol."""

from __future__ import annotations

import json
from typing import Any

import pytest

from limbeck.errors import RecipeError
from limbeck.generation.api.protocols import MalformedError, encode, wire_format
from limbeck.generation.api.protocols.base import sample_seed
from limbeck.generation.api.protocols.reasoning import split_reasoning
from limbeck.generation.request import Outcome, Request
from limbeck.recipe.served import Endpoint

ASKED = Request(messages=({"role": "user", "content": "Why?"},), max_new_tokens=50)


def endpoint(protocol: str = "chat", api: str = "http://localhost/v1", **more: Any) -> Endpoint:
    return Endpoint(api=api, model="m", protocol=protocol, **more)


def body(request: Request = ASKED, **more: Any) -> dict[str, Any]:
    where = endpoint(**more)
    return wire_format(where.protocol).body(where, request)


def test_a_chat_has_only_what_was_asked_for() -> None:
    assert body() == {"model": "m", "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 50}


def test_the_length_has_the_name_that_the_endpoint_takes() -> None:
    assert body(api="https://api.openai.com/v1")["max_completion_tokens"] == 50
    assert wire_format("chat").body(endpoint(), ASKED, "max_completion_tokens")["max_completion_tokens"] == 50


def test_all_parameters_reach_the_body() -> None:
    request = Request(
        messages=ASKED.messages, temperature=0.0, top_p=0.9, top_k=5, seed=3, stop=("\n",), top_logprobs=2,
        tools=({"type": "function", "function": {"name": "f"}},), extra={"min_p": 0.1},
    )  # fmt: skip
    sent = body(request, extra={"reasoning_effort": "low"})
    assert {name: sent[name] for name in ("temperature", "top_p", "top_k", "seed", "stop", "min_p")} == {
        "temperature": 0.0, "top_p": 0.9, "top_k": 5, "seed": 3, "stop": ["\n"], "min_p": 0.1,
    }  # fmt: skip
    assert sent["logprobs"] is True
    assert sent["top_logprobs"] == 2
    assert sent["reasoning_effort"] == "low"
    assert sent["tools"][0]["function"]["name"] == "f"


@pytest.mark.parametrize("name", ["max_tokens", "n", "stream", "model", "messages", "max_completion_tokens"])
def test_extra_does_not_change_what_a_row_is(name: str) -> None:
    with pytest.raises(RecipeError, match=f"`{name}` cannot be set"):
        body(extra={name: 1})


@pytest.mark.parametrize(("name", "value"), [("seed", 0), ("top_logprobs", 5)])
def test_a_parameter_without_a_field_is_refused(name: str, value: int) -> None:
    with pytest.raises(RecipeError, match=f"has no {name}"):
        body(Request(messages=ASKED.messages, **{name: value}), protocol="anthropic")


def test_openrouter_serves_only_what_may_be_distilled_unless_told_otherwise() -> None:
    where = "https://openrouter.ai/api/v1"
    assert body(api=where)["provider"] == {"enforce_distillable_text": True, "allow_fallbacks": False}
    told = body(api=where, extra={"provider": {"allow_fallbacks": True, "order": ["x"]}})["provider"]
    assert told == {"enforce_distillable_text": True, "allow_fallbacks": True, "order": ["x"]}
    assert "provider" not in body()


def test_samples_of_a_prompt_have_seeds_of_their_own() -> None:
    seeds = [sample_seed(Request(seed=7, sample=i)) for i in range(50)]
    assert seeds[0] == 7
    assert len(set(seeds)) == 50
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert sample_seed(Request(sample=3)) is None


def test_bodies_are_utf8_and_bear_lone_surrogates() -> None:
    assert encode({"a": "é"}) == '{"a":"é"}'.encode()
    assert json.loads(encode({"a": "\ud800é"})) == {"a": "\ud800é"}


def chat(message: dict[str, Any], reason: str | None = "stop", **choice: Any) -> dict[str, Any]:
    return {
        "model": "m-1",
        "choices": [{"message": {"role": "assistant", **message}, "finish_reason": reason, **choice}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
    }


def read(plain: dict[str, Any], protocol: str = "chat", request: Request = ASKED) -> Any:
    return wire_format(protocol).completion(plain, request)


def test_an_answer_is_read() -> None:
    found = read(chat({"content": "Because.", "odd": {"kept": [1]}}))
    assert (found.outcome, found.text, found.reasoning, found.model) == (Outcome.COMPLETE, "Because.", None, "m-1")
    assert found.message["odd"] == {"kept": [1]}
    assert (found.usage.input, found.usage.output) == (5, 7)


@pytest.mark.parametrize(
    ("message", "reason", "outcome"),
    [
        ({"content": "a"}, "stop", Outcome.COMPLETE),
        ({"content": "a"}, "length", Outcome.LENGTH),
        ({"content": ""}, "content_filter", Outcome.FILTERED),
        ({"content": None, "refusal": "No."}, "stop", Outcome.REFUSED),
        ({"content": None, "tool_calls": [{"id": "1"}]}, "tool_calls", Outcome.TOOL_CALL),
        ({"content": None, "tool_calls": [{"id": "1"}]}, "stop", Outcome.TOOL_CALL),
        ({"content": "a"}, None, Outcome.COMPLETE),
    ],
)
def test_outcomes(message: dict[str, Any], reason: str, outcome: Outcome) -> None:
    assert read(chat(message, reason)).outcome is outcome


def test_an_answer_without_an_end_that_is_as_long_as_it_may_be_was_cut() -> None:
    assert read(chat({"content": "a"}, None), request=Request(max_new_tokens=7)).outcome is Outcome.LENGTH


@pytest.mark.parametrize(
    "message",
    [
        {"content": "So.", "reasoning_content": "Hm."},
        {"content": "So.", "reasoning": "Hm."},
        {"content": "<think>\nHm.\n</think>\n\nSo."},
        {"content": "Hm.\n</think>\n\nSo."},
        {"content": "[THINK]Hm.[/THINK]So."},
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
                {"type": "text", "text": "So."},
            ]
        },
        {"content": [{"type": "reasoning", "text": "Hm."}, {"type": "text", "text": "So."}]},
    ],
)
def test_reasoning_has_many_names(message: dict[str, Any]) -> None:
    found = read(chat(message))
    assert (found.reasoning, found.text) == ("Hm.", "So.")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<think>still thinking", ("still thinking", "")),
        ("<think>\n\n</think>\n\nSo.", (None, "So.")),
        ("A tag is <think>x</think> here.", (None, "A tag is <think>x</think> here.")),
        ("Nothing.", (None, "Nothing.")),
        ("a</think>b</think>c", ("a", "b</think>c")),
    ],
)
def test_think_tags(text: str, parts: tuple[str | None, str]) -> None:
    assert split_reasoning(text) == parts


def test_text_beside_a_field_of_reasoning_is_left_as_it_is() -> None:
    assert read(chat({"content": "The tag </think> ends it.", "reasoning": "Hm."})).text == "The tag </think> ends it."


def test_text_can_be_written_as_utf8() -> None:
    assert read(chat({"content": "a\ud800b"})).text == "a\ufffdb"
    assert read(chat({"content": "a\ud83d\ude00\x00b"})).text == "a\U0001f600\x00b"


@pytest.mark.parametrize(
    "plain", [{}, {"choices": []}, {"choices": [{}]}, {"choices": ["x"]}, {"choices": [{"message": {"content": 3}}]}]
)
def test_another_form_is_malformed(plain: dict[str, Any]) -> None:
    with pytest.raises(MalformedError):
        read(plain)


def test_logprobs() -> None:
    content = [
        {"token": "So", "logprob": -0.1, "bytes": [83, 111], "top_logprobs": [{"token": "So", "logprob": -0.1}]},
        {"token": "token_id:17", "logprob": -0.2, "top_logprobs": []},
    ]
    asked = Request(max_new_tokens=50, top_logprobs=1)
    found = read(chat({"content": "So."}, logprobs={"content": content}), request=asked).logprobs
    assert [each.logprob for each in found] == [-0.1, -0.2]
    assert found[0].bytes == b"So"
    assert found[0].top == (("So", -0.1),)
    assert found[1].id == 17
    assert read(chat({"content": "So."}, logprobs=None), request=asked).logprobs is None


def test_completions_continue_a_text() -> None:
    asked = Request(text="Once", max_new_tokens=5, top_logprobs=2)
    assert body(asked, protocol="completions") == {"model": "m", "prompt": "Once", "max_tokens": 5, "logprobs": 2}
    logprobs = {"tokens": [" a"], "token_logprobs": [-1.0], "top_logprobs": [{" a": -1.0, " b": -2.0}]}
    plain = {"choices": [{"text": " a <think>", "finish_reason": "length", "logprobs": logprobs}]}
    found = read(plain, "completions", asked)
    assert (found.text, found.outcome, found.reasoning) == (" a <think>", Outcome.LENGTH, None)
    assert found.logprobs[0].top == ((" a", -1.0), (" b", -2.0))
    with pytest.raises(RecipeError, match="continues a text"):
        body(ASKED, protocol="completions")


CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
TALK = Request(
    messages=(
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "7"},
        {"role": "user", "content": "And?"},
    ),
    max_new_tokens=9,
    tools=({"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}},),
    stop=("X",),
    temperature=0.5,
)


def test_anthropic_bodies() -> None:
    assert body(TALK, protocol="anthropic") == {
        "model": "m",
        "max_tokens": 9,
        "system": "Be brief.",
        "temperature": 0.5,
        "stop_sequences": ["X"],
        "tools": [{"name": "look", "input_schema": {"type": "object"}}],
        "messages": [
            {"role": "user", "content": "Look."},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "look", "input": {"at": 1}}]},
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": "7"},
                    {"type": "text", "text": "And?"},
                ],
            },
        ],
    }
    assert wire_format("anthropic").url(endpoint("anthropic", "https://api.anthropic.com")).endswith("com/v1/messages")
    assert wire_format("anthropic").headers("k")["x-api-key"] == "k"


def test_anthropic_answers_keep_the_signatures_of_thoughts() -> None:
    blocks = [
        {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
        {"type": "redacted_thinking", "data": "xx"},
        {"type": "text", "text": "So."},
    ]
    plain = {
        "model": "c",
        "content": blocks,
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 1, "output_tokens": 2},
    }
    found = read(plain, "anthropic")
    assert (found.reasoning, found.text, found.outcome) == ("Hm.", "So.", Outcome.COMPLETE)
    assert found.message["content"] == blocks
    # The message goes back into a conversation as it came.
    again = Request(messages=(*ASKED.messages, found.message, {"role": "user", "content": "More."}))
    assert body(again, protocol="anthropic")["messages"][1]["content"] == blocks


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [("max_tokens", Outcome.LENGTH), ("refusal", Outcome.REFUSED), ("tool_use", Outcome.TOOL_CALL)],
)
def test_anthropic_outcomes(reason: str, outcome: Outcome) -> None:
    assert read({"content": [], "stop_reason": reason}, "anthropic").outcome is outcome


def test_gemini_bodies() -> None:
    sent = body(TALK, protocol="gemini", extra={"generationConfig": {"thinkingConfig": {"includeThoughts": True}}})
    assert sent["systemInstruction"] == {"parts": [{"text": "Be brief."}]}
    assert sent["generationConfig"] == {
        "maxOutputTokens": 9,
        "temperature": 0.5,
        "stopSequences": ["X"],
        "thinkingConfig": {"includeThoughts": True},
    }
    assert [turn["role"] for turn in sent["contents"]] == ["user", "model", "user", "user"]
    assert sent["contents"][1]["parts"] == [{"functionCall": {"name": "look", "args": {"at": 1}}}]
    assert sent["contents"][2]["parts"][0]["functionResponse"]["name"] == "look"
    where = endpoint("gemini", "https://generativelanguage.googleapis.com/v1beta")
    assert wire_format("gemini").url(where).endswith("/v1beta/models/m:generateContent")


def test_gemini_answers() -> None:
    parts = [{"text": "Hm.", "thought": True}, {"text": "So.", "thoughtSignature": "c2ln"}]
    plain = {
        "candidates": [
            {
                "content": {"role": "model", "parts": parts},
                "finishReason": "STOP",
                "logprobsResult": {
                    "chosenCandidates": [{"token": "So", "tokenId": 4, "logProbability": -0.5}],
                    "topCandidates": [{"candidates": [{"token": "So", "logProbability": -0.5}]}],
                },
            }
        ],
        "modelVersion": "g-1",
    }
    found = read(plain, "gemini", Request(top_logprobs=1))
    assert (found.reasoning, found.text, found.outcome, found.model) == ("Hm.", "So.", Outcome.COMPLETE, "g-1")
    assert found.message["parts"] == parts
    assert found.logprobs[0].id == 4
    again = Request(messages=(*ASKED.messages, found.message, {"role": "user", "content": "More."}))
    assert body(again, protocol="gemini")["contents"][1] == {"role": "model", "parts": parts}


@pytest.mark.parametrize(
    "plain", [{"promptFeedback": {"blockReason": "SAFETY"}}, {"candidates": [{"finishReason": "SAFETY"}]}]
)
def test_gemini_filters(plain: dict[str, Any]) -> None:
    assert read(plain, "gemini").outcome is Outcome.FILTERED
