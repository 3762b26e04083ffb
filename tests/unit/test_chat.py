"""What is learned of a conversation, in templates of every kind: answers, calls, thoughts, ends of turns."""

from __future__ import annotations

import copy
import datetime
from typing import Any

import pytest

from limbeck.data.chat.encode import MARK, SWALLOWED, WORDS, Encoded, encode, encode_batch, template_facts
from limbeck.data.chat.turns.remarks import (
    ASKED_NOTHING,
    DATED,
    DROPPED_MESSAGE,
    DROPPED_TEXT,
    DROPPED_THOUGHTS,
    EMPTY,
    ENDLESS,
    HEADED,
    NOWHERE,
    SECOND_THOUGHT,
)
from limbeck.data.documents.document import Document
from limbeck.errors import InputError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# As Qwen3 does it: definitions before, calls after the text, thoughts only after the last question, where there is
# always one, if an empty one.
CALLING = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% set last = namespace(user=0) %}"
    "{% for m in messages %}{% if m.role == 'user' and not m.content.startswith('<tool_response>') %}"
    "{% set last.user = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}"
    "{% set content = m.content %}{% set thought = '' %}{% if '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.index0 > last.user and (loop.last or thought) %}"
    "{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}"
    "{{ content }}"
    "{% for call in m.tool_calls or [] %}{{ '\n' if content }}"
    '{{ \'<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \' + (call.function.arguments | tojson)'
    " + '}\n</tool_call>' }}"
    "{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# As GLM-4 does it: a turn is ended by the role of the next.
UNCLOSED = (
    "[gMASK]<sop>{% for m in messages %}"
    "{% if m.role == 'user' %}<|user|>\n{{ m.content }}"
    "{% elif m.role == 'tool' %}<|observation|>\n{{ m.content }}"
    "{% elif m.role == 'assistant' %}<|assistant|>\n{{ m.content.strip() }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function.name }}"
    "{% for k, v in call.function.arguments.items() %}"
    "<arg_key>{{ k }}</arg_key><arg_value>{{ v }}</arg_value>{% endfor %}"
    "</tool_call>{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# As Llama 3.1 does it: a call is written instead of the text, its arguments under another name.
INSTEAD = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    '{% if m.tool_calls %}{{ \'{"name": "\' + m.tool_calls[0].function.name + \'", "parameters": \' }}'
    "{{ m.tool_calls[0].function.arguments | tojson }}}"
    "{% else %}{{ m.content | trim }}{% endif %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)

# As DeepSeek-V3 does it: arguments are text.
TEXT_ARGUMENTS = INSTEAD.replace(".arguments | tojson", ".arguments")

# As gpt-oss does it: the last turn ends unlike those before it, and the header says who is spoken to.
CHANNELS = (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>"
    "{{ m.content }}{{ '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)

# As SmolVLM does it: content is a list of parts, and a string would be read letter by letter.
PARTS = (
    "{% for m in messages %}{{ m.role | capitalize }}: {% for part in m['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)

# As Mistral does it: nothing asks for an answer.
INST = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)

# As DeepSeek-R1's students have it: the header begins a thought, and thoughts are not written.
THOUGHTLESS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)

# As Qwen3.8 does it: a thought is read from its own field, and an empty one is written where there is none.
OWN_FIELD = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def said(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "4 C"}
TOOL = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}}}
WRITTEN = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


def with_template(tokenizer: Any, template: str) -> Any:
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = template
    return chatty


def pieces(encoded: Encoded, tokenizer: Any, kinds: tuple[int, ...] = (WORDS, MARK)) -> list[str]:
    """Runs of labels, as text."""
    runs: list[list[int]] = []
    before = False
    for i, kind in zip(encoded.ids, encoded.loss_mask, strict=True):
        if kind in kinds:
            if not before:
                runs.append([])
            runs[-1].append(i)
        before = kind in kinds
    return [tokenizer.decode(run) for run in runs]


def learned(tokenizer: Any, template: str, *messages: dict[str, Any], tools: Any = ()) -> list[str]:
    chatty = with_template(tokenizer, template)
    return pieces(encode(Document(messages=messages, tools=tuple(tools)), chatty), chatty)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, ["yo<|im_end|>", "ok<|im_end|>"]),
        (CALLING, ["yo<|im_end|>", "<think>\n\n</think>\n\nok<|im_end|>"]),
        (UNCLOSED, ["\nyo<|user|>", "\nok<|user|>"]),
        (INSTEAD, ["yo<|eot_id|>", "ok<|eot_id|>"]),
        (CHANNELS, ["<|channel|>final<|message|>yo<|end|>", "<|channel|>final<|message|>ok<|return|>"]),
        (PARTS, [" yo<end_of_utterance>", " ok<end_of_utterance>"]),
        (INST, [" yo</s>", " ok</s>"]),
        (THOUGHTLESS, ["yo<|end|>", "ok<|end|>"]),
        (OWN_FIELD, ["\n</think>\n\nyo<|im_end|>", "\n</think>\n\nok<|im_end|>"]),
    ],
)
def test_an_answer_and_its_end_are_learned(tokenizer: Any, template: str, expected: list[str]) -> None:
    conversation = (user("hi"), said("yo"), user("more"), said("ok"))
    assert learned(tokenizer, template, *conversation) == expected
    chatty = with_template(tokenizer, template)
    encoded = encode(Document(messages=conversation), chatty)
    assert [piece.strip() for piece in pieces(encoded, chatty, (WORDS,))] == ["yo", "ok"]  # a token may hold a space
    assert encoded.n_bytes == 4
    assert not encoded.remarks


