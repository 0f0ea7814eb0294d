"""From embeddings to the figures of retrieval: occluded probes against a gallery of full faces."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deocc.errors import InputError, UsageError
from deocc.judge.faces import Faces, Occluding
from deocc.judge.parts import Loaded
from deocc.judge.result import Comparison, Figure, Retrieval, RetrievalRow, TenSets
from deocc.judge.statistics import bootstrap_means, compared, figure, spread
from deocc.judge.views import Views, Wants
from deocc.metrics.retrieval import average_precision, cmc, first_hits
from deocc.metrics.verification import fold_accuracy

__all__ = ["Search", "retrieval", "retrieval_wants", "search"]

SETS, PAIRS = 10, 5000
"""Sets of pairs, and pairs of one person in each; as many are of two."""

FIGURES = ("rank1", "rank5", "rank10", "map")

DEPTH = 50
"""Ranks of the CMC that are kept."""

_ROWS = 256


@dataclass(frozen=True)
class Search:
    """Who is looked for where.

    Attributes:
        probes: images whose people have an image in the gallery.
        gallery: images of full faces.
        single: people with one image, which is in the gallery.
    """

    probes: tuple[str, ...]
    gallery: tuple[str, ...]
    single: int


def search(faces: Faces, *, real: bool = False, limit: int | None = None) -> Search:
    """Share the images out: of each person's images, in the order of their names, every second one is a probe.

    Of real masks, the images that the data say are occluded are the probes and the others are the gallery.

    Args:
        faces: the images.
        real: see above.
        limit: at most so many probes, evenly spaced; the gallery stays whole.

    Raises:
        UsageError: ``limit`` is below 1.
        InputError: nobody has an image on either side, or the data do not say which faces are occluded.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"at least one probe must be judged, got the limit {limit}")
    people: dict[str, list[str]] = defaultdict(list)
    for name in faces.names:
        person = faces.identity(name)
        if person is not None:
            people[person].append(name)
    probes, gallery = [], []
    for names in people.values():
        if real:
            said = {name: faces.masked(name) for name in names}
            full = [name for name in names if not said[name]]
            gallery += full
            probes += [name for name in names if said[name]] if full else []
        else:
            gallery += names[::2]
            probes += names[1::2]
    single = sum(len(names) == 1 for names in people.values())
    if not probes:
        raise InputError(
            f"retrieval wants people with an image to look for and another one to find, and {faces.title} has none: it "
            f"has {len(people)} people, {single} of them with one image only"
        )
    probes.sort()
    if limit is not None and limit < len(probes):
        probes = [probes[number] for number in np.linspace(0, len(probes) - 1, limit).round().astype(int)]
    return Search(tuple(probes), tuple(sorted(gallery)), single)


def retrieval_wants(chosen: Search, real: bool) -> Wants:
    """The gallery as it is; the probes in every state."""
    probes = frozenset(chosen.probes)
    return Wants(frozenset(chosen.gallery) | (frozenset() if real else probes), probes, probes)


