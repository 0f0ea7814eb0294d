"""IJB-C, 1:1 verification of templates, in the layout that face recognition projects share."""

from __future__ import annotations

import os

import numpy as np

from deocc.data.source import Source, file, folder, image_names, read_lines
from deocc.errors import InputError

__all__ = ["IJBC"]


class IJBC(Source):
    """IARPA Janus Benchmark C: 469,375 faces in 23,124 templates, 15,658,489 pairs of templates; nobody is named.

    ``loose_crop/1.jpg`` ..., and in ``meta``: ``ijbc_face_tid_mid.txt`` (lines ``image template medium``),
    ``ijbc_template_pair_label.txt`` (``template template 1|0``) and ``ijbc_name_5pts_score.txt`` (image, ten
    coordinates, score). Part of the images is enough.

    Args:
        root: the folder that holds ``loose_crop`` and ``meta``.

    Raises:
        InputError: a file or folder is missing or broken.
    """

    title = "IJB-C"
    _wanted = (
        "NIST no longer distributes IJB-C (https://www.nist.gov/programs-projects/face-challenges); put a copy that "
        "you hold there, with loose_crop and meta as insightface (recognition/_evaluation_/ijb) expects them"
    )

    def __init__(self, root: str | os.PathLike[str]) -> None:
        path = folder(root, self._wanted)
        images = folder(path / "loose_crop", self._wanted)
        self._meta = path / "meta"
        names = image_names(images, self._wanted)
        points = file(self._meta / "ijbc_name_5pts_score.txt", self._wanted)
        rows = [line.split() for line in read_lines(points)]
        try:
            known = {row[0]: np.array(row[1:11], np.float32).reshape(5, 2) for row in rows}
        except ValueError as error:
            raise InputError(
                f"{points} cannot be used: wanted lines with an image and ten numbers ({error})"
            ) from error
        super().__init__(images, names, landmarks=known)

    def templates(self) -> dict[str, tuple[tuple[str, str], ...]]:
        """Template -> its images that are there, each with its medium: the frames of a video share one.

        Raises:
            InputError: the list is missing or broken.
        """
        present = set(self.names)
        found: dict[str, list[tuple[str, str]]] = {}
        for name, template, medium in self._rows("ijbc_face_tid_mid.txt"):
            images = found.setdefault(template, [])
            if name in present:
                images.append((name, medium))
        return {template: tuple(images) for template, images in found.items()}

    def template_pairs(self) -> list[tuple[str, str, bool]]:
        """Pairs of templates, enrolled and to be verified, and whether they show one person.

        Raises:
            InputError: the list is missing or broken.
        """
        shared: dict[str, str] = {}  # one object for each name: there are millions of pairs
        return [
            (shared.setdefault(first, first), shared.setdefault(second, second), same == "1")
            for first, second, same in self._rows("ijbc_template_pair_label.txt")
        ]

    def _rows(self, name: str) -> list[list[str]]:
        path = file(self._meta / name, self._wanted)
        rows = [line.split() for line in read_lines(path)]
        bad = next((row for row in rows if len(row) != 3), None)
        if bad is not None:
            raise InputError(f"{path} cannot be used: wanted three fields a line, got {' '.join(bad)[:80]!r}")
        return rows
