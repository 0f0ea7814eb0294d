"""Figures of retrieval: which places of the gallery, sorted by likeness, show the person looked for."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deocc.errors import InputError

__all__ = ["average_precision", "cmc", "first_hits"]


def first_hits(scores: ArrayLike, relevant: ArrayLike) -> NDArray[np.int64]:
    """The rank (from 1) of the first gallery image of the right person, for each probe.

    Args:
        scores: (P, G) of each probe with each gallery image; higher is more alike.
        relevant: (P, G) bool, True where they show one person.

    Returns:
        (P,). Gallery images of others with the very same score come first: a matcher that cannot tell does not know.

    Raises:
        InputError: not two such arrays, a score that is not finite, or a probe without any relevant image.
    """
    values, truth = _check(scores, relevant)
    best = np.where(truth, values, -np.inf).max(axis=1, keepdims=True)
    ranks: NDArray[np.int64] = (np.where(truth, -np.inf, values) >= best).sum(axis=1) + 1
    return ranks


def cmc(ranks: ArrayLike, depth: int) -> NDArray[np.float64]:
    """Cumulative matching characteristic: the share of probes whose first hit is at rank 1, 2, ... ``depth`` or better.

    Args:
        ranks: (P,) as :func:`first_hits` gives them.
        depth: how many ranks.
    """
    shares: NDArray[np.float64] = (np.asarray(ranks)[:, None] <= np.arange(1, depth + 1)).mean(axis=0)
    return shares


def average_precision(scores: ArrayLike, relevant: ArrayLike) -> NDArray[np.float64]:
    """Average precision of each probe: the mean, over its relevant images, of the precision down to their rank.

    Their mean over the probes is mAP. Arguments and errors are those of :func:`first_hits`; ties are broken in the
    order of the gallery.
    """
    values, truth = _check(scores, relevant)
    order = np.argsort(-values, axis=1, kind="stable")
    hits = np.take_along_axis(truth, order, axis=1)
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    means: NDArray[np.float64] = (precision * hits).sum(axis=1) / hits.sum(axis=1)
    return means


def _check(scores: ArrayLike, relevant: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values, truth = np.asarray(scores, np.float64), np.asarray(relevant)
    if values.ndim != 2 or truth.shape != values.shape or truth.dtype != np.bool_:
        raise InputError(
            f"scores (P, G) and bools (P, G) were wanted, got {values.shape} and {truth.dtype} {truth.shape}"
        )
    if not np.isfinite(values).all():
        raise InputError("scores must be finite, got NaN or infinity")
    if not truth.any(axis=1).all():
        raise InputError("every probe wants at least one image of its person in the gallery")
    return values, truth
