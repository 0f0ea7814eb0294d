"""Seconds for a protocol of 200 pairs: ``pytest bench/bench_judge.py``.

The photos (250 pixels, as in LFW) are the packaged portraits, each turned, shifted and lit a little differently: 200
people with two photos each, so that every pair has two photos of its own. The whole job goes from the files to the
report without pictures, through one restorer and one matcher in five states; then once more with everything in the
cache. The stages are measured apart, on the photos of 16 pairs.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from deocc import judge
from deocc.errors import DeoccError
from deocc.faces import Detector
from deocc.images import read_image, to_tensor, write_image
from deocc.judge.faces import Face, Occluding, open_faces
from deocc.judge.parts import load_recognizers, load_restorers
from deocc.judge.views import restored_crops
from deocc.metrics.verification import Scores, resample

PORTRAITS = sorted(Path(str(files("deocc").joinpath("portraits"))).glob("*.jpg"))
SIDE, PAIRS, SOME = 250, 200, 32


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each person, landmarks, and the list of pairs."""
    root = tmp_path_factory.mktemp("judge") / "people"
    detector, random = Detector(), np.random.default_rng(0)
    photos = [(photo, detector.detect(photo)[0].landmarks) for photo in map(read_image, PORTRAITS)]
    names, points, lines = [], [], []
    for person in range(PAIRS):
        photo, landmarks = photos[person % len(photos)]
        for number in range(2):
            scale = 42 / float(np.linalg.norm(landmarks[0] - landmarks[1]))  # the eyes' distance in LFW
            middle = landmarks.mean(axis=0)
            matrix = cv2.getRotationMatrix2D(tuple(map(float, middle)), random.uniform(-8, 8), scale)
            matrix[:, 2] += SIDE / 2 - middle + random.uniform(-6, 6, 2)
            image = cv2.warpAffine(photo, matrix, (SIDE, SIDE), flags=cv2.INTER_AREA)
            name = f"p{person:03d}/{number}.jpg"
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            write_image(root / name, cv2.convertScaleAbs(image, alpha=random.uniform(0.8, 1.2)))
            names.append(name)
            points.append(landmarks @ matrix[:, :2].T + matrix[:, 2])
        other = (person + 1) % PAIRS
        second = person if person % 2 else other
        lines.append(f"p{person:03d}/0.jpg p{second:03d}/1.jpg {int(second == person)}")
    np.savez(root / "landmarks.npz", names=np.array(names), lm5=np.array(points, np.float32))
    (root / "pairs.txt").write_text("\n".join(lines))
    return root


def _run(people: Path, method: str, device: str, cache: Path | None) -> None:
    try:
        judge.verification(
            people,
            restorers=[method],
            recognizers=["mobilefacenet"],
            pairs=people / "pairs.txt",
            cache=cache,
            device=device,
        )
    except DeoccError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("method", ["canet", "opencv-telea"])
def test_whole_job(benchmark: Any, people: Path, device: str, method: str) -> None:
    benchmark.pedantic(lambda: _run(people, method, device, None), rounds=1)
    benchmark.extra_info["pairs a second"] = round(PAIRS / benchmark.stats.stats.median, 2)


def test_from_the_cache(benchmark: Any, people: Path, device: str, tmp_path: Path) -> None:
    _run(people, "opencv-telea", device, tmp_path)
    benchmark.pedantic(lambda: _run(people, "opencv-telea", device, tmp_path), rounds=3)


@pytest.fixture(scope="module")
def faces(people: Path) -> dict[str, Face]:
    """Some of the photos, read."""
    opened = open_faces(people)
    return {name: opened.load(name) for name in opened.names[:SOME]}


def test_read(benchmark: Any, people: Path) -> None:
    opened = open_faces(people)
    benchmark.pedantic(lambda: [opened.load(name) for name in opened.names[:SOME]], rounds=5, warmup_rounds=1)


def test_occlude(benchmark: Any, faces: dict[str, Face]) -> None:
    occluding = Occluding()
    benchmark.pedantic(
        lambda: [occluding.occluded(name, face) for name, face in faces.items()], rounds=5, warmup_rounds=1
    )


@pytest.mark.parametrize("method", ["canet", "opencv-telea"])
def test_restore(benchmark: Any, faces: dict[str, Face], device: str, method: str) -> None:
    try:
        restorer = load_restorers([method], device=device)[0]
    except DeoccError as error:
        pytest.skip(str(error))
    crops = np.stack([face.cut(restorer.crop) for face in faces.values()])
    hidden = np.zeros(crops.shape[:3], np.uint8)
    hidden[:, 64:] = 255
    benchmark.pedantic(lambda: restored_crops(restorer, crops, hidden, list(faces)), rounds=5, warmup_rounds=1)


def test_embed(benchmark: Any, faces: dict[str, Face], device: str) -> None:
    try:
        matcher = load_recognizers(["mobilefacenet"], device=device)[0]
    except DeoccError as error:
        pytest.skip(str(error))
    crops = to_tensor(np.stack([face.cut(matcher.crop) for face in faces.values()]))
    with torch.inference_mode():
        benchmark.pedantic(lambda: [matcher.part(part) for part in crops.split(16)], rounds=5, warmup_rounds=1)


def test_figures(benchmark: Any) -> None:
    """AUC, EER and one rate of 6,000 pairs in one state, each with 1,000 bootstrap samples."""
    random = np.random.default_rng(0)
    same = np.arange(6000) < 3000
    scores = random.normal(same * 2.0, 1)

    def figures() -> None:
        one, weights = Scores(scores, same), resample(3000, 3000, 1000, seed=0)
        one.auc_samples(weights)
        one.eer_samples(weights)
        one.tpr_samples(0.01, weights)

    benchmark.pedantic(figures, rounds=3, warmup_rounds=1)
