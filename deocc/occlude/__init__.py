"""Seeded synthesis of occlusions: an aligned face or any photo with five landmarks in, an occluded one out."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deocc.errors import InputError, UsageError
from deocc.occlude import masks, pasted, things
from deocc.occlude.paint import U8, Draw, Layer
from deocc.occlude.pose import Face, find_face
from deocc.ops import composite_uint8

__all__ = ["MASKTHEFACE", "Occlusion", "fingerprint", "kind_of", "kinds", "occlude"]

VERSION = 1
"""Raised whenever the same seed gives other bytes than before."""

# Name, share in the default mix (about two thirds are masks), painter.
_KINDS: Mapping[str, tuple[float, Callable[[Face, Draw], Layer]]] = {
    "surgical": (26, masks.surgical),
    "n95": (9, masks.n95),
    "kn95": (8, masks.kn95),
    "cloth": (18, masks.cloth),
    "template": (8, pasted.template),
    "sunglasses": (6, things.sunglasses),
    "scarf": (6, masks.scarf),
    "hand": (6, things.hand),
    "strokes": (5, things.strokes),
    "rectangle": (4, things.rectangle),
    "erase-lower": (1.5, things.erase_lower),
    "keypoint-hull": (1.5, things.keypoint_hull),
    "keypoint-paste": (2, pasted.keypoint_paste),
}

_FIXED: Mapping[str, tuple[float, Callable[[Face, Draw], Layer]]] = {
    **{f"template-{name}".replace("_", "-"): (1, partial(pasted.template, fixed=name)) for name in pasted.NAMES[:5]},
    **{
        f"template-cloth-{level}": (
            1,
            partial(pasted.template, fixed="cloth", colour_of_cloth=colour),
        )
        for level, colour in (
            ("333333", (51, 51, 51)),
            ("515151", (81, 81, 81)),
            ("929292", (146, 146, 146)),
            ("dadad9", (218, 218, 217)),
        )
    },
}

_ALL = {**_KINDS, **_FIXED}

MASKTHEFACE = tuple(_FIXED)
"""The nine masks that section 4.3 of canet tests on: kinds that are drawn only when they are named."""


class Occlusion(NamedTuple):
    """An occluded image.

    Attributes:
        image: uint8 (H, W, 3) RGB.
        occlusion: uint8 (H, W), 255 = occluded, 0 = untouched; edges, tinted glass and the shadow that a mask casts on
            the skin lie between. ``image`` is the original blended with paint by exactly these weights.
        parameters: JSON-able; ``kind``, ``seed`` and everything that was drawn from the seed.
    """

    image: U8
    occlusion: U8
    parameters: dict[str, Any]


def kinds() -> tuple[str, ...]:
    """Names of all kinds of occlusion that are drawn when none are named; those of :data:`MASKTHEFACE` exist too."""
    return tuple(_KINDS)


def fingerprint(kinds: Sequence[str] | None = None) -> str:
    """Sixteen hex digits that change when the same seed and kinds would give another picture.

    Raises:
        UsageError: a kind that does not exist.
    """
    names = sorted(_chosen(kinds))
    digest = hashlib.sha256("\n".join(["deocc.occlude", str(VERSION), *names]).encode())
    if not {"template", "keypoint-paste", *_FIXED}.isdisjoint(names):
        digest.update(pasted.assets_digest())
    return digest.hexdigest()[:16]


def occlude(
    image: NDArray[np.uint8], landmarks: NDArray[Any], seed: int, *, kinds: Sequence[str] | None = None
) -> Occlusion:
    """Occlude a face.

    Args:
        image: uint8 (H, W, 3) RGB, at least 16 pixels a side.
        landmarks: (5, 2) x, y in pixels of ``image``: eye, eye, nose, mouth corner, mouth corner, each pair from the
            viewer's left.
        seed: not negative. The same image, landmarks, seed and kinds give the same bytes on every machine.
        kinds: choose among these (see :func:`kinds`), whatever their order, in the proportions that they have among
            all. None means all: of 101 images, 26 surgical masks, 18 cloth, 9 N95, 8 KN95, 8 templates; 6 sunglasses,
            6 scarves, 6 hands, 5 strokes, 4 rectangles; 5 of the three ad-hoc kinds of the IAMGAN paper.

    Raises:
        InputError: an image or landmarks that cannot be used.
        UsageError: an unknown kind, an empty list of kinds, a seed that is not a whole number from 0 up.
    """
    names = _chosen(kinds)
    points = _check(image, landmarks, seed)
    draw = Draw(seed)
    kind = _pick(draw, names)
    face = find_face(image, points)
    top, left, fill, alpha = _ALL[kind][1](face, draw)
    occluded, occlusion = image.copy(), np.zeros(image.shape[:2], np.uint8)
    area = slice(top, top + alpha.shape[0]), slice(left, left + alpha.shape[1])
    occluded[area] = composite_uint8(occluded[area], fill, alpha)
    occlusion[area] = alpha
    return Occlusion(occluded, occlusion, {"kind": kind, "seed": int(seed), "version": VERSION, **draw.record})


def kind_of(seed: int, *, kinds: Sequence[str] | None = None) -> str:
    """The kind that :func:`occlude` draws from a seed, whatever the image; it raises UsageError as that does."""
    names = _chosen(kinds)
    _check_seed(seed)
    return _pick(Draw(seed), names)


def _pick(draw: Draw, names: Sequence[str]) -> str:
    return draw.pick("kind", names, [_ALL[name][0] for name in names])


def _chosen(kinds: Sequence[str] | None) -> tuple[str, ...]:
    if kinds is None:
        return tuple(_KINDS)
    if isinstance(kinds, str):
        raise UsageError(f"kinds must be a sequence of names such as [{kinds!r}], got the string {kinds!r}")
    for name in kinds:
        if name not in _ALL:
            close = difflib.get_close_matches(str(name), _ALL, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UsageError(f"unknown kind of occlusion {name!r}{hint} (there are {', '.join(_ALL)})")
    if not kinds:
        raise UsageError(f"kinds must name at least one of {', '.join(_KINDS)}, or be None for all, got none")
    return tuple(name for name in _ALL if name in kinds)


def _check(image: Any, landmarks: Any, seed: Any) -> NDArray[np.float64]:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        came = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"the image must be a uint8 array (H, W, 3), got {came}")
    height, width = image.shape[:2]
    if min(height, width) < 16:
        raise InputError(f"the image must be at least 16 pixels high and wide, got {height}x{width}")
    try:
        points = np.asarray(landmarks, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"landmarks must be numbers (5, 2), got {type(landmarks).__name__}") from None
    if points.shape != (5, 2):
        raise InputError(f"landmarks must have shape (5, 2), got {points.shape}")
    if not np.isfinite(points).all():
        raise InputError("landmarks must be finite, got NaN or infinity")
    inside = (points >= 0) & (points <= (width - 1, height - 1))
    if inside.all(axis=1).sum() < 3 or np.abs(points).max() > 4 * max(height, width):
        raise InputError(
            f"at least three of the five landmarks must lie inside the image of {width}x{height} pixels, "
            f"got {points.round(1).tolist()}"
        )
    _check_seed(seed)
    return points


def _check_seed(seed: Any) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise UsageError(f"the seed must be a whole number from 0 up, got {seed!r}")
