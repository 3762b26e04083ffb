"""Where turns begin and end beside turns without words, in the wrong place, or in a row; and several thoughts."""

from __future__ import annotations

import re
from random import Random
from typing import Any

import pytest

from limbeck.data.chat.answers import find_answers
from limbeck.data.chat.encode import WORDS, encode, writes_thoughts
from limbeck.data.chat.templates import Template
from limbeck.data.chat.turns.remarks import DOUBLED_THOUGHTS, DROPPED_PART, DROPPED_THOUGHTS, ENDLESS, SECOND_THOUGHT
from limbeck.data.chat.turns.surroundings import headers, surroundings_of
from limbeck.data.documents.document import Document
from limbeck.errors import InputError
from tests.unit.test_chat import (
    CALL,
    CALLING,
    CHANNELS,
    CHATML,
    INST,
    INSTEAD,
    OWN_FIELD,
    PARTS,
    SYSTEM,
    THOUGHTLESS,
    TOOL,
    UNCLOSED,
    learned,
    pieces,
    said,
    user,
    with_template,
)

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
        (OTHER_END.replace("m.content | trim", "m.content or 'none'"), f"{LLAMA_CALL}<|eom_id|>", "ok<|eot_id|>"),
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


# As Llama 3.1 does it with tools: the first message is the end of a question, whoever says it.
FIRST = (
    "{% set system = '' %}{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set messages = messages[1:] %}{% endif %}HEADER(system){{ system }}END"
    "{% if tools %}HEADER(user){% for t in tools %}{{ t | tojson }}{{ '\n\n' }}{% endfor %}"
    "{{ messages[0].content | trim }}END{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}HEADER(user){% else %}HEADER(assistant){% endif %}"
    "{{ m.content | trim }}END{% endfor %}{% if add_generation_prompt %}HEADER(assistant){% endif %}"
)
LLAMA_HEADER = "{{ '<|start_header_id|>ROLE<|end_header_id|>\n\n' }}"
STYLES = [(LLAMA_HEADER, "<|eot_id|>"), ("<|im_start|>ROLE{{ '\n' }}", "<|im_end|>"), ("<|ROLE|>", "</s>"),
          ("### ROLE:{{ '\n' }}", "</s>{{ '\n\n' }}")]  # fmt: skip


def styled(template: str, header: str, end: str) -> str:
    for role in ("system", "user", "assistant"):
        template = template.replace(f"HEADER({role})", header.replace("ROLE", role))
    return template.replace("END", end)


FOLDED = FIRST.replace("{% if tools %}", "{% if messages[0].role == 'assistant' %}").replace(
    "{% for t in tools %}{{ t | tojson }}{{ '\n\n' }}{% endfor %}", "(you said) "
)
# The first message is told to the model as its instructions, whoever says it.
INSTRUCTIONS = (
    "HEADER(system){{ messages[0].content }}END{% for m in messages[1:] %}{% if m.role == 'user' %}HEADER(user)"
    "{% else %}HEADER(assistant){% endif %}{{ m.content }}END{% endfor %}"
    "{% if add_generation_prompt %}HEADER(assistant){% endif %}"
)


@pytest.mark.parametrize("greeting", ["Welcome!", " ", "<think>so</think>Welcome!"])
@pytest.mark.parametrize(("header", "end"), STYLES)
def test_an_answer_that_a_template_folds_into_another_turn_is_refused(
    tokenizer: Any, header: str, end: str, greeting: str
) -> None:
    for template, tools, systems in (
        (FIRST, (TOOL,), ((), (SYSTEM,))),
        (FOLDED, (), ((), (SYSTEM,))),
        (INSTRUCTIONS, (), ((),)),
    ):
        chatty = styled(template, header, end)
        for system in systems:
            conversation = (*system, said(greeting), user("hi"), said("yo"))
            with pytest.raises(InputError, match="writes an answer of this conversation where"):
                learned(tokenizer, chatty, *conversation, tools=tools)
            found = learned(tokenizer, chatty, *(system or (SYSTEM,)), user("hi"), said("yo"), tools=tools)
            assert [piece.strip() for piece in found] == [f"yo{end[:4]}" if end[:4] == "</s>" else f"yo{end}"]
            unfolded = learned(tokenizer, styled(FIRST, header, end), *system, said("Welcome!"), user("hi"), said("yo"))
            assert [piece.partition("<")[0] for piece in unfolded] == ["Welcome!", "yo"]