@pytest.mark.parametrize(
    ("template", "call"),
    [
        (CALLING, WRITTEN + "<|im_end|>"),
        (UNCLOSED, "<tool_call>weather<arg_key>city</arg_key><arg_value>Oslo</arg_value></tool_call><|observation|>"),
        (INSTEAD, '{"name": "weather", "parameters": {"city": "Oslo"}}<|eot_id|>'),
        (TEXT_ARGUMENTS, '{"name": "weather", "parameters": {"city": "Oslo"}}<|eot_id|>'),
    ],
)
@pytest.mark.parametrize("is_last", [False, True])
def test_a_call_and_its_end_are_learned(tokenizer: Any, template: str, call: str, *, is_last: bool) -> None:
    conversation = [user("W?"), said("", tool_calls=[CALL])]
    if not is_last:
        conversation += [RESULT, said("It is 4 C.")]
    found = learned(tokenizer, template, *conversation)
    assert found[0].removeprefix("<think>\n\n</think>\n\n").removeprefix("\n") == call
    assert len(found) == (1 if is_last else 2)
    encoded = encode(Document(messages=tuple(conversation)), with_template(tokenizer, template))
    written = call.rpartition("<|")[0]
    assert encoded.n_bytes == len(written) + (0 if is_last else len("It is 4 C."))


def test_text_beside_a_call_is_learned_or_said_to_be_lost(tokenizer: Any) -> None:
    conversation = (user("W?"), said("Let me look.", tool_calls=[CALL]), RESULT, said("It is 4 C."))
    assert learned(tokenizer, CALLING, *conversation)[0] == f"Let me look.\n{WRITTEN}<|im_end|>"
    assert DROPPED_TEXT in encode(Document(messages=conversation), with_template(tokenizer, INSTEAD)).remarks


def test_tools_stand_in_the_prompt(tokenizer: Any) -> None:
    document = Document(messages=(user("W?"), said("", tool_calls=[CALL]), RESULT, said("4.")), tools=(TOOL,))
    chatty = with_template(tokenizer, CALLING)
    assert '"description": "d"' in chatty.decode(encode(document, chatty).ids)
    assert '"description"' not in "".join(pieces(encode(document, chatty), chatty))


@pytest.mark.parametrize("template", [CHATML, CHANNELS, INST])
def test_a_template_that_ignores_calls_or_tools_is_refused_by_name(tokenizer: Any, template: str) -> None:
    chatty = with_template(tokenizer, template)
    chatty.name_or_path = "some/where/tiny-chat"
    calling = (user("W?"), said("", tool_calls=[CALL]), user("and?"), said("4."))
    with pytest.raises(InputError, match="chat template of tiny-chat writes nothing of a tool call"):
        encode(Document(messages=calling), chatty)
    with pytest.raises(InputError, match="chat template of tiny-chat writes nothing of the conversation's `tools`"):
        encode(Document(messages=(user("W?"), said("no")), tools=(TOOL,)), chatty)


def test_a_second_call_that_is_not_written_is_refused(tokenizer: Any) -> None:
    other = {**CALL, "function": {"name": "time", "arguments": {"zone": "CET"}}}
    with pytest.raises(InputError, match="writes nothing of a tool call"):
        learned(tokenizer, INSTEAD, user("W?"), said("", tool_calls=[CALL, other]))


@pytest.mark.parametrize("template", [CHATML, CALLING, UNCLOSED, CHANNELS, PARTS, INST])
def test_a_turn_that_is_not_to_be_learned_has_no_label(tokenizer: Any, template: str) -> None:
    found = learned(tokenizer, template, user("2+2?"), said("5", learn=False), user("Wrong"), said("4"))
    assert len(found) == 1
    assert "5" not in found[0]
    assert "4" in found[0]


@pytest.mark.parametrize("field", ["inline", "reasoning_content"])
def test_thoughts_are_learned_where_they_are_written(tokenizer: Any, field: str) -> None:
    def thinks(thought: str, answer: str) -> dict[str, Any]:
        if field == "inline":
            return said(f"<think>\n{thought}\n</think>\n\n{answer}")
        return said(answer, reasoning_content=thought)

    conversation = (user("2+2?"), thinks("add", "four"), user("3+3?"), thinks("add more", "six"))
    assert learned(tokenizer, OWN_FIELD, *conversation) == [
        "add\n</think>\n\nfour<|im_end|>",
        "add more\n</think>\n\nsix<|im_end|>",
    ]
    if field == "inline":
        assert learned(tokenizer, CALLING, *conversation) == [
            "four<|im_end|>",
            "<think>\nadd more\n</think>\n\nsix<|im_end|>",
        ]
        encoded = encode(Document(messages=conversation), with_template(tokenizer, CALLING))
        assert encoded.n_bytes == len("four" + "add more" + "six")
    dropped = encode(Document(messages=conversation), with_template(tokenizer, THOUGHTLESS))
    assert DROPPED_THOUGHTS in dropped.remarks
    assert dropped.n_bytes == len("four" + "six")


@pytest.mark.parametrize("template", [CHATML, CALLING, UNCLOSED, CHANNELS, INST])
@pytest.mark.parametrize("answer", ["A", "d", "im", "end", "m", "user", "|", "assistant", "think", "<b>", "é"])
def test_bytes_are_those_of_the_words(tokenizer: Any, template: str, answer: str) -> None:
    document = Document(messages=(user("pick"), said(answer)))
    chatty = with_template(tokenizer, template)
    assert encode(document, chatty).n_bytes == len(answer.encode())


def test_spaces_around_an_answer_are_the_template_s_to_keep(tokenizer: Any) -> None:
    for template in (CHATML, UNCLOSED, INSTEAD):
        document = Document(messages=(user("hi"), said("  yo \n"), user("so"), said(" ok")))
        chatty = with_template(tokenizer, template)
        found = pieces(encode(document, chatty), chatty, (WORDS,))
        assert [piece.strip() for piece in found] == ["yo", "ok"]


def test_an_empty_answer_is_said(tokenizer: Any) -> None:
    encoded = encode(Document(messages=(user("hi"), said(""))), with_template(tokenizer, CHATML))
    assert EMPTY in encoded.remarks
    assert encoded.n_bytes == 0


def test_an_empty_question_is_said(tokenizer: Any) -> None:
    chatty = with_template(tokenizer, CHATML)
    assert ASKED_NOTHING in encode(Document(messages=(user(" "), said("yo"))), chatty).remarks
    assert ASKED_NOTHING not in encode(Document(messages=(user("hi"), said("yo"))), chatty).remarks


