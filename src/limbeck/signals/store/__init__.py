"""Signals on disk: keyed by document and offset, checked by hash, and never mixed with another teacher's."""

from limbeck.signals.store.identity import Identity, Span, SpanSignal
from limbeck.signals.store.reader import Store
from limbeck.signals.store.writer import StoreWriter

__all__ = ["Identity", "Span", "SpanSignal", "Store", "StoreWriter"]
