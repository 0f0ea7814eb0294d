"""The schema of report.json."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from deocc.errors import InputError, UsageError
from deocc.judge import read, write
from deocc.judge.result import Change, Figure, Quality, QualityRow, Rate, Report, Verification, VerificationRow

FULL = Report(
    invented="invented",
    verification=Verification(
        rows=(VerificationRow("m", "r", "UT", auc=Figure(0.5, 0.4, 0.6), rates=(Rate(0.01, 3, None),)),),
        gains=(Change("m", "r", "a.jpg", "b.jpg", pictures={"true": "pictures/1.png"}),),
    ),
    quality=Quality(rows=(QualityRow("r", lpips={"net": Figure(0.1)}),)),
)


def test_round_trip(tmp_path: Path) -> None:
    write(tmp_path / "report.json", FULL)
    assert read(tmp_path / "report.json") == FULL
    assert json.loads((tmp_path / "report.json").read_text())["retrieval"] is None


def edited(tmp_path: Path, change: Any) -> Path:
    write(tmp_path / "report.json", FULL)
    values = json.loads((tmp_path / "report.json").read_text())
    change(values)
    (tmp_path / "report.json").write_text(json.dumps(values))
    return tmp_path / "report.json"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda v: v.update(format="other"), "is not a report of deocc judge"),
        (lambda v: v.update(version=99), "has version 99"),
        (lambda v: v.update(extra=1), "unknown key 'extra'"),
        (lambda v: v.pop("masks"), "'masks' is missing"),
        (lambda v: v["verification"]["rows"][0].pop("auc"), r"'verification.rows\[0\].auc' is missing"),
        (
            lambda v: v["verification"]["rows"][0].update(pairs="many"),
            r"'verification.rows\[0\].pairs' must be an integer",
        ),
        (lambda v: v["verification"]["rows"][0].update(state="XX"), "must be 'TT' or"),
        (lambda v: v["quality"]["rows"][0]["lpips"]["net"].update(value=math.inf), "must be finite or null, got inf"),
    ],
)
def test_what_is_not_a_report_is_refused(tmp_path: Path, change: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read(edited(tmp_path, change))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InputError, match="as JSON"):
        read(tmp_path / "bad.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(InputError, match="is not a report"):
        read(tmp_path / "list.json")


def test_writing_checks_too(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"verification\.rows\.0\.eer\.value must be finite"):
        write(
            tmp_path / "report.json",
            Report(verification=Verification(rows=(VerificationRow(eer=Figure(math.nan)),))),
        )
    with pytest.raises(UsageError, match="'deocc' must be text"):
        write(tmp_path / "report.json", dataclasses.replace(FULL, deocc=1))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
