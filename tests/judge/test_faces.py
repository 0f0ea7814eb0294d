"""Faces by name, what is put over them, and how restored pixels reach a matcher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from deocc import jobs
from deocc.data import PackedFaces, concatenate
from deocc.errors import InputError, UsageError
from deocc.faces import Crop, align
from deocc.judge.faces import Face, NoFaceError, Occluding, open_faces, transferred
from deocc.occlude import fingerprint, occlude
from deocc.portraits import __path__ as portraits_path

NAME = "Some_Bodyc/0001.png"


def test_every_way_to_name_data(folder: Path, packed: PackedFaces, tmp_path: Path) -> None:
    for data, kind in (
        (packed, "packed"),
        (packed.paths[0], "packed"),
        (folder, "identities"),
        (f"identities:{folder}", "identities"),
    ):
        faces = open_faces(data)
        assert faces.kind == kind
        assert faces.names == packed.names
        assert faces.identity(NAME) == "Some_Bodyc"
        assert NAME in faces
        assert faces.load(NAME).landmarks.shape == (5, 2)
        assert faces.landmarks() == "stored"
        assert faces.partial is (kind == "packed")
    plain = open_faces(f"folder:{folder}")
    assert plain.identity(NAME) is None
    assert plain.occluded(NAME) is None


def test_splits(tmp_path: Path) -> None:
    for person in ("A_B", "C_D"):
        (tmp_path / person).mkdir()
        (tmp_path / person / f"{person}_0001.jpg").write_bytes(b"")
    (tmp_path / "split.json").write_text('{"train": ["A_B"], "test": ["C_D"]}')
    faces = open_faces(f"lfw:{tmp_path}:test")
    assert (faces.title, faces.split, faces.partial, faces.names) == ("LFW test", "test", True, ("C_D/C_D_0001.jpg",))


@pytest.mark.parametrize(
    ("data", "error", "sentence"),
    [
        ("lfv:somewhere", UsageError, "did you mean 'lfw'"),
        ("mfr2:somewhere:test", UsageError, "has no parts, got the part 'test'"),
        ("no/such/folder", InputError, "is missing"),
        ("lfw:no/such/folder", InputError, "is missing"),
    ],
)
def test_data_that_is_not_there(data: str, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        open_faces(data)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no image"):
        open_faces(tmp_path)


def test_landmarks_are_found_where_none_are_stored(tmp_path: Path) -> None:
    photo = next(Path(next(iter(portraits_path))).glob("*.jpg"))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(photo.read_bytes())
    cv2.imwrite(str(tmp_path / "a" / "2.png"), np.full((64, 64, 3), 90, np.uint8))
    (tmp_path / "a" / "3.jpg").write_bytes(photo.read_bytes()[:-3000])
    faces = open_faces(tmp_path)
    assert faces.load("a/1.jpg").landmarks.shape == (5, 2)
    with pytest.raises(NoFaceError, match=r"a/2\.png: no face was found"):
        faces.load("a/2.png")
    faces.load("a/3.jpg")
    assert faces.landmarks() == "found"
    assert list(faces.notes) == ["a/3.jpg"]
    assert "damaged" in faces.notes["a/3.jpg"]


def test_a_crop_is_cut_but_not_from_itself(packed: PackedFaces, folder: Path) -> None:
    face = open_faces(packed).load(NAME)
    assert face.cut(packed.crop) is face.image
    assert face.cut(Crop(24, 0.9)).shape == (24, 24, 3)
    np.testing.assert_allclose(face.moved(packed.crop), face.landmarks)
    photo = open_faces(folder).load(NAME)
    np.testing.assert_allclose(photo.moved(Crop(24, 0.9)), Crop(24, 0.9).template(), atol=1e-3)
    hidden = np.zeros(photo.image.shape[:2], np.uint8)
    assert not photo.cut_occlusion(hidden, Crop(24, 0.9)).any()
    hidden[:] = 1
    assert (photo.cut_occlusion(hidden, Crop(24, 0.9)) == 1).all()
    hidden[:] = 60  # a shadow
    assert (photo.cut_occlusion(hidden, Crop(24, 0.9)) == 60).all()
    assert (face.cut_occlusion(hidden[:32, :32], packed.crop) == 60).all()


def test_a_joined_pack_is_refused(packed: PackedFaces) -> None:
    two = concatenate([packed, packed])
    assert open_faces(two).kind == "packed", "twice the same is one"
    two.paths = (*packed.paths, packed.paths[0].parent / "other")
    with pytest.raises(UsageError, match="one by one, got 2 that were joined"):
        open_faces(two)


@pytest.mark.parametrize(("size", "crop", "matcher"), [(1024, 128, 112), (700, 256, 112), (1024, 112, 128)])
def test_a_perfect_restorer_leaves_nothing_of_an_occluder_on_a_large_photo(size: int, crop: int, matcher: int) -> None:
    photo = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8), (0, 0), size / 60)
    landmarks = Crop(size, 0.75).template()
    masked, hidden = photo.copy(), np.zeros((size, size), np.uint8)
    hidden[size // 2 : size * 3 // 4, size // 3 : size * 2 // 3] = 255
    cv2.line(hidden, (size // 5, size // 3), (size // 3, size // 2), 255, 6)
    masked[hidden > 0] = 255
    true, face = Face(photo, landmarks), Face(masked, landmarks)
    restorer, other = Crop(crop, 0.75), Crop(matcher, 1.0)
    occlusion = face.cut_occlusion(hidden, restorer)
    changed = np.abs(face.cut(restorer).astype(int) - true.cut(restorer)).max(axis=2)
    # Cubic interpolation reaches a pixel further, with a few levels.
    assert changed[occlusion == 0].max() <= 26
    perfect = np.where(occlusion[..., None] > 0, true.cut(restorer), face.cut(restorer))
    made = transferred(face.cut(other), perfect, occlusion, face.moved(restorer), other)
    assert np.abs(made.astype(int) - true.cut(other)).max() <= 30


def test_masks_follow_the_name_and_the_seed(packed: PackedFaces, folder: Path) -> None:
    one = Occluding(kinds=["n95", "cloth"], seed=3)
    face = open_faces(folder).load(NAME)
    image, occlusion = one.occluded(NAME, face)
    made = occlude(face.image, face.landmarks, one.seed_of(NAME), kinds=["n95", "cloth"])
    assert (image == made.image).all()
    assert (occlusion == made.occlusion).all()
    assert one.kind(NAME) == made.parameters["kind"]
    assert one.result([NAME]).fingerprint == fingerprint(["n95", "cloth"])
    assert one.result([NAME]).counts == {one.kind(NAME): 1}
    assert Occluding(seed=3).seed_of(NAME) != Occluding(seed=4).seed_of(NAME)
    assert Occluding(seed=3).seed_of("other") != Occluding(seed=3).seed_of(NAME)


def test_masks_are_those_of_deocc_occlude(tmp_path: Path) -> None:
    photo = next(Path(next(iter(portraits_path))).glob("*.jpg"))
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a" / "1.jpg").write_bytes(photo.read_bytes())
    jobs.occlude([tmp_path / "in"], tmp_path / "out", kinds=["n95"], seed=5)
    image, _ = Occluding(kinds=["n95"], seed=5).occluded("a/1.jpg", open_faces(tmp_path / "in").load("a/1.jpg"))
    written = cv2.imread(str(next((tmp_path / "out" / "images").rglob("*.png"))))[..., ::-1]
    assert (image == written).all()


def test_only_pixels_that_were_restored_are_brought_over() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    photo = cv2.GaussianBlur(photo, (0, 0), 3)
    landmarks = Crop(200, 0.75).template()
    face = Face(photo, landmarks)
    restorer, matcher = Crop(128, 0.75), Crop(112, 1.0)
    masked = photo.copy()
    masked[100:160, 60:140] = 0
    hidden = (masked == 0).all(axis=2).astype(np.uint8)
    base = Face(masked, landmarks).cut(matcher)
    occlusion = face.cut_occlusion(hidden, restorer)
    perfect = np.where(occlusion[..., None] > 0, face.cut(restorer), Face(masked, landmarks).cut(restorer))
    made = transferred(base, perfect, occlusion, face.moved(restorer), matcher)
    true = face.cut(matcher)
    far = cv2.dilate(face.cut_occlusion(hidden, matcher), np.ones((9, 9), np.uint8)) == 0
    assert far.any()
    assert (made[far] == base[far]).all()
    assert np.abs(made.astype(int) - true).max() <= 20  # one interpolation more, of smooth pixels
    assert np.abs(base.astype(int) - true).max() > 100
    untouched = transferred(base, perfect, np.zeros_like(occlusion), face.moved(restorer), matcher)
    assert (untouched == base).all()
    # The very same crop comes back as it was.
    same = transferred(perfect * 0, perfect, np.ones_like(occlusion), face.moved(restorer), restorer)
    assert (same == perfect).all()
    assert (align(photo, landmarks, matcher) == true).all()


@pytest.mark.parametrize("bad", ["nobody", 3])
def test_no_such_occluder(bad: Any) -> None:
    with pytest.raises(UsageError):
        Occluding(bad)
