"""The faces judged on, and what is put over them."""

from __future__ import annotations

import dataclasses
import inspect
import threading
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deocc import method
from deocc.config import did_you_mean
from deocc.data import READERS, PackedFaces, Source
from deocc.errors import InputError, UsageError
from deocc.faces import Crop, Detector, align, align_occlusion
from deocc.images import to_tensor, to_uint8
from deocc.judge.parts import load_occluder
from deocc.judge.result import Masks
from deocc.occlude import fingerprint, kind_of, occlude

__all__ = ["SPLITS", "Face", "Faces", "NoFaceError", "Occluding", "open_faces", "transferred"]

U8 = NDArray[np.uint8]

SPLITS = ("train", "test", "valid", "validation")
"""What parts of data sets are called."""

_reading = threading.Lock()


class NoFaceError(InputError):
    """No face was found in an image, or none that could be used."""


@dataclasses.dataclass(frozen=True, eq=False)
class Face:
    """One face in the picture that it is judged in: a photo, or an aligned crop of one.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        landmarks: (5, 2) in its pixels.
        crop: the alignment, where the picture is an aligned crop.
    """

    image: U8
    landmarks: NDArray[np.floating]
    crop: Crop | None = None

    def cut(self, crop: Crop) -> U8:
        """The aligned crop; the picture itself where it is that crop."""
        return self.image if crop == self.crop else align(self.image, self.landmarks, crop)

    def cut_occlusion(self, occlusion: U8, crop: Crop) -> U8:
        """How far each pixel of the crop is occluded, 255 = wholly, 0 = not at all: uint8 (H, W) -> (S, S)."""
        return occlusion if crop == self.crop else align_occlusion(occlusion, self.landmarks, crop)

    def moved(self, crop: Crop) -> NDArray[np.float64]:
        """The landmarks in the pixels of the crop."""
        if crop == self.crop:
            return self.landmarks.astype(np.float64)
        matrix = crop.matrix(self.landmarks)
        points: NDArray[np.float64] = self.landmarks @ matrix[:, :2].T + matrix[:, 2]
        return points


def transferred(base: U8, restored: U8, occlusion: U8, landmarks: NDArray[Any], crop: Crop) -> U8:
    """A restored crop brought into another crop of the same face, where it was restored and nowhere else.

    Pixels of the other crop that a restored pixel reaches come from the restored crop, by one interpolation; all others
    are ``base``, to the bit. So visible pixels do not depend on the restorer's resolution.

    Args:
        base: uint8 (T, T, 3), the other crop of the occluded face.
        restored: uint8 (S, S, 3).
        occlusion: uint8 (S, S), above 0 = restored.
        landmarks: (5, 2) in the pixels of the restored crop.
        crop: the other crop.
    """
    if not occlusion.any():
        return base
    reached = align_occlusion(occlusion, landmarks, crop)
    return np.where(reached[:, :, None] > 0, align(restored, landmarks, crop), base)


class Faces:
    """A data set's images by name.

    Attributes:
        title, kind, split: as in :class:`deocc.judge.result.Data`.
        names: of all images, sorted.
        partial: this is part of a data set, so that lists for the whole of it name images that are not here.
        source: the reader, where the images are not packed.
        notes: name of an image that was loaded -> what was odd about it.
    """

    def __init__(
        self,
        names: Sequence[str],
        load: Callable[[str], Face],
        identity: Callable[[str], str | None],
        *,
        title: str,
        kind: str,
        split: str = "",
        partial: bool = False,
        source: Source | None = None,
        occluded: Callable[[str], bool | None] | None = None,
    ) -> None:
        self.names = tuple(sorted(names))
        self.title, self.kind, self.split, self.partial, self.source = title, kind, split, partial, source
        self._present = frozenset(self.names)
        self._load, self._identity, self._occluded = load, identity, occluded
        self.notes: dict[str, str] = {}
        self.found_landmarks = 0
        self.stored_landmarks = 0

    def __contains__(self, name: str) -> bool:
        return name in self._present

    def identity(self, name: str) -> str | None:
        """Who is shown, or None where the data do not say."""
        return self._identity(name)

    def occluded(self, name: str) -> bool | None:
        """Whether the face is occluded in the photo already, or None where the data do not say."""
        return None if self._occluded is None else self._occluded(name)

    def masked(self, name: str) -> bool:
        """Whether the face is occluded in the photo already, where real masks are judged.

        Raises:
            InputError: the data do not say.
        """
        said = self.occluded(name)
        if said is None:
            raise InputError(
                f"{self.title} does not say which faces are occluded (such as {name}), so real masks cannot be told "
                "from full faces: use a data set that says it, such as rmfrd or mfr2"
            )
        return said

    def load(self, name: str) -> Face:
        """Read an image.

        Raises:
            NoFaceError: no face was found in it, or its landmarks lie beyond it.
            InputError: it cannot be read.
        """
        face = self._load(name)
        height, width = face.image.shape[:2]
        inside = ((face.landmarks >= 0) & (face.landmarks <= (width - 1, height - 1))).all(axis=1)
        if inside.sum() < 3:
            raise NoFaceError(f"{name}: {5 - int(inside.sum())} of the five landmarks lie outside the image")
        return face

    def landmarks(self) -> str:
        """Where the landmarks of the images loaded so far are from."""
        found = [word for word, count in (("stored", self.stored_landmarks), ("found", self.found_landmarks)) if count]
        return " and ".join(found)


