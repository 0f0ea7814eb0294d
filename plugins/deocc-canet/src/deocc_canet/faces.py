"""Packed faces as training examples: moved, lit, occluded, all by a seed."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from deocc.data import PackedFaces
from deocc.errors import UsageError
from deocc.faces import Crop
from deocc.occlude import occlude
from deocc_canet.config import Augmentation, Config


class OccludedFaces(Dataset[dict[str, Tensor]]):
    """Packed faces, occluded on the fly.

    Items, all uint8: ``image`` (3, S, S); ``occluded`` (3, S, S) and ``occlusion`` (1, S, S); with two views also
    ``other_occluded`` and ``other_occlusion``, the same image occluded once more; and with fields ``dense_field``
    (2, S, S), u and v times 255, 0 beside the face.

    Item ``index`` depends on ``index`` and ``seed`` alone; face ``index % len`` is used, occluded anew for every index.

    Args:
        faces: what to occlude.
        augmentation: None leaves every face as it is, and occludes all of them.
        seed: of everything random.
        views: occlusions of each image, 1 or 2.
        dense_field: whether to give the packed dense fields, which ``faces`` must have then.
    """

    def __init__(
        self,
        faces: PackedFaces,
        augmentation: Augmentation | None,
        seed: int,
        *,
        views: int = 1,
        dense_field: bool = False,
    ) -> None:
        self.faces = faces
        self.augmentation = augmentation
        self.seed = seed
        self.views = views
        self.dense_field = dense_field

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        position = index % len(self.faces)
        image = np.array(self.faces.images[position])
        landmarks = self.faces.landmarks[position]
        field = np.array(self.faces.fields[position]) if self.dense_field else None
        generator = np.random.default_rng([self.seed, index])
        occluded_share = 1.0
        if self.augmentation is not None:
            image, landmarks, field = augment(image, landmarks, field, self.augmentation, generator)
            occluded_share -= self.augmentation.unoccluded
        item = {"image": image}
        for name in ("occluded", "other_occluded")[: self.views]:
            if generator.random() < occluded_share:
                made = occlude(image, landmarks, seed=int(generator.integers(2**62)))
                occluded, occlusion = made.image, made.occlusion
            else:
                occluded, occlusion = image, np.zeros(image.shape[:2], np.uint8)
            item |= {name: occluded, name.replace("occluded", "occlusion"): occlusion[:, :, None]}
        if field is not None:
            item["dense_field"] = field[:, :, :2]
        return {name: torch.from_numpy(np.ascontiguousarray(value.transpose(2, 0, 1))) for name, value in item.items()}


def check_crop(faces: PackedFaces, config: Config) -> None:
    """Raise UsageError unless packed faces are of the configured crop, and a network can be trained on it."""
    multiple = 2 ** max(len(config.architecture.widths), len(config.architecture.finder_widths))
    if config.size % multiple:
        raise UsageError(f"size must be a multiple of {multiple} for this architecture, got {config.size}")
    wanted = Crop(config.size, config.zoom)
    if faces.crop != wanted:
        raise UsageError(
            f"canet is set to crops of {wanted.size} pixels and zoom {wanted.zoom:g} (size and zoom), "
            f"but {faces.title} was packed with {faces.crop.size} and {faces.crop.zoom:g}"
        )


def augment(
    image: np.ndarray,
    landmarks: np.ndarray,
    field: np.ndarray | None,
    augmentation: Augmentation,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Shift, scale, turn, mirror and light an image (S, S, 3) with its landmarks (5, 2) and its field (S, S, 3)."""
    size = image.shape[0]
    angle = math.radians(augmentation.rotate * generator.uniform(-1, 1))
    scale = 1 + augmentation.scale * generator.uniform(-1, 1)
    shift = augmentation.shift * size * generator.uniform(-1, 1, 2)
    flip = -1.0 if generator.random() < 0.5 else 1.0
    centre = np.array([(size - 1) / 2] * 2)
    linear = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    linear[:, 0] *= flip
    offset = centre + shift - linear @ centre
    matrix = np.c_[linear, offset]
    image = cv2.warpAffine(image, matrix, (size, size), borderMode=cv2.BORDER_REFLECT_101)
    landmarks = (landmarks @ linear.T + offset).astype(np.float32)
    if field is not None:
        # Nearest: between the face's edge and the 0 beside it there is no field.
        field = cv2.warpAffine(field, matrix, (size, size), flags=cv2.INTER_NEAREST)
    if flip < 0:
        landmarks = landmarks[[1, 0, 2, 4, 3]]
        if field is not None:
            field[:, :, 0] = np.where(field[:, :, 2] > 0, 255 - field[:, :, 0], 0)
    brightness, contrast, saturation = 1 + augmentation.light * generator.uniform(-1, 1, 3)
    light = image.astype(np.float32)
    grey = light @ np.array([0.299, 0.587, 0.114], np.float32)
    light = grey[..., None] + saturation * (light - grey[..., None])
    light = brightness * (contrast * (light - 128) + 128)
    return np.clip(light + 0.5, 0, 255).astype(np.uint8), landmarks, field