@pytest.mark.parametrize(
    "template", [CHATML, CALLING, UNCLOSED, INSTEAD, PARTS, "<|im_start|>system\n.<|im_end|>" + CHATML]
)
@pytest.mark.parametrize("system", [(), (SYSTEM,)])
def test_an_answer_before_any_question_is_learned_in_its_own_turn(tokenizer: Any, template: str, system: Any) -> None:
    system = system if template != UNCLOSED else ()  # it knows no system
    found = learned(tokenizer, template, *system, said("Welcome"), user("hi"), said("yo"))
    assert ["Welcome" in found[0], "yo" in found[1], len(found)] == [True, True, 2]
    assert not any("user" in piece.replace("<|user|>", "") or "assistant" in piece for piece in found)


# ------------------------------------------------------------------------------------------------ several thoughts

# The first of several thoughts is written, or the last one; or the text before it too.
LAST_THOUGHT = CALLING.replace("split('</think>')[0].split", "split('</think>')[-2].split")
ANSWER_ALONE = CALLING.replace(" and (loop.last or thought)", " and false")
# A thought is always written, and always an empty one; the content as it is, or without thoughts.
EMPTY_THOUGHT = CHATML.replace(
    "{{ m['role'] }}\n", "{{ m['role'] }}\n{{ '<think>\n\n</think>\n\n' if m.role == 'assistant' }}"
)
EMPTY_THOUGHT_ALONE = EMPTY_THOUGHT.replace("{{ m['content'] }}", "{{ m.content.split('</think>')[-1] | trim }}")


@pytest.mark.parametrize("where", ["last", "earlier"])
@pytest.mark.parametrize(
    "answer",
    [
        "<think>\nalpha\n</think>\n\n<think>\nbeta\n</think>\n\nyo",
        "<think>alpha</think>gamma<think>beta</think>yo",
        "<think></think><think>beta</think>yo",
        "<think>\n\n</think>\n\n<think>beta</think>yo",
        "<think>alpha</think><think>beta</think><think>delta</think>yo",
        "<think>alpha</think>yo</think>yo",
        "gamma<think>alpha</think>yo",
        "<think>gamma<think>alpha</think>yo",
        "gamma<think>alpha</think>delta<think>beta</think>yo",
    ],
)
@pytest.mark.parametrize(
    "template",
    [CHATML, CALLING, LAST_THOUGHT, ANSWER_ALONE, THOUGHTLESS, EMPTY_THOUGHT, EMPTY_THOUGHT_ALONE],
)
def test_several_thoughts_are_written_as_the_template_does_or_said(
    tokenizer: Any, template: str, answer: str, where: str
) -> None:
    later = (user("more"), said("ok")) if where == "earlier" else ()
    messages = (user("hi"), said(answer), *later)
    chatty = with_template(tokenizer, template)
    own = chatty.apply_chat_template(list(messages), tokenize=False)
    encoded = encode(Document(messages=messages), chatty)
    assert chatty.decode(encoded.ids) == own
    found = pieces(encoded, chatty)
    assert len(found) == len(messages) // 2
    assert "yo<|" in found[0]
    assert found[0].removeprefix("<think>\n") in own
    written = own.partition("more")[0]
    words = "".join(pieces(encoded, chatty, (WORDS,)))
    for word in ("alpha", "beta", "gamma", "delta"):
        assert (word in found[0]) == (word in written)
        assert (word in words) == (word in written)
        if word in answer and word not in written:
            assert encoded.remarks & {DROPPED_PART, DROPPED_THOUGHTS}
    if all(word in written for word in ("alpha", "beta") if word in answer) and answer.count("</think>") > 1:
        assert encoded.remarks & {SECOND_THOUGHT, DROPPED_PART}


