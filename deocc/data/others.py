"""Data sets whose annotations are in the names of their files and folders."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from deocc.data.folders import IdentityFolder, first_folder, landmarks_beside
from deocc.data.lfw import Pair, read_pairs
from deocc.data.source import Source, file, folder, image_names, one_of, read_lines
from deocc.errors import InputError

__all__ = ["AR", "FFHQ", "MFR2", "RMFRD", "CASIAWebFace", "VGGFace2"]


class FFHQ(Source):
    """Flickr-Faces-HQ: ``00000/00000.png`` or all images in one folder; nobody is named.

    Args:
        root: the folder ``images1024x1024``, ``thumbnails128x128``, or any with such names.
        split: "train" (images 0-59,999), "validation" (the last 10,000), or None for all.

    Raises:
        InputError: the folder is missing or holds no such image.
        UsageError: an unknown split.
    """

    _wanted = (
        "download images1024x1024 or thumbnails128x128 of FFHQ (https://github.com/NVlabs/ffhq-dataset) and give the "
        "folder that holds 00000/00000.png"
    )

    def __init__(self, root: str | os.PathLike[str], split: str | None = None) -> None:
        path = folder(root, self._wanted)
        numbers = {name: PurePosixPath(name).stem for name in image_names(path, self._wanted)}
        names = [name for name, stem in numbers.items() if re.fullmatch(r"\d{5}", stem)]
        self.title = "FFHQ"
        if split is not None:
            training = one_of("the split of FFHQ", split, ("train", "validation")) == "train"
            names = [name for name in names if (int(numbers[name]) < 60_000) == training]
            self.title = f"FFHQ {split}"
        if not names:
            raise InputError(f"{path} holds no image of {self.title}; {self._wanted}")
        super().__init__(path, names, landmarks=landmarks_beside(path))


class RMFRD(Source):
    """Real-World Masked Face Recognition Data set: people with and without masks.

    ``AFDB_masked_face_dataset/name/*.jpg`` and ``AFDB_face_dataset/name/*.jpg``; the attribute ``masked`` is a bool.

    Args:
        root: the folder that holds these two, or the one around it as in the archive.
        split: "masked", "unmasked", or None for both.

    Raises:
        InputError: a folder is missing or empty.
        UsageError: an unknown split.
    """

    _wanted = (
        "download the self-built masked face recognition data set of RMFRD "
        "(https://github.com/X-zhangyang/Real-World-Masked-Face-Dataset) and unpack it there"
    )
    _folders = {"masked": "AFDB_masked_face_dataset", "unmasked": "AFDB_face_dataset"}  # noqa: RUF012 (never changed)

    def __init__(self, root: str | os.PathLike[str], split: str | None = None) -> None:
        path = folder(root, self._wanted)
        inside = path / "self-built-masked-face-recognition-dataset"
        if inside.is_dir():
            path = inside
        names = []
        for wanted in self._folders if split is None else [one_of("the split of RMFRD", split, self._folders)]:
            part = folder(path / self._folders[wanted], self._wanted)
            names += [f"{part.name}/{name}" for name in image_names(part, self._wanted) if "/" in name]
        self.title = "RMFRD" if split is None else f"RMFRD {split}"
        super().__init__(path, names, identity=_second_folder, landmarks=landmarks_beside(path))

    def attributes(self, name: str) -> Mapping[str, bool]:
        """``masked``."""
        return {"masked": first_folder(name) == self._folders["masked"]}


class MFR2(Source):
    """Masked Faces in Real World for Face Recognition: 53 people, 269 images, with and without masks.

    ``Name/Name_0001.png``, ``mfr2_labels.txt`` (lines ``Name, 1, kind of mask``, "no-mask" for none) and ``pairs.txt``.
    The attributes are ``masked``, a bool, and ``mask``, the kind or None; an image that the labels do not mention has
    none.

    Args:
        root: the folder ``mfr2`` of the archive.

    Raises:
        InputError: a file or folder is missing or broken.
    """

    title = "MFR2"
    _wanted = "download mfr2.zip of MFR2 (https://github.com/aqeelanwar/MaskTheFace) and unpack it there"

    def __init__(self, root: str | os.PathLike[str]) -> None:
        path = folder(root, self._wanted)
        names = [name for name in image_names(path, self._wanted) if "/" in name]
        if not names:
            raise InputError(f"{path} holds no folders of images; {self._wanted}")
        labels = file(path / "mfr2_labels.txt", self._wanted)
        self._masks: dict[tuple[str, int], str | None] = {}
        for number, line in enumerate(read_lines(labels), 1):
            fields = [field.strip() for field in line.split(",")]
            if len(fields) != 3 or not fields[1].isdecimal():
                raise InputError(
                    f"{labels} cannot be used: line {number} must be 'name, number, mask', got {line[:80]!r}"
                )
            self._masks[fields[0], int(fields[1])] = None if fields[2] == "no-mask" else fields[2]
        super().__init__(path, names, identity=first_folder, landmarks=landmarks_beside(path))

    def attributes(self, name: str) -> Mapping[str, Any]:
        """``masked`` and ``mask``."""
        number = re.search(r"_(\d+)$", PurePosixPath(name).stem)
        key = (first_folder(name), int(number[1]) if number else -1)
        return {"masked": self._masks[key] is not None, "mask": self._masks[key]} if key in self._masks else {}

    def pairs(self) -> list[Pair]:
        """The 848 pairs of ``pairs.txt``; see :func:`deocc.data.read_pairs` for what is raised."""
        return read_pairs(self.root / "pairs.txt", ".png")


class CASIAWebFace(IdentityFolder):
    """CASIA-WebFace: ``0000045/001.jpg``, 10,575 identities."""

    wanted = (
        "get CASIA-WebFace from its authors (Yi et al. 2014, https://arxiv.org/abs/1411.7923) and unpack it so that "
        "this folder holds 0000045/001.jpg"
    )

    def __init__(self, root: str | os.PathLike[str]) -> None:
        super().__init__(root)
        self.title = "CASIA-WebFace"


class VGGFace2(Source):
    """VGGFace2: ``train/n000002/0001_01.jpg`` and ``test/n000001/0001_01.jpg``.

    Landmarks are read from ``bb_landmark/loose_landmark_train.csv`` and ``..._test.csv`` where these are there.

    Args:
        root: the folder that holds ``train`` and ``test``.
        split: "train", "test", or None for both. Their identities do not overlap.

    Raises:
        InputError: a folder is missing or empty, or a file of landmarks is broken.
        UsageError: an unknown split.
    """

    _wanted = (
        "get vggface2_train.tar.gz and vggface2_test.tar.gz of VGGFace2 (Cao et al. 2018, "
        "https://github.com/ox-vgg/vgg_face2) and unpack them there"
    )

    def __init__(self, root: str | os.PathLike[str], split: str | None = None) -> None:
        path = folder(root, self._wanted)
        parts: tuple[str, ...] = ("train", "test")
        if split is not None:
            parts = (one_of("the split of VGGFace2", split, parts),)
        names: list[str] = []
        landmarks: dict[str, npt.NDArray[np.float32]] = {}
        for part in parts:
            images = folder(path / part, self._wanted)
            names += [f"{part}/{name}" for name in image_names(images, self._wanted) if "/" in name]
            points = path / "bb_landmark" / f"loose_landmark_{part}.csv"
            if points.is_file():
                landmarks.update(_vggface2_landmarks(points, part))
        self.title = "VGGFace2" if split is None else f"VGGFace2 {split}"
        super().__init__(path, names, identity=_second_folder, landmarks=landmarks)


class AR(Source):
    """The AR face database: ``m-001-01`` to ``w-060-26`` in any image format.

    The identity is ``m-001``. The number is the setting, 1-13 in the first session and 14-26 in the second:
    expressions (1-4), lights (5-7), sunglasses (8-10) and scarf (11-13), these two with three lights each. The
    attributes are ``session`` (1 or 2), ``expression`` ("neutral", "smile", "anger", "scream"), ``light`` ("ambient",
    "left", "right", "both") and ``occlusion`` (None, "sunglasses", "scarf").

    Args:
        root: the folder; images may lie deeper. Files with other names are ignored.

    Raises:
        InputError: the folder is missing or holds no such image.
    """

    title = "AR"
    _wanted = (
        "ask for the AR face database (Martinez and Benavente 1998, https://www2.ece.ohio-state.edu/~aleix/ARdatabase.html),"
        " convert its .raw files to PNG, and put m-001-01.png and so on there"
    )
    _name = re.compile(r"([mw]-\d{3})-(\d{1,2})", re.IGNORECASE)

    def __init__(self, root: str | os.PathLike[str]) -> None:
        path = folder(root, self._wanted)
        names = [name for name in image_names(path, self._wanted) if self._parse(name)]
        if not names:
            raise InputError(f"{path} holds no image with a name such as m-001-01; {self._wanted}")
        super().__init__(path, names, identity=self._person, landmarks=landmarks_beside(path))

    def attributes(self, name: str) -> Mapping[str, Any]:
        """``session``, ``expression``, ``light`` and ``occlusion``."""
        parsed = self._parse(name)
        assert parsed is not None
        session, setting = divmod(parsed[1] - 1, 13)
        return {
            "session": session + 1,
            "expression": ("neutral", "smile", "anger", "scream")[setting] if setting < 4 else "neutral",
            "light": "ambient"
            if setting < 4
            else ("left", "right", "both", *("ambient", "left", "right") * 2)[setting - 4],
            "occlusion": None if setting < 7 else "sunglasses" if setting < 10 else "scarf",
        }

    @classmethod
    def _parse(cls, name: str) -> tuple[str, int] | None:
        match = cls._name.fullmatch(PurePosixPath(name).stem)
        if not match or not 1 <= int(match[2]) <= 26:
            return None
        return match[1].lower(), int(match[2])

    @classmethod
    def _person(cls, name: str) -> str | None:
        parsed = cls._parse(name)
        return parsed and parsed[0]


def _second_folder(name: str) -> str:
    return name.split("/")[1]


def _vggface2_landmarks(path: Path, part: str) -> dict[str, npt.NDArray[np.float32]]:
    lines = read_lines(path)
    if not lines or not lines[0].startswith("NAME_ID,P1X"):
        raise InputError(f"{path} cannot be used: its first line must be NAME_ID,P1X,P1Y,...")
    try:
        points = np.loadtxt(lines[1:], np.float32, delimiter=",", usecols=range(1, 11), ndmin=2, comments=None)
    except (ValueError, IndexError) as error:
        raise InputError(f"{path} cannot be used: wanted lines with a name and ten numbers ({error})") from error
    names = (f"{part}/{line.partition(',')[0].strip(chr(34))}.jpg" for line in lines[1:])
    return dict(zip(names, points.reshape(-1, 5, 2), strict=True))
