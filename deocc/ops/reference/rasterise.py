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
    corners = np.rint(vertices[:, :2].astype(np.float64) * SUBPIXELS).astype(np.int64)[triangles]
    # The pixels whose centres can lie inside: (T, 2), x and y.
    first = np.maximum(-(-corners.min(axis=1) // SUBPIXELS), 0)
    last = np.minimum(corners.max(axis=1) // SUBPIXELS, (size[1] - 1, size[0] - 1))
    a, b, c = corners.transpose(1, 2, 0)
    area = _side(a, c, *b)  # twice; negative when seen from behind
    for t in np.flatnonzero((area > 0) & (first <= last).all(axis=1)):
        a, b, c = corners[t]
        box = np.s_[first[t, 1] : last[t, 1] + 1, first[t, 0] : last[t, 0] + 1]
        y, x = np.mgrid[box] * SUBPIXELS
        # A corner's weight is the area between the pixel and the two other corners. All three are positive inside.
        edges = [(c, b), (a, c), (b, a)]
        sides = [_side(*edge, x, y) for edge in edges]
        inside = np.all([side >= _least(*edge) for side, edge in zip(sides, edges, strict=True)], axis=0)
        weights = sides[1] / area[t], sides[2] / area[t]
        depth = _mixed(weights, *vertices[triangles[t], 2].astype(np.float64))
        drawn = inside & (depth < nearest[box])
        nearest[box][drawn] = depth[drawn]
        value = _mixed(weights, *attributes[triangles[t]].astype(np.float64)[:, :, None, None])
        field[:, *box][:, drawn] = value[:, drawn]
    return field, nearest < np.inf


def _mixed(weights: tuple[Any, Any], a0: Any, a1: Any, a2: Any) -> Any:
    return a0 + weights[0] * (a1 - a0) + weights[1] * (a2 - a0)


def _side(a: NDArray[np.int64], b: NDArray[np.int64], x: Any, y: Any) -> Any:
    """Positive to one side of the line through a and b; twice the area of the triangle that (x, y) makes with them."""
    return (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])


def _least(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """0 if pixels exactly on the edge belong to the triangle, which then lies below or to the right of it, else 1."""
    return 0 if b[1] < a[1] or (b[1] == a[1] and b[0] > a[0]) else 1
