"""Morphable models: a mean face, what varies about it, and fitting that to a photo."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from deocc.errors import InputError, MissingDependencyError, UsageError
from deocc.faces.crop import Points
from deocc.faces.face_mesh import FaceModel, default_mesh, unwrap
from deocc.faces.matlab import read_matlab
from deocc.files import BAD_ARCHIVE, sha256

Array = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

# Landmark of the iBUG 68 (Sagonas et al. 2013; counted from 1) -> point of the face mesh, but for the jaw line, whose
# landmarks lie where the head's outline happens to be.
_MESH_POINTS = dict(
    zip(
        [9, *range(18, 69)],
        [
            152,  # chin
            *(70, 63, 105, 66, 107, 336, 296, 334, 293, 300),  # brows
            *(168, 197, 5, 4, 98, 97, 2, 326, 327),  # nose
            *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),  # eyes
            *(61, 40, 37, 0, 267, 270, 291, 321, 314, 17, 84, 91),  # lips outside
            *(78, 81, 13, 311, 308, 402, 14, 178),  # and inside
        ],
        strict=True,
    )
)
# Names in the Basel Face Models of 2017 and 2019, where left and right are the person's own.
_BASEL_NAMES = {
    "center.chin.tip": 9,
    "center.nose.tip": 31,
    "right.eye.corner_outer": 37,
    "right.eye.corner_inner": 40,
    "left.eye.corner_inner": 43,
    "left.eye.corner_outer": 46,
    "right.lips.corner": 49,
    "center.lips.upper.outer": 52,
    "left.lips.corner": 55,
    "center.lips.lower.outer": 58,
}
_FEWEST = 6  # landmarks that a fit needs
_NOISE = 0.03  # standard deviation of a landmark's place, as a part of how far landmarks spread about their middle
_ROUNDS = 10  # of pose and shape


class _Parts(NamedTuple):
    """What a file holds: the arguments of MorphableModel."""

    mean: npt.NDArray[Any]
    shapes: npt.NDArray[Any]
    expressions: npt.NDArray[Any]
    triangles: npt.NDArray[Any]
    landmarks: dict[int, int]


class MorphableModel:
    """A morphable model of faces, fitted by landmarks under weak perspective.

    Pose (rotation, scale, shift: the scaled-orthographic camera of least squares) and coefficients (ridge regression,
    which takes every coefficient for normally distributed) are found in turns. The landmarks in a photo are the
    packaged face mesh's points; of the iBUG 68 those of the jaw line are not used, but for the chin.

    Args:
        mean: (V, 3) in any unit: x to the right of a photo, y up, z to the front.
        shapes: (K, V, 3), each one standard deviation of a component of identity; K may be 0.
        expressions: (M, V, 3), each the displacements of an expression, as large as they usually are; M may be 0.
        triangles: (T, 3) numbers of vertices, all in one sense of rotation.
        landmarks: number of a landmark in the iBUG 68, from 1 -> its vertex; at least six that can be used.
        title: what it is, for the record of what was made with it.

    Attributes:
        mean, shapes, expressions: as above, float32.
        triangles: (T, 3) int32, counter-clockwise seen from outside.
        landmarks: as above, without those that are not used.
        coordinates: (V, 2) float32, of the mean by cylindrical unwrapping: see :class:`DenseField`.

    Raises:
        InputError: arrays that do not fit together or are not finite, or landmarks that are too few.
    """

    def __init__(
        self,
        mean: npt.NDArray[Any],
        shapes: npt.NDArray[Any],
        expressions: npt.NDArray[Any],
        triangles: npt.NDArray[Any],
        landmarks: Mapping[int, int],
        title: str = "morphable model",
    ) -> None:
        for name, value, wanted in (
            ("mean", mean, (None, 3)),
            ("shapes", shapes, (None, len(mean), 3)),
            ("expressions", expressions, (None, len(mean), 3)),
            ("triangles", triangles, (None, 3)),
        ):
            if value.ndim != len(wanted) or any(n not in (None, m) for n, m in zip(wanted, value.shape, strict=True)):
                what = str(wanted).replace("None", "any")
                raise InputError(f"a morphable model's {name} must have shape {what}, got {value.shape}")
            if value.dtype.kind not in "fiu" or not np.isfinite(value).all():
                raise InputError(f"a morphable model's {name} must be finite numbers, got {value.dtype}")
        if len(mean) < 3 or not (np.ptp(mean, axis=0) > 0).all():
            raise InputError("a morphable model's mean must have an extent along x, y and z")
        if not len(triangles) or triangles.min() < 0 or triangles.max() >= len(mean):
            raise InputError(f"a morphable model's triangles must be numbers of its {len(mean)} vertices")
        self.landmarks = {number: vertex for number, vertex in landmarks.items() if number in _MESH_POINTS}
        if len(self.landmarks) < _FEWEST:
            raise InputError(
                f"a morphable model needs {_FEWEST} landmarks of the iBUG 68 (9 and 18 to 68) or more, "
                f"got {len(self.landmarks)}"
            )
        wrong = [vertex for vertex in self.landmarks.values() if not 0 <= vertex < len(mean)]
        if wrong:
            raise InputError(
                f"a morphable model's landmarks must be numbers of its {len(mean)} vertices, got {wrong[0]}"
            )
        self.title = title
        self.mean = mean.astype(np.float32)
        self.shapes = shapes.astype(np.float32)
        self.expressions = expressions.astype(np.float32)
        self.triangles: npt.NDArray[np.int32] = triangles.astype(np.int32)
        a, b, c = (self.mean[corner, :2].T for corner in self.triangles.T)
        areas = (b - a)[0] * (c - a)[1] - (b - a)[1] * (c - a)[0]
        if areas.sum() < 0:  # it looks to the front, where most of its surface is
            self.triangles = self.triangles[:, ::-1].copy()
        self.coordinates = unwrap(self.mean)

    @classmethod
    def read(cls, path: str | os.PathLike[str], landmarks: Mapping[int, int] | None = None) -> Self:
        """Read a model from a file that you have; none is packaged, since their licences forbid it.

        - ``.npz``: ``mean`` (3V), ``shape_basis`` (3V, K) with ``shape_eigenvalues`` (K), ``blendshapes`` (M, 3V),
          ``triangles`` (T, 3), and ``landmark_68_index`` with ``landmark_vertex``: the Surrey Face Model (Huber et al.
          2016), say.
        - ``.mat``: the Basel Face Model of 2009, ``01_MorphableModel.mat``. It has no expressions and no landmarks.
        - ``.h5``: the Basel Face Models of 2017 and 2019; needs h5py. Their ten named landmarks are used unless others
          are given.

        Args:
            path: the file.
            landmarks: number of a landmark in the iBUG 68, from 1 -> its vertex. None takes those in
                ``PATH.landmarks.json``, an object such as ``{"31": 8320}``, where that is there, else the file's own.

        Raises:
            InputError: the file is missing or damaged, is no such model, or has no landmarks.
            MissingDependencyError: an ``.h5`` and no h5py.
        """
        path = Path(path)
        digest = sha256(path)
        readers = {".npz": _read_npz, ".mat": _read_mat, ".h5": _read_h5}
        if path.suffix not in readers:
            raise InputError(f"{path} must be a morphable model with the suffix {', '.join(readers)}")
        try:
            parts = readers[path.suffix](path)
        except (TypeError, *BAD_ARCHIVE) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} is no morphable model that deocc reads ({error})") from error
        if landmarks is None:
            landmarks = _read_landmarks(path.with_name(path.name + ".landmarks.json")) or parts.landmarks
        if not landmarks:
            raise InputError(f"{path} has no landmarks, give them in {path.name}.landmarks.json beside it")
        try:
            return cls(*parts._replace(landmarks=dict(landmarks)), title=f"{path.name} {digest[:16]}")
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def fit(self, image: Array, landmarks: Points) -> Floats | None:
        """See :meth:`FaceModel.fit`.

        Raises:
            InputError: not such arrays, or a face that lies wholly beyond the photo.
        """
        points = default_mesh().fit(image, landmarks)
        if points is None:
            return None
        return self.fit_points(points[[_MESH_POINTS[number] for number in self.landmarks], :2])

    def fit_points(self, points: Points) -> Floats:
        """Place the model so that its landmarks come to lie on points, as nearly as a likely face can.

        Args:
            points: (L, 2), x and y in photo pixels, in the order of ``landmarks``.

        Returns:
            (V, 3) float32: x, y and depth in photo pixels, the smaller depth nearer.

        Raises:
            InputError: not such an array, or points that coincide.
        """
        if not isinstance(points, np.ndarray) or points.shape != (len(self.landmarks), 2) or points.dtype.kind != "f":
            got = f"{points.dtype} {points.shape}" if isinstance(points, np.ndarray) else type(points).__name__
            raise InputError(f"the points must be a floating point array ({len(self.landmarks)}, 2), got {got}")
        spread = float(np.sqrt(((points - points.mean(axis=0)) ** 2).sum(axis=1).mean()))
        if not 1e-6 < spread < np.inf:
            raise InputError("the points must be finite and lie apart from one another")
        wanted = points.astype(np.float64) * [1, -1]  # y up, as in the model
        vertices = list(self.landmarks.values())
        mean = self.mean[vertices].astype(np.float64)
        basis = np.concatenate([self.shapes[:, vertices], self.expressions[:, vertices]]).astype(np.float64)
        weights: npt.NDArray[Any] = np.zeros(len(basis))
        for _ in range(_ROUNDS):
            scaled, shift = _pose(mean + np.tensordot(weights, basis, 1), wanted)
            rest = wanted - shift - mean @ scaled[:2].T
            design = (basis @ scaled[:2].T).reshape(len(basis), 2 * len(points))
            ridge = (_NOISE * spread) ** 2 * np.eye(len(basis))
            weights = np.linalg.solve(design @ design.T + ridge, design @ rest.ravel())
        few = weights.astype(np.float32)
        face = self.mean + np.tensordot(few[: len(self.shapes)], self.shapes, 1)
        face += np.tensordot(few[len(self.shapes) :], self.expressions, 1)
        placed = face @ scaled.T
        placed[:, :2] += shift
        placed[:, 1:] *= -1  # y down; what looks to the front is near
        result: Floats = placed.astype(np.float32)
        return result


def face_model(name: str) -> FaceModel:
    """The face model that a name on a command line means: ``facemesh``, or a file for :meth:`MorphableModel.read`.

    Raises:
        UsageError: neither.
        InputError: a file that is no such model.
    """
    if name == "facemesh":
        return default_mesh()
    if not Path(name).is_file():
        raise UsageError(f"a face model is 'facemesh' or the file of a morphable model, got {name!r}")
    return MorphableModel.read(name)


def _pose(
    vertices: npt.NDArray[np.float64], points: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The rotation times scale (3, 3) and the shift (2) that bring vertices (L, 3) onto points (L, 2).

    The affine camera of least squares, then the nearest matrix whose rows are orthogonal and of one length.
    """
    middle = vertices.mean(axis=0)
    affine = np.linalg.lstsq(vertices - middle, points - points.mean(axis=0), rcond=None)[0].T
    left, lengths, right = np.linalg.svd(affine, full_matrices=False)
    rows = left @ right
    rotation = np.vstack([rows, np.cross(rows[0], rows[1])])
    scaled = lengths.mean() * rotation
    return scaled, points.mean(axis=0) - scaled[:2] @ middle


