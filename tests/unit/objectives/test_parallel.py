"""Two gloo processes: the objective under DDP and FSDP2 gives the gradients of one process."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import reference
import torch
import torch.multiprocessing as mp
from test_surroundings import IDS, Tiny, terms
from torch import distributed as dist
from torch import nn

from limbeck.objectives import Dense, Labels, Term, fused_divergence

pytestmark = pytest.mark.slow


class Whole(nn.Module):
    """Body, head and loss in one forward, as a trainer that shards calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Tiny()

    def forward(self, ids: torch.Tensor, made: list[Term]) -> torch.Tensor:
        return fused_divergence(self.model(ids), self.model.head.weight, made).loss_sum


def half(made: list[Term], rank: int) -> list[Term]:
    """The terms of this rank's three positions. Weights are twice those of one process: gradients are averaged."""
    rows = slice(3 * rank, 3 * rank + 3)
    soft, hard = made
    return [
        Term(Dense(soft.target.hidden_NE[rows], soft.target.head_VE), soft.divergence, weight=2 * soft.weight),
        Term(Labels(hard.target.ids_N[rows]), weight=2 * hard.weight),
    ]


def run(rank: int, port: int, kind: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    module = Whole()
    made = half(terms(), rank)
    ids = IDS[3 * rank : 3 * rank + 3]
    if kind == "ddp":
        wrapped = nn.parallel.DistributedDataParallel(module)
        wrapped(ids, made).backward()
        grads = [parameter.grad for parameter in module.parameters()]
    else:
        from torch.distributed.fsdp import fully_shard

        fully_shard(module.model.body)
        # The head's module stays whole during forward and backward.
        fully_shard(module, reshard_after_forward=False)
        module(ids, made).backward()
        grads = [parameter.grad.full_tensor() for parameter in module.parameters()]
    if rank == 0:
        torch.save(grads, Path(folder) / "grads.pt")
    dist.barrier()
    dist.destroy_process_group()
    # gloo's threads now and then outlive the interpreter and abort it ("terminate called without an active
    # exception"), long after everything that is tested here.
    os._exit(0)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_give_the_gradients_of_one(kind: str, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(run, args=(port, kind, str(tmp_path)), nprocs=2)
    model = Tiny()
    loss = reference.loss(model(IDS), model.head.weight, terms())
    expected = torch.autograd.grad(loss, list(model.parameters()))
    for got, want in zip(torch.load(tmp_path / "grads.pt"), expected, strict=True):
        torch.testing.assert_close(got, want.float(), rtol=1e-4, atol=1e-6)