@pytest.mark.parametrize("empty", ["<think>\n\n</think>\n\n", "<think></think>\n", "<think></think>"])
def test_thoughts_behind_an_empty_one_are_learned_where_the_template_leaves_them(tokenizer: Any, empty: str) -> None:
    template = EMPTY_THOUGHT.replace("'<think>\n\n</think>\n\n'", repr(empty))
    chatty = with_template(tokenizer, template)
    thought = "<think>\nadd\n</think>\n\nfour"
    for later in ((), (user("more"), said("ok"))):
        encoded = encode(Document(messages=(user("2+2?"), said(thought), *later)), chatty)
        assert pieces(encoded, chatty)[0] == f"{empty}{thought}<|im_end|>"
        assert encoded.n_bytes == len("add" + "four") + (2 if later else 0)
        assert encoded.remarks == {DOUBLED_THOUGHTS}
    plain = encode(Document(messages=(user("2+2?"), said("four"))), chatty)
    assert pieces(plain, chatty) == [f"{empty}four<|im_end|>"]
    assert not plain.remarks


@pytest.mark.parametrize("where", ["last", "earlier"])
def test_thoughts_are_written_beside_where_the_template_reads_them_there(tokenizer: Any, where: str) -> None:
    later = (user("more"), said("ok")) if where == "earlier" else ()
    chatty = with_template(tokenizer, OWN_FIELD)
    encoded = encode(Document(messages=(user("hi"), said("<think>alpha</think>yo"), *later)), chatty)
    assert pieces(encoded, chatty)[0] == "alpha\n</think>\n\nyo<|im_end|>"
    assert not encoded.remarks
    twice = encode(Document(messages=(user("hi"), said("<think>a</think>b<think>c</think>yo"), *later)), chatty)
    assert pieces(twice, chatty)[0] == "a\n</think>\n\nb<think>c</think>yo<|im_end|>"
    assert SECOND_THOUGHT in twice.remarks
    before = encode(Document(messages=(user("hi"), said("b<think>c</think>yo"), *later)), chatty)
    assert pieces(before, chatty)[0] == "\n</think>\n\nb<think>c</think>yo<|im_end|>"
    both = (said("<think>a</think>yo"), user("and"), said("b<think>c</think>yo"), *later)
    assert pieces(encode(Document(messages=(user("hi"), *both)), chatty), chatty)[:2] == [
        "a\n</think>\n\nyo<|im_end|>",
        "\n</think>\n\nb<think>c</think>yo<|im_end|>",
    ]
    earlier_left_out = OWN_FIELD.replace(
        "m.reasoning_content or ''", "(m.reasoning_content or '') if loop.last else ''"
    )
    chatty = with_template(tokenizer, earlier_left_out)
    encoded = encode(Document(messages=(user("hi"), said("<think>alpha</think>yo"), *later)), chatty)
    assert pieces(encoded, chatty)[0] == f"{'' if later else 'alpha'}\n</think>\n\nyo<|im_end|>"


def test_a_template_that_wants_a_system_message_is_asked_for_thoughts_with_one(tokenizer: Any) -> None:
    strict = "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}"
    assert writes_thoughts(with_template(tokenizer, strict + OWN_FIELD))
    assert not writes_thoughts(with_template(tokenizer, strict + CHATML))


# ------------------------------------------------------------------------------------------------ answers in a row


