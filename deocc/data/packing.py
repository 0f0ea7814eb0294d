"""Turning a data set into packed faces, so that stopping at any moment loses nothing.

While it is built, a pack is the folder ``NAME.partial``: ``images.npy`` (and ``fields.npy``, where fields are wanted)
grows by a few hundred faces at a time, and after each such chunk has reached the disk, one line in ``journal.jsonl``
says what is in it. What the journal does not mention is not there: a second run cuts the files to the last line that is
whole and goes on. At the end the folder is renamed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import pickle
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from deocc.data.packed import FIELDS, FORMAT, IMAGES, LANDMARKS, VERSION, PackedFaces, check, partial, read_index
from deocc.data.source import Sample, Source
from deocc.errors import InputError, UsageError
from deocc.faces import Crop, Detector, FaceModel, align
from deocc.faces import dense_field as draw_field
from deocc.files import atomic_write, sha256

__all__ = ["PackReport", "pack"]

CHUNK = 256
"""Faces between two lines of the journal: what a killed run has to do again."""


_Result = tuple[list[npt.NDArray[np.uint8]], dict[str, Any]]
"""An aligned face and, where wanted, its field, or nothing; and what the journal says about it."""


class FindsFaces(Protocol):
    """What ``pack`` asks of a detector: :class:`deocc.faces.Detector` is one."""

    def detect(self, image: npt.NDArray[np.uint8]) -> Sequence[Any]:
        """Find faces, the largest first; each has ``landmarks`` (5, 2)."""


@dataclasses.dataclass(frozen=True)
class PackReport:
    """What a run of :func:`pack` did.

    Attributes:
        path: the folder.
        faces: faces in it.
        skipped: name of the image -> why it is not in the pack.
        notes: name of the image -> what was odd about it, though it is in the pack (a truncated file, say).
        without_field: names of the images in which the face model saw no face, so that their fields are empty.
        new: images that this run looked at; 0 when everything was there already.
        seconds: wall time of this run.
    """

    path: Path
    faces: int
    skipped: Mapping[str, str]
    notes: Mapping[str, str]
    without_field: tuple[str, ...]
    new: int
    seconds: float


def pack(
    source: Source,
    out: str | os.PathLike[str],
    *,
    crop: Crop = Crop(128, 0.75),  # noqa: B008 (frozen)
    detector: FindsFaces | None = None,
    dense_field: FaceModel | None = None,
    limit: int | None = None,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> PackReport:
    """Align every face of a data set and write the crops as one uint8 memory map.

    The folder holds ``images.npy`` (N, S, S, 3) uint8 RGB, ``landmarks.npy`` (N, 5, 2) float32 in pixels of the crop,
    and ``index.json``: names, identities, the crop, the SHA-256 of each image file and of both arrays, and what was
    skipped and why. It appears under ``out`` when it is complete. Run again after any interruption, ``pack`` goes on
    where it stopped and the result is the same to the byte; run again after the end, it checks the files.

    Landmarks are those of the source; where it has none, the largest face found is taken. Images without a face and
    images that cannot be read are skipped and listed.

    With ``dense_field`` there is ``fields.npy`` too, (N, S, S, 3) uint8: see :attr:`PackedFaces.fields`. A face that
    the model does not see has an empty field, and is listed.

    Args:
        source: the data set.
        out: the folder to make; the folder around it must exist.
        crop: size and zoom of the aligned crops.
        detector: finds faces where landmarks are missing; None is ``deocc.faces.Detector()``.
        dense_field: the face model to make fields with; None packs no fields.
        limit: pack the first so many images only.
        workers: processes that decode and align; 0 does it in this one. The result is the same. A detector or a
            face model of your own is pickled for them.
        progress: called with the number of images done and the number in all, after each chunk.

    Raises:
        UsageError: ``limit`` or ``workers`` is out of range.
        InputError: ``out`` holds another source or something else, another process is packing it, the disk is full, a
            worker died, or no image of the source has a face.
    """
    started = time.perf_counter()
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1, got {limit}")
    if workers < 0:
        raise UsageError(f"workers must be 0 or more, got {workers}")
    out = Path(out).absolute()
    samples = _First(source, min(len(source), limit or len(source)))
    begun: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "source": source.title,
        "crop": {"size": crop.size, "zoom": float(crop.zoom)},
        "files": len(samples),
        "files_sha256": _digest_of_list(samples),
    }
    if dense_field is not None:  # an index without fields is what it always was
        begun["dense_field"] = dense_field.title
    if out.exists() and not _is_empty_folder(out):
        return _already(out, begun, started)
    folder = partial(out)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror})") from error
    with _locked(folder, out):
        if not (folder / "index.json").exists():
            new = _build(folder, out, begun, samples, _Aligner(crop, detector, dense_field), workers, progress)
        else:
            # Killed between the last write and the rename.
            _same_source(out, folder, read_index(folder), begun)
            new = 0
        (folder / "journal.jsonl").unlink(missing_ok=True)
        folder.rename(out)
        _sync(out.parent)
    return _report(out, new, started)


def _build(
    folder: Path,
    out: Path,
    begun: Mapping[str, Any],
    samples: _First,
    aligner: _Aligner,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> int:
    """Bring a partial pack to its end; returns the number of images that were left to do."""
    names = [IMAGES] if aligner.model is None else [IMAGES, FIELDS]
    size = aligner.crop.size
    with contextlib.ExitStack() as stack:
        stack.enter_context(_reported(folder))
        pictures = [stack.enter_context(_open_update(folder / name)) for name in names]
        journal = stack.enter_context(_open_update(folder / "journal.jsonl"))
        records = _resume(pictures, journal, begun, size, out)
        done = len(records)
        with _mapped(aligner, samples.since(done), workers) as results:
            for first in range(done, len(samples), CHUNK):
                chunk = list(itertools.islice(results, min(CHUNK, len(samples) - first)))
                faces = [arrays for arrays, _ in chunk if arrays]
                digest = hashlib.sha256()
                for place, file in enumerate(pictures):
                    pixels = b"".join(arrays[place].tobytes() for arrays in faces)
                    file.write(pixels)
                    _flush(file)
                    digest.update(pixels)
                line = {"sha256": digest.hexdigest(), "images": [record for _, record in chunk]}
                journal.write(json.dumps(line).encode() + b"\n")
                _flush(journal)
                records += [record for _, record in chunk]
                if progress:
                    progress(len(records), len(samples))
        kept = [(sample, record) for sample, record in zip(samples, records, strict=True) if "landmarks" in record]
        if not kept:
            first_reason = records[0]["skipped"] if records else "it has no images"
            raise InputError(
                f"{begun['source']} gave no face to pack: all {len(records)} images were skipped ({first_reason})"
            )
        for file in pictures:
            file.seek(0)
            file.write(_header(len(kept), size))
            _flush(file)
    landmarks = np.asarray([record["landmarks"] for _, record in kept], np.float32)
    with atomic_write(folder / LANDMARKS) as file:
        np.save(file, landmarks)
    people = sorted({sample.identity for sample, _ in kept if sample.identity is not None})
    number = {name: position for position, name in enumerate(people)}
    index = {
        **begun,
        "sha256": {name: sha256(folder / name) for name in [*names, LANDMARKS]},
        "skipped": _column(samples, records, "skipped"),
        "notes": _column(samples, records, "note"),
        "identity_names": people,
        "identities": [-1 if sample.identity is None else number[sample.identity] for sample, _ in kept],
        "names": [sample.name for sample, _ in kept],
        "image_sha256": [record["sha256"] for _, record in kept],
    }
    if aligner.model is not None:
        index["without_field"] = [sample.name for sample, record in kept if record.get("field") is False]
    with atomic_write(folder / "index.json") as file:
        file.write(json.dumps(index, indent=0).encode() + b"\n")
    return len(samples) - done


def _resume(
    pictures: Sequence[BinaryIO], journal: BinaryIO, begun: Mapping[str, Any], size: int, out: Path
) -> list[dict[str, Any]]:
    """Cut all files to what is surely on the disk and return the records of the images in it."""
    lines = list(_whole_lines(journal))
    records: list[dict[str, Any]] = []
    good = len(_header(0, size))
    for file in pictures:
        file.seek(good)
    if lines:
        _same_source(out, partial(out), lines[0][1], begun)
        end = lines[0][0]
        for after, line in lines[1:]:
            wanted = size**2 * 3 * sum("landmarks" in record for record in line["images"])
            digest = hashlib.sha256()
            for file in pictures:
                digest.update(file.read(wanted))
            if digest.hexdigest() != line["sha256"]:
                break
            records += line["images"]
            good += wanted
            end = after
        journal.truncate(end)
        journal.seek(end)
    else:
        journal.truncate(0)
        journal.seek(0)
        journal.write(json.dumps(begun).encode() + b"\n")
        _flush(journal)
    for file in pictures:
        file.truncate(good)
        file.seek(good)
    return records


def _whole_lines(journal: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of a journal up to the first that is torn, each with the position behind it."""
    journal.seek(0)
    for line in journal:
        if not line.endswith(b"\n"):
            return
        try:
            yield journal.tell(), json.loads(line)
        except ValueError:
            return


