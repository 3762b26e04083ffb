"""What can be refused of stored signals before anything is spent, and what they do not teach."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from limbeck.errors import RecipeError, under
from limbeck.pipeline.stored.room import stored
from limbeck.pipeline.stored.stores import window_of
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


def check_windows(techniques: Iterable[Technique], longest: int | None) -> None:
    """Refuse what the teacher cannot read. ``longest``: tokens that it reads; None: any."""
    for place, _, section in _stored(techniques):
        with under(place):
            window_of(section, longest)


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


def _stored(techniques: Iterable[Technique]) -> Iterator[tuple[str, Soft, Signals]]:
    return (found for found in stored(techniques) if stored_signals(found[1]) is not None)


def _is_linear(technique: Soft) -> bool:
    """Whether an unbiased estimate of the teacher's probabilities gives an unbiased gradient."""
    return bool(loss_terms_of(technique, ["student"])[0].divergence.canonical().linear_in_teacher)


def _divergence(technique: Soft) -> str:
    return technique.divergence if isinstance(technique.divergence, str) else technique.divergence.name
