"""Packed faces as training examples, and the way from one aligned crop to another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from deocc.data import PackedFaces
from deocc.errors import UsageError
from deocc.faces import Crop
from deocc_distill.config import Augmentation, Config
from deocc_distill.synthesis import choose, paste


class OccludedFaces(Dataset[dict[str, Tensor]]):
    """Packed faces, occluded on the fly by the protocol of section 4.1.

    Items: ``image`` (3, S, S), ``occluded`` (3, S, S), ``occlusion`` (1, S, S) and ``distance`` (1, S, S), all uint8:
    how many pixels the nearest known pixel is away, so that the hole to complete is where it is above 0; and the
    number ``row``.

    Item ``index`` depends on ``index`` and ``seed`` alone; face ``index % len`` is used, occluded anew for every index.

    Args:
        faces: what to occlude.
        augmentation: None leaves every face as it is, and occludes all of them.
        seed: of everything random.
        rows: what ``row`` is for each face; -1 without.
    """

    def __init__(
        self, faces: PackedFaces, augmentation: Augmentation | None, seed: int, rows: Sequence[int] | None = None
    ) -> None:
        self.faces = faces
        self.augmentation = augmentation
        self.seed = seed
        self.rows = rows

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        position = index % len(self.faces)
        image = np.array(self.faces.images[position])
        landmarks = self.faces.landmarks[position]
        generator = np.random.default_rng([self.seed, index])
        grow, unoccluded, moved = 0, 0.0, landmarks
        if self.augmentation is not None:
            image, landmarks = augment(image, landmarks, self.augmentation, generator)
            reach = self.augmentation.paste_shift * image.shape[0]
            moved = landmarks + generator.uniform(-reach, reach, 2).astype(np.float32)
            grow = int(generator.integers(self.augmentation.grow + 1))
            unoccluded = self.augmentation.unoccluded
        occluder = choose(generator)
        if generator.random() < unoccluded:
            occluded, occlusion = image, np.zeros(image.shape[:2], np.uint8)
        else:
            occluded, occlusion = paste(image, moved, occluder)
        hole = (occlusion > 0).astype(np.uint8)
        if grow:
            hole = cv2.dilate(hole, np.ones((2 * grow + 1,) * 2, np.uint8))
        # Where all is hole, OpenCV's distance is as large as its type allows.
        distance = cv2.distanceTransform(hole, cv2.DIST_C, 3).clip(0, 255).astype(np.uint8)
        pictures = {"image": image, "occluded": occluded, "occlusion": occlusion[..., None]}
        pictures["distance"] = distance[..., None]
        item = {name: torch.from_numpy(np.ascontiguousarray(p.transpose(2, 0, 1))) for name, p in pictures.items()}
        row = -1 if self.rows is None else self.rows[position]
        return item | {"row": torch.tensor(int(row))}


def augment(
    image: NDArray[np.uint8], landmarks: NDArray[np.float32], augmentation: Augmentation, generator: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Shift and mirror an image (S, S, 3) with its landmarks (5, 2)."""
    size = image.shape[0]
    shift = augmentation.shift * size * generator.uniform(-1, 1, 2)
    flip = augmentation.flip and generator.random() < 0.5
    matrix = np.array([[-1.0 if flip else 1.0, 0, shift[0] + (size - 1 if flip else 0)], [0, 1, shift[1]]])
    image = cv2.warpAffine(image, matrix, (size, size), borderMode=cv2.BORDER_REFLECT_101)
    landmarks = (landmarks @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)
    return image, landmarks[[1, 0, 2, 4, 3]] if flip else landmarks


def recrop(faces: Tensor, source: Crop, target: Crop) -> Tensor:
    """Aligned faces in another crop, by one bilinear sampling, which differentiates.

    Args:
        faces: (N, 3, S, S) in ``source``'s crop.
        source, target: the crops. What lies beyond the source repeats its border.

    Returns:
        (N, 3, T, T) in ``target``'s crop, channels_last.
    """
    if source == target:
        return faces
    # From pixels of the target to pixels of the source, then both from -1 to 1 between the outer edges.
    back = source.matrix(target.template())
    linear = back[:, :2] * target.size / source.size
    centre = back[:, :2] @ np.full(2, (target.size - 1) / 2) + back[:, 2]
    offset = (2 * centre + 1) / source.size - 1
    theta = torch.tensor(np.c_[linear, offset], dtype=torch.float32, device=faces.device)
    warped = warp(faces, theta.expand(len(faces), 2, 3), target.size)
    return warped.contiguous(memory_format=torch.channels_last)


def warp(faces: Tensor, theta: Tensor, size: int) -> Tensor:
    """Sample (N, C, S, S) bilinearly at (N, 2, 3) affine maps, as of ``affine_grid`` -> (N, C, size, size) float32."""
    if len(faces) == 0:  # of which affine_grid makes none
        return torch.zeros(0, faces.shape[1], size, size, device=faces.device)
    # Under autocast the grid is a matrix product of eight bits: a sixth of a pixel off at 128.
    with torch.autocast(faces.device.type, enabled=False):
        grid = F.affine_grid(theta, [len(faces), faces.shape[1], size, size], align_corners=False)
        return F.grid_sample(faces.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)


def check_crop(faces: Any, config: Config) -> None:
    """Raise UsageError unless packed faces are of the configured crop."""
    wanted = Crop(config.size, config.zoom)
    if faces.crop != wanted:
        raise UsageError(
            f"distill is set to crops of {wanted.size} pixels and zoom {wanted.zoom:g} (size and zoom), "
            f"but {faces.title} was packed with {faces.crop.size} and {faces.crop.zoom:g}"
        )


def to_float(batch: Any, name: str, device: torch.device) -> Tensor:
    """A picture of a batch, uint8 -> float in [0, 1], channels_last."""
    value: Tensor = batch[name]
    return value.to(device, torch.float32, memory_format=torch.channels_last) / 255
