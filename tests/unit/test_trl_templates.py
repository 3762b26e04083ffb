"""Real chat templates, and what TRL says is learned of them.

TRL's wheel carries templates as models ship them, and of many a variant with ``{% generation %}`` around what is to be
learned. Those variants are written by hand, so they are an oracle for the one mechanism that finds answers here. Where
the two differ, ``DIFFERENCES`` says why.
"""

from __future__ import annotations

import importlib.util
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from limbeck.data.chat.answers import Rendered, find_answers
from limbeck.data.chat.encode import encode, template_facts
from limbeck.data.chat.templates import Template, in_parts
from limbeck.data.documents.document import Document
from limbeck.data.documents.rows import RowReader, Seen
from limbeck.errors import InputError
from limbeck.recipe import Columns
from tests.unit.test_chat_turns import check_labels, in_any_order

pytestmark = pytest.mark.slow

_TRL = importlib.util.find_spec("trl")  # found, not imported
FOLDER = Path(str(_TRL.origin)).parent / "chat_templates" if _TRL else None
NAMES = sorted(path.stem for path in (FOLDER.glob("*.jinja") if FOLDER else ()) if not path.stem.endswith("_training"))

ARGUMENTS = {"city": "Oslo", "days": 2}
CALL = {"id": "c1abcdefg", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
RESULT = {"role": "tool", "tool_call_id": "c1abcdefg", "name": "weather", "content": "4 C"}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "How it is outside",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "where"}}},
    },
}


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def said(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


CONVERSATIONS: dict[str, Document] = {
    "plain": Document(messages=(user("salve"), said("yo"), user("more"), said("ok"))),
    "system": Document(
        messages=({"role": "system", "content": "be kind"}, user("salve"), said(" yo \n"), user("so"), said("d"))
    ),
    "inline": Document(
        messages=(
            user("2+2?"), said("<think>\nadd\n</think>\n\nfour"),
            user("3+3?"), said("<think>\nadd more\n</think>\n\nsix"),
        )
    ),
    "reasoning": Document(
        messages=(
            user("2+2?"), said("four", reasoning_content="add"), user("3+3?"), said("six", reasoning_content="add more")
        )
    ),
    "call beside text": Document(
        messages=(user("W?"), said("Let me look.", tool_calls=[CALL]), RESULT, said("It is 4 C.")), tools=(TOOL,)
    ),
    "call": Document(
        messages=(user("W?"), said("", tool_calls=[CALL]), RESULT, said("It is 4 C."), user("thanks"), said("sure")),
        tools=(TOOL,),
    ),
    "call at the end": Document(messages=(user("W?"), said("", tool_calls=[CALL])), tools=(TOOL,)),
}  # fmt: skip

Normaliser = Callable[[list[str]], list[str]]


def _each(pattern: str, by: str = "") -> Normaliser:
    return lambda found: [re.sub(pattern, by, piece, flags=re.DOTALL) for piece in found]


def _joined(found: list[str]) -> list[str]:
    return ["".join(found)]


NEWLINE = _each(r"\s+\Z")
"""A newline after the token that ends a turn is no label here: the model has stopped before it."""

HEADERS = {
    "deepseek_r1_distill": r"\A<｜Assistant｜>",
    "deepseekv3": r"\A<｜Assistant｜>",
    "gptoss": r"\A<\|start\|>assistant",
    "muse_glimmer": r"\A<\|start\|>assistant",
    "qwen2_5": r"\A\n",
}
"""TRL marks the header, or a part of it, in these; the model is asked with it."""

ALWAYS_THINKS = ("qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6", "qwen3_8", "deepseek_r1_distill",
                 "nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra", "nemotron_3_5_lightning")  # fmt: skip
"""TRL's variant writes a thought, if an empty one, in every turn; the template itself takes earlier ones out, or its
prompt has begun the thought already."""

SPLIT = ("phi3", "phi3_5", "diffusion_gemma")
"""TRL's marks come in several pieces for one turn."""

EOS_AFTER = ("phi3", "phi3_5")
"""TRL marks the EOS token after the last turn too; the model has stopped at the end of its turn."""

RESPONSE = ("diffusion_gemma",)
"""A model stops at the mark that begins a tool's response; TRL leaves it out."""


OTHER_TEXT = {("gptoss", "call beside text"), ("qwen3_8", "inline")}
"""TRL's variant writes the text beside a call as a thought, of which the template writes nothing; and it is given
thoughts inside the content, which the template wants beside it."""


def _thoughtless(found: list[str]) -> list[str]:
    return _each(r"\A(?:<think>)?[^<]*?</think>\s*|\A\s+")(found)


def normalised(name: str, found: list[str]) -> list[str]:
    found = NEWLINE(found)
    if name in HEADERS:
        found = _each(HEADERS[name])(found)
    if name in ALWAYS_THINKS:
        found = _thoughtless(found)
    if name in RESPONSE:
        found = _each(r"<\|tool_response>\Z")(found)
    if name in EOS_AFTER:
        found = _each(r"\A<\|im_end\|>\Z")(found)
    if name in SPLIT:
        found = [re.sub(r"\s", "", piece) for piece in _joined(found)]
    return found


@pytest.fixture(scope="module")
def tokenizer(real_data: Path) -> Any:
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(real_data / "tokenizers" / "qwen2")
    found.add_special_tokens({"bos_token": "<bos>"})
    # Of models whose tokenizers are not at hand: without them, a mark would be cut into letters and run into the next.
    marks = ["<|user|>", "<|assistant|>", "<|observation|>", "<|eot_id|>", "<|start_header_id|>"]
    found.add_tokens(marks, special_tokens=True)
    return found


def rendered(document: Document, tokenizer: Any) -> Rendered | None:
    """None where the template refuses the conversation, or writes nothing of what is in it."""
    try:
        return find_answers(document, Template(tokenizer))
    except InputError:
        return None


def trl_labels(document: Document, source: str, tokenizer: Any) -> list[str] | None:
    from transformers.utils.chat_template_utils import render_jinja_template

    for form in (list, in_parts):
        try:
            texts, spans = render_jinja_template(
                [form(document.messages)],
                tools=list(document.tools) or None,
                chat_template=source,
                return_assistant_tokens_mask=True,
                **tokenizer.special_tokens_map,
            )
        except Exception:  # a template raises what it likes
            continue
        found = [texts[0][start:end] for start, end in spans[0]]
        if form is list and not any(words in "".join(found) for words in ("yo", "six", "sure", "4 C", "weather")):
            continue  # it read a string letter by letter
        return found
    return None


def test_the_wheel_is_there() -> None:
    if FOLDER is None:
        pytest.skip("trl is not installed")
    assert len(NAMES) > 30


@pytest.mark.parametrize("name", NAMES)
def test_labels_are_what_trl_marks(name: str, tokenizer: Any) -> None:
    assert FOLDER is not None
    source = (FOLDER / f"{name}.jinja").read_text()
    variant = FOLDER / f"{name}_training.jinja"
    tokenizer.chat_template = source
    oracle = variant.read_text() if variant.exists() else source
    compared = 0
    for case, document in CONVERSATIONS.items():
        found = rendered(document, tokenizer)
        if found is None:
            continue
        ours = [found.text[answer.start : answer.end] for answer in found.answers]
        assert len(ours) >= sum(m["role"] == "assistant" for m in document.messages), (case, ours)
        for answer in found.answers:
            assert answer.words, (case, ours)
            for start, end in answer.words:
                assert answer.start <= start < end <= answer.end, (case, ours)
        if not re.search(r"\{%-?\s*generation", oracle):
            continue
        theirs = trl_labels(document, oracle, tokenizer)
        if theirs is None or (name, case) in OTHER_TEXT:
            continue
        compared += 1
        assert normalised(name, ours) == normalised(name, theirs), case
    assert compared >= 3 or not re.search(r"\{%-?\s*generation", oracle)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_said_is_learned(name: str, tokenizer: Any) -> None:
    """Every last answer and its end are labels, and nothing that the user or a tool said is."""
    assert FOLDER is not None
    tokenizer.chat_template = (FOLDER / f"{name}.jinja").read_text()
    for case in ("plain", "call"):
        found = rendered(CONVERSATIONS[case], tokenizer)
        if found is None:
            assert case == "call", name
            continue
        labels = "".join(found.text[answer.start : answer.end] for answer in found.answers)
        last = {"plain": "ok", "call": "sure"}[case]
        assert re.search(rf"{last}\s*(<[^<>\s]+>\s*)+\Z", labels), labels
        for other in ("salve", "more", "W?", "4 C\n", "thanks"):
            assert other not in re.sub(r"It is 4 C\.", "", labels), labels


ODD = ("hi", "yo ", "\nline\n", " sp ", "<b>x</b>", "a < b", "{{x}}", "é", "日本", "[1]", "user", "assistant", "think",
       "<tool_response>r</tool_response>", "```py\nx=1\n```", "</s>", " ", "<|im_end|>", "0", "\u2983")  # fmt: skip


def conversation(random: random.Random) -> Document:
    """Any turns, with pieces of text that can be told apart: Q and R are read, A, E and Z are to be learned, N not."""

    def odd() -> str:
        return "".join(random.choice(ODD) for _ in range(random.randint(1, 3)))

    messages: list[dict[str, Any]] = [{"role": "system", "content": odd()}] if random.random() < 0.3 else []
    for number in range(random.randint(1, 4)):
        messages.append(user(f"Q{number}q {odd()}"))
        if random.random() < 0.25:
            function = {"name": "weather", "arguments": {"city": f"Z{number}z"}}
            call = {"id": "c12345678", "type": "function", "function": function}
            messages += [said("", tool_calls=[call]), {**RESULT, "tool_call_id": "c12345678", "content": f"R{number}r"}]
        a = "N" if (masked := random.random() < 0.2) else "A"
        content = random.choice([f"{a}{number}a", f"{a}{number}a {odd()} {a}{number}e", f"{odd()}{a}{number}a"])
        if random.random() < 0.3:
            content = f"<think>\nT{number}t\n</think>\n\n{content}"
        messages.append(said(content, **({"learn": False} if masked else {})))
    called = any(message.get("tool_calls") for message in messages)
    return Document(messages=tuple(messages), tools=(TOOL,) if called else ())


@pytest.mark.parametrize("name", NAMES)
def test_random_conversations(name: str, tokenizer: Any) -> None:
    assert FOLDER is not None
    tokenizer.chat_template = (FOLDER / f"{name}.jinja").read_text()
    generator, read = random.Random(name), 0
    for _ in range(40):
        document = conversation(generator)
        found = rendered(document, tokenizer)
        if found is None:
            continue
        read += 1
        labels = "".join(found.text[answer.start : answer.end] for answer in found.answers)
        words = "".join(found.text[start:end] for answer in found.answers for start, end in answer.words)
        assert not re.findall(r"[QR]\d+[qr]|N\d+[ae]", labels), (document, labels)
        due = [m["content"] for m in document.messages if m["role"] == "assistant"]
        assert set(re.findall(r"A\d+[ae]", " ".join(due))) <= set(re.findall(r"A\d+[ae]", words)), (document, words)
        asked = re.findall(r"Z\d+z", str(document.messages))
        assert set(asked) <= set(re.findall(r"Z\d+z", words)), (document, words)
    assert read >= 5


@pytest.mark.parametrize("name", NAMES)
def test_turns_in_any_order(name: str, tokenizer: Any) -> None:
    assert FOLDER is not None
    tokenizer.chat_template = (FOLDER / f"{name}.jinja").read_text()
    template, generator = Template(tokenizer), random.Random(name)
    for _ in range(40):
        check_labels(in_any_order(generator), template)


# ------------------------------------------------------------------------- reported by people, with what is right

ASKED = user("Weather in Oslo?")
OSLO = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
AS_TEXT = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
FOUR = {"role": "tool", "tool_call_id": "c1", "content": "4 C"}
QWEN_CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>'
LLAMA_CALL = '{"name": "weather", "parameters": {"city": "Oslo"}}<|eot_id|>'
UNTHINKING = "<think>\n\n</think>\n\n"
CALLED = {"messages": [ASKED, said("", tool_calls=[OSLO]), FOUR, said("It is 4 C.")], "tools": [TOOL]}
NULL = {
    "messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": [AS_TEXT]}, FOUR, said("It is 4 C.")],
    "tools": [TOOL],
}
CASES: dict[str, tuple[str, dict[str, Any], list[str] | str]] = {
    "a call beside text that is not the last turn": (
        "qwen3",
        {"messages": [ASKED, said("Let me look.", tool_calls=[OSLO]), FOUR, said("It is 4 C.")]},
        [f"Let me look.\n{QWEN_CALL}", f"{UNTHINKING}It is 4 C.<|im_end|>"],
    ),
    "a call without text": ("qwen3", CALLED, [QWEN_CALL, f"{UNTHINKING}It is 4 C.<|im_end|>"]),
    "content that is null, arguments that are text": ("qwen3", NULL, [QWEN_CALL, f"{UNTHINKING}It is 4 C.<|im_end|>"]),
    "tools in the row, Qwen2.5": ("qwen2_5", CALLED, [QWEN_CALL, "It is 4 C.<|im_end|>"]),
    "tools in the row, Llama 3.1": ("llama3_1", CALLED, [LLAMA_CALL, "It is 4 C.<|eot_id|>"]),
    "a call for a template without calls": (
        "llama3",
        {"messages": CALLED["messages"]},
        "writes nothing of a tool call",
    ),
    "tools for a template without tools": ("llama3", CALLED, "writes nothing of the conversation's `tools`"),
    "weight: 0": (
        "qwen2_5",
        {"messages": [user("2+2?"), said("5", weight=0), user("Wrong, again"), said("4", weight=1)]},
        ["4<|im_end|>"],
    ),
    "train: false": (
        "qwen2_5",
        {"messages": [user("2+2?"), said("5", train=False), user("Wrong"), said("4")]},
        ["4<|im_end|>"],
    ),
    "a turn that ends with the next role's marker": (
        "glm4moe",
        {"messages": [user("hi"), said("yo"), user("more"), said("ok")]},
        ["\n<think></think>\nyo<|user|>", "\n<think></think>\nok<|user|>"],
    ),
    "thoughts in several turns": (
        "qwen3",
        {
            "messages": [
                user("2+2?"), said("<think>\nadd\n</think>\n\nfour"),
                user("3+3?"), said("<think>\nadd more\n</think>\n\nsix"),
            ]
        },
        ["four<|im_end|>", "<think>\nadd more\n</think>\n\nsix<|im_end|>"],
    ),
    "parts of text": (
        "qwen2_5",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]},
                      {"role": "assistant", "content": [{"type": "text", "text": "Hello"}]}]},
        ["Hello<|im_end|>"],
    ),
    "ShareGPT": (
        "qwen2_5",
        {"conversations": [{"from": "human", "value": "Hi there"}, {"from": "gpt", "value": "Hello friend"}]},
        ["Hello friend<|im_end|>"],
    ),
    "Alpaca": ("qwen2_5", {"instruction": "Name a colour", "input": "", "output": "Blue"}, ["Blue<|im_end|>"]),
    "messages in a string": (
        "qwen2_5",
        {"messages": '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]'},
        ["Hello<|im_end|>"],
    ),
    "a completion of messages": ("qwen2_5", {"prompt": [user("Hi")], "completion": [said("Yo")]}, ["Yo<|im_end|>"]),
    "a completion of text": ("qwen2_5", {"prompt": "The sky is", "completion": " blue."}, [" blue.<|im_end|>"]),
}  # fmt: skip


