from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from deocc.errors import InputError, UsageError
from deocc.occlude import MASKTHEFACE, Occlusion, fingerprint, kind_of, kinds, occlude

Make = Callable[..., tuple[NDArray[np.uint8], NDArray[np.float64]]]

MASKS = ("surgical", "n95", "kn95", "cloth", "template")
LOWER = (*MASKS, "scarf", "erase-lower", "keypoint-hull", "keypoint-paste")

# First 16 hex digits of SHA-256 over image and occlusion. A change that alters them must raise deocc.occlude.VERSION.
GOLDEN: dict[str, str] = {
    "surgical": "d138425ccffe1c8e",
    "n95": "a915f0dacaf07750",
    "kn95": "c73897979a4ada20",
    "cloth": "c34f7c8baca6c464",
    "template": "52340f1e64d7945e",
    "sunglasses": "e5f28fc0137cc78f",
    "scarf": "c6de84a35aa4b361",
    "hand": "a5993caa178012bf",
    "strokes": "e01bcf6b3837cccb",
    "rectangle": "38e6732839917147",
    "erase-lower": "845cc4b69d2d5dfa",
    "keypoint-hull": "a5fce718ebd3bd64",
    "keypoint-paste": "ec5ec7122c3d0c41",
}


def digest(result: Occlusion) -> str:
    return hashlib.sha256(result.image.tobytes() + result.occlusion.tobytes()).hexdigest()[:16]


def turned(landmarks: NDArray[Any], image: NDArray[Any], degrees: float) -> NDArray[np.float64]:
    centre = np.array([image.shape[1], image.shape[0]]) / 2
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (landmarks - centre) @ turn.T + centre


@pytest.mark.parametrize("kind", kinds())
def test_same_seed_same_bytes_everywhere(face: Make, kind: str) -> None:
    image, landmarks = face()
    results = [occlude(image, landmarks, seed, kinds=[kind]) for seed in (0, 1, 2, 3)]
    combined = hashlib.sha256("".join(map(digest, results)).encode()).hexdigest()[:16]
    assert combined == GOLDEN[kind]


@pytest.mark.parametrize("kind", MASKTHEFACE)
def test_the_nine_masks_of_the_paper_are_drawn_when_they_are_named(face: Make, kind: str) -> None:
    image, landmarks = face()
    one, other = (occlude(image, landmarks, seed, kinds=[kind]) for seed in (0, 1))
    assert (one.occlusion > 127).mean() > 0.05
    assert not np.array_equal(one.image, other.image)  # worn in another place
    assert kind not in kinds()


def test_the_four_cloths_differ_in_their_grey_alone(face: Make) -> None:
    image, landmarks = face()
    made = [occlude(image, landmarks, 0, kinds=[kind]) for kind in MASKTHEFACE if "cloth" in kind]
    assert all(np.array_equal(one.occlusion, made[0].occlusion) for one in made)
    levels = [one.image[one.occlusion == 255].mean() for one in made]
    assert levels == sorted(levels)
    assert levels[-1] - levels[0] > 80


