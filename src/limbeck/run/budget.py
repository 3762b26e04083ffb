"""How much of a corpus a recipe can use: no more than that is tokenised."""

from __future__ import annotations

from typing import Any

from limbeck.data.corpus import Enough
from limbeck.errors import RunFolderError
from limbeck.recipe import ConfigTeacher, Hard, Recipe, Soft

TRAIN_FLOOR = 16_000_000
"""Labels below which all documents to train on are tokenised, so that a small corpus is whole whatever the budget."""

HELDOUT_FLOOR = 4_000_000
"""The same for held-out documents."""

TOKENIZER_BYTES = 1 << 27
"""A tokenizer is trained on the first documents by hash, of about so many bytes."""


def enough_to_train(recipe: Recipe) -> Enough:
    """Labels for the longest training of a recipe, so that none reads a document twice while another is unread."""
    asked = [TRAIN_FLOOR, recipe.training.tokens]
    if isinstance(recipe.teacher, ConfigTeacher):
        asked.append(recipe.teacher.pretraining.tokens)
    elif (correct := getattr(recipe.teacher, "correct", None)) is not None:
        asked.append(correct.tokens)
    for technique in recipe.techniques:
        writing = technique.writing if isinstance(technique, Hard | Soft) else None
        if writing is not None:
            # There is a prompt every `seq_len` tokens; short answers take more prompts.
            prompts = -(-recipe.data.seq_len // (writing.max_new_tokens or recipe.data.seq_len))
            asked.append((writing.tokens or recipe.training.tokens) * prompts)
    return Enough(max(asked))


def enough_to_measure(recipe: Recipe) -> Enough:
    return Enough(HELDOUT_FLOOR, recipe.evaluation.max_documents)


def is_whole(part: dict[str, Any]) -> bool:
    """Whether all documents of a part of the corpus were tokenised (facts of the data stage)."""
    return bool(part["documents"] == part["of"])


def require_enough(recipe: Recipe, facts: dict[str, Any], where: str) -> None:
    """Refuse to go on with a part of a corpus that is too small for the recipe as it is now.

    Raises:
        RunFolderError: names the key that was raised.
    """
    fix = f"Name another `run:` folder, or delete {where} to tokenise more, if nothing was trained on it"
    train, heldout = facts["train"], facts["heldout"]
    asked = enough_to_train(recipe).labels
    if not is_whole(train) and train["labels"] < asked:
        raise RunFolderError(
            f"{train['labels']:,} tokens of the corpus were tokenised, and {asked:,} are asked for",
            key="training.tokens",
            fix=fix,
        )
    if not is_whole(heldout) and heldout["documents"] < recipe.evaluation.max_documents:
        raise RunFolderError(
            f"{heldout['documents']:,} held-out documents were tokenised", key="evaluation.max_documents", fix=fix
        )