def test_an_answer_without_an_end_is_said(tokenizer: Any) -> None:
    bare = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    bare += "{% if add_generation_prompt %}assistant: {% endif %}"
    assert ENDLESS in encode(Document(messages=(user("hi"), said("yo"))), with_template(tokenizer, bare)).remarks


def test_the_date_is_not_today_s(tokenizer: Any) -> None:
    dated = "{{ strftime_now('%d %b %Y') }}|{{ strftime_now('%-d.%-m.%y %% %H') }}\n" + CHATML
    chatty = with_template(tokenizer, dated)
    document = Document(messages=(user("hi"), said("yo")))
    assert chatty.decode(encode(document, chatty).ids).startswith("26 Jul 2024|26.7.24 % 00\n")
    other = datetime.date(2031, 5, 4)
    assert chatty.decode(encode(document, chatty, other).ids).startswith("04 May 2031|4.5.31 % 00\n")
    assert template_facts(chatty)["date"] == "2024-07-26"
    assert template_facts(with_template(tokenizer, CHATML))["date"] is None
    assert template_facts(chatty)["chat_template"] != template_facts(with_template(tokenizer, CHATML))["chat_template"]


def test_a_macro_for_the_date_changes_nothing_else(tokenizer: Any) -> None:
    for start in ("\n", "  {% if true %}x{% endif %}\n", "{%- if true %}x{% endif %}"):
        chatty = with_template(tokenizer, start + "{{ strftime_now('%Y') }}" + CHATML)
        ours = chatty.decode(encode(Document(messages=(user("hi"), said("yo"))), chatty).ids)
        theirs = chatty.apply_chat_template([user("hi"), said("yo")], tokenize=False)
        assert ours.replace("2024", "") == theirs.replace(str(datetime.date.today().year), "")


def test_text_that_looks_like_marks_is_read(tokenizer: Any) -> None:
    for answer in ("\u29830\u2984", "\u29830\u2984\u27e60\u27e7", "{{ messages }}", "<|im_start|>"):
        chatty = with_template(tokenizer, CHATML)
        encoded = encode(Document(messages=(user("say it"), said(answer))), chatty)
        assert pieces(encoded, chatty, (WORDS,)) == [answer]


def test_a_tool_s_answer_that_a_template_looks_into_is_read(tokenizer: Any) -> None:
    conversation = (user("<tool_response>\n4 C\n</tool_response>"), said("It is 4 C."))
    assert learned(tokenizer, CALLING, *conversation)[0].endswith("It is 4 C.<|im_end|>")


def test_errors_name_the_document(tokenizer: Any) -> None:
    alternating = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}" + CHATML
    document = Document(messages=(said("hello there"), user("hi")))
    with pytest.raises(InputError, match=f"document {document.key[:12]} .*hello there.*user first"):
        encode(document, with_template(tokenizer, alternating))


def test_a_batch_is_its_documents(tokenizer: Any) -> None:
    chatty = with_template(tokenizer, CALLING)
    found = [
        Document(text="the cat"),
        Document(messages=(user("hi"), said("yo"))),
        Document(text="x" * 3000),
        Document(messages=(user("W?"), said("", tool_calls=[CALL])), tools=(TOOL,)),
    ]
    assert encode_batch(found, chatty) == [encode(document, chatty) for document in found]
    assert encode_batch([], chatty) == []


@pytest.mark.parametrize("where", ["content", "arguments", "tools"])
def test_half_a_surrogate_pair_is_found_wherever_it_stands(tokenizer: Any, where: str) -> None:
    half = {"\ud800": "\ud800"}
    call = {**CALL, "function": {"name": "weather", "arguments": half}}
    document = {
        "content": Document(messages=(user("\ud800"), said("a"))),
        "arguments": Document(messages=(user("a"), said("", tool_calls=[call]), RESULT, said("b"))),
        "tools": Document(messages=(user("a"), said("b")), tools=({**TOOL, "function": {"name": "a\ud800"}},)),
    }[where]
    with pytest.raises(InputError, match=f"document {document.key[:12]} holds text that is no Unicode"):
        encode(document, with_template(tokenizer, CALLING))


# As the first Llama 3 had it: the header of an answer is written whether it is asked for or not.
ALWAYS = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)

# As gpt-oss does it: what stood beside a call is dropped once an answer has come.
DROPPING = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% set later = messages[loop.index:] | selectattr('role', 'eq', 'assistant') | list %}"
    "{% if m.tool_calls %}{% if m.content and not later %}"
    "<|start|>assistant<|channel|>analysis<|message|>{{ m.content }}<|end|>{% endif %}"
    "<|start|>assistant to={{ m.tool_calls[0].function.name }}<|message|>"
    "{{ m.tool_calls[0].function.arguments | tojson }}"
    "<|call|>{% else %}<|start|>assistant<|message|>{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}"
    "{% endif %}{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)


def test_a_header_that_is_always_written_is_no_label(tokenizer: Any) -> None:
    conversation = (user("hi"), said("yo"), user("more"), said("ok"))
    assert learned(tokenizer, ALWAYS, *conversation) == ["yo<|eot_id|>", "ok<|eot_id|>"]
    always = CHATML.replace("{% if add_generation_prompt %}", "{% if true %}")
    assert learned(tokenizer, always, *conversation) == ["yo<|im_end|>", "ok<|im_end|>"]
    ended = CHATML.replace("{% endfor %}", "{% endfor %}{% if not add_generation_prompt %}<|endoftext|>{% endif %}")
    assert learned(tokenizer, ended, *conversation) == ["yo<|im_end|>", "ok<|im_end|>"]


def test_the_end_of_a_call_is_learned_where_what_stood_before_it_is_dropped(tokenizer: Any) -> None:
    for city in ("Oslo", 3):
        call = {"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}
        conversation = (
            user("W?"),
            said("Let me look.", tool_calls=[call]),
            {**RESULT, "content": "7"},
            said("It is 7."),
        )
        written = '{"city": "Oslo"}' if city == "Oslo" else '{"city": 3}'
        assert learned(tokenizer, DROPPING, *conversation) == [
            f" to=weather<|message|>{written}<|call|>",
            "<|message|>It is 7.<|return|>",
        ]


def test_arguments_are_no_text_because_somebody_wrote_python(tokenizer: Any) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"n": 1}}}
    found = learned(tokenizer, CALLING, user("d = {'n': 1}"), said("", tool_calls=[call]))
    assert '"arguments": {"n": 1}}' in found[0]


