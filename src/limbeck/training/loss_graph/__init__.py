"""Loss terms, and the graph that they form."""

from limbeck.training.loss_graph.graph import LossGraph, Tally
from limbeck.training.loss_graph.terms import LABELS, HiddenLossTerm, LossTerm

__all__ = ["LABELS", "HiddenLossTerm", "LossGraph", "LossTerm", "Tally"]
