"""Conversations as data sets of many tools write them, in the one form that ``Document`` holds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from limbeck.data.documents.document import MESSAGE_FIELDS
from limbeck.data.documents.messages.calls import calls_of
from limbeck.data.documents.messages.place import Place, is_list, kind_of, parsed

Message = dict[str, Any]

LEARNED = (
    "weight", "train", "training", "trainable", "is_trainable", "should_train", "train_on", "train_on_turn",
    "loss_mask", "loss", "loss_weight", "compute_loss", "calculate_loss", "has_loss", "learn", "learnable",
    "supervised",
)  # fmt: skip
"""Keys by which data sets say that a turn is to be learned, or not."""
NOT_LEARNED = (
    "masked", "is_masked", "mask_loss", "ignore", "ignored", "ignore_loss", "no_loss", "no_train", "skip_train",
    "skip_loss", "exclude_from_loss",
)  # fmt: skip
FLAG_LIKE = re.compile(r"train|learn|loss|mask|weight|supervis|ignore|skip|exclude|^labels?$")
"""Keys like these say something of what is learned; those that are not known are refused."""
UNREAD = frozenset((
    "tools", "functions", "function_calls", "images", "image", "image_url", "audio", "audios", "input_audio", "video",
    "videos", "context", "contexts", "documents", "passage", "passages", "attachments", "files", "refusal", "channel",
    "recipient",
))  # fmt: skip
"""Keys of a message that say something to a model, and that limbeck does not hand on."""
HARMLESS = {"channel": "final", "recipient": "all"}
"""Values of such keys that say nothing."""

ROLES = {
    "human": "user", "user": "user", "prompter": "user", "gpt": "assistant", "assistant": "assistant",
    "chatgpt": "assistant", "gpt4": "assistant", "gpt-4": "assistant", "claude": "assistant", "ai": "assistant",
    "bing": "assistant", "bard": "assistant", "model": "assistant", "bot": "assistant", "chatbot": "assistant",
    "system": "system", "developer": "developer", "tool": "tool", "observation": "tool", "function": "tool",
    "function_response": "tool", "tool_response": "tool", "ipython": "tool", "function_call": "assistant",
    "tool_call": "assistant",
}  # fmt: skip
"""ShareGPT's names of who speaks."""
CALLS = ("function_call", "tool_call")
NATIVE = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
"""Roles that chat templates know."""
TEXTUAL = ("text", "input_text", "output_text")


def says_messages(text: str) -> bool:
    """Whether a text is JSON of a list of messages."""
    return lists_only(text, lambda message: "role" in message or "from" in message)


def lists_only(text: str, is_one: Callable[[Message], bool]) -> bool:
    """Whether a text is JSON of a list of objects that all are of a kind."""
    if not is_list(text):
        return False
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return all(isinstance(each, dict) and is_one(each) for each in value)


def says_turns(text: str) -> bool:
    """Whether a text is JSON of messages by speakers that are known, or of one: also an answer, which may be JSON."""
    start = text.lstrip()[:1]
    if start not in ("[", "{") or ('"role"' not in text and '"from"' not in text):
        return False
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    turns = [value] if isinstance(value, dict) else value
    return bool(turns) and all(isinstance(turn, dict) and _is_turn(turn) for turn in turns)


def _is_turn(turn: Message) -> bool:
    said = {"content", "value", "tool_calls", "function_call"} & turn.keys()
    return bool(said) and _speaker(turn.get("role", turn.get("from"))) is not None


def said_turns(text: str, place: Place) -> list[Message]:
    """Messages of a text that ``says_turns``.

    Raises:
        InputError: as ``messages_of``.
    """
    return messages_of(text if text.lstrip()[:1] == "[" else f"[{text}]", place)


def messages_of(value: Any, place: Place) -> list[Message]:
    """Messages with ``role`` and ``content``, and with ``learn: False`` on an assistant's that is not to be learned.

    Raises:
        InputError: no list of messages, or something in one that limbeck does not do; names the place.
    """
    value = parsed(value, place)
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        place.refuse("is no list of messages", 'Write [{"role": "user", "content": "..."}, ...]')
    messages = _with_parts(value, place)
    return _roles([_message(message, place.inside(f"message {n}")) for n, message in enumerate(messages, 1)])


