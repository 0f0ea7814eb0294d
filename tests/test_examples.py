"""The scripts of examples/ run and do what they say; four of them import nothing of deocc but its operators."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.resources import as_file, files
from pathlib import Path

import pytest

from deocc.data import ImageFolder, pack
from deocc.faces import Crop
from deocc.images import read_image
from deocc.plugins import names

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def numbers(pattern: str, text: str) -> list[float]:
    return [float(found) for found in re.findall(pattern, text)]


def test_nothing_of_deocc_but_its_operators() -> None:
    scripts = set(EXAMPLES.glob("*.py")) - {EXAMPLES / "contact_sheet.py"}
    assert len(scripts) == 4
    for script in scripts:
        lines = [line for line in script.read_text().splitlines() if re.match(r"(from|import) deocc", line)]
        assert len(lines) == 1
        assert lines[0].startswith("from deocc.ops import ")


@pytest.mark.slow
def test_contextual_attention_helps_an_inpainting_unet() -> None:
    without, with_attention = numbers(r"error (\S+)", run("inpainting_unet.py", "--steps", "80"))
    assert with_attention < without


@pytest.mark.slow
def test_moco_learns_directions() -> None:
    before, after = numbers(r"(\S+) degrees", run("moco.py", "--steps", "100"))
    assert after < before


def test_the_student_learns_the_teachers_distances() -> None:
    before, after = numbers(r"correlation (\S+)", run("relational_distillation.py", "--steps", "100"))
    assert after > before + 0.1


@pytest.mark.slow
def test_export() -> None:
    printed = run("export.py").splitlines()
    assert printed[0].startswith("exported with deocc.contextual_attention.default, deocc.composite.default")
    assert "We failed to resolve torch.ops.deocc.contextual_attention.default" in printed[1]
    assert printed[2:] == [
        "exported from the reference with 0 operators of deocc",
        "loaded without deocc.ops: works",
    ]


def test_contact_sheet(tmp_path: Path) -> None:
    if "canet" not in names():
        pytest.skip("needs canet, which is not installed")
    with as_file(files("deocc") / "portraits") as portraits:
        pack(ImageFolder(portraits), tmp_path / "pack")
    masked, real = tmp_path / "masked.jpg", tmp_path / "real.jpg"
    run("contact_sheet.py", str(tmp_path / "pack"), "-o", str(masked), "--occlude", "n95", "--across", "2")
    run("contact_sheet.py", str(tmp_path / "pack"), "-o", str(real), "--across", "2", "--first", "3")
    assert read_image(masked).shape[1] > 1.4 * read_image(real).shape[1]


def test_contact_sheet_says_at_the_start_what_does_not_fit(tmp_path: Path) -> None:
    if "canet" not in names():
        pytest.skip("needs canet, which is not installed")
    with as_file(files("deocc") / "portraits") as portraits:
        pack(ImageFolder(portraits), tmp_path / "pack", crop=Crop(64, 0.75), limit=1)
    (tmp_path / "old.png").write_text("mine")
    for sheet, words in (
        ("old.png", "old.png exists already"),
        ("new.png", "canet restores crops of 128 pixels and zoom 0.75, but"),
    ):
        command = [sys.executable, str(EXAMPLES / "contact_sheet.py"), str(tmp_path / "pack"), "-o"]
        done = subprocess.run(
            [*command, str(tmp_path / sheet)], capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 2
        assert words in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.png", "pack"]
