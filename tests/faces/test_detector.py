"""Finding faces: one, several, none, tiny, huge, cut by the border, and the order of the five points."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deocc.errors import InputError, UsageError
from deocc.faces import Crop, Detector, Face, align
from deocc.images import read_image

PORTRAITS = sorted((Path(__file__).parents[2] / "deocc" / "portraits").glob("*.jpg"))


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector()


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    """A packaged portrait whose face is about a fifth of its height."""
    photo = read_image(PORTRAITS[0])
    return cv2.resize(photo, None, fx=800 / max(photo.shape), fy=800 / max(photo.shape), interpolation=cv2.INTER_AREA)


def centre(face: Face) -> np.ndarray:
    return face.box[:2] + face.box[2:] / 2


@pytest.mark.parametrize("path", PORTRAITS, ids=lambda path: path.stem)
def test_portraits(detector: Detector, path: Path) -> None:
    photo = read_image(path)
    faces = detector.detect(photo)
    assert len(faces) == 1
    face = faces[0]
    assert face.box.shape == (4,)
    assert face.box.dtype == np.float32
    assert face.landmarks.shape == (5, 2)
    assert face.landmarks.dtype == np.float32
    assert 0.85 < face.score <= 1
    left, top, width, height = face.box
    assert (face.landmarks > [left, top]).all()
    assert (face.landmarks < [left + width, top + height]).all()
    left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < nose[0] < right_mouth[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])


@pytest.mark.parametrize("path", PORTRAITS, ids=lambda path: path.stem)
def test_landmarks_lie_on_the_template_after_alignment(detector: Detector, path: Path) -> None:
    """Found again in the crop they made, the points are within a few crop pixels of where they were put."""
    photo = read_image(path)
    crop = Crop(224, 0.75)
    face = align(photo, detector.detect(photo)[0].landmarks, crop)
    again = detector.detect(face)[0].landmarks
    assert np.linalg.norm(again - crop.template(), axis=1).mean() < 0.05 * 224


def test_none(detector: Detector) -> None:
    assert detector.detect(np.zeros((300, 200, 3), np.uint8)) == []
    assert detector.detect(np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8)) == []


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (7, 5), (33, 31), (3, 3000)])
def test_photos_too_small_for_a_face(detector: Detector, shape: tuple[int, int]) -> None:
    assert detector.detect(np.full((*shape, 3), 128, np.uint8)) == []


def test_several_are_sorted_by_size(detector: Detector, portrait: np.ndarray) -> None:
    height, width = portrait.shape[:2]
    scales = (0.4, 1.0, 0.7)
    photo = np.full((height, 3 * width, 3), 90, np.uint8)
    for k, scale in enumerate(scales):
        small = cv2.resize(portrait, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        photo[: small.shape[0], k * width : k * width + small.shape[1]] = small
    faces = detector.detect(photo)
    assert [int(centre(face)[0] // width) for face in faces] == [1, 2, 0]
    areas = [float(face.box[2] * face.box[3]) for face in faces]
    assert areas == sorted(areas, reverse=True)


@pytest.mark.parametrize("factor", [0.1, 0.3, 1, 3, 8])
def test_the_same_face_at_any_size(detector: Detector, portrait: np.ndarray, factor: float) -> None:
    """The points agree, in units of the distance between the eyes; at 0.1 the face is some twenty pixels wide."""
    wanted = detector.detect(portrait)[0].landmarks
    interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    scaled = cv2.resize(portrait, None, fx=factor, fy=factor, interpolation=interpolation)
    faces = detector.detect(scaled)
    assert len(faces) == 1
    found = (faces[0].landmarks + 0.5) / factor - 0.5
    eyes = np.linalg.norm(wanted[1] - wanted[0])
    assert np.linalg.norm(found - wanted, axis=1).mean() / eyes < (0.15 if factor < 0.2 else 0.06)


@pytest.mark.parametrize("size", [24, 64, 300, 1000, 2500])
def test_a_face_that_fills_the_photo(detector: Detector, portrait: np.ndarray, size: int) -> None:
    left, top, width, height = detector.detect(portrait)[0].box.astype(int)
    faces = detector.detect(cv2.resize(portrait[top : top + height, left : left + width], (size * 3 // 4, size)))
    assert len(faces) == 1
    assert faces[0].box[3] > 0.7 * size


@pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
@pytest.mark.parametrize("path", PORTRAITS, ids=lambda path: path.stem)
def test_a_face_cut_by_the_border(detector: Detector, path: Path, side: str) -> None:
    """Two fifths of the face are beyond the border; its points are where they would be in the whole photo."""
    photo = read_image(path)
    whole = detector.detect(photo)[0]
    left, top, width, height = whole.box.astype(int)
    x, y = left + 2 * width // 5, top + 2 * height // 5
    cut, shift = {
        "left": (photo[:, x:], (x, 0)),
        "right": (photo[:, : left + 3 * width // 5], (0, 0)),
        "top": (photo[y:], (0, y)),
        "bottom": (photo[: top + 3 * height // 5], (0, 0)),
    }[side]
    faces = detector.detect(cut)
    assert len(faces) == 1
    eyes = np.linalg.norm(whole.landmarks[1] - whole.landmarks[0])
    assert np.linalg.norm(faces[0].landmarks + shift - whole.landmarks, axis=1).mean() / eyes < 0.45


def test_grey_photos(detector: Detector, portrait: np.ndarray) -> None:
    grey = np.repeat(portrait.mean(-1, keepdims=True).astype(np.uint8), 3, -1)
    assert len(detector.detect(grey)) == 1


def test_a_mirrored_photo_gives_mirrored_points(detector: Detector, portrait: np.ndarray) -> None:
    face = detector.detect(portrait)[0]
    mirrored = detector.detect(np.ascontiguousarray(portrait[:, ::-1]))[0]
    points = mirrored.landmarks[[1, 0, 2, 4, 3]]
    points[:, 0] = portrait.shape[1] - 1 - points[:, 0]
    eyes = np.linalg.norm(face.landmarks[1] - face.landmarks[0])
    assert np.linalg.norm(points - face.landmarks, axis=1).mean() / eyes < 0.02


def test_the_same_photo_gives_the_same_faces(detector: Detector, portrait: np.ndarray) -> None:
    once = detector.detect(portrait)[0]
    detector.detect(portrait[:100])
    again = detector.detect(portrait)[0]
    other = Detector().detect(portrait)[0]
    for face in (again, other):
        np.testing.assert_array_equal(face.landmarks, once.landmarks)
        np.testing.assert_array_equal(face.box, once.box)
        assert face.score == once.score


def test_one_detector_in_several_threads(detector: Detector, portrait: np.ndarray) -> None:
    photos = [portrait, portrait[:, 50:], portrait[20:], cv2.resize(portrait, (300, 400))]
    wanted = [detector.detect(photo) for photo in photos]
    found: list[list[Face]] = [[] for _ in photos]

    def work(k: int) -> None:
        found[k] = detector.detect(photos[k])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(photos))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine, theirs in zip(wanted, found, strict=True):
        np.testing.assert_array_equal([f.landmarks for f in mine], [f.landmarks for f in theirs])


def test_the_score_is_a_limit(portrait: np.ndarray) -> None:
    assert Detector(score=0.99).detect(portrait) == []


@pytest.mark.parametrize("arguments", [{"score": 0}, {"score": 1.5}, {"score": float("nan")}, {"max_size": 10}])
def test_arguments_that_make_no_sense(arguments: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Detector(**arguments)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(0, 40), max_size=4).map(tuple)
    | st.tuples(st.integers(1, 400), st.integers(1, 9), st.just(3)),
    dtype=st.sampled_from(["uint8", "uint8", "float32", "int64", "bool"]),
)
def test_any_array_gives_a_list_or_an_input_error(detector: Detector, shape: tuple[int, ...], dtype: str) -> None:
    array = np.ones(shape, dtype)
    if dtype == "uint8" and len(shape) == 3 and shape[2] == 3 and array.size:
        assert detector.detect(array) == []
    else:
        with pytest.raises(InputError, match="the photo must"):
            detector.detect(array)


def test_nothing_is_printed_and_nothing_loaded_before_it_is_needed() -> None:
    """A fresh process: the first photo loads the network, without OpenCV's warnings, and its log level is kept."""
    program = """
import sys, numpy as np, cv2
from deocc.faces import Detector
assert "torch" not in sys.modules
logging = getattr(cv2.utils, "logging", cv2)
level = logging.getLogLevel()
detector = Detector()
assert detector._network is None
detector.detect(np.zeros((64, 64, 3), np.uint8))
assert logging.getLogLevel() == level
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_real_masks(detector: Detector, shared: Callable[[str], Path]) -> None:
    paths = sorted(shared("faces/masked-real").glob("*.jpg"))[:40]
    assert all(detector.detect(read_image(path)) for path in paths)


def test_landmarks_agree_with_those_of_another_detector(detector: Detector, shared: Callable[[str], Path]) -> None:
    """Within a tenth of the distance between the eyes, over forty photos."""
    root = shared("faces/lfw")
    table = np.load(root / "landmarks.npz")
    distances = []
    for name, points in zip(table["names"][:40], table["lm5"][:40], strict=True):
        faces = detector.detect(read_image(root / str(name)))
        best = min(float(np.linalg.norm(face.landmarks - points, axis=1).mean()) for face in faces)
        distances.append(best / float(np.linalg.norm(points[1] - points[0])))
    assert np.mean(distances) < 0.1
