"""Where the face is: a frame, a head pose and the light, from five landmarks and the pixels around them.

The *frame* has its origin midway between the eyes, x along the eyes to the viewer's right, y down the face. Lengths are
in *eye distances* of a face seen from the front, so (0, 0.57) is the tip of the nose, (0, 1.16) the mouth and about
(0, 1.85) the chin of anybody. The head is taken as an upright cylinder of radius :data:`RADIUS`; a point of it is named
by ``u`` (its x as seen from the front) and ``v`` (its y).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deocc.errors import InputError
from deocc.occlude.paint import F32, F64, U8, Box

RADIUS = 1.15
MOUTH_Y = 1.156
LUT = 256
"""Entries of a look-up table for one eye distance."""


class Light(NamedTuple):
    """How the face is lit.

    Attributes:
        level: brightness of a white thing, 1 = as white as white gets.
        slope: from -1 (lit from the viewer's left) to 1 (lit from the right).
        tint: what a white thing looks like, RGB, mean 1.
    """

    level: float
    slope: float
    tint: tuple[float, float, float]


@dataclass(frozen=True)
class Grid:
    """Face coordinates of every pixel of a box.

    Attributes:
        x, y: float32 (h, w), the frame's coordinates measured from the head's axis.
        index: int32 (h, w), position of ``x`` in tables of :func:`across` values.
        u, v: float32 (h, w), coordinates on the cylinder.
    """

    x: F32
    y: F32
    index: NDArray[np.int32]
    u: F32
    v: F32


@dataclass(frozen=True)
class Face:
    """A face in a photo.

    Attributes:
        image: uint8 (H, W, 3) RGB.
        landmarks: float64 (5, 2).
        origin: pixel midway between the eyes.
        cos_roll, sin_roll: direction of the frame's x axis in the image.
        unit: pixels of one eye distance across; unit_y: the same down the face.
        sin_yaw, cos_yaw: positive when the face turns to the viewer's right.
        sin_pitch: positive when it looks down.
    """

    image: U8
    landmarks: F64
    origin: tuple[float, float]
    cos_roll: float
    sin_roll: float
    unit: float
    unit_y: float
    sin_yaw: float
    cos_yaw: float
    sin_pitch: float

    @property
    def axis(self) -> float:
        """x of the head's axis, in eye distances."""
        return -0.98 * self.sin_yaw

    def place(self, points: F64) -> F64:
        """Flat points (n, 2) of the frame, in eye distances -> pixels (n, 2)."""
        return self._place(points[:, 0], points[:, 1])

    def _place(self, x: F64, y: F64) -> F64:
        x, y = x * self.unit, y * self.unit_y
        placed = np.empty((len(x), 2))
        placed[:, 0] = self.origin[0] + (x * self.cos_roll - y * self.sin_roll)
        placed[:, 1] = self.origin[1] + (x * self.sin_roll + y * self.cos_roll)
        return placed

    def unplace(self, pixels: F64) -> F64:
        """The inverse of :meth:`place`."""
        x, y = pixels[:, 0] - self.origin[0], pixels[:, 1] - self.origin[1]
        placed = np.empty((len(x), 2))
        placed[:, 0] = (x * self.cos_roll + y * self.sin_roll) / self.unit
        placed[:, 1] = (y * self.cos_roll - x * self.sin_roll) / self.unit_y
        return placed

    def project(self, points: F64, lift: float = 0.0) -> F64:
        """Points (n, 2) = (u, v) on the head -> pixels (n, 2); ``lift`` raises the middle of the face off the skin.

        A point that has turned out of sight comes out on the head's silhouette.
        """
        u, v = points[:, 0], points[:, 1]
        sine = np.minimum(np.maximum(u * (1 / RADIUS), -1.0), 1.0)
        cosine = np.sqrt(1 - sine * sine)
        across_, down = u * (1 / 0.75), v * (1 / 0.95) - 1
        radius = RADIUS + lift * np.maximum(1 - across_ * across_, 0) * np.maximum(1 - down * down, 0)
        front = cosine * self.cos_yaw - sine * self.sin_yaw
        side = sine * self.cos_yaw + cosine * self.sin_yaw
        hidden = front < 0
        if hidden.any():
            side = np.where(hidden, np.where(side < 0, -1.0, 1.0), side)
            front = np.maximum(front, 0)
        x = self.axis + radius * side + (u - sine * RADIUS)
        return self._place(x, v + self.sin_pitch * (radius * front - 0.98))

    def grid(self, box: Box) -> Grid:
        """Face coordinates of the pixels of ``box``: the inverse of :meth:`project` on the bare cylinder."""
        columns = np.arange(box.left, box.right, dtype=np.float64) - self.origin[0]
        rows = np.arange(box.top, box.bottom, dtype=np.float64) - self.origin[1]
        cos_x, sin_x = self.cos_roll / self.unit, self.sin_roll / self.unit
        cos_y, sin_y = self.cos_roll / self.unit_y, self.sin_roll / self.unit_y
        x = (columns * cos_x - self.axis).astype(np.float32)[None, :] + (rows * sin_x).astype(np.float32)[:, None]
        y = (columns * -sin_y).astype(np.float32)[None, :] + (rows * cos_y).astype(np.float32)[:, None]
        index = np.clip((x + np.float32(2)) * np.float32(LUT), 0, 4 * LUT - 1).astype(np.int32)
        side, front = across()
        sine = side * self.cos_yaw - front * self.sin_yaw
        # A face seen from the side shows no more than its near half; the far half is squeezed, never folded over.
        u_table = (sine * RADIUS + (np.arange(4 * LUT) / LUT - 2 - side * RADIUS)).astype(np.float32)
        z_table = (self.sin_pitch * (front * RADIUS - 0.98)).astype(np.float32)
        return Grid(x, y, index, u_table.take(index), y - z_table.take(index))

    def patch(self, x: float, y: float, radius: float) -> tuple[float, float, float]:
        """Mean RGB of a square around a point of the frame; the nearest pixels inside the image."""
        centre = self.place(np.array([[x, y]]))[0]
        height, width = self.image.shape[:2]
        half = max(1, int(radius * self.unit))
        column = int(min(max(centre[0], 0), width - 1))
        row = int(min(max(centre[1], 0), height - 1))
        pixels = self.image[max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1]
        count = pixels.shape[0] * pixels.shape[1]
        red, green, blue = (int(value) / count for value in pixels.sum(axis=(0, 1), dtype=np.int64))
        return red, green, blue

    @cached_property
    def light(self) -> Light:
        """The light, from the skin that most occlusions leave visible or only brush, and from the whole picture."""
        luma = [(r * 77 + g * 150 + b * 29) / 256 for r, g, b in (self.skin_left, self.skin_right)]
        sky = self.patch(0.0, -0.05, 0.15)
        skin = max(luma[0], luma[1], (sky[0] * 77 + sky[1] * 150 + sky[2] * 29) / 256)
        height, width = self.image.shape[:2]
        thin = self.image[:: max(1, height // 24), :: max(1, width // 24), 1]
        bright = int(np.sort(thin, axis=None)[thin.size * 9 // 10])
        level = min(1.1, max(0.35, 0.5 * skin / 165 + 0.5 * bright / 225))
        slope = (luma[1] - luma[0]) / (luma[0] + luma[1] + 20)
        sums = self.image[:: max(1, height // 24), :: max(1, width // 24)].sum(axis=(0, 1), dtype=np.int64)
        mean = [int(value) / thin.size + 20 for value in sums]
        grey = (mean[0] + mean[1] + mean[2]) / 3
        tint = [1 + 0.25 * (min(1.4, max(0.6, value / grey)) - 1) for value in mean]
        return Light(level, min(1.0, max(-1.0, 2 * slope)), (tint[0], tint[1], tint[2]))

    @cached_property
    def skin_left(self) -> tuple[float, float, float]:
        """Mean RGB of the cheek on the viewer's left."""
        return self.patch(-0.5 * self.cos_yaw, 0.5, 0.12)

    @cached_property
    def skin_right(self) -> tuple[float, float, float]:
        """Mean RGB of the cheek on the viewer's right."""
        return self.patch(0.5 * self.cos_yaw, 0.5, 0.12)

    @cached_property
    def blur(self) -> float:
        """About how far the photo's edges are spread, in pixels: 0.4 for a sharp one, 2 for a soft one."""
        height, width = self.image.shape[:2]
        reach = int(self.unit)
        row, column = int(self.origin[1]), int(self.origin[0])
        rows = slice(max(0, min(height - 1, row - reach // 2)), max(1, min(height, row + reach // 2 + 1)))
        columns = slice(max(0, min(width - 4, column - reach)), max(4, min(width, column + reach)))
        step = max(1, reach // 40)
        green = self.image[rows, columns, 1][::step].astype(np.int32)
        if green.shape[1] < 3:
            return 0.6
        near = int(np.abs(green[:, 1:-1] - green[:, :-2]).sum())
        far = int(np.abs(green[:, 2:] - green[:, :-2]).sum())
        ratio = far / (near + 1)  # 1.4 in white noise, 2 where everything is a gentle slope
        return min(2.0, max(0.3, 0.3 + 2.2 * (ratio - 1.62)))


@cache
def across() -> tuple[F64, F64]:
    """Sine and cosine of the angle at which a ray meets the head, for x in [-2, 2) in steps of 1/LUT from its axis."""
    sine = np.clip((np.arange(4 * LUT) / LUT - 2) / RADIUS, -1, 1)
    return sine, np.sqrt(1 - sine * sine)


def find_face(image: U8, landmarks: F64) -> Face:
    """The frame and pose of a face.

    Args:
        image: uint8 (H, W, 3) RGB.
        landmarks: float64 (5, 2): eye, eye, nose, mouth corner, mouth corner; each pair from the viewer's left.

    Raises:
        InputError: points that cannot be a face.
    """
    (lx, ly), (rx, ry), (nx, ny), (ax, ay), (bx, by) = landmarks.tolist()
    eye_x, eye_y = 0.5 * (lx + rx), 0.5 * (ly + ry)
    down_x, down_y = 0.5 * (ax + bx) - eye_x, 0.5 * (ay + by) - eye_y
    # Eyes, mouth corners, and the way down turned by a right angle all point along x; the longer, the surer.
    dir_x, dir_y = (rx - lx) + (bx - ax) + down_y, (ry - ly) + (by - ay) - down_x
    length = sqrt(dir_x * dir_x + dir_y * dir_y)
    height = sqrt(down_x * down_x + down_y * down_y)
    if length < 2.0 or height < 1.0:
        raise InputError(
            "the five landmarks must be eye, eye, nose, mouth corner, mouth corner of a face, "
            f"got points that lie too close together: {[[round(v, 1) for v in p] for p in landmarks.tolist()]}"
        )
    cos_roll, sin_roll = dir_x / length, dir_y / length
    eyes = abs((rx - lx) * cos_roll + (ry - ly) * sin_roll)
    nose_x = (nx - eye_x) * cos_roll + (ny - eye_y) * sin_roll
    nose_y = (ny - eye_y) * cos_roll - (nx - eye_x) * sin_roll
    mouth_x = down_x * cos_roll + down_y * sin_roll
    mouth_y = max(0.3 * height, down_y * cos_roll - down_x * sin_roll)
    offset = nose_x - 0.5 * mouth_x
    tangent = min(1.7, max(-1.7, offset / (0.52 * max(eyes, 0.25 * mouth_y))))
    cos_yaw = 1 / sqrt(1 + tangent * tangent)
    upright = mouth_y / MOUTH_Y
    unit = min(1.3 * upright, max(0.8 * upright, eyes / cos_yaw))
    sin_pitch = min(0.35, max(-0.35, (nose_y / mouth_y - 0.55) / 0.7))
    return Face(
        image=image,
        landmarks=landmarks,
        origin=(eye_x, eye_y),
        cos_roll=cos_roll,
        sin_roll=sin_roll,
        unit=unit,
        unit_y=0.5 * (upright + min(unit, 1.1 * upright)),
        sin_yaw=tangent * cos_yaw,
        cos_yaw=cos_yaw,
        sin_pitch=sin_pitch,
    )