def retrieval(
    views: Views,
    chosen: Search,
    faces: Faces,
    *,
    occluding: Occluding,
    restorers: Sequence[Loaded],
    recognizers: Sequence[Loaded],
    seed: int = 0,
    resamples: int = 1000,
) -> Retrieval:
    """Look for every probe in every state.

    Raises:
        InputError: no probe is left without the faces that were not found.
    """
    lost = views.without_face.keys() | views.unreadable.keys()
    gallery = [name for name in chosen.gallery if name not in lost]
    known = {faces.identity(name) for name in gallery}
    probes = [name for name in chosen.probes if name not in lost and faces.identity(name) in known]
    if not probes:
        raise InputError(f"no probe is left: in {len(lost)} images no face was found")
    people = [np.array([faces.identity(name) for name in names]) for names in (probes, gallery)]
    kinds = np.array([occluding.kind(name) for name in probes])
    sets = _drawn_sets(people[0], people[1], seed)
    states = [("", "M"), *((one.key, "U") for one in restorers)]
    if not occluding.real:
        states.insert(0, ("", "T"))
    rows: list[RetrievalRow] = []
    comparisons: list[Comparison] = []
    accuracies: list[TenSets] = []
    for matcher in recognizers:
        found: dict[tuple[str, str], NDArray[np.int64]] = {}
        precisions: dict[tuple[str, str], NDArray[np.float64]] = {}
        known_faces = views.matrix(matcher.key, "", "T", gallery)
        for restorer, state in states:
            looked_for = views.matrix(matcher.key, restorer, state, probes)
            ranks, precision = _looked_up(looked_for, known_faces, *people)
            found[restorer, state], precisions[restorer, state] = ranks, precision
            rows += [
                _row(
                    matcher.key, restorer, state, kind, ranks[inside], precision[inside], len(gallery), seed, resamples
                )
                for kind, inside in _parts(kinds)
            ]
            accuracies.append(_ten_sets(matcher.key, restorer, state, looked_for, known_faces, sets))
        for one in restorers:
            for kind, inside in _parts(kinds):
                keys = (one.key, "U"), ("", "M"), ("", "T")
                comparisons += _compared(
                    matcher.key,
                    one.key,
                    kind,
                    [found[key][inside] if key in found else None for key in keys],
                    [precisions[key][inside] if key in found else None for key in keys],
                    seed,
                    resamples,
                )
    return Retrieval(
        probes=len(probes),
        gallery=len(gallery),
        identities=len(set(people[0].tolist())),
        single=chosen.single,
        without_face=len(lost.intersection(chosen.probes + chosen.gallery)),
        seed=seed,
        resamples=resamples,
        rows=tuple(rows),
        comparisons=tuple(comparisons),
        sets=tuple(accuracies),
    )


def _parts(kinds: NDArray[np.str_]) -> list[tuple[str, NDArray[np.bool_]]]:
    names = sorted(set(kinds.tolist()))
    single = [] if len(names) == 1 else [(kind, kinds == kind) for kind in names]
    return [("all", np.full(kinds.shape, True)), *single]


