"""The demo, with methods made for the test: what it writes and prints."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from deocc import demo as module
from deocc.cli import main
from deocc.images import read_image, write_image

PORTRAITS = Path(__file__).resolve().parents[1] / "deocc" / "portraits"

PARTS = """
    from dataclasses import dataclass

    import torch

    from deocc.method import Recognizer, Restored, Restorer


    @dataclass(frozen=True)
    class Config:
        size: int = 64


    class Find(Restorer):
        finds_occlusion = True

        def restore(self, image, occlusion):
            occlusion = torch.zeros_like(image[:, :1])
            occlusion[:, :, 64:] = 1
            return Restored(torch.full_like(image, 0.5), occlusion)


    class Told(Restorer):
        def restore(self, image, occlusion):
            return Restored(torch.full_like(image, 0.5), occlusion)


    class Pixels(Recognizer):
        def embed(self, image):
            return image.flatten(1) - 0.5
"""


@pytest.fixture(autouse=True)
def methods(install, monkeypatch):
    pytest.importorskip("torchmetrics")
    install("finder", extra='restorer="{module}_parts:Find",', parts=PARTS)
    install("told", extra='restorer="{module}_parts:Told",', parts=PARTS)
    install("pixels", extra='recognizer="{module}_parts:Pixels",', parts=PARTS)
    monkeypatch.setattr(module, "RECOGNIZER", "pixels")


def test_demo(tmp_path, capsys):
    photo = tmp_path / "mine.png"
    write_image(photo, np.ascontiguousarray(read_image(PORTRAITS / "eileen-collins.jpg")[:, ::-1]))
    out = tmp_path / "demo"
    out.mkdir()
    for name in ("contact_sheet.png", "report.html"):
        (out / name).write_text("of an earlier demo")
    assert main(["demo", "-o", str(out), "--method", "finder", "--photo", str(photo)]) == 0
    said = capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["contact_sheet.png", "report.html"]

    table = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line}
    names = [path.stem for path in sorted(PORTRAITS.glob("*.jpg"))]
    for name in (*names, "mine"):
        kind, psnr, ssim, iou, occluded, restored = table[name]
        assert kind in module.KINDS
        assert 3 < float(psnr) < 40
        assert -1 <= float(ssim) <= 1
        assert 0.2 < float(iou) < 1, "the lower half of a face is about where a mask is"
        assert -1 <= float(occluded) < 1
        assert -1 <= float(restored) < 1
    means = [np.mean([float(table[name][column]) for name in (*names, "mine")]) for column in range(1, 6)]
    assert [float(value) for value in table["mean"]] == pytest.approx(means, abs=0.06)
    assert "Restored pixels are invented." in said

    page = (out / "report.html").read_text()
    assert page.count("<img") == 4 * (len(names) + 1)
    assert "Restored pixels are invented." in page
    assert table["mine"][1] in re.sub("<[^>]+>", " ", page), "the report has the same figures"
    sheet = read_image(out / "contact_sheet.png")
    assert sheet.shape[0] > 5 * module.SHOWN
    assert sheet.shape[1] > 4 * module.SHOWN


def test_method_that_must_be_told(tmp_path, capsys):
    assert main(["demo", "-o", str(tmp_path / "demo"), "--method", "told"]) == 0
    assert capsys.readouterr().out.count("given") == 5


def test_bad_photos_are_listed(tmp_path, capsys):
    write_image(tmp_path / "wall.png", np.full((100, 100, 3), 90, np.uint8))
    (tmp_path / "text.jpg").write_text("hello")
    photos = [str(tmp_path / name) for name in ("wall.png", "text.jpg", "missing.jpg")]
    assert main(["demo", "-o", str(tmp_path / "demo"), "--method", "finder", "--photo", *photos]) == 1
    said = capsys.readouterr()
    for words in ("wall.png: no face was found", "text.jpg is not an image", "missing.jpg"):
        assert words in said.err
    assert (tmp_path / "demo" / "report.html").exists()
