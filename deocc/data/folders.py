"""Anybody's folder of images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deocc.data.source import Source, folder, image_names, read_landmarks
from deocc.errors import InputError

__all__ = ["IdentityFolder", "ImageFolder"]


class ImageFolder(Source):
    """All images in a folder and the folders below it; nobody is named.

    ``landmarks.npz`` in the folder, if there is one, gives the landmarks: arrays ``names`` (N,), the paths inside the
    folder, and ``lm5`` (N, 5, 2), in pixels of the files. Other files and hidden ones are ignored.

    Raises:
        InputError: the folder is missing or holds no image, or ``landmarks.npz`` is not what it should be.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        path = folder(root, "give a folder with images")
        self.title = path.resolve().name
        super().__init__(path, image_names(path), landmarks=landmarks_beside(path))


class IdentityFolder(Source):
    """A folder with one folder for each person: the name of that folder is the identity.

    Images may lie deeper inside a person's folder; images beside the persons' folders belong to nobody and are
    ignored. ``landmarks.npz`` as in :class:`ImageFolder`.

    Raises:
        InputError: the folder is missing or no folder in it holds an image, or ``landmarks.npz`` is not what it should
            be.
    """

    wanted = "give a folder that has one folder of images for each person"

    def __init__(self, root: str | os.PathLike[str]) -> None:
        path = folder(root, self.wanted)
        self.title = path.resolve().name
        names = [name for name in image_names(path, self.wanted) if "/" in name]
        if not names:
            raise InputError(f"{path} holds images but no folders of images; {self.wanted}, or read it as ImageFolder")
        super().__init__(path, names, identity=first_folder, landmarks=landmarks_beside(path))


def first_folder(name: str) -> str:
    """The first folder of a name: the identity in most data sets."""
    return name.partition("/")[0]


def landmarks_beside(root: Path) -> dict[str, npt.NDArray[np.float32]] | None:
    """The landmarks of ``root/landmarks.npz``, or None when there is no such file."""
    path = root / "landmarks.npz"
    return read_landmarks(path) if path.is_file() else None
