"""Packed faces as photographs show them, for the finder: hard light, any cloth, two occlusions, and what cameras do."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from deocc.data import PackedFaces
from deocc.occlude import Occlusion, occlude
from deocc_canet.config import Augmentation
from deocc_canet.faces import augment

_WORN = ("surgical", "n95", "kn95", "cloth", "template", "scarf")
_MOUTH_BELOW_EYES = 1.16
"""Eye distances from the eyes to the mouth."""

_Image = NDArray[np.uint8]


class Photographs(Dataset[dict[str, Tensor]]):
    """Packed faces, occluded on the fly, that no trace of how they were made gives away.

    Items, uint8: ``occluded`` (3, S, S) and ``occlusion`` (1, S, S).

    What is drawn on a picture is sharper or softer, cleaner and more evenly lit than the picture, and in single
    occlusions of clean LFW faces that alone shows where it is. Here the face may be smoothed and lit from a side or
    from behind before it is occluded, a mask may be of cloth that has the colour of the skin or is a piece of another
    photograph, a second occlusion (sunglasses, most often) may follow, and all of it is photographed: scaled, smoothed,
    tinted, with noise, as a JPEG.

    Item ``index`` depends on ``index`` and ``seed`` alone; face ``index % len`` is used, occluded anew for every index.

    Args:
        faces: what to occlude.
        augmentation: how faces are moved and lit first; its ``unoccluded`` is the share that nothing hides.
        seed: of everything random.
        plain: share of the faces to which nothing but this and one occlusion is done.
    """

    def __init__(self, faces: PackedFaces, augmentation: Augmentation, seed: int, *, plain: float = 0.0) -> None:
        self.faces = faces
        self.augmentation = augmentation
        self.seed = seed
        self.plain = plain

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        position = index % len(self.faces)
        generator = np.random.default_rng([self.seed, index])
        image, landmarks = np.array(self.faces.images[position]), self.faces.landmarks[position]
        image, landmarks, _ = augment(image, landmarks, None, self.augmentation, generator)
        plain = generator.random() < self.plain
        if not plain:
            if generator.random() < 0.3:
                image = smooth(image, generator)
            if generator.random() < 0.35:
                image = light(image, landmarks, generator)
        occlusion = np.zeros(image.shape[:2], np.uint8)
        if generator.random() >= self.augmentation.unoccluded:
            image, occlusion = self._occlude(image, landmarks, generator, plain)
        if not plain:
            if generator.random() < 0.15:
                image = light(image, landmarks, generator)
            image = photograph(image, generator)
        return {"occluded": _to_tensor(image), "occlusion": _to_tensor(occlusion[:, :, None])}

    def _occlude(
        self, image: _Image, landmarks: np.ndarray, generator: np.random.Generator, plain: bool
    ) -> tuple[_Image, _Image]:
        made = occlude(image, landmarks, seed=_seed(generator))
        occluded, occlusion = made.image, made.occlusion
        if plain:
            return occluded, occlusion
        worn = made.parameters["kind"] in _WORN
        if worn and generator.random() < 0.3:
            other = np.array(self.faces.images[int(generator.integers(len(self.faces)))])
            occluded = reclothe(image, made, landmarks, other, generator)
        if generator.random() < 0.25:
            kinds = ("sunglasses",) if worn and generator.random() < 0.6 else None
            second = occlude(occluded, landmarks, seed=_seed(generator), kinds=kinds)
            occluded = second.image
            seen = (255 - occlusion.astype(np.int32)) * (255 - second.occlusion.astype(np.int32))
            occlusion = (255 - (seen + 127) // 255).astype(np.uint8)
        return occluded, occlusion


def light(image: _Image, landmarks: np.ndarray, generator: np.random.Generator) -> _Image:
    """Light a picture (S, S, 3) from a side, with a hard or a soft edge, or its face from behind, with a bright rim."""
    size = image.shape[0]
    eyes, mouth = landmarks[:2].mean(0), landmarks[3:].mean(0)
    length = max(1.0, float(np.hypot(*(mouth - eyes))))
    unit, down = length / _MOUTH_BELOW_EYES, (mouth - eyes) / length
    centre = eyes + 0.75 * unit * down
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32)
    x, y = (columns - np.float32(centre[0])) / np.float32(unit), (rows - np.float32(centre[1])) / np.float32(unit)
    u = x * np.float32(down[1]) - y * np.float32(down[0])
    v = x * np.float32(down[0]) + y * np.float32(down[1])

    gain = np.ones((size, size), np.float32)
    kind, turn = generator.random(), generator.uniform(0, 2 * math.pi)
    along, across = u * math.cos(turn) + v * math.sin(turn), v * math.cos(turn) - u * math.sin(turn)
    if kind < 0.65:
        wave = generator.uniform(0, 0.25) * np.sin(generator.uniform(1, 5) * across + generator.uniform(0, 6))
        steep = 3 / generator.choice([0.05, 0.15, 0.4, 0.9])
        edge = np.tanh(0.5 * steep * (along + wave - generator.uniform(-0.7, 0.7)))
        dark, bright = generator.uniform(0.3, 0.9), generator.uniform(1.0, 1.7)
        gain *= dark + (bright - dark) * 0.5 * (1 + edge)
    if kind > 0.5:
        wide, high = generator.uniform(0.85, 1.25), generator.uniform(1.05, 1.5)
        radius = np.sqrt((u / wide) ** 2 + ((v - 0.1) / high) ** 2)
        outline, width = generator.uniform(0.85, 1.05), generator.uniform(0.03, 0.16)
        lit = np.clip(along / np.maximum(radius, 0.1) + generator.uniform(-0.2, 0.8), 0, 1)
        gain *= 1 + generator.uniform(0.3, 2.5) * lit * np.exp(-(((radius - outline) / width) ** 2))
        if generator.random() < 0.5:
            gain = np.where(radius < outline, generator.uniform(0.55, 1.0) * gain, gain)
    tint = generator.normal(1, 0.06, 3)
    return _to_bytes(image * gain[:, :, None] ** tint.astype(np.float32))


def smooth(image: _Image, generator: np.random.Generator) -> _Image:
    """Smooth or sharpen a picture (S, S, 3) as cameras and photo editors do."""
    kind = generator.random()
    if kind < 0.4:
        return np.asarray(cv2.bilateralFilter(image, 5, generator.uniform(10, 40), 2))
    if kind < 0.6:
        return np.asarray(cv2.medianBlur(image, 3))
    if kind < 0.8:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), generator.uniform(0.4, 1.3)))
    amount = generator.uniform(0.3, 1.2)
    return np.asarray(cv2.addWeighted(image, 1 + amount, cv2.GaussianBlur(image, (0, 0), 1.0), -amount, 0))


def photograph(image: _Image, generator: np.random.Generator) -> _Image:
    """What happens to a picture (S, S, 3) as a whole: scaled down and up or smoothed, tones, tint, noise, JPEG."""
    size = image.shape[0]
    if generator.random() < 0.3:
        small = int(size * generator.uniform(0.35, 0.9))
        back = cv2.INTER_CUBIC if generator.random() < 0.5 else cv2.INTER_LINEAR
        image = cv2.resize(
            cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA), (size, size), None, 0, 0, back
        )
    elif generator.random() < 0.4:
        image = smooth(image, generator)
    values = image.astype(np.float32)
    if generator.random() < 0.4:
        values = 255 * (values / 255) ** np.float32(generator.uniform(0.6, 1.6))
    if generator.random() < 0.3:
        values *= generator.uniform(0.8, 1.2, 3).astype(np.float32)
    if generator.random() < 0.4:
        channels = 3 if generator.random() < 0.5 else 1
        noise = generator.standard_normal((size, size, channels), dtype=np.float32)
        values += np.float32(generator.uniform(1, 9)) * noise
    image = _to_bytes(values)
    if generator.random() < 0.5:
        quality = int(generator.integers(25, 96))
        _, encoded = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        image = np.ascontiguousarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[:, :, ::-1])
    return image


def reclothe(
    image: _Image, made: Occlusion, landmarks: np.ndarray, other: _Image, generator: np.random.Generator
) -> _Image:
    """The occlusion ``made`` of ``image`` (S, S, 3), of another cloth, with its own folds and shades: a piece of
    ``other``, a picture of the same size, or one colour near the skin's."""
    size = image.shape[0]
    opacity = made.occlusion.astype(np.float32)[:, :, None] / 255
    paint = (made.image - image * (1 - opacity)) / np.maximum(opacity, 0.05)
    grey = paint.mean(2, keepdims=True)
    mean = float((grey * opacity).sum() / max(1.0, float(opacity.sum())))
    shade = np.clip(grey / max(20.0, mean), 0.2, 2)
    if generator.random() < 0.55:
        side = int(size * generator.uniform(0.15, 0.8))
        top, left = (int(place) for place in generator.integers(0, size - side + 1, 2))
        piece = np.rot90(other[top : top + side, left : left + side], int(generator.integers(4)))
        piece = np.ascontiguousarray(piece[:, :, generator.permutation(3)])
        cloth = cv2.resize(piece, (size, size), interpolation=cv2.INTER_CUBIC).astype(np.float32)
        shade = np.sqrt(shade)
    else:
        cheek = 0.5 * (landmarks[int(generator.integers(2))] + landmarks[2])
        column, row = (int(place) for place in np.clip(cheek, 2, size - 3))
        skin = image[row - 2 : row + 3, column - 2 : column + 3].mean((0, 1))
        cloth = skin * generator.uniform(0.75, 1.35) + generator.normal(0, 18, 3)
    changed = made.image + opacity * (np.clip(cloth * shade, 0, 255) - paint)
    return _to_bytes(np.where(opacity > 0.02, changed, made.image))


def _seed(generator: np.random.Generator) -> int:
    return int(generator.integers(2**62))


def _to_bytes(values: np.ndarray) -> _Image:
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)


def _to_tensor(image: _Image) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
