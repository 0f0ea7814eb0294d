"""A face made of integers, so that nothing but the code under test decides its bytes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

FRONTAL = np.array([(43.8, 60.2), (84.2, 59.8), (64.0, 83.0), (47.5, 106.7), (81.0, 106.5)]) * 0.75 + 16
"""Five landmarks in a picture of 128x128: eyes level, nose and mouth in the middle."""


def picture(height: int, width: int) -> NDArray[np.uint8]:
    """Skin with a slope of light from the right, a darker ground, and a little texture."""
    y, x = np.mgrid[:height, :width]
    inside = (2 * x - width) ** 2 * height**2 + (2 * y - height) ** 2 * width**2 < (height * width) ** 2 * 3 // 4
    base = np.where(inside, 120 + 60 * x // width, 50 + 30 * y // height) + (x * 7 + y * 13 + x * y) % 9
    return np.stack([base + 20, base, base - 20], axis=-1).clip(0, 255).astype(np.uint8)


@pytest.fixture
def face() -> Callable[..., tuple[NDArray[np.uint8], NDArray[np.float64]]]:
    """``face(height=128, width=128)`` -> image and landmarks that fill it like an aligned crop."""

    def make(height: int = 128, width: int = 128) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        scale = min(height, width) / 128
        landmarks = FRONTAL * scale + ((width - 128 * scale) / 2, (height - 128 * scale) / 2)
        return picture(height, width), landmarks

    return make
