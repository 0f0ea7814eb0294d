from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from deocc.data import CelebA
from deocc.errors import InputError, UsageError

NAMES = [f"{number:06d}.jpg" for number in range(1, 7)]
ATTRIBUTES = ["5_o_Clock_Shadow", *(f"Attribute_{number}" for number in range(38)), "Young"]


@pytest.fixture(params=[("Img", "Anno", "Eval"), ("", "", "")], ids=["official folders", "one folder"])
def root(request, tmp_path: Path, make) -> Path:
    images, annotations, evaluation = (tmp_path / name for name in request.param)
    make(images / "img_align_celeba", NAMES)
    make(images / "img_celeba", NAMES)
    annotations.mkdir(exist_ok=True)
    evaluation.mkdir(exist_ok=True)
    (annotations / "identity_CelebA.txt").write_text(
        "".join(f"{name} {2880 + i // 2}\n" for i, name in enumerate(NAMES))
    )
    flags = "".join(f"{name} {' 1' if i % 2 else '-1'}{' -1' * 38}  1 \n" for i, name in enumerate(NAMES))
    (annotations / "list_attr_celeba.txt").write_text(f"{len(NAMES)}\n{' '.join(ATTRIBUTES)} \n{flags}")
    for version, first in (("align_", 69), ("", 165)):
        points = "".join(f"{name} {first} 109  106 113   77 142   73 152  108 154\n" for name in NAMES)
        header = (
            "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y"
        )
        (annotations / f"list_landmarks_{version}celeba.txt").write_text(f"{len(NAMES)}\n{header} \n{points}")
    (evaluation / "list_eval_partition.txt").write_text("".join(f"{name} {i // 2}\n" for i, name in enumerate(NAMES)))
    return tmp_path


def test_all_annotations(root: Path) -> None:
    source = CelebA(root)
    assert source.names == tuple(NAMES)
    sample = source[1]
    assert sample.path.parent.name == "img_align_celeba"
    assert sample.identity == "2880"
    assert source.identities == ("2880", "2881", "2882")
    assert sample.landmarks is not None
    np.testing.assert_array_equal(sample.landmarks, [[69, 109], [106, 113], [77, 142], [73, 152], [108, 154]])
    assert len(sample.attributes) == 40
    assert sample.attributes["5_o_Clock_Shadow"] is True
    assert source[0].attributes["5_o_Clock_Shadow"] is False
    assert sample.attributes["Young"] is True
    assert source.attribute_matrix().shape == (6, 40)
    assert source.attribute_matrix()[:, 0].tolist() == [False, True] * 3
    assert pickle.loads(pickle.dumps(source))[1].attributes == sample.attributes


def test_version_and_splits(root: Path) -> None:
    wild = CelebA(root, version="wild", split="valid")
    assert wild.names == tuple(NAMES[2:4])
    assert wild[0].path.parent.name == "img_celeba"
    assert wild[0].landmarks is not None
    assert wild[0].landmarks[0, 0] == 165
    people = [set(CelebA(root, split=split).identities) for split in ("train", "valid", "test")]
    assert not people[0] & people[1]
    assert not (people[0] | people[1]) & people[2]
    assert wild.where(lambda sample: sample.attributes["5_o_Clock_Shadow"]).attribute_matrix().shape == (1, 40)
    with pytest.raises(UsageError, match="must be one of aligned, wild"):
        CelebA(root, version="hq")
    with pytest.raises(UsageError, match="must be one of train, valid, test"):
        CelebA(root, split="dev")


def test_images_without_annotations(root: Path) -> None:
    for path in root.rglob("*.txt"):
        path.unlink()
    source = CelebA(root, identities=False, attributes=False, landmarks=False)
    assert source[0].identity is None
    assert source[0].landmarks is None
    assert source[0].attributes == {}
    with pytest.raises(UsageError, match="attributes=True"):
        source.attribute_matrix()


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("identity_CelebA.txt", None),
        ("list_attr_celeba.txt", None),
        ("list_landmarks_align_celeba.txt", None),
        ("list_eval_partition.txt", "train"),
    ],
)
def test_missing_and_broken_files_are_named(root: Path, name: str, split: str | None) -> None:
    (path,) = root.rglob(name)
    text = path.read_text()
    for broken, message in (
        (text.replace("000003.jpg", "000099.jpg"), "does not mention the image '000003.jpg'"),
        (text.replace("000003.jpg ", "000003.jpg x"), "cannot be used: wanted lines with a name and"),
    ):
        path.write_text(broken)
        with pytest.raises(InputError, match=message):
            CelebA(root, split=split)
    path.unlink()
    with pytest.raises(InputError, match=f"{name} is missing; download {name} of CelebA"):
        CelebA(root, split=split)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("identity_CelebA.txt", 0),
        ("list_eval_partition.txt", 0),
        ("list_attr_celeba.txt", 0),
        ("list_attr_celeba.txt", 2),
    ],
)
def test_annotations_without_a_line(root: Path, name: str, lines: int, recwarn: pytest.WarningsRecorder) -> None:
    (path,) = root.rglob(name)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:lines]))
    with pytest.raises(
        InputError, match=rf"{name} cannot be used: wanted lines with a name and \d+ whole numbers, got none"
    ):
        CelebA(root, split="train")
    assert not recwarn


def test_header_must_fit(root: Path) -> None:
    (path,) = root.rglob("list_attr_celeba.txt")
    path.write_text(path.read_text().replace("6\n", "7\n", 1))
    with pytest.raises(InputError, match="its first two lines"):
        CelebA(root)


def test_missing_images_say_what_to_download(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"download img_celeba\.7z of CelebA \(https://"):
        CelebA(tmp_path, version="wild")
    with pytest.raises(InputError, match="is missing; make it and put CelebA"):
        CelebA(tmp_path / "no")
