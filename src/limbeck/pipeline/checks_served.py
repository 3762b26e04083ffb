"""What can be refused of a teacher that is called, before anything is spent and without asking its server."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck.data.documents.sources import first_documents
from limbeck.errors import RecipeError, TeacherGoneError, under
from limbeck.generation.journal.prices import prices_of
from limbeck.generation.terms import check_terms
from limbeck.generation.verify import check_verifier
from limbeck.recipe import Data, Endpoint, Generation, PathModel, ServedTeacher, Verify
from limbeck.recipe.verify import Judge

if TYPE_CHECKING:
    from limbeck.generation.api.probe import Capabilities
    from limbeck.generation.api.scoring.probe import Reveals
    from limbeck.pipeline.served.signals import SignalsAsking  # torch
    from limbeck.pipeline.shared.asking import Asking


UNSEEN = "warning: "
"""Beginning of a line on a server that could not be asked: the recipe is right only as far as it could be looked at."""


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
        notes = [f"terms: {line}" for line in check_terms([each for _, each in endpoints_of(teacher)])]
    for place, endpoint in endpoints_of(teacher):
        with under(place):
            prices = prices_of(endpoint)
        notes.append(f"{place}: {prices.line()}")
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


def check_servers(asked: Iterable[Asking | SignalsAsking], *, offline: bool) -> list[str]:
    """Ask servers what they take and reveal, with a handful of short requests each; refuse what they do not take.

    A server that does not answer, or whose key is not set, is not asked and is no error: answers may be in a journal.

    Its line begins with :data:`UNSEEN`.

    Args:
        offline: ask none.

    Raises:
        RecipeError: a server refuses a setting, the key or the model.
        BudgetError: an account has no credit.
    """
    notes = []
    for asking in asked:
        endpoint, later = asking.endpoint, "`limbeck run` asks what it takes and reveals, before it buys anything"
        name = endpoint.api_key_env
        if offline or (name is not None and not os.environ.get(name)):
            unset = name is not None and not os.environ.get(name)
            why = f"${name} is not set, so the server was not asked"
            if offline:
                why = f"no server was asked{f', and ${name} is not set' if unset else ''}"
            notes.append(f"{UNSEEN}{asking.place}: {why}; {later}")
            continue
        try:
            found: Capabilities | Reveals = asking.probe()
        except TeacherGoneError as error:
            notes.append(f"{UNSEEN}{asking.place}: {error.what}; {later}")
        else:
            notes.append(f"{asking.place}: {found.line()} ({found.tokens:,} tokens to find out)")
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
