"""Top logprobs of a served teacher as targets, where its tokens are exactly those of a tokenizer in hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from limbeck.generation.request import Completion, TokenLogprobs
from limbeck.objectives.targets import Sparse

LOWEST = -1000.0
"""Endpoints write -9999 for a probability that is not worth saying."""
ROUNDING = 1e-3
"""A logprob may be above 0 by so much."""


class TokenMap:
    """Ids of tokens by their text or bytes, as a server writes them.

    Args:
        tokenizer: the student's; the teacher's must have the same tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.size = len(tokenizer)
        found: dict[str, int] = {}
        several: set[str] = set()
        for token in range(self.size):
            # Some tokenizers put a space before what is decoded alone, and some take it away.
            for text in {tokenizer.decode([token]), tokenizer.convert_ids_to_tokens(token)}:
                if text is None or "\ufffd" in text:
                    continue  # part of a character: its text says nothing
                if found.setdefault(text, token) != token:
                    several.add(text)
        self._ids = {text: token for text, token in found.items() if text not in several}

    def id(self, text: str, given: int | None = None) -> int | None:
        """The id of a token; None: there is none, or more than one."""
        if given is None and text.startswith("token_id:") and text[9:].isdecimal():
            given = int(text[9:])
        if given is not None:
            return given if given < self.size else None
        return self._ids.get(text)

    def targets(self, completion: Completion, temperature: float = 1.0) -> tuple[list[int], Sparse] | None:
        """Ids of what was generated, and what the teacher thought at each of them.

        An alternative that has no exact id is left out: its probability stays in the tail, where it is true.

        Args:
            completion: an answer with logprobs.
            temperature: the one that the logprobs were taken at: 1 where the probe says ``pre``.

        Returns:
            None: there are no logprobs, or the generated tokens do not map exactly onto the text.
        """
        if not completion.logprobs:
            return None
        ids = [self.id(token.token, token.id) for token in completion.logprobs]
        whole = [each for each in ids if each is not None]
        if len(whole) != len(ids) or not self._says(whole, completion):
            return None
        entries = [self._entries(token, own) for token, own in zip(completion.logprobs, whole, strict=True)]
        if any(value > ROUNDING for position in entries for value in position.values()):
            return None
        lengths = torch.tensor([0, *(len(position) for position in entries)])
        return whole, Sparse(
            offsets=lengths.cumsum(0),
            ids=torch.tensor([token for position in entries for token in position]),
            logprobs=torch.tensor([min(value, 0.0) for position in entries for value in position.values()]),
            scheme="top_k_tail",
            temperature=temperature,
        )

    def _says(self, ids: list[int], completion: Completion) -> bool:
        """Whether tokens are the answer's text; what was thought before may be among them."""
        said = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
        text = completion.text.strip()
        return bool(said.endswith(text) if completion.reasoning else said == text)

    def _entries(self, token: TokenLogprobs, own: int) -> dict[int, float]:
        known: Iterable[tuple[int | None, float]] = ((self.id(text), value) for text, value in token.top)
        return {own: token.logprob} | {i: value for i, value in known if i is not None and i != own and value > LOWEST}
