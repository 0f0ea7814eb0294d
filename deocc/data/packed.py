"""Packed faces: aligned crops that training reads without decoding anything."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, overload

import numpy as np
import numpy.typing as npt

from deocc.errors import InputError, UsageError
from deocc.faces import Crop
from deocc.files import sha256

__all__ = ["PackedFace", "PackedFaces", "RowView", "check", "concatenate"]

FORMAT = "deocc packed faces"
VERSION = 1
IMAGES, LANDMARKS, FIELDS = "images.npy", "landmarks.npy", "fields.npy"
"""The files of a pack beside its index. Fields are there where the index names their face model."""


class PackedFace(NamedTuple):
    """One packed face.

    Attributes:
        image: uint8 RGB (S, S, 3), a view of the file.
        landmarks: float32 (5, 2), x and y in pixels of the crop.
        identity: number of the identity, -1 when nobody is named.
        name: the name of the image in its data set.
        field: uint8 (S, S, 3): U, V and where the face is, see :attr:`PackedFaces.fields`; None where not packed.
    """

    image: npt.NDArray[np.uint8]
    landmarks: npt.NDArray[np.float32]
    identity: int
    name: str
    field: npt.NDArray[np.uint8] | None = None


class RowView:
    """Chosen rows of several uint8 arrays (n, S, S, 3), seen as one array that is read when it is indexed.

    Indexing with a number gives a view (S, S, 3); with a slice, a list or an array of numbers a copy (n, S, S, 3).
    """

    def __init__(
        self, arrays: Sequence[npt.NDArray[np.uint8]], part: npt.NDArray[np.int64], row: npt.NDArray[np.int64]
    ) -> None:
        self._arrays, self._part, self._row = tuple(arrays), part, row
        self.shape: tuple[int, int, int, int] = (len(row), *self._arrays[0].shape[1:])
        self.dtype = np.dtype(np.uint8)
        self.ndim = 4

    def __len__(self) -> int:
        return len(self._row)

    def __getitem__(self, index: int | slice | Sequence[int] | npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        if isinstance(index, int | np.integer):
            view: npt.NDArray[np.uint8] = self._arrays[self._part[index]][self._row[index]]
            return view
        part, row = self._part[index], self._row[index]
        out = np.empty((len(row), *self.shape[1:]), np.uint8)
        for number in np.unique(part):
            inside = part == number
            out[inside] = self._arrays[number][row[inside]]
        return out

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("these rows lie in several places: they cannot become one array without a copy")
        return self[:].astype(dtype or np.uint8, copy=False)


class PackedFaces:
    """Faces made by :func:`deocc.data.pack`: opened, checked for shape and size, and read as needed.

    An object that is pickled (for the workers of a data loader) carries the path and opens the file again there.

    Args:
        path: the folder that ``pack`` wrote.

    Attributes:
        images: uint8 RGB (N, S, S, 3): a memory map, or a :class:`RowView` after ``subset`` or ``concatenate``.
        fields: the dense fields of the faces, None unless all were packed with them: uint8 (N, S, S, 3), like
            ``images``. The channels are U and V (255 is 1, see :class:`deocc.faces.DenseField`), and 255 where there
            is a face, 0 elsewhere; all 0 for a face that the model did not see.
        field_model: what made the fields, the face model's ``title``; None where there are none.
        landmarks: float32 (N, 5, 2), x and y in pixels of the crop.
        identities: int64 (N,), numbers into ``identity_names``; -1 where nobody is named.
        identity_names: the identities, sorted.
        names: the name of every image in its data set.
        crop: the alignment that all images share.
        paths: the folders read from.
        digests: the SHA-256 of each folder's images, as its index says.
        title: what was packed.

    Raises:
        InputError: the folder is missing, was never finished, or its files do not fit together.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # Absolute: a worker process may start in another folder.
        folder = Path(path).absolute()
        index = read_index(folder)
        count = len(index["names"])
        size = index["crop"]["size"]
        self.paths: tuple[Path, ...] = (folder,)
        self.digests: tuple[str, ...] = (index["sha256"][IMAGES],)
        self.title: str = index["source"]
        self.crop = Crop(size, index["crop"]["zoom"])
        self.names: tuple[str, ...] = tuple(index["names"])
        self.identity_names: tuple[str, ...] = tuple(index["identity_names"])
        self._identity_keys = tuple((folder, name) for name in self.identity_names)
        self.identities: npt.NDArray[np.int64] = np.asarray(index["identities"], np.int64)
        self.landmarks: npt.NDArray[np.float32] = _open(folder / LANDMARKS, (count, 5, 2), np.float32)
        self._arrays: tuple[npt.NDArray[np.uint8], ...] = (_open_pictures(folder / IMAGES, count, size),)
        self.field_model: str | None = index.get("dense_field")
        self._fields: tuple[npt.NDArray[np.uint8], ...] | None = None
        if self.field_model is not None:
            self._fields = (_open_pictures(folder / FIELDS, count, size),)
        self._part: npt.NDArray[np.int64] | None = None
        self._row: npt.NDArray[np.int64] | None = None

    @property
    def images(self) -> npt.NDArray[np.uint8] | RowView:
        """uint8 RGB (N, S, S, 3)."""
        return self._rows(self._arrays)

    @property
    def fields(self) -> npt.NDArray[np.uint8] | RowView | None:
        """uint8 (N, S, S, 3): U, V and where the face is; None unless all were packed with fields."""
        return None if self._fields is None else self._rows(self._fields)

    def _rows(self, arrays: tuple[npt.NDArray[np.uint8], ...]) -> npt.NDArray[np.uint8] | RowView:
        if self._part is None or self._row is None:
            return arrays[0]
        return RowView(arrays, self._part, self._row)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> PackedFace:
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} faces, got the number {index}")
        field = None if self.fields is None else self.fields[index]
        identity = int(self.identities[index])
        return PackedFace(self.images[index], self.landmarks[index], identity, self.names[index], field)

    def __iter__(self) -> Iterator[PackedFace]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"<{self.title}: {len(self)} packed faces, {len(self.identity_names)} identities, {self.crop}>"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": tuple(len(array) for array in self._arrays), "_fields": None}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        folders = list(zip(self.paths, state["_arrays"], strict=True))
        size = self.crop.size
        self._arrays = tuple(_open_pictures(path / IMAGES, count, size) for path, count in folders)
        if self.field_model is not None:
            self._fields = tuple(_open_pictures(path / FIELDS, count, size) for path, count in folders)

    def subset(self, indices: Sequence[int] | npt.NDArray[Any]) -> Self:
        """Chosen faces in the order given; the numbers and names of the identities stay what they are.

        Args:
            indices: positions (n,), or a boolean mask (N,).

        Raises:
            UsageError: a position is out of range, or the mask has another length.
        """
        wanted = np.asarray(indices)
        if wanted.dtype == bool:
            if wanted.shape != (len(self),):
                raise UsageError(f"a mask for {len(self)} faces must have shape ({len(self)},), got {wanted.shape}")
            wanted = np.flatnonzero(wanted)
        if wanted.ndim != 1 or (wanted.dtype.kind not in "iu" and wanted.size):
            raise UsageError(f"positions must be whole numbers (n,), got {wanted.dtype} {wanted.shape}")
        wanted = wanted.astype(np.int64)
        if len(wanted) and not (-len(self) <= wanted.min() and wanted.max() < len(self)):
            raise UsageError(f"positions must be below {len(self)}, got {wanted.min()} to {wanted.max()}")
        wanted = wanted % max(len(self), 1)
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._part = np.zeros(len(wanted), np.int64) if self._part is None else self._part[wanted]
        other._row = wanted if self._row is None else self._row[wanted]
        other.names = tuple(self.names[number] for number in wanted)
        other.identities = self.identities[wanted]
        other.landmarks = self.landmarks[wanted]
        return other

    def check(self) -> list[str]:
        """Read every file again and compare the digests: one sentence for each problem, none when all is well."""
        return [problem for path in self.paths for problem in check(path)]


