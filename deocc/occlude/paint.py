"""Seeded draws and integer drawing: what every kind of occlusion is painted with.

The same seed must give the same bytes on every machine, so this package keeps to operations that every machine rounds
alike: the raw 64-bit stream of PCG64 (which NumPy promises never to change), additions, multiplications, divisions and
square roots (each rounded once, as IEEE 754 says, and never fused, because each is an operation of its own), integer
sums, and of OpenCV only ``fillPoly`` and ``polylines`` on a grid of 1/16 pixel, ``GaussianBlur`` of uint8 and
``resize`` with ``INTER_LINEAR_EXACT``, which are fixed-point. No transcendental functions, no matrix products, no
``interp``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
from numpy.random import PCG64, SeedSequence
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Colour = tuple[int, int, int]
T = TypeVar("T")


class Layer(NamedTuple):
    """Paint for a part of an image.

    Attributes:
        top, left: where its upper left pixel lies in the image.
        fill: uint8 (h, w, 3), RGB.
        alpha: uint8 (h, w), 255 = opaque.
    """

    top: int
    left: int
    fill: U8
    alpha: U8


class Box(NamedTuple):
    """A rectangle of pixels, ends exclusive."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left


class Draw:
    """A stream of seeded choices, each written down under its name in :attr:`record`."""

    def __init__(self, seed: int) -> None:
        self.record: dict[str, Any] = {}
        self._bits = PCG64(SeedSequence(seed))
        self._stock: list[int] = []

    def fraction(self) -> float:
        """A number in [0, 1) that is not recorded."""
        if not self._stock:
            self._stock = self._bits.random_raw(64).tolist()
        return (self._stock.pop() >> 11) * 2.0**-53

    def uniform(self, name: str, low: float, high: float) -> float:
        """A number in [low, high], rounded to four decimals so that the record is exactly what was used."""
        value = round(low + (high - low) * self.fraction(), 4)
        self.record[name] = value
        return value

    def integer(self, name: str, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        value = low + int((high - low + 1) * self.fraction())
        self.record[name] = value
        return value

    def chance(self, name: str, probability: float) -> bool:
        """True with this probability."""
        value = self.fraction() < probability
        self.record[name] = value
        return value

    def pick(self, name: str, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """One of ``options``, recorded as it is: options are JSON-able."""
        if weights is None:
            value = options[int(len(options) * self.fraction())]
        else:
            left = self.fraction() * sum(weights)
            for option, weight in zip(options, weights, strict=True):
                value = option
                left -= weight
                if left < 0:
                    break
        self.record[name] = value
        return value

    def colour(self, name: str, base: Sequence[int], spread: int = 0) -> Colour:
        """An RGB colour within ``spread`` of ``base`` in every channel."""
        red, green, blue = (
            min(255, max(0, channel - spread + int((2 * spread + 1) * self.fraction()))) for channel in base
        )
        self.record[name] = [red, green, blue]
        return red, green, blue

    def any_colour(self, name: str) -> Colour:
        """Any RGB colour; black, white, greys and saturated colours come more often than by chance."""
        style = int(8 * self.fraction())
        if style == 0:
            return self.colour(name, (12, 12, 12), 12)
        if style == 1:
            return self.colour(name, (242, 242, 242), 12)
        if style == 2:
            grey = int(256 * self.fraction())
            return self.colour(name, (grey, grey, grey), 4)
        base = [int(256 * self.fraction()) for _ in range(3)]
        if style >= 5:  # stretch towards a saturated colour
            low, high = min(base), max(base)
            base = [(channel - low) * 255 // max(1, high - low) for channel in base]
            strength = 100 + int(156 * self.fraction())
            base = [channel * strength // 255 for channel in base]
        return self.colour(name, base, 6)


def curve(points: Sequence[tuple[float, float]], steps: int = 6) -> F64:
    """A smooth open curve through ``points`` (Catmull-Rom), ``steps`` pieces between neighbours: (n, 2)."""
    knots = np.array([points[0], *points, points[-1]], np.float64)
    a, b, c, d = (knots[i : len(knots) - 3 + i, None, :] for i in range(4))
    t = (np.arange(steps, dtype=np.float64) / steps)[None, :, None]
    smooth = 0.5 * (2 * b + t * ((c - a) + t * ((2 * a - 5 * b + 4 * c - d) + t * (3 * b - a - 3 * c + d))))
    return np.concatenate([smooth.reshape(-1, 2), knots[-1:]])


def ribbon(points: F64, width: float | F64) -> F64:
    """The outline (2n, 2) of a band along ``points`` (n, 2); ``width`` is its full width, for each point or for all."""
    along = np.empty_like(points)
    np.subtract(points[2:], points[:-2], along[1:-1])
    np.subtract(points[1], points[0], along[0])
    np.subtract(points[-1], points[-2], along[-1])
    x, y = along[:, 0], along[:, 1]
    half = 0.5 * width / np.maximum(np.sqrt(x * x + y * y), 1e-6)
    normal = np.empty_like(points)
    np.multiply(y, -half, normal[:, 0])
    np.multiply(x, half, normal[:, 1])
    return np.concatenate([points + normal, (points - normal)[::-1]])


def disc(centre: tuple[float, float], radius_x: float, radius_y: float, points: int = 24) -> F64:
    """An ellipse as a polygon (n, 2), without trigonometry: quarter arcs by the rational parametrisation."""
    quarter = points // 4
    t = np.arange(quarter, dtype=np.float64) / quarter
    c, s = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    x, y = np.concatenate([c, -s, -c, s]), np.concatenate([s, c, -s, -c])
    return np.stack([centre[0] + radius_x * x, centre[1] + radius_y * y], axis=1)


def bounds(polygons: Sequence[F64], shape: tuple[int, int], margin: float) -> Box:
    """The box around polygons in pixels, ``margin`` wider on each side, inside an image of (height, width)."""
    low = np.min([polygon.min(axis=0) for polygon in polygons], axis=0)
    high = np.max([polygon.max(axis=0) for polygon in polygons], axis=0)
    height, width = shape
    left, top = (int(min(max(low[i] - margin, 0), (width, height)[i] - 1)) for i in (0, 1))
    right, bottom = (int(min(max(high[i] + margin + 2, (left, top)[i] + 1), (width, height)[i])) for i in (0, 1))
    return Box(top, left, bottom, right)


def _fixed(points: F64, box: Box) -> NDArray[np.int32]:
    """Pixels of the whole image -> sixteenths of a pixel of the box, clipped so that OpenCV cannot overflow."""
    corners = np.empty(points.shape)
    np.subtract(points[:, 0], box.left, corners[:, 0])
    np.subtract(points[:, 1], box.top, corners[:, 1])
    corners *= 16.0
    np.minimum(np.maximum(corners, -160000, out=corners), 160000, out=corners)
    return np.rint(corners, corners).astype(np.int32)


def cover(alpha: U8, box: Box, polygon: F64, value: int = 255) -> None:
    """Fill ``polygon`` (n, 2), in pixels of the whole image, into the part ``alpha`` of it, with soft edges."""
    cv2.fillPoly(alpha, [_fixed(polygon, box)], value, cv2.LINE_AA, 4)


def trace(alpha: U8, box: Box, path: F64, width: int) -> None:
    """Draw a round brush of ``width`` whole pixels along ``path`` (n, 2), in pixels of the whole image."""
    cv2.polylines(alpha, [_fixed(path, box)], False, 255, width, cv2.LINE_AA, 4)


def soften(plane: U8, sigma: float) -> U8:
    """Gaussian blur; OpenCV promises bit-exact results for uint8."""
    if sigma < 0.3:
        return plane
    size = 2 * int(2.5 * sigma + 0.5) + 1
    return np.asarray(cv2.GaussianBlur(plane, (max(3, size), max(3, size)), sigma, borderType=cv2.BORDER_REPLICATE))


def over(fill: F32, colour: Sequence[float] | F32, alpha: U8, opacity: float = 1.0) -> None:
    """Blend ``colour`` into ``fill`` float (h, w, 3), in place, where ``alpha`` (h, w) says."""
    weight = alpha * np.float32(opacity / 255.0)
    fill += (np.asarray(colour, np.float32) - fill) * weight[..., None]


def to_bytes(fill: F32) -> U8:
    """Clip to [0, 255] and round."""
    np.clip(fill, 0, 255, out=fill)
    return np.rint(fill).astype(np.uint8)


TILE = 256


@cache
def noise(name: str) -> F32:
    """A tile (256, 256) of noise in about [-1, 1], which repeats without a seam.

    ``grain`` is white, ``smooth`` is clouds, ``crease`` has soft ridges like folds of cloth, ``blobs`` is clouds
    stretched until they are flat with steep edges.
    """
    rng = PCG64(SeedSequence([11, *name.encode()]))

    def octave(cells: int) -> NDArray[np.int64]:
        values = (rng.random_raw(cells * cells) >> 56).astype(np.uint8).reshape(cells, cells)
        wrapped = np.pad(values, 2, mode="wrap")
        step = TILE // cells
        side = (cells + 4) * step
        large = soften(
            np.asarray(cv2.resize(wrapped, (side, side), interpolation=cv2.INTER_LINEAR_EXACT), np.uint8), step / 3
        )
        cut = 2 * step
        return large[cut : cut + TILE, cut : cut + TILE].astype(np.int64) - 128

    if name == "grain":
        values = (rng.random_raw(TILE * TILE) >> 56).astype(np.int64).reshape(TILE, TILE) - 128
    elif name == "crease":
        folded = [np.abs(octave(cells)) for cells in (4, 8, 16)]
        values = 4 * (folded[0] + folded[1] // 2 + folded[2] // 4) - 160
    else:
        values = octave(4) + octave(8) // 2 + octave(16) // 4
        values *= 8 if name == "blobs" else 2
    tile = np.clip(values, -128, 127).astype(np.float32) / np.float32(128)
    tile.setflags(write=False)
    return tile


def sample(name: str, across: F32, down: F32, offset: tuple[int, int]) -> F32:
    """Look ``noise(name)`` up at (across, down) in tile pixels; nearest, repeating."""
    i = (down.astype(np.int32) + offset[0]) & (TILE - 1)
    j = (across.astype(np.int32) + offset[1]) & (TILE - 1)
    return np.asarray(noise(name).ravel().take((i << 8) | j))
