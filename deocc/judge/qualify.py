"""From figures of single faces to the figures of quality, and faces as sets to distances between sets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from deocc.errors import InputError, UsageError
from deocc.faces import Crop
from deocc.judge.faces import Faces, Occluding
from deocc.judge.networks import FeatureNetwork, Perceptual
from deocc.judge.parts import Loaded
from deocc.judge.result import Distribution, Example, Figure, Quality, QualityRow
from deocc.judge.statistics import bootstrap_means, figure
from deocc.judge.views import FIGURES, Vectors, Views, Wants
from deocc.metrics.features import frechet_distance, precision_recall, realism

__all__ = ["chosen_faces", "quality", "quality_wants"]

NEIGHBOURS = 3
"""k of precision, recall and realism."""

EXTREMES, SPACED = 4, 8
"""Examples for pictures: the best, as many of the worst, and evenly spaced ones."""


def chosen_faces(faces: Faces, limit: int | None) -> tuple[str, ...]:
    """All images, or ``limit`` of them, evenly spaced in the order of their names.

    Raises:
        UsageError: ``limit`` is below 1.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"at least one face must be judged, got the limit {limit}")
    if limit is None or limit >= len(faces.names):
        return faces.names
    return tuple(faces.names[number] for number in np.linspace(0, len(faces.names) - 1, limit).astype(int))


def quality_wants(names: Sequence[str]) -> Wants:
    """Figures of every face, and every matcher's embeddings, which serve as features."""
    return Wants(*[frozenset(names)] * 4)


def quality(
    views: Views,
    names: Sequence[str],
    *,
    occluding: Occluding,
    restorers: Sequence[Loaded],
    recognizers: Sequence[Loaded],
    networks: Sequence[FeatureNetwork],
    seed: int = 0,
    resamples: int = 1000,
) -> Quality:
    """Average the figures of every face, and compare the sets.

    Raises:
        InputError: no face was found in any image.
        MissingDependencyError: torchmetrics is not installed.
    """
    lost = views.without_face.keys() | views.unreadable.keys()
    left = [name for name in names if name not in lost]
    if not left:
        raise InputError(f"no face was found in any of the {len(names)} images")
    kinds = np.array([occluding.kind(name) for name in left])
    parts = [("all", np.full(kinds.shape, True))]
    if len(set(kinds)) > 1:
        parts += [(kind, kinds == kind) for kind in sorted(set(kinds.tolist()))]
    makers: list[tuple[str, Crop]] = [("", crop) for crop in dict.fromkeys(one.crop for one in restorers)]
    makers += [(one.key, one.crop) for one in restorers]
    measuring = [network.key for network in networks if isinstance(network, Perceptual)]
    rows, examples, distributions = [], [], []
    for restorer, crop in makers:
        values = _stacked(views.quality[restorer, crop], left)
        distances = {key: _stacked(views.distances[key, restorer, crop], left)[:, 0] for key in measuring}
        for kind, inside in parts:
            figures = [_mean(column, seed, resamples) for column in values[inside].T]
            lpips = {key: _mean(one[inside], seed, resamples) for key, one in distances.items()}
            named = dict(zip(FIGURES, figures, strict=True))
            rows.append(QualityRow(restorer, kind, int(inside.sum()), crop.size, crop.zoom, lpips=lpips, **named))
        if restorer:
            examples += _examples(restorer, left, kinds, values[:, FIGURES.index("hole_psnr")])
        for network in networks:
            true, made = (_stacked(views.features[network.key, key, crop], left) for key in (None, restorer))
            distributions.append(_compared(restorer, network.key, crop.size, crop.zoom, true, made))
    for matcher in recognizers:
        known = views.matrix(matcher.key, "", "T", left)
        for restorer in ["", *(one.key for one in restorers)]:
            seen = views.matrix(matcher.key, restorer, "U" if restorer else "M", left)
            crop = matcher.crop
            distributions.append(_compared(restorer, matcher.key, crop.size, crop.zoom, known, seen))
    return Quality(
        faces=len(left),
        without_face=len(names) - len(left),
        seed=seed,
        resamples=resamples,
        rows=tuple(rows),
        distributions=tuple(distributions),
        examples=tuple(examples),
    )


def _stacked(vectors: Vectors, names: Sequence[str]) -> NDArray[np.float64]:
    return np.stack([vectors[name] for name in names]).astype(np.float64)


def _mean(values: NDArray[np.float64], seed: int, resamples: int) -> Figure:
    """The mean over the faces for which the figure is defined."""
    defined = values[~np.isnan(values)]
    if not defined.size or not np.isfinite(defined).all():
        return Figure()
    return figure(float(defined.mean()), bootstrap_means(defined, resamples, seed) if resamples else None)


def _compared(
    restorer: str, network: str, size: int, zoom: float, true: NDArray[np.floating], made: NDArray[np.floating]
) -> Distribution:
    real, restored = (torch.from_numpy(np.ascontiguousarray(values, np.float64)) for values in (true, made))
    base = Distribution(restorer, network, len(true), size, float(zoom), neighbours=NEIGHBOURS)
    if len(true) <= NEIGHBOURS:
        return base
    covered = precision_recall(real, restored, NEIGHBOURS)
    # A restored face whose features equal those of a real one is as realistic as can be: infinitely so, says the
    # formula. The mean is over the others.
    real_like = realism(real, restored, NEIGHBOURS)
    finite = real_like[torch.isfinite(real_like)]
    return Distribution(
        restorer,
        network,
        len(true),
        size,
        float(zoom),
        frechet_distance(real, restored),
        *covered,
        float(finite.mean()) if len(finite) else None,
        NEIGHBOURS,
    )


def _examples(
    restorer: str, names: Sequence[str], kinds: NDArray[np.str_], values: NDArray[np.float64]
) -> list[Example]:
    order = [int(number) for number in np.argsort(-values, kind="stable") if np.isfinite(values[number])]
    best, worst = order[:EXTREMES], order[EXTREMES:][::-1][:EXTREMES]
    spaced = np.unique(np.linspace(0, len(names) - 1, SPACED).round().astype(int)).tolist()
    return [
        Example(
            restorer,
            names[number],
            str(kinds[number]),
            why,  # type: ignore[arg-type]
            float(values[number]) if np.isfinite(values[number]) else None,
        )
        for why, chosen in (("best", best), ("worst", worst), ("spaced", spaced))
        for number in chosen
    ]
