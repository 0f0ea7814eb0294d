"""Dense fields a second, from the photo to the field of its crop: ``pytest bench/bench_dense_field.py``.

The packaged face mesh looks twice, and its triangles are drawn. A morphable model adds its fit: here one as large as
the Basel Face Model, of random components.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deocc.faces import Crop, Detector, FaceMesh, FaceModel, MorphableModel, dense_field
from deocc.images import read_image

PORTRAIT = min(Path(str(files("deocc").joinpath("portraits"))).glob("*.jpg"))


def basel() -> MorphableModel:
    """53,360 vertices, 199 components and 100 expressions."""
    rng = np.random.default_rng(0)
    y, x = np.meshgrid(np.linspace(-1, 1, 230), np.linspace(-1, 1, 232), indexing="ij")
    mean = np.stack([x, -y, np.sqrt(1 - 0.4 * (x**2 + y**2))], 2).reshape(-1, 3)
    number = np.arange(230 * 232).reshape(230, 232)
    a, b, c = number[:-1, :-1].ravel(), number[:-1, 1:].ravel(), number[1:, :-1].ravel()
    components = rng.normal(0, 0.01, (299, *mean.shape)).astype(np.float32)
    landmarks = {landmark: int(rng.integers(len(mean))) for landmark in range(18, 69)}
    return MorphableModel(mean, components[:199], components[199:], np.stack([a, c, b], 1), landmarks)


@pytest.mark.parametrize("model", [FaceMesh, basel], ids=["face-mesh", "basel-size"])
def test_dense_field(benchmark: Any, model: Any) -> None:
    photo, fitted = read_image(PORTRAIT), model()
    landmarks = Detector().detect(photo)[0].landmarks

    def job(face_model: FaceModel) -> None:
        assert dense_field(photo, landmarks, face_model, Crop(128, 0.75)).covered.any()

    benchmark.pedantic(job, (fitted,), rounds=20, warmup_rounds=2)
    benchmark.extra_info["fields a second"] = round(1 / benchmark.stats.stats.median, 1)
