"""Sums of exponentials over blocks of tokens, in C++ and in torch."""

from __future__ import annotations

import pytest
import torch

from limbeck.objectives.kernels import blocks
from limbeck.objectives.kernels.blocks import block_sums


@pytest.mark.parametrize("vocab_size", [1, 15, 16, 64, 65, 4096, 4097, 5003])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_block_sums_are_those_of_float64(
    backend: str, vocab_size: int, dtype: torch.dtype, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "PART", 2 * vocab_size)
    generator = torch.Generator().manual_seed(vocab_size)
    wide_nV = (torch.randn(5, vocab_size + 7, generator=generator) * 8).to(dtype)
    wide_nV[torch.rand(wide_nV.shape, generator=generator) < 0.1] = -torch.inf
    wide_nV[:, vocab_size // 2] = 4.0
    wide_nV[:, vocab_size:] = 100.0  # beyond the rows that are asked about
    logits_nV = wide_nV[:, :vocab_size]
    before = wide_nV.clone()
    found = block_sums(logits_nV, temperature, 64)
    assert torch.equal(wide_nV, before)
    x_nV = (logits_nV.double() - logits_nV.double().amax(1, keepdim=True)) / temperature
    exp_nP = torch.nn.functional.pad(x_nV.exp(), (0, -vocab_size % 64))
    assert torch.equal(found.max_n.double(), logits_nV.double().amax(1))
    # Rounding of x in float32 is relative in exp(x): 4e-6 of what is as unlikely as 1e-20.
    torch.testing.assert_close(found.sums_nB, exp_nP.view(5, -1, 64).sum(2), rtol=5e-6, atol=1e-30)
    torch.testing.assert_close(found.sums_nB.sum(1), exp_nP.sum(1), rtol=3e-7, atol=0)
    moment_n = (x_nV.exp() * x_nV.clamp_min(-1e4)).sum(1)
    torch.testing.assert_close(found.moment_n, moment_n, rtol=3e-6, atol=1e-6)


def test_what_is_broken_shows(backend: str) -> None:
    for value in (torch.nan, torch.inf, -torch.inf):
        logits_nV = torch.full((3, 200), 1.0)
        logits_nV[1] = -torch.inf if value == -torch.inf else 1.0
        logits_nV[1, 70] = value
        found = block_sums(logits_nV, 1.0, 64)
        finite_n = (found.max_n.double() + found.sums_nB.sum(1)).isfinite()
        assert finite_n.tolist() == [True, False, True]
