"""Figures of verification, against scikit-learn, SciPy, and what can be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats
from sklearn import metrics as sklearn

from deocc.errors import InputError
from deocc.metrics.verification import (
    Scores,
    Weights,
    best_threshold,
    fold_accuracy,
    interval,
    mcnemar,
    paired_p,
    resample,
)


def drawn(pairs: int = 400, levels: int | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    same = generator.random(pairs) < 0.4
    scores = generator.normal(same * 1.2, 1)
    return (scores if levels is None else np.round(scores * levels) / levels), same


@pytest.mark.parametrize("levels", [None, 4])  # without ties and with many
@pytest.mark.parametrize("seed", range(5))
def test_against_scikit_learn(levels: int | None, seed: int) -> None:
    scores, same = drawn(levels=levels, seed=seed)
    ours = Scores(scores, same)
    fpr, tpr, _ = sklearn.roc_curve(same, scores, drop_intermediate=False)
    np.testing.assert_allclose(ours.roc()[:2], (fpr, tpr))
    assert ours.auc() == pytest.approx(sklearn.roc_auc_score(same, scores), abs=1e-12)
    for rate in (0.5, 0.1, 0.01, 0.001):
        assert ours.tpr(rate) == pytest.approx(tpr[fpr <= rate + 1e-12].max())
        assert (ours.impostors >= ours.threshold(rate)).mean() <= rate
    crossing = optimize.brentq(lambda x: 1 - x - np.interp(x, fpr, tpr), 0, 1, xtol=1e-12)
    assert ours.eer() == pytest.approx(crossing, abs=1e-9)


@pytest.mark.parametrize("levels", [None, 4])
def test_a_bootstrap_sample_is_the_figure_of_the_resampled_pairs(levels: int | None) -> None:
    scores, same = drawn(pairs=120, levels=levels)
    weights = resample(int(same.sum()), int((~same).sum()), 20, seed=3)
    ours = Scores(scores, same)
    samples = ours.auc_samples(weights), ours.eer_samples(weights), ours.tpr_samples(0.05, weights)
    for r in range(20):
        times = np.zeros(same.size, int)
        times[same], times[~same] = weights.genuine[r], weights.impostors[r]
        again = Scores(np.repeat(scores, times), np.repeat(same, times))
        assert [sample[r] for sample in samples] == pytest.approx([again.auc(), again.eer(), again.tpr(0.05)])


def test_resample_keeps_the_number_of_pairs_and_follows_the_seed() -> None:
    weights = resample(7, 11, 50, seed=1)
    assert (weights.genuine.sum(1) == 7).all()
    assert (weights.impostors.sum(1) == 11).all()
    assert (weights.genuine == resample(7, 11, 50, seed=1).genuine).all()
    assert (weights.genuine != resample(7, 11, 50, seed=2).genuine).any()


def test_chunks_are_the_whole() -> None:
    weights = Weights(np.ones((9, 1_000_000), np.float32), np.ones((9, 1), np.float32))
    parts = list(weights.chunks())
    assert [len(part.genuine) for part in parts] == [3, 3, 3]


def test_perfect_and_useless_scores() -> None:
    same = np.array([True, True, False, False])
    perfect = Scores([0.9, 0.8, 0.2, 0.1], same)
    assert (perfect.auc(), perfect.eer(), perfect.tpr(0.0)) == (1.0, 0.0, 1.0)
    blind = Scores([0.5] * 4, same)
    assert (blind.auc(), blind.eer(), blind.tpr(0.01)) == (0.5, 0.5, 0.0)
    wrong = Scores([0.1, 0.2, 0.8, 0.9], same)
    assert (wrong.auc(), wrong.eer(), wrong.tpr(1.0)) == (0.0, 1.0, 1.0)
    assert wrong.threshold(1.0) == -math.inf


def test_how_many_impostors_may_pass_is_not_off_by_one() -> None:
    impostors = np.arange(100) / 100
    ours = Scores(np.append(impostors, [0.985, 0.99]), np.array([False] * 100 + [True] * 2))
    assert ours.allowed(0.01) == 1  # the best impostor, 0.99, passes; 0.98 must not
    assert ours.tpr(0.01) == 1.0
    assert ours.tpr(0.009) == 0.0  # none may pass: the threshold is above 0.99


@pytest.mark.parametrize("seed", range(5))
def test_best_threshold_is_the_best(seed: int) -> None:
    scores, same = drawn(pairs=60, levels=3, seed=seed)
    found = best_threshold(scores, same)
    every = np.concatenate([scores, scores + 1e-9, scores - 1e-9])
    best = max(((scores >= threshold) == same).mean() for threshold in every)
    assert ((scores >= found) == same).mean() == best


def test_fold_accuracy_never_sees_its_own_fold() -> None:
    # In fold 0 everything lies 10 higher: a threshold of its own would be perfect, the other folds' accepts all.
    scores = np.array([12.0, 11.0, 2.0, 1.0, 2.1, 1.1])
    same = np.array([True, False] * 3)
    accuracies, right = fold_accuracy(scores, same, [0, 0, 1, 1, 2, 2])
    assert accuracies[0] == 0.5
    assert right.tolist()[:2] == [True, False]
    with pytest.raises(InputError, match="at least two folds, got 1"):
        fold_accuracy(scores, same, [0] * 6)


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (3, 3), (10, 2), (0, 7), (400, 300), (3000, 2000)])
def test_mcnemar_against_scipy(won: int, lost: int) -> None:
    expected = stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert mcnemar(won, lost) == pytest.approx(expected, rel=1e-9)


def test_interval_and_paired_p() -> None:
    samples = np.linspace(0, 1, 1001)
    assert interval(samples) == pytest.approx((0.025, 0.975))
    assert paired_p(samples) == pytest.approx(4 / 1002)  # one of them is 0
    assert paired_p(samples - 0.5) == 1.0
    assert paired_p(np.zeros(10)) == 1.0


@pytest.mark.parametrize(
    ("scores", "same", "sentence"),
    [
        ([[1.0]], [[True]], r"scores \(P,\) and bools"),
        ([1.0, 2.0], [True], "bools"),
        ([1.0, 2.0], [1, 0], "int64"),
        ([1.0, math.nan], [True, False], "finite"),
        ([1.0, 2.0], [True, True], "pairs of two were wanted, got 2 of 2"),
    ],
)
def test_bad_input(scores: list[float], same: list[bool], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Scores(scores, np.array(same))