def open_faces(data: str | Path | Source | PackedFaces) -> Faces:
    """Open the data to judge on.

    Args:
        data: packed faces or their folder; ``KIND:FOLDER`` or ``KIND:FOLDER:SPLIT`` with a kind of
            :data:`deocc.data.READERS`; any other folder, read as ``identities`` where it has folders with images in
            it, else as ``folder``; or a :class:`deocc.data.Source`.

    Raises:
        UsageError: an unknown kind, or a split of a data set that has no parts.
        InputError: the folder is missing, or holds no images.
    """
    if isinstance(data, PackedFaces):
        return _packed(data)
    if isinstance(data, Source):
        return _read(data, kind=next((name for name, reader in READERS.items() if type(data) is reader), "folder"))
    text = str(data)
    kind, colon, rest = text.partition(":")
    if colon and not Path(text).exists():
        if kind not in READERS:
            raise UsageError(
                f"there is no kind of data set {kind!r}; {did_you_mean(kind, READERS)} (kinds: {', '.join(READERS)})"
            )
        folder, _, split = rest.rpartition(":") if ":" in rest and not Path(rest).exists() else (rest, "", "")
        reader: Any = READERS[kind]
        if not split:
            return _read(reader(folder), kind=kind)
        if "split" not in inspect.signature(reader).parameters:
            raise UsageError(f"a data set of kind {kind!r} has no parts, got the part {split!r}")
        return _read(reader(folder, split=split), kind=kind, split=split)
    path = Path(text)
    if (path / "index.json").is_file():
        return _packed(PackedFaces(path))
    source = READERS["folder"](path)
    if any("/" in name for name in source.names):
        return _read(READERS["identities"](path), kind="identities")
    return _read(source, kind="folder")


def _packed(faces: PackedFaces) -> Faces:
    if len(faces.paths) > 1:  # who is the same person in two of them is not known
        raise UsageError(f"packs are judged one by one, got {len(faces.paths)} that were joined: {faces.title}")
    position = {name: number for number, name in enumerate(faces.names)}

    def load(name: str) -> Face:
        number = position[name]
        opened.stored_landmarks += 1
        return Face(np.ascontiguousarray(faces.images[number]), faces.landmarks[number], faces.crop)

    def identity(name: str) -> str | None:
        number = int(faces.identities[position[name]])
        return None if number < 0 else faces.identity_names[number]

    split = faces.title.rpartition(" ")[2]
    if split not in SPLITS:
        split = ""
    opened = Faces(faces.names, load, identity, title=faces.title, kind="packed", split=split, partial=True)
    return opened


def _read(source: Source, *, kind: str, split: str = "") -> Faces:
    if not split:
        split = str(getattr(source, "split", None) or "")
    detector = Detector()

    def load(name: str) -> Face:
        sample = source[source.index(name)]
        # Warnings belong to the process: another thread's must not be caught with them.
        with _reading, warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                image = sample.read()
            except InputError as error:  # a report names no folder of the machine
                raise InputError(str(error).replace(str(sample.path), name)) from error
        if said:
            opened.notes[name] = str(said[0].message).replace(str(sample.path), name)
        if sample.landmarks is not None:
            opened.stored_landmarks += 1
            return Face(image, sample.landmarks)
        found = detector.detect(image)
        if not found:
            raise NoFaceError(f"{name}: no face was found")
        opened.found_landmarks += 1
        return Face(image, found[0].landmarks)

    def identity(name: str) -> str | None:
        return source[source.index(name)].identity

    def occluded(name: str) -> bool | None:
        said = source.attributes(name).get("masked")
        return None if said is None else bool(said)

    opened = Faces(
        source.names,
        load,
        identity,
        title=source.title,
        kind=kind,
        split=split,
        partial=bool(split),
        source=source,
        occluded=occluded,
    )
    return opened


