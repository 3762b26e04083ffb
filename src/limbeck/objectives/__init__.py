"""The objective: every divergence, every target, never all the logits. Imports torch and nothing else."""

from limbeck.objectives.dense import logits_of
from limbeck.objectives.divergences import (
    DIVERGENCES,
    JSD,
    TVD,
    AlphaBeta,
    CrossEntropy,
    Divergence,
    EntropySwitched,
    ForwardKL,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
    resolve,
)
from limbeck.objectives.fused import Outcome, TermStats, fused_divergence
from limbeck.objectives.targets import IGNORED, Dense, Labels, Restriction, Sparse, Target
from limbeck.objectives.terms import Term

__all__ = [
    "DIVERGENCES",
    "IGNORED",
    "JSD",
    "TVD",
    "AlphaBeta",
    "CrossEntropy",
    "Dense",
    "Divergence",
    "EntropySwitched",
    "ForwardKL",
    "Labels",
    "Outcome",
    "Restriction",
    "ReverseKL",
    "SkewKL",
    "SkewReverseKL",
    "Sparse",
    "Target",
    "Term",
    "TermStats",
    "fused_divergence",
    "logits_of",
    "resolve",
]