class _First:
    """The first samples of a source, made when they are asked for: a data set has millions."""

    def __init__(self, source: Source, count: int) -> None:
        self.source, self.count = source, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Sample]:
        return self.since(0)

    def since(self, first: int) -> Iterator[Sample]:
        return (self.source[index] for index in range(first, self.count))


class _Aligner:
    """Sample -> aligned face, its field and its record; carried to worker processes."""

    def __init__(self, crop: Crop, detector: FindsFaces | None, model: FaceModel | None) -> None:
        self.crop, self.detector, self.model = crop, detector, model

    def __call__(self, sample: Sample) -> _Result:
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                image = sample.read()
            landmarks = sample.landmarks
            if landmarks is None:
                # Made when first needed: most data sets come with landmarks.
                if self.detector is None:
                    self.detector = Detector()
                faces = self.detector.detect(image)
                if not faces:
                    return [], {"skipped": "no face was found"}
                landmarks = faces[0].landmarks
            arrays = [align(image, landmarks, self.crop)]
            seen = True
            if self.model is not None:
                field, covered = draw_field(image, landmarks, self.model, self.crop)
                seen = bool(covered.any())
                arrays.append(np.rint(np.stack([*field, covered], 2) * 255).astype(np.uint8))
            matrix = self.crop.matrix(landmarks)
            digest = sha256(sample.path)
        except InputError as error:
            return [], {"skipped": _without_path(str(error), sample)}
        points = np.asarray(landmarks, np.float64) @ matrix[:, :2].T + matrix[:, 2]
        record = {"landmarks": points.astype(np.float32).tolist(), "sha256": digest}
        if caught:
            record["note"] = _without_path("; ".join(str(warning.message) for warning in caught), sample)
        if not seen:
            record["field"] = False
        return arrays, record


