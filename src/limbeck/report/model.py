"""What a report shows, as plain frozen data: whoever made the numbers fills these in.

``None`` means "not measured" everywhere, and is shown as such; a number that is not finite counts as not
measured. Nothing here computes a result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["teacher", "control", "student", "co-teacher"]

Key = tuple[str, str]
"""What identifies a row whatever it is called: its technique's label and the model's name within that technique."""


@dataclass(frozen=True)
class Estimate:
    """A measured number with its 95% interval.

    Args:
        value: the point estimate.
        low: lower end of the interval, or None where no interval was computed.
        high: upper end.
    """

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def known(self) -> bool:
        """Whether there is a finite number to show."""
        return math.isfinite(self.value)

    @property
    def interval(self) -> tuple[float, float] | None:
        """``(low, high)`` where both ends are finite, else None."""
        if self.low is None or self.high is None:
            return None
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return None
        return min(self.low, self.high), max(self.low, self.high)


@dataclass(frozen=True)
class Row:
    """One model of the comparison.

    Args:
        name: what is shown: ``teacher``, ``alone``, ``soft``, …; with several students ``soft / small``.
        role: ``teacher``, ``control`` (a student trained without a teacher), ``student`` or ``co-teacher`` (a
            teacher that learned in the same run).
        parameters: how many; None of a teacher that is only called.
        bytes: size of the weight files on disk.
        dtype: type of the weights in those files, such as ``BF16``, or ``GGUF``; empty where not known.
        bits_per_byte: on held-out text; lower is better.
        kl: KL(teacher ‖ this model) in nats per token; lower is nearer.
        agreement: share of tokens (0..1) whose most likely next token is the teacher's.
        gap_closed: share of the distance from the control to the teacher, in bits per byte, that was closed:
            0 at the control, 1 at the teacher, negative where the control is better.
        versus_control: paired difference in bits per byte to the control; negative is better.
        cross_entropy: nats per token on held-out text, over all labels.
        cross_entropy_words: the same over the text alone, without the tokens that end or surround it.
        accuracy: share of held-out prompts (0..1) that were answered right.
        tokens_per_second: speed of generation: the median of several rounds, and their range as the interval.
        shape: equal for models that do the same arithmetic; empty where not known.
        train_tokens: tokens the model was trained on in this run.
        seeds: independent trainings behind the numbers.
        note: a remark shown under the name.
        technique: label of the technique that trained it, empty for the run's teacher; ``name`` by default.
        member: which model of that technique; it ties a student to its control.
    """

    name: str
    role: Role
    parameters: int | None = None
    bytes: int | None = None
    dtype: str = ""
    bits_per_byte: Estimate | None = None
    kl: Estimate | None = None
    agreement: Estimate | None = None
    gap_closed: Estimate | None = None
    versus_control: Estimate | None = None
    cross_entropy: Estimate | None = None
    cross_entropy_words: Estimate | None = None
    accuracy: Estimate | None = None
    tokens_per_second: Estimate | None = None
    shape: str = ""
    train_tokens: int | None = None
    seeds: int = 1
    note: str | None = None
    technique: str | None = None
    member: str = ""

    @property
    def key(self) -> Key:
        """Identity of the row. Names are for display: two rows may be called alike."""
        return (self.name if self.technique is None else self.technique), self.member


@dataclass(frozen=True)
class Curve:
    """A named line: ``y`` over ``x``, of equal length. Points that are not finite are left out when drawn.

    It takes the colour of the row ``key``, where there is one.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    key: Key | None = None


@dataclass(frozen=True)
class Chart:
    """Curves on common axes."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    log_x: bool = False
    log_y: bool = False
    caption: str | None = None
    heading: str = "While training"


@dataclass(frozen=True)
class Sample:
    """How each model goes on from one prompt. All of it is untrusted text.

    Args:
        prompt: what every model was given.
        continuations: text by the key of the row that wrote it.
        reference: how the held-out document really goes on, where known.
    """

    prompt: str
    continuations: Mapping[Key, str]
    reference: str | None = None


@dataclass(frozen=True)
class Fact:
    """One line of provenance."""

    label: str
    value: str


@dataclass(frozen=True)
class ReportData:
    """Everything one report shows.

    Args:
        title: heading of the page.
        rows: the compared models, in the order to show them.
        verdict: the result in words; None lets :func:`limbeck.report.verdict.verdict` say it from the rows.
        warnings: what a reader must know before believing the numbers.
        charts: training curves and the like.
        samples: continuations side by side.
        speed_note: what must be known of how speeds were measured.
        provenance: groups of facts, by heading.
        recipe_yaml: the resolved recipe.
        command: the command line that makes this report again.
        created: when, ISO 8601.
    """

    title: str
    rows: Sequence[Row]
    verdict: str | None = None
    warnings: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    samples: Sequence[Sample] = ()
    speed_note: str | None = None
    provenance: Mapping[str, Sequence[Fact]] = field(default_factory=dict)
    recipe_yaml: str = ""
    command: str = ""
    created: str = ""


def known(estimate: Estimate | None) -> Estimate | None:
    """The estimate if it holds a finite number, else None."""
    return estimate if estimate is not None and estimate.known else None
