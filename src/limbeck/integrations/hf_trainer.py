"""limbeck's objective inside ``transformers.Trainer``, for those who have a Trainer and want to keep it.

    trainer = DistillationTrainer(
        model=student, teacher=teacher, processing_class=tokenizer, args=args, train_dataset=data,
        data_collator=collator, divergence={"name": "jsd", "beta": 0.5}, temperature=2.0,
        kd_weight=0.8, ce_weight=0.2,
    )

Neither model's logits are ever held for a whole batch; only positions that have a label are computed.

Shape suffixes: B rows, T tokens of a row; N positions; D, E widths of student and teacher; V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Trainer

from limbeck.errors import InputError, under
from limbeck.models.causal_lm import CausalLM
from limbeck.models.proof import prove
from limbeck.objectives import Dense, Labels, Outcome, Term, fused_divergence, resolve
from limbeck.objectives.divergences import DivergenceLike

_READS = ("input_ids", "attention_mask", "position_ids")


class DistillationTrainer(Trainer):
    """A Trainer whose loss is a mix of a divergence from a teacher and cross-entropy on the labels.

    The loss of a step is ``sum over tokens of kd_weight * D(teacher, student) + ce_weight * CE``,
    divided by the number of labelled tokens of the whole step: over all micro-batches, and over all
    processes if ``average_tokens_across_devices``. Labels are not shifted yet, as usual in a Trainer:
    token ``t`` is predicted from the hidden state at ``t - 1``.

    Args:
        teacher: a causal language model with the student's vocabulary (rows beyond the tokenizer's are
            padding and are cropped, of both). It is put into evaluation mode, frozen and never trained.
        divergence: as for :class:`~limbeck.objectives.Term`.
        temperature: divides both sides' logits in the soft part. Its gradient shrinks about as
            1/temperature**2: raise ``kd_weight`` if you want that back.
        kd_weight: weight of the divergence, ``>= 0``.
        ce_weight: weight of the cross-entropy on the labels, ``>= 0``.
        precise: as for :func:`~limbeck.objectives.fused_divergence`.
        **trainer: everything that ``transformers.Trainer`` takes; ``processing_class`` is needed, to know
            the size of the vocabulary.

    Raises:
        InputError: if weights, tokenizer or model are not what is said above.
    """

    # The loss is divided by the tokens of the whole step, so no micro-batch may be divided again.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        teacher: nn.Module,
        divergence: DivergenceLike = "forward_kl",
        temperature: float = 1.0,
        kd_weight: float = 1.0,
        ce_weight: float = 0.0,
        precise: bool | None = None,
        **trainer: Any,
    ) -> None:
        tokenizer = trainer.get("processing_class")
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise InputError("DistillationTrainer needs the models' tokenizer", fix="Pass processing_class=...")
        if kd_weight < 0 or ce_weight < 0 or kd_weight + ce_weight == 0:
            raise InputError(f"kd_weight and ce_weight must be >= 0 and not both 0, got {kd_weight} and {ce_weight}")
        super().__init__(**trainer)
        self.divergence, self.temperature = resolve(divergence), temperature
        self.kd_weight, self.ce_weight, self.precise = kd_weight, ce_weight, precise
        self.student = CausalLM(self.accelerator.unwrap_model(self.model), tokenizer)
        self.teacher = CausalLM(teacher.eval().requires_grad_(False).to(self.args.device), tokenizer)
        with under("model"):
            prove(self.student)
        with under("teacher"):
            prove(self.teacher)
        # The loss is made here, so its tokens are counted here too, whatever the model's forward accepts:
        # those of the shifted labels.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = True
        self._sums: dict[str, float] = defaultdict(float)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The scalar loss of one micro-batch, and with ``return_outputs`` a dict that holds only it."""
        if "labels" not in inputs:
            raise InputError("the batch has no labels", fix="Use a collator that makes them, -100 where ignored")
        labels_N = inputs["labels"][:, 1:].flatten()
        reads = {key: inputs[key] for key in _READS if key in inputs}
        # Through the wrapper (DDP, FSDP), whose hooks must see a forward; one position's logits cost nothing.
        out = model(**reads, output_hidden_states=True, logits_to_keep=1, use_cache=False)
        hidden_ND = out.hidden_states[-1][:, :-1].flatten(0, 1)
        count = (labels_N != -100).sum() if num_items_in_batch is None else num_items_in_batch
        outcome = self._objective(hidden_ND, labels_N, reads, float(count))
        loss = outcome.loss_sum
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # Gradients are averaged over processes, and the count is of all of them.
            loss = loss * self.accelerator.num_processes
        return (loss, {"loss": loss}) if return_outputs else loss

    def _objective(self, hidden_ND: Tensor, labels_N: Tensor, reads: dict[str, Tensor], count: float) -> Outcome:
        head, share = self.student.head(), 1.0 / max(count, 1.0)
        terms, names = [], []
        if self.kd_weight:
            mask_N = (labels_N != -100).float()
            terms.append(Term(self._teacher(reads), self.divergence, self.temperature, self.kd_weight * share, mask_N))
            names.append("divergence")
        if self.ce_weight:
            terms.append(Term(Labels(labels_N), weight=self.ce_weight * share))
            names.append("cross_entropy")
        outcome = fused_divergence(
            hidden_ND,
            head.weight_VD,
            terms,
            bias_V=head.bias_V,
            softcap=head.softcap,
            scale=head.scale,
            vocab_size=self.student.vocab_size,
            precise=self.precise,
        )
        if self.model.training:
            for name, total in zip(names, outcome.sums, strict=True):
                self._sums[name] += float(total)
            self._sums["tokens"] += float(outcome.counts[0])
            if outcome.stats[0].agreement_N is not None:
                self._sums["agreement"] += float(outcome.stats[0].agreement_N.sum())
        return outcome

    @torch.no_grad()
    def _teacher(self, reads: dict[str, Tensor]) -> Dense:
        hidden_BTE = self.teacher.core.get_decoder()(**reads, use_cache=False).last_hidden_state
        head = self.teacher.head()
        return Dense(
            hidden_BTE[:, :-1].flatten(0, 1).to(head.weight_VD.dtype),
            head.weight_VD,
            head.bias_V,
            softcap=head.softcap,
            scale=head.scale,
        )

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The loss only: logits of a whole batch are what this class exists to avoid."""
        return super().prediction_step(model, inputs, prediction_loss_only=True, ignore_keys=ignore_keys)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds this process's means per token since the last log: the terms, and the top-1 agreement with
        the teacher (with the labels, where there is no teacher in the mix)."""
        tokens = self._sums.pop("tokens", 0.0)
        if tokens and "loss" in logs:
            logs = logs | {name: total / tokens for name, total in self._sums.items()}
            self._sums.clear()
        elif tokens:
            self._sums["tokens"] = tokens
        super().log(logs, *args, **kwargs)
