"""Two gloo processes: a model in DDP or FSDP2 gets the gradients of one, with its head used after its forward pass."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch import distributed as dist

from limbeck.data.packing import IGNORED, Batch, Rows, collate
from limbeck.models.causal_lm import CausalLM
from limbeck.models.load import load_model
from limbeck.models.tokenizer import load_tokenizer
from limbeck.objectives import Labels, Term, fused_divergence
from limbeck.objectives.fused import shared_vocabulary
from limbeck.recipe import PathModel
from limbeck.runtime.world import World
from tests.unit.test_data import corpus_of

ROWS = 4


def rows(which: range) -> Batch:
    """Rows of two documents each, of different lengths: the processes have different numbers of labels."""
    documents = [(list(range(3 * i + 1, 4 * i + 9)), [True] * (i + 8)) for i in range(2 * ROWS)]
    packed = Rows(corpus_of(documents), 32, pack=True)
    return collate([packed[r] for r in which if r < len(packed)])


def load(folder: Path, name: str) -> CausalLM:
    return load_model(PathModel(path=str(folder / name)), load_tokenizer(str(folder / name))).train()


def loss_of(forward: Callable[..., Any], lm: CausalLM, teacher: CausalLM, batch: Batch, labels: int) -> Tensor:
    """A soft and a hard term over ``labels`` labels: those of all processes."""
    learned = batch.labels_BT != IGNORED
    hidden_ND = forward(batch.ids_BT, batch.positions_BT)[0][learned]
    with torch.no_grad():
        target = teacher.as_target(teacher.hidden(batch.ids_BT, batch.positions_BT)[learned])
    terms = [Term(target, weight=0.7 / labels), Term(Labels(batch.labels_BT[learned]), weight=0.3 / labels)]
    head, size = lm.head(), shared_vocabulary(lm.vocab_size, terms)
    return fused_divergence(
        hidden_ND, head.weight_VD, terms, bias_V=head.bias_V, softcap=head.softcap, scale=head.scale, vocab_size=size
    ).loss_sum


def run(rank: int, port: int, kind: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    world = World.current()
    assert (world.rank, world.size) == (rank, 2)
    lm, teacher = (load(Path(folder), name) for name in ("student", "teacher"))
    batch = rows(range(rank, ROWS, 2))
    own = torch.tensor(batch.count())
    labels = int(world.sum(own))
    assert 0 < int(own) < labels
    forward: Any = lm
    if kind == "ddp":
        forward = nn.parallel.DistributedDataParallel(lm)
    else:
        from torch.distributed.fsdp import fully_shard

        for layer in lm.layers():
            fully_shard(layer)
        fully_shard(lm, reshard_after_forward=False)  # the head is whole until the backward pass
    # Gradients are averaged over processes: the sum is asked for.
    (loss_of(forward, lm, teacher, batch, labels) * world.size).backward()
    found: dict[str, Any] = {name: p.grad for name, p in lm.named_parameters()}
    grads = {name: grad.full_tensor() if kind == "fsdp2" else grad for name, grad in found.items()}
    if rank == 0:
        torch.save(grads, Path(folder) / "grads.pt")
    dist.barrier()
    dist.destroy_process_group()
    # gloo's threads now and then outlive the interpreter and abort it, long after everything that is tested here.
    os._exit(0)


@pytest.mark.parametrize(
    ("kind", "tied"),
    [
        ("ddp", True),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [("ddp", False), ("fsdp2", True), ("fsdp2", False)]),
    ],
)
def test_two_processes_give_the_gradients_of_one(
    kind: str, tied: bool, make_lm: Callable[..., CausalLM], tmp_path: Path
) -> None:
    for name, lm in {"student": make_lm(1, tie_word_embeddings=tied), "teacher": make_lm(2, hidden_size=48)}.items():
        lm.model.save_pretrained(tmp_path / name)
        lm.tokenizer.save_pretrained(tmp_path / name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(run, args=(port, kind, str(tmp_path)), nprocs=2)
    lm, teacher = (load(tmp_path, name) for name in ("student", "teacher"))
    batch = rows(range(ROWS))
    loss_of(lm, lm, teacher, batch, batch.count()).backward()
    grads = torch.load(tmp_path / "grads.pt")
    assert grads.keys() == {name for name, _ in lm.named_parameters()}
    for name, p in lm.named_parameters():
        assert p.grad is not None, name
        assert float((grads[name] - p.grad).abs().max()) <= 1e-5 * float(p.grad.abs().max()), name
