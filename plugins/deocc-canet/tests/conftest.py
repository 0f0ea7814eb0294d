"""Real faces: the packaged portraits."""

from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from deocc.faces import Crop, Detector, align
from deocc.images import read_image


class Portrait(NamedTuple):
    image: np.ndarray
    landmarks: np.ndarray


@pytest.fixture(scope="session")
def portraits() -> dict[str, Portrait]:
    found, crop, detector = {}, Crop(128, 0.75), Detector()
    for path in sorted(Path(str(files("deocc") / "portraits")).glob("*.jpg")):
        photo = read_image(path)
        face = detector.detect(photo)[0]
        matrix = crop.matrix(face.landmarks)
        landmarks = face.landmarks @ matrix[:, :2].T + matrix[:, 2]
        found[path.stem] = Portrait(align(photo, face.landmarks, crop), landmarks.astype(np.float32))
    return found


@pytest.fixture(scope="session")
def portrait(portraits: dict[str, Portrait]) -> Portrait:
    return portraits["barack-obama-2010"]