def concatenate(packs: Sequence[PackedFaces]) -> PackedFaces:
    """Several packs as one, in that order; nothing is copied.

    An identity is one only inside one folder: names that two data sets share ("0001") do not mean one person. The names
    become ``folder/identity``, unless there is a single pack, which comes back as it is. Fields are those of all packs:
    where one has none, the whole has none.

    Raises:
        UsageError: there is no pack, the crops differ, or their fields are of different face models.
    """
    if not packs:
        raise UsageError("concatenate wants at least one pack, got none")
    if len(packs) == 1:
        return packs[0]
    for pack in packs[1:]:
        if pack.crop != packs[0].crop:
            raise UsageError(f"only packs of one crop can be joined, got {packs[0].crop} and {pack.crop}")
    models = {pack.field_model for pack in packs if pack.field_model is not None}
    if len(models) > 1:
        raise UsageError(f"only fields of one face model can be joined, got {' and '.join(sorted(models))}")
    fielded = all(pack.field_model is not None for pack in packs)
    paths: list[Path] = []
    fields: list[npt.NDArray[np.uint8]] = []
    arrays: list[npt.NDArray[np.uint8]] = []
    digests: list[str] = []
    parts, rows = [], []
    keys: dict[tuple[Path, str], int] = {}
    identities = []
    for pack in packs:
        place = []
        for number, (path, array, digest) in enumerate(zip(pack.paths, pack._arrays, pack.digests, strict=True)):
            if path not in paths:
                paths.append(path)
                arrays.append(array)
                fields += pack._fields[number : number + 1] if pack._fields else ()
                digests.append(digest)
            place.append(paths.index(path))
        part = np.zeros(len(pack), np.int64) if pack._part is None else pack._part
        parts.append(np.asarray(place)[part])
        rows.append(np.arange(len(pack)) if pack._row is None else pack._row)
        numbers = [keys.setdefault(key, len(keys)) for key in pack._identity_keys]
        identities.append(np.asarray([*numbers, -1], np.int64)[pack.identities])
    joined = object.__new__(PackedFaces)
    joined.paths, joined.digests = tuple(paths), tuple(digests)
    joined.title = " + ".join(pack.title for pack in packs)
    joined.crop = packs[0].crop
    joined.names = tuple(name for pack in packs for name in pack.names)
    joined.identity_names = tuple(f"{path.name}/{name}" for path, name in keys)
    joined._identity_keys = tuple(keys)
    joined.identities = np.concatenate(identities)
    joined.landmarks = np.concatenate([pack.landmarks for pack in packs])
    joined._arrays = tuple(arrays)
    joined.field_model = packs[0].field_model if fielded else None
    joined._fields = tuple(fields) if fielded else None
    joined._part, joined._row = np.concatenate(parts), np.concatenate(rows)
    return joined