def _read_npz(path: Path) -> _Parts:
    with np.load(path, allow_pickle=False) as file:
        mean = file["mean"].reshape(-1, 3)
        shapes = file["shape_basis"] * np.sqrt(file["shape_eigenvalues"])
        expressions = file["blendshapes"].reshape(-1, *mean.shape)
        numbers, vertices = file["landmark_68_index"].tolist(), file["landmark_vertex"].tolist()
        landmarks = dict(zip(numbers, vertices, strict=True))
        return _Parts(mean, shapes.T.reshape(-1, *mean.shape), expressions, file["triangles"], landmarks)


def _read_mat(path: Path) -> _Parts:
    file = read_matlab(path, ("shapeMU", "shapePC", "shapeEV", "tl"))
    mean = file["shapeMU"].reshape(-1, 3)
    shapes = (file["shapePC"] * file["shapeEV"].ravel()).T.reshape(-1, *mean.shape)  # EV: standard deviations
    return _Parts(mean, shapes, np.empty((0, *mean.shape), np.float32), file["tl"].astype(np.int64) - 1, {})


def _read_h5(path: Path) -> _Parts:
    try:
        import h5py
    except ImportError as error:
        raise MissingDependencyError(f"reading {path} needs h5py, which is not installed: pip install h5py") from error

    def components(file: Any, name: str) -> npt.NDArray[Any]:
        basis: npt.NDArray[Any] = file[f"{name}/model/pcaBasis"][()] * np.sqrt(file[f"{name}/model/pcaVariance"][()])
        return basis.T.reshape(basis.shape[1], -1, 3)

    with h5py.File(path) as file:
        mean = (file["shape/model/mean"][()] + file["expression/model/mean"][()]).reshape(-1, 3)
        triangles = file["shape/representer/cells"][()].T
        landmarks = {}
        if "metadata/landmarks/json" in file:
            text = np.asarray(file["metadata/landmarks/json"][()]).tobytes()
            for entry in json.loads(text.rstrip(b"\0")):
                if number := _BASEL_NAMES.get(entry["id"]):
                    distances = ((mean - np.asarray(entry["coordinates"])) ** 2).sum(axis=1)
                    landmarks[number] = int(distances.argmin())
        return _Parts(mean, components(file, "shape"), components(file, "expression"), triangles, landmarks)


def _read_landmarks(path: Path) -> dict[int, int] | None:
    """What ``PATH.landmarks.json`` says, if it is there."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {int(number): int(vertex) for number, vertex in content.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f'{path} must be a JSON object such as {{"31": 8320}} ({error})') from error