@pytest.mark.parametrize("asks", ["{% if add_generation_prompt %}HEADER(assistant){% endif %}", ""])
@pytest.mark.parametrize(
    ("own", "other", "end"),
    [
        ("### Assistant:{{ '\n' }}", "### User:{{ '\n' }}", "{{ '\n\n' if not loop.last }}"),
        ("### Assistant:{{ '\n' }}", "### User:{{ '\n' }}", "{{ '\n\n' }}"),
        ("ASSISTANT: ", "USER: ", "{{ '\n' }}"),
        ("ASSISTANT: ", "USER: ", " "),
        ("ASSISTANT: ", "USER: ", "{{ '\n---\n' }}"),
        ("ASSISTANT: ", "USER: ", "{{ '\nEND\n' }}"),
        ("{{ m.name or 'ASSISTANT' }}: ", "USER: ", "{{ '\n' }}"),
        ("Answer {{ loop.index }}: ", "Question {{ loop.index }}: ", "{{ '\n' }}"),
        ("<assistant>", "<user>", "{{ '\n' }}"),
        ("<|assistant|>{{ '\n' }}", "<|user|>{{ '\n' }}", ""),
        ("[BOT] ", "[USER] ", " "),
        ("<|im_start|>assistant{{ '\n' }}", "<|im_start|>user{{ '\n' }}", "<|im_end|>{{ '\n' }}"),
    ],
)
def test_no_header_is_learned_of_answers_in_a_row(tokenizer: Any, own: str, other: str, end: str, asks: str) -> None:
    header = own.replace("{{ m.name or 'ASSISTANT' }}", "ASSISTANT").replace("{{ loop.index }}", "0")
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}" + other + "{% else %}" + own + "{% endif %}{{ m.content }}"
        + end + "{% endfor %}" + asks.replace("HEADER(assistant)", header)
    )  # fmt: skip
    chatty = with_template(tokenizer, template)
    marks = re.compile(r"assistant|BOT|Answer|###|Bob|Ann|USER:", re.IGNORECASE)
    for names in ((None, None), ("Bob", "Ann")):
        named = [{"name": name} if name else {} for name in names]
        first, second = said("one", **named[0]), said("two", **named[1])
        for messages, words in (
            ((user("q"), first, second), ["one", "two"]),
            ((user("q"), first, second, user("r"), said("three")), ["one", "two", "three"]),
            ((user("q"), first, second, said("three"), user("r"), said("four")), ["one", "two", "three", "four"]),
            ((user("q"), first, said("", learn=False), second), ["one", "two"]),
            ((user("q"), said("one", learn=False), second), ["two"]),
        ):
            encoded = encode(Document(messages=messages), chatty)
            assert [piece.strip() for piece in pieces(encoded, chatty, (WORDS,))] == words
            labels = pieces(encoded, chatty)
            assert not marks.search("".join(labels)), labels
            assert [piece.split()[0].partition("<")[0] for piece in labels] == words
            assert ("im_end" in end) != (ENDLESS in encoded.remarks) or own.startswith("<|a")


@pytest.mark.parametrize("between", ["{{ '\n\n' }}", "{{ '\n' }}", " "])
def test_what_is_written_between_two_messages_of_one_turn_is_learned_where_it_is_blank(
    tokenizer: Any, between: str
) -> None:
    merging = (
        "{% for m in messages %}{% if loop.first or m.role != messages[loop.index0 - 1].role %}"
        "### {{ m.role }}:\n{% else %}" + between + "{% endif %}{{ m.content }}"
        "{% if loop.last or m.role != messages[loop.index0 + 1].role %}</s>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}### assistant:\n{% endif %}"
    )
    space = between.strip("{ '}").replace("\\n", "\n") or " "
    conversation = (user("hi"), said("One"), said("Two"), user("so"), said("ok"))
    assert "".join(learned(tokenizer, merging, *conversation)) == f"One{space}Two</s>ok</s>"


# -------------------------------------------------------------------------------------------- spaces before answers

