"""Intervals and tests: the one copy.

The unit that is resampled is the document: tokens of one document are not independent, so an
interval over tokens would be too narrow. What is compared is compared on the same documents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% bootstrap interval."""

    value: float
    low: float
    high: float


def bootstrap(
    statistic: Callable[..., np.ndarray],
    *samples: np.ndarray,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap over documents, and over seeds where there are several (Efron 1979).

    Args:
        statistic: takes, for each sample, sums over documents and seeds ``[R, ...]`` and returns ``[R]``.
        samples: float64 ``[S, D, ...]``: per seed and document. All are resampled with the same
            documents (paired); samples with S seeds draw seeds too, from the same draw where S agrees.
        resamples: how many.
        level: coverage.

    Returns:
        The statistic of the whole sample, with its interval.
    """
    arrays = [np.asarray(sample, np.float64) for sample in samples]
    documents = arrays[0].shape[1]
    if any(array.shape[1] != documents for array in arrays):
        raise ValueError("paired samples need the same documents")
    whole = float(statistic(*(array.mean(0).sum(0)[None] for array in arrays))[0])
    rng = np.random.default_rng(seed)
    doc_weights = rng.multinomial(documents, np.full(documents, 1 / documents), size=resamples).astype(np.float64)
    seed_weights: dict[int, np.ndarray] = {}
    drawn = []
    for array in arrays:
        n_seeds = array.shape[0]
        if n_seeds not in seed_weights:
            seed_weights[n_seeds] = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=resamples) / n_seeds
        by_seed = np.einsum("rd,sd...->rs...", doc_weights, array)
        drawn.append(np.einsum("rs,rs...->r...", seed_weights[n_seeds], by_seed))
    values = statistic(*drawn)
    values = values[np.isfinite(values)]
    if not len(values):
        return Interval(whole, float("nan"), float("nan"))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(whole, float(low), float(high))