def _looked_up(
    probes: NDArray[np.float32], gallery: NDArray[np.float32], people: NDArray[np.str_], known: NDArray[np.str_]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The rank of each probe's first hit and its average precision, some probes at a time."""
    ranks, precisions = [], []
    for start in range(0, len(probes), _ROWS):
        scores = probes[start : start + _ROWS] @ gallery.T
        relevant = people[start : start + _ROWS, None] == known
        ranks.append(first_hits(scores, relevant))
        precisions.append(average_precision(scores, relevant))
    return np.concatenate(ranks), np.concatenate(precisions)


def _figures(ranks: NDArray[np.int64], precision: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rank 1, 5, 10 and average precision of each probe, (N, 4)."""
    return np.stack([ranks <= 1, ranks <= 5, ranks <= 10, precision], axis=1).astype(np.float64)


def _row(
    matcher: str,
    restorer: str,
    state: str,
    kind: str,
    ranks: NDArray[np.int64],
    precision: NDArray[np.float64],
    gallery: int,
    seed: int,
    resamples: int,
) -> RetrievalRow:
    values = _figures(ranks, precision)
    samples = bootstrap_means(values, resamples, seed) if resamples else None
    figures: dict[str, Figure] = {
        name: figure(float(values[:, column].mean()), None if samples is None else samples[:, column])
        for column, name in enumerate(FIGURES)
    }
    curve = tuple(cmc(ranks, min(DEPTH, gallery)).round(8).tolist())
    return RetrievalRow(matcher, restorer, state, kind, len(ranks), **figures, cmc=curve)  # type: ignore[arg-type]


def _compared(
    matcher: str,
    restorer: str,
    kind: str,
    ranks: Sequence[NDArray[np.int64] | None],
    precisions: Sequence[NDArray[np.float64] | None],
    seed: int,
    resamples: int,
) -> list[Comparison]:
    """U with M, for each figure."""
    measured = [
        None if rank is None or precision is None else _figures(rank, precision)
        for rank, precision in zip(ranks, precisions, strict=True)
    ]
    after, before, true = measured
    assert after is not None
    assert before is not None
    drawn = [bootstrap_means(values, resamples, seed) if resamples else None for values in (after, before)]
    found = []
    for column, name in enumerate(FIGURES):
        fields = compared(
            (
                float(after[:, column].mean()),
                float(before[:, column].mean()),
                None if true is None else float(true[:, column].mean()),
            ),
            (
                None if drawn[0] is None else drawn[0][:, column],
                None if drawn[1] is None else drawn[1][:, column],
            ),
            (None, None) if name == "map" else (after[:, column] > 0, before[:, column] > 0),
        )
        found.append(Comparison(matcher, restorer, "U", "M", kind, name, **fields))
    return found


@dataclass(frozen=True, eq=False)
class _Sets:
    """Pairs of a probe and a gallery image (P,), by their positions; whether they show one person; their sets.

    ``shared``: there are fewer pairs than the sets hold together.
    """

    shared: bool
    probe: NDArray[np.int64]
    gallery: NDArray[np.int64]
    same: NDArray[np.bool_]
    number: NDArray[np.int64]


def _drawn_sets(people: NDArray[np.str_], known: NDArray[np.str_], seed: int) -> _Sets:
    """Ten sets of 5,000 + 5,000 pairs, or fewer where there are not so many of one person or of two."""
    generator = np.random.default_rng(seed)
    matched = np.argwhere(people[:, None] == known)
    total = len(people) * len(known)
    fewest = min(len(matched), total - len(matched))
    count = min(PAIRS, fewest)
    shared = SETS * count > fewest
    # Where there are enough, no pair is in two sets.
    draws, length = (SETS, count) if shared else (1, SETS * count)
    ones = [matched[generator.choice(len(matched), length, replace=False)] for _ in range(draws)]
    twos = [_unmatched(people, known, length, generator) for _ in range(draws)]
    if not shared:
        ones, twos = np.split(ones[0], SETS), np.split(twos[0], SETS)
    probe, gallery, same, number = [], [], [], []
    for index, (one, two) in enumerate(zip(ones, twos, strict=True)):
        for drawn, truth in ((one, True), (two, False)):
            probe.append(drawn[:, 0])
            gallery.append(drawn[:, 1])
            same.append(np.full(len(drawn), truth))
            number.append(np.full(len(drawn), index))
    columns = map(np.concatenate, (probe, gallery, same, number))
    return _Sets(shared, *columns)


def _unmatched(
    people: NDArray[np.str_], known: NDArray[np.str_], count: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Different pairs of two people, (count, 2)."""
    if len(people) * len(known) <= 50 * max(count, 1):
        every = np.argwhere(people[:, None] != known)
        return every[generator.choice(len(every), count, replace=False)]
    chosen: dict[tuple[int, int], None] = {}
    while len(chosen) < count:
        one, other = int(generator.integers(len(people))), int(generator.integers(len(known)))
        if people[one] != known[other]:
            chosen[one, other] = None
    return np.array(list(chosen), np.int64).reshape(-1, 2)


def _ten_sets(
    matcher: str, restorer: str, state: str, probes: NDArray[np.float32], gallery: NDArray[np.float32], sets: _Sets
) -> TenSets:
    count = int(sets.same.sum()) // SETS
    if count == 0:
        return TenSets(matcher, restorer, state)  # type: ignore[arg-type]
    scores = np.einsum("pd,pd->p", probes[sets.probe], gallery[sets.gallery], dtype=np.float64)
    accuracies, _ = fold_accuracy(scores, sets.same, sets.number)
    return TenSets(
        matcher,
        restorer,
        state,  # type: ignore[arg-type]
        SETS,
        count,
        count,
        tuple(accuracies.tolist()),
        # Sets of the same pairs agree with each other, whatever the figure is worth.
        figure(float(accuracies.mean())) if sets.shared else spread(accuracies),
    )
