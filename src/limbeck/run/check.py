"""Everything that can be refused before work begins, and where the models of a recipe are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from limbeck.data.chat import encode_batch
from limbeck.data.corpus import Corpus
from limbeck.data.sources import first_documents
from limbeck.errors import RecipeError
from limbeck.models.architectures import architecture_of
from limbeck.models.depth import choose_layers
from limbeck.models.language_model import LanguageModel
from limbeck.models.load import load_model, localised, prove_adapters, quiet, with_lora
from limbeck.models.saved import one_line
from limbeck.models.tokenizer import load_tokenizer, require_equal_maps, train_tokenizer, vocabulary_size
from limbeck.models.vocabulary import KeptTokens, choose_tokens
from limbeck.models.width import check_width
from limbeck.recipe import (
    Co,
    ConfigModel,
    ConfigTeacher,
    CutStudent,
    Data,
    Hard,
    Lora,
    PackageModel,
    PackageStudent,
    PathModel,
    PathStudent,
    PathTokenizer,
    Recipe,
    Soft,
    TrainedTokenizer,
    Training,
    Vocabulary,
)
from limbeck.run.folder import run_path
from limbeck.training.techniques import lessons_of


@dataclass
class Origins:
    """Where the models of a recipe start from.

    Attributes:
        tokenizer: everybody's; None if it is still to be trained.
        teacher: its weights; None if it is still to be trained.
        students: by name; a student that is cut waits for its teacher.
        rows: token embeddings of each model, by its place in the recipe.
        notes: what people should know of it, for example what a quantised file has lost.
    """

    tokenizer: Any
    teacher: PathModel | None
    students: dict[str, PathModel | ConfigModel | CutStudent]
    rows: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


FIRST_DOCUMENTS = 20
"""Of every source, how many documents are read and tokenised before anything is spent."""


def check(recipe: Recipe) -> Origins:
    """Refuse what cannot work, spending nothing; models are loaded once to see that they fit.

    Raises:
        RecipeError: names the key and the fix.
    """
    quiet()
    run_path(recipe.run)
    for i, technique in enumerate(recipe.techniques):
        lessons_of(technique, list(recipe.cohort), f"techniques.{i}")
        writing = technique.writing if isinstance(technique, Hard | Soft) else None
        if writing is not None and writing.prompt_tokens + 8 > recipe.data.seq_len:
            raise RecipeError(
                f"got {writing.prompt_tokens}, which leaves no room in rows of {recipe.data.seq_len}",
                key=f"techniques.{i}.writing.prompt_tokens",
                fix="Lower it, or raise data.seq_len",
            )
    first = list(first_documents(recipe.data.corpus, FIRST_DOCUMENTS))
    notes: list[str] = []
    teacher = None
    if not isinstance(recipe.teacher, ConfigTeacher):
        teacher = _local(recipe.teacher, "teacher", notes)
    origins = Origins(_tokenizer(recipe, teacher), teacher, {}, notes=notes)
    if origins.tokenizer is not None:
        encode_batch([document for _, document in first], origins.tokenizer, recipe.data.date)
    # A tokenizer that is still to be trained has at least these tokens: enough to see that sizes make a model.
    standin = origins.tokenizer or train_tokenizer(["a"], 260)
    if isinstance(recipe.teacher, ConfigTeacher):
        bare = ConfigModel(config=recipe.teacher.config, dtype=recipe.teacher.dtype)
        lm = load_model(bare, standin, key="teacher", seq_len=recipe.data.seq_len)
        check_packs(lm, recipe.data)
        _check_cuts(recipe, lm)
        _check_checkpointing(lm, recipe.teacher.pretraining, "teacher.pretraining")
        if _trains_the_teachers_class(recipe):
            _check_checkpointing(lm, recipe.training, "training")
    elif teacher is not None:
        lm = load_model(teacher, origins.tokenizer, key="teacher", seq_len=recipe.data.seq_len)
        check_packs(lm, recipe.data)
        _check_cuts(recipe, lm)
        origins.rows["teacher"] = lm.rows
        _check_hidden(recipe, lm)
        if recipe.vocabulary is not None:
            student_tokens(recipe.vocabulary, {}, lm, origins.tokenizer)  # what has to be kept fits, whatever the data
        if (correct := getattr(recipe.teacher, "correct", None)) is not None:
            _check_checkpointing(lm, correct, "teacher.correct")
        if _trains_the_teachers_class(recipe):
            _check_checkpointing(lm, recipe.training, "training")
        if correct is not None and correct.lora is not None:  # at the end: it changes the weights
            prove_adapters(with_lora(lm, correct.lora, 0, key="teacher.correct.lora"), "teacher.correct.lora")
    for name, student in recipe.cohort.items():
        key = student_key(recipe, name)
        spec = _local(student, key, notes) if isinstance(student, PathModel | PackageModel) else student
        origins.students[name] = spec
        if isinstance(spec, PathModel):
            _same_vocabulary(spec, origins.tokenizer, key)
        if not isinstance(spec, CutStudent):
            lm = load_model(spec, standin, key=key, seq_len=recipe.data.seq_len)
            check_packs(lm, recipe.data)
            _check_own_layers(recipe, lm.n_layers)
            _check_hidden(recipe, lm)
            if isinstance(spec, PathModel):
                origins.rows[key] = lm.rows
            _check_checkpointing(lm, recipe.training, "training")
            if isinstance(student, PathStudent | PackageStudent) and student.lora is not None:
                prove_adapters(with_lora(lm, student.lora, 0, key=f"{key}.lora"), f"{key}.lora")
    return origins


def _trains_the_teachers_class(recipe: Recipe) -> bool:
    """Whether an arm trains the teacher, or a student that is cut from it and is of its architecture."""
    return any(isinstance(technique, Co) for technique in recipe.techniques) or any(
        isinstance(student, CutStudent) for student in recipe.cohort.values()
    )


def _check_checkpointing(lm: LanguageModel, section: Training, key: str) -> None:
    if not section.gradient_checkpointing:
        return
    try:
        lm.model.gradient_checkpointing_enable()
    except Exception as error:  # ValueError today; another version, another class
        raise RecipeError(
            f"{type(lm.core).__name__} has no gradient checkpointing ({one_line(error)})",
            key=f"{key}.gradient_checkpointing",
            fix="Write `false`",
        ) from None
    lm.model.gradient_checkpointing_disable()


def _check_hidden(recipe: Recipe, lm: LanguageModel) -> None:
    """Refuse lessons on hidden states of a model whose layers do not give them."""
    for i, technique in enumerate(recipe.techniques):
        if isinstance(technique, Soft) and technique.hidden is not None:
            positions_BT = torch.arange(4, device=lm.device)[None]
            try:
                with lm.evaluating(), torch.no_grad():
                    lm.hidden_of_layers(positions_BT, positions_BT, [0, lm.n_layers - 1])
            except RecipeError as error:
                raise RecipeError(error.what, key=f"techniques.{i}.hidden", fix="Leave it out") from None


def check_ids(origins: Origins, tokenizer: Any, corpora: Iterable[Corpus]) -> None:
    """Refuse a corpus that uses a token which a model has no embedding for. Templates write such tokens too.

    A tokenizer may have more tokens than its model has rows (Gemma 3 1B: an image token); most texts use none.

    Args:
        origins: of the run.
        tokenizer: that of the corpora.
        corpora: in the ids of ``tokenizer``.
    """
    fewest = min(origins.rows, key=origins.rows.__getitem__, default=None)
    if fewest is None or vocabulary_size(tokenizer) <= origins.rows[fewest]:
        return
    greatest = max((int(corpus.ids.max()) for corpus in corpora if len(corpus.ids)), default=0)
    if greatest >= origins.rows[fewest]:
        raise RecipeError(
            f"the data uses token {greatest} ({tokenizer.convert_ids_to_tokens(greatest)!r}), but the model has "
            f"{origins.rows[fewest]} token embeddings",
            key=fewest,
            fix="Use the tokenizer that the model was trained with, or remove that token from the data",
        )


def _check_cuts(recipe: Recipe, teacher: LanguageModel) -> None:
    for name, student in recipe.cohort.items():
        if isinstance(student, CutStudent):
            key = student_key(recipe, name)
            _check_cut(teacher, student, key)
            if student.lora is not None:
                _check_lora(teacher, student.lora, f"{key}.lora")  # a cut model has its teacher's modules
        depth: int | None = None
        if isinstance(student, CutStudent):
            layers = teacher.n_layers if student.layers is None else student.layers
            depth = layers if isinstance(layers, int) else len(layers)
        for i, technique in enumerate(recipe.techniques):
            hidden = technique.hidden if isinstance(technique, Soft) else None
            for own, theirs in hidden.layers if hidden is not None and hidden.layers != "matched" else ():
                if theirs >= teacher.n_layers or (depth is not None and own >= depth):
                    raise RecipeError(
                        f"got [{own}, {theirs}], of {depth or 'some'} layers and {teacher.n_layers}",
                        key=f"techniques.{i}.hidden.layers",
                        fix="Layers count from 0",
                    )


def _check_own_layers(recipe: Recipe, depth: int) -> None:
    """Refuse lessons on hidden states of layers that a student which is not cut from its teacher does not have."""
    for i, technique in enumerate(recipe.techniques):
        hidden = technique.hidden if isinstance(technique, Soft) else None
        for own, theirs in hidden.layers if hidden is not None and hidden.layers != "matched" else ():
            if own >= depth:
                raise RecipeError(
                    f"got [{own}, {theirs}], but the student has {depth} layers",
                    key=f"techniques.{i}.hidden.layers",
                    fix="Layers count from 0",
                )


def _check_lora(lm: LanguageModel, lora: Lora, key: str) -> None:
    """Refuse targets that a model does not have, on a copy without weights."""
    with torch.device("meta"):
        with_lora(LanguageModel(type(lm.core)._from_config(lm.core.config), lm.tokenizer), lora, 0, key)


def _check_cut(teacher: LanguageModel, spec: CutStudent, key: str) -> None:
    """Refuse an impossible cut before the teacher is tuned or measured for it."""
    architecture_of(teacher.model, key=key)
    n_layers = teacher.n_layers
    # A resolved recipe names the defaults too, so these pass.
    idle = "chooser" if spec.chooser != "auto" else "keep_ends" if not spec.keep_ends else None
    if idle and not isinstance(spec.layers, int):
        raise RecipeError(
            f"{idle} has nothing to choose", key=f"{key}.{idle}", fix="Leave it out, or write `layers` as a number"
        )
    if isinstance(spec.layers, int):
        choose_layers(n_layers, spec.layers, keep_ends=spec.keep_ends, key=f"{key}.layers")
    elif spec.layers is not None:
        chosen = list(spec.layers)
        if chosen != sorted(set(chosen)) or chosen[-1] >= n_layers:
            raise RecipeError(
                f"got {chosen}", key=f"{key}.layers", fix=f"Write layers from 0 to {n_layers - 1}, ascending, each once"
            )
    check_width(teacher.model, ffn=spec.ffn, heads=spec.heads, kv_heads=spec.kv_heads, hidden=spec.hidden, key=key)


def student_tokens(
    section: Vocabulary, counts: Mapping[int, int], teacher: LanguageModel, tokenizer: Any
) -> KeptTokens:
    """The tokens that a run's students keep, and one for all others.

    Args:
        section: the recipe's.
        counts: how often the data uses each of the teacher's ids.
        teacher: knows the tokens that its configuration names.
        tokenizer: the teacher's.
    """
    return choose_tokens(
        teacher.model,
        tokenizer,
        counts,
        min_count=section.min_count,
        size=section.size,
        other=True,
        added="used",
        key="student.vocabulary",
    )


def student_key(recipe: Recipe, name: str) -> str:
    """Where a student stands in the recipe."""
    return "student" if recipe.student is not None else f"students.{name}"


def check_packs(lm: LanguageModel, data: Data) -> None:
    if data.pack and not lm.packs:
        raise RecipeError(
            f"{type(lm.core).__name__} lets packed documents see each other", key="data.pack", fix="Write `pack: false`"
        )


def _local(spec: PathModel | PackageModel, key: str, notes: list[str]) -> PathModel:
    found, note = localised(spec, key)
    if note:
        notes.append(f"{key}: {note}")
    return found


def run_tokenizer(recipe: Recipe) -> Any:
    """A run's tokenizer before anything is cut; None for one that is still to be trained. No weights are loaded."""
    teacher = None if isinstance(recipe.teacher, ConfigTeacher) else _local(recipe.teacher, "teacher", [])
    return _tokenizer(recipe, teacher)


