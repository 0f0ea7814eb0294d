"""One pass over the images: each is read, occluded and restored once, and seen by every matcher in every state wanted.

A matcher sees a true or an occluded face cut from the photo in its own alignment, by one interpolation. A restored face
is that occluded one, with the pixels that the restorer made up, brought over from the restorer's crop by one
interpolation more (:func:`deocc.judge.faces.transferred`).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import deocc
from deocc import metrics
from deocc.errors import InputError
from deocc.faces import Crop
from deocc.images import to_tensor, to_uint8
from deocc.judge.cache import KEY, Cache, Stage
from deocc.judge.faces import U8, Face, Faces, NoFaceError, Occluding, transferred
from deocc.judge.networks import FeatureNetwork, Perceptual
from deocc.judge.parts import Loaded

__all__ = ["FIGURES", "RESAMPLING", "Views", "Wants", "look", "restored_crops"]

VERSION = 2
"""Raised whenever the same images and parts give other vectors than before."""

CHUNK = 32
"""Images that are worked on together: what an interrupted run does again."""

BATCH = 16
"""Faces that a restorer or a matcher gets at once."""

FIGURES = ("psnr", "ssim", "hole_psnr", "hole_ssim", "iou")
"""Figures of a restored crop, in the order of the vectors of :attr:`Views.quality`."""

RESAMPLING = (
    "Crops are cut by one bicubic interpolation, after averaging blocks where the photo is much larger "
    "(deocc.faces.align). A matcher's crop of a restored face is its crop of the occluded photo, to the bit, but for "
    "pixels that a restored pixel reaches: these come from the restorer's crop by one more bicubic interpolation. "
    "Landmarks are those of the photo before it was occluded, in every state."
)

Vectors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Wants:
    """Names of the images wanted in each state: true, occluded, restored; and those whose quality is measured."""

    true: frozenset[str] = frozenset()
    occluded: frozenset[str] = frozenset()
    restored: frozenset[str] = frozenset()
    quality: frozenset[str] = frozenset()

    def __or__(self, other: Wants) -> Wants:
        return Wants(
            self.true | other.true,
            self.occluded | other.occluded,
            self.restored | other.restored,
            self.quality | other.quality,
        )

    @property
    def names(self) -> list[str]:
        """All of them, sorted."""
        return sorted(self.true | self.occluded | self.restored | self.quality)


class Views:
    """What a pass has found.

    Attributes:
        embeddings: (recognizer, restorer, state) -> name -> unit vector; the state is T, M or U, and the restorer is
            empty but for U.
        quality: (restorer, crop) -> name -> :data:`FIGURES`; the restorer is empty for the occluded face.
        distances: (network, restorer, crop) -> name -> [LPIPS].
        features: (network, restorer, crop) -> name -> vector; the restorer is None for the true face.
        without_face, unreadable: name -> why.
        content: name -> digest of pixels and landmarks.
    """

    def __init__(self) -> None:
        self.embeddings: dict[tuple[str, str, str], Vectors] = {}
        self.quality: dict[tuple[str, Crop], Vectors] = {}
        self.distances: dict[tuple[str, str, Crop], Vectors] = {}
        self.features: dict[tuple[str, str | None, Crop], Vectors] = {}
        self.without_face: dict[str, str] = {}
        self.unreadable: dict[str, str] = {}
        self.content: dict[str, bytes] = {}

    def matrix(self, recognizer: str, restorer: str, state: str, names: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings (N, D) of images that were wanted in that state."""
        vectors = self.embeddings[recognizer, restorer if state == "U" else "", state]
        return np.stack([vectors[name] for name in names])


class Restoration(NamedTuple):
    """Restored crops: float image (N, 3, S, S) and the occlusion found or given (N, 1, S, S); the image as uint8, and
    the pixels that come from it (N, S, S), 0 or 1: the occlusion, or all of them where a restorer redraws the face."""

    image: Tensor
    occlusion: Tensor
    pixels: U8
    hidden: U8


