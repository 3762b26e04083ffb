"""A toy of every architecture that limbeck cuts, with weights that make every part of it matter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama_biased": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3},
    "qwen3": {"head_dim": 8, "tie_word_embeddings": False},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 12, "sliding_window": 5, "sliding_window_pattern": 3},
}
BY_HAND = [kind for kind in KINDS if kind != "llama_biased"]


@dataclass(frozen=True)
class Batch:
    """What a calibration batch has to have, and no more."""

    ids_BT: Tensor
    positions_BT: Tensor
    segments_BT: Tensor


def batch_of(ids_BT: Tensor, lengths: list[int] | None = None) -> Batch:
    n, width = ids_BT.shape
    at = torch.arange(width).expand(n, width)
    lengths = [width] * n if lengths is None else lengths
    return Batch(ids_BT, at.clone(), torch.where(at < torch.tensor(lengths)[:, None], 0, -1))


def make(kind: str, seed: int = 0, **sizes: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 101,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "max_position_embeddings": 128,
    }
    config = AutoConfig.for_model(kind.removesuffix("_biased"), **{**shape, **KINDS[kind], **sizes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():  # fresh norms are all alike and fresh biases zero: a wrong slice would go unseen
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.1))
    return model


@pytest.fixture
def build() -> Callable[..., Any]:
    return make


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(kind: str) -> Any:
    return make(kind)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(3, 101, (2, 16), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def batches() -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(9)
    return iter([batch_of(torch.randint(3, 101, (3, 12), generator=generator)) for _ in range(2)])


@torch.no_grad()
def logits(model: Any, ids: Tensor) -> Tensor:
    return model(ids, use_cache=False).logits


def check_lives(model: Any, folder: Any, ids: Tensor) -> None:
    """Saved and loaded it says the same, generates with a cache what it would without, and learns."""
    from transformers import AutoModelForCausalLM

    model.save_pretrained(folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(loaded) is type(model)
    torch.testing.assert_close(logits(loaded, ids), logits(model, ids), rtol=0, atol=0)
    said = [loaded.generate(ids[:, :4], max_new_tokens=9, do_sample=False, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*said)
    assert said[0].shape[1] > 4

    optimizer = torch.optim.SGD(loaded.parameters(), lr=1e-2)
    before = loaded(ids, labels=ids).loss
    before.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loaded.parameters())
    optimizer.step()
    assert loaded(ids, labels=ids).loss < before
