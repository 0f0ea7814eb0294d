"""The synthesis protocol of section 4.1: 45 occluders of four categories, expressed with :mod:`deocc.occlude`.

The paper pastes photographs of masks, hands and hair that it does not publish. Here an occluder is a kind of
:func:`deocc.occlude.occlude` with a fixed seed: the seed fixes its shape, colour and pattern, and the face's landmarks
and light where it lies and how bright it is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deocc.occlude import occlude

CATEGORIES = ("simple", "complex", "human-body", "hybrid")
"""Man-made objects of one colour; with textures or logos; hands; two of these, or one and glasses."""


class Occluder(NamedTuple):
    """One of the 45.

    Attributes:
        category: of :data:`CATEGORIES`.
        layers: kind and seed of each thing, the lowest first.
    """

    category: str
    layers: tuple[tuple[str, int], ...]


def _each(category: str, **seeds: tuple[int, ...]) -> list[Occluder]:
    return [Occluder(category, ((kind, seed),)) for kind, chosen in seeds.items() for seed in chosen]


_MASKS = (("surgical", 0), ("kn95", 0), ("cloth", 8), ("cloth", 23), ("cloth", 3), ("cloth", 49))

# The seeds are the first that give a new colour, a pattern (in the order of deocc.occlude's), a print.
OCCLUDERS: tuple[Occluder, ...] = (
    *_each("simple", surgical=(0, 2, 4, 5, 7), n95=(0, 2), kn95=(0, 1), cloth=(4, 8, 10)),
    *_each("complex", cloth=(23, 3, 13, 0, 49, 11, 9), surgical=(15, 24), scarf=(0, 3, 9)),
    *_each("human-body", hand=tuple(range(9))),
    *(Occluder("hybrid", (mask, ("sunglasses", seed))) for seed, mask in enumerate(_MASKS)),
    *(Occluder("hybrid", (mask, ("hand", seed))) for seed, mask in enumerate(_MASKS, 20)),
)


def paste(
    image: NDArray[np.uint8], landmarks: NDArray[np.float32], occluder: Occluder
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Put an occluder on a face.

    Args:
        image: uint8 (H, W, 3) RGB.
        landmarks: (5, 2) in pixels, as :func:`deocc.occlude.occlude` takes them.
        occluder: which one.

    Returns:
        the occluded image, and the occlusion: uint8 (H, W), 255 = occluded.

    Raises:
        InputError: an image or landmarks that cannot be used.
    """
    pasted, visible = image.astype(np.int32), np.full(image.shape[:2], 255, np.int32)
    for kind, seed in occluder.layers:
        # Each thing is drawn on the true face, whose skin and light it looks at, and then moved over what is there.
        made = occlude(image, landmarks, seed, kinds=(kind,))
        through = 255 - made.occlusion.astype(np.int32)
        pasted = made.image + (pasted - image) * through[..., None] // 255
        visible = visible * through // 255
    return pasted.clip(0, 255).astype(np.uint8), (255 - visible).astype(np.uint8)


def choose(generator: np.random.Generator) -> Occluder:
    """One of the occluders: a category first, so that each is seen as often, then one of it."""
    category = CATEGORIES[int(generator.integers(len(CATEGORIES)))]
    inside = [occluder for occluder in OCCLUDERS if occluder.category == category]
    return inside[int(generator.integers(len(inside)))]
