"""A real face from the packaged portraits."""

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
def portrait() -> Portrait:
    path = sorted(Path(str(files("deocc") / "portraits")).glob("*.jpg"))[0]
    photo = read_image(path)
    face = Detector().detect(photo)[0]
    crop = Crop(128, 0.75)
    matrix = crop.matrix(face.landmarks)
    landmarks = face.landmarks @ matrix[:, :2].T + matrix[:, 2]
    return Portrait(align(photo, face.landmarks, crop), landmarks.astype(np.float32))
