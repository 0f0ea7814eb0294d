"""The whole job: a photograph in, the faces in it found, aligned, restored and pasted back.

>>> import deocc
>>> result = deocc.unmask("photo.jpg")                              # doctest: +SKIP
>>> deocc.images.write_image("unmasked.png", result.photo)          # doctest: +SKIP

Restored pixels are invented: they show a face that is likely, not the face that was hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from deocc.errors import InputError, UsageError
from deocc.faces import Crop, Detector, align, paste_back
from deocc.images import check_image, read_image, to_tensor, to_uint8

if TYPE_CHECKING:
    from deocc.faces import Face
    from deocc.method import Restorer

FEATHER = 2.0
"""Width of the seam in crop pixels: see :func:`deocc.faces.paste_back`. It lies outside what hides the face, so that it
does not blend with that: an occlusion that is given is grown by as much inside the crop, and about one that is found
the seam blends the photo with the crop's own visible pixels."""

_GROWTH = np.ones((5, 5), dtype=np.uint8)  # two pixels to each side

_BATCH = 16
"""Faces restored at once: a photo of a crowd must not need memory for all of its faces at once."""


@dataclass(frozen=True, eq=False)
class UnmaskedFace:
    """One face of a photo.

    Attributes:
        box: (4,) float32: left, top, width, height in pixels of the photo.
        landmarks: (5, 2) float32, x and y in pixels of the photo.
        matrix: (2, 3) float64, the similarity that takes a point of the photo to the crop.
        before, after: (S, S, 3) uint8 RGB, the aligned crop and what the restorer made of it.
        occlusion: (S, S) uint8, 255 = occluded: what was restored, which is the occlusion that was given, grown by the
            width of the seam, or the one the restorer found.
        extras: what else the restorer returned, name -> (C, h, w) float32.
    """

    box: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    matrix: NDArray[np.float64]
    before: NDArray[np.uint8]
    occlusion: NDArray[np.uint8]
    after: NDArray[np.uint8]
    extras: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


class UnmaskResult(NamedTuple):
    """What :func:`unmask` returns: the whole photo, (H, W, 3) uint8 RGB, and its faces, the largest first."""

    photo: NDArray[np.uint8]
    faces: tuple[UnmaskedFace, ...]


def unmask(
    photo: str | Path | NDArray[np.uint8],
    *,
    method: str = "canet",
    occlusion: str | Path | NDArray[np.uint8] | None = None,
    weights: str | Path | None = None,
    device: str = "cpu",
    faces: Literal["all", "largest"] = "all",
    restorer: Restorer | None = None,
    detector: Detector | None = None,
) -> UnmaskResult:
    """Find the faces in a photo, restore what is occluded and paste it back; the rest of the photo stays as it is.

    Args:
        photo: an image file, or (H, W, 3) uint8 RGB.
        method: an installed method with a restorer, as listed by ``deocc methods``.
        occlusion: what is occluded, in the photo's own pixels: an image file, or (H, W) uint8; above 127 = occluded,
            and what is transparent is not. None has the restorer find it, if it can.
        weights: a safetensors file for the method; by default the one packaged with it.
        device: where the restorer computes, such as ``"cpu"`` or ``"cuda:0"``.
        faces: ``"all"``, or the ``"largest"`` alone.
        restorer, detector: objects to use again from photo to photo; ``restorer`` replaces ``method``, ``weights`` and
            ``device``.

    Returns:
        the photo and its faces. Pixels outside the occlusion are bit-identical to the photo's (if it was found: those
        that are further from it than :data:`FEATHER`), unless the restorer redraws the whole face.

    Raises:
        InputError: the photo or the occlusion cannot be read or does not fit, or there is no face in the photo.
        UsageError: no such method, or it cannot find the occlusion and none was given.
        PluginError, WeightsError: as :func:`deocc.plugins.load` does.
    """
    if faces not in ("all", "largest"):
        raise UsageError(f"faces must be 'all' or 'largest', got {faces!r}")
    picture, name = _read_photo(photo)
    hidden = None if occlusion is None else read_occlusion(occlusion, picture)
    if restorer is None:
        from deocc.plugins import load

        restorer = load(method, "restorer", weights=weights, device=device)
    found = (detector or Detector()).detect(picture)
    if not found:
        raise InputError(f"{name}: no face was found")
    if faces == "largest":
        found = found[:1]

    unmasked: list[UnmaskedFace] = []
    for start in range(0, len(found), _BATCH):
        unmasked += _restore(picture, hidden, found[start : start + _BATCH], restorer)
    result = picture
    # The smallest first, so that where two crops overlap the larger face has the last word.
    for face in reversed(unmasked):
        where = face.occlusion
        if restorer.redraws_face:
            where = np.full_like(where, 255)
        elif hidden is None:
            where = cv2.dilate(where, _GROWTH).astype(np.uint8)
        result = paste_back(result, face.after, where, face.matrix, feather=FEATHER)
    if hidden is not None and not restorer.redraws_face:
        result = np.where(hidden[:, :, None] > 0, result, picture)
    return UnmaskResult(result, tuple(unmasked))


