"""Two reports compared: like with like, pair by pair where the pairs are known."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deocc import judge
from deocc.cli import main
from deocc.data import PackedFaces
from deocc.errors import InputError, UsageError
from deocc.judge.diff import Diff, Difference, diff, diff_folders, print_diff, read_scores
from deocc.judge.result import Distribution, Figure, Part, Quality, QualityRow, Report, read, write


@pytest.fixture
def made(packed: PackedFaces, oracle: Any, nothing: Any, pixels: Any, tmp_path: Path) -> dict[str, Report]:
    """The folders "helps", "same" (the same again) and "idle", each with one restorer."""
    options = {"recognizers": [pixels], "kinds": ("surgical", "cloth", "n95"), "resamples": 200}
    return {
        name: judge.judge(
            packed, restorers=[restorer], tasks=("verification", "retrieval"), out=tmp_path / name, **options
        )
        for name, restorer in (("helps", oracle), ("same", oracle), ("idle", nothing))
    }


def of(found: Diff, state: str, metric: str, kind: str = "all", task: str = "verification") -> Difference:
    (row,) = [row for row in found.rows if (row.task, row.state, row.metric, row.kind) == (task, state, metric, kind)]
    return row


def test_a_report_and_itself(made: dict[str, Report], tmp_path: Path) -> None:
    found = diff_folders(tmp_path / "helps", tmp_path / "same" / "report.json")
    assert found.unlike == found.notes == ()
    assert found.rows
    for row in found.rows:
        assert row.difference.value == 0
        assert row.better is None
        assert row.p in (None, 1.0)
        assert row.won in (None, 0)
    assert {row.restorer for row in found.rows} == {"Oracle"}, "what no restorer took part in is equal, and left out"


def test_which_restorer_is_better(made: dict[str, Report], tmp_path: Path) -> None:
    found = diff_folders(tmp_path / "idle", tmp_path / "helps")
    auc = of(found, "UT", "auc")
    assert auc.restorer == "Nothing -> Oracle"
    assert auc.difference.value == pytest.approx(auc.b.value - auc.a.value)
    assert auc.better
    assert auc.p < 0.05
    tpr = of(found, "UT", "tpr@0.01")
    assert tpr.won > 10 > tpr.lost
    assert of(found, "UT", "eer").better, "a lower error is better"
    assert of(found, "U", "rank1", task="retrieval").p is None
    kinds = {row.kind for row in found.rows if row.p is not None}
    assert {"surgical", "cloth", "n95"} <= kinds
    back = diff_folders(tmp_path / "helps", tmp_path / "idle")
    assert of(back, "UT", "auc").difference.value == pytest.approx(-auc.difference.value)
    assert of(back, "UT", "tpr@0.01").lost == tpr.won


def test_pair_by_pair_is_sharper(made: dict[str, Report], tmp_path: Path) -> None:
    paired = diff_folders(tmp_path / "idle", tmp_path / "helps")
    reports = [dataclasses.replace(made[name]) for name in ("idle", "helps")]
    alone = diff(*reports)
    one, other = of(paired, "UT", "auc").difference, of(alone, "UT", "auc").difference
    assert of(alone, "UT", "auc").p is None
    assert one.value == pytest.approx(other.value)
    assert one.high - one.low < other.high - other.low


def test_scores_are_those_of_the_report(made: dict[str, Report], tmp_path: Path) -> None:
    scores = read_scores(tmp_path / "helps", made["helps"])
    verification = made["helps"].verification
    assert verification is not None
    assert scores["same"].sum() == verification.genuine
    assert {f"Pixels|{key}|{state}" for key, state in (("", "TT"), ("", "MT"), ("Oracle", "UT"))} <= set(scores)
    change = verification.gains[0]
    (place,) = np.flatnonzero((scores["probe"] == change.probe) & (scores["gallery"] == change.gallery))
    assert scores["Pixels|Oracle|UT"][place] == pytest.approx(change.after, abs=1e-6)
    (tmp_path / "helps" / "scores.npz").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"scores\.npz cannot be read as scores of pairs"):
        diff_folders(tmp_path / "helps", tmp_path / "idle")
    (tmp_path / "helps" / "scores.npz").unlink()
    with pytest.raises(InputError, match=r"scores\.npz cannot be read as scores of pairs"):
        diff_folders(tmp_path / "helps", tmp_path / "idle")


def test_a_file_of_scores_that_was_cut_off(made: dict[str, Report], tmp_path: Path) -> None:
    path = tmp_path / "helps" / "scores.npz"
    whole = path.read_bytes()
    for length in (0, 40, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"scores\.npz cannot be read as scores of pairs"):
            read_scores(path.parent, made["helps"])


def measured(restorer: str, *rows: tuple[str, int, float]) -> Report:
    """A report on quality: rows of a restorer (or none), the size of its crop, and the PSNR there."""
    crops = [QualityRow(key, size=size, zoom=0.75, psnr=Figure(psnr)) for key, size, psnr in rows]
    sets = [Distribution(key, "net", size=size, zoom=0.75, frechet=psnr) for key, size, psnr in rows]
    parts = (Part(restorer),)
    return Report(restorers=parts, quality=Quality(rows=tuple(crops), distributions=tuple(sets)))


def test_figures_of_different_crops_are_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    one = measured("a", ("", 128, 20.0), ("", 256, 30.0), ("a", 128, 25.0))
    other = measured("a", ("", 128, 21.0), ("", 256, 32.0), ("a", 128, 25.5))
    found = diff(one, other)
    rows = {(row.task, row.restorer, row.crop): row.difference.value for row in found.rows}
    assert rows == {
        (task, key, f"{size} px, 0.75"): change
        for task in ("quality", "distribution")
        for key, size, change in (("", 128, 1.0), ("", 256, 2.0), ("a", 128, 0.5))
    }
    print_diff(found)
    assert "256 px, 0.75" in capsys.readouterr().out
    with pytest.raises(UsageError, match="no figure in common"):
        diff(measured("a", ("a", 128, 25.0)), measured("b", ("b", 256, 25.5)))


@pytest.mark.parametrize(
    ("part", "change", "sentence"),
    [
        ("data", {"digest": "0" * 16}, "the images (their digest) differ: "),
        ("data", {"limit": 7}, "the limit differ: none and 7"),
        ("masks", {"seed": 5}, "the seed of the masks differ: 0 and 5"),
        ("masks", {"fingerprint": "abc"}, "the masks (their fingerprint) differ: "),
        ("verification", {"genuine": 1}, "the pairs differ: "),
        ("retrieval", {"gallery": 1}, "the probes and the gallery differ: "),
    ],
)
def test_other_faces_or_masks_are_refused(
    made: dict[str, Report], part: str, change: dict[str, Any], sentence: str
) -> None:
    other = dataclasses.replace(made["idle"], **{part: dataclasses.replace(getattr(made["idle"], part), **change)})
    with pytest.raises(UsageError) as error:
        diff(made["helps"], other)
    assert sentence in str(error.value)
    assert "--anyway" in str(error.value)
    found = diff(made["helps"], other, anyway=True)
    assert any(sentence in reason for reason in found.unlike)
    assert all(row.p is None for row in found.rows)


def test_another_matcher_of_the_same_name_is_refused(made: dict[str, Report]) -> None:
    (matcher,) = made["idle"].recognizers
    other = dataclasses.replace(made["idle"], recognizers=(dataclasses.replace(matcher, sha256="f" * 64),))
    with pytest.raises(UsageError, match="the matcher Pixels differ: "):
        diff(made["helps"], other)


def test_what_is_told_but_not_refused(made: dict[str, Report]) -> None:
    report = made["helps"]
    (restorer,) = report.restorers
    newer = dataclasses.replace(
        report,
        deocc="9",
        restorers=(dataclasses.replace(restorer, version="2"), dataclasses.replace(restorer, key="x")),
    )
    notes = diff(report, newer).notes
    assert any("and 9" in note for note in notes)
    assert any(note.startswith("the restorers Oracle differ: ") for note in notes)
    assert "only B has the restorers x" in notes


def test_nothing_in_common(made: dict[str, Report]) -> None:
    bare = dataclasses.replace(made["helps"], verification=None)
    other = dataclasses.replace(made["helps"], retrieval=None)
    with pytest.raises(UsageError, match="no figure in common"):
        diff(bare, other)


def test_intervals_of_independent_reports() -> None:
    """Newcombe's example (1998, method 10): 56/70 against 48/80 with their Wilson intervals."""
    from deocc.judge.diff import _independent

    found = _independent(Figure(0.6, 0.4904, 0.7004), Figure(0.8, 0.6918, 0.8771))
    assert (found.low, found.high) == (pytest.approx(0.0524, abs=2e-3), pytest.approx(0.3339, abs=2e-3))


def test_command(made: dict[str, Report], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "diff", str(tmp_path / "idle"), str(tmp_path / "helps")]) == 0
    said = capsys.readouterr().out
    assert "Nothing -> Oracle" in said
    assert "tpr@0.01" in said
    assert "surgical" not in said
    assert "Restored pixels are invented." in said
    assert main(["judge", "diff", str(tmp_path / "idle"), str(tmp_path / "helps"), "--by-kind"]) == 0
    assert "surgical" in capsys.readouterr().out
    report = read(tmp_path / "helps" / "report.json")
    write(
        tmp_path / "helps" / "report.json", dataclasses.replace(report, masks=dataclasses.replace(report.masks, seed=3))
    )
    assert main(["judge", "diff", str(tmp_path / "idle"), str(tmp_path / "helps")]) == 2
    assert "the seed of the masks differ: 0 and 3" in capsys.readouterr().err
    assert main(["judge", "diff", str(tmp_path / "idle"), str(tmp_path / "helps"), "--anyway"]) == 0
    assert "NOT COMPARABLE: the seed" in capsys.readouterr().out
    assert main(["judge", "diff", str(tmp_path / "idle"), str(tmp_path / "none")]) == 1
