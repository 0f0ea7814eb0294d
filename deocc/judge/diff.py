"""Two reports compared: the same faces and masks, another restorer, other weights, another version.

Where both reports keep the scores of their pairs and these are the same pairs, a difference is tested pair by pair.
Otherwise only the two intervals are known: the difference's own then comes from both as if they were independent, which
is wider than it needs to be where the pairs are the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deocc.errors import InputError, UsageError
from deocc.files import BAD_ARCHIVE
from deocc.judge.result import Figure, Part, Report, read
from deocc.judge.statistics import accuracy, compared, figure
from deocc.metrics.verification import Scores, resample
from deocc.report import INVENTED, print_table

__all__ = ["Diff", "Difference", "diff", "diff_folders", "print_diff", "read_scores"]

Array = NDArray[Any]
Key = tuple[str, str, str, str, str, str, str]

_LOWER = ("eer", "fixed_fnmr", "fixed_fmr", "lpips", "frechet")
_RESAMPLES = 1000


@dataclass(frozen=True)
class Difference:
    """One figure in both reports.

    Attributes:
        task: "verification", "retrieval", "ten sets", "quality" or "distribution".
        recognizer: the matcher; of a distribution the network; empty for quality.
        restorer: the restorer; ``one -> other`` where the reports' only restorers have two names.
        state, kind, metric: as in the report.
        crop: in which it was measured; empty but for quality and distribution.
        a, b: the figure in either report.
        difference: b minus a with its 95 % interval: paired where ``p`` is not None, else as if independent.
        p: two-sided, of no difference, from the paired bootstrap over the same pairs.
        won, lost: pairs that only b gets right, and only a; None where that is not known.
    """

    task: str
    recognizer: str
    restorer: str
    state: str
    kind: str
    metric: str
    a: Figure
    b: Figure
    difference: Figure
    p: float | None = None
    won: int | None = None
    lost: int | None = None
    crop: str = ""

    @property
    def better(self) -> bool | None:
        """Whether b is better than a; None where nothing differs."""
        change = self.difference.value
        return None if not change else (change < 0) == self.metric.startswith(_LOWER)


@dataclass(frozen=True)
class Diff:
    """What :func:`diff` returns.

    Attributes:
        unlike: why figures of the two cannot be compared, a sentence each; empty where they can.
        notes: what else differs: versions, weights, what is in one report only.
        rows: figures that are in both; those that no restorer had a part in only where they differ.
    """

    unlike: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    rows: tuple[Difference, ...] = field(default_factory=tuple)


def diff_folders(a: str | Path, b: str | Path, *, anyway: bool = False) -> Diff:
    """Compare two folders that ``deocc judge`` has written, or two ``report.json``; see :func:`diff`."""
    paths = [Path(path) / "report.json" if Path(path).is_dir() else Path(path) for path in (a, b)]
    one, other = (read(path) for path in paths)
    scores = [read_scores(path.parent, report) for path, report in zip(paths, (one, other), strict=True)]
    return diff(one, other, scores=(scores[0], scores[1]), anyway=anyway)


def print_diff(found: Diff, *, by_kind: bool = False) -> None:
    """Print what differs and the table of differences; ``by_kind`` adds the figures of each kind of occlusion."""
    for sentence in found.unlike:
        print(f"NOT COMPARABLE: {sentence}")
    for sentence in found.notes:
        print(f"NOTE: {sentence}")
    names = ("task", "matcher", "restorer", "state", "kind", "crop", "figure")
    columns = (*names, "A", "B", "B - A", "p", "won", "lost", "B is")
    rows = [
        (
            row.task,
            *(name or "-" for name in (row.recognizer, row.restorer, row.state)),
            row.kind,
            row.crop or "-",
            row.metric,
            *(f"{side.value:.4f}" for side in (row.a, row.b)),
            _signed(row.difference),
            "-" if row.p is None else f"{row.p:.3f}",
            *("-" if count is None else str(count) for count in (row.won, row.lost)),
            {True: "better", False: "worse", None: "equal"}[row.better],
        )
        for row in found.rows
        if by_kind or row.kind == "all"
    ]
    print_table(columns, rows, left=len(names))
    print()
    print(INVENTED)


def read_scores(folder: Path, report: Report) -> dict[str, Array]:
    """The scores of a report's pairs, as :mod:`deocc.judge.verify` keeps them; empty where it keeps none.

    Raises:
        InputError: the file is missing or broken.
    """
    name = "" if report.verification is None else report.verification.scores
    if not name:
        return {}
    path = folder / Path(name).name
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except BAD_ARCHIVE as error:
        raise InputError(f"{path} cannot be read as scores of pairs ({error})") from error


def diff(
    a: Report, b: Report, *, scores: tuple[Mapping[str, Array], Mapping[str, Array]] = ({}, {}), anyway: bool = False
) -> Diff:
    """Compare two reports.

    Args:
        a, b: the reports; differences are b minus a.
        scores: of their pairs (:func:`read_scores`).
        anyway: compare reports on other faces or other masks too.

    Raises:
        UsageError: other faces, masks or matchers, and not ``anyway``; or no figure is in both.
    """
    unlike = tuple(_unlike(a, b))
    if unlike and not anyway:
        raise UsageError(
            f"these reports cannot be compared: {'; '.join(unlike)}. Compare them all the same with --anyway"
        )
    names = _matched(a, b)
    one, other = dict(_figures(a)), dict(_figures(b))
    paired = {} if unlike else dict(_paired(a, b, names, *scores))
    rows = []
    for key, before in one.items():
        task, recognizer, restorer, state, kind, metric, crop = key
        after = other.get((task, recognizer, names.get(restorer, restorer), state, kind, metric, crop))
        if after is None or before.value is None or after.value is None or (not restorer and before == after):
            continue
        shown = restorer if names.get(restorer, restorer) == restorer else f"{restorer} -> {names[restorer]}"
        known = paired.get(key, {"difference": _independent(before, after)})
        rows.append(Difference(task, recognizer, shown, state, kind, metric, before, after, crop=crop, **known))
    if not rows:
        raise UsageError("these reports have no figure in common but those that are equal in both")
    return Diff(unlike, tuple(_notes(a, b, names)), tuple(rows))


def _unlike(a: Report, b: Report) -> Iterator[str]:
    """Why a figure of one report says nothing beside one of the other."""
    things: list[tuple[str, Any, Any]] = [
        ("the data", (a.data.title, a.data.split), (b.data.title, b.data.split)),
        ("the images (their digest)", a.data.digest, b.data.digest),
        ("the limit", a.data.limit, b.data.limit),
        ("the occluder", a.masks.occluder, b.masks.occluder),
        ("the seed of the masks", a.masks.seed, b.masks.seed),
        ("the masks (their fingerprint)", a.masks.fingerprint, b.masks.fingerprint),
        ("the resampling", a.resampling, b.resampling),
    ]
    if a.verification is not None and b.verification is not None:
        counts = [(task.source, task.genuine, task.impostors) for task in (a.verification, b.verification)]
        things.append(("the pairs", counts[0], counts[1]))
    if a.retrieval is not None and b.retrieval is not None:
        sizes = [(task.probes, task.gallery) for task in (a.retrieval, b.retrieval)]
        things.append(("the probes and the gallery", sizes[0], sizes[1]))
    others = {part.key: part for part in b.recognizers}
    for part in a.recognizers:
        if part.key in others:
            things.append((f"the matcher {part.key}", _identity(part), _identity(others[part.key])))
    networks = {network.key: network for network in b.networks}
    for network in a.networks:
        if network.key in networks:
            mine, yours = ((of.sha256, of.features, str(of.dimensions)) for of in (network, networks[network.key]))
            things.append((f"the feature network {network.key}", mine, yours))
    for what, one, other in things:
        if one != other:
            yield f"{what} differ: {_words(one)} and {_words(other)}"


def _notes(a: Report, b: Report, names: Mapping[str, str]) -> Iterator[str]:
    if a.deocc != b.deocc:
        yield f"judged by deocc {a.deocc} and {b.deocc}"
    others = {part.key: part for part in b.restorers}
    for part in a.restorers:
        other = others.get(names.get(part.key, part.key))
        if other is not None and _identity(part) != _identity(other):
            called = part.key if part.key == other.key else f"{part.key} and {other.key}"
            yield f"the restorers {called} differ: {_words(_identity(part))} and {_words(_identity(other))}"
    for letter, report, rest, known in (("A", a, b, set(names)), ("B", b, a, set(names.values()))):
        for role in ("restorers", "recognizers"):
            keys = {part.key for part in getattr(rest, role)} | known
            alone = [part.key for part in getattr(report, role) if part.key not in keys]
            if alone:
                yield f"only {letter} has the {role} {', '.join(alone)}"


def _matched(a: Report, b: Report) -> dict[str, str]:
    """Restorer of a -> restorer of b, where the names differ: each report has one that the other has not."""
    one, other = ([part.key for part in report.restorers] for report in (a, b))
    alone = [key for key in one if key not in other], [key for key in other if key not in one]
    return {alone[0][0]: alone[1][0]} if len(alone[0]) == len(alone[1]) == 1 else {}


def _figures(report: Report) -> Iterator[tuple[Key, Figure]]:
    if (verification := report.verification) is not None:
        for row in verification.rows:
            key = ("verification", row.recognizer, row.restorer, row.state, row.kind)
            yield (*key, "auc", ""), row.auc
            yield (*key, "eer", ""), row.eer
            for rate in row.rates:
                for name in ("tpr", "fixed_fnmr", "fixed_fmr"):
                    yield (*key, f"{name}@{rate.fpr:g}", ""), getattr(rate, name)
            yield (*key, "accuracy", ""), row.accuracy
    if (retrieval := report.retrieval) is not None:
        for found in retrieval.rows:
            for name in ("rank1", "rank5", "rank10", "map"):
                names = ("retrieval", found.recognizer, found.restorer, found.state, found.kind, name, "")
                yield names, getattr(found, name)
        for sets in retrieval.sets:
            yield ("ten sets", sets.recognizer, sets.restorer, sets.state, "all", "accuracy", ""), sets.accuracy
    if (quality := report.quality) is not None:
        for one in quality.rows:
            crop = _crop(one.size, one.zoom)
            for name in ("hole_psnr", "hole_ssim", "psnr", "ssim", "iou"):
                yield ("quality", "", one.restorer, "", one.kind, name, crop), getattr(one, name)
            for network, distance in one.lpips.items():
                yield ("quality", "", one.restorer, "", one.kind, f"lpips {network}", crop), distance
        for set_ in quality.distributions:
            crop = _crop(set_.size, set_.zoom)
            for name in ("frechet", "precision", "recall", "f1", "realism"):
                value = Figure(getattr(set_, name))
                yield ("distribution", set_.network, set_.restorer, "", "all", name, crop), value


def _paired(
    a: Report, b: Report, names: Mapping[str, str], one: Mapping[str, Array], other: Mapping[str, Array]
) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Differences of verification over the same pairs: those of all pairs, and of each kind of occlusion."""
    lists = ("probe", "gallery", "same", "fold", "kind")
    if (
        a.verification is None
        or not (one and other)
        or not all(np.array_equal(one[name], other[name]) for name in lists)
    ):
        return
    same, folds, kinds = (one[name] for name in ("same", "fold", "kind"))
    samples = a.verification.resamples or _RESAMPLES
    for row in a.verification.rows:
        keys = [f"{row.recognizer}|{key}|{row.state}" for key in (row.restorer, names.get(row.restorer, row.restorer))]
        inside = np.full(same.shape, True) if row.kind == "all" else kinds == row.kind
        if keys[0] not in one or keys[1] not in other or not row.restorer:
            continue
        rates = [rate.fpr for rate in row.rates]
        sides = (one[keys[0]][inside], other[keys[1]][inside])
        found = _compared(*sides, same[inside], folds[inside], rates, a.verification.seed, samples)
        for metric, values in found.items():
            yield ("verification", row.recognizer, row.restorer, row.state, row.kind, metric, ""), values


