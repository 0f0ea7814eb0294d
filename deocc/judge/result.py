"""What a judgement says: the schema of ``report.json``, as frozen dataclasses.

A report is a :class:`Report`; :func:`write` and :func:`read` check every key and every type. A figure that is not
defined, or was not asked for, is None; JSON has neither NaN nor infinity. Paths of pictures are relative to the folder
of the report. The file holds no time, no path of the machine and no run time: the same judgement gives the same bytes.

Two letters name a *state*: the probe's first, the gallery's second. T is the true, unoccluded face, M the occluded
(masked) one, U the one that a restorer unmasked. In a row, ``restorer`` is the key of a :class:`Part` and empty where
no restorer took part (TT, MT, MM).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from deocc.config import from_dict, to_dict
from deocc.errors import InputError, UsageError
from deocc.files import atomic_write

__all__ = [
    "FORMAT",
    "STATES",
    "VERSION",
    "Change",
    "Comparison",
    "Curve",
    "Data",
    "Distribution",
    "Example",
    "Figure",
    "Histogram",
    "Masks",
    "Network",
    "Overlap",
    "Part",
    "Quality",
    "QualityRow",
    "Rate",
    "Report",
    "Retrieval",
    "RetrievalRow",
    "TenSets",
    "Verification",
    "VerificationRow",
    "read",
    "write",
]

FORMAT = "deocc judge"
VERSION = 2

STATES = ("TT", "MT", "UT", "MM", "UU")
"""Probe and gallery: T true, M occluded, U unmasked."""


@dataclass(frozen=True)
class Figure:
    """A figure with its 95 % bootstrap interval; ``low`` and ``high`` are None where there is none."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Rate:
    """What happens at one false positive rate.

    Attributes:
        fpr: the false positive rate asked for: at most this share of the impostor pairs may pass.
        accepted: impostor pairs that pass, a whole number; 0 where there are fewer than ``1 / fpr`` of them.
        threshold: scores at or above it are accepted. None where no score could be refused by any.
        tpr: share of the genuine pairs accepted, with the threshold chosen on this state's own impostors.
        fixed_fnmr: share of the genuine pairs refused by the threshold that gives ``fpr`` on the unoccluded pairs (TT).
        fixed_fmr: share of the impostor pairs accepted by that threshold.
    """

    fpr: float = 0.01
    accepted: int = 0
    threshold: float | None = None
    tpr: Figure = Figure()
    fixed_fnmr: Figure = Figure()
    fixed_fmr: Figure = Figure()


@dataclass(frozen=True)
class VerificationRow:
    """One matcher, one state, one kind of occlusion.

    Attributes:
        recognizer, restorer: keys of :class:`Part`.
        state: one of :data:`STATES`.
        kind: of the occlusion over the probe; "all" for every pair. (The TT row of a kind has the same pairs.)
        pairs, genuine, impostors: how many.
        auc, eer: area under the ROC curve; rate at which false accepts equal false rejects.
        rates: at each false positive rate.
        accuracy: mean over the folds, each with the threshold that is best on the other folds; the interval is
            Student's, over the folds. None where there are fewer than two folds.
    """

    recognizer: str = ""
    restorer: str = ""
    state: Literal["TT", "MT", "UT", "MM", "UU"] = "TT"
    kind: str = "all"
    pairs: int = 0
    genuine: int = 0
    impostors: int = 0
    auc: Figure = Figure()
    eer: Figure = Figure()
    rates: tuple[Rate, ...] = ()
    accuracy: Figure = Figure()


