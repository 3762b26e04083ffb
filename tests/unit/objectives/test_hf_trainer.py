"""The objective inside transformers.Trainer: its gradients are those of the formula written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainingArguments

from limbeck.errors import InputError
from limbeck.integrations.hf_trainer import DistillationTrainer

VOCABULARY, PADDED = 29, 32


def llama(width: int, layers: int, rows: int = PADDED, **more: Any) -> LlamaForCausalLM:
    torch.manual_seed(width)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.2,
        **more,
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {f"t{i}": i for i in range(VOCABULARY)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="t0")), pad_token="t0"
    )


def rows(count: int, length: int = 9) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(7)
    made = []
    for i in range(count):
        ids = torch.randint(0, VOCABULARY, (length,))
        labels = ids.clone()
        labels[: 1 + i % 4] = -100
        made.append({"input_ids": ids, "labels": labels})
    return made


def trainer(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, **more: Any) -> DistillationTrainer:
    arguments = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 1,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "save_strategy": "no",
        "max_grad_norm": 0.0,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "disable_tqdm": True,
        **more.pop("arguments", {}),
    }
    settings = {
        "model": llama(16, 1),
        "teacher": llama(24, 2, rows=PADDED + 8),
        "processing_class": tokenizer,
        "train_dataset": rows(4),
        "args": TrainingArguments(output_dir=str(tmp_path), **arguments),
        **more,
    }
    return DistillationTrainer(**settings)


def naive_loss(student: Any, teacher: Any, batch: dict[str, torch.Tensor], soft: float, hard: float, T: float):
    """Forward KL and cross-entropy, per labelled token, from all the logits."""
    logits = student(input_ids=batch["input_ids"]).logits[:, :-1, :VOCABULARY]
    with torch.no_grad():
        wanted = teacher(input_ids=batch["input_ids"]).logits[:, :-1, :VOCABULARY]
    labels = batch["labels"][:, 1:]
    kl = F.kl_div(
        torch.log_softmax(logits / T, -1), torch.log_softmax(wanted / T, -1), reduction="none", log_target=True
    ).sum(-1)
    mask = labels != -100
    ce = F.cross_entropy(logits[mask], labels[mask], reduction="sum")
    return (soft * kl[mask].sum() + hard * ce) / mask.sum()


def test_one_step_is_the_formulas_step_over_the_whole_batch(tmp_path: Path, tokenizer: Any) -> None:
    """With gradient_accumulation_steps: what SGD moves is the gradient of the mean over all four rows at once."""
    student, twin = llama(16, 1), llama(16, 1)
    made = trainer(
        tmp_path,
        tokenizer,
        model=student,
        temperature=2.0,
        kd_weight=0.7,
        ce_weight=0.3,
        optimizers=(torch.optim.SGD(student.parameters(), lr=0.1), None),
    )
    made.train()
    batch = {key: torch.stack([row[key] for row in rows(4)]) for key in ("input_ids", "labels")}
    loss = naive_loss(twin, made.teacher.model, batch, 0.7, 0.3, 2.0)
    loss.backward()
    for (name, moved), (_, still) in zip(student.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(moved, still - 0.1 * still.grad, rtol=1e-4, atol=1e-6, msg=name)
    (logged,) = [entry for entry in made.state.log_history if "loss" in entry]
    assert logged["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert logged["divergence"] * 0.7 + logged["cross_entropy"] * 0.3 == pytest.approx(loss.item(), rel=1e-4)
    assert 0.0 <= logged["agreement"] <= 1.0


def test_the_teacher_is_left_alone(tmp_path: Path, tokenizer: Any) -> None:
    teacher = llama(24, 2)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    trainer(tmp_path, tokenizer, teacher=teacher).train()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_evaluation_gives_the_same_loss_and_no_logits(tmp_path: Path, tokenizer: Any) -> None:
    made = trainer(tmp_path, tokenizer, eval_dataset=rows(2), arguments={"per_device_eval_batch_size": 2})
    batch = {key: torch.stack([row[key] for row in rows(2)]) for key in ("input_ids", "labels")}
    with torch.no_grad():
        expected = naive_loss(made.model, made.teacher.model, batch, 1.0, 0.0, 1.0)
    assert made.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_a_head_with_softcap_and_scale_is_understood(tmp_path: Path, tokenizer: Any) -> None:
    """Granite divides its logits; the trainer proves its reading of the head on the model's own logits."""
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=PADDED,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        logits_scaling=4.0,
        initializer_range=0.5,
    )
    made = trainer(tmp_path, tokenizer, model=GraniteForCausalLM(config))
    batch = {key: torch.stack([row[key] for row in rows(2)]) for key in ("input_ids", "labels")}
    expected = naive_loss(made.model, made.teacher.model, batch, 1.0, 0.0, 1.0)
    assert made.compute_loss(made.model, batch).item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"processing_class": None}, "tokenizer"),
        ({"kd_weight": 0.0}, "not both 0"),
        ({"ce_weight": -0.1}, ">= 0"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path: Path, tokenizer: Any, settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        trainer(tmp_path, tokenizer, **settings)


def test_a_batch_without_labels_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    made = trainer(tmp_path, tokenizer)
    with pytest.raises(InputError, match="labels"):
        made.compute_loss(made.model, {"input_ids": torch.zeros(1, 3, dtype=torch.int64)})
