"""Text for students: prompts out of a corpus, answers of a sampler, and both as documents again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import TypeAlias

import numpy as np

from limbeck.data.chat.encode import MASKED, WORDS, Encoded
from limbeck.data.corpus import Corpus
from limbeck.data.prompts import prompts_of
from limbeck.generation.journal.journal import Journal
from limbeck.generation.journal.rows import Teacher
from limbeck.generation.request import Completion, Outcome, Request
from limbeck.generation.sampler import Sampler
from limbeck.models.generate import Sampling
from limbeck.recipe import Generation

SHORTEST_ANSWER = 8
"""Tokens. An answer shorter than this teaches nothing."""


def find_prompts(generation: Generation, corpus: Corpus, seq_len: int) -> Iterator[list[int]]:
    """Token ids of what a corpus gives to go on from, in its order: what leaves room for an answer in a row."""
    for d in range(len(corpus)):
        for prompt in prompts_of(*corpus.document(d), generation.prompt_tokens, every=seq_len):
            if len(prompt) <= seq_len - SHORTEST_ANSWER:
                yield prompt


Answer: TypeAlias = tuple[list[int], list[int]]
"""A prompt's token ids, and the new ones."""


@dataclass(frozen=True)
class Plan:
    """Which prompts are continued in which batch: every prompt in turn, then again.

    A batch depends on its number, not on those before it: it is seeded by its own.

    Attributes:
        generation: how text is written.
        prompts: token ids, shuffled, so that a small budget covers the whole corpus.
        seq_len: tokens of a row: prompt and answer have no more together than a row and its last label.
        teacher: who writes.
    """

    generation: Generation
    prompts: list[list[int]]
    seq_len: int
    teacher: Teacher

    @classmethod
    def of(cls, generation: Generation, corpus: Corpus, seq_len: int, teacher: Teacher) -> Plan:
        """Prompts out of a corpus; at least one document leaves room for an answer (see :func:`find_prompts`)."""
        found = list(find_prompts(generation, corpus, seq_len))
        order = np.random.default_rng(generation.seed).permutation(len(found))
        return cls(generation, [found[i] for i in order], seq_len, teacher)

    def batch(self, number: int) -> tuple[list[list[int]], Sampling]:
        """The prompts of a batch, and its settings."""
        generation = self.generation
        first = number * generation.batch_size
        chosen = [self.prompts[(first + i) % len(self.prompts)] for i in range(generation.batch_size)]
        longest = max(len(prompt) for prompt in chosen)
        return chosen, Sampling(
            max_new_tokens=min(generation.max_new_tokens or self.seq_len, self.seq_len - longest + 1),
            temperature=1.0 if generation.temperature is None else generation.temperature,
            top_p=generation.top_p,
            top_k=generation.top_k,
            seed=(generation.seed * 1_000_003 + number) % 2**32,  # a generator multiplies it once more
        )

    def requests(self, number: int) -> list[Request]:
        """The rows of a batch in a journal."""
        prompts, sampling = self.batch(number)
        return [
            Request(
                max_new_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                seed=sampling.seed,
                extra={"prompt_ids": prompt},
                sample=number * self.generation.batch_size + i,
            )
            for i, prompt in enumerate(prompts)
        ]


def write_text(sampler: Sampler, plan: Plan, journal: Journal, tokens: int, progress: Callable[[int], None]) -> None:
    """Have text written until a journal holds ``tokens`` new tokens, or up to a batch more.

    Every batch is on disk before the next is asked for. Batches that a journal holds already are kept, as if the
    writing had never been interrupted; one that lacks an answer, because it is damaged, is written again.

    Args:
        progress: told of the new tokens so far, after every batch.

    Raises:
        InputError: the sampler's logits are not finite.
    """
    so_far = 0
    for number in count():
        if so_far >= tokens:
            return
        requests = plan.requests(number)
        answers = _answers(journal, requests, plan.teacher)
        if answers is None:
            prompts, sampling = plan.batch(number)
            found = sorted(sampler.sample(prompts, sampling))
            journal.put_many(
                [(requests[i], Completion(Outcome.COMPLETE, "", ids=tuple(new))) for i, new in found], plan.teacher
            )
            answers = [new for _, new in found]
        so_far += sum(map(len, answers))
        progress(so_far)


def written(plan: Plan, journal: Journal, tokens: int) -> Iterator[list[Answer]]:
    """The whole batches that a journal holds, in their order, until they have ``tokens`` new tokens."""
    so_far = 0
    for number in count():
        requests = plan.requests(number)
        if so_far >= tokens or (answers := _answers(journal, requests, plan.teacher)) is None:
            return
        so_far += sum(map(len, answers))
        yield [(list(request.extra["prompt_ids"]), new) for request, new in zip(requests, answers, strict=True)]


def _answers(journal: Journal, requests: list[Request], teacher: Teacher) -> list[list[int]] | None:
    """The new tokens of a batch; None: not all are there."""
    found: list[list[int]] = []
    for request in requests:
        completion = journal.get(request.key(teacher))
        if completion is None or completion.ids is None:
            return None
        found.append(list(completion.ids))
    return found


def as_documents(batches: Iterable[list[Answer]]) -> Iterator[Encoded]:
    """Answers as documents of a corpus: prompts are masked, all that was written is learned."""
    for batch in batches:
        for prompt, new in batch:
            yield Encoded([*prompt, *new], [MASKED] * len(prompt) + [WORDS] * len(new), 0)