def _compared(
    a: Array, b: Array, same: Array, folds: Array, rates: Sequence[float], seed: int, samples: int
) -> dict[str, dict[str, Any]]:
    """Metric -> the fields of a :class:`Difference`, from the scores of the same pairs."""
    weights = resample(int(same.sum()), int((~same).sum()), samples, seed)
    values: list[dict[str, float]] = []
    drawn: list[dict[str, Array]] = []
    right: list[dict[str, Array]] = []
    for scores in (a, b):
        both = Scores(scores, same)
        values.append({"auc": both.auc(), "eer": both.eer()})
        drawn.append({"auc": both.auc_samples(weights), "eer": both.eer_samples(weights)})
        right.append({})
        for fpr in rates:
            name = f"tpr@{fpr:g}"
            values[-1][name], drawn[-1][name] = both.tpr(fpr), both.tpr_samples(fpr, weights)
            right[-1][name] = scores[same] >= both.threshold(fpr)
        if (decided := accuracy(scores, same, folds, weights)) is not None:
            _, rightly, samples_of_share = decided
            assert samples_of_share is not None
            values[-1]["accuracy"], right[-1]["accuracy"] = float(rightly.mean()), rightly
            drawn[-1]["accuracy"] = samples_of_share
    found: dict[str, dict[str, Any]] = {}
    for name in values[0]:
        tested = compared(
            (values[1][name], values[0][name], None),
            (drawn[1][name], drawn[0][name]),
            (right[1].get(name), right[0].get(name)),
        )
        tested.pop("p_mcnemar", None)
        found[name] = tested
    return found


def _independent(a: Figure, b: Figure) -> Figure:
    """b minus a, with the interval that follows from both if they are independent (Newcombe 1998, method 10)."""
    assert a.value is not None
    assert b.value is not None
    change = b.value - a.value
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return figure(change)
    low = change - math.hypot(b.value - b.low, a.high - a.value)
    high = change + math.hypot(b.high - b.value, a.value - a.low)
    return Figure(change, low, high)


def _identity(part: Part) -> tuple[str, ...]:
    """What decides what a part computes."""
    files = (file.rpartition(" ")[2][:16] for file in part.files)
    crop = _crop(part.size, part.zoom)
    return part.method, part.version, part.sha256[:16], *files, part.config, part.occlusion, crop


def _crop(size: int, zoom: float) -> str:
    return f"{size} px, {zoom:g}"


def _signed(change: Figure) -> str:
    if change.low is None or change.high is None:
        return f"{change.value:+.4f}"
    return f"{change.value:+.4f} [{change.low:+.4f}, {change.high:+.4f}]"


def _words(value: Any) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(str(item) for item in value if item != "") + ")"
    return "none" if value is None or value == "" else str(value)
