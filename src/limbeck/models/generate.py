"""Text from a model: batched, seeded, by the sampling settings it is given and no others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from limbeck.models.language_model import LanguageModel


@dataclass(frozen=True)
class Sampling:
    """``temperature`` 0 is greedy; ``top_k`` 0 means all."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: bool = True
    """At an end mark; otherwise every text has ``max_new_tokens``."""


@torch.no_grad()
def generate(
    lm: LanguageModel, prompts: list[list[int]], sampling: Sampling, batch_rows: int
) -> Iterator[tuple[int, list[int]]]:
    """Continuations as ``(number of the prompt, new ids)``, an end mark included, batch by batch.

    Every batch is seeded by its own number, so it comes out the same whoever asks for it alone. No text
    grows beyond the positions that the model reads.
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
    lm.model.eval()
    room = getattr(lm.config, "max_position_embeddings", None) or 10**9
    own = lm.core.generation_config
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # like lengths together: less padding
    for start in range(0, len(order), batch_rows):
        chosen = order[start : start + batch_rows]
        width = max(len(prompts[i]) for i in chosen)
        ids = torch.full((len(chosen), width), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(chosen):
            ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[row, width - len(prompts[i]) :] = 1
        settings.max_new_tokens = max(min(sampling.max_new_tokens, room - width), 1)
        torch.manual_seed(sampling.seed * 1_000_003 + start)
        # What settings leave open, transformers fills from the model's own file; that file is not asked.
        lm.core.generation_config = GenerationConfig()
        try:
            out = lm.core.generate(ids.to(lm.device), attention_mask=mask.to(lm.device), generation_config=settings)
        finally:
            lm.core.generation_config = own
        for row, i in enumerate(chosen):
            new = out[row, width:].tolist()
            stopped = next((at + 1 for at, token in enumerate(new) if token in ends), len(new))
            yield i, lm.from_own(new[:stopped])