class Occluding:
    """What is put over a face: decided by the seed and the image's name, so that any part of a data set agrees.

    Args:
        occluder: the name of an installed occluder, an :class:`deocc.method.Occluder`, None for ``deocc.occlude``, or
            "real": the images show occluded faces already.
        kinds: kinds of ``deocc.occlude`` to draw from; None for all.
        seed: not negative.
        device: where an installed occluder computes.

    Raises:
        UsageError: kinds together with another occluder, a seed below 0; else as in :func:`deocc.plugins.load`.
    """

    def __init__(
        self,
        occluder: str | method.Occluder | None = None,
        kinds: Sequence[str] | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        if seed < 0:
            raise UsageError(f"the seed must be 0 or more, got {seed}")
        if kinds is not None and occluder is not None:
            raise UsageError("kinds are those of deocc.occlude: they cannot be chosen for another occluder")
        self.seed, self.kinds = seed, None if kinds is None else tuple(kinds)
        self.real = occluder == "real"
        self._part: method.Occluder | None = None
        self._lock = threading.Lock()
        self.name = "deocc.occlude"
        if occluder is None:
            self._mark = fingerprint(self.kinds)
        elif self.real:
            self.name, self._mark = "real", ""
        else:
            self._part, self.name, self._mark = load_occluder(occluder, device)

    @property
    def crop(self) -> Crop | None:
        """The aligned crop that an installed occluder works on; None where photos are occluded."""
        return None if self._part is None else Crop(self._part.crop_size, self._part.crop_zoom)

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything that decides what is put over an image of a given name, JSON-able."""
        return {"occluder": self.name, "fingerprint": self._mark, "seed": self.seed, "kinds": self.kinds}

    def result(self, names: Sequence[str]) -> Masks:
        """How a report names it; ``names`` are the images that were occluded."""
        counts: dict[str, int] = {}
        for name in names:
            counts[self.kind(name)] = counts.get(self.kind(name), 0) + 1
        kinds: tuple[str, ...] = ()
        if self._part is None and not self.real:
            kinds = tuple(sorted(counts)) if self.kinds is None else self.kinds
        return Masks(self.name, kinds, self.seed, self._mark, dict(sorted(counts.items())))

    def seed_of(self, name: str) -> int:
        """The seed of an image, whatever its suffix: that of ``deocc occlude`` for a photo of that name and place."""
        place = f"{PurePosixPath(name).with_suffix('.png')}#0"
        return (self.seed + zlib.crc32(place.encode("utf-8", "surrogateescape"))) % 2**31

    def kind(self, name: str) -> str:
        """The kind of occlusion over an image."""
        if self._part is not None or self.real:
            return self.name
        return kind_of(self.seed_of(name), kinds=self.kinds)

    def prepared(self, face: Face) -> Face:
        """The face as it is judged: for an installed occluder, its own aligned crop stands for the photo."""
        crop = self.crop
        if crop is None:
            return face
        return Face(face.cut(crop), face.moved(crop), crop)

    def occluded(self, name: str, face: Face) -> tuple[U8, U8]:
        """The occluded picture, uint8 (H, W, 3), and its occlusion, uint8 (H, W), 255 = occluded.

        Raises:
            NoFaceError: the landmarks do not lie in the picture.
        """
        if self.real:
            return face.image, np.zeros(face.image.shape[:2], np.uint8)
        seed = self.seed_of(name)
        if self._part is None:
            try:
                made = occlude(face.image, face.landmarks, seed, kinds=self.kinds)
            except InputError as error:
                raise NoFaceError(f"{name}: nothing can be put over this face: {error}") from error
            return made.image, made.occlusion
        with self._lock, torch.no_grad():
            put = self._part(to_tensor(face.image), seed)
        hidden = (put.occlusion.cpu().float()[0, 0] * 255).round().to(torch.uint8).numpy()
        return to_uint8(put.image)[0], hidden
