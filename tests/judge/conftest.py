"""A tiny data set of people who are patterns, and parts that know something about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from deocc.data import IdentityFolder, PackedFaces, pack
from deocc.faces import Crop
from deocc.images import to_tensor
from deocc.method import Recognizer, Restored, Restorer

SIZE = 32
CROP = Crop(SIZE, 0.75)
PEOPLE, IMAGES = 12, 3


def portrait(person: int, number: int, size: int = 64) -> np.ndarray:
    """A smooth pattern for each person, a little different in each image."""
    base = np.random.default_rng(person).integers(70, 186, (6, 6, 3)).astype(np.float32)
    noise = np.random.default_rng(1000 + 10 * person + number).normal(0, 45, (6, 6, 3))
    smooth = cv2.resize((base + noise).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    return smooth.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each of 12 people, with three images of 64x64 pixels each, and their landmarks."""
    root = tmp_path_factory.mktemp("data") / "people"
    names = []
    for person in range(PEOPLE):
        for number in range(IMAGES):
            path = root / f"Some_Body{chr(97 + person)}" / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), portrait(person, number)[..., ::-1])
            names.append(path.relative_to(root).as_posix())
    points = np.repeat(Crop(64, 0.75).template()[None], len(names), axis=0)
    np.savez(root / "landmarks.npz", names=np.array(names), lm5=points.astype(np.float32))
    return root


@pytest.fixture(scope="session")
def packed(folder: Path) -> PackedFaces:
    """The same, packed as crops of 32 pixels."""
    path = folder.parent / "packed"
    pack(IdentityFolder(folder), path, crop=CROP)
    return PackedFaces(path)


class Pixels(Recognizer):
    """Embeds the centred pixels themselves."""

    crop_size = 24
    crop_zoom = 0.9

    def __init__(self) -> None:
        super().__init__(None)
        self.seen = 0

    def embed(self, image: Tensor) -> Tensor:
        self.seen += len(image)
        return (image - image.mean(dim=(2, 3), keepdim=True)).flatten(1)


class Nothing(Restorer):
    """Gives back what it was given, and says that it found nothing to restore."""

    finds_occlusion = True
    crop_size, crop_zoom = SIZE, 0.75

    def __init__(self) -> None:
        super().__init__(None)
        self.seen = 0

    def restore(self, image: Tensor, occlusion: Tensor | None) -> Restored:
        self.seen += len(image)
        return Restored(image, torch.zeros_like(image[:, :1]) if occlusion is None else occlusion)


class Oracle(Nothing):
    """Knows all true faces: restores the one whose visible pixels are nearest. It must be told the occlusion."""

    finds_occlusion = False

    def __init__(self, faces: PackedFaces) -> None:
        super().__init__()
        self.faces = to_tensor(np.asarray(faces.images))

    def restore(self, image: Tensor, occlusion: Tensor | None) -> Restored:
        assert occlusion is not None
        self.seen += len(image)
        visible = 1 - occlusion
        distances = torch.stack(
            [((self.faces - one) * seen).square().sum((1, 2, 3)) for one, seen in zip(image, visible, strict=True)]
        )
        return Restored(self.faces[distances.argmin(dim=1)], torch.ones_like(occlusion))


@pytest.fixture
def pixels() -> Pixels:
    return Pixels()


@pytest.fixture
def nothing() -> Nothing:
    return Nothing()


@pytest.fixture
def oracle(packed: PackedFaces) -> Oracle:
    return Oracle(packed)


@pytest.fixture
def broken() -> Callable[[float], Pixels]:
    """``broken(value)``: a matcher whose fifth embedding is full of that value."""

    def make(value: float) -> Pixels:
        class Broken(Pixels):
            def embed(self, image: Tensor) -> Tensor:
                found = super().embed(image)
                bad = (image.mean(dim=(1, 2, 3)) - image.new_tensor(0.5)).abs() < 0.03
                found[bad] = value
                return found

        return Broken()

    return make
