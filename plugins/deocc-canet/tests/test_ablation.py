"""The ablation runs and writes its table."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from deocc_canet import ablation
from deocc_canet.config import Config

from deocc.data import ImageFolder, pack
from deocc.faces import face_model

RECIPE = """
[architecture]
widths = [4, 4]
full_width = 4
blocks = 1
layers = [1, 2]
finder_widths = [4, 4]
[siamese]
dim = 4
queue = 8
training = {steps = 1, batch = 2}
[joint]
losses = {identity = 0.0}
training = {steps = 1, batch = 2}
"""


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    """The packaged portraits, with dense fields."""
    folder = tmp_path_factory.mktemp("faces") / "pack"
    pack(ImageFolder(str(files("deocc") / "portraits")), folder, dense_field=face_model("facemesh"))
    return folder


def test_all_combinations_once_and_the_whole_system_first() -> None:
    found = ablation.variants(Config())
    assert len({tuple(on.values()) for on, _ in found.values()}) == 8
    name, (on, settings) = next(iter(found.items()))
    assert name == "CL+DAF+UV-map"
    assert all(on.values())
    assert settings == Config()
    _, nothing = found["none"]
    assert (nothing.contrastive, nothing.architecture.fusion, nothing.architecture.dense_field) == (False,) * 3


def test_differences_are_paired_and_have_an_interval() -> None:
    whole = np.array([10.0, 20.0, 30.0, np.inf])
    found = ablation.compare(whole + np.array([1.0, 2.0, 3.0, 0.0]), whole)
    assert found["mean"] == pytest.approx(22)
    assert found["difference"] == pytest.approx(2)
    assert found["half_interval"] == pytest.approx(1.96 / np.sqrt(3))  # a deviation of 1 over three faces


def test_it_writes_its_table_and_goes_on_where_it_stopped(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(RECIPE)
    arguments = ["--data", str(faces), "--eval-data", str(faces), "--recipe", str(tmp_path / "tiny.toml")]
    ablation.main([*arguments, "-o", str(tmp_path / "out")])
    report = json.loads((tmp_path / "out" / "ablation.json").read_text())
    table = (tmp_path / "out" / "ablation.md").read_text()
    assert report["faces"] == 4
    assert list(report["variants"]) == list(ablation.variants(Config()))
    assert all(set(row["figures"]) == set(ablation.FIGURES) for row in report["variants"].values())
    assert sum(line.startswith(("| yes", "| -")) for line in table.splitlines()) == 8
    assert table.count("±") == 7 * len(ablation.FIGURES)
    checkpoints = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("checkpoints/*")}
    assert len(checkpoints) == 8 + 4  # a joint stage each, and a contrastive one where there is contrast
    ablation.main([*arguments, "-o", str(tmp_path / "out")])
    assert checkpoints == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("checkpoints/*")}
    assert (tmp_path / "out" / "ablation.md").read_text() == table


def test_what_cannot_be_compared_is_one_sentence(faces: Path, tmp_path: Path, capsys) -> None:
    arguments = ["--data", str(faces), "-o", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        ablation.main([*arguments, "--eval-data", str(faces), "--faces", "1"])
    assert "an interval needs 2 faces or more, got --faces 1" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="nothing-there"):
        ablation.main([*arguments, "--eval-data", str(tmp_path / "nothing-there")])
    assert not (tmp_path / "out").exists()