@dataclass(frozen=True)
class Comparison:
    """Two states over the same pairs (or probes): did restoring help?

    Attributes:
        recognizer, restorer: keys of :class:`Part`.
        after, before: the states compared: UT with MT, UU with MM; for retrieval U with M.
        kind: of the occlusion, or "all".
        metric: "auc", "eer", "accuracy", "tpr@0.01", "fixed_fnmr@0.01", ... ; for retrieval "rank1", "map".
        difference: after minus before, with its paired bootstrap interval.
        p: two-sided, of the hypothesis that there is no difference: from the paired bootstrap.
        won, lost: pairs (probes) that only ``after`` gets right, and that only ``before`` does; None where a figure is
            not made of such decisions (auc, eer, map).
        p_mcnemar: exact McNemar test of won against lost.
        recovered: share of what the occlusion cost, (after - before) / (TT - before); None unless it cost something.
    """

    recognizer: str = ""
    restorer: str = ""
    after: str = "UT"
    before: str = "MT"
    kind: str = "all"
    metric: str = "auc"
    difference: Figure = Figure()
    p: float | None = None
    won: int | None = None
    lost: int | None = None
    p_mcnemar: float | None = None
    recovered: float | None = None


@dataclass(frozen=True)
class Histogram:
    """Counts of scores between ``edges`` (one more than counts), cosines from -1 to 1."""

    edges: tuple[float, ...] = ()
    genuine: tuple[int, ...] = ()
    impostors: tuple[int, ...] = ()


@dataclass(frozen=True)
class Curve:
    """What plots of one matcher and state are drawn from.

    Attributes:
        recognizer, restorer, state: as in :class:`VerificationRow`.
        fpr, tpr: points of the ROC curve, thinned to at most 256, from (0, 0) to (1, 1).
        scores: histogram.
    """

    recognizer: str = ""
    restorer: str = ""
    state: Literal["TT", "MT", "UT", "MM", "UU"] = "TT"
    fpr: tuple[float, ...] = ()
    tpr: tuple[float, ...] = ()
    scores: Histogram = Histogram()


