"""What every reader of a data set is: a list of samples."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from deocc.errors import InputError, UsageError
from deocc.files import BAD_ARCHIVE
from deocc.images import IMAGE_SUFFIXES, read_image

__all__ = ["Sample", "Source"]


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One image of a data set, not yet decoded.

    Attributes:
        name: the path inside the data set, with ``/``; unique in it.
        path: where the file is.
        identity: who is shown, or None where the data set does not say.
        landmarks: (5, 2) float32, x and y in pixels of the file (eyes, nose, corners of the mouth; the left of the
            picture first), or None where the data set does not say.
        attributes: anything else the data set says about this image.
    """

    name: str
    path: Path
    identity: str | None = None
    landmarks: npt.NDArray[np.float32] | None = None
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def read(self) -> npt.NDArray[np.uint8]:
        """Decode the image: uint8 RGB (H, W, 3); see :func:`deocc.images.read_image` for what is raised."""
        return read_image(self.path)


class Source:
    """A data set as a sequence of :class:`Sample`, in the order of the names.

    Readers are functions of a folder: they look at names and annotations, never at pixels. Indexing, ``len`` and
    iteration work as for a list.

    Attributes:
        root: the folder that the names start from.
        title: the name of the data set and the part of it, for reports ("LFW train").
        identities: the distinct identities, sorted.
    """

    title = "images"

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        *,
        identity: Callable[[str], str | None] | None = None,
        landmarks: Mapping[str, npt.NDArray[np.float32]] | None = None,
    ) -> None:
        self.root = root
        self._names = tuple(sorted(names))
        self._identity = [identity(name) if identity else None for name in self._names]
        unknown = np.full((5, 2), np.nan, np.float32)
        self._landmarks = np.stack([(landmarks or {}).get(name, unknown) for name in self._names])
        self._position: dict[str, int] | None = None
        self.identities: tuple[str, ...] = tuple(sorted({name for name in self._identity if name is not None}))

    def attributes(self, name: str) -> Mapping[str, Any]:
        """What the data set says about the image of that name, beside identity and landmarks."""
        return {}

    @property
    def names(self) -> tuple[str, ...]:
        """The name of every sample, in order."""
        return self._names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        name, landmarks = self._names[index], self._landmarks[index]
        known = bool(np.isfinite(landmarks).all())
        return Sample(
            name, self.root / name, self._identity[index], landmarks if known else None, self.attributes(name)
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"<{self.title}: {len(self)} images, {len(self.identities)} identities in {self.root}>"

    def index(self, name: str) -> int:
        """The position of the sample of that name.

        Raises:
            InputError: there is none.
        """
        if self._position is None:
            self._position = {name: position for position, name in enumerate(self._names)}
        if name not in self._position:
            raise InputError(f"{self.title} in {self.root} has no image named {name!r}")
        return self._position[name]

    def where(self, keep: Callable[[Sample], bool], title: str | None = None) -> Self:
        """The samples that ``keep`` wants, as a source of the same kind.

        Raises:
            InputError: it wants none.
        """
        chosen = [index for index, sample in enumerate(self) if keep(sample)]
        if not chosen:
            raise InputError(f"no image of {self.title} in {self.root} is left by that choice")
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.title = title or f"{self.title} (part)"
        other._names = tuple(self._names[index] for index in chosen)
        other._identity = [self._identity[index] for index in chosen]
        other._landmarks = self._landmarks[chosen]
        other._position = None
        other.identities = tuple(sorted({name for name in other._identity if name is not None}))
        return other


def folder(root: str | os.PathLike[str], wanted: str) -> Path:
    """The folder ``root``, or an InputError that ends in ``wanted``: what to download and where to put it."""
    path = Path(root)
    if not path.is_dir():
        raise InputError(f"{path} is {'not a folder' if path.exists() else 'missing'}; {wanted}")
    return path


def file(path: Path, wanted: str) -> Path:
    """The file ``path``, or an InputError that ends in ``wanted``: what to download and where to put it."""
    if not path.is_file():
        raise InputError(f"{path} is {'not a file' if path.exists() else 'missing'}; {wanted}")
    return path


def image_names(root: Path, wanted: str = "put images there") -> list[str]:
    """The names of all image files under ``root``, with ``/``; hidden files and folders are left out, and links that
    lead back to a folder above them.

    Raises:
        InputError: a folder cannot be read, or there is no image at all.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be read ({error.strerror})") from error

    names = []
    for where, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        above = Path(where).resolve()
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and not above.is_relative_to(Path(where, name).resolve())
        )
        inside = Path(where).relative_to(root)
        names += [
            (inside / name).as_posix()
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
    if not names:
        raise InputError(f"{root} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}); {wanted}")
    return names


def read_landmarks(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Read ``landmarks.npz``: arrays ``names`` (N,) and ``lm5`` (N, 5, 2), in pixels of the files.

    Raises:
        InputError: the file is not such an archive.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            names, points = archive["names"], archive["lm5"]
    except BAD_ARCHIVE as error:
        raise InputError(
            f"{path} cannot be used: wanted an .npz archive with the arrays names (N,) and lm5 (N, 5, 2), "
            f"got {type(error).__name__}: {error}"
        ) from error
    if names.ndim != 1 or names.dtype.kind != "U" or points.shape != (len(names), 5, 2) or points.dtype.kind != "f":
        raise InputError(
            f"{path} cannot be used: wanted names (N,) as text and lm5 (N, 5, 2) floating point, "
            f"got {names.dtype} {names.shape} and {points.dtype} {points.shape}"
        )
    return dict(zip(names.tolist(), points.astype(np.float32), strict=True))


def read_lines(path: Path) -> list[str]:
    """The lines of a text file without the empty ones.

    Raises:
        InputError: it cannot be read, or is not text.
    """
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text ({error})") from error


def one_of(what: str, value: str, allowed: Iterable[str]) -> str:
    """``value`` if it is allowed, else a UsageError."""
    allowed = tuple(allowed)
    if value not in allowed:
        raise UsageError(f"{what} must be one of {', '.join(allowed)}, got {value!r}")
    return value
