"""From the embeddings of pairs to the figures of verification."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deocc.data import Pair
from deocc.errors import InputError
from deocc.judge.faces import Occluding
from deocc.judge.pairs import NO_FOLD, Listed
from deocc.judge.parts import Loaded
from deocc.judge.result import (
    Change,
    Comparison,
    Curve,
    Figure,
    Histogram,
    Rate,
    Verification,
    VerificationRow,
)
from deocc.judge.statistics import accuracy, compared, figure, spread
from deocc.judge.views import Views, Wants
from deocc.metrics.verification import Scores, Weights, resample

__all__ = ["RATES", "verification", "verification_wants"]

RATES = (0.01, 0.001, 0.0001)
"""False positive rates; the last only where the impostor pairs allow it, at least one of them may pass."""

CHANGES = 8
"""The largest gains, and losses, that are shown of each matcher and restorer."""

MOST_RESAMPLED = 200_000
"""Pairs up to which bootstrap intervals are made."""

_ROWS = 100_000

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def verification_wants(listed: Listed, real: bool) -> Wants:
    """What the five states need; of real masks there are MT and UT alone."""
    gallery, probes = listed.images()
    if real:
        return Wants(true=gallery, occluded=probes, restored=probes)
    return Wants(*[gallery | probes] * 3)


def verification(
    views: Views,
    listed: Listed,
    *,
    occluding: Occluding,
    restorers: Sequence[Loaded],
    recognizers: Sequence[Loaded],
    seed: int = 0,
    resamples: int = 1000,
    kept: dict[str, NDArray[Any]] | None = None,
) -> Verification:
    """Score all pairs in every state.

    Args:
        views, listed, occluding, restorers, recognizers: what is judged.
        seed, resamples: of the bootstrap.
        kept: filled with ``probe``, ``gallery``, ``same``, ``fold`` and ``kind`` of the pairs, (P,) each, and with the
            scores, (P,) float32 under ``recognizer|restorer|state``; left alone where there are too many pairs.

    Raises:
        InputError: without the faces that were not found, no pair of one person or none of two is left.
    """
    lost = views.without_face.keys() | views.unreadable.keys()
    units = listed.without(lost)
    pairs = [pair for pair in listed.pairs if pair.first in units and pair.second in units]
    same = np.array([pair.same for pair in pairs], np.bool_)
    if same.all() or not same.any():
        raise InputError(
            f"pairs of one person and of two are needed, got {int(same.sum())} and {int((~same).sum())} "
            f"({len(listed.pairs) - len(pairs)} pairs were left out since a face was not found)"
        )
    folds = np.array([pair.fold for pair in pairs])
    if listed.templates is None:
        kinds = np.array([occluding.kind(pair.second) for pair in pairs])
    else:
        kinds = np.full(len(pairs), "")
    table = _Table(same, folds, kinds, seed, resamples if len(pairs) <= MOST_RESAMPLED else 0)
    states = {"MT": ("M", "T"), "UT": ("U", "T")}
    if not occluding.real:
        states = {"TT": ("T", "T"), **states, "MM": ("M", "M"), "UU": ("U", "U")}
    gallery, probes = ([getattr(pair, side) for pair in pairs] for side in ("first", "second"))
    if kept is not None and len(pairs) <= MOST_RESAMPLED:
        kept |= {"probe": np.array(probes), "gallery": np.array(gallery), "same": same, "fold": folds, "kind": kinds}
    curves, gains, losses = [], [], []
    for matcher in recognizers:
        scores: dict[tuple[str, str], Floats] = {}
        for state, (probe, other) in states.items():
            for restorer in [one.key for one in restorers] if "U" in state else [""]:
                scores[restorer, state] = _scores(
                    views, matcher.key, restorer, units, (probes, probe), (gallery, other)
                )
        for (restorer, state), values in scores.items():
            if kept is not None and len(pairs) <= MOST_RESAMPLED:
                kept[f"{matcher.key}|{restorer}|{state}"] = values.astype(np.float32)
            table.add(matcher.key, restorer, state, values, scores.get(("", "TT")))
            curves.append(_curve(matcher.key, restorer, state, values, same))
        for one in restorers:
            better, worse = _changes(matcher.key, one.key, pairs, kinds, scores)
            gains += better
            losses += worse
    return Verification(
        pairs=len(pairs),
        genuine=int(same.sum()),
        impostors=int((~same).sum()),
        folds=len(np.unique(folds[folds != NO_FOLD])),
        templates=listed.templates is not None,
        source=listed.source,
        missing=listed.missing,
        elsewhere=listed.elsewhere,
        alike=listed.alike,
        without_face=len(listed.pairs) - len(pairs),
        seed=seed,
        resamples=table.resamples,
        rows=tuple(table.rows),
        comparisons=tuple(table.comparisons([one.key for one in restorers], [one.key for one in recognizers])),
        curves=tuple(curves),
        gains=tuple(gains),
        losses=tuple(losses),
    )


def _scores(
    views: Views,
    matcher: str,
    restorer: str,
    units: Mapping[str, Sequence[tuple[str, str]]],
    *sides: tuple[Sequence[str], str],
) -> Floats:
    """The cosine of each pair, (P,)."""
    embedded = []
    for names, state in sides:
        unique = sorted(set(names))
        place = {name: number for number, name in enumerate(unique)}
        vectors = views.embeddings[matcher, restorer if state == "U" else "", state]
        pooled = np.stack([_pooled(vectors, units[name]) for name in unique])
        embedded.append((pooled, np.array([place[name] for name in names])))
    scores = np.empty(len(embedded[0][1]))
    for start in range(0, len(scores), _ROWS):  # there may be millions of pairs
        rows = [pooled[places[start : start + _ROWS]] for pooled, places in embedded]
        scores[start : start + _ROWS] = np.einsum("pd,pd->p", *rows, dtype=np.float64)
    return scores


def _pooled(vectors: Mapping[str, NDArray[np.float32]], images: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
    """The embedding of an image, or of a template: the mean over its media of the mean over a medium's images."""
    if len(images) == 1:
        return vectors[images[0][0]]
    media: dict[str, list[NDArray[np.float32]]] = {}
    for name, medium in images:
        media.setdefault(medium, []).append(vectors[name])
    total = np.sum([np.mean(group, axis=0) for group in media.values()], axis=0)
    pooled: NDArray[np.float32] = total / max(float(np.linalg.norm(total)), 1e-12)
    return pooled


