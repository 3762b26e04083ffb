"""What can be refused before anything is spent. Configurations, headers and tokenizers are read, never weights."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from limbeck.errors import LimbeckError, RecipeError, under
from limbeck.models.causal_lm import CausalLM
from limbeck.models.folders.headers import require_whole_files
from limbeck.models.folders.saved import one_line
from limbeck.models.load import check_positions, prove_adapters, with_lora
from limbeck.models.proof import prove
from limbeck.models.skeleton import skeleton, small_copy
from limbeck.models.tokenizer import load_tokenizer, require_equal_maps, train_tokenizer
from limbeck.pipeline.shared.base import located, require_packing
from limbeck.pruning.architectures import architecture_of, parameters_of
from limbeck.pruning.depth import choose_layers
from limbeck.pruning.vocabulary import choose_tokens
from limbeck.pruning.width import check_width
from limbeck.recipe import (
    ConfigModel,
    CutStudent,
    Data,
    Generation,
    Lora,
    PackageModel,
    PathModel,
    Soft,
    Technique,
    Training,
    Vocabulary,
)
from limbeck.runtime.threads import one_thread
from limbeck.training.techniques import loss_terms_of


@dataclass
class Inspected:
    """A model of a recipe as its configuration describes it.

    Attributes:
        lm: without numbers (meta device).
        small: the same architecture with few layers and random weights, to try things on; None where none can be made.
        rows: token embeddings.
    """

    lm: CausalLM
    small: CausalLM | None

    @property
    def rows(self) -> int:
        return self.lm.rows

    def n_parameters(self, vocabulary: int | None) -> int:
        """Its parameters. ``vocabulary``: tokens of a tokenizer that is still to be trained; None: it exists."""
        added = 0 if vocabulary is None else vocabulary - self.rows
        inputs, outputs = self.lm.model.get_input_embeddings().weight, self.lm.head().weight_VD
        return self.lm.n_parameters() + added * inputs.shape[1] * (1 if outputs is inputs else 2)


def inspect(spec: PathModel | PackageModel | ConfigModel, tokenizer: Any, data: Data) -> Inspected:
    """Look at a model without its weights, and refuse what cannot be trained on this data.

    A tokenizer that is still to be trained is stood in for by a small one.
    """
    found = spec if isinstance(spec, ConfigModel) else located(spec)[0]
    if isinstance(found, PathModel) and Path(found.path).is_dir():
        require_whole_files(Path(found.path))
    tokenizer = tokenizer if tokenizer is not None else train_tokenizer(["a"], 260)
    lm = CausalLM(skeleton(found, tokenizer, data.seq_len), tokenizer)
    check_positions(lm, data.seq_len)
    small: CausalLM | None = None
    try:
        small = CausalLM(small_copy(found, tokenizer, narrow=True), tokenizer)
        with one_thread():
            prove(small, fresh=True)
    except LimbeckError as error:
        if small is not None:  # the proof failed, not the making of a copy
            raise error
    except Exception:
        small = None  # an architecture that does not like to be narrow: the real one is proven on loading
    if small is not None:
        require_packing(small, data)
    return Inspected(lm, small)


def check_techniques(techniques: Iterable[Technique], students: list[str], data: Data) -> None:
    """Refuse divergences that do not exist, and prompts that leave no room for an answer."""
    for i, technique in enumerate(techniques):
        with under(f"techniques.{i}"):
            loss_terms_of(technique, students)
        generation: Generation | None = getattr(technique, "generation", None)
        if generation is not None and generation.prompt_tokens + 8 > data.seq_len:
            raise RecipeError(
                f"got {generation.prompt_tokens}, which leaves no room in rows of {data.seq_len}",
                key=f"techniques.{i}.generation.prompt_tokens",
                fix="Lower it, or raise data.seq_len",
            )


def not_smaller(student: Inspected, teacher: Inspected, key: str) -> list[str]:
    """A warning where nothing is gained."""
    own, theirs = student.lm.n_parameters(), teacher.lm.n_parameters()
    if own < theirs:
        return []
    size = "as large as" if own == theirs else "larger than"
    return [f"{key}: with {own:,} parameters it is {size} its teacher ({theirs:,})"]


def check_checkpointing(model: Inspected, section: Training) -> None:
    if not section.gradient_checkpointing:
        return
    try:
        model.lm.model.gradient_checkpointing_enable()
    except Exception as error:  # ValueError today; another version, another class
        raise RecipeError(
            f"{type(model.lm.core).__name__} has no gradient checkpointing ({one_line(error)})",
            key=".gradient_checkpointing",
            fix="Write `false`",
        ) from None
    model.lm.model.gradient_checkpointing_disable()


def check_hidden(model: Inspected, techniques: Iterable[Technique]) -> None:
    """Refuse loss terms on hidden states of a model whose layers do not give them."""
    if model.small is None:
        return
    for i, technique in enumerate(techniques):
        if isinstance(technique, Soft) and technique.hidden is not None:
            positions_BT, lm = torch.arange(4)[None], model.small
            try:
                with lm.evaluating(), torch.no_grad():
                    lm.hidden_of_layers(positions_BT, positions_BT, [0, lm.n_layers - 1])
            except RecipeError as error:
                raise RecipeError(error.what, key=f"techniques.{i}.hidden", fix="Leave it out") from None


def check_layer_pairs(techniques: Iterable[Technique], student: int | None, teacher: int | None) -> None:
    """Refuse loss terms on layers that do not exist. None: the depth is not known, or was checked elsewhere."""
    for i, technique in enumerate(techniques):
        hidden = technique.hidden if isinstance(technique, Soft) else None
        for own, theirs in hidden.layers if hidden is not None and hidden.layers != "matched" else ():
            if teacher is not None and (theirs >= teacher or (student is not None and own >= student)):
                what = f"got [{own}, {theirs}], of {student or 'some'} layers and {teacher}"
            elif teacher is None and student is not None and own >= student:
                what = f"got [{own}, {theirs}], but the student has {student} layers"
            else:
                continue
            raise RecipeError(what, key=f"techniques.{i}.hidden.layers", fix="Layers count from 0")


def check_cut(teacher: Inspected, spec: CutStudent) -> int:
    """Refuse an impossible cut before the teacher is tuned or measured for it.

    Returns:
        Parameters of the student; where it keeps only the tokens of its data, as many as it has at most.
    """
    model, n_layers = teacher.lm.model, teacher.lm.n_layers
    architecture_of(model)
    # A resolved recipe names the defaults too, so these pass.
    idle = "chooser" if spec.chooser != "auto" else "keep_ends" if not spec.keep_ends else None
    if idle and not isinstance(spec.layers, int):
        raise RecipeError(
            f"{idle} has nothing to choose", key=f".{idle}", fix="Leave it out, or write `layers` as a number"
        )
    if isinstance(spec.layers, int):
        choose_layers(n_layers, spec.layers, keep_ends=spec.keep_ends)
    elif spec.layers is not None:
        chosen = list(spec.layers)
        if chosen != sorted(set(chosen)) or chosen[-1] >= n_layers:
            raise RecipeError(
                f"got {chosen}", key=".layers", fix=f"Write layers from 0 to {n_layers - 1}, ascending, each once"
            )
    sizes = check_width(model, ffn=spec.ffn, heads=spec.heads, kv_heads=spec.kv_heads, hidden=spec.hidden)
    layers = n_layers if spec.layers is None else spec.layers
    most = spec.vocabulary.size if spec.vocabulary is not None else None
    depth = layers if isinstance(layers, int) else len(layers)
    return parameters_of(model, dataclasses.replace(sizes, layers=depth, vocab=min(sizes.vocab, most or sizes.vocab)))


def check_vocabulary(teacher: Inspected, section: Vocabulary) -> None:
    """Refuse a size that has no room for what has to be kept, whatever the data."""
    choose_tokens(
        teacher.lm.model,
        teacher.lm.tokenizer,
        {},
        min_count=section.min_count,
        size=section.size,
        other=True,
        added="used",
    )


def check_adapters(model: Inspected, lora: Lora) -> None:
    """Refuse targets that a model does not have, and architectures that read weights past their adapters."""
    with torch.device("meta"):
        with_lora(CausalLM(type(model.lm.core)._from_config(model.lm.core.config), model.lm.tokenizer), lora, 0)
    if model.small is not None:
        throw_away = CausalLM(copy.deepcopy(model.small.model), model.small.tokenizer)
        prove_adapters(with_lora(throw_away, lora, 0))


def check_tokenizer_of(student: PathModel | PackageModel, tokenizer: Any) -> None:
    """Refuse a student that was trained with other tokens than the run's."""
    if tokenizer is None:
        raise RecipeError(
            "a trained student cannot follow a new tokenizer", key=".path", fix="Name its tokenizer's path"
        )
    found = located(student)[0]
    with under(".path"):
        require_equal_maps(tokenizer, load_tokenizer(found.path, revision=found.revision))
