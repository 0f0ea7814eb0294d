"""``deocc judge`` as it is typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deocc import judge
from deocc.cli import main
from deocc.plugins import names

BOTH = 'restorer="{module}_parts:Halve", recognizer="{module}_parts:Embed",'


@pytest.fixture
def installed(install: Any) -> None:
    install("half", extra=BOTH)
    install("eye", extra='recognizer="{module}_parts:Embed",')


def command(task: str, folder: Path, out: Path, *more: str) -> list[str]:
    return ["judge", task, "--data", str(folder), "--restorer", "half", "--recognizer", "eye", "-o", str(out), *more]


def test_all(installed: None, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs, out = tmp_path / "pairs.txt", tmp_path / "report"
    lines = [f"Some_Body{a}/0000.png Some_Body{b}/0001.png {int(a == b)}" for a in "abcde" for b in "abcde"]
    pairs.write_text("\n".join(lines))
    options = ("--pairs", str(pairs), "--kinds", "n95,cloth", "--resamples", "20", "--seed", "2", "--limit", "20")
    assert main(command("all", folder, out, *options)) == 0
    text = capsys.readouterr().out
    for words in (
        "Verification of 20 pairs",
        "Retrieval of",
        "Quality of",
        "Did restoring help?",
        "UT - MT",
        "invented",
    ):
        assert words in text
    assert "restorer half, true occlusion given: no weights" in text
    report = judge.read(out / "report.json")
    assert report.masks.seed == 2
    assert report.masks.kinds == ("n95", "cloth")
    assert report.verification is not None
    assert report.verification.source == "pairs.txt"


@pytest.mark.parametrize("task", ["verification", "retrieval", "quality"])
def test_one_task(installed: None, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str) -> None:
    assert main(command(task, folder, tmp_path / "out", "--resamples", "0", "--limit", "12")) == 0
    report = judge.read(tmp_path / "out" / "report.json")
    assert [name for name in judge.TASKS if getattr(report, name) is not None] == [task]
    assert f"report: {tmp_path / 'out' / 'report.json'}" in capsys.readouterr().out


def test_bad_calls_are_one_sentence(
    installed: None, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command("quality", folder, tmp_path / "out", "--weights", "nothing")) == 2
    assert capsys.readouterr().err == "deocc: --weights wants METHOD=FILE, got 'nothing'\n"
    assert main(command("quality", tmp_path / "none", tmp_path / "out")) == 1
    assert "is missing" in capsys.readouterr().err
    assert main(command("verification", folder, tmp_path / "out", "--kinds", "n59")) == 2
    assert "unknown kind of occlusion 'n59'; did you mean 'n95'?" in capsys.readouterr().err


def test_a_method_that_is_restorer_and_recognizer(installed: None, folder: Path, tmp_path: Path) -> None:
    both = command("verification", folder, tmp_path / "out", "--resamples", "0", "--limit", "12")
    both[both.index("eye")] = "eye,half"
    assert main(both) == 0
    found = judge.read(tmp_path / "out" / "report.json").verification
    assert found is not None
    assert {("half", "half"), ("half", ""), ("eye", "half")} <= {(row.recognizer, row.restorer) for row in found.rows}


def test_real_faces(shared: Any) -> None:
    """The methods that come with deocc, where they are installed, on a few pairs of LFW."""
    if not {"opencv-telea", "mobilefacenet"} <= set(names()):
        pytest.skip("needs deocc-opencv and deocc-mobilefacenet to be installed")
    report = judge.verification(
        f"lfw:{shared('faces/lfw')}:test",
        restorers=["opencv-telea"],
        recognizers=["mobilefacenet"],
        kinds=["surgical", "n95", "kn95", "cloth"],
        limit=24,
        resamples=200,
    )
    found = report.verification
    assert found is not None
    assert (report.data.title, report.data.landmarks, found.pairs, found.elsewhere) == ("LFW test", "stored", 24, 4200)
    curves = {curve.state: curve.scores for curve in found.curves}
    true, masked = (
        sum(edge * count for edge, count in zip(curves[state].edges, curves[state].genuine, strict=False))
        for state in ("TT", "MT")
    )
    assert (true - masked) / found.genuine > 0.1  # what the masks cost the scores of genuine pairs
