"""Small data sets on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from deocc.faces import Crop, FaceMesh


class Flat:
    """A face model that looks like a card held before the face; it sees none in images that are dark at the corner."""

    title = "flat"

    def __init__(self) -> None:
        mesh = FaceMesh()
        self.triangles, self.coordinates = mesh.triangles, mesh.coordinates
        self.place = mesh.vertices * np.array([1, -1, -1], np.float32)

    def fit(self, image: np.ndarray, landmarks: np.ndarray) -> np.ndarray | None:
        middle = np.append(np.mean(landmarks, axis=0), 0)
        return None if image[0, 0, 0] < 60 else (self.place + middle).astype(np.float32)


Make = Callable[[Path, Sequence[str]], Path]


@pytest.fixture
def flat() -> Flat:
    return Flat()


@pytest.fixture
def make() -> Make:
    """``make(root, names)``: image files of 60x50 pixels of noise, in the folders that their names say."""

    def make(root: Path, names: Sequence[str]) -> Path:
        for number, name in enumerate(names):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(number).integers(0, 256, (15, 12, 3), np.uint8)
            cv2.imwrite(str(path), cv2.resize(noise, (50, 60), interpolation=cv2.INTER_CUBIC))
        return root

    return make


@pytest.fixture
def write_landmarks() -> Callable[[Path, Sequence[str]], None]:
    """``write_landmarks(root, names)``: a landmarks.npz with plausible points for 60x50 images."""

    def write(root: Path, names: Sequence[str]) -> None:
        points = Crop(50, 0.7).template()
        shifts = np.random.default_rng(0).normal(0, 1.0, (len(names), 5, 2))
        np.savez(root / "landmarks.npz", names=np.array(names), lm5=(points + shifts).astype(np.float32))

    return write