def _with_parts(messages: list[Message], place: Place) -> list[Message]:
    """Where tables hold all contents as JSON of lists of parts, these lists. One that does alone may mean it."""
    said = [text for message in messages if isinstance(text := message.get("content"), str) and text]
    if not said or not all(map(is_list, said)):
        return messages
    try:
        parts = {text: json.loads(text) for text in said}
    except (ValueError, RecursionError):
        return messages
    if not all(
        isinstance(part, dict) and isinstance(part.get("type"), str) for held in parts.values() for part in held
    ):
        return messages
    parts = {text: parsed(text, place) for text in said}
    return [
        {**m, "content": parts[m["content"]]} if isinstance(m.get("content"), str) and m["content"] else m
        for m in messages
    ]


def _roles(messages: list[Message]) -> list[Message]:
    """In roles that templates write: results of tools have three names, and `developer` is OpenAI's newer name for
    `system`. A conversation that has both keeps them apart."""
    known = {"function": "tool", "ipython": "tool"}
    if all(message["role"] != "system" for message in messages):
        known["developer"] = "system"
    return [{**message, "role": known.get(message["role"], message["role"])} for message in messages]


def _message(message: Message, place: Place) -> Message:
    given = {name: value for name, value in message.items() if value is not None}
    message = _in_known_words(given, place)
    if not isinstance(message.get("role"), str):
        place.refuse("has no `role`", 'Write "role": "user" or "assistant"')
    _refuse_unread(given, place)
    kept = {name: message[name] for name in MESSAGE_FIELDS if name in message and name not in LEARNED}
    for name in ("reasoning_content", "reasoning", "thinking"):
        if name in kept and not isinstance(kept[name], str):
            place.refuse(f"has `{name}` that is {kind_of(kept[name])}, not text")
    kept.pop("tool_calls", None)
    if calls := _calls(message, place):
        if message["role"] != "assistant":
            place.refuse(f"is a turn of `{message['role']}` that calls tools", "Only an `assistant` calls tools")
        kept["tool_calls"] = calls
    kept["content"] = _content(message.get("content"), kept, place)
    if not _is_learned(message, place):
        kept["learn"] = False
    _name_unread(given, MESSAGE_KEYS, place)
    return kept


def _calls(message: Message, place: Place) -> list[dict[str, Any]]:
    """Of `tool_calls`, and of OpenAI's older `function_call`. A message that has both must say the same twice."""
    calls, older = calls_of(message.get("tool_calls"), place), calls_of(message.get("function_call"), place)
    named = [call["function"] for call in calls]
    if calls and any(call["function"] not in named for call in older):
        place.refuse("has `tool_calls` and a `function_call` that differ", "Keep one of them")
    return calls or older


EMPTY: tuple[Any, ...] = ("", [], {}, ())
MESSAGE_KEYS = frozenset((*MESSAGE_FIELDS, *HARMLESS, "from", "value", "function_call"))
PART_KEYS = frozenset(("type", "text", "content", "thinking", "reasoning", *HARMLESS))


def _name_unread(said: Message, known: frozenset[str], place: Place) -> None:
    for name in said.keys() - known:
        if said[name] not in EMPTY and name.lower() not in LEARNED and name.lower() not in NOT_LEARNED:
            place.unread.add(name)


def _refuse_unread(message: Message, place: Place) -> None:
    for name in sorted(message.keys() & UNREAD):
        if message[name] and message[name] != HARMLESS.get(name):
            place.refuse(f"has `{name}`, which limbeck does not read in a message", UNREAD_FIXES.get(name, MEDIA_FIX))


UNREAD_FIXES = {
    "tools": "Put definitions of tools beside the messages, in a column `tools`",
    "functions": "Put definitions of tools beside the messages, in a column `tools`",
    "function_calls": "Write calls as `tool_calls`",
    "recipient": "Write calls as `tool_calls`",
    "channel": "Write thoughts as `reasoning_content` of the answer that follows",
    "refusal": "Write it as the `content`, or leave the conversation out",
    **dict.fromkeys(
        ("context", "contexts", "documents", "passage", "passages", "attachments", "files"),
        "Write it into the `content`, or remove the key",
    ),
}
MEDIA_FIX = "limbeck learns from text only: use data without it"


