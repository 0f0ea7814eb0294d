"""The configuration that both algorithms share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """How far inpainting looks.

    Attributes:
        radius: of the neighbourhood that a hidden pixel is computed from, in pixels, above 0 and at most 100.
    """

    radius: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.radius <= 100:
            raise ValueError(f"radius must be above 0 and at most 100 pixels, got {self.radius:g}")
