"""What updates a trainable model: AdamW, its schedule, and clipping."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from limbeck.models.causal_lm import CausalLM
from limbeck.recipe import Optimiser


class Learner:
    """A trainable model with its optimiser and its schedule.

    Args:
        lm: whose trainable parameters are updated.
        section: the recipe's numbers.
        total_steps: steps of the whole training, for the schedule.
        lr: peak learning rate, if not the section's.
    """

    def __init__(self, lm: CausalLM, section: Optimiser, total_steps: int, lr: float | None = None) -> None:
        self.lm = lm
        self.parameters = [p for p in lm.model.parameters() if p.requires_grad]
        self.clip = section.clip
        groups = [
            {"params": [p for p in self.parameters if p.ndim >= 2], "weight_decay": section.weight_decay},
            {"params": [p for p in self.parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=lr or section.lr, betas=section.betas, fused=True
        )
        self.schedule = make_schedule(self.adamw, section, total_steps)

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.schedule.get_last_lr()[0])

    def step(self, *, update: bool = True) -> float:
        """Clip, update, and forget the gradients. Returns the gradient's norm before clipping.

        Gradients that are not finite are forgotten without an update, as all are without ``update``; the
        schedule goes on: the learning rate is a function of the step's number.
        """
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if update and bool(torch.isfinite(norm)):
            if self.clip:
                torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)
            self.adamw.step()
        with warnings.catch_warnings():  # torch takes a first update that is skipped for a mistake in the order
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self.schedule.step()
        self.adamw.zero_grad(set_to_none=True)
        return float(norm)


def make_schedule(adamw: torch.optim.Optimizer, section: Optimiser, total_steps: int) -> Any:
    """Warm-up, then what the recipe says, through transformers' own schedules."""
    from transformers import get_scheduler

    warmup = round(section.warmup * total_steps)
    match section.schedule:
        case "cosine":
            name, extra = "cosine_with_min_lr", {"min_lr_rate": section.min_lr_ratio}
        case "wsd":
            name = "warmup_stable_decay"
            extra = {
                "num_decay_steps": max(round(section.decay * total_steps), 1),
                "min_lr_ratio": section.min_lr_ratio,
            }
        case "linear":
            name, extra = "linear", {}
        case "constant":
            name, extra = "constant_with_warmup", {}
    return get_scheduler(
        name, adamw, num_warmup_steps=warmup, num_training_steps=total_steps, scheduler_specific_kwargs=extra
    )
