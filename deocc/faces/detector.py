"""Finding faces and their five points in a photo of any size."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files

import cv2
import numpy as np
import numpy.typing as npt

from deocc.errors import UsageError
from deocc.images import check_image

Array = npt.NDArray[np.uint8]

_MODEL = "models/face_detection_yunet_2026may.onnx"
_SMALL = 320  # longer side of the small copy, in pixels
_MOST_ENLARGED = 2.0
_MARGIN = 16


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
        score: the least score of a face, 0 to 1.
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
        longer = max(image.shape[:2])
        # YuNet knows faces of 10 to 300 pixels: one look at a small copy for those that fill the photo, where it would
        # see parts of a face as faces, and one at a large copy for the small ones.
        rows = self._look(image, min(_SMALL / longer, _MOST_ENLARGED))
        if longer > _SMALL:
            rows = np.concatenate([rows, self._look(image, min(self.max_size / longer, 1.0))])
        faces = [Face(box=row[:4], landmarks=row[4:14].reshape(5, 2), score=float(row[14])) for row in _distinct(rows)]
        return sorted(faces, key=lambda face: -float(face.box[2] * face.box[3]))

    def _look(self, image: Array, scale: float) -> npt.NDArray[np.float32]:
        """What the network finds in a copy scaled by ``scale``: rows of box, landmarks, score in photo pixels."""
        height, width = image.shape[:2]
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        if size != (width, height):
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        # A face that the photo's border cuts has its centre beyond it, where the network would not look.
        margin = max(_MARGIN, max(size) // 8)
        padded = cv2.copyMakeBorder(image[..., ::-1], margin, margin, margin, margin, cv2.BORDER_REPLICATE)
        with self._lock, _quiet_opencv():
            if self._network is None:
                self._network = _load(self.score)
            self._network.setInputSize((padded.shape[1], padded.shape[0]))
            found = self._network.detect(padded)[1]
        if found is None:
            return np.empty((0, 15), np.float32)
        rows = found.astype(np.float64)
        stretch = np.array([width / size[0], height / size[1]])
        # Centres of pixels: x = (x_small + 1/2) * stretch - 1/2.
        points = (rows[:, 4:14].reshape(-1, 5, 2) - margin + 0.5) * stretch - 0.5
        corners = (rows[:, :2] - margin + 0.5) * stretch - 0.5
        return np.hstack([corners, rows[:, 2:4] * stretch, points.reshape(-1, 10), rows[:, 14:]]).astype(np.float32)


def _load(score: float) -> cv2.FaceDetectorYN:
    model = np.frombuffer(files("deocc.faces").joinpath(_MODEL).read_bytes(), np.uint8)
    return cv2.FaceDetectorYN.create("onnx", model, np.empty(0, np.uint8), (320, 320), score, 0.3, 5000)


def _distinct(rows: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    """Of rows that show the same face, the surest: boxes that share most of the smaller one show the same face."""
    kept: list[npt.NDArray[np.float32]] = []
    for row in rows[np.argsort(-rows[:, 14], kind="stable")]:
        if np.isfinite(row).all() and row[2] > 0 and row[3] > 0 and all(_shared(row, other) <= 0.5 for other in kept):
            kept.append(row)
    return kept


def _shared(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    overlap = np.minimum(one[:2] + one[2:4], other[:2] + other[2:4]) - np.maximum(one[:2], other[:2])
    return float(overlap.clip(min=0).prod() / min(one[2:4].prod(), other[2:4].prod()))


@contextmanager
def _quiet_opencv() -> Iterator[None]:
    """Hold back OpenCV's log: version 5 warns at every start of a network that it runs on the default target."""
    logging = cv2.utils.logging
    level = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_ERROR)
    try:
        yield
    finally:
        logging.setLogLevel(level)