def _without_path(sentence: str, sample: Sample) -> str:
    """A pack is the same wherever its source lay."""
    return sentence.replace(str(sample.path), sample.name)


_aligner: _Aligner | None = None
"""The aligner of a worker process."""


def _start_worker(aligner: _Aligner) -> None:
    global _aligner
    # A worker whose parent was killed would wait for work for ever.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)
    _aligner = aligner


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(samples: Sequence[Sample]) -> list[_Result]:
    assert _aligner is not None
    return [_aligner(sample) for sample in samples]


@contextlib.contextmanager
def _mapped(aligner: _Aligner, samples: Iterator[Sample], workers: int) -> Iterator[Iterator[_Result]]:
    """The results for ``samples``, in order, from this process or from ``workers`` others."""
    if not workers:
        yield map(aligner, samples)
        return
    try:
        pickle.dumps(aligner)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise UsageError(
            f"this detector or face model cannot be sent to other processes, use workers=0 ({error})"
        ) from error
    # Not fork: OpenCV and torch have threads by now. Not Pool: it waits for ever for a worker that was killed.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, context, _start_worker, (aligner,))
    try:
        yield _ordered(executor, samples, 2 * workers)
    except BrokenProcessPool as error:
        raise InputError("a worker process died (was memory short?); what is packed is kept: pack again") from error
    finally:
        executor.shutdown(cancel_futures=True)


