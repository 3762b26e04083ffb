"""What can be refused of a teacher that is called, before anything is spent and without asking its server."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from limbeck.data.documents.sources import first_documents
from limbeck.errors import RecipeError, under
from limbeck.generation.journal.prices import prices_of
from limbeck.pipeline.stages.probe import terms_said
from limbeck.recipe import Data, Endpoint, Generation, ServedTeacher

NETWORK = "teacher: no server was asked; `limbeck run` asks once what it reveals, before it buys anything"


def check_served(teacher: ServedTeacher, data: Data, generations: Mapping[str, Generation]) -> list[str]:
    """Refuse what cannot work: terms that forbid it, models without prices, prompts that the protocol cannot ask.

    Args:
        teacher: section of the recipe.
        data: section of the recipe.
        generations: sections that have text written, by their place.

    Returns:
        What people should know before they run it.
    """
    notes = [NETWORK]
    for place, endpoint in endpoints_of(teacher):
        terms = endpoint.terms
        if terms.verdict == "no" and not terms.override:
            raise RecipeError(
                f"the terms of {endpoint.model} do not allow to train students on its text ({terms.source})",
                key=f"{place}.terms.may_train_students",
                fix="Use another teacher, or say in `terms.override` why it is used all the same: the card records it",
            )
        with under(place):
            prices = prices_of(endpoint)
        notes.append(f"{place}: {prices.line()}")
        if endpoint.api_key_env is not None and not os.environ.get(endpoint.api_key_env):
            notes.append(f"{place}: ${endpoint.api_key_env} is not set; `limbeck run` needs it")
    notes.append(f"teacher: {terms_said(teacher)}")
    first = [document for _, document in first_documents(data.corpus, 20)]
    plain = any(document.text is not None or not document.template for document in first)
    talks = any(document.text is None and document.template for document in first)
    if plain and generations and teacher.protocol != "completions":
        raise RecipeError(
            f"the corpus holds plain text, which the protocol {teacher.protocol!r} does not continue",
            key="teacher.protocol",
            fix="Write `completions`, or take conversations or prompts with answers as the corpus",
        )
    if talks and generations and teacher.protocol == "completions":
        raise RecipeError(
            "the corpus holds conversations, which the protocol 'completions' does not answer",
            key="teacher.protocol",
            fix="Write `chat`",
        )
    return notes


def endpoints_of(teacher: ServedTeacher) -> Iterator[tuple[str, Endpoint]]:
    """Endpoints of a chain, by their place in the recipe."""
    yield "teacher", teacher.endpoint
    for i, fallback in enumerate(teacher.fallbacks):
        if isinstance(fallback, Endpoint):
            yield f"teacher.fallbacks.{i}", fallback
