"""Text for students: prompts out of a corpus, answers of a sampler, and both as documents again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from limbeck.data.chat.encode import MASKED, WORDS, Encoded
from limbeck.data.corpus import Corpus
from limbeck.data.prompts import prompts_of
from limbeck.generation.batches import Answer, Journal
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


def write_text(
    sampler: Sampler,
    generation: Generation,
    corpus: Corpus,
    seq_len: int,
    journal: Journal,
    tokens: int,
    progress: Callable[[int], None],
) -> None:
    """Have text written until a journal holds ``tokens`` new tokens, or up to a batch more.

    Every batch is on disk before the next is asked for; a journal that holds some already is continued, as if it
    had never been interrupted.

    Args:
        sampler: who writes.
        generation: how.
        corpus: where the prompts are from; at least one leaves room for an answer (see :func:`find_prompts`).
        seq_len: tokens of a row: prompt and answer have no more together than a row and its last label.
        progress: told of the new tokens so far, after every batch.

    Raises:
        InputError: the sampler's logits are not finite.
    """
    if journal.tokens >= tokens:
        return
    for batch in answer_batches(sampler, generation, corpus, seq_len, start=len(journal.batches)):
        journal.append(batch)
        progress(journal.tokens)
        if journal.tokens >= tokens:
            break


def answer_batches(
    sampler: Sampler, generation: Generation, corpus: Corpus, seq_len: int, start: int = 0
) -> Iterator[list[Answer]]:
    """Batches of answers without end, from number ``start``: every prompt in turn, then again.

    A batch depends on its number, not on those before it: it is seeded by its own.
    """
    found = list(find_prompts(generation, corpus, seq_len))
    # Shuffled, so that a small budget covers the whole corpus.
    prompts = [found[i] for i in np.random.default_rng(generation.seed).permutation(len(found))]
    for number in range(start, 1_000_000_000):
        chosen = [prompts[(number * generation.batch_size + i) % len(prompts)] for i in range(generation.batch_size)]
        longest = max(len(prompt) for prompt in chosen)
        sampling = Sampling(
            max_new_tokens=min(generation.max_new_tokens or seq_len, seq_len - longest + 1),
            temperature=1.0 if generation.temperature is None else generation.temperature,
            top_p=generation.top_p,
            top_k=generation.top_k,
            seed=(generation.seed * 1_000_003 + number) % 2**32,  # a generator multiplies it once more
        )
        answers = dict(sampler.sample(chosen, sampling))
        yield [(chosen[i], answers[i]) for i in sorted(answers)]


def as_documents(batches: Iterable[list[Answer]]) -> Iterator[Encoded]:
    """Answers as documents of a corpus: prompts are masked, all that was written is learned."""
    for batch in batches:
        for prompt, new in batch:
            yield Encoded([*prompt, *new], [MASKED] * len(prompt) + [WORDS] * len(new), 0)
