"""The implementations that ``objective.py`` compares, each called the way its own library calls it.

A variant is a function of a :class:`Problem` that returns the gradients of the mean loss by the student's
hidden states and head. Imports of the peers are inside, so that each process loads one of them.

Shape suffixes: N positions; D, E widths of student and teacher; V vocabulary; K stored entries a position.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

STUDENT_WIDTH, TEACHER_WIDTH, ENTRIES = 512, 1024, 64


@dataclass
class Problem:
    """One case, with its inputs. ``sparse`` is (ids_NK, logprobs_NK) or None for a dense target."""

    hidden_ND: Tensor
    head_VD: Tensor
    teacher_hidden_NE: Tensor
    teacher_head_VE: Tensor
    sparse: tuple[Tensor, Tensor] | None
    divergence: str

    @property
    def beta(self) -> float:
        return {"forward_kl": 0.0, "jsd": 0.5}[self.divergence]

    def leaves(self) -> tuple[Tensor, Tensor]:
        return self.hidden_ND.requires_grad_(), self.head_VD.requires_grad_()

    def gradients(self) -> tuple[Tensor, Tensor]:
        assert self.hidden_ND.grad is not None
        assert self.head_VD.grad is not None
        return self.hidden_ND.grad, self.head_VD.grad


def make_problem(
    N: int,
    V: int,
    dtype: torch.dtype,
    divergence: str,
    target: str,
    *,
    widths: tuple[int, int] = (STUDENT_WIDTH, TEACHER_WIDTH),
    device: str = "cpu",
) -> Problem:
    """Logits of standard deviation 3, and a student that is off its teacher's by 1: half-way through training.

    Seeded, and on one device the same numbers (rounded) for every dtype.
    """
    generator = torch.Generator(device).manual_seed(0)

    def normal(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator, device=device)

    D, E = widths
    hidden, head = normal(N, D), normal(V, D) * (3.0 / D**0.5)
    extra, extra_head = normal(N, E - D), normal(V, E - D) * (1.0 / (E - D) ** 0.5)
    hidden, head = hidden.to(dtype), head.to(dtype)
    t_hidden = torch.cat([hidden, extra.to(dtype)], 1)
    t_head = torch.cat([head, extra_head.to(dtype)], 1)
    sparse = None
    if target == "sparse":
        ids, logprobs = [], []
        for rows in t_hidden.split(128):
            logp = torch.log_softmax(rows.float() @ t_head.float().T, -1)
            top = logp.topk(ENTRIES)
            ids.append(top.indices)
            logprobs.append(top.values)
        sparse = torch.cat(ids), torch.cat(logprobs)
    return Problem(hidden, head, t_hidden, t_head, sparse, divergence)


def floor(problem: Problem) -> tuple[Tensor, Tensor]:
    """The matmuls that nobody can leave out, and nothing else: logits of both sides (student's only, for a
    sparse target), gradients of hidden states and head, in chunks of 128 MiB of logits (512 on a GPU).

    The head's gradient of every chunk is made, in the inputs' dtype, and thrown away: not accumulated. So
    for bfloat16 the floor is below what a right answer costs, which must be summed in float32.
    """
    return _floor(problem, summed=False)


def floor_summed(problem: Problem) -> tuple[Tensor, Tensor]:
    """The floor, and the head's gradient summed over chunks in float32, as a right answer needs it."""
    return _floor(problem, summed=True)