def read_occlusion(occlusion: str | Path | NDArray[np.uint8], photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The occlusion of a photo as (H, W) uint8 of 0 and 255, from a grey or RGB image file or a (H, W) uint8 array.

    Raises:
        InputError: it cannot be read, is no such array, or is not as large as the photo.
    """
    if isinstance(occlusion, np.ndarray):
        name, grey = "the occlusion", occlusion
        if grey.dtype != np.uint8 or grey.ndim != 2:
            raise InputError(f"the occlusion must be a uint8 array (H, W), got {grey.dtype} {grey.shape}")
    elif not isinstance(occlusion, str | Path):
        raise InputError(f"the occlusion must be a path or a uint8 array (H, W), got {type(occlusion).__name__}")
    else:
        name, grey = str(occlusion), read_image(occlusion, background=0).max(axis=2)
    if grey.shape != photo.shape[:2]:
        raise InputError(
            f"{name} must be as large as the photo, {photo.shape[1]}x{photo.shape[0]}, got "
            f"{grey.shape[1]}x{grey.shape[0]}"
        )
    return np.where(grey > 127, 255, 0).astype(np.uint8)


def _read_photo(photo: str | Path | NDArray[np.uint8]) -> tuple[NDArray[np.uint8], str]:
    if isinstance(photo, (str, Path)):
        return read_image(photo), str(photo)
    check_image(photo, "the photo")
    return np.ascontiguousarray(photo), "the photo"


def _restore(
    photo: NDArray[np.uint8], hidden: NDArray[np.uint8] | None, faces: Sequence[Face], restorer: Restorer
) -> list[UnmaskedFace]:
    """Restore a batch of faces in their aligned crops."""
    crop = Crop(restorer.crop_size, restorer.crop_zoom)
    before = np.stack([align(photo, face.landmarks, crop) for face in faces])
    given = None
    if hidden is not None:
        three = np.repeat(hidden[:, :, None], 3, axis=2)
        crops = [align(three, face.landmarks, crop)[:, :, 0] for face in faces]
        # A crop pixel that is occluded in part is occluded.
        grown = np.stack([cv2.dilate(np.where(one > 31, 1, 0).astype(np.float32), _GROWTH) for one in crops])
        given = torch.from_numpy(grown[:, None])
    with torch.no_grad():
        restored = restorer(to_tensor(before), given)
    after = to_uint8(restored.image)
    # A restorer may have used gradients of its own.
    hides = restored.occlusion.detach().cpu().float()[:, 0]
    for image, old, where in zip(after, before, hides.numpy(), strict=True):
        visible = old[where == 0]
        if visible.size and (visible == visible[:, :1]).all():  # a black-and-white photo
            image[:] = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, None]
    occlusion = (hides * 255).round().to(torch.uint8).numpy()
    extras = {name: values.detach().cpu().float().numpy() for name, values in restored.extras.items()}
    return [
        UnmaskedFace(
            box=face.box,
            landmarks=face.landmarks,
            matrix=crop.matrix(face.landmarks),
            before=before[i],
            occlusion=occlusion[i],
            after=after[i],
            extras={name: values[i] for name, values in extras.items()},
        )
        for i, face in enumerate(faces)
    ]
