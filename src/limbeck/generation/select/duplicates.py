"""Equal and nearly equal conversations. Samples of one prompt are not compared: they are votes, and `keep` chooses."""

from __future__ import annotations

import hashlib

from limbeck.errors import RecipeError
from limbeck.generation.candidate import Candidate
from limbeck.generation.request import canonical
from limbeck.generation.select.words import asked, jaccard, shingles

SHINGLE = 5
PERMUTATIONS = 128
SEED = 42


class ExactDuplicates:
    """Remembers conversations; says which one was seen before under another prompt."""

    def __init__(self) -> None:
        self._first: dict[bytes, str] = {}

    def __call__(self, candidate: Candidate) -> str | None:
        said = candidate.completion
        whole = [candidate.messages, candidate.text, candidate.tools, said.text, said.reasoning, said.tool_calls]
        first = self._first.setdefault(hashlib.sha256(canonical(whole)).digest(), candidate.prompt)
        return None if first == candidate.prompt else f"equal to an answer of prompt {first[:12]}"


class NearDuplicates:
    """Finds conversations that are similar to an earlier one of another prompt.

    MinHash finds pairs that may be similar (a few are missed); their similarity is then computed exactly.

    Args:
        threshold: Jaccard similarity of five-word shingles from which on two count as the same.

    Raises:
        RecipeError: rensa is not installed.
    """

    def __init__(self, threshold: float) -> None:
        try:
            import rensa
        except ImportError:
            raise RecipeError(
                "needs the package rensa", key=".near_duplicates", fix="Run `pip install limbeck[api]`"
            ) from None
        self.threshold = threshold
        self._rensa = rensa
        # Fewer rows a band find less similar pairs, too: a pair at the threshold is found with 99%.
        self._index = rensa.RMinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, num_bands=_bands(threshold))
        self._kept: list[tuple[str, str]] = []

    def __call__(self, candidate: Candidate) -> str | None:
        text = f"{asked(candidate)}\n{candidate.completion.text}"
        mine = shingles(text, SHINGLE)
        sketch = self._rensa.RMinHash(num_perm=PERMUTATIONS, seed=SEED)
        sketch.update(sorted(mine))
        for number in sorted(self._index.query(sketch)):
            prompt, other = self._kept[number]
            if prompt == candidate.prompt:
                continue
            if (similarity := jaccard(mine, shingles(other, SHINGLE))) >= self.threshold:
                return f"{similarity:.2f} similar to an answer of prompt {prompt[:12]}"
        self._index.insert(len(self._kept), sketch)
        self._kept.append((candidate.prompt, text))
        return None


def _bands(threshold: float) -> int:
    """Bands of ``PERMUTATIONS`` slots with which a pair at the threshold is found with a probability of 99%."""
    for bands in (1, 2, 4, 8, 16, 32, 64, 128):
        rows = PERMUTATIONS // bands
        if 1 - (1 - threshold**rows) ** bands >= 0.99:
            return bands
    return PERMUTATIONS