def test_no_form_is_tried_that_the_template_does_not_read(tokenizer: Any) -> None:
    for change in (" | title", "[:10]"):
        template = CHATML.replace("m['content']", f"m['content']{change}")
        try:
            encoded = encode(Document(messages=(user("a question"), said("Yes"))), with_template(tokenizer, template))
        except InputError:
            continue
        assert "type" not in tokenizer.decode(encoded.ids)


def test_a_template_that_wants_a_system_message_is_asked_with_one(tokenizer: Any) -> None:
    strict = "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    conversation = ({"role": "system", "content": "be kind"}, user("hi"), said("yo"), user("so"), said("ok"))
    assert learned(tokenizer, strict, *conversation) == ["yo<|im_end|>", "ok<|im_end|>"]


def test_the_end_of_an_empty_answer_is_its_own(tokenizer: Any) -> None:
    chatty = with_template(tokenizer, CHATML)
    encoded = encode(Document(messages=(user("q"), said(""), user("r"), said("B"))), chatty)
    text = tokenizer.decode(encoded.ids)
    assert pieces(encoded, chatty) == ["<|im_end|>", "B<|im_end|>"]
    first = next(i for i, kind in enumerate(encoded.loss_mask) if kind)
    assert tokenizer.decode(encoded.ids[:first]).endswith("<|im_start|>assistant\n"), text


def test_one_turn_of_two_messages_is_learned_whole(tokenizer: Any) -> None:
    merging = (
        "{% for m in messages %}{% if loop.first or m.role != messages[loop.index0 - 1].role %}"
        "<|im_start|>{{ m.role }}\n"
        "{% else %}{{ '\n\n' }}{% endif %}{{ m.content }}"
        "{% if loop.last or m.role != messages[loop.index0 + 1].role %}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    conversation = (user("hi"), said("One"), said("Two"))
    assert "".join(learned(tokenizer, merging, *conversation)) == "One\n\nTwo<|im_end|>"
    assert not encode(Document(messages=conversation), with_template(tokenizer, merging)).remarks


def test_a_literal_end_of_a_thought_is_text(tokenizer: Any) -> None:
    answer = "Write </think> to close it."
    assert encode(Document(messages=(user("how?"), said(answer))), with_template(tokenizer, CHATML)).n_bytes == len(
        answer
    )


def test_a_percent_sign_in_a_date(tokenizer: Any) -> None:
    chatty = with_template(tokenizer, "{{ strftime_now('%%Y %Y') }}" + CHATML)
    assert chatty.decode(encode(Document(messages=(user("hi"), said("yo"))), chatty).ids).startswith("%Y 2024")


# ------------------------------------------------------------------- templates that refuse to be asked about answers


def refusing(condition: str, template: str) -> str:
    return "{% if " + condition + " %}{{ raise_exception('no') }}{% endif %}" + template


SYSTEM = {"role": "system", "content": "be kind"}
ASKED_TWICE = (SYSTEM, user("W?"), said("Let me look.", tool_calls=[CALL]), RESULT, said("It is 4 C."), user("so"),
               said("ok"))  # fmt: skip


@pytest.mark.parametrize(
    "condition",
    [
        "add_generation_prompt",
        "add_generation_prompt and messages | length > 2",
        "add_generation_prompt and messages | length < 3",
        "messages[-1].role == 'user'",
        "messages[-1].role != 'assistant'",
        "messages[-1].role != 'assistant' and not add_generation_prompt",
        "messages[-1].role == 'user' and messages | length < 6",
        "messages | length < 4",
        "messages | length < 7",
        "messages | length is even",
        "not tools",
        "messages[0].role != 'system'",
        "messages[0].content != 'be kind'",
        "messages[-1].tool_calls and not add_generation_prompt",
        "(messages | selectattr('role', 'equalto', 'user') | list | length) < 2",
    ],
)
@pytest.mark.parametrize("template", [CALLING, UNCLOSED, DROPPING])
def test_a_template_that_refuses_trials_is_asked_otherwise(tokenizer: Any, template: str, condition: str) -> None:
    template = "{{ tools | tojson if tools }}" + template
    expected = learned(tokenizer, template, *ASKED_TWICE, tools=(TOOL,))
    if CALLING not in template and condition.startswith("messages[-1].tool_calls"):  # nothing else ends as they do
        with pytest.raises(InputError, match="refuses to be asked how a turn ends"):
            learned(tokenizer, refusing(condition, template), *ASKED_TWICE, tools=(TOOL,))
        return
    if condition == "add_generation_prompt":  # then all that stands before words is their header
        expected = [piece.removeprefix("\n").removeprefix("<|message|>") for piece in expected]
    assert learned(tokenizer, refusing(condition, template), *ASKED_TWICE, tools=(TOOL,)) == expected


def test_a_template_that_refuses_all_trials_is_refused_by_name(tokenizer: Any) -> None:
    only = refusing(
        "messages | length != 2 or messages[1].content | length > 12 or 'answer' in messages[1].content", CHATML
    )
    with pytest.raises(InputError, match="refuses to be asked what it writes around an answer"):
        learned(tokenizer, only, user("hi"), said("yo"))
    unfollowed = refusing("messages[-1].role == 'tool'", UNCLOSED)
    with pytest.raises(InputError, match="refuses to be asked what follows a tool call"):
        learned(tokenizer, unfollowed, user("W?"), said("", tool_calls=[CALL]))


def test_a_template_of_its_own_for_tools_is_asked_with_tools(tokenizer: Any) -> None:
    chatty = with_template(tokenizer, "")
    calling = (user("W?"), said("", tool_calls=[CALL]), RESULT, said("It is 4 C."))
    expected = learned(tokenizer, CALLING, *calling, tools=(TOOL,))
    chatty.chat_template = {"rag": CHATML, "tool_use": CALLING}
    assert pieces(encode(Document(messages=calling, tools=(TOOL,)), chatty), chatty) == expected
    with pytest.raises(InputError, match="no default"):
        encode(Document(messages=calling[:1] + calling[3:]), chatty)
    chatty.chat_template = {"default": INST, "tool_use": CALLING}
    plain = Document(messages=(user("hi"), said("yo")))
    assert pieces(encode(plain, chatty), chatty) == [" yo</s>"]
    assert pieces(encode(Document(messages=calling, tools=(TOOL,)), chatty), chatty) == expected


# ------------------------------------------------------------------------------------- answers that stand several times

HINT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% if m.role == 'user' and not loop.last %} "
    "(hint: {{ messages[loop.index0 + 1].content }}){% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ALL = "{% for m in messages %} {{ m.role }}={{ m.content }};{% endfor %}"
