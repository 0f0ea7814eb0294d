"""The dense correspondence field of a face: for every pixel, its place on the face's surface.

canet (Ma et al., "Contrastive Attention Network with Dense Field Estimation for Face Completion", section 3.3) learns
to predict it, so that what it completes has the shape of a face. There it comes from a morphable model; here from any
:class:`deocc.faces.FaceModel`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from deocc.errors import InputError, UsageError
from deocc.faces.crop import Crop, Matrix, Points
from deocc.faces.face_mesh import FaceModel, default_mesh
from deocc.images import check_image

Array = npt.NDArray[np.uint8]


class DenseField(NamedTuple):
    """Every pixel's place on the face's surface, which is unwrapped from a cylinder about the head.

    Attributes:
        field: (2, H, W) float32 in [0, 1], U and V; 0 outside of the face. U grows to the right of a photo of an
            upright face and is 0.5 in its middle; V grows from the chin to the forehead. A mirrored photo has the
            mirrored field with 1 - U in place of U.
        covered: (H, W) bool, where there is a face; nowhere if the model sees none.
    """

    field: npt.NDArray[np.float32]
    covered: npt.NDArray[np.bool_]


def dense_field(
    image: Array,
    landmarks: Points,
    model: FaceModel | None = None,
    size: tuple[int, int] | Crop | None = None,
) -> DenseField:
    """Fit a face model to a face and draw where on its surface each pixel lies.

    What hides the face does not count: the field is that of the face behind a mask. Where the surface overlaps itself
    in the picture, beside the nose of a profile, the nearest part is seen.

    Args:
        image: a photo, or an aligned crop of one, (H, W, 3) uint8, RGB.
        landmarks: (5, 2) in pixels of the image, in the order of :data:`deocc.faces.TEMPLATE_112`.
        model: the surface; None is the packaged :class:`deocc.faces.FaceMesh`.
        size: height and width of the maps, which show the whole image, or the aligned crop that they show; None is the
            image's own size. For a crop hand in the photo that it is from: the model sees more there.

    Raises:
        InputError: not such arrays, or a face that lies wholly beyond the image.
        UsageError: a size out of range.
    """
    from deocc.ops import rasterise

    check_image(image)
    to_maps = _to_maps(image, landmarks, size)
    shape = (size.size, size.size) if isinstance(size, Crop) else size or image.shape[:2]
    model = default_mesh() if model is None else model
    vertices = model.fit(image, landmarks)
    if vertices is None:
        return DenseField(np.zeros((2, *shape), np.float32), np.zeros(shape, np.bool_))
    place = vertices.copy()
    place[:, :2] = vertices[:, :2] @ to_maps[:, :2].T + to_maps[:, 2]
    field, covered = rasterise(place, model.triangles, model.coordinates, shape)
    return DenseField(field.clip(0, 1), covered)


def _to_maps(image: Array, landmarks: Points, size: tuple[int, int] | Crop | None) -> Matrix:
    """The affine map (2, 3) from pixels of the image to those of the maps."""
    if isinstance(size, Crop):
        return size.matrix(landmarks)
    height, width = image.shape[:2]
    size = (height, width) if size is None else size
    if not isinstance(size, tuple) or len(size) != 2 or not all(isinstance(n, int) and 1 <= n <= 8192 for n in size):
        raise UsageError(f"a field's size must be height and width, whole numbers from 1 to 8192, got {size!r}")
    # Centres of pixels: x = (x_image + 1/2) * stretch - 1/2.
    stretch = np.array([size[1] / width, size[0] / height])
    return np.column_stack([np.diag(stretch), stretch / 2 - 0.5])


def colour_field(field: npt.NDArray[np.floating] | npt.NDArray[np.uint8]) -> Array:
    """Show one map of a field, U or V: 0 is blue and 1 yellow, as in figure 3 of canet's paper.

    Args:
        field: (..., H, W), float in [0, 1] or uint8 0..255.

    Returns:
        (..., H, W, 3) uint8, RGB.

    Raises:
        InputError: not such an array.
    """
    if not isinstance(field, np.ndarray) or (field.dtype != np.uint8 and field.dtype.kind != "f"):
        got = field.dtype if isinstance(field, np.ndarray) else type(field).__name__
        raise InputError(f"a field must be a numpy.ndarray, float in [0, 1] or uint8, got {got}")
    if field.dtype != np.uint8:
        if not ((field >= 0) & (field <= 1)).all():
            raise InputError("a field must be finite and within [0, 1]")
        field = np.rint(field * 255).astype(np.uint8)
    return _colours()[field]


@functools.cache
def _colours() -> Array:
    """Level (256) -> RGB."""
    levels = np.arange(256, dtype=np.uint8)[:, None]
    return np.ascontiguousarray(cv2.applyColorMap(levels, cv2.COLORMAP_PARULA)[:, 0, ::-1])
