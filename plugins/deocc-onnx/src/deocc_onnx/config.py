"""Which network, and how its faces are to be laid out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Three = tuple[float, float, float]
Point = tuple[float, float]


@dataclass(frozen=True)
class Config:
    """Which network.

    Attributes:
        model: the ONNX file.
        layout: a TOML file with the fields of :class:`Layout`, or the name of one that is packaged; None is the file
            beside the model, with the suffix ``.toml``.
    """

    model: Path | None = None
    layout: Path | None = None


@dataclass(frozen=True)
class Layout:
    """How a network wants its faces, and what runs it.

    The network is given ``(pixel * scale - mean) / std``, float32 (N, 3, size, size), where a pixel is in [0, 1].

    Attributes:
        size: side of the network's square input in pixels.
        zoom: scale of the five-point ArcFace template about the middle of the input; 1.0 is ArcFace's own alignment.
        points: where the five points lie in the network's input instead, as (x, y) in pixels: the eye on the left of
            the picture, the eye on its right, the nose tip, the mouth corners on the left and on the right. None goes
            by ``zoom``.
        channels: their order.
        scale: 255.0 or 1.0, say: what white is before mean and std.
        mean, std: for each channel, in that order.
        batch: False for a network that takes one face at a time.
        output: name of the output that is the embedding; empty where there is one output only.
        runtime: ``"opencv"`` needs nothing more, ``"onnxruntime"`` is to be installed.
    """

    size: int = 112
    zoom: float = 1.0
    points: tuple[Point, Point, Point, Point, Point] | None = None
    channels: Literal["rgb", "bgr"] = "rgb"
    scale: float = 255.0
    mean: Three = (0.0, 0.0, 0.0)
    std: Three = (1.0, 1.0, 1.0)
    batch: bool = True
    output: str = ""
    runtime: Literal["opencv", "onnxruntime"] = "opencv"

    def __post_init__(self) -> None:
        if self.points is not None and self.zoom != 1.0:
            raise ValueError("zoom and points say the same in two ways: give one of them")
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")
        if not all(value > 0 and math.isfinite(value) for value in (self.zoom, self.scale, *self.std)):
            raise ValueError(
                f"zoom, scale and std must be above 0 and finite, got {self.zoom:g}, {self.scale:g} and {self.std}"
            )
        if not all(math.isfinite(value) for value in self.mean):
            raise ValueError(f"mean must be finite, got {self.mean}")
