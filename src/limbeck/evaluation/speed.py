"""How fast models write on this machine, timed in turn so that what slows the machine slows all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from limbeck.models.causal_lm import CausalLM
from limbeck.models.generate import Sampling, generate
from limbeck.runtime.world import synchronise


def generation_speed(lm: CausalLM, prompt: list[int], tokens: int) -> float:
    """Tokens per second of one greedy answer of ``tokens`` tokens.

    EOS is not waited for: what is timed is the same number of tokens for every model.
    """
    synchronise()
    start = time.perf_counter()
    ((_, new),) = generate(lm, [prompt], Sampling(tokens, temperature=0, stop=False), 1)
    synchronise()
    return len(new) / (time.perf_counter() - start)


def speeds_in_turn(
    models: Mapping[str, Callable[[], CausalLM]],
    prompt: list[int],
    tokens: int,
    rounds: int,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Tokens per second of every model in every round: A B C, A B C, ….

    Args:
        models: by name, how each is had. It is asked for again in every round, so a caller may hold all of them
            or load one at a time.
        prompt: what all of them continue.
        tokens: length of an answer.
        rounds: how often each is timed. An answer before each timed one warms up caches and is not counted.
    """
    found: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, load in models.items():
            lm = load()
            generation_speed(lm, prompt, min(tokens, 4))
            found[name].append(generation_speed(lm, prompt, tokens))
            del lm
            progress()
    return found
