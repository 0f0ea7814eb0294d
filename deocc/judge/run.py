"""The whole of a judgement: what is wanted, one pass over the images, the figures, and the report."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import deocc
from deocc import method, weights
from deocc.data import PackedFaces, Source
from deocc.errors import UsageError
from deocc.files import atomic_write, locked, make_folder
from deocc.images import write_image
from deocc.judge import qualify, result, retrieve, verify
from deocc.judge.cache import Cache
from deocc.judge.faces import Faces, Occluding, open_faces
from deocc.judge.networks import FeatureNetwork, load_networks
from deocc.judge.overlap import named_in, overlap
from deocc.judge.page import write_page
from deocc.judge.pairs import list_pairs
from deocc.judge.parts import Loaded, load_recognizers, load_restorers
from deocc.judge.result import Report
from deocc.judge.table import write_markdown
from deocc.judge.views import RESAMPLING, Views, Wants, look, restored_crops
from deocc.report import INVENTED

__all__ = ["TASKS", "judge", "quality", "retrieval", "verification"]

TASKS = ("verification", "retrieval", "quality")

REPORT = "report.json"
SCORES = "scores.npz"
PICTURES = "pictures"

FEW = 100
"""Pairs of one kind below which a report warns."""


@dataclass(frozen=True)
class _Judge:
    """What is judged, with what."""

    faces: Faces
    occluding: Occluding
    restorers: list[Loaded]
    recognizers: list[Loaded]
    networks: list[FeatureNetwork]


def judge(
    data: str | Path | Source | PackedFaces,
    *,
    restorers: Sequence[str | method.Restorer],
    recognizers: Sequence[str | method.Recognizer] = ("mobilefacenet",),
    tasks: Sequence[str] = TASKS,
    out: str | Path | None = None,
    pairs: str | Path | None = None,
    impostors: int = 0,
    occluder: str | method.Occluder | None = None,
    kinds: Sequence[str] | None = None,
    seed: int = 0,
    given: Sequence[str] = (),
    weight_files: Mapping[str, str | Path | Sequence[str | Path]] | None = None,
    features: Sequence[str | Path | nn.Module] = (),
    limit: int | None = None,
    resamples: int = 1000,
    allow_overlap: bool = False,
    cache: str | Path | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Judge restorers: does restoring help matchers, and how near is it to the truth?

    Args:
        data: the faces, as :func:`deocc.judge.faces.open_faces` takes them.
        restorers, recognizers: names of installed methods (with settings, as :func:`deocc.plugins.load` takes them), or
            the objects themselves.
        tasks: some of :data:`TASKS`.
        out: folder for ``report.json``, ``report.html``, ``report.md``, ``scores.npz`` and ``pictures/``; None writes
            nothing.
        pairs: list of pairs for verification (:func:`deocc.judge.pairs.read_list`); None takes the data set's own, or
            makes some.
        impostors: pairs of two people to add to these, at most, drawn among their images by the seed: no more faces are
            embedded, and small false positive rates are told from chance. Accuracy leaves them out.
        occluder: None for ``deocc.occlude``; an installed occluder or an :class:`deocc.method.Occluder`; or "real": the
            probes wear real masks.
        kinds: of ``deocc.occlude``; None for all.
        seed: of the occlusions, and of everything drawn.
        given: names of restorers that find occlusions, to be judged with the true occlusion given to them as well.
        weight_files: name of a restorer or recognizer -> weights file; or two files, for a name that is both.
        features: networks for distances between sets, and for LPIPS (:func:`deocc.judge.networks.load_networks`).
            The embeddings of the recognizers are used in any case.
        limit: at most so many pairs, probes and faces, evenly spaced.
        resamples: bootstrap samples of each figure; 0 makes no intervals.
        allow_overlap: judge though people of the test were in a restorer's training.
        cache: folder to keep embeddings and figures in; None is ``out/cache``.
        device: where to compute.
        progress: called with the number of images done and the number in all.

    Raises:
        UsageError: arguments that do not fit together, unknown names, or people of the test were in a restorer's
            training and ``allow_overlap`` is False.
        InputError: data, lists or files that cannot be used, or a part that returns what cannot be used.
        PluginError, WeightsError, MissingDependencyError: see :func:`deocc.plugins.load`; quality needs torchmetrics.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise UsageError(f"tasks must be some of {', '.join(TASKS)}, got {unknown[0] if unknown else 'none'}")
    if not restorers:
        raise UsageError("at least one restorer must be judged, got none")
    if not recognizers and tuple(tasks) != ("quality",):
        raise UsageError("verification and retrieval want at least one recognizer, got none")
    if resamples < 0:
        raise UsageError(f"resamples must be 0 or more, got {resamples}")
    if occluder == "real" and "quality" in tasks:
        raise UsageError("quality compares with the true face, which nobody knows under a real mask: leave it out")
    files = _weight_files(weight_files or {}, restorer=restorers, recognizer=recognizers)
    one = _Judge(
        open_faces(data),
        Occluding(occluder, kinds, seed, device),
        load_restorers(restorers, given=given, weight_files=files["restorer"], device=device),
        load_recognizers(recognizers, weight_files=files["recognizer"], device=device),
        load_networks(features, device) if "quality" in tasks else [],
    )
    if one.occluding.real and any(restorer.given for restorer in one.restorers):
        blind = next(restorer.key for restorer in one.restorers if restorer.given)
        raise UsageError(f"the true occlusion under a real mask is not known, so it cannot be given to {blind!r}")
    clash = {network.key for network in one.networks} & {part.key for part in one.recognizers}
    if clash:
        raise UsageError(f"two different things are called {min(clash)!r}; rename one")
    with contextlib.ExitStack() as stack:
        if out is not None:
            make_folder(out)
            stack.enter_context(locked(out, "deocc judge"))
        where = Path(cache) if cache is not None else Path(out) / "cache" if out is not None else None
        kept = Cache(where)
        stack.callback(kept.close)
        scores: dict[str, Any] = {}
        report = _judge(
            one,
            tasks,
            scores=scores,
            pairs=pairs,
            impostors=impostors,
            seed=seed,
            limit=limit,
            resamples=resamples,
            allow_overlap=allow_overlap,
            cache=kept,
            progress=progress,
        )
        if out is not None:
            report = _with_pictures(one, report, Path(out))
            if report.verification is not None and scores:
                with atomic_write(Path(out) / SCORES) as file:
                    np.savez(file, **scores)
                report = replace(report, verification=replace(report.verification, scores=SCORES))
            result.write(Path(out) / REPORT, report)
            write_page(out)
            write_markdown(out, report)
    return report


def _weight_files(
    given: Mapping[str, str | Path | Sequence[str | Path]], **named: Sequence[object]
) -> dict[str, dict[str, str | Path]]:
    """Role -> name -> file: a file goes where its card says that it belongs."""
    found: dict[str, dict[str, str | Path]] = {role: {} for role in named}
    for name, files in given.items():
        roles = [role for role, names in named.items() if name in names]
        if not roles:
            known = [known for names in named.values() for known in names if isinstance(known, str)]
            raise UsageError(f"weights were given for {name!r}, which is none of {', '.join(known)}")
        for file in [files] if isinstance(files, str | Path) else files:
            role = weights.read_card(file)["part"]
            if role not in roles or name in found[role]:
                fault = f"has two files for its {role}" if role in roles else f"is judged as a {' and '.join(roles)}"
                raise UsageError(f"{file} holds weights of a {role}, but {name!r} {fault}")
            found[role][name] = file
    return found


def verification(data: str | Path | Source | PackedFaces, **options: Any) -> Report:
    """Verify pairs: :func:`judge` with that task alone, and its options."""
    return judge(data, tasks=("verification",), **options)


def retrieval(data: str | Path | Source | PackedFaces, **options: Any) -> Report:
    """Look for occluded probes in a gallery of full faces: :func:`judge` with that task alone, and its options."""
    return judge(data, tasks=("retrieval",), **options)


def quality(data: str | Path | Source | PackedFaces, **options: Any) -> Report:
    """Compare restored faces with the true ones: :func:`judge` with that task alone, and its options."""
    return judge(data, tasks=("quality",), **options)


def _judge(
    one: _Judge,
    tasks: Sequence[str],
    *,
    scores: dict[str, Any],
    pairs: str | Path | None,
    impostors: int,
    seed: int,
    limit: int | None,
    resamples: int,
    allow_overlap: bool,
    cache: Cache,
    progress: Callable[[int, int], None] | None,
) -> Report:
    faces, occluding = one.faces, one.occluding
    wants = Wants()
    listed = chosen = names = None
    if "verification" in tasks:
        listed = list_pairs(faces, pairs, seed=seed, limit=limit, real=occluding.real, impostors=impostors)
        wants |= verify.verification_wants(listed, occluding.real)
    if "retrieval" in tasks:
        chosen = retrieve.search(faces, real=occluding.real, limit=limit)
        wants |= retrieve.retrieval_wants(chosen, occluding.real)
    if "quality" in tasks:
        names = qualify.chosen_faces(faces, limit)
        wants |= qualify.quality_wants(names)
    people = [person for name in wants.names if (person := faces.identity(name)) is not None]
    restorers, recognizers, warnings = _described(one, people, allow_overlap)
    views = look(
        faces,
        wants,
        occluding=occluding,
        restorers=one.restorers,
        recognizers=one.recognizers,
        networks=one.networks,
        cache=cache,
        progress=progress,
    )
    common: dict[str, Any] = {
        "occluding": occluding,
        "restorers": one.restorers,
        "recognizers": one.recognizers,
        "seed": seed,
        "resamples": resamples,
    }
    verified = None if listed is None else verify.verification(views, listed, kept=scores, **common)
    retrieved = None if chosen is None else retrieve.retrieval(views, chosen, faces, **common)
    measured = None if names is None else qualify.quality(views, names, networks=one.networks, **common)
    occluded = sorted((wants.occluded | wants.restored | wants.quality) & views.content.keys())
    return Report(
        invented=INVENTED,
        deocc=deocc.__version__,
        resampling=RESAMPLING,
        data=_data(faces, views, len(set(people)), limit),
        masks=occluding.result(occluded),
        restorers=restorers,
        recognizers=recognizers,
        networks=() if measured is None else _networks(one, views),
        warnings=(*warnings, *_warnings(faces, views, verified)),
        verification=verified,
        retrieval=retrieved,
        quality=measured,
    )


def _described(
    one: _Judge, people: Sequence[str], allow_overlap: bool
) -> tuple[tuple[result.Part, ...], tuple[result.Part, ...], list[str]]:
    """The parts with what is known of their training people; refuses to judge a restorer on those."""
    warnings = []
    found = []
    parts = one.restorers + one.recognizers
    for number, part in enumerate(parts):
        shared = overlap(part, one.faces, people)
        flattered = named_in(part, one.recognizers) if part.result.role == "restorer" else ()
        found.append(replace(part.result, overlap=shared, trained_with=flattered))
        if shared.state == "found" and part.result.role == "restorer" and not allow_overlap:
            raise UsageError(f"{shared.sentence} Judge on other people, or allow it (--allow-overlap)")
        if any(part.part is other.part for other in parts[:number]):  # said before
            continue
        if shared.state in ("found", "unknown"):
            warnings.append(shared.sentence)
        warnings += [
            f"{part.key} may have been trained to please {key}: its configuration names it." for key in flattered
        ]
    count = len(one.restorers)
    return tuple(found[:count]), tuple(found[count:]), list(dict.fromkeys(warnings))


def _data(faces: Faces, views: Views, identities: int, limit: int | None) -> result.Data:
    digest = hashlib.sha256()
    for name, content in sorted(views.content.items()):
        digest.update(name.encode("utf-8", "surrogateescape") + b"\n" + content)
    return result.Data(
        title=faces.title,
        kind=faces.kind,
        split=faces.split,
        images=len(views.content),
        identities=identities,
        limit=limit,
        digest=digest.hexdigest()[:16],
        landmarks=faces.landmarks(),
        without_face=tuple(sorted(views.without_face)),
        unreadable=tuple(sorted(views.unreadable)),
        notes=dict(sorted({**faces.notes, **views.without_face, **views.unreadable}.items())),
    )


def _networks(one: _Judge, views: Views) -> tuple[result.Network, ...]:
    """The feature networks, and the matchers, whose embeddings are features too."""
    matchers = []
    for matcher in one.recognizers:
        vector = next(iter(views.embeddings[matcher.key, "", "T"].values()))
        words = "embeddings of the matcher, in its own crop"
        matchers.append(result.Network(matcher.key, "", matcher.result.sha256, words, vector.size))
    return (*(network.result for network in one.networks), *matchers)


def _warnings(faces: Faces, views: Views, verified: result.Verification | None) -> Iterator[str]:
    if verified is not None and verified.missing:
        yield f"{len(verified.missing)} pairs name images that are not in {faces.title}; they are left out."
    if verified is not None and verified.elsewhere:
        yield f"{verified.elsewhere} pairs are of images in other parts of the data set; {faces.title} lacks them."
    if verified is not None and verified.alike:
        yield f"{verified.alike} pairs are of two masked faces or of two full ones; with real masks they are left out."
    for what, names in (("no face was found", views.without_face), ("nothing could be read", views.unreadable)):
        if names:
            listed = ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
            yield f"In {len(names)} images {what}; whatever needs them is left out: {listed}."
    if verified is not None:
        fewer = min(verified.genuine, verified.impostors)
        if fewer < FEW:
            yield f"With {fewer} pairs of one kind the figures of verification say little, whatever their intervals."
        for rate in verified.rows[0].rates:
            if rate.accepted == 0:
                yield (
                    f"Of {verified.impostors} impostor pairs none may pass at a false positive rate of {rate.fpr:g}: "
                    "TPR there hangs on the highest of their scores alone."
                )
    if verified is not None and verified.pairs > verify.MOST_RESAMPLED:
        yield f"{verified.pairs} pairs are too many to be resampled: figures of verification have no intervals."


def _with_pictures(one: _Judge, report: Report, out: Path) -> Report:
    """Write the crops of the largest changes and of the examples, and say where they are."""
    album = _Album(one, out)
    verified, measured = report.verification, report.quality
    if verified is not None and not verified.templates:
        gains, losses = (
            tuple(
                replace(change, pictures=album.pictures(change.restorer, change.probe, gallery=change.gallery))
                for change in changes
            )
            for changes in (verified.gains, verified.losses)
        )
        verified = replace(verified, gains=gains, losses=losses)
    if measured is not None:
        examples = tuple(
            replace(example, pictures=album.pictures(example.restorer, example.name)) for example in measured.examples
        )
        measured = replace(measured, examples=examples)
    return replace(report, verification=verified, quality=measured)


class _Album:
    """Pictures in the folder of a report: each is written once."""

    def __init__(self, one: _Judge, out: Path) -> None:
        self._one, self._out = one, out
        self._restorers = {restorer.key: restorer for restorer in one.restorers}
        self._done: dict[tuple[str, str], dict[str, str]] = {}
        make_folder(out / PICTURES)

    def pictures(self, restorer: str, name: str, *, gallery: str = "") -> dict[str, str]:
        """Paths of the pictures of a face, and of the gallery's face it is compared with."""
        if (restorer, name) not in self._done:
            self._done[restorer, name] = self._drawn(self._restorers[restorer], name)
        found = dict(self._done[restorer, name])
        if gallery:
            face = self._one.occluding.prepared(self._one.faces.load(gallery))
            crop = self._restorers[restorer].crop
            found["gallery"] = self._written(f"true {crop}", gallery, face.cut(crop))
        return found

    def _drawn(self, restorer: Loaded, name: str) -> dict[str, str]:
        occluding, crop = self._one.occluding, restorer.crop
        face = occluding.prepared(self._one.faces.load(name))
        image, occlusion = occluding.occluded(name, face)
        occluded = replace(face, image=image)
        before = occluded.cut(crop)
        hidden = occluded.cut_occlusion(occlusion, crop)
        restored = restored_crops(restorer, before[None], hidden[None], [name])
        drawn = {
            "occluded": self._written(f"occluded {crop}", name, before),
            "found": self._written(
                f"found {restorer.key}", name, (restored.hidden[0] > 0).astype(np.uint8) * np.uint8(255)
            ),
            "restored": self._written(f"restored {restorer.key}", name, restored.pixels[0]),
        }
        if not occluding.real:
            drawn["true"] = self._written(f"true {crop}", name, face.cut(crop))
        return drawn

    def _written(self, what: str, name: str, pixels: Any) -> str:
        mark = hashlib.sha256(f"{what}\n{name}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
        path = f"{PICTURES}/{mark}.png"
        write_image(self._out / path, pixels, overwrite=True)
        return path