def _floor(problem: Problem, *, summed: bool) -> tuple[Tensor, Tensor]:
    N, V = len(problem.hidden_ND), len(problem.head_VD)
    budget, most = (2**29, 4096) if problem.hidden_ND.device.type == "cuda" else (2**27, 1024)
    size = max(32, min(most, budget // (V * problem.hidden_ND.element_size()) // 32 * 32))
    new = problem.hidden_ND.new_empty
    logits, teacher = new(size, V), new(size, V) if problem.sparse is None else None
    grad_hidden, grad_head = torch.empty_like(problem.hidden_ND), torch.empty_like(problem.head_VD)
    if summed:
        grad_head = torch.zeros_like(problem.head_VD, dtype=torch.float32)
    with torch.no_grad():
        for start in range(0, N, size):
            rows = slice(start, min(start + size, N))
            count = rows.stop - start
            torch.mm(problem.hidden_ND[rows], problem.head_VD.t(), out=logits[:count])
            if teacher is not None:
                torch.mm(problem.teacher_hidden_NE[rows], problem.teacher_head_VE.t(), out=teacher[:count])
            torch.mm(logits[:count], problem.head_VD, out=grad_hidden[rows])
            if not summed:
                torch.mm(logits[:count].t(), problem.hidden_ND[rows], out=grad_head)
                continue
            for block in range(0, V, 8192):
                columns = slice(block, block + 8192)
                grad_head[columns] += logits[:count, columns].t() @ problem.hidden_ND[rows]
    return grad_hidden, grad_head


def naive(problem: Problem) -> tuple[Tensor, Tensor]:
    """All the logits, log-softmax and autograd: what everybody writes first."""
    hidden, head = problem.leaves()
    student = torch.log_softmax((hidden @ head.T).float(), -1)
    if problem.sparse is None:
        with torch.no_grad():
            logits = problem.teacher_hidden_NE @ problem.teacher_head_VE.T
            teacher = torch.log_softmax(logits.float(), -1)
        mean_divergence(student, teacher, problem.beta).backward()
    else:
        ids, logprobs = problem.sparse
        entries = student.gather(1, ids)
        p_tail = (1.0 - logprobs.exp().sum(-1, keepdim=True)).clamp_min(1e-30).log()
        q_tail = (1.0 - entries.exp().sum(-1, keepdim=True)).clamp_min(1e-30).log()
        merged_q, merged_p = torch.cat([entries, q_tail], 1), torch.cat([logprobs, p_tail], 1)
        mean_divergence(merged_q, merged_p, problem.beta).backward()
    return problem.gradients()


def mean_divergence(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Forward KL or JSD of log-probabilities [N, V], averaged over positions."""
    if beta == 0.0:
        return F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    beta_log, rest_log = torch.tensor(beta).log(), torch.tensor(1 - beta).log()
    mixture = torch.logaddexp(student + rest_log, teacher + beta_log)
    return beta * F.kl_div(mixture, teacher, reduction="batchmean", log_target=True) + (1 - beta) * F.kl_div(
        mixture, student, reduction="batchmean", log_target=True
    )


def trl_gkd(problem: Problem) -> tuple[Tensor, Tensor]:
    """``GKDTrainer.generalized_jsd_loss`` on logits, as its ``compute_loss`` calls it."""
    from trl.experimental.gkd import GKDTrainer

    hidden, head = problem.leaves()
    with torch.no_grad():
        teacher = (problem.teacher_hidden_NE @ problem.teacher_head_VE.T).unsqueeze(0)
    student = (hidden @ head.T).unsqueeze(0)
    labels = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
    GKDTrainer.generalized_jsd_loss(student, teacher, labels=labels, beta=problem.beta).backward()
    return problem.gradients()


def trl_chunked(problem: Problem) -> tuple[Tensor, Tensor]:
    """What ``DistillationTrainer._compute_loss`` calls on the two models' last hidden states."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    hidden, head = problem.leaves()
    mask = torch.ones(1, len(hidden), device=hidden.device)
    loss, _, _ = _chunked_divergence_loss(
        hidden.unsqueeze(0),
        problem.teacher_hidden_NE.unsqueeze(0),
        head,
        problem.teacher_head_VE,
        mask,
        problem.beta,
    )
    loss.backward()
    return problem.gradients()


def _liger(problem: Problem, compiled: bool) -> tuple[Tensor, Tensor]:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    hidden, head = problem.leaves()
    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=problem.beta, compiled=compiled)
    labels = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
    loss(hidden, head, problem.teacher_hidden_NE, problem.teacher_head_VE, labels).backward()
    return problem.gradients()


def liger(problem: Problem) -> tuple[Tensor, Tensor]:
    """``LigerFusedLinearJSDLoss`` without torch.compile."""
    return _liger(problem, compiled=False)


def liger_compiled(problem: Problem) -> tuple[Tensor, Tensor]:
    """``LigerFusedLinearJSDLoss`` as it comes, compiled. It compiles anew at every call of it."""
    return _liger(problem, compiled=True)


def torchtune(problem: Problem) -> tuple[Tensor, Tensor]:
    """``ForwardKLWithChunkedOutputLoss`` with the heads applied to 8 chunks, as its recipe does.

    The file is loaded by itself: the package does not import beside a current torchao.
    """
    spec = importlib.util.find_spec("torchtune")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("torchtune")
    path = Path(spec.submodule_search_locations[0]) / "modules" / "loss" / "kd_losses.py"
    file_spec = importlib.util.spec_from_file_location("torchtune_kd_losses", path)
    assert file_spec is not None
    assert file_spec.loader is not None
    module = importlib.util.module_from_spec(file_spec)
    file_spec.loader.exec_module(module)
    hidden, head = problem.leaves()
    student = [chunk @ head.T for chunk in hidden.unsqueeze(0).chunk(8, dim=1)]
    with torch.no_grad():
        teacher = [
            chunk @ problem.teacher_head_VE.T for chunk in problem.teacher_hidden_NE.unsqueeze(0).chunk(8, dim=1)
        ]
    labels = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
    module.ForwardKLWithChunkedOutputLoss()(student, teacher, labels).backward()
    return problem.gradients()


def _ours(problem: Problem, *, precise: bool) -> tuple[Tensor, Tensor]:
    from limbeck.objectives import Dense, Sparse, Target, Term, fused_divergence

    hidden, head = problem.leaves()
    target: Target = Dense(problem.teacher_hidden_NE, problem.teacher_head_VE)
    if problem.sparse is not None:
        ids, logprobs = problem.sparse
        offsets = torch.arange(len(ids) + 1, device=ids.device) * ids.shape[1]
        target = Sparse(offsets, ids.reshape(-1), logprobs.reshape(-1), "top_k_tail")
    term = Term(target, problem.divergence, weight=1.0 / len(hidden))
    fused_divergence(hidden, head, [term], precise=precise).loss_sum.backward()
    return problem.gradients()


def limbeck(problem: Problem) -> tuple[Tensor, Tensor]:
    """``fused_divergence`` as it comes, statistics included."""
    return _ours(problem, precise=False)


def limbeck_precise(problem: Problem) -> tuple[Tensor, Tensor]:
    """``fused_divergence(precise=True)``: float32 logits from bfloat16 operands."""
    return _ours(problem, precise=True)


def limbeck_eager(problem: Problem) -> tuple[Tensor, Tensor]:
    """``fused_divergence`` where there is no compiler (``LIMBECK_CPU_KERNEL=0``)."""
    import os

    os.environ["LIMBECK_CPU_KERNEL"] = "0"
    return _ours(problem, precise=False)


VARIANTS: dict[str, Callable[[Problem], tuple[Tensor, Tensor]]] = {
    "floor": floor,
    "floor, summed": floor_summed,
    "limbeck": limbeck,
    "limbeck precise": limbeck_precise,
    "limbeck eager": limbeck_eager,
    "naive torch": naive,
    "TRL GKD": trl_gkd,
    "TRL chunked": trl_chunked,
    "Liger": liger,
    "Liger compiled": liger_compiled,
    "torchtune": torchtune,
}


def applies(variant: str, dtype: str, divergence: str, target: str) -> bool:
    """Whether the variant has this case at all."""
    if target == "sparse" and variant != "naive torch" and "floor" not in variant and "limbeck" not in variant:
        return False
    if variant == "floor, summed":
        return dtype == "bfloat16"
    if variant == "torchtune":
        return divergence == "forward_kl"
    return variant != "limbeck precise" or dtype == "bfloat16"


def copies(variant: str, divergence: str) -> int:
    """Float32 copies of [N, V] that the variant holds at its peak, to refuse what would not fit; measured."""
    return {"naive torch": 6, "TRL GKD": 8, "torchtune": 7}.get(variant, 0) + 3 * (divergence == "jsd") * (
        variant in ("naive torch", "TRL GKD")
    )


def reference(problem: Problem) -> tuple[Tensor, Tensor]:
    """The gradients in float64, chunk by chunk, returned in float32."""
    hidden, head = problem.hidden_ND.double(), problem.head_VD.double()
    t_head = problem.teacher_head_VE.double()
    grad_hidden, grad_head = torch.zeros_like(hidden), torch.zeros_like(head)
    for start in range(0, len(hidden), 64):
        rows = slice(start, start + 64)
        logits = (hidden[rows] @ head.T).requires_grad_()
        student = torch.log_softmax(logits, -1)
        if problem.sparse is None:
            teacher = torch.log_softmax(problem.teacher_hidden_NE[rows].double() @ t_head.T, -1)
        else:
            ids, logprobs = problem.sparse[0][rows], problem.sparse[1][rows].double()
            inside = torch.zeros_like(student, dtype=torch.bool).scatter_(1, ids, True)
            tail = student.masked_fill(inside, -torch.inf).logsumexp(-1, keepdim=True)
            student = torch.cat([student.gather(1, ids), tail], 1)
            teacher = torch.cat([logprobs, (1 - logprobs.exp().sum(-1, keepdim=True)).log()], 1)
        loss = mean_divergence(student, teacher, problem.beta) * (len(logits) / len(hidden))
        (grad,) = torch.autograd.grad(loss, logits)
        grad_hidden[rows] = grad @ head
        grad_head += grad.T @ hidden[rows]
    return grad_hidden.float(), grad_head.float()


if __name__ == "__main__":
    sys.exit("run benchmarks/objective.py")
