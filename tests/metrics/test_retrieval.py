"""Figures of retrieval, against torchmetrics, scikit-learn and what can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn
from torchmetrics.functional import retrieval as functional

from deocc.errors import InputError
from deocc.metrics.retrieval import average_precision, cmc, first_hits


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    relevant = generator.random((20, 30)) < 0.1
    relevant[np.arange(20), generator.integers(0, 30, 20)] = True
    # Above 0: torchmetrics takes images with lower scores as not retrieved at all.
    return np.exp(generator.normal(relevant * 1.0, 1)), relevant


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_against_two_libraries(seed: int) -> None:
    scores, relevant = drawn(seed)
    ours = average_precision(scores, relevant)
    np.testing.assert_allclose(
        ours, [sklearn.average_precision_score(r, s) for s, r in zip(scores, relevant, strict=True)]
    )
    theirs = [
        float(functional.retrieval_average_precision(torch.tensor(s), torch.tensor(r)))
        for s, r in zip(scores, relevant, strict=True)
    ]
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_ranks_against_torchmetrics(seed: int) -> None:
    scores, relevant = drawn(seed)
    ranks = first_hits(scores, relevant)
    reciprocal = [
        float(functional.retrieval_reciprocal_rank(torch.tensor(s), torch.tensor(r)))
        for s, r in zip(scores, relevant, strict=True)
    ]
    np.testing.assert_allclose(1 / ranks, reciprocal, rtol=1e-6)
    curve = cmc(ranks, 30)
    for depth in (1, 5, 10):
        hits = [
            float(functional.retrieval_hit_rate(torch.tensor(s), torch.tensor(r), top_k=depth))
            for s, r in zip(scores, relevant, strict=True)
        ]
        assert curve[depth - 1] == pytest.approx(np.mean(hits))
    assert curve[-1] == 1


def test_by_hand() -> None:
    scores = np.array([[0.9, 0.8, 0.7, 0.6]])
    relevant = np.array([[False, True, False, True]])
    assert first_hits(scores, relevant).tolist() == [2]
    assert average_precision(scores, relevant).tolist() == [(1 / 2 + 2 / 4) / 2]


def test_a_matcher_that_cannot_tell_knows_nothing() -> None:
    assert first_hits(np.zeros((1, 5)), np.array([[True, False, False, False, False]])).tolist() == [5]


@pytest.mark.parametrize(
    ("scores", "relevant", "sentence"),
    [
        (np.zeros(3), np.ones(3, bool), r"scores \(P, G\)"),
        (np.zeros((1, 2)), np.ones((1, 2)), "float64"),
        (np.array([[np.nan, 0]]), np.array([[True, False]]), "finite"),
        (np.zeros((2, 2)), np.array([[True, False], [False, False]]), "at least one image of its person"),
    ],
)
def test_bad_input(scores: np.ndarray, relevant: np.ndarray, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        first_hits(scores, relevant)
