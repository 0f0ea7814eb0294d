"""Finding faces and their five points in a photo of any size."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from deocc.errors import UsageError
from deocc.images import check_image

Array = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.float64]  # what the network returns: box (4), landmarks (10), score (1)

_MODEL = "models/face_detection_yunet_2026may.onnx"
_SMALL = 320  # longer side of the small copy, in pixels
_SETTLING = (224, 288)  # longer side of the copies in which a found face is looked at again
_MOST_ENLARGED = 4.0
_LOG_ERRORS = 2  # OpenCV's level that keeps errors and drops warnings
_SAME = 0.5  # boxes that share more than this of the smaller one show the same face


@dataclass(frozen=True, eq=False)
class Face:
    """A face in a photo; coordinates are photo pixels, the centre of the first pixel is (0, 0).

    Attributes:
        box: (4,) float32: left, top, width, height; it may reach beyond the photo.
        landmarks: (5, 2) float32, (x, y), in the order of :data:`deocc.faces.TEMPLATE_112`: the eye on the left of the
            picture, the eye on its right, the nose tip, the mouth corners on the left and on the right. "Left" and
            "right" are those of an upright face: a face upside down has them swapped.
        score: how sure the detector is, 0 to 1.
    """

    box: npt.NDArray[np.float32]
    landmarks: npt.NDArray[np.float32]
    score: float


class Detector:
    """YuNet (Wu et al. 2023) through OpenCV's ``FaceDetectorYN``; model and weights are packaged.

    The network is loaded at the first photo and then kept. One detector may be used from several threads, which then
    wait for each other.

    Args:
        score: the least score of a face, between 0 and 1.
        max_size: photos whose longer side has more pixels are shrunk to it before faces are looked for. A face needs
            about 10 pixels after that. Time grows with the square.

    Raises:
        UsageError: a score or a size out of range.
    """

    def __init__(self, score: float = 0.6, max_size: int = 1024) -> None:
        if not 0 < score < 1:
            raise UsageError(f"the least score of a face must be between 0 and 1, got {score!r}")
        if not isinstance(max_size, int) or not 64 <= max_size <= 8192:
            raise UsageError(f"max_size must be a whole number of pixels from 64 to 8192, got {max_size!r}")
        self.score = score
        self.max_size = max_size
        self._network: cv2.FaceDetectorYN | None = None
        self._lock = threading.Lock()

    def detect(self, image: Array) -> list[Face]:
        """Find the faces in a photo.

        Args:
            image: (H, W, 3) uint8, RGB, upright.

        Returns:
            The faces, largest first; empty where there is none.

        Raises:
            InputError: not such an array.
        """
        check_image(image, "the photo")
        # YuNet knows faces of 10 to 300 pixels: one look at a small copy for those that fill the photo, where it would
        # see parts of a face as faces, and one at a large copy for the small ones.
        copy = _resized(image, min(self.max_size, max(image.shape[:2])))
        rows = self._look(_resized(copy, _SMALL), image.shape)
        if max(copy.shape) > _SMALL:
            rows = np.concatenate([rows, self._look(copy, image.shape)])
        settled = (self._settle(image, row) for row in _distinct(rows))
        faces = [
            Face(row[:4].astype(np.float32), row[4:14].reshape(5, 2).astype(np.float32), float(row[14]))
            for row in settled
            if row is not None
        ]
        return sorted(faces, key=lambda face: -float(face.box[2] * face.box[3]))

    def _settle(self, image: Array, row: Rows) -> Rows | None:
        """Look at one face again, at several sizes and mirrored, and take the mean of where its points seem to be.

        A single look puts the points off by several per cent of the distance between the eyes, in part by chance. And
        what is no face is seldom taken for one again: None unless half of the looks agree.
        """
        side = 2 * float(row[2:4].max())
        low = np.floor(row[:2] + row[2:4] / 2 - side / 2).clip(min=0).astype(int)
        high = np.ceil(row[:2] + row[2:4] / 2 + side / 2).clip(min=0).astype(int)
        part = image[low[1] : high[1], low[0] : high[0]]
        if part.size == 0:  # a face said to lie wholly beyond the border
            return None
        copies = [_resized(part, size) for size in _SETTLING]
        looks = [self._look(copy, part.shape, mirrored) for copy in copies for mirrored in (False, True)]
        row[:2] -= low
        same = [rows[_overlap(row, rows) > _SAME] for rows in looks]
        if 2 * sum(len(rows) > 0 for rows in same) < len(looks):
            return None
        mean = np.append(np.concatenate(same)[:, :14].mean(axis=0), row[14])
        mean[:2] += low
        mean[4:14] += np.tile(low, 5)
        return mean

    def _look(self, copy: Array, shape: tuple[int, ...], mirrored: bool = False) -> Rows:
        """What the network finds in a resized ``copy`` of an image of ``shape``, in that image's pixels."""
        height, width = copy.shape[:2]
        # A face that the photo's border cuts has its centre beyond it, where the network would not look.
        margin = min(max(max(height, width) // 8, 16), 48)
        padded = cv2.copyMakeBorder(copy[..., ::-1], margin, margin, margin, margin, cv2.BORDER_REPLICATE)
        if mirrored:
            padded = cv2.flip(padded, 1)
        with self._lock, quiet_opencv():
            if self._network is None:
                self._network = _load(self.score)
            self._network.setInputSize((padded.shape[1], padded.shape[0]))
            found: Any = self._network.detect(padded)[1]  # None where there is no face, whatever OpenCV's stubs say
        if found is None:
            return np.empty((0, 15))
        rows: Rows = found.astype(np.float64)
        rows = rows[np.isfinite(rows).all(axis=1) & (rows[:, 2:4] > 0).all(axis=1)]
        points = rows[:, 4:14].reshape(-1, 5, 2)
        if mirrored:
            rows[:, 0] = padded.shape[1] - 1 - rows[:, 0] - rows[:, 2]
            points[..., 0] = padded.shape[1] - 1 - points[..., 0]
            points = points[:, [1, 0, 2, 4, 3]]
        stretch = np.array([shape[1] / width, shape[0] / height])
        # Centres of pixels: x = (x_copy + 1/2) * stretch - 1/2.
        rows[:, :2] = (rows[:, :2] - margin + 0.5) * stretch - 0.5
        rows[:, 2:4] *= stretch
        rows[:, 4:14] = ((points - margin + 0.5) * stretch - 0.5).reshape(-1, 10)
        return rows


def _resized(image: Array, longer: int) -> Array:
    """The image with a longer side of ``longer`` pixels, or enlarged as far as makes sense."""
    height, width = image.shape[:2]
    scale = min(longer / max(height, width), _MOST_ENLARGED)
    if scale == 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(image, size, interpolation=interpolation).astype(np.uint8, copy=False)


def _load(score: float) -> cv2.FaceDetectorYN:
    model = np.frombuffer(files("deocc.faces").joinpath(_MODEL).read_bytes(), np.uint8)
    # An overlap of 1 keeps every box: which ones show the same face is decided here, over all looks.
    return cv2.FaceDetectorYN.create("onnx", model, np.empty(0, np.uint8), (_SMALL, _SMALL), score, 1.0, 5000)


def _distinct(rows: Rows) -> list[Rows]:
    """Of the rows that show the same face, the surest."""
    rows = rows[np.argsort(-rows[:, 14], kind="stable")]
    kept = []
    while len(rows):
        kept.append(rows[0])
        rows = rows[1:][_overlap(rows[0], rows[1:]) <= _SAME]
    return kept


def _overlap(row: Rows, others: Rows) -> Rows:
    """How much of the smaller of two boxes lies in the other, for each of ``others``: a part of a face is no face."""
    shared = np.minimum(row[:2] + row[2:4], others[:, :2] + others[:, 2:4]) - np.maximum(row[:2], others[:, :2])
    overlap: Rows = shared.clip(min=0).prod(axis=1) / np.minimum(row[2:4].prod(), others[:, 2:4].prod(axis=1))
    return overlap


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """Hold back OpenCV's log: version 5 warns at every start of a network that it runs on the default target."""
    logging: Any = getattr(cv2.utils, "logging", cv2)  # where the two functions were before version 5
    level = logging.getLogLevel()
    logging.setLogLevel(_LOG_ERRORS)
    try:
        yield
    finally:
        logging.setLogLevel(level)
