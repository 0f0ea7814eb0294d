"""The ablations run and write their tables."""

import json

import numpy as np
import pytest
import torch
from deocc_distill import ablation
from deocc_distill.ablation import best_accuracy, pairs_of, score_pairs
from deocc_distill.config import Config

from deocc import config, plugins
from deocc.errors import UsageError


def test_the_best_threshold() -> None:
    same = np.array([True, True, False, False])
    assert best_accuracy(np.array([0.9, 0.8, 0.2, 0.1]), same) == 1.0
    assert best_accuracy(np.array([0.9, 0.2, 0.8, 0.1]), same) == 0.75
    assert best_accuracy(np.array([0.1, 0.2, 0.8, 0.9]), same) == 0.5
    assert best_accuracy(np.array([0.5, 0.5, 0.5, 0.5]), same) == 0.5  # equal scores cannot be told apart


def test_pairs_are_of_both_kinds(faces) -> None:
    pairs, same = pairs_of(faces, 6)
    assert pairs.shape == (6, 2)
    assert (faces.identities[pairs[:, 0]] == faces.identities[pairs[:, 1]]).tolist() == same.tolist()
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert same.sum() == 3
    with pytest.raises(UsageError, match="two people"):
        pairs_of(faces.subset([0, 1]), 6)


def test_a_recognizer_that_sees_the_true_face_is_right(faces) -> None:
    """Completed by an oracle, each of a person's faces being the same picture, every pair is told right."""
    if "mobilefacenet" not in plugins.names():
        pytest.skip("needs mobilefacenet, which is not installed")
    pairs, same = pairs_of(faces, 8)
    recognizer = plugins.load("mobilefacenet", "recognizer")
    true = {i: torch.from_numpy(np.array(faces.images[i])).permute(2, 0, 1).float() / 255 for i in range(8)}
    twins = pairs.copy()
    twins[same, 1] = twins[same, 0]
    order = iter(np.unique(twins[:, 1]).tolist())

    def oracle(occluded: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
        return torch.stack([true[next(order)] for _ in range(len(occluded))])

    scores = score_pairs(recognizer, oracle, faces, twins)
    assert scores[same] == pytest.approx(1, abs=1e-5)
    assert best_accuracy(scores, same) == 1.0
    assert score_pairs(recognizer, None, faces, twins) == pytest.approx(scores, abs=1e-5)


def test_each_loss_adds_to_the_one_before() -> None:
    found = [config.replace(Config(), changes).distillation for changes in ablation.LOSSES.values()]
    assert [one.pair for one in found] == [0, 1, 1, 1, 1]
    assert [one.triplet for one in found] == [0, 0, 2, 2, 2]
    assert [one.instance for one in found] == ["none", "none", "none", "hard", "soft"]


@pytest.mark.parametrize("which", ["losses", "completion"])
def test_the_ablation_writes_its_table(faces, centroids, tmp_path, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {name: change for name, change in ablation.COMPLETIONS.items() if name != "opencv-telea"}
    monkeypatch.setattr(ablation, "COMPLETIONS", columns)
    folder = str(faces.paths[0])
    arguments = ["--data", folder, "--eval-data", folder, "--centroids", str(centroids), "-o", str(tmp_path)]
    ablation.main([which, *arguments, "--recipe", "smoke"])
    report = json.loads((tmp_path / f"{which}.json").read_text())
    table = (tmp_path / f"{which}.md").read_text()
    if which == "losses":
        assert list(report["losses"]) == list(ablation.LOSSES)
        assert all(len(one["evaluation"]) == 1 and one["train"] for one in report["losses"].values())
    else:
        assert set(report["accuracy"]) == {"the teacher", "OUR-Hard", "OUR-Soft"}
        assert all(list(row) == list(columns) for row in report["accuracy"].values())
    assert table.count("\n|") >= 4
