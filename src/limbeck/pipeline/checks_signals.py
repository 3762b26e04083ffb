"""What can be refused of stored signals before anything is spent, and what should be known of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from limbeck.errors import RecipeError, under
from limbeck.pipeline.shared.storing import bytes_a_token, bytes_said, free_bytes, home_of, window_of
from limbeck.recipe import Signals, Soft, Technique
from limbeck.training.techniques import loss_terms_of


def stored_signals(technique: Technique) -> Signals | None:
    """What is kept on disk for a technique, or may be (`auto`); None: nothing."""
    if not isinstance(technique, Soft) or technique.stored is None:
        return None
    if technique.signals == "auto" and not _is_linear(technique):
        return None  # of what is drawn, only a part would serve
    return technique.stored


def check_stored(techniques: Iterable[Technique]) -> None:
    """Refuse schemes that cannot serve a technique's divergence."""
    for place, technique, section in _stored(techniques):
        if section.scheme == "multinomial" and not _is_linear(technique):
            raise RecipeError(
                f"multinomial counts are no probabilities, and {_divergence(technique)} is not linear in the teacher's",
                key=f"{place}.scheme",
                fix="Write `scheme: top_k`, or `divergence: forward_kl`",
            )


def biased(techniques: Iterable[Technique]) -> list[str]:
    """Warnings of what stored signals do not teach as the live teacher would."""
    warnings = []
    for place, technique, section in _stored(techniques):
        if section.scheme == "threshold" and not _is_linear(technique):
            warnings.append(
                f"{place}: {_divergence(technique)} is not linear in the teacher's probabilities, so that of "
                f"`threshold` only tokens of at least {section.threshold:g} serve, and all others as one; "
                "`scheme: top_k` keeps more of them"
            )
        if section.scheme in ("top_k_renormalised", "gemma"):
            warnings.append(f"{place}: `scheme: {section.scheme}` is biased, and is there for comparison")
    return warnings


def check_stores(
    techniques: Iterable[Technique], tokens: int, vocab_size: int, longest: int | None, run: Path
) -> list[str]:
    """Refuse what the teacher cannot read and folders that cannot be; returns lines on the room that signals take.

    Args:
        tokens: that are learned by all seeds together.
        vocab_size: of the teacher's distributions.
        longest: tokens that the teacher can read; None: any, or its server says it later.
        run: the run folder.
    """
    notes: list[str] = []
    for place, technique, section in _stored(techniques):
        with under(place):
            window_of(section, longest)
        home = home_of(section, run)
        there = next(each for each in (home, *home.parents) if each.exists())
        if not there.is_dir():
            raise RecipeError(f"{there} is a file, not a folder", key=f"{place}.folder", fix="Name a folder")
        each = bytes_a_token(section, vocab_size)
        takes, free = each * tokens, free_bytes(home)
        if_stored = "if they are stored, " if technique.signals == "auto" else ""
        more = " (more where parts of documents are read: spans are whole)" if section.context == "document" else ""
        line = (
            f"{if_stored}{tokens:,} positions at most{more} of about {each:.0f} bytes, {bytes_said(takes)} in {home}, "
            f"where {bytes_said(free)} are free"
        )
        if takes > free:
            line += "; if that is not enough, the capture stops and goes on with more room"
        notes.append(f"{place}: {line}")
    return notes


def _stored(techniques: Iterable[Technique]) -> Iterator[tuple[str, Soft, Signals]]:
    """Techniques that may read signals from disk, with their places in the recipe."""
    for i, technique in enumerate(techniques):
        section = stored_signals(technique)
        if section is not None:
            assert isinstance(technique, Soft)
            yield f"techniques.{i}.signals", technique, section


def _is_linear(technique: Soft) -> bool:
    """Whether an unbiased estimate of the teacher's probabilities gives an unbiased gradient."""
    return bool(loss_terms_of(technique, ["student"])[0].divergence.canonical().linear_in_teacher)


def _divergence(technique: Soft) -> str:
    return technique.divergence if isinstance(technique.divergence, str) else technique.divergence.name