def check(path: str | os.PathLike[str]) -> list[str]:
    """Everything that is wrong with a packed folder: one sentence for each problem, none when all is well."""
    folder = Path(path)
    try:
        faces = PackedFaces(folder)
        digests = read_index(folder)["sha256"]
    except InputError as error:
        return [str(error)]
    problems = []
    for name in digests:
        found = sha256(folder / name)
        if found != digests[name]:
            problems.append(f"{folder / name} was changed after it was packed: sha256 {digests[name]}, now {found}")
    if not np.isfinite(faces.landmarks).all():
        problems.append(f"{folder / 'landmarks.npy'} holds landmarks that are not finite")
    return problems


def read_index(folder: Path) -> dict[str, Any]:
    """Read and validate ``index.json`` of a packed folder.

    Raises:
        InputError: it is missing or not an index of this version.
    """
    path = folder / "index.json"
    if not folder.is_dir():
        begun = partial(folder)
        if begun.is_dir():
            raise InputError(f"{folder} was never finished: {begun} is there; pack the same source again to go on")
        raise InputError(f"{folder} is missing; make it with 'deocc data pack'")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{folder} holds no packed faces: index.json is missing") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise InputError(f'{path} is not an index of packed faces: wanted "format": {FORMAT!r}')
    if index.get("version") != VERSION:
        raise InputError(
            f"{path} has version {index.get('version')!r}, this deocc reads {VERSION}; pack the source again"
        )
    try:
        count = len(index["names"])
        Crop(index["crop"]["size"], index["crop"]["zoom"])
        good = (
            len(index["identities"]) == count
            and all(-1 <= number < len(index["identity_names"]) for number in index["identities"])
            and isinstance(index["source"], str)
            and set(index["sha256"]) == {IMAGES, LANDMARKS, *([FIELDS] if "dense_field" in index else [])}
            and isinstance(index.get("dense_field", ""), str)
        )
    except (KeyError, TypeError, UsageError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    if not good:
        raise InputError(f"{path} is damaged: names, identities, source and sha256 do not fit together")
    return index


def partial(out: Path) -> Path:
    """Where a pack is built until it is complete."""
    return out.with_name(out.name + ".partial")


def _open_pictures(path: Path, count: int, size: int) -> npt.NDArray[np.uint8]:
    return _open(path, (count, size, size, 3), np.uint8)


@overload
def _open(path: Path, shape: tuple[int, ...], dtype: type[np.uint8]) -> npt.NDArray[np.uint8]: ...
@overload
def _open(path: Path, shape: tuple[int, ...], dtype: type[np.float32]) -> npt.NDArray[np.float32]: ...
def _open(path: Path, shape: tuple[int, ...], dtype: type[Any]) -> npt.NDArray[Any]:
    try:
        # numpy cannot map an array without elements.
        array = np.load(path, mmap_mode="r" if dtype is np.uint8 and shape[0] else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    if array.shape != shape or array.dtype != dtype:
        raise InputError(
            f"{path} does not fit its index: wanted {np.dtype(dtype)} {shape}, got {array.dtype} {array.shape}"
        )
    return array  # type: ignore[no-any-return]