EARLIER = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'user' and not loop.first %}"
    "(earlier: {{ messages[loop.index0 - 1].content }})\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
UNASKED = CHATML.partition("{% if add_generation_prompt %}")[0]


@pytest.mark.parametrize(
    "template",
    [
        "Gold: {{ messages[-1].content }}\n" + CHATML,
        "# {{ messages[-1].content | truncate(10) }}\n" + CHATML,
        f"Previously:{ALL}\n" + CHATML,
        HINT,
        CHATML + f"Summary:{ALL}",
        EARLIER,
        "Gold: {{ messages[-1].content }}\n" + UNASKED,
        f"Previously:{ALL}\n" + UNASKED,
        UNASKED + f"Summary:{ALL}",
    ],
)  # fmt: skip
def test_a_quotation_is_no_answer(tokenizer: Any, template: str) -> None:
    conversation = (user("hi"), said("yo"), user("more"), said("ok"))
    assert learned(tokenizer, template, *conversation) == ["yo<|im_end|>", "ok<|im_end|>"]
    same = (user("ok"), said("ok"), user("ok"), said("ok"))
    assert learned(tokenizer, template, *same) == ["ok<|im_end|>", "ok<|im_end|>"]


def test_quotations_of_calls_and_of_nothing_are_none(tokenizer: Any) -> None:
    listed = (
        "Calls:{% for m in messages %}{% for c in m.tool_calls or [] %} {{ c.function.name }}{% endfor %}{% endfor %}\n"
    )
    calling = (user("W?"), said("", tool_calls=[CALL]), RESULT, said("It is 4 C."))
    assert learned(tokenizer, listed + CALLING, *calling) == learned(tokenizer, CALLING, *calling)
    after = (
        "Log:{% for m in messages %} {{ m.content }}{% for c in m.tool_calls or [] %} {{ c.function.name }}"
        " {{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
    )
    unasked = CALLING.partition("{% if add_generation_prompt %}")[0]
    assert learned(tokenizer, unasked + after, *calling) == learned(tokenizer, CALLING, *calling)
    gold = "Gold: {{ messages[-1].content }}\n"
    assert learned(tokenizer, gold + CHATML, user("hi"), said("")) == ["<|im_end|>"]
    thinking = (user("hi"), said("<think>hm</think>yo"))
    assert learned(tokenizer, gold + THOUGHTLESS, *thinking) == ["yo<|end|>"]


def test_an_answer_in_two_places_that_look_alike_is_refused(tokenizer: Any) -> None:
    twice = CHATML.partition("{% if add_generation_prompt %}")
    with pytest.raises(InputError, match="writes an answer several times"):
        learned(tokenizer, twice[0] + twice[0] + twice[1] + twice[2], user("hi"), said("yo"))


# --------------------------------------------------------------------------------------------- headers are only read


@pytest.mark.parametrize(
    "header",
    [
        "{{ m.role }} {{ loop.index }}/{{ messages | length }}\n",
        "{{ m.role }}{{ ' name=' + m.name if m.name }}\n",
        "{{ m.name or m.role }}\n",
        "{{ m.role if loop.last else m.role + '_history' }}\n",
    ],
)
@pytest.mark.parametrize(
    "asks",
    [
        "<|im_start|>assistant\n",
        "<|im_start|>system\nBriefly.<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>assistant\nSure, ",
        "",
    ],
)
def test_a_header_that_nothing_tells_is_only_read(tokenizer: Any, header: str, asks: str) -> None:
    template = CHATML.replace("{{ m['role'] }}\n", header).replace("<|im_start|>assistant\n", asks)
    conversation = (user("hi"), said("yo", name="Bob"), user("more"), said("ok", name="Bob"))
    assert learned(tokenizer, template, *conversation) == ["yo<|im_end|>", "ok<|im_end|>"]
    calling = CALLING.replace("{{ m.role }}\n", header).replace("<|im_start|>assistant\n", asks)
    called = (user("W?"), said("", tool_calls=[CALL], name="Bob"), RESULT, said("It is 4 C.", name="Bob"))
    assert learned(tokenizer, calling, *called) == [
        f"{WRITTEN}<|im_end|>",
        "<think>\n\n</think>\n\nIt is 4 C.<|im_end|>",
    ]


def test_spaces_that_an_answer_begins_with_are_its_own_whatever_its_header(tokenizer: Any) -> None:
    named = CHATML.replace("{{ m['role'] }}", "{{ m.role }}{{ ' name=' + m.name if m.name }}")
    conversation = (user("hi"), said("  yo", name="Bob"), user("more"), said("  ok"))
    assert learned(tokenizer, named, *conversation) == ["  yo<|im_end|>", "  ok<|im_end|>"]
    stripping = named.replace("{{ m['content'] }}", "{{ m.content | trim }}")
    assert learned(tokenizer, stripping, *conversation) == ["yo<|im_end|>", "ok<|im_end|>"]


@pytest.mark.parametrize("change", [" | upper", " | lower", " | replace('answer', 'reply')"])
def test_a_template_that_changes_letters_can_be_asked(tokenizer: Any, change: str) -> None:
    template = CHATML.replace("m['content']", f"m['content']{change}")
    assert [piece.lower() for piece in learned(tokenizer, template, user("hi"), said("7"))] == ["7<|im_end|>"]


