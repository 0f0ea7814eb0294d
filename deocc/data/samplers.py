"""Masked and unmasked faces for training, paired and unpaired."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from deocc.data.packed import PackedFaces
from deocc.errors import UsageError

if TYPE_CHECKING:
    from deocc.occlude import Occlusion

__all__ = ["PairedFaces", "PairedSampler", "UnpairedFaces", "UnpairedSampler"]

Occlude = Callable[[npt.NDArray[np.uint8], npt.NDArray[np.float32], int], "Occlusion"]


class PairedFaces(NamedTuple):
    """One face with and without an occlusion.

    Attributes:
        masked: uint8 RGB (S, S, 3), occluded.
        full: uint8 RGB (S, S, 3), the same image as it was.
        occlusion: uint8 (S, S), 255 = occluded.
        landmarks: float32 (5, 2), x and y in pixels.
        identity: number of the identity, -1 when nobody is named.
    """

    masked: npt.NDArray[np.uint8]
    full: npt.NDArray[np.uint8]
    occlusion: npt.NDArray[np.uint8]
    landmarks: npt.NDArray[np.float32]
    identity: int


class UnpairedFaces(NamedTuple):
    """An occluded face and a full face that have nothing to do with each other: uint8 RGB (S, S, 3) each."""

    masked: npt.NDArray[np.uint8]
    full: npt.NDArray[np.uint8]


class PairedSampler:
    """Each packed face with a synthetic occlusion: a map-style dataset.

    An item depends on the seed and its index alone. Indices go on for ever: index ``epoch * len(self) + i`` is face i
    with an occlusion of its own in every epoch.

    Args:
        faces: what to occlude.
        seed: of the occlusions.
        occlude: (image, landmarks, seed) -> ``deocc.occlude.Occlusion``; None is ``deocc.occlude.occlude`` with all
            kinds.
    """

    def __init__(self, faces: PackedFaces, *, seed: int = 0, occlude: Occlude | None = None) -> None:
        if occlude is None:
            from deocc.occlude import occlude as every_kind

            occlude = every_kind
        self.faces, self.seed, self.occlude = faces, seed, occlude

    def __len__(self) -> int:
        return len(self.faces)

    def __iter__(self) -> Iterator[PairedFaces]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> PairedFaces:
        _check_index(index)
        face = self.faces[index % len(self)]
        made = self.occlude(face.image, face.landmarks, _seed(self.seed, index))
        return PairedFaces(made.image, face.image, made.occlusion, face.landmarks, face.identity)


class UnpairedSampler:
    """Occluded faces beside full faces of other images: a map-style dataset.

    An item depends on the seed and its index alone. Index ``epoch * len(self) + i`` is masked face i beside a full face
    that is drawn anew in every epoch; in an epoch no full face comes again before all have come.

    Args:
        masked: the masked faces: photos of real masks, or a :class:`PairedSampler` of which the masked side is taken.
        full: the full faces; their crop must be that of the masked ones.
        seed: of the draw.

    Raises:
        UsageError: the crops differ, or one side is empty.
    """

    def __init__(self, masked: PackedFaces | PairedSampler, full: PackedFaces, *, seed: int = 0) -> None:
        crop = masked.faces.crop if isinstance(masked, PairedSampler) else masked.crop
        if crop != full.crop:
            raise UsageError(f"masked and full faces must share one crop, got {crop} and {full.crop}")
        if not len(masked) or not len(full):
            raise UsageError(f"both sides want faces, got {len(masked)} masked and {len(full)} full ones")
        self.masked, self.full, self.seed = masked, full, seed
        self._drawn: tuple[int, npt.NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self.masked)

    def __iter__(self) -> Iterator[UnpairedFaces]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> UnpairedFaces:
        _check_index(index)
        epoch, position = divmod(index, len(self))
        if isinstance(self.masked, PairedSampler):
            masked = self.masked[index].masked
        else:
            masked = self.masked[position].image
        return UnpairedFaces(masked, self.full[int(self._order(epoch)[position % len(self.full)])].image)

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.full))
        return self._drawn[1]


def _seed(seed: int, index: int) -> int:
    """A seed for one item, unlike those of its neighbours."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


def _check_index(index: int) -> None:
    if index < 0:
        raise IndexError(f"indices count from 0 and go on for ever, got {index}")
