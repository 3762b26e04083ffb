"""The contract of what teaches: a source answers a batch with a signal.

Shape letters: B rows of a batch, T tokens of a row, N positions that are answered, D width of the source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

from torch import Tensor

from limbeck.data.packing import Batch
from limbeck.objectives.targets import Target


class Access(StrEnum):
    """What a teacher reveals, from least to most."""

    TEXT = "text"
    TOP_LOGPROBS = "top_logprobs"
    LOGITS = "logits"


class HiddenShape(NamedTuple):
    """Of the hidden states that a source can give: how many layers it has, and their width."""

    layers: int
    width: int


@dataclass(frozen=True)
class Signal:
    """What a source says about one batch; nothing in it carries a gradient.

    Attributes:
        target: what it thinks at N positions, in the ids of the run.
        mask_BT: bool [B, T], the learner's positions that the target's rows belong to, row by row; None: those
            that have a label. Position t of a row is the one that predicts token t + 1.
        weight_N: floating [N], multiplies each position's divergence (importance weights, for example); None: 1.
        layers: floating [N, D], the source's hidden states after the layers that were asked for, by layer.
    """

    target: Target
    mask_BT: Tensor | None = None
    weight_N: Tensor | None = None
    layers: Mapping[int, Tensor] = field(default_factory=dict)


class SignalSource(Protocol):
    """One teacher of a training: live, stored or served."""

    @property
    def fingerprint(self) -> str:
        """Whose signals these are: equal fingerprints give equal signals for equal batches."""
        ...

    @property
    def access(self) -> Access: ...

    @property
    def hidden_shape(self) -> HiddenShape | None:
        """None: it gives no hidden states."""
        ...

    def count(self, batch: Batch) -> int:
        """N, the positions that :meth:`signal` answers in this batch. Known without asking the teacher: losses are
        divided by the count of a whole step, before any of its batches is answered."""
        ...

    def signal(self, batch: Batch, layers: Sequence[int] = ()) -> Signal:
        """The answer to a batch, with hidden states after ``layers`` (from 0)."""
        ...
