"""CelebA, aligned or in the wild."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deocc.data.source import Source, folder, image_names, one_of, read_lines
from deocc.errors import InputError, UsageError

__all__ = ["CelebA"]

_SITE = "CelebA (https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html)"
_VERSIONS = {
    # version: folder of images, file of landmarks, archive
    "aligned": ("img_align_celeba", "list_landmarks_align_celeba.txt", "img_align_celeba.zip"),
    "wild": ("img_celeba", "list_landmarks_celeba.txt", "img_celeba.7z"),
}
_SPLITS = {"train": 0, "valid": 1, "test": 2}


class CelebA(Source):
    """CelebFaces Attributes: 202,599 images, 10,177 identities, 40 attributes, five landmarks.

    Images and annotations lie in ``root``, or in its folders ``Img``, ``Anno`` and ``Eval`` as on the official site.
    Part of the images is enough; each of them must be in every list that is asked for. The identities of the three
    official splits do not overlap.

    Args:
        root: the folder.
        version: "aligned" (``img_align_celeba``, 178x218) or "wild" (``img_celeba``, the photos as found).
        split: "train", "valid", "test" (``list_eval_partition.txt``), or None for all.
        identities: read ``identity_CelebA.txt``.
        attributes: read ``list_attr_celeba.txt``: :attr:`Sample.attributes` is then name -> bool.
        landmarks: read ``list_landmarks_align_celeba.txt`` or ``list_landmarks_celeba.txt``.

    Attributes:
        attribute_names: the 40 names, in the order of the file; empty when they were not asked for.

    Raises:
        InputError: something is missing (the sentence says what to download and where to put it) or broken.
        UsageError: an unknown version or split.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        version: str = "aligned",
        split: str | None = None,
        identities: bool = True,
        attributes: bool = True,
        landmarks: bool = True,
    ) -> None:
        images, points, archive = _VERSIONS[one_of("the version of CelebA", version, _VERSIONS)]
        path = folder(root, f"make it and put {_SITE} there")
        where = _find(path, images, f"download {archive} of {_SITE} and unpack it there")
        names = image_names(where, f"download {archive} of {_SITE} and unpack it there")
        self.title = f"CelebA {version}"
        if split is not None:
            part = _SPLITS[one_of("the split of CelebA", split, _SPLITS)]
            table = _Table(_annotation(path, "list_eval_partition.txt"), header=False, columns=1)
            rows = table.rows(names)
            names = [name for name, row in zip(names, rows, strict=True) if table.values[row, 0] == part]
            self.title += f" {split}"
            if not names:
                raise InputError(f"{where} holds no image of {self.title}; download {archive} of {_SITE} in full")
        people: dict[str, str] = {}
        if identities:
            table = _Table(_annotation(path, "identity_CelebA.txt"), header=False, columns=1)
            people = dict(zip(names, (str(number) for number in table.values[table.rows(names), 0]), strict=True))
        known: dict[str, npt.NDArray[np.float32]] = {}
        if landmarks:
            table = _Table(_annotation(path, points), header=True, columns=10)
            known = dict(zip(names, table.values[table.rows(names)].astype(np.float32).reshape(-1, 5, 2), strict=True))
        super().__init__(where, names, identity=people.get, landmarks=known)
        self.attribute_names: tuple[str, ...] = ()
        if attributes:
            table = _Table(_annotation(path, "list_attr_celeba.txt"), header=True, columns=40)
            self.attribute_names = tuple(table.header)
            self._attribute_rows = {
                name: table.values[row] > 0 for name, row in zip(names, table.rows(names), strict=True)
            }

    def attributes(self, name: str) -> Mapping[str, bool]:
        """The 40 attributes of an image, or none when they were not asked for."""
        if not self.attribute_names:
            return {}
        return dict(zip(self.attribute_names, self._attribute_rows[name].tolist(), strict=True))

    def attribute_matrix(self) -> npt.NDArray[np.bool_]:
        """All attributes at once: bool (N, 40), in the order of the samples and of ``attribute_names``.

        Raises:
            UsageError: they were not asked for.
        """
        if not self.attribute_names:
            raise UsageError("CelebA was opened with attributes=False; open it with attributes=True to have them")
        return np.stack([self._attribute_rows[name] for name in self.names])


class _Table:
    """An annotation file: ``name value value ...`` a line, with or without two lines of header (count, columns)."""

    def __init__(self, path: Path, *, header: bool, columns: int) -> None:
        self.path = path
        lines = read_lines(path)
        body = lines[2:] if header else lines
        self.header = lines[1].split() if header and len(lines) > 1 else []
        if not body:
            raise InputError(f"{path} cannot be used: wanted lines with a name and {columns} whole numbers, got none")
        try:
            self.values: npt.NDArray[np.int32] = np.loadtxt(
                body, np.int32, usecols=range(1, columns + 1), ndmin=2, comments=None
            )
        except (ValueError, IndexError) as error:
            raise InputError(
                f"{path} cannot be used: wanted lines with a name and {columns} whole numbers ({error})"
            ) from error
        if header and (len(self.header) != columns or lines[0].strip() != str(len(body))):
            raise InputError(
                f"{path} cannot be used: its first two lines must be the number of lines ({len(body)}) and {columns} "
                f"names, got {lines[0][:40]!r} and {len(self.header)} names"
            )
        self._row = {line.split(maxsplit=1)[0]: row for row, line in enumerate(body)}

    def rows(self, names: list[str]) -> list[int]:
        """The row of each name."""
        try:
            return [self._row[name] for name in names]
        except KeyError as error:
            raise InputError(f"{self.path} does not mention the image {error.args[0]!r}, which is there") from error


def _find(root: Path, name: str, wanted: str) -> Path:
    for place in ("", "Img", "Anno", "Eval"):
        path = root / place / name
        if path.exists():
            return path
    raise InputError(f"{root / name} is missing; {wanted}")


def _annotation(root: Path, name: str) -> Path:
    return _find(root, name, f"download {name} of {_SITE} and put it there")
