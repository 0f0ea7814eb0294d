"""``deocc.ops.rasterise`` against its NumPy reference: ``pytest bench/bench_rasterise.py``.

Fields of 128x128 pixels, of meshes as large as the face mesh, the Surrey Face Model and the Basel Face Model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deocc import ops
from deocc.ops.reference import rasterise as reference

SIZE = (128, 128)


def mesh(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A bulge of rows x columns vertices that covers two thirds of the picture."""
    v, u = np.meshgrid(np.linspace(0, 1, rows), np.linspace(0, 1, columns), indexing="ij")
    x, y = 2 * u - 1, 2 * v - 1
    vertices = np.stack([64 + 50 * x, 64 + 55 * y, -50 * np.sqrt(1 - 0.4 * (x**2 + y**2))], 2)
    number = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = (part.ravel() for part in (number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]))
    triangles = np.concatenate([np.stack([a, c, b], 1), np.stack([b, c, d], 1)])
    coordinates = np.stack([u, v], 2).reshape(-1, 2)
    return vertices.reshape(-1, 3).astype(np.float32), triangles.astype(np.int32), coordinates.astype(np.float32)


MESHES = {"face-mesh-468": (18, 26), "surrey-3448": (56, 62), "basel-53k": (230, 232)}


@pytest.mark.parametrize("name", [pytest.param("face-mesh-468", marks=pytest.mark.gate), "surrey-3448", "basel-53k"])
def test_rasterise(name: str, compare: Callable[..., float], benchmark: Any) -> None:
    inputs = mesh(*MESHES[name])
    benchmark.extra_info["shape"] = [len(inputs[0]), *SIZE]
    compare(lambda: ops.rasterise(*inputs, SIZE), lambda: reference.rasterise(*inputs, SIZE), 100.0)
    benchmark.extra_info["fields a second"] = round(1 / benchmark.stats.stats.median)