def test_vector_instructions_and_threads_do_not_matter(tmp_path: Path) -> None:
    """The golden values again, without the vector instructions that NumPy and OpenCV choose at run time."""
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])  # type: ignore[index,call-overload]
    environment = {
        **os.environ,
        "NPY_DISABLE_CPU_FEATURES": " ".join(found),
        "OPENCV_CPU_DISABLE": "SSE4.1,SSE4.2,AVX,AVX2,AVX512-SKX,FMA3,FP16",
        "OPENCV_FOR_THREADS_NUM": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "same_bytes_everywhere"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_calls_do_not_depend_on_each_other(face: Make) -> None:
    image, landmarks = face()
    first = digest(occlude(image, landmarks, 5))
    for seed in range(20):
        occlude(image, landmarks, seed)
    assert digest(occlude(image, landmarks, 5)) == first
    assert digest(occlude(image, landmarks.astype(np.float32).astype(np.float64), 6)) != first


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("shape", [(128, 128), (64, 64), (97, 131), (333, 250), (512, 512)])
def test_every_kind_at_every_size(face: Make, kind: str, shape: tuple[int, int]) -> None:
    image, landmarks = face(*shape)
    before = image.copy()
    for seed in range(4):
        result = occlude(image, landmarks, seed, kinds=[kind])
        assert result.image.shape == image.shape
        assert result.image.dtype == np.uint8
        assert result.occlusion.shape == image.shape[:2]
        assert result.occlusion.dtype == np.uint8
        assert np.array_equal(image, before), "the input was written to"
        untouched = result.occlusion == 0
        assert np.array_equal(result.image[untouched], image[untouched])
        assert 0.01 < (result.occlusion > 127).mean() < 0.9
        assert result.parameters["kind"] == kind
        assert result.parameters["seed"] == seed
        assert json.loads(json.dumps(result.parameters)).keys() == result.parameters.keys()


@pytest.mark.parametrize("kind", kinds())
def test_seeds_differ(face: Make, kind: str) -> None:
    image, landmarks = face()
    different = {digest(occlude(image, landmarks, seed, kinds=[kind])) for seed in range(12)}
    fixed = {"erase-lower": 1, "keypoint-hull": 1}  # nothing is drawn for these
    few = {"keypoint-paste": 3}  # only one of six pictures
    assert len(different) >= {**fixed, **few}.get(kind, 12)
    assert len(different) <= fixed.get(kind, 12)


@pytest.mark.parametrize("kind", LOWER)
@pytest.mark.parametrize("degrees", [0, -25, 40])
def test_the_lower_face_is_hidden(face: Make, kind: str, degrees: float) -> None:
    if kind == "erase-lower" and degrees:
        pytest.skip("erases the lower part of the image whichever way the face is turned")
    image, landmarks = face(160, 160)
    landmarks = turned(landmarks, image, degrees)
    for seed in range(25):
        result = occlude(image, landmarks, seed, kinds=[kind])
        hidden = landmarks[3:] if result.parameters.get("below_nose") or kind == "erase-lower" else landmarks[2:]
        for x, y in hidden:
            assert result.occlusion[round(y), round(x)] > 127, (seed, x, y)
        assert all(result.occlusion[round(y), round(x)] < 128 for x, y in landmarks[:2]), "an eye is covered"


@pytest.mark.parametrize("side", [-1, 1])
def test_masks_follow_a_face_in_profile(face: Make, side: int) -> None:
    image, landmarks = face(160, 160)
    middle = landmarks[:, 0].mean()
    landmarks[:, 0] = middle + (landmarks[:, 0] - middle) * 0.55
    landmarks[2, 0] += 12 * side
    for kind in MASKS:
        for seed in range(10):
            result = occlude(image, landmarks, seed, kinds=[kind])
            x, y = landmarks[3:].mean(axis=0)
            assert result.occlusion[round(y), round(x)] > 127, (kind, seed)
            weight = (result.occlusion > 127).sum(axis=0)
            centre = (weight * np.arange(160)).sum() / weight.sum()
            assert (landmarks[2, 0] - centre) * side > 5, "the near cheek shows more of the mask than the far one"


def test_masks_are_lit_like_the_face(face: Make) -> None:
    image, landmarks = face()
    dark = image // 3

    def brightness(picture: NDArray[np.uint8]) -> float:
        results = [occlude(picture, landmarks, seed, kinds=["n95"]) for seed in range(8)]
        return float(np.mean([result.image[result.occlusion == 255].mean() for result in results]))

    assert brightness(dark) < 0.75 * brightness(image)


def test_the_default_mix_has_every_kind_and_mostly_masks(face: Make) -> None:
    image, landmarks = face(64, 64)
    drawn = [occlude(image, landmarks, seed).parameters["kind"] for seed in range(400)]
    assert set(drawn) == set(kinds())
    assert 0.58 < sum(kind in MASKS for kind in drawn) / len(drawn) < 0.78


def test_kinds_are_kept_to(face: Make) -> None:
    image, landmarks = face(64, 64)
    drawn = {occlude(image, landmarks, seed, kinds=("hand", "n95")).parameters["kind"] for seed in range(30)}
    assert drawn == {"hand", "n95"}


def test_the_kind_is_known_before_anything_is_painted(face: Make) -> None:
    image, landmarks = face(64)
    for seed in range(20):
        for names in (None, ["hand", "n95"]):
            assert kind_of(seed, kinds=names) == occlude(image, landmarks, seed, kinds=names).parameters["kind"]
    with pytest.raises(UsageError, match="from 0 up, got -1"):
        kind_of(-1)


@pytest.mark.parametrize("names", [kinds(), MASKTHEFACE])
def test_the_order_of_the_kinds_does_not_matter(names: tuple[str, ...]) -> None:
    """One fingerprint stands for one set of pictures."""
    drawn = [kind_of(seed, kinds=names) for seed in range(50)]
    assert drawn == [kind_of(seed, kinds=names[::-1]) for seed in range(50)]
    assert len(set(drawn)) > 5


def test_fingerprint() -> None:
    assert fingerprint() == fingerprint(None) == fingerprint(list(reversed(kinds())))
    assert len(fingerprint()) == 16
    assert len({fingerprint(), fingerprint(["n95"]), fingerprint(["template"])}) == 3
    with pytest.raises(UsageError, match="did you mean 'surgical'"):
        fingerprint(["surgicall"])


def test_real_photos_of_any_size(shared: Callable[[str], Any], face: Make) -> None:
    photo = cv2.imread(str(shared("samples/obama.jpg")))[..., ::-1]
    _, landmarks = face(400, 400)
    for seed in range(6):
        result = occlude(photo, landmarks, seed)
        assert result.occlusion.any()


BAD_IMAGES: list[Any] = [
    None,
    "face.jpg",
    np.zeros((128, 128, 3), np.float32),
    np.zeros((128, 128), np.uint8),
    np.zeros((128, 128, 4), np.uint8),
    np.zeros((0, 128, 3), np.uint8),
    np.zeros((8, 8, 3), np.uint8),
    np.zeros((1, 128, 128, 3), np.uint8),
]


@pytest.mark.parametrize("bad", BAD_IMAGES, ids=lambda bad: str(getattr(bad, "shape", bad)))
def test_bad_images(face: Make, bad: Any) -> None:
    with pytest.raises(InputError, match="the image must be"):
        occlude(bad, face()[1], 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda points: points[:4], "shape"),
        (lambda points: points.ravel(), "shape"),
        (lambda points: "eyes", "numbers"),
        (lambda points: points * np.nan, "finite"),
        (lambda points: points + np.inf, "finite"),
        (lambda points: points + 1000, "inside"),
        (lambda points: points * 0 + 64, "too close"),
    ],
)
def test_bad_landmarks(face: Make, change: Callable[[Any], Any], message: str) -> None:
    image, landmarks = face()
    with pytest.raises(InputError, match=message):
        occlude(image, change(landmarks), 0)


