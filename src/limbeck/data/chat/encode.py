"""From documents to token ids and the mask of the tokens that are learned.

Plain text is learned whole. Of a conversation only what the assistant wrote is (thoughts, text, calls, and the token
that ends its turn); the tokenizer's own chat template decides how it is written.
"""

from __future__ import annotations

import datetime
import json
import weakref
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.data.chat.answers import Answer, Rendered, find_answers
from limbeck.data.chat.templates import DATE, Template, has_template
from limbeck.data.chat.turns.surroundings import writes_thoughts as template_writes_thoughts
from limbeck.data.documents.document import Document
from limbeck.data.tokenise import plain_ids, plain_ids_and_offsets
from limbeck.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MASKED, WORDS, MARK = 0, 1, 2

SWALLOWED = "a token of the header takes in the spaces that an answer begins with: they are not learned"
STRADDLES = "a token holds the end of a prompt and the beginning of its completion, and is learned whole"


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

    ids: Sequence[int]
    loss_mask: Sequence[int]
    n_bytes: int
    remarks: frozenset[str] = frozenset()


def encode(document: Document, tokenizer: PreTrainedTokenizerBase, date: datetime.date = DATE) -> Encoded:
    """Tokens of one document; see ``encode_batch``."""
    return encode_batch([document], tokenizer, date)[0]


def encode_batch(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, date: datetime.date = DATE
) -> list[Encoded]:
    """Tokens of documents, each from its BOS token to its EOS token.

    Args:
        documents: any number of them; they are tokenised together.
        tokenizer: of the run.
        date: what a chat template that writes today's date is told.

    Raises:
        InputError: a conversation for a tokenizer without a chat template, one whose answers cannot be found in
            what its template makes of it, or text that is no Unicode; names the document.
    """
    rendered = [_rendered(document, tokenizer, date) for document in documents]
    try:
        plain = iter(plain_ids([document.text for document in documents if document.text is not None], tokenizer))
        said = [each.text for document, each in zip(documents, rendered, strict=True) if document.text is None]
        spoken = iter(plain_ids_and_offsets(said, tokenizer))
    except (UnicodeEncodeError, TypeError):  # a lone surrogate, smuggled in by a JSON escape
        for document in documents:
            _require_unicode(document)
        raise
    return [
        _text(document.text, next(plain), tokenizer)
        if document.text is not None
        else _conversation(document, each, *next(spoken), tokenizer)
        for document, each in zip(documents, rendered, strict=True)
    ]


def encode_prompt(document: Document, tokenizer: PreTrainedTokenizerBase, date: datetime.date = DATE) -> list[int]:
    """Tokens after which a model answers a conversation, or goes on from plain text.

    Args:
        document: without the answer.
        tokenizer: of the model.
        date: what a chat template that writes today's date is told.

    Raises:
        InputError: the template refuses the conversation, or there is none.
    """
    if document.text is None and has_template(tokenizer) and document.template:
        text = _template_of(tokenizer, date).render(document.messages, document.tools, prompt=True)
        return list(plain_ids([text], tokenizer)[0])
    text = document.text if document.text is not None else _rendered(document, tokenizer, date).text
    return [*_marks(tokenizer)[0], *plain_ids([text], tokenizer)[0]]


def writes_thoughts(tokenizer: Any, date: datetime.date = DATE) -> bool:
    """Whether a chat template writes the thoughts (``reasoning_content``) of a last answer."""
    if not has_template(tokenizer):
        return False
    return template_writes_thoughts(_template_of(tokenizer, date))


def template_facts(tokenizer: Any, date: datetime.date = DATE) -> dict[str, str | None]:
    """What conversations in tokens depend on beside the tokens: a hash of the chat template, and the date where the
    template writes one. None without a template."""
    if not has_template(tokenizer):
        return {"chat_template": None, "date": None}
    return _template_of(tokenizer, date).facts()


_templates: weakref.WeakKeyDictionary[Any, dict[Any, Template]] = weakref.WeakKeyDictionary()


def _template_of(tokenizer: Any, date: datetime.date) -> Template:
    """One a tokenizer, so that what it writes around answers is found out once."""
    known = _templates.setdefault(tokenizer, {})
    key = (repr(tokenizer.chat_template), date)
    if key not in known:
        # The proxy does not keep the tokenizer alive.
        known[key] = Template(weakref.proxy(tokenizer), date)
    return known[key]


_added_tokens: weakref.WeakKeyDictionary[Any, tuple[int, frozenset[int]]] = weakref.WeakKeyDictionary()


def _added(tokenizer: Any) -> frozenset[int]:
    """Ids of special and other added tokens, which no text is cut into."""
    size = len(tokenizer)
    known = _added_tokens.get(tokenizer)
    if known is None or known[0] != size:
        known = _added_tokens[tokenizer] = (size, frozenset(tokenizer.added_tokens_decoder))
    return known[1]


def _rendered(document: Document, tokenizer: Any, date: datetime.date) -> Rendered:
    if document.text is not None:
        return Rendered(document.text, [])
    if has_template(tokenizer) and document.template:
        try:
            return find_answers(document, _template_of(tokenizer, date))
        except InputError as error:
            place = f"document {document.key[:12]} ({document.beginning()!a}): {error.what}"
            raise InputError(place, key=error.key, fix=error.fix) from None
    if document.chat:
        raise InputError(
            "the corpus holds conversations, but the tokenizer has no chat template",
            key="data.corpus",
            fix="Use the tokenizer of a chat model, or `prompt`/`response` pairs",
        )
    return _joined(document)


