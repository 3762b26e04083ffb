"""What a model is given to go on from, and what really followed."""

from __future__ import annotations

import numpy as np

from limbeck.data.corpus import Corpus

SAMPLE_PROMPT_TOKENS = 12
"""Of a plain document, how much of it is given."""


def split_prompt(ids: np.ndarray, mask: np.ndarray, prompt_tokens: int) -> tuple[list[int], list[int]]:
    """A document's (prompt, rest). A conversation is cut before its last answer; plain text, which
    is learned from its first token after the BOS token, after ``prompt_tokens`` tokens."""
    opening = _opening(mask)
    if opening is None:
        masked = np.flatnonzero(mask == 0)
        cut = int(masked[masked < np.flatnonzero(mask)[-1]][-1]) + 1
    else:
        cut = opening + prompt_tokens
    return ids[:cut].tolist(), ids[cut:].tolist()


def first_prompts(corpus: Corpus, count: int, seq_len: int) -> list[tuple[list[int], list[int]]]:
    """(prompt, what really follows) of the first ``count`` documents that have both."""
    found: list[tuple[list[int], list[int]]] = []
    for d in range(len(corpus)):
        if len(found) == count:
            break
        ids, mask = corpus.document(d)
        if mask.any():
            prompt, rest = split_prompt(ids, mask, SAMPLE_PROMPT_TOKENS)
            if rest and len(prompt) < seq_len:
                found.append((prompt, rest))
    return found


def prompts_of(ids: np.ndarray, mask: np.ndarray, prompt_tokens: int, every: int) -> list[list[int]]:
    """What a teacher is given of a document to go on from, where something really follows.

    Of plain text, a prompt at its beginning and one every ``every`` tokens: what is written then
    covers a long document as the rows of a corpus do, not only the beginnings.
    """
    if not mask.any():
        return []
    opening = _opening(mask)
    if opening is None:
        return [split_prompt(ids, mask, prompt_tokens)[0]]
    starts = range(0, len(ids), every)
    cuts = [(start, start + prompt_tokens + (opening if start == 0 else 0)) for start in starts]
    return [ids[start:cut].tolist() for start, cut in cuts if cut < len(ids)]


def is_conversation(corpus: Corpus) -> bool:
    """Whether the first document that teaches something is one: some of it is only read."""
    masks = (corpus.document(d)[1] for d in range(len(corpus)))
    first = next((mask for mask in masks if mask.any()), None)
    return first is not None and _opening(first) is None


def _opening(mask: np.ndarray) -> int | None:
    """Tokens of plain text that are only read (its BOS token); None for a conversation."""
    masked = np.flatnonzero(mask == 0)
    opening = int(len(masked) > 0 and masked[0] == 0)
    return opening if len(masked) == opening else None