@pytest.mark.parametrize("seed", [-1, 0.5, "1", None, True])
def test_bad_seeds(face: Make, seed: Any) -> None:
    with pytest.raises(UsageError, match="seed"):
        occlude(*face(), seed)


@pytest.mark.parametrize(("names", "message"), [([], "at least one"), ("n95", "sequence"), (["masks"], "unknown kind")])
def test_bad_kinds(face: Make, names: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        occlude(*face(), 0, kinds=names)


@settings(max_examples=120, deadline=None)
@given(
    height=st.integers(16, 90),
    width=st.integers(16, 90),
    places=st.lists(st.tuples(st.floats(-0.5, 1.5), st.floats(-0.5, 1.5)), min_size=5, max_size=5),
    seed=st.integers(0, 2**70),
    kind=st.sampled_from([None, *kinds()]),
    value=st.integers(0, 255),
)
def test_any_landmarks(
    height: int, width: int, places: list[tuple[float, float]], seed: int, kind: str | None, value: int
) -> None:
    """Five points anywhere give an occlusion or one clear error, and never a changed pixel outside the occlusion."""
    image = np.full((height, width, 3), value, np.uint8)
    landmarks = np.array(places) * (width, height)
    with contextlib.suppress(InputError):
        result = occlude(image, landmarks, seed, kinds=None if kind is None else [kind])
        assert np.array_equal(result.image[result.occlusion == 0], image[result.occlusion == 0])
        json.dumps(result.parameters)