def _joined(document: Document) -> Rendered:
    """A conversation without a template: what was said, one thing after another."""
    text, answers = "", []
    for message in document.messages:
        start = len(text)
        text += message["content"]
        if message["role"] == "assistant" and message.get("learn", True):
            answers.append(Answer(start, len(text), ((start, len(text)),)))
    return Rendered(text, answers)


def _text(text: str, ids: array[int], tokenizer: Any) -> Encoded:
    before, after = _marks(tokenizer)
    mask = bytes([MASKED]) * len(before) + bytes([WORDS]) * len(ids) + bytes([MARK]) * len(after)
    return Encoded(array("I", before) + ids + array("I", after), mask, _size(text))


def _conversation(
    document: Document, rendered: Rendered, ids: array[int], offsets: np.ndarray, tokenizer: Any
) -> Encoded:
    kinds = np.zeros(len(rendered.text) + 1, np.int64)
    n_bytes = 0
    for answer in rendered.answers:
        kinds[answer.start : answer.end] = MARK
    for start, end in (span for answer in rendered.answers for span in answer.words):
        kinds[start:end] = WORDS
        n_bytes += _size(rendered.text[start:end])
    low, high = np.minimum(offsets[:, 0], offsets[:, 1] - 1).clip(0), offsets[:, 1]

    def touches(kind: int) -> np.ndarray:
        before = np.concatenate([[0], np.cumsum(kinds == kind)])
        return before[high] > before[low]

    remarks = set(rendered.remarks)
    mask = np.where(touches(WORDS), WORDS, np.where(touches(MARK), MARK, MASKED))
    for answer in rendered.answers if document.template else ():
        # A header's token may take in the spaces after it (Phi-3's `<|assistant|>`); it is read all the same.
        for n in np.flatnonzero((low < answer.start) & (answer.start < high)).tolist():
            if ids[n] in _added(tokenizer):
                mask[n] = MASKED
                remarks.add(SWALLOWED)
    if not document.template and any(((low < a.start) & (a.start < high)).any() for a in rendered.answers):
        remarks.add(STRADDLES)
    before, after = ([], []) if has_template(tokenizer) and document.template else _marks(tokenizer)
    return Encoded(
        [*before, *ids, *after],
        [MASKED] * len(before) + mask.tolist() + [MARK] * len(after),
        n_bytes,
        frozenset(remarks),
    )


def _require_unicode(document: Document) -> None:
    try:  # all of it: arguments of calls and definitions of tools are written too
        json.dumps([document.text, document.messages, document.tools], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InputError(
            f"document {document.key[:12]} holds text that is no Unicode (half of a surrogate pair)",
            key="data.corpus",
            fix=f"Remove it: {document.beginning()!a}",
        ) from None


MORE_BEFORE = "[…] "
"""Before a question before which more was said."""


def words_asked(prompt: list[int], tokenizer: Any, date: datetime.date = DATE) -> str:
    """The user's last words in a prompt, without what the chat template writes around them, after an ellipsis where
    more was said before; of any other prompt its text without special tokens."""
    if has_template(tokenizer):
        text = str(tokenizer.decode(prompt, skip_special_tokens=False))
        before, opening, after = _around_question(tokenizer, date)
        if text.endswith(after):
            said = text[: len(text) - len(after)]
            only = said[len(before) :]
            several = _has_special(only, tokenizer) or (bool(opening) and opening in only)
            if before and said.startswith(before) and not several:
                return only
            if opening and opening in said:
                return f"{MORE_BEFORE}{said.rpartition(opening)[2]}"
    return str(tokenizer.decode(prompt, skip_special_tokens=True))


def _has_special(text: str, tokenizer: Any) -> bool:
    return any(special in text for special in tokenizer.all_special_tokens)


def _around_question(tokenizer: Any, date: datetime.date) -> tuple[str, str, str]:
    """What the template writes before a first question, before any question (empty where that could be words, being
    short and without a special token), and after the last; empty strings where it takes none."""
    first, said, later = "\u2983question\u2984", "\u2983answer\u2984", "\u2983another\u2984"
    asked = ({"role": "user", "content": first},)
    answered = (*asked, {"role": "assistant", "content": said}, {"role": "user", "content": later})
    try:
        template = _template_of(tokenizer, date)
        before, found, after = template.render(asked, prompt=True).partition(first)
        between = template.render(answered, prompt=True).partition(later)[0]
    except InputError:  # a template may want more than questions and answers: this is only for reading
        return "", "", ""
    shared = 0
    while before.endswith(between[len(between) - shared - 1 :]) and shared < len(between):
        shared += 1
    opening = between[len(between) - shared :]
    unlikely = _has_special(opening, tokenizer) or len(opening.strip()) >= 8
    return (before, opening if unlikely else "", after) if found else ("", "", "")


def _marks(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids that open and close a plain document. Without a BOS the EOS token opens, as in GPT-2."""
    end = tokenizer.eos_token_id
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else end
    return ([] if begin is None else [begin]), ([] if end is None else [end])


def opening_mark(tokenizer: Any) -> str:
    """What stands before a plain document, as text: a model that was trained with it wants to see it."""
    return "".join(tokenizer.convert_ids_to_tokens(_marks(tokenizer)[0]))


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