# As Mistral's third one does it: system and tools stand in the last question.
LATE_SYSTEM = (
    "{% set system = messages[0].content if messages[0].role == 'system' %}"
    "{% set asked = messages | selectattr('role', 'eq', 'user') | list %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% if m == asked[-1] and tools %}"
    "[TOOLS]{{ tools | tojson }}[/TOOLS]{% endif %}"
    "[INST] {{ system + '\n\n' if system and loop.last }}{{ m.content }}[/INST]"
    "{% elif m.role == 'tool' %}[RESULT] {{ m.content }}[/RESULT]"
    "{% elif m.tool_calls %}[CALLS] [{{ m.tool_calls[0].function | tojson }}]</s>"
    "{% elif m.role == 'assistant' %} {{ m.content | trim }}</s>{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("lead", [" ", "\n"])
@pytest.mark.parametrize("answer", ["yo", "  yo", "<think>so</think>yo"])
@pytest.mark.parametrize("keeps", [False, True])
def test_spaces_before_an_answer_are_learned_whatever_stands_before(
    tokenizer: Any, answer: str, lead: str, *, keeps: bool
) -> None:
    template = LATE_SYSTEM.replace("%} {{ m.content | trim", "%}{{ lead }}{{ m.content | trim")
    template = f"{{% set lead = {lead!r} %}}" + (
        template.replace("m.content | trim", "m.content") if keeps else template
    )
    spoken = answer if keeps else answer.strip()
    result = {"role": "tool", "tool_call_id": "c1", "content": "4 C"}
    for before in ((), (SYSTEM,)):
        for after in ((), (user("more"),), (user("more"), said("ok"))):
            for asked in (
                (user("hello"),),
                (),
                (user("hello"), said("well")),
                (user("W?"), said("", tool_calls=[CALL]), result),
            ):
                for tools in ((), (TOOL,)) if asked or after else ((),):
                    messages = (*before, *asked, said(answer), *after)
                    found = "".join(learned(tokenizer, template, *messages, tools=tools))
                    assert f"{lead}{spoken}</s>" in found, messages
                    assert found.count(lead + "ok</s>") == (len(after) == 2)
                    assert not re.search(r"INST|RESULT|hello|more|TOOLS", found)


# --------------------------------------------------------------------------------------------- turns in any order


def in_any_order(random: Random) -> Document:
    """Turns in an order that nobody asked for, some of them blank: Q, R and S are read, A is to be learned, N not."""
    messages: list[dict[str, Any]] = []
    for n in range(random.randint(2, 7)):
        is_blank, kind = random.random() < 0.15, random.random()
        call = {**CALL, "id": "c12345678", "function": {"name": "weather", "arguments": {"city": f"Z{n}z"}}}
        result = {"role": "tool", "tool_call_id": "c12345678", "content": "" if is_blank else f"R{n}r"}
        if n == 0 and random.random() < 0.3:
            messages.append({"role": "system", "content": "" if is_blank else f"S{n}s"})
        elif kind < 0.4:
            messages.append(user(random.choice(["", " "]) if is_blank else f"Q{n}q"))
        elif kind < 0.55:
            messages += [said("", tool_calls=[call]), *([result] if kind < 0.5 else [])]
        else:
            thought = f"<think>T{n}t</think>" if random.random() < 0.2 else ""
            masked = {"learn": False} if random.random() < 0.1 else {}
            messages.append(said("" if is_blank else f"{thought}{'N' if masked else 'A'}{n}a", **masked))
    called = any(message.get("tool_calls") for message in messages)
    return Document(messages=(*messages, said("A9a")), tools=(TOOL,) if called else ())


def check_labels(document: Document, template: Template) -> bool:
    """Whether the conversation is read; then every answer is learned in its turn, and no header with it."""
    try:
        found = find_answers(document, template)
    except InputError:
        return False
    labels = [found.text[answer.start : answer.end] for answer in found.answers]
    joined = "\0".join(labels)
    said_by_it = " ".join(m["content"] for m in document.messages if m["role"] == "assistant")
    assert not re.search(r"[QRS]\d[qrs]|N\da", joined), (document.messages, labels)
    assert re.findall(r"A\da", joined) == re.findall(r"A\da", said_by_it), (document.messages, labels)
    asks = [header.strip() for header in headers(surroundings_of(template, document.messages, document.tools))]
    for label in labels:
        assert len(re.findall(r"A\da", label)) <= 1, (document.messages, labels)
        assert not any(header in label for header in asks), (document.messages, labels)
    return True


@pytest.mark.parametrize(
    "template",
    [
        CHATML, CALLING, UNCLOSED, INSTEAD, OTHER_END, OTHER_END_XML, CHANNELS, PARTS, INST, THOUGHTLESS, OWN_FIELD,
        LATE_SYSTEM, EMPTY_THOUGHT, *(styled(FIRST, *style) for style in STYLES),
        *(styled(FIRST, header, "{{ '\n\n' }}") for header, _ in STYLES),
    ],
)  # fmt: skip
def test_turns_in_any_order(tokenizer: Any, template: str) -> None:
    asked = Template(with_template(tokenizer, template))
    random = Random(template)
    assert sum(check_labels(in_any_order(random), asked) for _ in range(30)) >= 10
