"""What is tried of an architecture: packing, teacher = student, a step of each technique, merged adapters."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limbeck.data.packing import Batch, Rows, collate
from limbeck.errors import RecipeError
from limbeck.evaluation.gap import measure
from limbeck.models.causal_lm import CausalLM
from limbeck.models.folders.save import save_model
from limbeck.models.load import load_model, prove_adapters, with_lora
from limbeck.recipe import Alone, Co, ConfigModel, Lora, PathModel, Soft
from limbeck.signals.live import LiveTeacher
from limbeck.training.loss_graph import LossGraph
from limbeck.training.techniques import loss_terms_of
from tests.unit.test_data import corpus_of

SEQ_LEN = 48


@dataclass
class Trial:
    """What came of an architecture; ``refused`` says why it is not taken at all."""

    kind: str
    refused: str = ""
    packs: bool = False
    moved: float = 0.0
    """Packed: the greatest movement of a state against the document alone, relative to the greatest state."""
    kl: float = 0.0
    """KL in nats per token of a student that is its teacher, saved and loaded again."""
    steps: dict[str, bool] = field(default_factory=dict)
    lora: str = ""
    checkpointing: bool = False
    hidden: str = ""


def rows(pack: bool) -> Rows:
    """Documents of 3 to 40 pseudo-random tokens in rows of ``SEQ_LEN``; token 0 opens each, as BOS does."""
    rng = np.random.default_rng(0)
    documents = []
    for _ in range(24):
        length = int(rng.integers(3, 40))
        documents.append(([0, *rng.integers(1, 320, length - 1).tolist()], [True] * length))
    return Rows(corpus_of(documents), SEQ_LEN, pack=pack)


def tried(kind: str, config: dict[str, Any], tokenizer: Any, folder: Path) -> Trial:
    """Everything of one architecture, with enlarged weights: fresh ones do hardly anything."""
    trial = Trial(kind)
    spec = ConfigModel(config={"model_type": kind, **config})
    try:
        lm = load_model(spec, tokenizer, seq_len=SEQ_LEN)
    except RecipeError as error:
        trial.refused = error.what
        return trial
    trial.packs = lm.packs
    enlarge(lm)
    if lm.packs:
        trial.moved = _moved(lm)
    save_model(lm, folder / "model")
    teacher, student = (load_model(PathModel(path=str(folder / "model")), tokenizer) for _ in range(2))
    assert student.packs == lm.packs, "the same weights, from a folder, are judged otherwise"
    found = measure(student, rows(pack=False), teacher)
    assert found.kl is not None
    trial.kl = float(np.abs(found.kl).sum() / found.tokens.sum())
    batch = collate([rows(lm.packs)[r] for r in range(3)])
    for technique in (Alone(), Soft(), Co()):
        trial.steps[technique.kind] = _step(copy.deepcopy(student), copy.deepcopy(teacher), technique, batch)
    trial.hidden = _hidden(copy.deepcopy(student))
    trial.lora = _lora(copy.deepcopy(student))
    try:
        student.model.gradient_checkpointing_enable()
        trial.checkpointing = True
    except ValueError:
        pass
    return trial


@torch.no_grad()
def enlarge(lm: CausalLM) -> None:
    """Matrices of unit gain, drawn anew: a trained model's states depend on all that it reads."""
    generator = torch.Generator().manual_seed(3)
    for parameter in lm.model.parameters():
        if parameter.dim() > 1:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)


@torch.no_grad()
def _moved(lm: CausalLM) -> float:
    worst = 0.0
    packed = rows(pack=True)
    with lm.evaluating():
        for r in range(len(packed)):
            batch = collate([packed[r]])
            states = lm.hidden(batch.ids_BT, batch.positions_BT)[0]
            at = 0
            for piece in packed[r].pieces:
                span = slice(at, at + len(piece))
                alone = lm.hidden(batch.ids_BT[:, span], batch.positions_BT[:, span])[0]
                worst = max(worst, float((states[span] - alone).abs().max() / alone.abs().max()))
                at = span.stop
    return worst


def _step(student: CausalLM, teacher: CausalLM, technique: Any, batch: Batch) -> bool:
    """Whether a step trains every learner: finite gradients, and one on the row of the token that opens documents."""
    trainable = {"student": student, **({"teacher": teacher} if technique.kind == "co" else {})}
    sources = {"teacher": LiveTeacher(teacher)} if technique.kind == "soft" else {}
    loss_terms = loss_terms_of(technique, ["student"])
    graph = LossGraph(trainable, loss_terms, sources)
    graph.forward_backward(batch, {loss_term.name: batch.count() for loss_term in loss_terms}, 0.5)
    for learner in graph.trainable.values():
        gradients = [p.grad for p in learner.model.parameters() if p.grad is not None]
        opening = learner.core.get_input_embeddings().weight.grad
        if not gradients or not all(bool(g.isfinite().all()) for g in gradients):
            return False
        if technique.kind == "alone" and (opening is None or not bool(opening[0].any())):
            return False
    return True


@torch.no_grad()
def _hidden(lm: CausalLM) -> str:
    """Whether the last layer's states, sent through what follows it, are the last states: they are pre-norm."""
    ids = torch.arange(1, 9)[None]
    with lm.evaluating():
        try:
            last, (before,) = lm.hidden_of_layers(ids, torch.arange(8)[None], [lm.n_layers - 1])
        except RecipeError as error:
            return error.what
    return "yes" if not torch.equal(before, last) else "no final norm"


def _lora(lm: CausalLM) -> str:
    """Whether merged adapters compute what they do beside the weights, or why adapters are refused."""
    try:
        prove_adapters(with_lora(lm, Lora(rank=2), seed=0))
    except RecipeError as error:
        return error.what
    return "exact"
