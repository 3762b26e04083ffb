"""The objective inside what people put around it: autocast, checkpointing, compiled models, LoRA-like freezing."""

from __future__ import annotations

import pytest
import reference
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from limbeck.objectives import Dense, Labels, Term, fused_divergence


class Tiny(nn.Module):
    """Something with a body and a head; enough to be wrapped."""

    def __init__(self, width: int = 8, vocabulary: int = 13) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(vocabulary, width)
        self.body = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.body(self.embed(ids))


IDS = torch.tensor([1, 5, 2, 7, 12, 0])


def terms() -> list[Term]:
    torch.manual_seed(1)
    labels = Labels(torch.tensor([3, -100, 4, 4, 1, 9]))
    return [Term(Dense(torch.randn(6, 5), torch.randn(13, 5)), "jsd", weight=0.2), Term(labels, weight=0.1)]


def expected(model: Tiny) -> list[torch.Tensor]:
    """Gradients of all parameters by the written-out loss."""
    loss = reference.loss(model(IDS), model.head.weight, terms())
    return [g.float() for g in torch.autograd.grad(loss, list(model.parameters()))]


def test_a_compiled_model_around_it() -> None:
    model = Tiny()
    compiled = torch.compile(model, backend="aot_eager")
    fused_divergence(compiled(IDS), model.head.weight, terms()).loss_sum.backward()
    for parameter, grad in zip(model.parameters(), expected(Tiny()), strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-6)


def test_a_compiled_step_with_it_inside() -> None:
    """The operation breaks the graph and is run as it is; the result is the same."""
    model, made = Tiny(), terms()

    @torch.compile(backend="aot_eager")
    def step(ids: torch.Tensor) -> torch.Tensor:
        return fused_divergence(model(ids) * 1.0, model.head.weight, made).loss_sum * 2.0

    step(IDS).backward()
    for parameter, grad in zip(model.parameters(), expected(Tiny()), strict=True):
        torch.testing.assert_close(parameter.grad, 2 * grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_around_it(reentrant: bool) -> None:
    model, made = Tiny(), terms()

    def inner(embedded: torch.Tensor) -> torch.Tensor:
        return fused_divergence(model.body(embedded), model.head.weight, made).loss_sum

    checkpoint(inner, model.embed(IDS), use_reentrant=reentrant).backward()
    for parameter, grad in zip(model.parameters(), expected(Tiny()), strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-6)


def test_autocast_multiplies_in_bfloat16_and_keeps_float32_gradients() -> None:
    model, made = Tiny(), terms()
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(IDS)
        assert hidden.dtype == torch.bfloat16
        outcome = fused_divergence(hidden, model.head.weight, made)
    outcome.loss_sum.backward()
    assert model.head.weight.grad.dtype == torch.float32
    for parameter, grad in zip(model.parameters(), expected(Tiny()), strict=True):
        error = (parameter.grad - grad).norm() / grad.norm()
        assert 1e-6 < error < 3e-2, "rounded to bfloat16, and no worse"


def test_autocast_multiplies_the_teacher_in_bfloat16_too() -> None:
    model, teacher = Tiny(), Tiny()
    hidden_NE, head_VE = torch.randn(IDS.numel(), 5), torch.randn(len(teacher.head.weight), 5)
    losses = []
    for target in (Dense(hidden_NE, head_VE), Dense(hidden_NE.bfloat16(), head_VE.bfloat16())):
        with torch.autocast("cpu", torch.bfloat16):
            term = Term(target, divergence="forward_kl")
            losses.append(fused_divergence(model(IDS), model.head.weight, [term]).loss_sum)
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)


def test_what_is_frozen_gets_nothing() -> None:
    model = Tiny()
    model.head.weight.requires_grad_(False)
    fused_divergence(model(IDS), model.head.weight, terms()).loss_sum.backward()
    assert model.head.weight.grad is None
    torch.testing.assert_close(model.embed.weight.grad, expected_frozen(), rtol=1e-4, atol=1e-6)

    body_frozen = Tiny()
    body_frozen.embed.requires_grad_(False)
    body_frozen.body.requires_grad_(False)
    fused_divergence(body_frozen(IDS), body_frozen.head.weight, terms()).loss_sum.backward()
    torch.testing.assert_close(body_frozen.head.weight.grad, expected(Tiny())[-1], rtol=1e-4, atol=1e-6)


def expected_frozen() -> torch.Tensor:
    return expected(Tiny())[0]


def test_tied_embeddings_get_both_gradients() -> None:
    model, twin = Tiny(), Tiny()
    for one in (model, twin):
        one.head.weight = one.embed.weight
    fused_divergence(model(IDS), model.head.weight, terms()).loss_sum.backward()
    reference.loss(twin(IDS), twin.head.weight, terms()).backward()
    torch.testing.assert_close(model.embed.weight.grad, twin.embed.weight.grad, rtol=1e-4, atol=1e-6)


def test_a_sharded_head_is_refused_with_the_fix() -> None:
    class Sharded(torch.Tensor):
        def full_tensor(self) -> torch.Tensor:
            return self

    head = torch.randn(13, 8).as_subclass(Sharded)
    with pytest.raises(ValueError, match="unsharded"):
        fused_divergence(torch.randn(6, 8), head, terms())
