"""Figures of verification, from the scores of genuine and of impostor pairs, each with bootstrap samples.

A score says how alike two faces are; a pair is accepted when its score reaches a threshold. Figures are float64. Where
a function takes ``weights``, row r holds how often each pair occurs in bootstrap sample r (:func:`resample`), and the
function returns one figure a sample. Handing the same weights to two states over the same pairs makes a paired test.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deocc.errors import InputError

__all__ = ["Scores", "Weights", "best_threshold", "fold_accuracy", "interval", "mcnemar", "paired_p", "resample"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_CHUNK = 4_000_000  # numbers in a temporary array


@dataclass(frozen=True, eq=False)
class Weights:
    """Bootstrap samples: how often each genuine (R, G) and each impostor pair (R, I) occurs, float32."""

    genuine: NDArray[np.float32]
    impostors: NDArray[np.float32]

    def chunks(self) -> Iterator[Weights]:
        """The same samples, a few at a time, so that what is computed from them stays small."""
        step = max(1, _CHUNK // max(1, self.genuine.shape[1] + self.impostors.shape[1]))
        for start in range(0, len(self.genuine), step):
            yield Weights(self.genuine[start : start + step], self.impostors[start : start + step])


class Scores:
    """The scores of genuine and of impostor pairs, sorted once.

    Args:
        scores: (P,) higher is more alike.
        same: (P,) bool, True for a pair of one person.

    Raises:
        InputError: not two such arrays, a score that is not finite, or pairs of one kind only.
    """

    def __init__(self, scores: ArrayLike, same: ArrayLike) -> None:
        values, truth = np.asarray(scores, np.float64), np.asarray(same)
        if values.ndim != 1 or truth.shape != values.shape or truth.dtype != np.bool_:
            raise InputError(
                f"scores (P,) and bools (P,) were wanted, got {values.shape} and {truth.dtype} {truth.shape}"
            )
        if not np.isfinite(values).all():
            raise InputError("scores must be finite, got NaN or infinity")
        if truth.all() or not truth.any():
            raise InputError(f"pairs of one person and pairs of two were wanted, got {truth.sum()} of {truth.size}")
        genuine, impostors = values[truth], values[~truth]
        # From the most alike down; weights come in the order of the pairs.
        self._genuine_order, self._impostor_order = np.argsort(-genuine), np.argsort(-impostors)
        self.genuine: Floats = genuine[self._genuine_order]
        self.impostors: Floats = impostors[self._impostor_order]

    def roc(self) -> tuple[Floats, Floats, Floats]:
        """False and true positive rates from (0, 0) to (1, 1), and the thresholds, falling from infinity: (K,) each."""
        thresholds = np.unique(np.concatenate([self.genuine, self.impostors]))[::-1]
        fpr, tpr = (
            np.concatenate([[0], np.searchsorted(-side, -thresholds, side="right") / side.size])
            for side in (self.impostors, self.genuine)
        )
        return fpr, tpr, np.concatenate([[math.inf], thresholds])

    def auc(self) -> float:
        """Area under the ROC curve: the chance that a genuine pair scores above an impostor one; ties count half."""
        return float(self._auc(np.ones((1, self.genuine.size)), np.ones((1, self.impostors.size)))[0])

    def auc_samples(self, weights: Weights) -> Floats:
        """:meth:`auc` of each bootstrap sample, (R,)."""
        return np.concatenate([self._auc(*self._sorted(part)) for part in weights.chunks()])

    def eer(self) -> float:
        """Equal error rate: where the ROC curve, straight between its points, has FPR = 1 - TPR."""
        return float(self._eer(np.ones((1, self.genuine.size)), np.ones((1, self.impostors.size)))[0])

    def eer_samples(self, weights: Weights) -> Floats:
        """:meth:`eer` of each bootstrap sample, (R,)."""
        return np.concatenate([self._eer(*self._sorted(part)) for part in weights.chunks()])

    def allowed(self, fpr: float) -> int:
        """How many impostor pairs may pass at a false positive rate."""
        return math.floor(fpr * self.impostors.size + 1e-9)

    def threshold(self, fpr: float) -> float:
        """The lowest threshold that at most a share ``fpr`` of the impostors reaches; minus infinity if all may pass.

        It lies just above the impostor that must not pass, so that no genuine pair is refused needlessly.
        """
        allowed = self.allowed(fpr)
        return math.nextafter(self.impostors[allowed], math.inf) if allowed < self.impostors.size else -math.inf

    def tpr(self, fpr: float) -> float:
        """True positive rate at a false positive rate of at most ``fpr``: the largest on the ROC curve."""
        return float((self.genuine >= self.threshold(fpr)).mean())

    def tpr_samples(self, fpr: float, weights: Weights) -> Floats:
        """:meth:`tpr` of each bootstrap sample, each with the threshold of its own impostors, (R,)."""
        found = []
        # For each impostor, how many genuine pairs score higher.
        above = np.searchsorted(-self.genuine, -self.impostors, side="left")
        above = np.append(above, self.genuine.size)
        for part in weights.chunks():
            genuine, impostors = self._sorted(part)
            passed = np.cumsum(impostors, axis=1) <= self.allowed(fpr)
            first_refused = passed.sum(axis=1)
            counted = np.concatenate([np.zeros((len(genuine), 1)), np.cumsum(genuine, axis=1)], axis=1)
            rows = np.arange(len(genuine))
            found.append(counted[rows, above[first_refused]] / counted[:, -1])
        return np.concatenate(found)

    def _sorted(self, weights: Weights) -> tuple[Floats, Floats]:
        genuine = weights.genuine[:, self._genuine_order].astype(np.float64)
        return genuine, weights.impostors[:, self._impostor_order].astype(np.float64)

    def _auc(self, genuine: Floats, impostors: Floats) -> Floats:
        below = np.concatenate([np.zeros((len(impostors), 1)), np.cumsum(impostors[:, ::-1], axis=1)], axis=1)
        rising = self.impostors[::-1]
        lower, upper = (np.searchsorted(rising, self.genuine, side=side) for side in ("left", "right"))
        wins = (genuine * (below[:, lower] + below[:, upper])).sum(axis=1) / 2
        area: Floats = wins / (genuine.sum(axis=1) * impostors.sum(axis=1))
        return area

    def _eer(self, genuine: Floats, impostors: Floats) -> Floats:
        thresholds = np.unique(np.concatenate([self.genuine, self.impostors]))[::-1]
        fpr, tpr = (
            np.concatenate([np.zeros((len(weights), 1)), np.cumsum(weights, axis=1)], axis=1)[
                :, np.append(0, np.searchsorted(-side, -thresholds, side="right"))
            ]
            / weights.sum(axis=1, keepdims=True)
            for side, weights in ((self.impostors, impostors), (self.genuine, genuine))
        )
        excess = fpr + tpr - 1  # rises from -1 to 1; 0 where the two errors are equal
        after = np.maximum((excess < 0).sum(axis=1), 1)
        rows = np.arange(len(genuine))
        low, high = excess[rows, after - 1], excess[rows, after]
        share = -low / (high - low)
        errors: Floats = fpr[rows, after - 1] + share * (fpr[rows, after] - fpr[rows, after - 1])
        return errors


def best_threshold(scores: ArrayLike, same: ArrayLike) -> float:
    """The threshold at which most pairs are decided rightly: half-way between two scores; the lowest of several.

    Args:
        scores: (P,), P > 0.
        same: (P,) bool.
    """
    values, truth = np.asarray(scores, np.float64), np.asarray(same, np.bool_)
    order = np.argsort(values, kind="stable")
    values, truth = values[order], truth[order]
    # A threshold between two equal scores is none.
    cuts = np.concatenate([[0], np.flatnonzero(np.diff(values) > 0) + 1, [values.size]])
    refused = np.concatenate([[0], np.cumsum(~truth)])[cuts]
    accepted = truth.sum() - np.concatenate([[0], np.cumsum(truth)])[cuts]
    best = int(cuts[np.argmax(refused + accepted)])
    if best == 0:
        return float(values[0])
    if best == values.size:
        return math.nextafter(float(values[-1]), math.inf)
    return max(float((values[best - 1] + values[best]) / 2), math.nextafter(float(values[best - 1]), math.inf))


def fold_accuracy(scores: ArrayLike, same: ArrayLike, folds: ArrayLike) -> tuple[Floats, Bools]:
    """Accuracy of each fold with the threshold that is best on all other folds together.

    Args:
        scores: (P,).
        same: (P,) bool.
        folds: (P,) number of each pair's fold; at least two different ones.

    Returns:
        (F,) accuracies in the order of the folds' numbers, and (P,) bool: which pairs were decided rightly.

    Raises:
        InputError: fewer than two folds.
    """
    values, truth, parts = np.asarray(scores, np.float64), np.asarray(same, np.bool_), np.asarray(folds)
    numbers = np.unique(parts)
    if numbers.size < 2:
        raise InputError(f"accuracy over folds wants at least two folds, got {numbers.size}")
    right = np.zeros(values.size, np.bool_)
    for number in numbers:
        inside = parts == number
        right[inside] = (values[inside] >= best_threshold(values[~inside], truth[~inside])) == truth[inside]
    return np.array([right[parts == number].mean() for number in numbers]), right


def resample(genuine: int, impostors: int, samples: int, seed: int) -> Weights:
    """Draw bootstrap samples: genuine and impostor pairs with replacement, as many of each as there are."""
    generator = np.random.default_rng(seed)
    counts = [
        generator.multinomial(count, np.full(count, 1 / count), size=samples).astype(np.float32)
        for count in (genuine, impostors)
    ]
    return Weights(*counts)


def interval(samples: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of bootstrap samples (R,)."""
    low, high = np.quantile(np.asarray(samples, np.float64), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_p(differences: ArrayLike) -> float:
    """Two-sided p of "no difference", from the bootstrap samples (R,) of a difference."""
    values = np.asarray(differences, np.float64)
    tail = min((values <= 0).sum(), (values >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (values.size + 1)))


def mcnemar(won: int, lost: int) -> float:
    """Two-sided p of McNemar's exact test: ``won`` decisions turned right, ``lost`` turned wrong, by a fair coin?"""
    count, few = won + lost, min(won, lost)
    if won == lost:
        return 1.0
    # In logarithms: 2 ** -count vanishes.
    terms = [math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1) for i in range(few + 1)]
    return min(1.0, 2 * sum(math.exp(term - count * math.log(2)) for term in terms))