@dataclass
class _Measured:
    """The figures of one matcher and state over some pairs, their bootstrap samples, and what was decided rightly."""

    values: dict[str, float] = field(default_factory=dict)
    samples: dict[str, Floats] = field(default_factory=dict)
    right: dict[str, Bools] = field(default_factory=dict)

    def figure(self, name: str) -> Figure:
        return figure(self.values.get(name), self.samples.get(name))


class _Table:
    """Rows of all matchers and states over the same pairs, and what compares them."""

    def __init__(
        self, same: Bools, folds: NDArray[np.int64], kinds: NDArray[np.str_], seed: int, resamples: int
    ) -> None:
        self.same, self.folds, self.resamples = same, folds, resamples
        self.rows: list[VerificationRow] = []
        self._measured: dict[tuple[str, str, str, str], _Measured] = {}
        self._parts: dict[str, tuple[Bools, Weights | None]] = {}
        for kind in ["all", *sorted(set(kinds) - {""})]:
            inside = np.full(same.shape, True) if kind == "all" else kinds == kind
            genuine, impostors = int((same & inside).sum()), int((~same & inside).sum())
            if genuine and impostors and not (kind != "all" and inside.all()):
                weights = resample(genuine, impostors, resamples, seed) if resamples else None
                self._parts[kind] = inside, weights

    def add(self, matcher: str, restorer: str, state: str, scores: Floats, true: Floats | None) -> None:
        """Measure a state; ``true`` are the scores of the unoccluded pairs, on which the fixed thresholds are."""
        unoccluded = None if true is None else Scores(true, self.same)
        for kind, (inside, weights) in self._parts.items():
            self._add(matcher, restorer, state, kind, scores[inside], inside, weights, unoccluded)

    def _add(
        self,
        matcher: str,
        restorer: str,
        state: str,
        kind: str,
        scores: Floats,
        inside: Bools,
        weights: Weights | None,
        unoccluded: Scores | None,
    ) -> None:
        same = self.same[inside]
        sorted_scores = Scores(scores, same)
        found = _Measured({"auc": sorted_scores.auc(), "eer": sorted_scores.eer()})
        if weights is not None:
            found.samples = {"auc": sorted_scores.auc_samples(weights), "eer": sorted_scores.eer_samples(weights)}
        rates = []
        for fpr in RATES:
            if fpr == RATES[-1] and sorted_scores.allowed(fpr) == 0:
                continue
            threshold = sorted_scores.threshold(fpr)
            name = f"tpr@{fpr:g}"
            found.values[name] = sorted_scores.tpr(fpr)
            found.right[name] = scores[same] >= threshold
            if weights is not None:
                found.samples[name] = sorted_scores.tpr_samples(fpr, weights)
            fixed = f"fixed_fnmr@{fpr:g}", f"fixed_fmr@{fpr:g}"
            if unoccluded is not None:
                accepted = scores >= unoccluded.threshold(fpr)
                found.right[fixed[0]] = accepted[same]
                for label, events, side in (
                    (fixed[0], ~accepted[same], "genuine"),
                    (fixed[1], accepted[~same], "impostors"),
                ):
                    found.values[label] = float(events.mean())
                    if weights is not None:
                        found.samples[label] = getattr(weights, side) @ events.astype(np.float64) / events.size
            rates.append(
                Rate(
                    fpr,
                    sorted_scores.allowed(fpr),
                    threshold if math.isfinite(threshold) else None,
                    found.figure(name),
                    *map(found.figure, fixed),
                )
            )
        over_folds = Figure()
        if kind == "all" and (decided := accuracy(scores, same, self.folds, weights)) is not None:
            each, right, samples = decided
            over_folds = spread(each)
            found.values["accuracy"], found.right["accuracy"] = float(right.mean()), right
            if samples is not None:
                found.samples["accuracy"] = samples
        self._measured[matcher, restorer, state, kind] = found
        self.rows.append(
            VerificationRow(
                matcher,
                restorer,
                state,  # type: ignore[arg-type]
                kind,
                int(same.size),
                int(same.sum()),
                int((~same).sum()),
                found.figure("auc"),
                found.figure("eer"),
                tuple(rates),
                over_folds,
            )
        )

    def comparisons(self, restorers: Sequence[str], matchers: Sequence[str]) -> list[Comparison]:
        """UT with MT and UU with MM, for each matcher, restorer, kind and figure."""
        found = []
        for matcher in matchers:
            for restorer in restorers:
                for after, before in (("UT", "MT"), ("UU", "MM")):
                    for kind in self._parts:
                        if (matcher, restorer, after, kind) in self._measured:
                            found += self._compared(matcher, restorer, after, before, kind)
        return found

    def _compared(self, matcher: str, restorer: str, after: str, before: str, kind: str) -> list[Comparison]:
        one, other = self._measured[matcher, restorer, after, kind], self._measured[matcher, "", before, kind]
        true = self._measured.get((matcher, "", "TT", kind), _Measured())
        return [
            Comparison(
                matcher,
                restorer,
                after,
                before,
                kind,
                name,
                **compared(
                    (one.values[name], other.values[name], true.values.get(name)),
                    (one.samples.get(name), other.samples.get(name)),
                    (one.right.get(name), other.right.get(name)),
                    error=name == "eer" or name.startswith("fixed"),
                ),
            )
            for name in one.values
        ]


