"""Figures over few folds and sets."""

from __future__ import annotations

import numpy as np
import pytest

from deocc.judge.retrieve import SETS, _drawn_sets
from deocc.judge.statistics import spread


@pytest.mark.parametrize("folds", [2, 3, 10, 20])
def test_the_interval_over_folds_holds_the_mean_as_often_as_it_says(folds: int) -> None:
    drawn = np.random.default_rng(0).normal(0.5, 0.01, (4000, folds))
    found = [spread(one) for one in drawn]
    held = np.mean([one.low <= 0.5 <= one.high for one in found])  # type: ignore[operator]
    assert held == pytest.approx(0.95, abs=0.015)


def test_sets_share_no_pair_where_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deocc.judge.retrieve.PAIRS", 20)
    people = np.repeat([f"p{number}" for number in range(20)], 5)
    for known, shared in ((people, False), (people[::5], True)):
        sets = _drawn_sets(people, known, seed=3)
        assert sets.shared is shared
        pairs = set(zip(sets.probe.tolist(), sets.gallery.tolist(), strict=True))
        assert (len(pairs) == len(sets.probe)) is not shared
        assert np.bincount(sets.number).tolist() == [40] * SETS
        assert ((people[sets.probe] == known[sets.gallery]) == sets.same).all()


def test_one_person_alone_is_no_pair_of_two() -> None:
    for images in (4, 10):
        alone = np.repeat("a", images)
        assert len(_drawn_sets(alone, alone, seed=0).probe) == 0
