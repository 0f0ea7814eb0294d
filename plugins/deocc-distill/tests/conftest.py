"""Packed faces of a few people, drawn, and the centroids that a teacher gives them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from deocc_distill.centroids import compute

from deocc import plugins
from deocc.data import PackedFaces, Source, pack
from deocc.faces import Crop
from deocc.images import write_image


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> PackedFaces:
    """Eight smooth pictures of four people, two each, with the template's landmarks."""
    root = tmp_path_factory.mktemp("faces")
    names = [f"person{index // 2}_{index % 2}.png" for index in range(8)]
    small = torch.rand(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    large = torch.nn.functional.interpolate(small, size=128, mode="bilinear")
    (root / "photos").mkdir()
    for name, picture in zip(names, (large * 255).byte().permute(0, 2, 3, 1).numpy(), strict=True):
        write_image(root / "photos" / name, np.ascontiguousarray(picture))
    crop = Crop(128, 0.75)
    source = Source(
        root / "photos",
        names,
        identity=lambda name: name.partition("_")[0],
        landmarks=dict.fromkeys(names, crop.template()),
    )
    pack(source, root / "packed", crop=crop)
    return PackedFaces(root / "packed")


@pytest.fixture(scope="session")
def centroids(faces: PackedFaces, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of their centroids, by mobilefacenet."""
    if "mobilefacenet" not in plugins.names():
        pytest.skip("needs the teacher mobilefacenet, which is not installed")
    path = tmp_path_factory.mktemp("centroids") / "centroids.safetensors"
    compute(faces, "mobilefacenet", plugins.load("mobilefacenet", "recognizer")).save(path)
    return path
