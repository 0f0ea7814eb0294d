"""Distances between sets of features, on sets whose answer is known."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from scipy import linalg

from deocc.errors import InputError, MissingDependencyError, UsageError
from deocc.metrics.features import frechet_distance, precision_recall, realism


def gaussian(count: int, dimensions: int = 2, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed)) + shift


def test_frechet_distance_against_scipy() -> None:
    real, made = gaussian(300, 5), gaussian(200, 5, seed=1, shift=0.3) * torch.tensor([1.0, 2, 0.5, 1, 1])
    a, b = real.double().numpy(), made.double().numpy()
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(real, made) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_a_shift_is_its_square() -> None:
    real = gaussian(500, 4)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(real, real + 3) == pytest.approx(4 * 9, rel=1e-6)


def test_frechet_distance_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'deocc\[eval\]'"):
        frechet_distance(gaussian(5), gaussian(5))


def test_the_same_set_and_sets_far_apart() -> None:
    real = gaussian(200)
    assert precision_recall(real, real.clone()) == (1, 1, 1)
    assert precision_recall(real, real + 100) == (0, 0, 0)


def test_same_distribution() -> None:
    found = precision_recall(gaussian(2000), gaussian(2000, seed=1))
    assert min(found) > 0.9


def test_one_mode_of_two_is_precise_and_recalls_half() -> None:
    real = torch.cat([gaussian(500), gaussian(500, seed=1, shift=50)])
    made = gaussian(1000, seed=2)
    found = precision_recall(real, made)
    assert found.precision > 0.9
    assert found.recall == pytest.approx(0.5, abs=0.05)
    other = precision_recall(made, real)
    assert (other.precision, other.recall) == (found.recall, found.precision)
    assert found.f1 == pytest.approx(2 * found.precision * found.recall / (found.precision + found.recall))


def test_by_hand() -> None:
    # On a line: neighbours of 0, 1, 2, 10 at distance 1, 1, 1, 8.
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    made = torch.tensor([[-0.5], [3.5], [25.0], [1.5]])
    found = precision_recall(real, made, neighbours=1)
    assert found.precision == 3 / 4  # 3.5 is in the ball of 10, 25 in none
    # Radii of the made ones: 2, 2, 21.5, 2: so 0, 1, 2 are near -0.5 or 1.5, and 10 is in the ball of 25.
    assert found.recall == 1.0
    # The median radius is 1, so the ball of 10 is left out.
    expected = [1 / 0.5, 1 / 1.5, 1 / 23, 1 / 0.5]
    assert realism(real, made, neighbours=1).tolist() == pytest.approx(expected)


def test_realism_falls_with_distance_and_real_samples_are_real() -> None:
    real = gaussian(300)
    near, far = realism(real, gaussian(50, seed=3)), realism(real, gaussian(50, seed=3, shift=10))
    assert near.median() > 0.5 > far.max()
    assert (realism(real, real) == math.inf).double().mean() == pytest.approx(0.5, abs=0.01)  # the balls that are kept
    twins = torch.zeros(8, 2)
    assert realism(twins, torch.zeros(1, 2)).tolist() == [math.inf]


def test_a_manifold_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    real, made = gaussian(50), gaussian(40, seed=1)
    whole = precision_recall(real, made), realism(real, made)
    monkeypatch.setattr("deocc.metrics.features._ROWS", 7)
    assert precision_recall(real, made) == whole[0]
    assert torch.equal(realism(real, made), whole[1])


@pytest.mark.parametrize(
    ("real", "made", "sentence"),
    [
        (torch.zeros(5), torch.zeros(5, 2), "real features must be"),
        (torch.zeros(5, 2), np.zeros((5, 2)), "made features must be a floating point tensor"),
        (torch.zeros(3, 2), torch.zeros(5, 2), "at least 4 real samples are needed, got 3"),
        (torch.zeros(5, 2), torch.full((5, 2), math.nan), "made features must be finite"),
        (torch.zeros(5, 2), torch.zeros(5, 3), "one length, got 2 and 3"),
    ],
)
def test_bad_input(real: object, made: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        precision_recall(real, made)


def test_no_neighbours() -> None:
    with pytest.raises(UsageError, match="at least 1, got 0"):
        realism(gaussian(5), gaussian(5), neighbours=0)
