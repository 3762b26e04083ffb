"""From a document to token ids and the mask of the tokens that are learned.

Plain text is learned whole. Of a conversation only the assistant's words are (and the token that
ends its turn); the tokenizer's own chat template decides how it is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limbeck.data.document import Document
from limbeck.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


MASKED, WORDS, MARK = 0, 1, 2


@dataclass(frozen=True)
class Encoded:
    """A document in tokens.

    Attributes:
        ids: its tokens.
        loss_mask: of each token ``MASKED`` (no label), ``WORDS`` (a label, of the text itself) or ``MARK`` (a label
            that ends a turn or a document, or that a template writes around the words).
        n_bytes: UTF-8 bytes of the text that the ``WORDS`` stand for.
        remarks: what should be said of the corpus once, however many documents give reason to.
    """

    ids: list[int]
    loss_mask: list[int]
    n_bytes: int
    remarks: frozenset[str] = frozenset()


def encode(document: Document, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """Tokens of a document, from its beginning mark to its end mark.

    Raises:
        InputError: a conversation for a tokenizer without a chat template, a template that rewrites
            earlier turns so that the assistant's words cannot be told apart, or text that is no Unicode.
    """
    try:
        return _encoded(document, tokenizer)
    except (UnicodeEncodeError, TypeError):  # a lone surrogate, smuggled in by a JSON escape
        raise InputError(
            f"document {document.key[:12]} holds text that is no Unicode (half of a surrogate pair)",
            key="data.corpus",
            fix=f"Remove it: {_beginning(document)!a}",
        ) from None


def encode_batch(documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    """``encode``, of many documents at once."""
    return [encode(document, tokenizer) for document in documents]


def _beginning(document: Document) -> str:
    return next(document.texts(), "")[:40]


def _encoded(document: Document, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    if document.text is not None:
        ids = _plain(document.text, tokenizer)
        before, after = _marks(tokenizer)
        return Encoded(
            [*before, *ids, *after],
            [MASKED] * len(before) + [WORDS] * len(ids) + [MARK] * len(after),
            _size(document.text),
        )
    text, answers = render(document, tokenizer)
    return _encode_answers(text, answers, tokenizer, marks=not has_template(tokenizer))


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


@dataclass(frozen=True)
class Answer:
    """Where an answer stands in a rendered conversation, in characters: its words, and the mark that ends them."""

    start: int
    words_end: int
    end: int


def render(document: Document, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[Answer]]:
    """A conversation as one string, and where the assistant's answers stand in it.

    Raises:
        InputError: no chat template, or one in which an answer cannot be found.
    """
    if not has_template(tokenizer):
        if document.chat:
            raise InputError(
                "the corpus holds conversations, but the tokenizer has no chat template",
                key="data.corpus",
                fix="Use the tokenizer of a chat model, or `prompt`/`response` pairs",
            )
        text, answers = "", []
        for message in document.messages:
            start = len(text)
            text += message["content"]
            if message["role"] == "assistant":
                answers.append(Answer(start, len(text), len(text)))
        return text, answers
    text = _template(tokenizer, document.messages, generation_prompt=False)
    skeleton: list[tuple[str, str]] | None = None
    answers = []
    for i, message in enumerate(document.messages):
        if message["role"] != "assistant":
            continue
        found = _by_prefix(text, document, i, tokenizer)
        if found is None:
            skeleton = skeleton or _skeleton(document, tokenizer)
            found = _by_skeleton(text, skeleton, len(answers), document)
        if found is None:
            raise InputError(
                "the chat template rewrites conversations: the assistant's words cannot be found in them",
                key="data.corpus",
                fix="Give one answer a conversation, or a template that only appends",
            )
        answers.append(found)
    return text, answers


def words_asked(prompt: list[int], tokenizer: Any) -> str:
    """The user's last words in a prompt, without what the chat template writes around them, after an ellipsis where
    more was said before; of any other prompt its text without special tokens."""
    if has_template(tokenizer):
        text = str(tokenizer.decode(prompt, skip_special_tokens=False))
        before, opening, after = _around_question(tokenizer)
        if text.endswith(after):
            said = text[: len(text) - len(after)]
            only = said[len(before) :]
            several = _has_special(only, tokenizer) or (bool(opening) and opening in only)
            if before and said.startswith(before) and not several:
                return only
            if opening and opening in said:
                return f"[…] {said.rpartition(opening)[2]}"
    return str(tokenizer.decode(prompt, skip_special_tokens=True))


def _has_special(text: str, tokenizer: Any) -> bool:
    return any(special in text for special in tokenizer.all_special_tokens)


def _around_question(tokenizer: Any) -> tuple[str, str, str]:
    """What the template writes before a first question, before any question (empty where that could be words, being
    short and without a special token), and after the last; empty strings where it takes none."""
    first, said, later = "\u2983question\u2984", "\u2983answer\u2984", "\u2983another\u2984"
    asked = ({"role": "user", "content": first},)
    answered = (*asked, {"role": "assistant", "content": said}, {"role": "user", "content": later})
    try:
        before, found, after = _template(tokenizer, asked, generation_prompt=True).partition(first)
        between = _template(tokenizer, answered, generation_prompt=True).partition(later)[0]
    except InputError:  # a template may want more than questions and answers: this is only for reading
        return "", "", ""
    shared = 0
    while before.endswith(between[len(between) - shared - 1 :]) and shared < len(between):
        shared += 1
    opening = between[len(between) - shared :]
    unlikely = _has_special(opening, tokenizer) or len(opening.strip()) >= 8
    return (before, opening if unlikely else "", after) if found else ("", "", "")


def _by_prefix(text: str, document: Document, i: int, tokenizer: Any) -> Answer | None:
    """Answer ``i`` is what its turn adds to the prompt for it, if the template only appends."""
    if i == 0:
        return None
    before = _template(tokenizer, document.messages[:i], generation_prompt=True)
    through = _template(tokenizer, document.messages[: i + 1], generation_prompt=False)
    if not (through.startswith(before) and text.startswith(through)):
        return None
    words = document.messages[i]["content"].strip()
    at = text.rfind(words, len(before), len(through))
    return Answer(len(before), at + len(words) if at >= 0 else len(through), len(through))


def _skeleton(document: Document, tokenizer: Any) -> list[tuple[str, str]]:
    """What the template writes around each answer: (before it, after it, up to the next)."""
    marks = [f"\u2983answer {i}\u2984" for i in range(len(document.messages))]
    messages = tuple(
        {**message, "content": marks[i]} if message["role"] == "assistant" else message
        for i, message in enumerate(document.messages)
    )
    around = _template(tokenizer, messages, generation_prompt=False)
    pieces = []
    for i, message in enumerate(document.messages):
        if message["role"] == "assistant":
            if around.count(marks[i]) != 1:
                return []
            before, _, around = around.partition(marks[i])
            pieces.append(before)
    return [(before, pieces[n + 1] if n + 1 < len(pieces) else around) for n, before in enumerate(pieces)]


def _by_skeleton(text: str, skeleton: list[tuple[str, str]], number: int, document: Document) -> Answer | None:
    """The same answer found between what the template writes around it, where it rewrites earlier turns.

    An end mark is learned where what follows the answer begins like what follows the last one.
    """
    position = 0
    words = [message["content"] for message in document.messages if message["role"] == "assistant"]
    for n, (before, after) in enumerate(skeleton):
        if not text.startswith(before, position):
            return None
        start = position + len(before)
        ends = [start + len(w) for w in (words[n], words[n].strip()) if text.startswith(w + after, start)]
        if not ends and after:
            ends = [at] if (at := text.find(after, start)) >= 0 else []
        if not ends:
            return None
        if n == number:
            closing = skeleton[-1][1]
            return Answer(start, ends[0], ends[0] + (len(closing) if after.startswith(closing) else 0))
        position = ends[0]
    return None


def _template(tokenizer: Any, messages: tuple[dict[str, Any], ...], *, generation_prompt: bool) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=generation_prompt)
        )
    except Exception as error:  # templates raise what they like (jinja2.TemplateError and others)
        raise InputError(f"the chat template refuses a conversation ({error})", key="data.corpus") from None


def _encode_answers(text: str, answers: list[Answer], tokenizer: Any, *, marks: bool) -> Encoded:
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    learn = [
        next((WORDS if low < x.words_end else MARK for x in answers if low < x.end and x.start < high), MASKED)
        for low, high in coded["offset_mapping"]
    ]
    before, after = _marks(tokenizer) if marks else ([], [])
    return Encoded(
        [*before, *coded["input_ids"], *after],
        [MASKED] * len(before) + learn + [MARK] * len(after),
        sum(_size(text[x.start : x.words_end]) for x in answers),
    )


def _plain(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _marks(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids that open and close a plain document. Without a BOS the end mark opens, as in GPT-2."""
    end = tokenizer.eos_token_id
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else end
    return ([] if begin is None else [begin]), ([] if end is None else [end])


def opening_mark(tokenizer: Any) -> str:
    """What stands before a plain document, as text: a model that was trained with it wants to see it."""
    return "".join(tokenizer.convert_ids_to_tokens(_marks(tokenizer)[0]))


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
