from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deocc.data import IdentityFolder, PackedFaces, check, concatenate, pack
from deocc.errors import InputError, UsageError
from deocc.faces import Crop

CROP = Crop(24, 0.75)


@pytest.fixture
def packs(tmp_path: Path, make, write_landmarks) -> tuple[PackedFaces, PackedFaces]:
    made = []
    for name, people in (("first", "ab"), ("second", "bcd")):
        names = [f"{person}/{number}.png" for person in people for number in range(2)]
        root = make(tmp_path / f"{name}-source", names)
        write_landmarks(root, names)
        pack(IdentityFolder(root), tmp_path / name, crop=CROP)
        made.append(PackedFaces(tmp_path / name))
    return made[0], made[1]


def test_items(packs) -> None:
    faces = packs[0]
    assert len(faces) == 4
    assert isinstance(faces.images, np.memmap)
    assert not faces.images.flags.writeable
    face = faces[-1]
    assert (face.identity, face.name) == (1, "b/1.png")
    np.testing.assert_array_equal(face.image, faces.images[3])
    assert len(list(faces)) == 4
    assert faces.identities.dtype == np.int64
    assert faces.landmarks.dtype == np.float32
    with pytest.raises(IndexError):
        faces[4]


def test_subset_keeps_numbers_of_identities(packs) -> None:
    faces = packs[1]
    part = faces.subset([5, -6, 2])
    assert part.names == ("d/1.png", "b/0.png", "c/0.png")
    assert part.identities.tolist() == [2, 0, 1]
    assert part.identity_names == faces.identity_names
    np.testing.assert_array_equal(part.images[1], faces.images[0])
    np.testing.assert_array_equal(part.landmarks, faces.landmarks[[5, 0, 2]])
    np.testing.assert_array_equal(np.asarray(part.subset([2, 0]).images), faces.images[[2, 5]])
    assert faces.subset(faces.identities == 1).names == ("c/0.png", "c/1.png")
    assert len(faces.subset([])) == 0
    with pytest.raises(UsageError, match="positions must be below 6, got 0 to 6"):
        faces.subset([0, 6])
    with pytest.raises(UsageError, match=r"must be whole numbers \(n,\), got float64 \(1,\)"):
        faces.subset([0.5])
    with pytest.raises(UsageError, match="a mask for 6 faces"):
        faces.subset(np.array([True]))


def test_concatenate_tells_identities_apart(packs) -> None:
    first, second = packs
    both = concatenate([first, second.subset([3, 0])])
    assert len(both) == 6
    assert both.names[4:] == ("c/1.png", "b/0.png")
    assert both.identity_names == ("first/a", "first/b", "second/b", "second/c", "second/d")
    assert both.identities.tolist() == [0, 0, 1, 1, 3, 2]
    assert both.images.shape == (6, 24, 24, 3)
    np.testing.assert_array_equal(both.images[1:5], np.stack([first.images[i] for i in (1, 2, 3)] + [second.images[3]]))
    np.testing.assert_array_equal(both[5].image, second.images[0])
    assert both.paths == (*first.paths, *second.paths)
    assert both.digests == (*first.digests, *second.digests)
    assert both.check() == []
    # Parts of one folder share their identities, even joined twice.
    again = concatenate([both, first.subset([0])])
    assert again.identities.tolist() == [0, 0, 1, 1, 3, 2, 0]
    np.testing.assert_array_equal(again[6].image, first.images[0])
    assert concatenate([first]) is first
    with pytest.raises(UsageError, match="at least one pack"):
        concatenate([])


def test_concatenate_wants_one_crop(packs, tmp_path: Path) -> None:
    pack(IdentityFolder(tmp_path / "first-source"), tmp_path / "other", crop=Crop(16, 0.75))
    with pytest.raises(UsageError, match="only packs of one crop can be joined"):
        concatenate([packs[0], PackedFaces(tmp_path / "other")])


def test_pickle_carries_the_path_and_not_the_pixels(packs, tmp_path: Path) -> None:
    for faces in (packs[0], packs[1].subset([1, 0]), concatenate(list(packs))):
        data = pickle.dumps(faces)
        assert len(data) < 24 * 24 * 3 + 4000
        other = pickle.loads(data)
        np.testing.assert_array_equal(np.asarray(other.images), np.asarray(faces.images))
        assert other.names == faces.names
    code = "import pickle, sys; print(int(pickle.load(sys.stdin.buffer).images[0].sum()))"
    out = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert int(out.stdout) == packs[0].images[0].sum()


