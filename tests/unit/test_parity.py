"""limbeck's loop and its objective inside transformers.Trainer make the same student."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.data.packing import Rows
from limbeck.integrations.hf_trainer import DistillationTrainer
from limbeck.models.causal_lm import CausalLM
from limbeck.recipe import Soft, Training
from limbeck.signals.live import LiveTeacher
from limbeck.training.loop import TrainingJob, train
from limbeck.training.loss_graph import LossGraph
from limbeck.training.sources import ONE_PROCESS, CorpusBatches
from limbeck.training.techniques import loss_terms_of
from tests.unit.test_data import corpus_of
from tests.unit.test_training import ragged_rows

pytest.importorskip("accelerate")


def test_the_trainer_and_the_loop_make_the_same_student(
    tmp_path: Path, make_lm: Callable[..., CausalLM], tokenizer: Any
) -> None:
    """Five steps of four rows, the same rows in the same order: parameters equal to rounding."""
    from transformers import TrainingArguments

    documents = ragged_rows(20, seed=4)
    corpus = corpus_of(documents)
    ours, theirs, teacher = make_lm(1), make_lm(1), make_lm(2, hidden_size=48)
    section = Training(
        tokens=1,
        micro_batch_size=4,
        lr=1e-3,
        warmup=0,
        schedule="constant",
        weight_decay=0.0,
        betas=(0.9, 0.999),
        clip=0.0,
    )
    batches = CorpusBatches(
        Rows(corpus, 16, pack=False), tokens=1, micro_batch_size=4, gradient_accumulation_steps=1, seed=3
    )
    batches.steps = 5
    steps = [batches.step(n, ONE_PROCESS) for n in range(len(batches))]
    order = [row for step in steps for batch in step for row in batch.ids_BT.tolist()]
    loss_terms = loss_terms_of(Soft(kd_weight=0.8, ce_weight=0.2), ["student"])
    graph = LossGraph({"student": ours}, loss_terms, {"teacher": LiveTeacher(teacher)})
    train(graph, batches, TrainingJob(section, tmp_path / "ours", seed=0))

    by_start = {tuple(ids[:-1]): (ids, learn) for ids, learn in documents}
    examples = []
    for padded in order:
        ids, learn = next(found for start, found in by_start.items() if tuple(padded[: len(start)]) == start)
        labels = [i if flag else -100 for i, flag in zip(ids, learn, strict=True)]
        examples.append({"input_ids": ids, "labels": labels})

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        pad = {"input_ids": 0, "labels": -100}
        return {
            name: torch.tensor([row[name] + [value] * (width - len(row[name])) for row in rows])
            for name, value in pad.items()
        }

    arguments = TrainingArguments(
        output_dir=str(tmp_path / "theirs"),
        per_device_train_batch_size=4,
        max_steps=5,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=0.0,
        optim="adamw_torch",
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        train_sampling_strategy="sequential",
    )
    DistillationTrainer(
        teacher=teacher.model,
        kd_weight=0.8,
        ce_weight=0.2,
        model=theirs.model,
        args=arguments,
        train_dataset=examples,
        data_collator=collate,
        processing_class=tokenizer,
    ).train()
    start = dict(make_lm(1).model.named_parameters())
    for name, p in ours.model.named_parameters():
        assert float((p - start[name]).detach().abs().max()) > 1e-4
        torch.testing.assert_close(dict(theirs.model.named_parameters())[name], p, rtol=1e-3, atol=2e-5)
