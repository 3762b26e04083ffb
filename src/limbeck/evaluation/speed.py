"""How fast a model writes on this machine."""

from __future__ import annotations

import time

import torch

from limbeck.models.generate import Sampling, generate
from limbeck.models.language_model import LanguageModel


def generation_speed(lm: LanguageModel, prompt: list[int], tokens: int, repeats: int = 3) -> float:
    """Tokens per second of greedy generation, one answer at a time; the best of a few repeats.

    The end mark is not waited for: what is timed is the same number of tokens for every model.
    """
    best = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        ((_, new),) = generate(lm, [prompt], Sampling(tokens, temperature=0, stop=False), 1)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = max(best, len(new) / (time.perf_counter() - start))
    return best