def test_check_finds_every_kind_of_damage(packs, tmp_path: Path) -> None:
    folder = tmp_path / "first"
    assert check(folder) == []
    data = (folder / "images.npy").read_bytes()

    (folder / "images.npy").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (problem,) = check(folder)
    assert "images.npy was changed after it was packed" in problem
    assert packs[0].check() == [problem]

    (folder / "images.npy").write_bytes(data[:-1])
    (problem,) = check(folder)
    assert "images.npy cannot be read" in problem
    with pytest.raises(InputError, match=r"images\.npy cannot be read"):
        PackedFaces(folder)

    (folder / "images.npy").unlink()
    assert "images.npy cannot be read" in check(folder)[0]
    (folder / "images.npy").write_bytes(data)
    np.save(folder / "landmarks.npy", np.zeros((3, 5, 2), np.float32))
    assert "landmarks.npy does not fit its index: wanted float32 (4, 5, 2), got float32 (3, 5, 2)" in check(folder)[0]


@pytest.fixture
def fielded(packs, flat, tmp_path: Path) -> tuple[PackedFaces, PackedFaces]:
    """The two packs with fields."""
    made = []
    for name in ("first", "second"):
        pack(IdentityFolder(tmp_path / f"{name}-source"), tmp_path / f"{name}-fields", crop=CROP, dense_field=flat)
        made.append(PackedFaces(tmp_path / f"{name}-fields"))
    return made[0], made[1]


def test_packs_without_fields_say_so(packs) -> None:
    for faces in (packs[0], packs[0].subset([1]), concatenate(list(packs)), pickle.loads(pickle.dumps(packs[0]))):
        assert faces.fields is None
        assert faces.field_model is None
        assert faces[0].field is None


def test_fields_go_where_the_images_go(fielded) -> None:
    first, second = fielded
    assert isinstance(first.fields, np.memmap)
    assert np.asarray(first.fields).any()
    part = second.subset([5, 0])
    np.testing.assert_array_equal(np.asarray(part.fields), second.fields[[5, 0]])
    both = concatenate([first, part])
    np.testing.assert_array_equal(np.asarray(both.fields), np.concatenate([first.fields, part.fields[:]]))
    np.testing.assert_array_equal(both[5].field, second.fields[0])
    again = concatenate([both, first.subset([2])])
    np.testing.assert_array_equal(again[6].field, first.fields[2])
    for faces in (first, part, both, again):
        data = pickle.dumps(faces)
        assert len(data) < 24 * 24 * 3 + 4000
        other = pickle.loads(data)
        np.testing.assert_array_equal(np.asarray(other.fields), np.asarray(faces.fields))
        assert other.field_model == "flat"


def test_joined_packs_have_fields_if_all_have(packs, fielded) -> None:
    for mixed in ([packs[0], fielded[1]], [fielded[0], packs[1]], [concatenate([packs[0], fielded[1]]), fielded[0]]):
        both = concatenate(mixed)
        assert both.fields is None
        assert both.field_model is None
        assert both[0].field is None
        assert both.images[0].any()
    other = fielded[1].subset([0])
    other.field_model = "another"
    with pytest.raises(UsageError, match="only fields of one face model can be joined, got another and flat"):
        concatenate([fielded[0], other])


def test_check_reads_the_fields_too(fielded, tmp_path: Path) -> None:
    folder = tmp_path / "first-fields"
    assert check(folder) == []
    data = (folder / "fields.npy").read_bytes()
    (folder / "fields.npy").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (problem,) = check(folder)
    assert "fields.npy was changed after it was packed" in problem
    (folder / "fields.npy").unlink()
    with pytest.raises(InputError, match=r"fields\.npy cannot be read"):
        PackedFaces(folder)
    (folder / "fields.npy").write_bytes(data)
    index = json.loads((folder / "index.json").read_text())
    for change in ({"dense_field": None}, {"sha256": {**index["sha256"], "fields.npy": None}, "dense_field": 1}):
        (folder / "index.json").write_text(json.dumps(index | change))
        assert "do not fit together" in check(folder)[0]
    index.pop("dense_field")
    (folder / "index.json").write_text(json.dumps(index))
    assert "do not fit together" in check(folder)[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "is not an index of packed faces"),
        ('{"format": "deocc packed faces", "version": 99}', "has version 99, this deocc reads 1"),
        ('{"format": "deocc packed faces", "version": 1}', "is damaged (KeyError: 'names')"),
        (
            '{"format": "deocc packed faces", "version": 1, "names": [], "crop": {"size": 0, "zoom": 1}}',
            "is damaged (UsageError: a crop's size must be",
        ),
    ],
)
def test_broken_index(packs, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "first" / "index.json").write_text(text)
    assert message in check(tmp_path / "first")[0]


def test_index_that_does_not_fit_together(packs, tmp_path: Path) -> None:
    path = tmp_path / "first" / "index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({**index, "identities": [0, 0, 9, 1]}))
    with pytest.raises(InputError, match="do not fit together"):
        PackedFaces(tmp_path / "first")


def test_folders_that_are_no_packs(tmp_path: Path) -> None:
    assert "is missing; make it with 'deocc data pack'" in check(tmp_path / "no")[0]
    assert "holds no packed faces: index.json is missing" in check(tmp_path)[0]
