"""Two sets of images compared by the features of a network: Frechet distance, precision, recall and realism.

Each function takes features, not images: which network they are from is the caller's to say, beside every figure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deocc.errors import InputError, MissingDependencyError, UsageError

__all__ = ["PrecisionRecall", "frechet_distance", "precision_recall", "realism"]

_ROWS = 1024


class PrecisionRecall(NamedTuple):
    """How far two sets cover each other: precision, recall and their harmonic mean, each in [0, 1]."""

    precision: float
    recall: float
    f1: float


def frechet_distance(real: Tensor, made: Tensor) -> float:
    """Frechet distance between Gaussians fitted to two sets of features (Heusel et al. 2017), by torchmetrics.

    Over the pool features of the standard Inception-V3 it is called FID; over another network it is not comparable with
    published figures. With fewer samples than dimensions the covariances are singular and the figure is biased upwards.

    Args:
        real, made: (N, D), (M, D) floating point, N, M >= 2.

    Raises:
        InputError: not two such sets.
        MissingDependencyError: torchmetrics is not installed.
    """
    _check(real, made, 2)
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise MissingDependencyError(
            "the Frechet distance needs torchmetrics, which is not installed: pip install 'deocc[eval]'"
        ) from error
    features = nn.Identity()
    features.num_features = real.shape[1]  # type: ignore[assignment]  # what torchmetrics asks a network for
    metric = FrechetInceptionDistance(feature=features).set_dtype(torch.float64)
    # torchmetrics keeps its sums on the CPU.
    metric.update(real.double().cpu(), real=True)
    metric.update(made.double().cpu(), real=False)
    return max(0.0, float(metric.compute()))


def precision_recall(real: Tensor, made: Tensor, neighbours: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al., NeurIPS 2019, eq. 1 and 2).

    A set's manifold is estimated as the union of the balls around its samples that reach to their k-th neighbour in the
    set. Precision is the share of made samples in the manifold of the real ones, recall the other way round.

    Args:
        real, made: (N, D), (M, D) floating point, more than ``neighbours`` each.
        neighbours: k.

    Raises:
        InputError: not two such sets.
        UsageError: ``neighbours`` is below 1.
    """
    _check_neighbours(neighbours)
    _check(real, made, neighbours + 1)
    precision = _covered(made, real, _radii(real, neighbours))
    recall = _covered(real, made, _radii(made, neighbours))
    total = precision + recall
    return PrecisionRecall(precision, recall, 2 * precision * recall / total if total else 0.0)


def realism(real: Tensor, made: Tensor, neighbours: int = 3) -> Tensor:
    """Realism of each made sample (Kynkaanniemi et al. 2019, eq. 3): 1 and above is inside the manifold of real ones.

    It is the largest ratio, over the real samples, of the radius of a sample's ball to the distance from it; the half
    of the balls with the larger radii is left out, as in the paper, since sparse regions would count for too much.

    Args:
        real, made: (N, D), (M, D) floating point; more than ``neighbours`` real samples.
        neighbours: k.

    Returns:
        (M,) float64; infinite for a made sample that equals a real one.

    Raises:
        InputError: not two such sets.
        UsageError: ``neighbours`` is below 1.
    """
    _check_neighbours(neighbours)
    _check(real, made, neighbours + 1, 1)
    radii = _radii(real, neighbours)
    kept = radii <= radii.quantile(0.5)
    ratios = [radii[kept] / distances for distances in _distances(made, real[kept])]
    # A ball without size around a sample that equals the made one: 0 / 0, and the made sample is real.
    return torch.cat([ratio.nan_to_num(torch.inf, posinf=torch.inf).amax(dim=1) for ratio in ratios])


def _distances(rows: Tensor, columns: Tensor) -> Iterator[Tensor]:
    """Euclidean distances (n, M), some rows at a time; from differences, since a product would lose small ones."""
    for part in torch.split(rows.double(), _ROWS):
        yield torch.cdist(part, columns.double(), compute_mode="donot_use_mm_for_euclid_dist")


def _radii(samples: Tensor, neighbours: int) -> Tensor:
    """(N,) the distance from each sample to its k-th neighbour in the set: itself is the nearest and does not count."""
    return torch.cat([part.kthvalue(neighbours + 1, dim=1).values for part in _distances(samples, samples)])


def _covered(samples: Tensor, centres: Tensor, radii: Tensor) -> float:
    """The share of samples that lie in at least one ball."""
    return float(torch.cat([(part <= radii).any(dim=1) for part in _distances(samples, centres)]).double().mean())


def _check_neighbours(neighbours: int) -> None:
    if neighbours < 1:
        raise UsageError(f"neighbours must be at least 1, got {neighbours}")


def _check(real: Tensor, made: Tensor, least: int, least_made: int | None = None) -> None:
    for name, features, count in (("real", real, least), ("made", made, least if least_made is None else least_made)):
        if not isinstance(features, Tensor) or features.ndim != 2 or not features.is_floating_point():
            came = (
                f"{features.dtype} {tuple(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
            )
            raise InputError(f"{name} features must be a floating point tensor (N, D), got {came}")
        if len(features) < count:
            raise InputError(f"at least {count} {name} samples are needed, got {len(features)}")
        if not bool(torch.isfinite(features).all()):
            raise InputError(f"{name} features must be finite, got NaN or infinity")
    if real.shape[1] != made.shape[1]:
        raise InputError(f"real and made features must have one length, got {real.shape[1]} and {made.shape[1]}")