def test_turns_that_stand_in_another_order_are_found(tokenizer: Any) -> None:
    conversation = (user("hi"), said("yo"), user("more"), said("ok"))
    turned = CHATML.replace("in messages", "in messages | reverse")
    assert learned(tokenizer, turned, *conversation) == ["ok<|im_end|>", "yo<|im_end|>"]


def test_more_than_a_header_may_be_read_where_nothing_asks(tokenizer: Any) -> None:
    unasked = CHANNELS.partition("{% if add_generation_prompt %}")[0]
    document = Document(messages=(user("hi"), said("yo")))
    encoded = encode(document, with_template(tokenizer, unasked))
    assert HEADED in encoded.remarks
    assert pieces(encoded, tokenizer) == ["yo<|return|>"]
    assert not encode(document, with_template(tokenizer, UNASKED)).remarks


# ---------------------------------------------------------------------------------------------------- ends, and nothing


@pytest.mark.parametrize("nothing", ["", " ", "\n", "<think>only a thought</think>", "<think>only a thought</think>\n"])
@pytest.mark.parametrize(
    "template",
    [
        CHATML, UNCLOSED, INSTEAD, CHANNELS, PARTS, INST, THOUGHTLESS, UNASKED,
        CHATML.replace("{{ m['content'] }}", "{{ m.content.rstrip() }}"),
        CHATML.replace("{{ m['content'] }}", "{{ m.content.split('</think>')[-1].lstrip() }}"),
    ],
)  # fmt: skip
def test_the_end_of_nothing_is_learned(tokenizer: Any, template: str, nothing: str) -> None:
    end = {CHANNELS: "<|return|>", INSTEAD: "<|eot_id|>", UNCLOSED: "<|user|>", PARTS: "<end_of_utterance>",
           INST: "</s>", THOUGHTLESS: "<|end|>"}.get(template, "<|im_end|>")  # fmt: skip
    for conversation in ((user("q"), said(nothing)), (user("q"), said("yo"), user("r"), said(nothing))):
        chatty = with_template(tokenizer, template)
        encoded = encode(Document(messages=conversation), chatty)
        found = pieces(encoded, chatty)
        assert len(found) == len(conversation) // 2
        assert found[-1].endswith(end)
        assert "assistant" not in found[-1]
        if "</think>" not in nothing or template == THOUGHTLESS:
            assert EMPTY in encoded.remarks
            assert encoded.n_bytes == (2 if len(conversation) > 2 else 0)
    silent = (user("q"), said(nothing), user("r"), said("yo"))
    assert len(learned(tokenizer, template, *silent)) == 2


def test_nothing_that_has_no_place_is_refused(tokenizer: Any) -> None:
    last = CHATML.replace("in messages", "in messages[-2:]")
    with pytest.raises(InputError, match="where an answer without words would stand"):
        learned(tokenizer, last, user("q"), said(""), user("r"), said("yo"))
    assert learned(tokenizer, last, user("q"), said("", learn=False), user("r"), said("yo")) == ["yo<|im_end|>"]


def test_a_call_without_an_end_is_said(tokenizer: Any) -> None:
    endless = CALLING.replace(
        "<|im_end|>\n{% endfor %}{% if add", "{{ '' if m.tool_calls else '<|im_end|>' }}\n{% endfor %}{% if add"
    )
    assert endless != CALLING
    for conversation in ((user("W?"), said("", tool_calls=[CALL]), RESULT, said("It is 4 C.")),
                         (user("W?"), said("", tool_calls=[CALL]))):  # fmt: skip
        assert ENDLESS in encode(Document(messages=conversation), with_template(tokenizer, endless)).remarks
        for template in (CALLING, UNCLOSED, INSTEAD, DROPPING):
            encoded = encode(Document(messages=conversation), with_template(tokenizer, template))
            assert ENDLESS not in encoded.remarks


def test_a_header_that_takes_in_spaces_is_no_label(tokenizer: Any) -> None:
    from tokenizers import AddedToken

    chatty = with_template(
        tokenizer,
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    )
    chatty.add_tokens([AddedToken(f"<|{name}|>", rstrip=True, special=True) for name in ("user", "assistant", "end")])
    encoded = encode(Document(messages=(user("hi"), said("\n\n yo"), user("so"), said("ok"))), chatty)
    assert [piece.strip() for piece in pieces(encoded, chatty)] == ["yo<|end|>", "ok<|end|>"]
    assert SWALLOWED in encoded.remarks
    assert SWALLOWED not in encode(Document(messages=(user("hi"), said("yo"))), chatty).remarks


@pytest.mark.parametrize(
    ("when", "conversation", "writes"),
    [
        ("messages[0].role == 'system'", (SYSTEM, user("hi"), said("yo")), True),
        ("messages[0].role == 'system'", (user("hi"), said("yo")), False),
        ("messages | length > 2", (user("hi"), said("yo"), user("so"), said("ok")), True),
        ("messages | length > 2", (user("hi"), said("yo")), False),
    ],
)
def test_a_date_is_said_where_it_is_written(
    tokenizer: Any, when: str, conversation: tuple[dict[str, Any], ...], *, writes: bool
) -> None:
    chatty = with_template(tokenizer, "{% if " + when + " %}{{ strftime_now('%d %b %Y') }}{% endif %}" + CHATML)
    encoded = encode(Document(messages=conversation), chatty)
    assert (DATED.format("2024-07-26") in encoded.remarks) == writes
    assert template_facts(chatty)["date"] == "2024-07-26"  # it may write one in another conversation


def test_a_date_in_an_answer_is_said(tokenizer: Any) -> None:
    dated = CHATML.replace("<|im_end|>", "{{ strftime_now(' %Y') if m.role == 'assistant' }}<|im_end|>", 1)
    encoded = encode(Document(messages=(user("hi"), said("yo"))), with_template(tokenizer, dated))
    assert DATED.format("2024-07-26") in encoded.remarks
    assert pieces(encoded, tokenizer) == ["yo 2024<|im_end|>"]


