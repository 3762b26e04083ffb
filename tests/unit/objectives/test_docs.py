"""The recipes of docs/objective.md are run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_hf_trainer import PADDED, llama, naive_loss, rows

DOCUMENT = Path(__file__).parents[3] / "docs" / "objective.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    made = {key: torch.stack([row[key] for row in rows(3)]) for key in ("input_ids", "labels")}
    return made | {"attention_mask": torch.ones_like(made["input_ids"])}


def whole_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipes do not crop padding; the naive loss then must not either."""
    monkeypatch.setattr("test_hf_trainer.VOCABULARY", PADDED)


def test_recipes_are_short() -> None:
    assert len(SNIPPETS) == 2
    for snippet in SNIPPETS:
        assert len(snippet.strip().splitlines()) <= 15


def test_the_plain_torch_recipe(monkeypatch: pytest.MonkeyPatch, batch: dict[str, torch.Tensor]) -> None:
    whole_vocabulary(monkeypatch)
    names = {"torch": torch}
    exec(SNIPPETS[0], names)
    student, twin, teacher = llama(16, 1), llama(16, 1), llama(24, 2)
    loss = names["distillation_loss"](student, teacher, batch["input_ids"], batch["labels"])
    expected = naive_loss(twin, teacher, batch, 0.8, 0.2, 1.0)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    loss.backward()
    expected.backward()
    for one, other in zip(student.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("items", [None, 40])
def test_the_trl_recipe(monkeypatch: pytest.MonkeyPatch, batch: dict[str, torch.Tensor], items: int | None) -> None:
    """TRL's trainer is reduced to what the recipe uses of it: its settings and its two models."""
    whole_vocabulary(monkeypatch)
    student, teacher = llama(16, 1), llama(24, 2)

    class GKDTrainer:
        beta, temperature = 0.0, 2.0
        teacher_model = teacher
        accelerator = SimpleNamespace(unwrap_model=lambda model: model)

    names = {"torch": torch, "GKDTrainer": GKDTrainer}
    exec(SNIPPETS[1], names)
    loss = names["LeanGKDTrainer"]().compute_loss(student, batch, num_items_in_batch=items)
    expected = naive_loss(student, teacher, batch, 1.0, 0.0, 2.0)
    if items is not None:
        expected = expected * (batch["labels"][:, 1:] != -100).sum() / items
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
