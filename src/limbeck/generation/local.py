"""Teachers and samplers whose weights are in hand."""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from limbeck.data.chat.encode import encode_prompt
from limbeck.data.chat.templates import DATE, has_template
from limbeck.data.documents.document import Document
from limbeck.generation.request import Completion, Outcome, Request, Usage
from limbeck.models.causal_lm import CausalLM
from limbeck.models.generate import Sampling, generate

_THOUGHT = re.compile(r"\s*(?:<think>)?(.*?)</think>\s*(.*)", re.DOTALL)


class LocalSampler:
    """Samples from a model's weights. Under ``precision: bf16`` its linear layers are rounded to bfloat16, once."""

    def __init__(self, lm: CausalLM, precision: str = "fp32") -> None:
        self.lm, self.precision = lm, precision
        if precision == "bf16":
            lm.hold_in_bfloat16()

    def sample(self, prompts: list[list[int]], sampling: Sampling) -> Iterator[tuple[int, list[int]]]:
        """All prompts in one batch; see :meth:`~limbeck.generation.sampler.Sampler.sample`."""
        with self.lm.autocast(self.precision):
            yield from generate(self.lm, prompts, sampling, batch_size=len(prompts))


@dataclass(frozen=True)
class LocalTeacher:
    """A teacher whose weights are in hand, asked as one behind an endpoint is.

    Attributes:
        identity: what makes it another teacher.
        opened: gives the model and the tokenizer whose ids it reads; asked when there is something to write.
        batch_size: answers written at a time. A batch's answers depend on its own requests alone.
        precision: ``fp32`` or ``bf16``.
        date: what a chat template that writes today's date is told.
    """

    identity: Mapping[str, str]
    opened: Callable[[], AbstractContextManager[tuple[CausalLM, Any]]]
    batch_size: int = 64
    precision: str = "fp32"
    date: datetime.date = DATE

    def batches(self, requests: Iterable[Request]) -> Iterator[list[Request]]:
        """Requests that are written together: of equal settings, in their order."""
        for _, group in groupby(requests, key=_settings):
            alike = list(group)
            for start in range(0, len(alike), self.batch_size):
                yield alike[start : start + self.batch_size]

    def write(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Completion]]:
        """Answers, a batch after another.

        Raises:
            InputError: the model's logits are not finite, or its template refuses a conversation.
        """
        with self.opened() as (lm, tokenizer):
            for batch in self.batches(requests):
                yield from self.write_batch(batch, lm, tokenizer)

    def write_batch(self, batch: Sequence[Request], lm: CausalLM, tokenizer: Any) -> list[tuple[Request, Completion]]:
        """The answers of one batch, by a model that is loaded."""
        prompts = [encode_prompt(as_document(request), tokenizer, self.date) for request in batch]
        first, digest = batch[0], hashlib.sha256()
        for request in batch:
            digest.update(request.key(self.identity).encode())
        sampling = Sampling(
            max_new_tokens=first.max_new_tokens,
            temperature=1.0 if first.temperature is None else first.temperature,
            top_p=1.0 if first.top_p is None else first.top_p,
            top_k=first.top_k or 0,
            seed=int.from_bytes(digest.digest()[:4], "big"),
        )
        written = dict(LocalSampler(lm, self.precision).sample(prompts, sampling))
        ends = set(lm.end_ids())
        return [
            (request, _completion(request, prompts[i], written[i], ends, tokenizer)) for i, request in enumerate(batch)
        ]


def as_document(request: Request) -> Document:
    """What a request asks about, as a document without its answer."""
    if request.text is not None:
        return Document(request.text)
    messages, tools = (tuple(map(dict, each)) for each in (request.messages, request.tools))
    return Document(None, messages, chat=False, tools=tools)  # the corpus was read: conversations have a template


def split_thought(text: str) -> tuple[str | None, str]:
    """(thoughts, the rest) of an answer that thinks between tags; a template may have written the first of them."""
    found = _THOUGHT.fullmatch(text)
    return (found[1].strip(), found[2]) if found else (None, text)


def _completion(request: Request, prompt: list[int], new: list[int], ends: set[int], tokenizer: Any) -> Completion:
    text = str(tokenizer.decode(new, skip_special_tokens=True))
    stops = [at for stop in request.stop if (at := text.find(stop)) >= 0]
    complete = bool(stops) or (bool(new) and new[-1] in ends)
    if stops:
        text = text[: min(stops)]
    thought, said = split_thought(text) if request.text is None and has_template(tokenizer) else (None, text)
    return Completion(
        outcome=Outcome.COMPLETE if complete else Outcome.LENGTH,
        text=said,
        reasoning=thought,
        message={"role": "assistant", "content": text},
        usage=Usage(len(prompt), len(new)),
        ids=tuple(new),
    )


def _settings(request: Request) -> tuple[Any, ...]:
    return request.max_new_tokens, request.temperature, request.top_p, request.top_k  # a batch has a seed of its own
