"""Labeled Faces in the Wild, with its lists of pairs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from deocc.data.folders import first_folder, landmarks_beside
from deocc.data.source import Source, file, folder, image_names, one_of, read_lines
from deocc.errors import InputError

__all__ = ["LFW", "Pair", "read_pairs"]

_IMAGES = (
    "download lfw-deepfunneled.tgz of Labeled Faces in the Wild (http://vis-www.cs.umass.edu/lfw/) and unpack it so "
    "that this folder holds one folder for each person"
)
_PAIRS = "download pairs.txt of Labeled Faces in the Wild (http://vis-www.cs.umass.edu/lfw/) and put it there"
_TEST_FOLDS = 3


class Pair(NamedTuple):
    """Two images to compare: the names of the samples, whether they show one person, and the fold (from 0)."""

    first: str
    second: str
    same: bool
    fold: int


class LFW(Source):
    """Labeled Faces in the Wild, "deep funneled" or original: ``Name/Name_0001.jpg``.

    The folder may also hold ``pairs.txt``, ``landmarks.npz`` (see :class:`deocc.data.ImageFolder`) and ``split.json``
    (two lists of identities, "train" and "test"). Without ``split.json`` the split is what it would say: "test" is
    everybody in the first three folds of ``pairs.txt``, "train" is everybody else, so that no identity is in both.

    Args:
        root: the folder with one folder for each person.
        split: "train", "test", or None for all.

    Raises:
        InputError: something is missing (the sentence says what to download and where to put it) or broken.
        UsageError: another split.
    """

    title = "LFW"

    def __init__(self, root: str | os.PathLike[str], split: str | None = None) -> None:
        path = folder(root, _IMAGES)
        names = [name for name in image_names(path, _IMAGES) if "/" in name]
        if split is not None:
            one_of("the split of LFW", split, ("train", "test"))
            chosen = _split(path, {first_folder(name) for name in names})[split]
            names = [name for name in names if first_folder(name) in chosen]
            self.title = f"LFW {split}"
        if not names:
            raise InputError(f"{path} holds no image of {self.title}; {_IMAGES}")
        super().__init__(path, names, identity=first_folder, landmarks=landmarks_beside(path))
        self.split = split

    def pairs(self, path: str | os.PathLike[str] | None = None) -> list[Pair]:
        """The pairs to verify, in the order of the file.

        Of a split, those whose two images are in it: folds 0-2 of ``pairs.txt`` for "test".

        Args:
            path: a file in the format of ``pairs.txt`` (View 2) or ``pairsDevTest.txt`` (View 1); None is
                ``pairs.txt`` in the root.

        Raises:
            InputError: the file is missing or broken, or names an image that is not there.
        """
        pairs = read_pairs(self.root / "pairs.txt" if path is None else path)
        present = set(self.names)
        if self.split is None:
            for pair in pairs:
                for name in (pair.first, pair.second):
                    if name not in present:
                        raise InputError(f"{self.root / name} is missing, though the list of pairs names it; {_IMAGES}")
        return [pair for pair in pairs if pair.first in present and pair.second in present]


def read_pairs(path: str | os.PathLike[str], suffix: str = ".jpg") -> list[Pair]:
    """Read a list of pairs in LFW's format.

    A line ``name i j`` is a pair of one person, ``name i other j`` a pair of two. The first line may be
    ``folds<TAB>n`` (View 2: each fold is n pairs of one person and then n of two) or ``n`` (View 1: one such fold);
    without it all pairs are in fold 0.

    Args:
        path: the file.
        suffix: of the image files.

    Raises:
        InputError: the file is missing, not text, a line is not what it should be, or their number is wrong.
    """
    path = Path(path)
    lines = [line.split() for line in read_lines(file(path, _PAIRS))]
    header = [int(field) for field in lines[0]] if lines and all(map(_is_number, lines[0])) else []
    rows = lines[1:] if header else lines
    folds, count = header if len(header) == 2 else (1, header[0] if header else 0)
    if not rows or (header and len(rows) != 2 * folds * count):
        wanted = f"{folds} folds of {count} + {count} pairs" if header else "lines with pairs"
        raise InputError(f"{path} cannot be used: wanted {wanted}, got {len(rows)} lines")
    pairs = []
    for number, fields in enumerate(rows):
        same = len(fields) == 3
        fold = number // (2 * count) if header else 0
        right_kind = not header or same == (number % (2 * count) < count)
        if len(fields) not in (3, 4) or not (_is_number(fields[1]) and _is_number(fields[-1])) or not right_kind:
            raise InputError(
                f"{path} cannot be used: line {number + 1 + bool(header)} must be 'name number number' or 'name number "
                f"name number' in the order of the folds, got {' '.join(fields)[:80]!r}"
            )
        first = _name(fields[0], fields[1], suffix)
        pairs.append(Pair(first, _name(fields[0] if same else fields[2], fields[-1], suffix), same, fold))
    return pairs


def _name(person: str, number: str, suffix: str) -> str:
    return f"{person}/{person}_{int(number):04d}{suffix}"


def _is_number(field: str) -> bool:
    return field.isascii() and field.isdecimal() and len(field) < 10


def _split(root: Path, everybody: set[str]) -> dict[str, set[str]]:
    path = root / "split.json"
    if path.is_file():
        try:
            lists = json.loads(path.read_text(encoding="utf-8"))
            split = {part: set(lists[part]) for part in ("train", "test")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} cannot be used: wanted the lists train and test, got {type(error).__name__}: {error}"
            ) from error
        both = split["train"] & split["test"]
        if both:
            raise InputError(f"{path} cannot be used: {len(both)} identities are in train and in test ({min(both)!r})")
        return split
    pairs = read_pairs(root / "pairs.txt")
    test = {first_folder(name) for pair in pairs if pair.fold < _TEST_FOLDS for name in (pair.first, pair.second)}
    return {"train": everybody - test, "test": test}
