"""The rasteriser: against a brute-force picture, its reference, and what a picture of a surface must be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deocc.errors import InputError
from deocc.ops import backends, rasterise
from deocc.ops.reference import rasterise as reference
from deocc.testing.operators import use_backend

BACKENDS = [name for name, state in backends("rasterise").items() if state.available]

Mesh = tuple[np.ndarray, np.ndarray, np.ndarray]


def sheet(rows: int, columns: int, height: float, width: float, jitter: float = 0.0, seed: int = 0) -> Mesh:
    """A flat sheet from (0, 0) to (width, height), its inner vertices shaken; it carries its vertices' places."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(np.linspace(0, height, rows), np.linspace(0, width, columns), indexing="ij")
    shake = rng.uniform(-jitter, jitter, (2, rows, columns))
    shake[:, [0, -1]] = shake[:, :, [0, -1]] = 0
    vertices = np.stack([x + shake[0], y + shake[1], 0 * x], 2).reshape(-1, 3).astype(np.float32)
    number = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = (part.ravel() for part in (number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]))
    triangles = np.concatenate([np.stack([a, c, b], 1), np.stack([b, c, d], 1)]).astype(np.int32)
    return vertices, triangles, np.ascontiguousarray(vertices[:, :2])


def triangle(*corners: tuple[float, float, float]) -> Mesh:
    vertices = np.array(corners, np.float32)
    return vertices, np.array([[0, 1, 2]], np.int32), np.ascontiguousarray(vertices[:, :2])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("jitter", [0.0, 1.4])
