"""Aligned face crops: out of the photo, and back into it.

A crop is the square that a similarity (rotation, uniform scale, shift) makes of the photo so that the face's five
points lie as closely as possible on fixed places. Coordinates are OpenCV's: (x, y), the centre of the first pixel is
(0, 0). A matrix (2, 3) always leads from the photo to the crop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from deocc.errors import InputError, UsageError
from deocc.images import check_image

Points = npt.NDArray[np.floating]
Matrix = npt.NDArray[np.float64]
Array = npt.NDArray[np.uint8]

TEMPLATE_112: npt.NDArray[np.float32] = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float32
)
"""Where ArcFace (Deng et al. 2019) puts the five points in a crop of 112x112 pixels, as (x, y): the eye on the left of
the picture, the eye on its right, the nose tip, the mouth corners on the left and on the right. Read-only."""
TEMPLATE_112.setflags(write=False)

_MAX_SIZE = 8192


@dataclass(frozen=True)
class Crop:
    """A square crop on the ArcFace template.

    Attributes:
        size: its side in pixels, 1 to 8192.
        zoom: the template's scale about the crop's centre. 1 is ArcFace's own crop, from the brows to the chin; 0.75
            shows a third more to each side, so that hair and chin are inside. Above 0, at most 10.
    """

    size: int = 128
    zoom: float = 0.75

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or isinstance(self.size, bool) or not 1 <= self.size <= _MAX_SIZE:
            raise UsageError(f"a crop's size must be a whole number of pixels from 1 to {_MAX_SIZE}, got {self.size!r}")
        if not isinstance(self.zoom, int | float) or not 0 < self.zoom <= 10:
            raise UsageError(f"a crop's zoom must be above 0 and at most 10, got {self.zoom!r}")

    def template(self) -> npt.NDArray[np.float32]:
        """Where the five points belong in this crop, (5, 2) float32 in crop pixels.

        A point p of :data:`TEMPLATE_112` is at ``((p - 56) * zoom + 56) * size / 112``.
        """
        return (((TEMPLATE_112.astype(np.float64) - 56) * self.zoom + 56) * (self.size / 112)).astype(np.float32)

    def matrix(self, landmarks: Points) -> Matrix:
        """The similarity from the photo to the crop that fits all five points best (least squares).

        That is Umeyama's (1991) solution. In the plane it has a short closed form: with points as complex numbers, a
        similarity is z -> a*z + b, and the best a is the complex regression coefficient.

        Args:
            landmarks: (5, 2) in photo pixels, in the order of :data:`TEMPLATE_112`.

        Returns:
            (2, 3) float64.

        Raises:
            InputError: not five finite points, or points that coincide.
        """
        points = _check_landmarks(landmarks)
        z = points[:, 0] + 1j * points[:, 1]
        template = self.template().astype(np.float64)
        w = template[:, 0] + 1j * template[:, 1]
        dz, dw = z - z.mean(), w - w.mean()
        spread = float((abs(dz) ** 2).sum())
        a = complex((dz.conj() * dw).sum()) / spread if spread > 0 else 0j
        if not 1e-6 < abs(a) < 1e6:
            raise InputError("the five landmarks of a face must lie apart from one another, these do not span a face")
        b = complex(w.mean() - a * z.mean())
        return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def align(image: Array, landmarks: Points, crop: Crop) -> Array:
    """Cut out a face.

    Photo pixels smaller than crop pixels are averaged, not skipped; beyond the photo its border pixels go on.

    Args:
        image: the photo, (H, W, 3) uint8.
        landmarks: (5, 2) in photo pixels, in the order of :data:`TEMPLATE_112`.
        crop: which square.

    Returns:
        (crop.size, crop.size, 3) uint8.

    Raises:
        InputError: not such arrays, or a crop that lies wholly beyond the photo.
    """
    check_image(image, "the photo")
    return _warp(*_around(image, landmarks, crop), (crop.size, crop.size), cv2.BORDER_REPLICATE)


def align_occlusion(occlusion: Array, landmarks: Points, crop: Crop) -> Array:
    """Cut out what is occluded of a face, so that it fits what :func:`align` cuts out of the photo.

    Args:
        occlusion: (H, W) uint8, of the photo: 0 = visible, 255 = occluded.
        landmarks, crop: as of :func:`align`.

    Returns:
        (crop.size, crop.size) uint8: how far each pixel is occluded. It is above 0 wherever a pixel of the photo that
        is has a part in it, however small; beyond the photo nothing is.

    Raises:
        InputError: not such arrays, or a crop that lies wholly beyond the photo.
    """
    if not isinstance(occlusion, np.ndarray) or occlusion.dtype != np.uint8 or occlusion.ndim != 2:
        got = f"{occlusion.dtype} {occlusion.shape}" if isinstance(occlusion, np.ndarray) else type(occlusion).__name__
        raise InputError(f"the occlusion must be a uint8 array (H, W), got {got}")
    part, matrix = _around(occlusion, landmarks, crop)
    size = (crop.size, crop.size)
    share = _warp(part, matrix, size, cv2.BORDER_CONSTANT, cv2.INTER_LINEAR)
    # A pixel that is hardly occluded must not be rounded to none.
    source, matrix = _shrunk((part > 0).astype(np.float32), matrix)
    touched = cv2.warpAffine((source > 0).astype(np.uint8) * np.uint8(255), matrix, size, flags=cv2.INTER_LINEAR)
    return np.maximum(share, (touched > 0).astype(np.uint8))


def paste_back(
    photo: Array,
    face: Array,
    occlusion: npt.NDArray[np.uint8] | npt.NDArray[np.floating],
    matrix: npt.NDArray[Any],
    *,
    feather: float = 2.0,
) -> Array:
    """Put a restored crop back into its photo, where it was occluded and nowhere else.

    The seam is hidden by blending inside the occlusion: none of the restored face is taken at the occlusion's edge, all
    of it ``feather`` crop pixels further in. So hand in an occlusion that is that much larger than what hides the
    face, or its rim will shine through. Photo pixels that are not occluded come back bit-identical.

    Args:
        photo: (H, W, 3) uint8; it is not changed.
        face: the restored crop, (S, S, 3) uint8.
        occlusion: (S, S), uint8 0..255 or float 0..1; the largest value = occluded, values between blend.
        matrix: (2, 3), the similarity from the photo to the crop: :meth:`Crop.matrix`.
        feather: width of the seam in crop pixels; 0 gives a hard edge.

    Returns:
        (H, W, 3) uint8, a new array.

    Raises:
        InputError: shapes, dtypes or values that do not fit.
        UsageError: a negative feather.
    """
    from deocc.ops import composite_uint8

    check_image(photo, "the photo")
    check_image(face, "the face")
    matrix = _check_matrix(matrix)
    alpha = _check_occlusion(occlusion, face)
    if not feather >= 0:
        raise UsageError(f"the feather must be 0 or more crop pixels, got {feather!r}")

    result = photo.copy()
    inverse = _inverse(matrix)
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    if rows.size == 0:
        return result
    # Only the rectangle that the occlusion covers is worked on, however large the photo.
    first = (int(columns[0]), int(rows[0]))
    box = _bounds(_moved(inverse, first), int(columns[-1]) - first[0] + 1, int(rows[-1]) - first[1] + 1, photo)
    if box is None:
        return result
    left, top, right, bottom = box
    size = (right - left, bottom - top)
    back = inverse - [[0, 0, left], [0, 0, top]]

    occluded = cv2.warpAffine((alpha > 0).astype(np.uint8), back, size, flags=cv2.INTER_NEAREST)
    blend = _warp(_feathered(alpha, feather), back, size, cv2.BORDER_CONSTANT, cv2.INTER_LINEAR)
    fill = _warp(face, back, size, cv2.BORDER_REPLICATE)
    window = np.ascontiguousarray(result[top:bottom, left:right])
    result[top:bottom, left:right] = composite_uint8(window, fill, np.where(occluded, blend, 0).astype(np.uint8))
    return result


def _check_landmarks(landmarks: Points) -> npt.NDArray[np.float64]:
    points = np.asarray(landmarks)
    if points.shape != (5, 2) or points.dtype.kind not in "fiu":
        raise InputError(f"landmarks must be an array (5, 2) of numbers, got {points.dtype} {points.shape}")
    checked: npt.NDArray[np.float64] = points.astype(np.float64)
    if not (np.abs(checked) < 1e6).all():
        raise InputError("landmarks must be finite photo pixels, got NaN or values of a million and more")
    return checked


def _check_matrix(matrix: npt.NDArray[Any]) -> Matrix:
    given = np.asarray(matrix)
    if given.shape != (2, 3) or given.dtype.kind not in "fiu":
        raise InputError(f"a matrix must be an array (2, 3) of numbers, got {given.dtype} {given.shape}")
    checked: Matrix = given.astype(np.float64)
    # In this order: the determinant of what is not finite would warn.
    if not (np.abs(checked) < 1e12).all() or not 1e-12 < abs(np.linalg.det(checked[:, :2])) < 1e12:
        raise InputError("a matrix must be finite and invertible, got one that is not")
    return checked


def _check_occlusion(occlusion: npt.NDArray[Any], face: Array) -> Array:
    """The occlusion as uint8 0..255, checked against the face."""
    if face.shape[0] != face.shape[1] or face.shape[0] > _MAX_SIZE:
        raise InputError(f"the face must be square, of at most {_MAX_SIZE} pixels, got {face.shape[1]}x{face.shape[0]}")
    if not isinstance(occlusion, np.ndarray) or occlusion.shape != face.shape[:2]:
        came = occlusion.shape if isinstance(occlusion, np.ndarray) else type(occlusion).__name__
        raise InputError(f"the occlusion must be an array {face.shape[:2]} to fit the face, got {came}")
    if occlusion.dtype == np.uint8:
        return occlusion.astype(np.uint8)
    if occlusion.dtype.kind != "f":
        raise InputError(f"the occlusion must be uint8 0..255 or float 0..1, got {occlusion.dtype}")
    if not ((occlusion >= 0) & (occlusion <= 1)).all():
        low, high = float(occlusion.min()), float(occlusion.max())
        raise InputError(f"the occlusion must be finite and within [0, 1], got values from {low:g} to {high:g}")
    return np.rint(occlusion.astype(np.float32) * 255).astype(np.uint8)


def _inverse(matrix: Matrix) -> Matrix:
    linear = np.linalg.inv(matrix[:, :2])
    inverse: Matrix = np.column_stack([linear, -linear @ matrix[:, 2]]).astype(np.float64)
    return inverse


def _moved(matrix: Matrix, origin: tuple[int, int]) -> Matrix:
    """``matrix`` for coordinates counted from ``origin`` before it is applied."""
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2] @ origin
    return moved


def _bounds(matrix: Matrix, width: int, height: int, photo: Array) -> tuple[int, int, int, int] | None:
    """Left, top, right, bottom (exclusive) of a rectangle sent through ``matrix``, within the photo; None beyond it."""
    edges = np.array([[x, y] for x in (-0.5, width - 0.5) for y in (-0.5, height - 0.5)])
    corners = edges @ matrix[:, :2].T + matrix[:, 2]
    limit = (photo.shape[1], photo.shape[0])
    left, top = (int(v) for v in np.clip(np.floor(corners.min(axis=0)), 0, limit))
    right, bottom = (int(v) for v in np.clip(np.ceil(corners.max(axis=0)) + 1, 0, limit))
    return None if left >= right or top >= bottom else (left, top, right, bottom)


def _around(image: Array, landmarks: Points, crop: Crop) -> tuple[Array, Matrix]:
    """The part of a photo that a crop needs, and the way from there to the crop."""
    matrix = crop.matrix(landmarks)
    box = _bounds(_inverse(matrix), crop.size, crop.size, image)
    if box is None:
        raise InputError(
            f"the landmarks put the face wholly outside the photo of {image.shape[1]}x{image.shape[0]} pixels"
        )
    # The margin keeps the cut's own border out of the interpolation's reach.
    scale = math.hypot(matrix[0, 0], matrix[1, 0])
    margin = 4 * max(1, math.ceil(1 / scale))
    left, top = max(box[0] - margin, 0), max(box[1] - margin, 0)
    return image[top : box[3] + margin, left : box[2] + margin], _moved(matrix, (left, top))


def _warp(
    image: Array, matrix: Matrix, size: tuple[int, int], border: int, interpolation: int = cv2.INTER_CUBIC
) -> Array:
    """Send ``image`` through ``matrix`` (source -> target) into a picture of ``size`` (width, height)."""
    source, matrix = _shrunk(image, matrix)
    return cv2.warpAffine(source, matrix, size, flags=interpolation, borderMode=border).astype(np.uint8, copy=False)


def _shrunk(image: npt.NDArray[Any], matrix: Matrix) -> tuple[npt.NDArray[Any], Matrix]:
    """The image with blocks of its pixels averaged, until one is about one of the target, and the way from there.

    OpenCV interpolates between neighbours however much it shrinks, which aliases.
    """
    source = image
    block = round(1 / max(math.hypot(matrix[0, 0], matrix[1, 0]), 1e-6))
    if block > 1:
        height, width = image.shape[:2]
        small = (max(1, round(width / block)), max(1, round(height / block)))
        source = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        stretch = np.array([width / small[0], height / small[1]])
        # Centres of pixels: x = (x_small + 1/2) * stretch - 1/2.
        matrix = np.column_stack([matrix[:, :2] * stretch, matrix[:, 2] + matrix[:, :2] @ (stretch / 2 - 0.5)])
    return source, matrix


def _feathered(alpha: Array, feather: float) -> Array:
    """Let ``alpha`` rise from nothing at its support's edge to its full value ``feather`` pixels inside."""
    if feather == 0:
        return alpha
    # Beyond the crop nothing is known to be occluded: a border of zeros makes the crop's rim an edge too.
    inside = cv2.distanceTransform(np.pad((alpha > 0).astype(np.uint8), 1), cv2.DIST_L2, cv2.DIST_MASK_5)[1:-1, 1:-1]
    faded: Array = np.rint(alpha * np.clip((inside - 1) / max(feather, 1e-6), 0, 1)).astype(np.uint8)
    return faded
