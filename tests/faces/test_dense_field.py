"""Dense fields: what the packaged mesh gives for real faces, mirrored ones, turned ones, and none."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from deocc.errors import InputError, UsageError
from deocc.faces import Crop, DenseField, Detector, FaceMesh, align, colour_field, dense_field, face_model
from deocc.images import read_image

PORTRAITS = sorted((Path(__file__).parents[2] / "deocc" / "portraits").glob("*.jpg"))
CROP = Crop(128, 0.75)
SWAPPED = [1, 0, 2, 4, 3]  # the five points of a mirrored face


@pytest.fixture(scope="module")
def faces() -> list[tuple[np.ndarray, np.ndarray]]:
    """Photos with the five points of the face in each."""
    detector = Detector()
    photos = [read_image(path) for path in PORTRAITS]
    return [(photo, detector.detect(photo)[0].landmarks) for photo in photos]


def mirrored(photo: np.ndarray, landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    points = landmarks[SWAPPED].copy()
    points[:, 0] = photo.shape[1] - 1 - points[:, 0]
    return photo[:, ::-1].copy(), points


def at(values: np.ndarray, point: np.ndarray) -> Any:
    x, y = np.rint(point).astype(int)
    return values[..., y, x]


def test_of_real_faces(faces) -> None:
    for photo, landmarks in faces:
        field, covered = dense_field(photo, landmarks, size=CROP)
        assert field.shape == (2, 128, 128)
        assert field.dtype == np.float32
        assert covered.dtype == bool
        assert 0.2 < covered.mean() < 0.5
        assert not field[:, ~covered].any()
        assert field.min() >= 0
        assert field.max() <= 1
        # One piece without a hole.
        assert cv2.connectedComponents(covered.astype(np.uint8))[0] == 2
        assert cv2.connectedComponents((~covered).astype(np.uint8), connectivity=4)[0] == 2
        left_eye, right_eye, nose, left_mouth, right_mouth = (at(field, point) for point in CROP.template())
        assert left_eye[0] < nose[0] < right_eye[0]
        assert left_mouth[0] < nose[0] < right_mouth[0]
        assert abs(nose[0] - 0.5) < 0.1
        assert min(left_eye[1], right_eye[1]) > nose[1] > max(left_mouth[1], right_mouth[1])
        # Along a row, U grows; along a column, V falls. Folds are small and few.
        both = covered[:, 1:] & covered[:, :-1]
        assert (np.diff(field[0], axis=1)[both] > 0).mean() > 0.99
        both = covered[1:] & covered[:-1]
        assert (np.diff(field[1], axis=0)[both] < 0).mean() > 0.97


def test_a_mirrored_photo_has_the_mirrored_field(faces) -> None:
    for photo, landmarks in faces:
        field, covered = dense_field(photo, landmarks)
        other, where = dense_field(*mirrored(photo, landmarks))
        other, where = other[..., ::-1], where[:, ::-1]
        both = covered & where
        assert both.sum() > 0.98 * (covered | where).sum()
        difference = np.abs(np.stack([1 - other[0], other[1]]) - field)[:, both]
        assert difference.mean() < 0.004
        assert np.quantile(difference, 0.99) < 0.02


def test_a_turned_and_shrunk_photo_has_the_field_of_the_same_face(faces) -> None:
    photo, landmarks = faces[0]
    straight = dense_field(photo, landmarks, size=CROP)
    matrix = cv2.getRotationMatrix2D((photo.shape[1] / 2, photo.shape[0] / 2), 25, 0.6)
    turned = cv2.warpAffine(photo, matrix, photo.shape[1::-1], flags=cv2.INTER_AREA)
    points = landmarks @ matrix[:, :2].T + matrix[:, 2]
    field = dense_field(turned, points, size=CROP)
    both = straight.covered & field.covered
    assert both.sum() > 0.95 * (straight.covered | field.covered).sum()
    assert np.abs(straight.field - field.field)[:, both].mean() < 0.02


def test_size_is_that_of_the_whole_image_or_a_crop_of_it(faces) -> None:
    photo, landmarks = faces[0]
    whole = dense_field(photo, landmarks)
    assert whole.covered.shape == photo.shape[:2]
    half = dense_field(photo, landmarks, size=(photo.shape[0] // 2, photo.shape[1] // 2))
    assert half.covered.shape == (photo.shape[0] // 2, photo.shape[1] // 2)
    small = cv2.resize(whole.field.transpose(1, 2, 0), half.covered.shape[::-1], interpolation=cv2.INTER_AREA)
    inside = cv2.erode(half.covered.astype(np.uint8), np.ones((5, 5))) > 0
    np.testing.assert_allclose(small.transpose(2, 0, 1)[:, inside], half.field[:, inside], atol=0.02)
    # The crop shows the same as the photo does; and a crop handed in alone nearly that.
    crop = dense_field(photo, landmarks, size=CROP)
    matrix = CROP.matrix(landmarks)
    for y, x in np.argwhere(cv2.erode(crop.covered.astype(np.uint8), np.ones((5, 5))))[::500]:
        place = np.linalg.solve(matrix[:, :2], np.array([x, y]) - matrix[:, 2])
        np.testing.assert_allclose(at(whole.field, place), crop.field[:, y, x], atol=0.02)
    alone = dense_field(align(photo, landmarks, CROP), landmarks @ matrix[:, :2].T + matrix[:, 2])
    both = alone.covered & crop.covered
    assert both.sum() > 0.93 * (alone.covered | crop.covered).sum()
    assert np.abs(alone.field - crop.field)[:, both].mean() < 0.02


def test_the_same_from_run_to_run_and_from_other_threads(faces) -> None:
    photo, landmarks = faces[1]
    mesh = FaceMesh()
    wanted = dense_field(photo, landmarks, mesh, CROP)
    found: list[DenseField] = []
    threads = [threading.Thread(target=lambda: found.append(dense_field(photo, landmarks, mesh, CROP))) for _ in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found.append(dense_field(photo, landmarks, pickle.loads(pickle.dumps(mesh)), CROP))
    assert len(found) == 4
    for other in found:
        np.testing.assert_array_equal(other.field, wanted.field)


def test_no_face_no_field() -> None:
    for photo in (np.full((128, 128, 3), 127, np.uint8), np.random.default_rng(0).integers(0, 256, (128, 128, 3))):
        field, covered = dense_field(photo.astype(np.uint8), CROP.template())
        assert not field.any()
        assert not covered.any()
        assert FaceMesh().fit(photo.astype(np.uint8), CROP.template()) is None


def test_a_hidden_mouth_changes_little(faces) -> None:
    photo, landmarks = faces[2]
    masked = photo.copy()
    eyes = landmarks[1, 0] - landmarks[0, 0]
    box = [*(landmarks[2] - [0.9 * eyes, 0]).astype(int), int(1.8 * eyes), int(1.3 * eyes)]
    cv2.rectangle(masked, box, (120, 170, 200), -1)
    field, other = dense_field(photo, landmarks, size=CROP), dense_field(masked, landmarks, size=CROP)
    both = field.covered & other.covered
    assert both.sum() > 0.85 * (field.covered | other.covered).sum()
    assert np.abs(field.field - other.field)[:, both].mean() < 0.05


def test_the_canonical_mesh() -> None:
    mesh = FaceMesh()
    assert mesh.vertices.shape == (468, 3)
    assert mesh.triangles.shape == (898, 3)
    assert mesh.coordinates.min() == 0
    assert mesh.coordinates.max() == 1
    middle = np.abs(mesh.vertices[:, 0]) < 1e-6
    assert middle.sum() > 20
    np.testing.assert_allclose(mesh.coordinates[middle, 0], 0.5, atol=1e-6)
    # It is symmetric, and so is U about the middle.
    partner = mesh.coordinates[mesh._partner]
    np.testing.assert_allclose(partner[:, 0], 1 - mesh.coordinates[:, 0], atol=1e-6)
    np.testing.assert_array_equal(partner[:, 1], mesh.coordinates[:, 1])
    assert face_model("facemesh").title == "facemesh"


def test_points_near_those_that_come_with_lfw(shared: Callable[[str], Path]) -> None:
    root = shared("faces/lfw")
    given = np.load(root / "landmarks.npz")
    mesh = FaceMesh()
    left, right = [33, 133, 159, 145], [362, 263, 386, 374]
    errors = []
    for number in np.random.default_rng(0).choice(len(given["names"]), 20, replace=False):
        points = given["lm5"][number]
        found = mesh.fit(read_image(root / str(given["names"][number])), points)
        if found is None:
            continue
        place = np.array([found[left].mean(0), found[right].mean(0), found[1], found[61], found[291]])[:, :2]
        errors.append(np.linalg.norm(place - points, axis=1).mean() / np.linalg.norm(points[1] - points[0]))
    assert len(errors) >= 19
    assert np.mean(errors) < 0.09


def test_colours() -> None:
    blue, yellow = colour_field(np.array([[0.0, 1.0]]))[0].astype(int)
    assert blue[2] > blue[0] + 50 > blue[0]
    assert blue[2] > blue[1]
    assert min(yellow[:2]) > yellow[2] + 100
    field = np.random.default_rng(0).random((2, 5, 7)).astype(np.float32)
    levels = np.rint(field * 255).astype(np.uint8)
    np.testing.assert_array_equal(colour_field(field), colour_field(levels))
    assert colour_field(field).shape == (2, 5, 7, 3)
    assert colour_field(field).dtype == np.uint8
    for bad in (np.array([[2.0]]), np.array([[np.nan]])):
        with pytest.raises(InputError, match=r"finite and within \[0, 1\]"):
            colour_field(bad)
    for bad in ([0.5], np.array([[1]])):
        with pytest.raises(InputError, match=r"float in \[0, 1\] or uint8, got"):
            colour_field(bad)  # type: ignore[arg-type]


def test_bad_arguments(faces) -> None:
    photo, landmarks = faces[0]
    with pytest.raises(InputError, match="must be a uint8 array"):
        dense_field(photo.astype(np.float32), landmarks)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"must be an array \(5, 2\)"):
        dense_field(photo, landmarks[:4])
    with pytest.raises(InputError, match="wholly outside the photo"):
        dense_field(photo, landmarks + 5000)
    for size in (0, 5, (), (0, 5), (5,), (5.0, 5.0), (5, 9000)):
        with pytest.raises(UsageError, match="a field's size must be height and width"):
            dense_field(photo, landmarks, size=size)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a face model is 'facemesh' or the file of a morphable model, got 'bfm'"):
        face_model("bfm")
