"""Surfaces of faces, and fitting them to a photo.

A face model is a mesh whose vertices have a place in a photo, by :meth:`FaceModel.fit`, and a place on the unwrapped
surface, ``coordinates``: the same for every face.
"""

from __future__ import annotations

import functools
import io
import threading
from importlib.resources import files
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from deocc.faces.crop import Crop, Points, align
from deocc.faces.detector import quiet_opencv
from deocc.images import check_image

Array = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_SIDE = 192  # what the network sees, in pixels
# The square that the network was trained on is 1.5 times as large as the mesh. For a face on ArcFace's template that is
# 112 / 0.7 pixels, about a place 12 pixels below the template's centre.
_WINDOW = Crop(_SIDE, 0.7)
_BELOW = 12.0 * _WINDOW.zoom * _SIDE / 112
_PRESENCE = 0.5  # the network's own answer to whether it sees a face, above which its points count


class FaceModel(Protocol):
    """What :func:`deocc.faces.dense_field` asks of a model.

    Attributes:
        title: what it is, for the record of what was made with it.
        triangles: (T, 3) int32, numbers of vertices; counter-clockwise seen from outside.
        coordinates: (V, 2) float32 in [0, 1]: u and v of every vertex.
    """

    title: str
    triangles: npt.NDArray[np.int32]
    coordinates: Floats

    def fit(self, image: Array, landmarks: Points) -> Floats | None:
        """Where the vertices are in a photo.

        Args:
            image: (H, W, 3) uint8, RGB.
            landmarks: (5, 2) in photo pixels, in the order of :data:`deocc.faces.TEMPLATE_112`.

        Returns:
            (V, 3) float32: x, y and depth in photo pixels, the smaller depth nearer; None where no face is seen.
        """


class FaceMesh:
    """468 points by a packaged network (Kartynnik et al. 2019, "Real-time Facial Surface Geometry from Monocular Video
    on Mobile GPUs"), through ``cv2.dnn``.

    The network looks twice, at the face and at its mirror image, and the mean counts: a mirrored photo has very nearly
    the mirrored mesh. It is loaded at the first photo and then kept. One object may be used from several threads, which
    then wait for each other; a pickled one loads its own.

    Attributes:
        title: ``facemesh``.
        triangles: (898, 3) int32; the eyes and the mouth are closed.
        coordinates: (468, 2) float32, of the canonical mesh by :func:`unwrap`.
        vertices: (468, 3) float32, the canonical mesh in centimetres: x to the right of a photo, y up, z to the front.
    """

    title = "facemesh"

    def __init__(self) -> None:
        data = _packaged("face_mesh_468.npz")
        with np.load(io.BytesIO(data), allow_pickle=False) as mesh:
            self.vertices: Floats = mesh["vertices"]
            self.triangles: npt.NDArray[np.int32] = mesh["triangles"]
        self.coordinates = unwrap(self.vertices)
        mirrored = self.vertices * np.array([-1, 1, 1], np.float32)
        self._partner = ((mirrored[:, None] - self.vertices) ** 2).sum(axis=2).argmin(axis=1)
        self._network: cv2.dnn.Net | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[FaceMesh], tuple[()]]:
        return FaceMesh, ()

    def fit(self, image: Array, landmarks: Points) -> Floats | None:
        """See :meth:`FaceModel.fit`.

        Raises:
            InputError: not such arrays, or a face that lies wholly beyond the photo.
        """
        check_image(image, "the photo")
        matrix = _WINDOW.matrix(landmarks)
        shifted = np.asarray(landmarks, np.float64) + np.linalg.solve(matrix[:, :2], [0, _BELOW])
        window = align(image, shifted, _WINDOW)
        looks = [self._look(window), self._look(window[:, ::-1])]
        if min(presence for _, presence in looks) < _PRESENCE:
            return None
        points, mirrored = (points for points, _ in looks)
        mirrored = mirrored[self._partner]
        mirrored[:, 0] = _SIDE - 1 - mirrored[:, 0]
        points = (points + mirrored) / 2
        back = cv2.invertAffineTransform(_WINDOW.matrix(shifted))
        scale = np.hypot(back[0, 0], back[1, 0])
        return np.column_stack([points[:, :2] @ back[:, :2].T + back[:, 2], points[:, 2] * scale]).astype(np.float32)

    def _look(self, window: Array) -> tuple[npt.NDArray[np.float64], float]:
        """The points (468, 3) in pixels of the window, and how sure it is that there is a face."""
        with self._lock, quiet_opencv():
            if self._network is None:
                self._network = cv2.dnn.readNetFromONNX(np.frombuffer(_packaged("face_mesh_468.onnx"), np.uint8))
            self._network.setInput(cv2.dnn.blobFromImage(np.ascontiguousarray(window), 1 / 255))
            points, presence = self._network.forward(["points", "presence"])
            place = points.reshape(-1, 3).astype(np.float64)
            place[:, :2] -= 0.5  # it counts from the picture's corner, not from the first pixel's centre
            return place, float(presence.item())


def unwrap(vertices: npt.NDArray[Any]) -> Floats:
    """Roll a face's surface off a cylinder: angle about the vertical axis, and height.

    The axis is that of the circle which fits the vertices best as seen from above (least squares).

    Args:
        vertices: (V, 3), a face that looks along z; x to the right of a photo of it, y up.

    Returns:
        (V, 2) float32 in [0, 1]: u is 0.5 for what looks to the front and grows with x, the largest angle to a side
        being 0 or 1; v grows upwards from the lowest vertex to the highest.
    """
    x, y, z = vertices.astype(np.float64).T
    design = np.column_stack([2 * x, 2 * z, np.ones(len(x))])
    (middle, axis, _), *_ = np.linalg.lstsq(design, x**2 + z**2, rcond=None)
    angle = np.arctan2(x - middle, z - axis)
    u = 0.5 + angle / (2 * np.abs(angle).max())
    v = (y - y.min()) / np.ptp(y)
    return np.column_stack([u, v]).clip(0, 1).astype(np.float32)


def _packaged(name: str) -> bytes:
    return files("deocc.faces").joinpath("models", name).read_bytes()


@functools.cache
def default_mesh() -> FaceMesh:
    """The one that is used where none is named."""
    return FaceMesh()
