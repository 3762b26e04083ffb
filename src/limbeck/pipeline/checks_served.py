"""What can be refused of a teacher that is called, before anything is spent and without asking its server."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from limbeck.data.documents.sources import first_documents
from limbeck.errors import RecipeError, under
from limbeck.generation.journal.prices import prices_of
from limbeck.generation.terms import check_terms
from limbeck.generation.verify import check_verifier
from limbeck.recipe import Data, Endpoint, Generation, PathModel, ServedTeacher, Verify
from limbeck.recipe.verify import Judge

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
    with under("teacher"):
        notes = [NETWORK, *(f"terms: {line}" for line in check_terms([each for _, each in endpoints_of(teacher)]))]
    for place, endpoint in endpoints_of(teacher):
        with under(place):
            prices = prices_of(endpoint)
        notes.append(f"{place}: {prices.line()}")
        if endpoint.api_key_env is not None and not os.environ.get(endpoint.api_key_env):
            notes.append(f"{place}: ${endpoint.api_key_env} is not set; `limbeck run` needs it")
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


def unreachable(student: object, place: str) -> str | None:
    """A line on a student whose hub cannot be reached now, so that nothing of it can be checked."""
    if not isinstance(student, PathModel) or Path(student.path).expanduser().exists():
        return None
    from limbeck.models.tokenizer import load_tokenizer  # torch

    try:
        load_tokenizer(student.path, revision=student.revision)
    except RecipeError as error:
        if any(word in error.what.lower() for word in ("connect", "offline", "resolve", "network")):
            return f"{place}: {student.path} is not on this machine; `limbeck run` reads it from the hub"
    return None


def check_verifiers(sections: Mapping[str, Verify], is_called: bool) -> list[str]:
    """Refuse verifiers that cannot work here; returns lines on those that can.

    Args:
        sections: by their place in the recipe.
        is_called: the teacher is called, so that it can judge its own answers.
    """
    notes = []
    for place, section in sections.items():
        if isinstance(section, Judge) and section.teacher is None and not is_called:
            raise RecipeError("nobody is named who judges", key=f"{place}.teacher", fix="Write `teacher: {api: ...}`")
        with under(place):
            if line := check_verifier(section):
                notes.append(f"{place}: {line}")
    return notes


def endpoints_of(teacher: ServedTeacher) -> Iterator[tuple[str, Endpoint]]:
    """Endpoints of a chain, by their place in the recipe."""
    yield "teacher", teacher.endpoint
    for i, fallback in enumerate(teacher.fallbacks):
        if isinstance(fallback, Endpoint):
            yield f"teacher.fallbacks.{i}", fallback