def _curve(matcher: str, restorer: str, state: str, scores: Floats, same: Bools) -> Curve:
    fpr, tpr, _ = Scores(scores, same).roc()
    # Evenly spaced in both rates, and towards small false positive rates in their logarithm.
    chosen = [np.searchsorted(fpr, np.logspace(-6, 0, 128)), np.searchsorted(tpr, np.linspace(0, 1, 126))]
    kept = np.unique(np.concatenate([[0, fpr.size - 1], *chosen]).clip(0, fpr.size - 1))
    edges = np.linspace(-1, 1, 81)
    counts = [np.histogram(scores[side].clip(-1, 1), edges)[0] for side in (same, ~same)]
    histogram = Histogram(tuple(edges.round(6).tolist()), *(tuple(count.tolist()) for count in counts))
    x, y = (tuple(values[kept].round(8).tolist()) for values in (fpr, tpr))
    return Curve(matcher, restorer, state, x, y, histogram)  # type: ignore[arg-type]


def _changes(
    matcher: str,
    restorer: str,
    pairs: Sequence[Pair],
    kinds: NDArray[np.str_],
    scores: Mapping[tuple[str, str], Floats],
) -> tuple[list[Change], list[Change]]:
    """The pairs that restoring moved farthest, for better and for worse."""
    before, after, true = scores["", "MT"], scores[restorer, "UT"], scores.get(("", "TT"))
    sign = np.where([pair.same for pair in pairs], 1, -1)
    gain = (after - before) * sign
    order = np.argsort(-gain, kind="stable")

    def change(number: int) -> Change:
        pair = pairs[number]
        return Change(
            matcher,
            restorer,
            pair.second,
            pair.first,
            pair.same,
            str(kinds[number]),
            None if true is None else float(true[number]),
            float(before[number]),
            float(after[number]),
            float(gain[number]),
        )

    best = [change(number) for number in order[:CHANGES] if gain[number] > 0]
    worst = [change(number) for number in order[::-1][:CHANGES] if gain[number] < 0]
    return best, worst
