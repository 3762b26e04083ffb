"""``limbeck signals import`` of other people's files: matched to a recipe's documents, proven, and stored."""

from __future__ import annotations

from pathlib import Path

from limbeck.commands.run import carry_out
from limbeck.display import Display
from limbeck.errors import InputError, RecipeError, counted
from limbeck.pipeline.build import build
from limbeck.pipeline.shared.base import lease_teacher, open_text
from limbeck.pipeline.stages.capture import Capture
from limbeck.pipeline.stages.teacher import teacher_spec
from limbeck.recipe import Recipe, ServedTeacher
from limbeck.signals.exchange.foreign import Imported, import_texts
from limbeck.signals.exchange.parquet import is_ours
from limbeck.signals.exchange.states import SUFFIX, import_states
from limbeck.workflow.lock import run_path
from limbeck.workflow.stage import Stage


def import_for(recipe: Recipe, source: Path, display: Display | None = None) -> str:
    """Read a file of log-probabilities into the store that a recipe's training reads.

    The recipe says what the file cannot: teacher, tokenizer, documents, temperature and k. Its stages up to the
    teacher are run, or gone on with.

    Args:
        recipe: with a `soft` technique of `signals: {scheme: top_k, context: document}`; of any scheme for hidden
            states.
        source: a file or folder of DistillKit's, vLLM's or axolotl's; or of hidden states that vLLM kept.
        display: where progress is shown; default: the terminal.

    Returns:
        What was imported, for people.

    Raises:
        LimbeckError: what the user can mend: the recipe, or a file that is not what its teacher says.
    """
    if is_ours(source):
        raise InputError(
            f"{source} is limbeck's own export, which needs no recipe",
            fix=f"Name a store folder instead of a recipe: `limbeck signals import {source} FOLDER`",
        )
    if isinstance(recipe.teacher, ServedTeacher):
        raise RecipeError(
            "an import is proven by the teacher's weights, and this one is called",
            key="teacher",
            fix="Name the folder of its weights: `teacher: {path: ...}`",
        )
    stages = build(recipe)
    states = is_of_states(source)
    scheme = "any scheme" if states else "scheme top_k"
    for stage in stages:
        if not isinstance(stage, Capture) or stage.part is not None or stage.section.context != "document":
            continue
        if states or stage.section.scheme == "top_k":
            return _import(recipe, source, stages, stage, display or Display())
    raise RecipeError(
        f"no technique reads stored signals of {scheme} and context document",
        key="techniques",
        fix="Write `signals: stored`" if states else "Write `signals: {scheme: top_k, k: K}` in a `soft` technique",
    )


def is_of_states(source: Path) -> bool:
    """Whether hidden states were kept, and not log-probabilities."""
    return source.suffix == SUFFIX or (source.is_dir() and any(source.glob(f"*{SUFFIX}")))


def _import(recipe: Recipe, source: Path, stages: list[Stage], capture: Capture, display: Display) -> str:
    facts = carry_out(recipe, stages, display, wanted=capture.needs)
    run = run_path(recipe.run)
    folder, identity, corpus = capture.target(facts, run)
    read = import_states if is_of_states(source) else import_texts
    with lease_teacher(teacher_spec(facts, run), open_text(run), rounded=identity.teacher.endswith("-bf16")) as lm:
        lm.model.eval()
        done = read(source, folder, identity, corpus, lm)
    return f"{folder}: {said(done)}"


def said(done: Imported) -> str:
    """What came of an import, for people."""
    shift = "as they stand" if not done.proof.shift else f"shifted by {done.proof.shift:+d}, which was undone"
    there = f", {done.copied.there:,} were there already" if done.copied.there else ""
    strange = done.texts - done.matched
    left = f"; {counted(strange, 'text')} not in the recipe's data" if strange else ""
    return (
        f"{counted(done.copied.spans, 'span')} added{there}, of {counted(done.matched, 'text')}{left}. The teacher "
        f"scored {done.proof.positions} positions again: rows are {shift}, and differ by {done.proof.error:.3f} in sum "
        "of probabilities. `limbeck capture` captures what is missing"
    )