@dataclass(frozen=True)
class Change:
    """A pair that restoring moved far, for better or worse.

    Attributes:
        recognizer, restorer: keys of :class:`Part`.
        probe, gallery: names of the images.
        same: whether they show one person.
        kind: of the occlusion over the probe.
        true, before, after: the scores in TT, MT and UT.
        gain: after minus before, with the sign turned for pairs of two people: above 0 is better.
        pictures: PNG files beside the report: "gallery", "true" (the probe before it was occluded), "occluded",
            "found" (the occlusion that was restored, grey), "restored"; in the restorer's crop.
    """

    recognizer: str = ""
    restorer: str = ""
    probe: str = ""
    gallery: str = ""
    same: bool = True
    kind: str = ""
    true: float | None = None
    before: float = 0.0
    after: float = 0.0
    gain: float = 0.0
    pictures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Verification:
    """Verification of pairs (or pairs of templates).

    Attributes:
        pairs, genuine, impostors, folds: that were scored; added impostors are in no fold.
        templates: the pairs are of templates (IJB-C), each the mean of its images' embeddings.
        source: what lists the pairs.
        missing: pairs that name an image that is not in the data, as "first second"; they are left out.
        elsewhere: pairs of which no image is in this part of the data set; they are left out.
        alike: of real masks, pairs of two occluded faces or of two full ones; they are left out.
        without_face: pairs left out since no face was found in one of their images.
        seed, resamples: of the bootstrap.
        rows, comparisons, curves: the figures.
        gains, losses: for each matcher and restorer, the pairs with the largest and the smallest ``gain``.
        scores: the file beside the report that holds the scores of all pairs (:func:`deocc.judge.diff.read_scores`), by
            which two reports are compared pair by pair; empty where there are too many pairs to keep them.
    """

    pairs: int = 0
    genuine: int = 0
    impostors: int = 0
    folds: int = 0
    templates: bool = False
    source: str = ""
    missing: tuple[str, ...] = ()
    elsewhere: int = 0
    alike: int = 0
    without_face: int = 0
    seed: int = 0
    resamples: int = 0
    rows: tuple[VerificationRow, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    curves: tuple[Curve, ...] = ()
    gains: tuple[Change, ...] = ()
    losses: tuple[Change, ...] = ()
    scores: str = ""


@dataclass(frozen=True)
class RetrievalRow:
    """Occluded probes looked for in a gallery of full faces.

    Attributes:
        recognizer, restorer: keys of :class:`Part`.
        state: of the probes: T, M or U.
        kind: of the occlusion over the probe, or "all".
        probes: how many.
        rank1, rank5, rank10: share of the probes with an image of the same person among the first 1, 5, 10.
        map: mean average precision.
        cmc: the same share for ranks 1, 2, ... 50 (or the size of the gallery).
    """

    recognizer: str = ""
    restorer: str = ""
    state: Literal["T", "M", "U"] = "T"
    kind: str = "all"
    probes: int = 0
    rank1: Figure = Figure()
    rank5: Figure = Figure()
    rank10: Figure = Figure()
    map: Figure = Figure()
    cmc: tuple[float, ...] = ()


@dataclass(frozen=True)
class TenSets:
    """Accuracy over sets of pairs of a probe and a gallery image, each set with the threshold of the other sets.

    Attributes:
        recognizer, restorer, state: as in :class:`RetrievalRow`.
        sets, matched, unmatched: sets, and pairs in each.
        accuracies: one for each set.
        accuracy: their mean with its 95 % interval, Student's; without it where sets share pairs.
    """

    recognizer: str = ""
    restorer: str = ""
    state: Literal["T", "M", "U"] = "T"
    sets: int = 0
    matched: int = 0
    unmatched: int = 0
    accuracies: tuple[float, ...] = ()
    accuracy: Figure = Figure()


@dataclass(frozen=True)
class Retrieval:
    """Retrieval of people.

    Attributes:
        probes, gallery, identities: images, and people with a probe.
        single: people with one image only: it is in the gallery, and nobody looks for them.
        without_face: images left out since no face was found.
        seed, resamples: of the bootstrap and of the ten sets.
        rows, comparisons, sets: the figures.
    """

    probes: int = 0
    gallery: int = 0
    identities: int = 0
    single: int = 0
    without_face: int = 0
    seed: int = 0
    resamples: int = 0
    rows: tuple[RetrievalRow, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    sets: tuple[TenSets, ...] = ()


@dataclass(frozen=True)
class QualityRow:
    """How near restored faces are to the true ones, in the restorer's crop, as means over the faces.

    Attributes:
        restorer: key of a :class:`Part`; empty for the occluded face as it is.
        kind: of the occlusion, or "all".
        faces: how many.
        size, zoom: the crop in which it was measured.
        psnr, ssim: over the whole crop; ``hole_psnr``, ``hole_ssim``: inside the true occlusion alone (dB; -1 to 1).
        lpips: by network -> learned perceptual distance; lower is better.
        iou: overlap of the occlusion found with the true one; None where it was given.
    """

    restorer: str = ""
    kind: str = "all"
    faces: int = 0
    size: int = 0
    zoom: float = 0.0
    psnr: Figure = Figure()
    ssim: Figure = Figure()
    hole_psnr: Figure = Figure()
    hole_ssim: Figure = Figure()
    lpips: Mapping[str, Figure] = field(default_factory=dict)
    iou: Figure = Figure()


@dataclass(frozen=True)
class Distribution:
    """Restored faces against true faces as two sets, over the features of a named network.

    Attributes:
        restorer: key of a :class:`Part`; empty for the occluded faces as they are.
        network: key of a :class:`Network`.
        faces: in each set.
        size, zoom: the crop.
        frechet: Frechet distance of Gaussians fitted to the features (over the standard Inception, this is FID).
        precision, recall, f1, realism: Kynkaanniemi et al. 2019, with ``neighbours`` neighbours; realism is the mean.
        neighbours: k.
    """

    restorer: str = ""
    network: str = ""
    faces: int = 0
    size: int = 0
    zoom: float = 0.0
    frechet: float | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    realism: float | None = None
    neighbours: int = 3


@dataclass(frozen=True)
class Example:
    """One face for a contact sheet: the best and the worst by PSNR inside the hole, and evenly spaced ones.

    Attributes:
        restorer: key of a :class:`Part`.
        name, kind: of the image, and of its occlusion.
        why: "best", "worst" or "spaced".
        hole_psnr: in dB.
        pictures: PNG files beside the report: "true", "occluded", "found" (the occlusion that was restored, grey),
            "restored".
    """

    restorer: str = ""
    name: str = ""
    kind: str = ""
    why: Literal["best", "worst", "spaced"] = "spaced"
    hole_psnr: float | None = None
    pictures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Quality:
    """Quality of restored faces.

    Attributes:
        faces: how many.
        without_face: images left out since no face was found.
        seed, resamples: of the bootstrap.
        rows, distributions: the figures.
        examples: pictures.
    """

    faces: int = 0
    without_face: int = 0
    seed: int = 0
    resamples: int = 0
    rows: tuple[QualityRow, ...] = ()
    distributions: tuple[Distribution, ...] = ()
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True)
class Overlap:
    """Whether people of the test were in a part's training data.

    Attributes:
        state: "none" (all training identities are known, and none is in the test), "found", "unknown", or "untrained"
            (the part has no weights).
        identities: those found in both.
        sentence: the same in words; shown in every report.
    """

    state: Literal["none", "found", "unknown", "untrained"] = "unknown"
    identities: tuple[str, ...] = ()
    sentence: str = ""


@dataclass(frozen=True)
class Part:
    """A restorer or a recognizer that took part.

    Attributes:
        key: what rows call it: the method's name, and for a restorer that finds occlusions but was given them,
            ``name (given)``.
        method, distribution, version: where it is from.
        role: "restorer" or "recognizer".
        occlusion: "found" by the restorer or "given" to it, the true one; empty for a recognizer.
        weights: name of the weights file, empty without one.
        sha256: of the weights file, empty without one.
        files: name and SHA-256 of each model that was read besides that file.
        config: first 16 hex digits of the digest of its configuration.
        size, zoom: its crop.
        data, licence, notes: as the weights' card says.
        redraws_face: the restorer changes visible pixels too.
        overlap: with its training data.
        trained_with: recognizers of this report that the restorer's configuration names: their gain is flattered.
    """

    key: str = ""
    method: str = ""
    distribution: str = ""
    version: str = ""
    role: Literal["restorer", "recognizer"] = "restorer"
    occlusion: Literal["found", "given", ""] = ""
    weights: str = ""
    sha256: str = ""
    files: tuple[str, ...] = ()
    config: str = ""
    size: int = 0
    zoom: float = 0.0
    data: str = ""
    licence: str = ""
    notes: str = ""
    redraws_face: bool = False
    overlap: Overlap = Overlap()
    trained_with: tuple[str, ...] = ()


@dataclass(frozen=True)
class Network:
    """A network whose features or distances were used.

    Attributes:
        key: what rows call it.
        file: name of its file; empty for a recognizer (see its :class:`Part`).
        sha256: of the file, or of the recognizer's weights.
        features: what is taken from it, in words.
        dimensions: of its features; 0 where only distances are taken.
    """

    key: str = ""
    file: str = ""
    sha256: str = ""
    features: str = ""
    dimensions: int = 0


@dataclass(frozen=True)
class Data:
    """The faces judged on.

    Attributes:
        title: of the data set.
        kind: name of the reader, or "packed".
        split: the part of the data set; empty for all of it.
        images, identities: used.
        limit: only so many of the pairs (or images), evenly spaced, were asked for; None for all.
        digest: first 16 hex digits of the digest of the names and pixels of all images used.
        landmarks: "stored", "found" (by the detector) or "stored and found".
        without_face: names of the images in which no face was found; they are left out wherever they occur.
        unreadable: names of the images that could not be read; they are left out too.
        notes: what was odd about an image that was used (a truncated file), name -> sentence.
    """

    title: str = ""
    kind: str = ""
    split: str = ""
    images: int = 0
    identities: int = 0
    limit: int | None = None
    digest: str = ""
    landmarks: str = ""
    without_face: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Masks:
    """How faces were occluded.

    Attributes:
        occluder: "deocc.occlude", the name of an installed occluder, or "real" (the probes wear real masks).
        kinds: that were drawn from; empty for another occluder than deocc.occlude.
        seed: together with an image's name, this decides its occlusion.
        fingerprint: of the set of masks (:func:`deocc.occlude.fingerprint`), or the occluder's identity.
        counts: kind -> images.
    """

    occluder: str = "deocc.occlude"
    kinds: tuple[str, ...] = ()
    seed: int = 0
    fingerprint: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """Everything that ``report.json`` holds.

    Attributes:
        format, version: of this schema.
        invented: the sentence that restored pixels are invented; it belongs under every table and picture.
        deocc: the version that judged.
        resampling: how pixels come from the photo to restorers and matchers, in words.
        data, masks, restorers, recognizers, networks: what was judged, with what.
        warnings: what a reader must know before the figures: overlaps, unknown training data, images left out.
        verification, retrieval, quality: None where not asked for.
    """

    format: str = FORMAT
    version: int = VERSION
    invented: str = ""
    deocc: str = ""
    resampling: str = ""
    data: Data = Data()
    masks: Masks = Masks()
    restorers: tuple[Part, ...] = ()
    recognizers: tuple[Part, ...] = ()
    networks: tuple[Network, ...] = ()
    warnings: tuple[str, ...] = ()
    verification: Verification | None = None
    retrieval: Retrieval | None = None
    quality: Quality | None = None


def write(path: str | Path, report: Report) -> None:
    """Write a report as JSON, whole or not at all; an earlier one is replaced.

    Raises:
        InputError: a figure that is not finite, or the file cannot be written.
        UsageError: a value of another type than the schema has.
    """
    values = to_dict(report)
    _finite(values, str(path))
    from_dict(Report, values, source=str(path))
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_write(path) as file:
        # Of a file's name that is no text, what replaces a byte is that byte's escape in JSON too.
        file.write(text.encode("utf-8", "backslashreplace"))


def read(path: str | Path) -> Report:
    """Read a report.

    Raises:
        InputError: the file is missing, is no JSON, or is not a report of this version: a key is unknown or missing, or
            a value has another type.
    """
    path = Path(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise InputError(f'{path} is not a report of deocc judge: wanted "format": {FORMAT!r}')
    if values.get("version") != VERSION:
        raise InputError(f"{path} has version {values.get('version')!r}, this deocc reads {VERSION}; judge again")
    try:
        report = from_dict(Report, values)
    except UsageError as error:
        raise InputError(f"{path} is not a report of deocc judge: {error}") from error
    _finite(values, str(path))
    missing = _missing(values, to_dict(report))
    if missing:
        raise InputError(f"{path} is not a report of deocc judge: {missing!r} is missing")
    return report


def _finite(value: Any, source: str, name: str = "") -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{source}: {name} must be finite or null, got {value}")
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        _finite(item, source, f"{name}.{key}" if name else str(key))


def _missing(value: Any, whole: Any, name: str = "") -> str:
    """The first key that the whole has and the value lacks; empty when there is none."""
    if isinstance(whole, dict):
        for key, item in whole.items():
            path = f"{name}.{key}" if name else key
            if key not in value:
                return path
            if found := _missing(value[key], item, path):
                return found
    elif isinstance(whole, list):
        for index, item in enumerate(whole):
            if found := _missing(value[index], item, f"{name}[{index}]"):
                return found
    return ""