def _ordered(executor: ProcessPoolExecutor, samples: Iterator[Sample], ahead: int) -> Iterator[_Result]:
    """Results in order, with ``ahead`` batches under way: a data set may be larger than memory."""
    waiting: deque[Future[list[_Result]]] = deque()
    while batch := list(itertools.islice(samples, 16)):
        waiting.append(executor.submit(_work, batch))
        if len(waiting) > ahead:
            yield from waiting.popleft().result()
    while waiting:
        yield from waiting.popleft().result()


def _already(out: Path, begun: Mapping[str, Any], started: float) -> PackReport:
    """The report of a pack that is complete, or the reason why ``out`` is not that."""
    if not out.is_dir() or not (out / "index.json").exists():
        raise InputError(f"{out} exists and holds something else than packed faces; choose another folder")
    _same_source(out, out, read_index(out), begun)
    problems = check(out)
    if problems:
        raise InputError(f"{problems[0]}; remove {out} and pack again")
    return _report(out, 0, started)


def _report(out: Path, new: int, started: float) -> PackReport:
    index = read_index(out)
    faces = PackedFaces(out)
    without_field = tuple(index.get("without_field", ()))
    seconds = time.perf_counter() - started
    return PackReport(out, len(faces), index["skipped"], index["notes"], without_field, new, seconds)


def _same_source(out: Path, where: Path, there: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for key, what in (
        ("version", "version"),
        ("crop", "crop"),
        ("source", "source"),
        ("files", "number of images"),
        ("files_sha256", "list of images"),
        ("dense_field", "face model of dense fields"),
    ):
        packed, now = there.get(key), wanted.get(key)
        if packed != now:
            raise InputError(
                f"{where} was packed from something else: its {what} is {packed}, wanted now is {now}; "
                f"choose another folder than {out} or remove it"
            )


def _digest_of_list(samples: Iterable[Sample]) -> str:
    """The SHA-256 of everything that decides what is packed, short of the pixels: those would have to be read."""
    digest = hashlib.sha256()
    for sample in samples:
        try:
            size = sample.path.stat().st_size
        except OSError:
            size = -1
        points = None if sample.landmarks is None else np.asarray(sample.landmarks, np.float32).tolist()
        digest.update(json.dumps([sample.name, sample.identity, size, points]).encode() + b"\n")
    return digest.hexdigest()


def _column(samples: Iterable[Sample], records: Sequence[Mapping[str, Any]], key: str) -> dict[str, str]:
    return {sample.name: record[key] for sample, record in zip(samples, records, strict=True) if key in record}


def _header(count: int, size: int) -> bytes:
    """The start of images.npy. Its length does not depend on ``count``: numpy leaves room for that to grow."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|u1", "fortran_order": False, "shape": (count, size, size, 3)}
    )
    return buffer.getvalue()


def _open_update(path: Path) -> BinaryIO:
    """Open for reading and writing anywhere, made if need be (mode "a" would write at the end only)."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


@contextlib.contextmanager
def _reported(folder: Path) -> Iterator[None]:
    """Turn a full disk, or one that fails, into one sentence."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror or error}); what is there is kept") from error


@contextlib.contextmanager
def _locked(folder: Path, out: Path) -> Iterator[None]:
    """Hold a folder for this process; the lock goes with the process, however that ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"{out} is being packed by another process; wait for it") from error
        yield
    finally:
        os.close(descriptor)
