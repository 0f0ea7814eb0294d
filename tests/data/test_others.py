from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deocc.data import AR, FFHQ, MFR2, RMFRD, CASIAWebFace, VGGFace2
from deocc.errors import InputError, UsageError


def test_ffhq_in_folders_and_flat(tmp_path: Path, make) -> None:
    make(tmp_path / "tree", ["00000/00000.png", "59000/59999.png", "60000/60000.png", "LICENSE/logo.png"])
    make(tmp_path / "flat", ["00000.png", "69999.png"])
    assert FFHQ(tmp_path / "tree").names == ("00000/00000.png", "59000/59999.png", "60000/60000.png")
    assert FFHQ(tmp_path / "tree", "train").names == ("00000/00000.png", "59000/59999.png")
    assert FFHQ(tmp_path / "flat", "validation").names == ("69999.png",)
    assert FFHQ(tmp_path / "flat").identities == ()
    with pytest.raises(UsageError, match="train, validation"):
        FFHQ(tmp_path / "flat", "test")
    make(tmp_path / "other", ["a.png"])
    with pytest.raises(InputError, match="holds no image of FFHQ; download"):
        FFHQ(tmp_path / "other")


@pytest.mark.parametrize("inside", ["", "self-built-masked-face-recognition-dataset"])
def test_rmfrd(tmp_path: Path, make, inside: str) -> None:
    make(tmp_path / inside / "AFDB_masked_face_dataset", ["aidai/0_0_aidai_0014.jpg", "baibing/0_0_1.jpg"])
    make(tmp_path / inside / "AFDB_face_dataset", ["aidai/0_0_0.jpg"])
    source = RMFRD(tmp_path)
    assert source.identities == ("aidai", "baibing")
    assert [sample.attributes["masked"] for sample in source] == [False, True, True]
    assert len(RMFRD(tmp_path, "masked")) == 2
    assert RMFRD(tmp_path, "unmasked")[0].name == "AFDB_face_dataset/aidai/0_0_0.jpg"
    (tmp_path / inside / "AFDB_face_dataset").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="AFDB_face_dataset is missing; download"):
        RMFRD(tmp_path)


def test_mfr2(tmp_path: Path, make) -> None:
    make(tmp_path, ["AdrianDunbar/AdrianDunbar_0001.png", "AdrianDunbar/AdrianDunbar_0002.png", "Bono/Bono_0001.png"])
    labels = tmp_path / "mfr2_labels.txt"
    with pytest.raises(InputError, match=r"mfr2_labels\.txt is missing; download mfr2\.zip"):
        MFR2(tmp_path)
    labels.write_text("AdrianDunbar, 1, no-mask\nAdrianDunbar, 2, surgical_blue\n")
    (tmp_path / "pairs.txt").write_text("AdrianDunbar 1 2\nAdrianDunbar 2 Bono 1\n")
    source = MFR2(tmp_path)
    assert [dict(sample.attributes) for sample in source] == [
        {"masked": False, "mask": None},
        {"masked": True, "mask": "surgical_blue"},
        {},
    ]
    pairs = source.pairs()
    assert [pair.same for pair in pairs] == [True, False]
    assert {name for pair in pairs for name in pair[:2]} <= set(source.names)
    labels.write_text("AdrianDunbar 1 no-mask\n")
    with pytest.raises(InputError, match="line 1 must be 'name, number, mask'"):
        MFR2(tmp_path)


def test_casia(tmp_path: Path, make) -> None:
    source = CASIAWebFace(make(tmp_path, ["0000045/001.jpg", "0000099/001.jpg"]))
    assert source.identities == ("0000045", "0000099")
    assert source.title == "CASIA-WebFace"
    with pytest.raises(InputError, match="get CASIA-WebFace from its authors"):
        CASIAWebFace(tmp_path / "no")


def test_vggface2(tmp_path: Path, make) -> None:
    make(tmp_path, ["train/n000002/0001_01.jpg", "train/n000002/0002_01.jpg", "test/n000001/0001_01.jpg"])
    points = tmp_path / "bb_landmark" / "loose_landmark_train.csv"
    points.parent.mkdir()
    header = "NAME_ID,P1X,P1Y,P2X,P2Y,P3X,P3Y,P4X,P4Y,P5X,P5Y\n"
    points.write_text(f'{header}"n000002/0001_01",1.5,2,3,4,5,6,7,8,9,10\n"n000002/0003_01",1,2,3,4,5,6,7,8,9,10\n')
    train = VGGFace2(tmp_path, "train")
    assert train.names == ("train/n000002/0001_01.jpg", "train/n000002/0002_01.jpg")
    assert train.identities == ("n000002",)
    np.testing.assert_array_equal(train[0].landmarks, np.array([[1.5, 2], [3, 4], [5, 6], [7, 8], [9, 10]]))
    assert train[1].landmarks is None
    assert VGGFace2(tmp_path).identities == ("n000001", "n000002")
    points.write_text(header + '"n000002/0001_01",1.5,2\n')
    with pytest.raises(InputError, match="a name and ten numbers"):
        VGGFace2(tmp_path)
    with pytest.raises(UsageError, match="train, test"):
        VGGFace2(tmp_path, "val")
    with pytest.raises(InputError, match=r"is missing; get vggface2_train\.tar\.gz"):
        VGGFace2(tmp_path / "no")


def test_ar_names_say_everything(tmp_path: Path, make) -> None:
    names = [f"m-001-{number:02d}.png" for number in range(1, 27)]
    source = AR(make(tmp_path, [*names, "W-060-11.bmp", "m-001-27.png", "readme.png"]))
    assert len(source) == 27
    assert source.identities == ("m-001", "w-060")
    by_name = {sample.name: sample.attributes for sample in source}
    hidden = [by_name[name]["occlusion"] for name in names]
    session = [None] * 7 + ["sunglasses"] * 3 + ["scarf"] * 3
    assert hidden == session * 2
    assert [by_name[name]["session"] for name in names] == [1] * 13 + [2] * 13
    assert [by_name[name]["expression"] for name in names[:5]] == ["neutral", "smile", "anger", "scream", "neutral"]
    assert [by_name[name]["light"] for name in names[4:13]] == [
        "left",
        "right",
        "both",
        *["ambient", "left", "right"] * 2,
    ]
    assert by_name["W-060-11.bmp"]["occlusion"] == "scarf"


def test_ar_without_images(tmp_path: Path, make) -> None:
    make(tmp_path, ["holiday.png"])
    with pytest.raises(InputError, match="no image with a name such as m-001-01; ask for the AR face database"):
        AR(tmp_path)
