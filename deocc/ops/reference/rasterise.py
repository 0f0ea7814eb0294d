"""Reference of :func:`deocc.ops.rasterise`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUBPIXELS = 256
"""Corners are rounded to this part of a pixel: what follows is exact in integers."""


def rasterise(
    vertices: NDArray[np.float32],
    triangles: NDArray[np.int32],
    attributes: NDArray[np.float32],
    size: tuple[int, int],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Triangle after triangle: which pixels' centres lie in it, and is it the nearest there so far?

    Args:
        vertices: (V, 3): x, y in pixels and depth, the smaller the nearer.
        triangles: (T, 3) numbers of vertices, counter-clockwise as one sees them.
        attributes: (V, C).
        size: height and width.

    Returns:
        field (C, H, W) and covered (H, W).
    """
    field = np.zeros((attributes.shape[1], *size), np.float32)
    nearest = np.full(size, np.inf)
    corners = np.rint(vertices[:, :2].astype(np.float64) * SUBPIXELS).astype(np.int64)
    for triangle in triangles:
        a, b, c = corners[triangle]
        area = _side(a, c, *b)
        if area <= 0:  # seen from behind or from the edge
            continue
        left, top = np.maximum(-(-np.minimum(np.minimum(a, b), c) // SUBPIXELS), 0)
        right, bottom = np.minimum(np.maximum(np.maximum(a, b), c) // SUBPIXELS, (size[1] - 1, size[0] - 1))
        if left > right or top > bottom:  # no pixel's centre is near
            continue
        box = np.s_[top : bottom + 1, left : right + 1]
        y, x = np.mgrid[box] * SUBPIXELS
        # A corner's weight is the area between the pixel and the two other corners. All three are positive inside.
        sides = [(c, b), (a, c), (b, a)]
        weights = np.stack([_side(*edge, x, y) for edge in sides])
        inside = np.all([weight >= _least(*edge) for weight, edge in zip(weights, sides, strict=True)], axis=0)
        _, second, third = weights / area
        depth, depth1, depth2 = vertices[triangle, 2].astype(np.float64)
        here = depth + second * (depth1 - depth) + third * (depth2 - depth)
        drawn = inside & (here < nearest[box])
        nearest[box][drawn] = here[drawn]
        value, value1, value2 = attributes[triangle].astype(np.float64)[:, :, None, None]
        mixed = value + second * (value1 - value) + third * (value2 - value)
        field[:, *box][:, drawn] = mixed[:, drawn]
    return field, nearest < np.inf


def _side(a: NDArray[np.int64], b: NDArray[np.int64], x: Any, y: Any) -> Any:
    """Positive to one side of the line through a and b; twice the area of the triangle that (x, y) makes with them."""
    return (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])


def _least(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """0 if pixels exactly on the edge belong to the triangle, which then lies below or to the right of it, else 1."""
    return 0 if b[1] < a[1] or (b[1] == a[1] and b[0] > a[0]) else 1