def look(
    faces: Faces,
    wants: Wants,
    *,
    occluding: Occluding,
    restorers: Sequence[Loaded],
    recognizers: Sequence[Loaded],
    networks: Sequence[FeatureNetwork] = (),
    cache: Cache,
    progress: Callable[[int, int], None] | None = None,
) -> Views:
    """Look at every image that is wanted; what is in the cache is not computed again.

    Images are worked on by several threads; each restorer, recognizer and network by one at a time.

    Raises:
        InputError: a restorer or a recognizer returned what cannot be used; the sentence names it and the image.
        MissingDependencyError: quality is wanted and torchmetrics is not installed.
    """
    names = wants.names
    run = _Pass(faces, wants, occluding, restorers, recognizers, networks, cache)
    before = torch.get_num_threads()
    workers = max(1, min(before, len(restorers) + len(recognizers)))
    chunks = [names[start : start + CHUNK] for start in range(0, len(names), CHUNK)]
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(max(1, before // workers),))
    try:
        futures = [pool.submit(run.chunk, chunk) for chunk in chunks]
        done = 0
        for chunk, future in zip(chunks, futures, strict=True):
            future.result()
            done += len(chunk)
            if progress is not None:
                progress(done, len(names))
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
    return run.views


def restored_crops(restorer: Loaded, crops: U8, hidden: U8, names: Sequence[str]) -> Restoration:
    """Restore aligned crops.

    Args:
        restorer: which.
        crops: uint8 (N, S, S, 3), occluded.
        hidden: uint8 (N, S, S), 255 = wholly occluded: given to restorers that are to be told.
        names: of the images, for an error.

    Raises:
        InputError: what came back is not finite.
    """
    parts = []
    for start in range(0, len(crops), BATCH):
        given = torch.from_numpy(hidden[start : start + BATCH, None]) / 255 if restorer.given else None
        with restorer.lock, torch.no_grad():
            restored = restorer.part(to_tensor(crops[start : start + BATCH]), given)
        image, occlusion = (value.detach().float().cpu() for value in (restored.image, restored.occlusion))
        for name, one in zip(names[start : start + BATCH], image, strict=True):
            if not bool(torch.isfinite(one).all()):
                raise InputError(f"the restorer {restorer.key!r} returned values that are not finite for {name}")
        parts.append((image.clamp(0, 1), occlusion))
    image, occlusion = (torch.cat([part[index] for part in parts]) for index in (0, 1))
    made = torch.ones_like(occlusion) if restorer.part.redraws_face else occlusion
    return Restoration(image, occlusion, to_uint8(image), (made[:, 0] > 0).to(torch.uint8).numpy())


class _Pass:
    """What the threads of one :func:`look` share."""

    def __init__(
        self,
        faces: Faces,
        wants: Wants,
        occluding: Occluding,
        restorers: Sequence[Loaded],
        recognizers: Sequence[Loaded],
        networks: Sequence[FeatureNetwork],
        cache: Cache,
    ) -> None:
        self.faces, self.wants, self.occluding = faces, wants, occluding
        self.restorers, self.recognizers, self.networks = restorers, recognizers, networks
        self.crops = list(dict.fromkeys(restorer.crop for restorer in restorers))
        self.views = Views()
        # Each decides pixels or vectors, if only in their last digits.
        libraries = {"torch": torch.__version__, "numpy": np.__version__, "opencv": cv2.__version__}
        common = {"version": VERSION, "deocc": deocc.__version__, **libraries}
        masked = {**common, "masks": occluding.identity}
        identity = {network.key: network.identity for network in networks}

        def stage(base: Mapping[str, Any], **what: Any) -> Stage:
            return cache.stage({**base, **what})

        self.embedding: dict[tuple[str, str, str], Stage] = {}
        for one in recognizers:
            self.embedding[one.key, "", "T"] = stage(
                common, recognizer=one.identity, occluder=None if occluding.crop is None else occluding.identity
            )
            self.embedding[one.key, "", "M"] = stage(masked, recognizer=one.identity)
            for restorer in restorers:
                what = {"recognizer": one.identity, "restorer": restorer.identity}
                self.embedding[one.key, restorer.key, "U"] = stage(masked, **what)
        makers: list[tuple[str, Crop, Any]] = [("", crop, [crop.size, crop.zoom]) for crop in self.crops]
        makers += [(restorer.key, restorer.crop, restorer.identity) for restorer in restorers]
        self.figures = {(key, crop): stage(masked, figures=FIGURES, of=of) for key, crop, of in makers}
        self.perception: dict[tuple[str, str | None, Crop], Stage] = {}
        for network in networks:
            for key, crop, of in makers:
                self.perception[network.key, key, crop] = stage(masked, network=identity[network.key], of=of)
            for crop in self.crops:
                of = [crop.size, crop.zoom, None if occluding.crop is None else occluding.identity]
                self.perception[network.key, None, crop] = stage(common, network=identity[network.key], true=of)

        # Made here, since threads that made one at once would lose what the other had put in.
        for place in self.embedding:
            self.views.embeddings[place] = {}
        for key, crop in self.figures:
            self.views.quality[key, crop] = {}
        for name, key_or_none, crop in self.perception:
            self.views.features[name, key_or_none, crop] = {}
            self.views.distances[name, key_or_none or "", crop] = {}

    def chunk(self, names: Sequence[str]) -> None:
        """Look at some images."""
        work = _Chunk(self, names)
        wants = self.wants
        work.true([name for name in names if name in wants.true])
        occluded = [name for name in names if name in wants.occluded]
        restored = [name for name in names if name in wants.restored]
        quality = [name for name in names if name in wants.quality]
        work.occlude(occluded, restored, quality)
        work.occluded(occluded)
        for restorer in self.restorers:
            work.restored(restorer, restored, quality)
        work.quality(quality)


class _Chunk:
    """Some images, and what was made of them so far."""

    def __init__(self, shared: _Pass, names: Sequence[str]) -> None:
        self.shared, self.views = shared, shared.views
        self.faces: dict[str, Face] = {}
        self.masked: dict[str, tuple[Face, U8]] = {}
        self.keys: dict[str, bytes] = {}
        self.masked_keys: dict[str, bytes] = {}
        self._masked_crops: dict[tuple[str, Crop], U8] = {}
        self._pictures: dict[tuple[str, Crop], Callable[[], Tensor]] = {}
        for name in names:
            try:
                face = shared.occluding.prepared(shared.faces.load(name))
            except NoFaceError as error:
                self.views.without_face[name] = str(error)
                continue
            except InputError as error:
                self.views.unreadable[name] = str(error)
                continue
            self.faces[name] = face
            digest = hashlib.blake2b(face.image.tobytes(), digest_size=KEY)
            digest.update(f"{face.image.shape} {face.crop}".encode())
            digest.update(np.asarray(face.landmarks, np.float64).tobytes())
            self.keys[name] = self.views.content[name] = digest.digest()
            digest.update(str(shared.occluding.seed_of(name)).encode())
            self.masked_keys[name] = digest.digest()

    def true(self, names: Sequence[str]) -> None:
        """Embeddings of true faces."""
        names = self._left(names)
        self._embeddings("", "T", names, lambda crop: self._cut(names, crop))

    def occlude(self, *groups: Sequence[str]) -> None:
        """Occlude all faces, unless whatever comes of them is in the cache."""
        occluded, restored, quality = (self._left(group) for group in groups)
        shared = self.shared
        wanted = [
            (stage, restored if state == "U" else occluded)
            for (_, _, state), stage in shared.embedding.items()
            if state != "T"
        ]
        wanted += [(stage, quality) for stage in shared.figures.values()]
        wanted += [(stage, quality) for (_, key, _), stage in shared.perception.items() if key is not None]
        if all(stage.get([self.masked_keys[name] for name in names]) is not None for stage, names in wanted):
            return
        for name in sorted({*occluded, *restored, *quality}):
            face = self.faces[name]
            try:
                image, occlusion = shared.occluding.occluded(name, face)
            except NoFaceError as error:
                self.views.without_face[name] = str(error)
                del self.faces[name], self.views.content[name]
                continue
            self.masked[name] = (Face(image, face.landmarks, face.crop), occlusion)

    def occluded(self, names: Sequence[str]) -> None:
        """Embeddings of occluded faces."""
        names = self._left(names)
        self._embeddings("", "M", names, lambda crop: self._cut_masked(names, crop))

    def restored(self, restorer: Loaded, names: Sequence[str], quality: Sequence[str]) -> None:
        """Embeddings and quality of restored faces."""
        names, quality = self._left(names), self._left(quality)
        every = sorted({*names, *quality})
        place = {name: number for number, name in enumerate(every)}

        @functools.cache
        def made() -> Restoration:
            crops = self._cut_masked(every, restorer.crop)
            return restored_crops(restorer, crops, self._hidden(every, restorer.crop), every)

        def seen(crop: Crop) -> U8:
            views = []
            for name, base in zip(names, self._cut_masked(names, crop), strict=True):
                pixels, hidden = made().pixels[place[name]], made().hidden[place[name]]
                views.append(transferred(base, pixels, hidden, self.faces[name].moved(restorer.crop), crop))
            return np.stack(views)

        self._embeddings(restorer.key, "U", names, seen)
        places = [place[name] for name in quality]
        found = (lambda: made().occlusion[places]) if restorer.result.occlusion == "found" else None
        self._measure(restorer.key, restorer.crop, quality, lambda: made().image[places], found)

    def quality(self, names: Sequence[str]) -> None:
        """Quality of the occluded faces as they are; and what networks say of these, the restored and the true ones."""
        names = self._left(names)
        for crop in self.shared.crops:
            self._measure("", crop, names, functools.partial(self._masked_tensor, names, crop), None)
            for network in self.shared.networks:
                self._perceive(network, crop, names)

    def _measure(
        self,
        key: str,
        crop: Crop,
        names: Sequence[str],
        image: Callable[[], Tensor],
        found: Callable[[], Tensor] | None,
    ) -> None:
        """Figures of crops against the true faces."""

        def figures() -> NDArray[np.float32]:
            made, true = image(), to_tensor(self._cut(names, crop))
            hole = torch.from_numpy(self._hidden(names, crop)[:, None] > 0).float()
            nothing = torch.full((len(names),), torch.nan, dtype=torch.float64)
            columns = [
                metrics.psnr(made, true),
                metrics.ssim(made, true),
                metrics.psnr(made, true, where=hole),
                metrics.ssim(made, true, where=hole),
                nothing if found is None else metrics.occlusion_iou(found(), hole),
            ]
            return torch.stack(columns, dim=1).float().numpy()

        self._pictures[key, crop] = image
        rows = self._vectors(self.shared.figures[key, crop], [self.masked_keys[name] for name in names], figures)
        self.views.quality[key, crop].update(zip(names, rows, strict=True))

    def _perceive(self, network: FeatureNetwork, crop: Crop, names: Sequence[str]) -> None:
        """A network's features of the true, the occluded and all restored crops, and its distances from the true."""
        makers = [None, *(key for key, its_crop in self._pictures if its_crop == crop)]
        stages = {key: self.shared.perception[network.key, key, crop] for key in makers}
        keys = {key: [(self.keys if key is None else self.masked_keys)[name] for name in names] for key in makers}
        rows = {key: stage.get(keys[key]) for key, stage in stages.items()}
        if None in rows.values():
            images = {key: self._pictures[key, crop]() for key in makers if key is not None}
            perceived = _perceived(network, to_tensor(self._cut(names, crop)), images)
            for key, vectors in perceived.items():
                if rows[key] is None:
                    rows[key] = stages[key].put(keys[key], vectors)
        for key, vectors_of in rows.items():
            distances = int(isinstance(network, Perceptual) and key is not None)
            for name, row in zip(names, vectors_of or (), strict=True):
                self.views.features[network.key, key, crop][name] = row[distances:]
                if distances:
                    self.views.distances[network.key, key or "", crop][name] = row[:1]

    def _masked_tensor(self, names: Sequence[str], crop: Crop) -> Tensor:
        return to_tensor(self._cut_masked(names, crop))

    def _embeddings(self, restorer: str, state: str, names: Sequence[str], crops: Callable[[Crop], U8]) -> None:
        """What every matcher makes of crops, which are asked for where they are not in the cache."""
        known = self.keys if state == "T" else self.masked_keys
        for one in self.shared.recognizers:
            rows = self._vectors(
                self.shared.embedding[one.key, restorer, state],
                [known[name] for name in names],
                functools.partial(_embed, one, crops, names, state),
            )
            self.views.embeddings[one.key, restorer, state].update(zip(names, rows, strict=True))

    @staticmethod
    def _vectors(
        stage: Stage, keys: Sequence[bytes], compute: Callable[[], NDArray[np.float32]]
    ) -> list[NDArray[np.float32]]:
        known = stage.get(keys)  # nothing at all is known too
        return stage.put(keys, compute()) if known is None else known

    def _left(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name in self.faces]

    def _cut(self, names: Sequence[str], crop: Crop) -> U8:
        return np.stack([self.faces[name].cut(crop) for name in names])

    def _cut_masked(self, names: Sequence[str], crop: Crop) -> U8:
        for name in names:
            if (name, crop) not in self._masked_crops:
                self._masked_crops[name, crop] = self.masked[name][0].cut(crop)
        return np.stack([self._masked_crops[name, crop] for name in names])

    def _hidden(self, names: Sequence[str], crop: Crop) -> U8:
        return np.stack([self.masked[name][0].cut_occlusion(self.masked[name][1], crop) for name in names])


def _embed(one: Loaded, crops: Callable[[Crop], U8], names: Sequence[str], state: str) -> NDArray[np.float32]:
    images = to_tensor(crops(one.crop))
    with one.lock, torch.no_grad():
        try:
            embeddings = torch.cat([one.part(batch) for batch in torch.split(images, BATCH)])
        except InputError as error:
            words = {"T": "true", "M": "occluded", "U": "restored"}[state]
            for number, name in enumerate(names):
                try:
                    one.part(images[number : number + 1])
                except InputError as cause:
                    raise InputError(f"the matcher {one.key!r} fails on the {words} face {name}: {cause}") from error
            raise InputError(f"the matcher {one.key!r} fails on {len(names)} faces at once: {error}") from error
    return embeddings.float().cpu().numpy()


def _perceived(
    network: FeatureNetwork, true: Tensor, images: Mapping[str, Tensor]
) -> dict[str | None, NDArray[np.float32]]:
    """Features of the true crops (None) and, behind the distance from these where there is one, of the others."""
    found: dict[str | None, list[Tensor]] = {None: [], **{key: [] for key in images}}
    for start in range(0, len(true), BATCH):
        part = slice(start, start + BATCH)
        with network.lock, torch.inference_mode():
            maps = network.maps(true[part])
            found[None].append(network.pooled(maps).cpu())
            for key, image in images.items():
                others = network.maps(image[part])
                rows = [network.distance(others, maps).cpu()[:, None]] if isinstance(network, Perceptual) else []
                found[key].append(torch.cat([*rows, network.pooled(others).cpu()], dim=1))
    return {key: torch.cat(parts).float().numpy() for key, parts in found.items()}