def _in_known_words(message: Message, place: Place) -> Message:
    """A message in the words that chat templates know. One without a speaker is left as it is."""
    for name, other, known in (("role", "from", _speaker), ("content", "value", None)):
        if name in message and other in message:
            ours, theirs = (known(message[each]) if known else message[each] for each in (name, other))
            if ours != theirs and None not in (ours, theirs):
                place.refuse(f"has a `{name}` and a `{other}` that differ", "Keep one of them")
    speaker = message.get("role", message.get("from"))
    if not isinstance(speaker, str):
        return message
    if "content" in message and (speaker in NATIVE or message.get("tool_calls")):
        return message
    name = speaker.strip().lower()
    if name not in ROLES:
        place.refuse(f"is by {speaker!r}, a role that is not known", f"Known are {', '.join(sorted(ROLES))}")
    said = message.get("value", message.get("content"))
    if name in CALLS and "tool_calls" not in message:
        return {**message, "role": "assistant", "tool_calls": said, "content": ""}
    return {**message, "role": ROLES[name], "content": said}


def _speaker(role: Any) -> str | None:
    return ROLES.get(role.strip().lower()) if isinstance(role, str) else None


def _content(content: Any, kept: Message, place: Place) -> str:
    """Text. Parts of text are joined; thoughts among them go into ``kept``."""
    if content is None:
        if kept.get("tool_calls"):
            return ""
        place.refuse(f"(`{kept['role']}`) has no `content`", "Write its text, or remove the message")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        place.refuse(f"has a `content` that is {kind_of(content)}, not text")
    texts = []
    for number, part in enumerate(content, 1):
        part = {name: given for name, given in part.items() if given is not None} if isinstance(part, dict) else part
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        text = part.get("text", part.get("content")) if isinstance(part, dict) else part
        if kind in ("thinking", "reasoning"):
            thought = next((t for name in ("thinking", "reasoning", "text") if (t := part.get(name)) is not None), None)
            if not isinstance(thought, str):
                place.refuse(f"holds a part of type `{kind}` without text")
            kept["reasoning_content"] = kept.get("reasoning_content", "") + thought
        elif kind in TEXTUAL and isinstance(text, str):
            texts.append(text)
        else:
            place.refuse(f"holds a part of type `{kind}`; limbeck learns from text only", "Use data without it")
        if isinstance(part, dict):
            _refuse_unread(part, place.inside(f"part {number}"))
            _name_unread(part, PART_KEYS, place)
    return "".join(texts)


def _is_learned(message: Message, place: Place) -> bool:
    """Whether a turn is to be learned, as data sets of several tools say it of it or of the parts of its content."""
    asked = _asked(message, message["role"], place)
    content = message.get("content")
    if not asked and isinstance(content, str):
        return True
    said = [
        _asked(part, message["role"], place.inside(f"part {number}")) if isinstance(part, dict) else set()
        for number, part in enumerate(content if isinstance(content, list) else (), 1)
    ]
    of_parts: set[bool] = set().union(*said)
    if len(asked | of_parts) == 2:
        place.refuse("says both that it is learned and that it is not", "Keep one of its keys")
    if message["role"] == "assistant" and not asked and of_parts == {False} and not all(said):
        place.refuse(
            "has parts of which only some are not to be learned; limbeck learns a turn or does not",
            "Write `train: false` for the whole turn, or remove the parts' keys",
        )
    asked |= of_parts
    return message["role"] != "assistant" or asked != {False}


def _asked(said: Message, role: str, place: Place) -> set[bool]:
    """What a message or a part of one says of whether it is learned."""
    asked: set[bool] = set()
    for name, value in said.items():
        low = name.lower()
        if value is None:
            continue
        if low not in LEARNED and low not in NOT_LEARNED:
            if FLAG_LIKE.search(low) and not isinstance(value, str) and name not in MESSAGE_FIELDS:
                place.refuse(
                    f"has `{name}`, which may say what is learned of it in a way that limbeck does not know",
                    "Write `train: false` for a turn that is not to be learned, or remove the key",
                )
            continue
        if isinstance(value, str):
            value = {"true": True, "false": False, "1": 1, "0": 0}.get(value.strip().lower(), value)
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            place.refuse(f"has `{name}: {value!r}`; a turn is learned or not", "Write 0 or 1, true or false")
        learn = bool(value) == (low in LEARNED)
        if learn and role != "assistant":
            place.refuse(
                f"has `{name}: {value!r}` on a turn of `{role}`; only the assistant's are learned",
                f"Remove `{name}` there",
            )
        asked.add(learn)
    return asked
