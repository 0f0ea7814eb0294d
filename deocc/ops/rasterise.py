"""Drawing a mesh: what its vertices carry, at every pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deocc.errors import InputError
from deocc.ops._registry import Operator, compiled
from deocc.ops.reference import rasterise as reference

if TYPE_CHECKING:
    from numpy.typing import NDArray

_OPERATOR = Operator("rasterise", gpu=None, arrays=True)

_MAX_SIZE = 8192
_FARTHEST = 2**20  # pixels from the origin: products of differences in 1/256 pixel must fit 64 bits


def rasterise(
    vertices: NDArray[np.float32],
    triangles: NDArray[np.int32],
    attributes: NDArray[np.float32],
    size: tuple[int, int],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Draw a mesh under (weak) perspective: attributes of its vertices, interpolated linearly, at every pixel's centre.

    Coordinates are OpenCV's: the centre of the first pixel is (0, 0), y points down. Where several triangles lie, the
    nearest is seen (a z-buffer), and of equally near ones the first. A triangle is drawn when its corners run
    counter-clockwise as one sees them: one seen from behind or without area is not, and neither is what lies outside of
    the picture. Corners are rounded to 1/256 pixel, and a pixel on an edge that two triangles share belongs to
    exactly one of them, so a closed surface has neither holes nor seams. The same picture at every call.

    Args:
        vertices: (V, 3) float32: x, y in pixels, less than 2**20 from the origin; depth, the smaller the nearer.
        triangles: (T, 3) int32, numbers of vertices.
        attributes: (V, C) float32.
        size: height and width of the picture, 1 to 8192.

    Returns:
        field: (C, H, W) float32, 0 where there is no triangle.
        covered: (H, W) bool, where there is one.

    Raises:
        InputError: a type, shape or dtype that does not fit, values that are not finite or too far out, or a number
            that is no vertex's.
    """
    for name, value, dtype in (
        ("vertices", vertices, np.float32),
        ("triangles", triangles, np.int32),
        ("attributes", attributes, np.float32),
    ):
        if not isinstance(value, np.ndarray) or value.dtype != dtype or value.ndim != 2:
            got = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
            raise InputError(f"rasterise: {name} must be a {dtype.__name__} numpy.ndarray of 2 axes, got {got}")
    if vertices.shape[1] != 3 or triangles.shape[1] != 3 or len(attributes) != len(vertices):
        raise InputError(
            "rasterise: vertices (V, 3), triangles (T, 3) and attributes (V, C) are wanted, "
            f"got {vertices.shape}, {triangles.shape} and {attributes.shape}"
        )
    if (
        not isinstance(size, tuple)
        or len(size) != 2
        or not all(isinstance(side, int) and 1 <= side <= _MAX_SIZE for side in size)
    ):
        raise InputError(f"rasterise: size must be height and width, whole numbers from 1 to {_MAX_SIZE}, got {size!r}")
    if not np.isfinite(vertices).all() or not np.isfinite(attributes).all():
        raise InputError("rasterise: vertices and attributes must be finite, got NaN or infinite values")
    if vertices.size and np.abs(vertices[:, :2]).max() >= _FARTHEST:
        farthest = np.abs(vertices[:, :2]).max()
        raise InputError(f"rasterise: vertices must be less than {_FARTHEST} pixels from the origin, got {farthest:g}")
    if triangles.size and not (triangles.min() >= 0 and triangles.max() < len(vertices)):
        raise InputError(
            f"rasterise: triangles must be numbers of {len(vertices)} vertices, "
            f"got {triangles.min()} to {triangles.max()}"
        )
    if _OPERATOR.uses_reference("cpu") or compiled is None:
        return reference.rasterise(vertices, triangles, attributes, size)
    field, covered = compiled.rasterise(
        np.ascontiguousarray(vertices), np.ascontiguousarray(triangles), np.ascontiguousarray(attributes), *size
    )
    return field, covered