def test_a_second_thought_is_said(tokenizer: Any) -> None:
    encoded = encode(
        Document(messages=(user("q"), said("<think>a</think>b<think>c</think>d"))), with_template(tokenizer, CHATML)
    )
    assert SECOND_THOUGHT in encoded.remarks
    assert pieces(encoded, tokenizer) == ["<think>a</think>b<think>c</think>d<|im_end|>"]


def test_a_call_of_which_a_part_is_written_is_refused_for_the_rest(tokenizer: Any) -> None:
    nameless = CHATML.replace(
        "{{ m['content'] }}",
        "{{ m.content }}{% for c in m.tool_calls or [] %}{% for k, v in c.function.arguments.items() %}"
        "<{{ k }}>{{ v }}</{{ k }}>{% endfor %}{% endfor %}",
    )
    calling = (user("W?"), said("", tool_calls=[CALL]), RESULT, said("It is 4 C."))
    with pytest.raises(InputError, match="writes a tool call without the name of its function"):
        learned(tokenizer, nameless, *calling)
    with pytest.raises(InputError, match="leaves out arguments of a tool call"):
        learned(tokenizer, INSTEAD.replace("{{ m.tool_calls[0].function.arguments | tojson }}}", "}"), *calling)


@pytest.mark.parametrize("role", ["developer", "ipython", "context"])
def test_a_message_of_which_nothing_is_written_is_said(tokenizer: Any, role: str) -> None:
    """Qwen2.5's template knows four roles: an answer is learned without what it answers to."""
    known = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role in ('user', 'assistant') %}")
    assert known != CHATML
    messages = (user("what is it"), {"role": role, "content": "it is a cat"}, said("a cat"))
    dropped = DROPPED_MESSAGE.format(role)
    encoded = encode(Document(messages=messages), with_template(tokenizer, known))
    assert dropped in encoded.remarks
    assert dropped not in encode(Document(messages=messages), with_template(tokenizer, CHATML)).remarks
    assert dropped not in encode(Document(messages=messages[::2]), with_template(tokenizer, known)).remarks


# ------------------------------------------------------------------- what others said, and other turns, are no label


def turns(
    assistant: str = "{{ c }}{{ end }}\n",
    user: str = "{{ c }}{{ end }}\n",
    *,
    header: str = "",
    before: str = "",
    asks: str = "",
    end: str = "<|im_end|>",
) -> str:
    """A template in which a turn may look at those before it: ``a`` is the last answer, ``u`` the last question."""
    return (
        f"{{% set end = '{end}' %}}{{% set n = namespace(a='', u='', silent=false, answers=0) %}}"
        f"{before}{{% for m in messages %}}{{% set c = m.content.split('</think>')[-1] | trim %}}"
        f"<|im_start|>{{{{ m.role }}}}\n{{% if m.role == 'assistant' %}}{header}{assistant}"
        "{% set n.a = c %}{% set n.silent = not c %}{% if c %}{% set n.answers = n.answers + 1 %}{% endif %}"
        f"{{% else %}}{user}{{% set n.u = c %}}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}<|im_start|>assistant\n{asks}{{% endif %}}"
    )


QUOTED = "{% if n.a %}(before: {{ n.a }})\n{% endif %}"
IF_WORDS = turns("{{ c }}{% if c %}{{ end }}{% endif %}\n")
LEAVES_OUT = CHATML.replace("in messages %}", "in messages if m.content.split('</think>')[-1].strip() %}")
SILENT = (
    "{% for m in messages if not m.content.split('</think>')[-1].strip() %}<|im_start|>system\nSome are silent."
    "<|im_end|>\n{% endfor %}"
)


@pytest.mark.parametrize("nothing", ["", " \n", "<think>hm</think>"])
@pytest.mark.parametrize(
    ("template", "ends"),
    [
        (turns(user="{% if n.a %}> {{ n.a }}\n{% endif %}{{ c }}{{ end }}\n"), True),
        (turns(user="{% if n.silent %}(no reply)\n{% endif %}{{ c }}{{ end }}\n"), True),
        (turns(user="{{ n.answers }}: {{ c }}{{ end }}\n"), True),
        (turns(user="> {{ n.a }}\n{{ c }}{{ end }}\n"), True),
        (turns(header=QUOTED, asks=QUOTED), True),
        (IF_WORDS, False),
        (LEAVES_OUT, False),
        (SILENT + CHATML.replace("{{ m['content'] }}", "{{ m.content.split('</think>')[-1] }}"), False),
    ],
)
def test_nothing_ends_before_the_next_turn_whatever_follows(
    tokenizer: Any, template: str, nothing: str, *, ends: bool
) -> None:
    for later in ((), (user("third"), said(nothing), user("fourth"), said("ok"))):
        conversation = (user("first"), said(nothing), user("second"), said("yo"), *later)
        chatty = with_template(tokenizer, template)
        encoded = encode(Document(messages=conversation), chatty)
        found = [piece.strip() for piece in pieces(encoded, chatty)]
        words = [piece for piece in found if piece not in ("", "<|im_end|>")]
        assert words == ["yo<|im_end|>", "ok<|im_end|>"][: len(words)]
        assert len(words) == (2 if later else 1)
        assert found.count("<|im_end|>") == (len(found) - len(words) if ends else 0)
        assert (NOWHERE in encoded.remarks) == (not ends)
        if ends:
            assert len(found) == len(conversation) // 2
            assert EMPTY in encoded.remarks
        unlearned = tuple({**m, "learn": False} if m["content"] == nothing else m for m in conversation)
        assert [piece.strip() for piece in learned(tokenizer, template, *unlearned)] == words