def of_row(row: dict[str, Any]) -> Document:
    document = RowReader("data.corpus.0", Columns(), "text", Seen()).document(row, "a row")
    assert document is not None
    return document


@pytest.mark.parametrize("case", CASES)
def test_what_people_reported(case: str, tokenizer: Any) -> None:
    if FOLDER is None:
        pytest.skip("trl is not installed")
    name, row, expected = CASES[case]
    tokenizer.chat_template = (FOLDER / f"{name}.jinja").read_text()
    document = of_row(row)
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            encode(document, tokenizer)
        return
    encoded = encode(document, tokenizer)
    runs: list[list[int]] = [[]]
    for i, kind in zip(encoded.ids, encoded.loss_mask, strict=True):
        if kind:
            runs[-1].append(i)
        elif runs[-1]:
            runs.append([])
    assert [tokenizer.decode(run) for run in runs if run] == expected
    if "tools" in row:
        assert "How it is outside" in tokenizer.decode(encoded.ids)


@pytest.mark.parametrize(("answer", "n_bytes"), [("A", 1), ("d", 1), ("im", 2), ("end", 3), ("m", 1)])
def test_bytes_of_short_answers(answer: str, n_bytes: int, real_data: Path) -> None:
    from transformers import AutoTokenizer

    qwen2 = AutoTokenizer.from_pretrained(real_data / "tokenizers" / "qwen2")
    assert encode(of_row({"messages": [user("pick"), said(answer)]}), qwen2).n_bytes == n_bytes


def test_the_date_of_llama_3_2(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if FOLDER is None:
        pytest.skip("trl is not installed")
    import datetime

    from transformers.utils import chat_template_utils

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime.datetime:
            return datetime.datetime(2033, 1, 2)

    tokenizer.chat_template = (FOLDER / "llama3_2.jinja").read_text()
    document = of_row({"messages": [user("hi"), said("yo")]})
    today, facts = encode(document, tokenizer), template_facts(tokenizer)
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    assert "02 Jan 2033" in tokenizer.apply_chat_template(document.messages, tokenize=False)
    assert encode(document, tokenizer) == today
    assert template_facts(tokenizer) == facts
    assert facts["date"] == "2024-07-26"
    assert "26 Jul 2024" in tokenizer.decode(today.ids)
