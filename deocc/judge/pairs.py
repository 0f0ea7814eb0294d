"""Which pairs are verified."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from deocc.data import IJBC, LFW, MFR2, Pair, read_pairs
from deocc.data.source import read_lines
from deocc.errors import InputError, UsageError
from deocc.images import IMAGE_SUFFIXES
from deocc.judge.faces import Faces

__all__ = ["Listed", "list_pairs", "made_pairs", "read_list"]

MISSING = 0.01
"""The largest share of the pairs that may name images that are not there."""

FOLDS = 10

NO_FOLD = -1
"""The fold of a pair that was added to a list: accuracy is of the list alone."""


@dataclasses.dataclass(frozen=True)
class Listed:
    """Pairs to verify: ``first`` is the gallery's image, ``second`` the probe's; or they are names of templates.

    Attributes:
        pairs: whose images are there.
        source: what lists them.
        missing: pairs that name an image that is not there.
        elsewhere: pairs whose images are both in another part of the data set.
        alike: of real masks, pairs of two occluded faces or of two full ones.
        templates: name of a template -> its images, each with the name of its medium (a video, or the image itself);
            None where pairs are of images.
    """

    pairs: tuple[Pair, ...]
    source: str
    missing: tuple[str, ...] = ()
    elsewhere: int = 0
    templates: Mapping[str, tuple[tuple[str, str], ...]] | None = None
    alike: int = 0

    def images(self) -> tuple[frozenset[str], frozenset[str]]:
        """The images of the gallery and of the probes."""
        units = self.without(frozenset())
        gallery, probes = (
            frozenset(image for pair in self.pairs for image, _ in units[getattr(pair, side)])
            for side in ("first", "second")
        )
        return gallery, probes

    def without(self, lost: Collection[str]) -> dict[str, tuple[tuple[str, str], ...]]:
        """What is compared -> its images and their media, without images that are lost, where any is left."""
        if self.templates is None:
            names = {name for pair in self.pairs for name in (pair.first, pair.second)}
            return {name: ((name, name),) for name in names if name not in lost}
        units = {
            name: tuple((image, medium) for image, medium in images if image not in lost)
            for name, images in self.templates.items()
        }
        return {name: images for name, images in units.items() if images}


def list_pairs(
    faces: Faces,
    file: str | Path | None,
    *,
    seed: int = 0,
    limit: int | None = None,
    real: bool = False,
    impostors: int = 0,
) -> Listed:
    """The pairs of a file, those of the data set's own list, or ones made by a seed where there is no list.

    Of real masks, only pairs of a full face and of an occluded one are left. Up to ``impostors`` pairs of two people
    are added, each of an image that is in the gallery already and one that is a probe; their fold is :data:`NO_FOLD`.

    Raises:
        UsageError: ``limit`` is below 2, ``impostors`` below 0, or they are asked for where nobody is named or pairs
            are of templates.
        InputError: the list is missing or broken, more than one pair in a hundred names an image that is not there, no
            pair is left, there is no list and no person has two images, or the data do not say which faces wear real
            masks.
    """
    if limit is not None and limit < 2:
        raise UsageError(f"at least two pairs must be judged, got the limit {limit}")
    if impostors < 0:
        raise UsageError(f"impostors to add must be 0 or more, got {impostors}")
    if isinstance(faces.source, IJBC) and file is None:
        if real:
            faces.masked(faces.names[0])  # raises: IJB-C does not say
        if impostors:
            raise UsageError(f"impostors can be added to pairs of images, and those of {faces.title} are of templates")
        return _templates(faces.source, limit)
    if file is not None:
        pairs, source = read_list(Path(file)), Path(file).name
    elif isinstance(faces.source, LFW) and (faces.source.root / "pairs.txt").is_file():
        pairs, source = read_pairs(faces.source.root / "pairs.txt"), "pairs.txt of LFW"
    elif isinstance(faces.source, MFR2):
        pairs, source = faces.source.pairs(), "pairs.txt of MFR2"
    else:
        pairs = made_pairs(faces, seed, real=real)
        source = f"made here by the seed {seed}: pairs of each person's images, and as many of two people"
    here, missing, elsewhere, alike = [], [], 0, 0
    for pair in pairs:
        there = (pair.first in faces) + (pair.second in faces)
        if there == 2 and real and faces.masked(pair.first) == faces.masked(pair.second):
            alike += 1
        elif there == 2:
            here.append(_oriented(pair, faces))
        elif there == 0 and faces.partial:
            elsewhere += 1
        else:
            missing.append(f"{pair.first} {pair.second}")
    listed = len(here) + alike + len(missing)
    if len(missing) > MISSING * listed:
        raise InputError(
            f"{len(missing)} of the {listed} pairs of {source} name images that are not in {faces.title}, and at most "
            f"{MISSING:.0%} may: {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}"
        )
    if alike and not here:
        raise InputError(f"none of the {alike} pairs of {source} in {faces.title} is of a full face and a masked one")
    if not here:
        raise InputError(f"none of the {len(pairs)} pairs of {source} has its images in {faces.title}")
    chosen = _spaced(here, limit)
    if impostors:
        added = _impostors(faces, chosen, impostors, seed)
        chosen, source = [*chosen, *added], f"{source} and {len(added)} more of two people, drawn by the seed {seed}"
    return Listed(tuple(chosen), source, tuple(missing), elsewhere, alike=alike)


def _impostors(faces: Faces, pairs: Sequence[Pair], count: int, seed: int) -> list[Pair]:
    """Up to ``count`` pairs of two people that are not listed, each of a listed gallery image and a listed probe."""
    gallery, probes = (sorted({getattr(pair, side) for pair in pairs}) for side in ("first", "second"))
    who = {name: faces.identity(name) for name in {*gallery, *probes}}
    if None in who.values():
        raise UsageError(f"impostors cannot be drawn: {faces.title} does not say who is on every image")
    listed = {frozenset(pair[:2]) for pair in pairs}
    every = len(gallery) * len(probes)
    # Of three times as many, enough are left, unless nearly all images are of one person.
    drawn = np.random.default_rng(seed).choice(every, min(every, 3 * count + 1000), replace=False)
    found = ((gallery[place // len(probes)], probes[place % len(probes)]) for place in drawn.tolist())
    added: dict[frozenset[str], Pair] = {}  # two images once, whichever is the probe
    for first, second in found:
        both = frozenset((first, second))
        if len(added) < count and who[first] != who[second] and both not in listed:
            added.setdefault(both, Pair(first, second, False, NO_FOLD))
    return list(added.values())


def read_list(path: Path) -> list[Pair]:
    """Read pairs: LFW's format (:func:`deocc.data.read_pairs`), or lines ``image image 1|0 [fold]``.

    In the second, fields are separated by tabs, commas or spaces, whichever the first line has; the names are paths
    inside the data set, 1 means one person, and folds are numbers from 0; without them, ten folds are made of
    neighbouring lines. An empty line or one that starts with ``#`` is left out.

    Raises:
        InputError: the file is missing, not text, or a line is not what it should be.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing; a list of pairs was wanted")
    lines = [line for line in read_lines(path) if not line.startswith("#")]
    if not lines:
        raise InputError(f"{path} names no pairs")
    separator = next((mark for mark in ("\t", ",") if mark in lines[0]), None)
    second = [field.strip() for field in lines[0].split(separator)][1:2]
    if not second or not second[0].lower().endswith(IMAGE_SUFFIXES):
        return read_pairs(path)
    pairs = []
    for number, line in enumerate(lines):
        fields = [field.strip() for field in line.split(separator)]
        if len(fields) not in (3, 4) or fields[2] not in ("0", "1") or not all(map(str.isdecimal, fields[3:])):
            raise InputError(f"{path} cannot be used: a line must be 'image image 1|0 [fold]', got {line[:80]!r}")
        fold = int(fields[3]) if len(fields) == 4 else number * FOLDS // len(lines)
        pairs.append(Pair(fields[0], fields[1], fields[2] == "1", fold))
    return pairs