@pytest.mark.parametrize("asks", [QUOTED, ""])
@pytest.mark.parametrize("answers", [("yo", "ok", "so"), ("yo", "yo", "yo"), ("  yo", "more", "  more")])
def test_an_answer_that_a_later_header_quotes_is_learned_in_its_own_turn(
    tokenizer: Any, asks: str, answers: tuple[str, ...]
) -> None:
    conversation = [m for n, answer in enumerate(answers) for m in (user(["hi", "more", "last"][n]), said(answer))]
    chatty = with_template(tokenizer, turns(header=QUOTED, asks=asks))
    encoded = encode(Document(messages=tuple(conversation)), chatty)
    assert pieces(encoded, chatty) == [f"{answer.strip()}<|im_end|>" for answer in answers]
    assert encoded.n_bytes == sum(len(answer.strip()) for answer in answers)
    ids, kinds = list(encoded.ids), list(encoded.loss_mask)
    first = next(i for i, kind in enumerate(kinds) if kind)
    assert chatty.decode(ids[:first]).endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize(
    "note",
    [
        "<ctx>{{ messages[0].content }}</ctx>",
        "[re {{ n.u }}]",
        "<|meta|>{{ n.u }}<|/meta|>",
        "<|sep|>",
        "<echo>{{ c }}</echo>",
        "{{ '\n' }}<|im_start|>meta\n{{ messages[0].content }}<|im_end|>",
        "{{ bos_token }}",
    ],
)
@pytest.mark.parametrize("answers", [("yo", "ok"), ("", "ok"), ("yo <|im_end|> yo", "ok")])
def test_a_note_behind_the_end_is_only_read(tokenizer: Any, note: str, answers: tuple[str, ...]) -> None:
    chatty = with_template(tokenizer, turns("{{ c }}{{ end }}" + note + "\n"))
    chatty.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    for system in ((), ({"role": "system", "content": "secret"},)):
        conversation = (*system, user("first"), said(answers[0]), user("second"), said(answers[1]))
        encoded = encode(Document(messages=conversation), chatty)
        assert pieces(encoded, chatty) == [f"{answer}<|im_end|>" for answer in answers]


def test_what_a_turn_quotes_between_its_words_and_its_end_is_only_read(tokenizer: Any) -> None:
    chatty = with_template(tokenizer, turns("{{ c }} (to: {{ messages[0].content }}){{ end }}\n"))
    encoded = encode(Document(messages=(user("first"), said("yo"), user("second"), said("ok"))), chatty)
    assert "first" not in "".join(pieces(encoded, chatty))
    assert pieces(encoded, chatty, (WORDS,)) == ["yo", "ok"]
    assert "".join(pieces(encoded, chatty)).count("<|im_end|>") == 2


@pytest.mark.parametrize("opening", ["<|im_start|>", "<|start_header_id|>"])
@pytest.mark.parametrize("answer", ["yo", "", "  yo  "])
def test_the_mark_that_opens_any_turn_ends_none(tokenizer: Any, opening: str, answer: str) -> None:
    template = turns("{{ m.content }}{% if loop.last %}{{ end }}{% endif %}\n").replace("<|im_start|>", opening)
    chatty = with_template(tokenizer, template)
    encoded = encode(Document(messages=(user("first"), said(answer), user("second"), said("ok"))), chatty)
    assert pieces(encoded, chatty) == [*([answer] if answer else []), "ok<|im_end|>"]
    assert ENDLESS in encoded.remarks or not answer


def test_an_answer_that_holds_the_end_is_learned_whole_where_it_stands_twice(tokenizer: Any) -> None:
    template = turns("{{ c }}<|sep|>{{ c }}{{ end }}\n")
    for answer in ("yo", "a <|im_end|> b"):
        assert learned(tokenizer, template, user("hi"), said(answer)) == [f"{answer}<|sep|>{answer}<|im_end|>"]


def test_spaces_belong_to_an_answer_in_a_template_that_begins_with_the_newest(tokenizer: Any) -> None:
    newest = CHATML.replace("in messages", "in messages | reverse")
    conversation = (user("hi"), said("  yo"), user("more"), said("\n\nok"))
    assert learned(tokenizer, newest, *conversation) == ["\n\nok<|im_end|>", "  yo<|im_end|>"]


def test_an_answer_in_the_place_of_a_question_is_refused(tokenizer: Any) -> None:
    paired = (
        "{% for pair in messages | batch(2) %}<|user|>{{ pair[0].content }}<|assistant|>"
        "{% if pair | length > 1 %}{{ pair[1].content }}<|end|>{% endif %}{% endfor %}"
    )
    conversation = (user("hi"), said("yo"), user("more"), said("ok"))
    assert learned(tokenizer, paired, *conversation) == ["yo<|end|>", "ok<|end|>"]
    with pytest.raises(InputError, match="writes an answer of this conversation where a question stands"):
        learned(tokenizer, paired, SYSTEM, *conversation)


def test_a_plain_end_between_bars_is_an_end(tokenizer: Any) -> None:
    bars = "{% for m in messages %}[|{{ m.role }}|]{{ m.content }}[|endofturn|]\n{% endfor %}"
    chatty = with_template(tokenizer, bars + "{% if add_generation_prompt %}[|assistant|]{% endif %}")
    encoded = encode(Document(messages=(user("hi"), said("yo"))), chatty)
    assert pieces(encoded, chatty) == ["yo[|endofturn|]"]
    assert ENDLESS not in encoded.remarks


def test_nobody_is_told_of_exceptions_that_are_not_raised(tokenizer: Any) -> None:
    last = CHATML.replace("in messages", "in messages[-2:]")
    with pytest.raises(InputError, match="does not show where an answer without words would stand") as caught:
        learned(tokenizer, last, user("q"), said(""), user("r"), said("yo"))
    assert "exception" not in str(caught.value.fix)


def test_a_turn_behind_the_next_one_is_doubted(tokenizer: Any) -> None:
    """The conversations that would tell the copies apart are refused, and a quotation looks more like a turn."""
    odd = refusing("messages | length in (3, 4) and messages[0].name == 'Ann'", turns(header=QUOTED))
    conversation = ({**user("hi"), "name": "Ann"}, said("yo"), user("more"), said("ok"), user("last"), said("so"))
    with pytest.raises(InputError, match="writes an answer several times"):
        learned(tokenizer, odd, *conversation)
    assert learned(tokenizer, turns(header=QUOTED), *conversation) == ["yo<|im_end|>", "ok<|im_end|>", "so<|im_end|>"]