def test_every_pixel_of_a_sheet_is_drawn_once_and_with_its_own_place(backend: str, jitter: float) -> None:
    vertices, triangles, places = sheet(9, 8, 32, 30, jitter)
    with use_backend(backend):
        field, covered = rasterise(vertices, triangles, places, (40, 37))
        # Without the fill rule, pixels on the edges that triangles share would be drawn by both or by none.
        drawn = sum(rasterise(vertices, one[None], places, (40, 37))[1].astype(int) for one in triangles)
    y, x = np.mgrid[:40, :37]
    inside = (x < 30) & (y < 32)  # the top and the left edge belong to the sheet, the others do not
    np.testing.assert_array_equal(covered, inside)
    np.testing.assert_array_equal(drawn, inside)
    np.testing.assert_allclose(field[:, inside], np.stack([x, y])[:, inside], atol=2 / 256)
    assert not field[:, ~inside].any()
    assert field.dtype == np.float32
    assert covered.dtype == bool


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_nearest_is_seen_and_of_equals_the_first(backend: str) -> None:
    far, near = (1, 1, 5), (1, 1, 2)
    vertices = np.array([(0, 0, far[2]), (0, 9, far[2]), (9, 0, far[2]), (0, 0, near[2]), (0, 9, near[2]), (9, 0, 8)])
    values = np.array([1, 1, 1, 2, 2, 2], np.float32)[:, None]
    both = np.array([[0, 1, 2], [3, 4, 5]], np.int32)
    with use_backend(backend):
        for order in (both, both[::-1]):
            ((picture,), covered) = rasterise(vertices.astype(np.float32), order, values, (10, 10))
            # Their depths are 5 and 2 + 6 x / 9, which meet at x = 4.5.
            assert set(picture[:, :5][covered[:, :5]]) == {2}
            assert set(picture[:, 5:][covered[:, 5:]]) == {1}
        level = np.concatenate([vertices[:3], vertices[:3]]).astype(np.float32)
        for order, first in ((both, 1), (both[::-1], 2)):
            assert set(rasterise(level, order, values, (10, 10))[0].ravel()) == {0, first}


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_seen_from_behind_or_without_area_is_not_drawn(backend: str) -> None:
    front = triangle((0, 0, 0), (0, 9, 0), (9, 0, 0))
    line = triangle((0, 0, 0), (4, 4, 0), (9, 9, 0))
    point = triangle((3, 3, 0), (3, 3, 0), (3, 3, 0))
    with use_backend(backend):
        assert rasterise(*front, (10, 10))[1].any()
        for vertices, triangles, values in (line, point, (front[0], front[1][:, ::-1], front[2])):
            assert not rasterise(vertices, triangles, values, (10, 10))[1].any()
        none = np.empty((0, 3), np.int32)
        assert not rasterise(front[0], none, front[2], (10, 10))[1].any()
        assert not rasterise(np.empty((0, 3), np.float32), none, np.empty((0, 2), np.float32), (3, 2))[0].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_triangles_outside_are_cut(backend: str) -> None:
    large = triangle((-9e5, -9e5, 0), (-9e5, 1e6, 0), (1e6, -9e5, 0))
    beside = triangle((50, 0, 0), (50, 9, 0), (59, 0, 0))
    whole = triangle((-5, -5, 0), (-5, 30, 0), (30, -5, 0))
    moved = (whole[0] + np.array([20, 20, 0], np.float32), *whole[1:])
    with use_backend(backend):
        field, covered = rasterise(*large, (12, 10))
        assert covered.all()
        np.testing.assert_allclose(field, np.mgrid[:12, :10][::-1], atol=0.1)
        assert not rasterise(*beside, (12, 10))[1].any()
        cut, full = rasterise(*whole, (12, 10)), rasterise(*moved, (60, 60))
        np.testing.assert_array_equal(cut[1], full[1][20:32, 20:30])
        np.testing.assert_allclose(cut[0], full[0][:, 20:32, 20:30], atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_corners_count_to_a_part_of_a_pixel(backend: str) -> None:
    with use_backend(backend):
        for shift in (0.0, 1 / 256, 0.25, 0.999):
            _, covered = rasterise(*triangle((shift, 0, 0), (shift, 20, 0), (20 + shift, 0, 0)), (20, 30))
            assert covered[0].sum() == 20
            assert covered[0, 0] == (shift == 0)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
@given(seed=st.integers(0, 2**32 - 1), channels=st.integers(0, 4))
@settings(max_examples=30, deadline=None)
def test_any_soup_of_triangles_is_drawn_as_the_specification_does(backend: str, seed: int, channels: int) -> None:
    rng = np.random.default_rng(seed)
    vertices = rng.normal(12, 20, (30, 3)).astype(np.float32)
    vertices[::2] = np.rint(vertices[::2])  # corners and edges on pixels' centres
    triangles = rng.integers(0, 30, (40, 3)).astype(np.int32)
    values = rng.random((30, channels)).astype(np.float32)
    with use_backend(backend):
        field, covered = rasterise(vertices, triangles, values, (25, 31))
        again = rasterise(vertices[::-1][::-1], np.asfortranarray(triangles), values, (25, 31))
    wanted, where = reference.rasterise(vertices, triangles, values, (25, 31))
    np.testing.assert_array_equal(covered, where)
    np.testing.assert_allclose(field, wanted, atol=1e-6)
    np.testing.assert_array_equal(again[0], field)


GOOD = dict(zip(("vertices", "triangles", "attributes"), sheet(3, 3, 4, 4), strict=True), size=(5, 6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vertices": [1]}, "vertices must be a float32 numpy.ndarray of 2 axes, got list"),
        ({"vertices": np.zeros((9, 3))}, r"vertices must be a float32 numpy.ndarray of 2 axes, got float64 \(9, 3\)"),
        ({"triangles": np.zeros((4, 3), np.int64)}, r"triangles must be a int32 .* got int64 \(4, 3\)"),
        ({"attributes": np.zeros(9, np.float32)}, r"attributes must be .* of 2 axes, got float32 \(9,\)"),
        ({"attributes": np.zeros((8, 2), np.float32)}, r"wanted, got \(9, 3\), \(8, 3\) and \(8, 2\)"),
        ({"vertices": np.zeros((9, 2), np.float32)}, r"wanted, got \(9, 2\)"),
        ({"vertices": np.full((9, 3), np.nan, np.float32)}, "must be finite, got NaN"),
        ({"attributes": np.full((9, 2), np.inf, np.float32)}, "must be finite, got NaN"),
        ({"vertices": np.full((9, 3), 2e6, np.float32)}, "less than 1048576 pixels from the origin, got 2e"),
        ({"triangles": np.array([[0, 1, 9]], np.int32)}, "must be numbers of 9 vertices, got 0 to 9"),
        ({"triangles": np.array([[0, 1, -1]], np.int32)}, "must be numbers of 9 vertices, got -1 to 1"),
        ({"size": 5}, "size must be height and width, whole numbers from 1 to 8192, got 5"),
        ({"size": (0, 5)}, r"got \(0, 5\)"),
        ({"size": (5, 9000)}, r"got \(5, 9000\)"),
    ],
)
def test_bad_meshes_are_one_sentence(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        rasterise(**(GOOD | change))  # type: ignore[arg-type]
