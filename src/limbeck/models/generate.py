"""Text from a model: batched, seeded, by the sampling settings it is given and no others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from limbeck.errors import InputError
from limbeck.models.causal_lm import CausalLM

if TYPE_CHECKING:
    from transformers import GenerationConfig


@dataclass(frozen=True)
class Sampling:
    """``temperature`` 0 is greedy; ``top_k`` 0 means all."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: bool = True
    """At an EOS token; otherwise every text has ``max_new_tokens``."""


@torch.no_grad()
def generate(
    lm: CausalLM, prompts: list[list[int]], sampling: Sampling, batch_size: int
) -> Iterator[tuple[int, list[int]]]:
    """Continuations as ``(number of the prompt, new ids)``, an EOS token included, batch by batch.

    Every batch is seeded by its own number, so that it comes out the same when it is asked for alone. No text
    grows beyond the positions that the model reads.

    Raises:
        InputError: the model's logits are NaN or infinite: sampling from them is a traceback, and the most probable
            token is any.
    """
    from transformers import GenerationConfig

    ends = lm.end_ids() if sampling.stop else []
    pad = lm.own_tokenizer.eos_token_id or 0
    settings = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=sampling.temperature > 0,
        temperature=sampling.temperature or 1.0,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        repetition_penalty=1.0,
        num_beams=1,
        bos_token_id=lm.own_tokenizer.bos_token_id,
        eos_token_id=ends or None,
        pad_token_id=pad,
        suppress_tokens=lm.unwritten() or None,
    )
    prompts = [lm.own_ids(torch.tensor(prompt, dtype=torch.long)).tolist() for prompt in prompts]
    room = lm.traits.max_positions or 10**9
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # like lengths together: less padding
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        width = max(len(prompts[i]) for i in chosen)
        limit = max(min(sampling.max_new_tokens, room - width), 1)
        torch.manual_seed(sampling.seed * 1_000_003 + start)
        written: dict[int, list[int]] = {i: [] for i in chosen}
        while chosen:
            settings.max_new_tokens = limit - len(written[chosen[0]])
            with lm.evaluating():
                gained = _round(lm, [prompts[i] + written[i] for i in chosen], settings)
            for i, new in zip(chosen, gained, strict=True):
                written[i] += new
            chosen = [i for i in chosen if len(written[i]) < limit and written[i][-1] not in ends]
        for i, new in written.items():
            yield i, lm.from_own(new)


def _round(lm: CausalLM, prompts: list[list[int]], settings: GenerationConfig) -> list[list[int]]:
    """What each row gains until half of them have ended: those are not carried along to the end of the longest."""
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    ends: list[int] = settings.eos_token_id or []
    marks = torch.tensor(ends, dtype=torch.long, device=lm.device)
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), settings.pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1

    def half_ended(so_far: torch.Tensor, _scores: object, **_: object) -> torch.Tensor:
        ended = torch.isin(so_far[:, width:], marks).any(dim=1)
        return (2 * ended.sum() >= len(ended)).expand(len(ended))

    def finite(_so_far: torch.Tensor, scores_BV: torch.Tensor) -> torch.Tensor:
        if bool((scores_BV.isnan() | (scores_BV == float("inf"))).any()):
            raise InputError("its logits are not finite while it writes", fix="Use another model, or precision fp32")
        return scores_BV

    # What settings leave open, transformers fills from the model's own file; that file is not asked.
    own, lm.core.generation_config = lm.core.generation_config, GenerationConfig()
    try:
        out = lm.core.generate(
            ids.to(lm.device),
            attention_mask=mask.to(lm.device),
            generation_config=settings,
            logits_processor=LogitsProcessorList([finite]),
            stopping_criteria=StoppingCriteriaList([half_ended]) if ends else None,
        )
    finally:
        lm.core.generation_config = own
    gained = out[:, width:].tolist()
    return [new[: next((at + 1 for at, token in enumerate(new) if token in ends), len(new))] for new in gained]
