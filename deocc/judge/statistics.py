"""Figures with their intervals, and two of them compared."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deocc.judge.pairs import NO_FOLD
from deocc.judge.result import Figure
from deocc.metrics.verification import Weights, fold_accuracy, interval, mcnemar, paired_p

__all__ = ["accuracy", "bootstrap_means", "compared", "figure", "spread"]

Floats = NDArray[np.float64]

_STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Of Student's t, what 2.5 % lie above, by degrees of freedom. Of more it is 1.96 + 2.4 / n, within 0.03."""


def figure(value: float | None, samples: Floats | None = None) -> Figure:
    """A figure with the 95 % interval of its bootstrap samples; None where it is not finite."""
    if value is None or not math.isfinite(value):
        return Figure()
    if samples is None or not np.isfinite(samples).all():
        return Figure(float(value))
    return Figure(float(value), *interval(samples))


def spread(values: Floats) -> Figure:
    """The mean of shares over folds or sets with its 95 % interval by Student's t, within [0, 1]."""
    mean = float(values.mean())
    if values.size < 2:
        return Figure(mean)
    freedom = values.size - 1
    error = _STUDENT.get(freedom, 1.96 + 2.4 / freedom) * float(values.std(ddof=1)) / math.sqrt(values.size)
    return Figure(mean, max(0.0, mean - error), min(1.0, mean + error))


def accuracy(
    scores: Floats, same: NDArray[np.bool_], folds: NDArray[np.int64], weights: Weights | None
) -> tuple[Floats, NDArray[np.bool_], Floats | None] | None:
    """Accuracy over folds, of the pairs (P,) that have one; None where there are fewer than two.

    Returns:
        the accuracy of each fold, which of those pairs were decided rightly, and bootstrap samples (R,) of their share.
    """
    listed = folds != NO_FOLD
    if len(np.unique(folds[listed])) < 2:
        return None
    each, right = fold_accuracy(scores[listed], same[listed], folds[listed])
    if weights is None:
        return each, right, None
    genuine, impostors = weights.genuine[:, listed[same]], weights.impostors[:, listed[~same]]
    sums = genuine @ right[same[listed]].astype(np.float64) + impostors @ right[~same[listed]].astype(np.float64)
    return each, right, sums / (genuine.sum(1, dtype=np.float64) + impostors.sum(1, dtype=np.float64))


def bootstrap_means(values: Floats, samples: int, seed: int) -> Floats:
    """Bootstrap samples (R,) or (R, K) of the mean of values (N,) or (N, K)."""
    count = len(values)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=samples)
    means: Floats = drawn @ values / count
    return means


def compared(
    values: tuple[float, float, float | None],
    samples: tuple[Floats | None, Floats | None],
    right: tuple[NDArray[np.bool_] | None, NDArray[np.bool_] | None],
    *,
    error: bool = False,
) -> dict[str, Any]:
    """The fields of a :class:`deocc.judge.result.Comparison` that say how two figures differ.

    Args:
        values: after, before, and the figure without occlusion where there is one.
        samples: of the same bootstrap samples, for after and before.
        right: which pairs or probes were decided rightly, for after and before.
        error: lower figures are better.
    """
    after, before, true = values
    found: dict[str, Any] = {"difference": Figure(after - before)}
    if samples[0] is not None and samples[1] is not None:
        differences = samples[0] - samples[1]
        found |= {"difference": figure(after - before, differences), "p": paired_p(differences)}
    if right[0] is not None and right[1] is not None:
        won, lost = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
        found |= {"won": won, "lost": lost, "p_mcnemar": mcnemar(won, lost)}
    if true is not None and (before - true if error else true - before) > 1e-12:
        found["recovered"] = (after - before) / (true - before)
    return found