def _tokenizer(recipe: Recipe, teacher: PathModel | None) -> Any:
    """The recipe's tokenizer, else the teacher's; its end mark as the recipe says."""
    if isinstance(recipe.tokenizer, TrainedTokenizer):
        return None
    own = load_tokenizer(teacher.path, key="teacher.path", revision=teacher.revision) if teacher is not None else None
    tokenizer: Any = own
    if isinstance(recipe.tokenizer, PathTokenizer):
        tokenizer = load_tokenizer(recipe.tokenizer.path, key="tokenizer.path")
        if own is not None:
            require_equal_maps(own, tokenizer, key="tokenizer.path")
    if recipe.data.end == "bos":
        if tokenizer.bos_token is None:
            raise RecipeError("the tokenizer has no beginning mark", key="data.end", fix="Write `end: eos`")
        tokenizer.eos_token = tokenizer.bos_token
    return tokenizer


def _same_vocabulary(student: PathModel, tokenizer: Any, key: str) -> None:
    if tokenizer is None:
        raise RecipeError(
            "a trained student cannot follow a new tokenizer", key=f"{key}.path", fix="Name its tokenizer's path"
        )
    theirs = load_tokenizer(student.path, key=f"{key}.path", revision=student.revision)
    require_equal_maps(tokenizer, theirs, key=f"{key}.path")
