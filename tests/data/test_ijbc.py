"""IJB-C in the layout that face recognition projects share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deocc.data import IJBC
from deocc.errors import InputError


@pytest.fixture
def root(make: Any, tmp_path: Path) -> Path:
    make(tmp_path / "loose_crop", ["1.jpg", "2.jpg", "3.jpg"])
    meta = tmp_path / "meta"
    meta.mkdir()
    (meta / "ijbc_face_tid_mid.txt").write_text("1.jpg 10 5\n2.jpg 10 5\n3.jpg 11 6\n4.jpg 12 7\n")
    (meta / "ijbc_template_pair_label.txt").write_text("10 11 1\n10 12 0\n")
    lines = [f"{number}.jpg " + " ".join(str(number * 10.0 + place) for place in range(11)) for number in (1, 2)]
    (meta / "ijbc_name_5pts_score.txt").write_text("\n".join(lines))
    return tmp_path


def test_templates_and_pairs(root: Path) -> None:
    source = IJBC(root)
    assert source.names == ("1.jpg", "2.jpg", "3.jpg")
    assert source.templates() == {"10": (("1.jpg", "5"), ("2.jpg", "5")), "11": (("3.jpg", "6"),), "12": ()}
    assert source.template_pairs() == [("10", "11", True), ("10", "12", False)]
    landmarks = source[0].landmarks
    assert landmarks is not None
    assert landmarks.tolist()[0] == [10, 11]
    assert source[2].landmarks is None
    assert source[0].read().shape == (60, 50, 3)


@pytest.mark.parametrize("name", ["ijbc_face_tid_mid.txt", "ijbc_template_pair_label.txt", "ijbc_name_5pts_score.txt"])
def test_what_is_missing_or_broken(root: Path, name: str) -> None:
    path = root / "meta" / name
    path.write_text("1.jpg x\n")
    with pytest.raises(InputError, match="cannot be used"):
        _ = (IJBC(root).templates(), IJBC(root).template_pairs())
    path.unlink()
    with pytest.raises(InputError, match="NIST no longer distributes"):
        _ = (IJBC(root).templates(), IJBC(root).template_pairs())