def made_pairs(faces: Faces, seed: int, most: int = 3000, *, real: bool = False) -> list[Pair]:
    """Pairs for data without a list: up to ``most`` of one person, about as many of two; ten folds that share nobody.

    Everybody with two images comes in, the more of a person's pairs the later; two people of an impostor pair are of
    one fold. Of real masks, everybody with a full face and an occluded one comes in: the former is a pair's first image
    and the latter its second.

    Raises:
        InputError: nobody has two images (of real masks: such two), there is only one person, or the data do not say
            which faces wear real masks.
    """
    people: dict[str, list[str]] = defaultdict(list)
    for name in faces.names:
        person = faces.identity(name)
        if person is not None:
            people[person].append(name)
    generator = np.random.default_rng(seed)
    sides = {person: (names, names) for person, names in people.items()}
    if real:
        sides = {person: _sides(names, faces) for person, names in people.items()}
        sides = {person: both for person, both in sides.items() if all(both)}
    order = [sorted(sides)[number] for number in generator.permutation(len(sides))]
    folds = min(FOLDS, len(order) // 2)
    if folds == 0 or not any(len(people[person]) > 1 for person in order):
        several = sum(len(people[person]) > 1 for person in order)
        what = "a full face and a masked one" if real else "two images"
        raise InputError(
            f"{faces.title} has {len(people)} people, of whom {several} have {what}: give a list of pairs, or a "
            "folder for each person with two images and more"
        )
    fold_of = {person: number * folds // len(order) for number, person in enumerate(order)}
    queues = [_of_one(sides[person], generator, real) for person in order]
    genuine = [
        Pair(first, second, True, fold_of[person])
        for person, (first, second) in itertools.islice(_in_turn(order, queues), most)
    ]
    impostors: dict[Pair, None] = {}
    members: dict[int, list[str]] = defaultdict(list)
    for person in order:
        members[fold_of[person]].append(person)
    for pair in genuine:
        one, other = generator.choice(len(members[pair.fold]), 2, replace=False)
        first, second = (
            side[int(generator.integers(len(side)))]
            for side in (sides[members[pair.fold][one]][0], sides[members[pair.fold][other]][1])
        )
        impostors[Pair(first, second, False, pair.fold)] = None
    return [*genuine, *impostors]


def _templates(source: IJBC, limit: int | None) -> Listed:
    """IJB-C's pairs of templates of which images are there; the enrolled template is the gallery's."""
    templates = {name: images for name, images in source.templates().items() if images}
    every = source.template_pairs()
    pairs = [Pair(*pair, 0) for pair in every if pair[0] in templates and pair[1] in templates]
    if not pairs:
        raise InputError(
            f"none of the {len(every)} pairs of {source.title} has images of both templates in {source.root}"
        )
    return Listed(tuple(_spaced(pairs, limit)), "1:1 templates of IJB-C", (), len(every) - len(pairs), templates)


def _in_turn(
    order: Sequence[str], queues: Sequence[Iterator[tuple[str, str]]]
) -> Iterator[tuple[str, tuple[str, str]]]:
    """One pair of everybody, then the second pair of everybody who has one, and so on."""
    waiting = list(zip(order, queues, strict=True))
    while waiting:
        left = []
        for person, queue in waiting:
            pair = next(queue, None)
            if pair is not None:
                yield person, pair
                left.append((person, queue))
        waiting = left


def _shuffled(names: Sequence[str], generator: np.random.Generator) -> list[str]:
    return [names[number] for number in generator.permutation(len(names))]


def _of_one(
    sides: tuple[Sequence[str], Sequence[str]], generator: np.random.Generator, real: bool
) -> Iterator[tuple[str, str]]:
    """All pairs of a person's images, or of those on either side."""
    if real:
        return itertools.product(_shuffled(sides[0], generator), _shuffled(sides[1], generator))
    return itertools.combinations(_shuffled(sides[0], generator), 2)


def _sides(names: Sequence[str], faces: Faces) -> tuple[list[str], list[str]]:
    """The images of full faces, and those of occluded ones."""
    return [name for name in names if not faces.masked(name)], [name for name in names if faces.masked(name)]


def _oriented(pair: Pair, faces: Faces) -> Pair:
    """Where the data say which image shows an occluded face, that is the probe."""
    if faces.occluded(pair.first) and not faces.occluded(pair.second):
        return pair._replace(first=pair.second, second=pair.first)
    return pair


def _spaced(pairs: Sequence[Pair], limit: int | None) -> list[Pair]:
    """At most ``limit`` pairs, evenly spaced among those of one person and among those of two."""
    if limit is None or limit >= len(pairs):
        return list(pairs)
    sides = [[pair for pair in pairs if pair.same is same] for same in (True, False)]
    counts = min(len(sides[0]), max(limit - len(sides[1]), limit // 2)), 0
    counts = counts[0], limit - counts[0]
    return [
        side[number]
        for side, count in zip(sides, counts, strict=True)
        for number in np.linspace(0, len(side) - 1, min(count, len(side))).round().astype(int)
    ]
