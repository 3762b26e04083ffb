"""What a model is given to go on from, and what really followed."""

from __future__ import annotations

import numpy as np


def split_prompt(ids: np.ndarray, learn: np.ndarray, prompt_tokens: int) -> tuple[list[int], list[int]]:
    """A document's (prompt, rest). A conversation is cut before its last answer; plain text, which
    is learned from its first token after the opening mark, after ``prompt_tokens`` tokens."""
    masked = np.flatnonzero(~learn)
    opening = int(masked[0] == 0) if len(masked) else 0
    plain = len(masked) == opening
    cut = opening + prompt_tokens if plain else int(masked[masked < np.flatnonzero(learn)[-1]][-1]) + 1
    return ids[:cut].tolist(), ids[cut:].tolist()
