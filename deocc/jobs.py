"""Jobs over many photos that can be stopped and started again: ``deocc unmask`` and ``deocc occlude``.

A job turns each photo into one file of the folder OUT, whole or not at all, and may write others beside it. Before it
writes a file it notes in the folder's journal (one JSON object a line) what the file is made from, with which settings,
and what lies in its place. A later run therefore knows which files are its own: those that are noted with the same
settings and are not what lay there when the note was made. The photo's file is written last: when that is there, all
is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deocc.errors import DeoccError, InputError, UsageError
from deocc.files import atomic_write, make_folder, sha256
from deocc.images import IMAGE_SUFFIXES, find_images

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from deocc.unmasking import UnmaskedFace, UnmaskResult

__all__ = ["Item", "Outcome", "find", "occlude", "run", "unmask"]


@dataclass(frozen=True)
class Item:
    """A photo and where its result goes: a path relative to OUT, with the suffix ``.png``."""

    photo: Path
    relative: Path


@dataclass(frozen=True)
class Outcome:
    """What became of a job's photos; ``failures`` has a sentence for each that failed."""

    done: tuple[Item, ...]
    skipped: tuple[Item, ...]
    failures: tuple[str, ...]


def find(paths: Sequence[Path], out: Path, *, below: str = "") -> tuple[list[Item], list[str]]:
    """The photos that files, folders and patterns name, and a sentence for each that cannot be used.

    A photo below a folder keeps its place below OUT; a file or a match of a pattern goes into OUT itself. What lies in
    OUT is not taken from a folder that holds OUT. ``below`` is a folder inside OUT for the results.

    Raises:
        UsageError: no path at all, or a folder that the results would go to.
    """
    if not paths:
        raise UsageError("give at least one photo, folder or pattern, got none")
    if out.suffix.lower() in IMAGE_SUFFIXES and not out.is_dir():
        raise UsageError(f"the results need a folder, got {out}, which is the name of an image")
    items: dict[Path, Item] = {}
    taken: dict[Path, Path] = {}
    failures = []
    for path in paths:
        try:
            photos = find_images([path])
        except InputError as error:
            failures.append(str(error))
            continue
        # A later run would take the results for photos. (One photo that is named may have its result beside it.)
        folders = [path] if path.is_dir() else [photo.parent for photo in photos if photo != path]
        if {out.resolve(), (out / below).resolve()} & {folder.resolve() for folder in folders}:
            raise UsageError(
                f"the results need a folder of their own, got {out}, which would put them among the photos of {path}"
            )
        holds_out = path.is_dir() and _lies_in(out, path)
        for photo in photos:
            if photo.resolve() in items or (holds_out and _lies_in(photo, out)):
                continue
            place = photo.relative_to(path) if path.is_dir() else Path(photo.name)
            relative = below / place.with_suffix(".png")
            if relative in taken:
                failures.append(
                    f"{photo} and {taken[relative]} would both be written to {out / relative}; "
                    "write them to two folders"
                )
                continue
            taken[relative] = photo
            items[photo.resolve()] = Item(photo, relative)
    return list(items.values()), failures


def run(
    items: Sequence[Item],
    out: Path,
    work: Callable[[Item], Callable[[Path], str]],
    *,
    name: str,
    settings: Mapping[str, Any],
    inputs: Callable[[Item], Iterable[Path]],
    beside: Callable[[Item], Sequence[Path]] = lambda item: (),
    overwrite: bool = False,
    debug: bool = False,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Do ``work`` for each photo whose result is not there yet; a photo that fails is reported and the job goes on.

    Args:
        items: the photos.
        out: the folder, made if need be.
        work: does one photo and returns what writes it: called with the file, it writes that last of all that it
            writes, and returns a remark. A photo that fails before leaves nothing behind.
        name: of the job; the journal is ``deocc-<name>.jsonl`` in ``out``.
        settings: everything beside the photo that decides the result, JSON-able.
        inputs: the files that a photo's result is made from.
        beside: the files, and folders as a whole, that ``work`` writes besides the result: paths relative to ``out``.
        overwrite: do every photo again, whatever is there.
        debug: show the traceback of a failure.
        say: called with a line for each photo.

    Raises:
        InputError: ``out`` cannot be a folder.
    """
    made = make_folder(out)
    journal = _Journal(out, name)
    photos = {item.photo.resolve() for item in items}
    folders = {photo.parent for photo in photos}
    kept = photos.union(folders, *(folder.parents for folder in folders))
    done, skipped, failures = [], [], []
    for number, item in enumerate(items, 1):
        target = out / item.relative
        label = f"[{number}/{len(items)}] {item.photo}"
        started = time.perf_counter()
        try:
            key = _fingerprint(settings, inputs(item))
            if target.exists() and not overwrite and journal.made(item.relative, key):
                skipped.append(item)
                say(f"{label}: done before, skipped")
                continue
            written = (item.relative, *beside(item))
            for relative in written:
                path = out / relative
                if path.exists() and not overwrite and not journal.made(relative, key):
                    raise InputError(
                        f"{path} is there already and was not made from {item.photo} with these settings; "
                        "--overwrite replaces it"
                    )
                if path.resolve() in kept:
                    raise InputError(
                        f"{path} is one of the photos, or holds one, and is not overwritten; choose another folder"
                    )
            write = work(item)
            target.parent.mkdir(parents=True, exist_ok=True)
            # What an earlier try has made stays its own, should this one not come to it.
            journal.begin([path for path in written if overwrite or not journal.made(path, key)], key)
            remark = write(target)
        except Exception as error:  # whatever one photo does, the others are still to be done
            failures.append(_sentence(error, item))
            say(f"{label}: failed")
            if debug:
                traceback.print_exc(file=sys.stderr)
            continue
        done.append(item)
        say(f"{label} -> {target} ({remark}, {time.perf_counter() - started:.2f} s)")
    if made:
        with contextlib.suppress(OSError):  # it stays unless it is empty
            out.rmdir()
    return Outcome(tuple(done), tuple(skipped), tuple(failures))


def unmask(
    paths: Sequence[Path],
    out: Path,
    *,
    method: str = "canet",
    occlusion: Path | None = None,
    weights: Path | None = None,
    device: str = "cpu",
    faces: Literal["all", "largest"] = "all",
    report: bool = False,
    extras: bool = False,
    overwrite: bool = False,
    debug: bool = False,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Unmask many photos: see :func:`deocc.unmasking.unmask` for one.

    Args:
        paths: files, folders and patterns.
        out: the folder for the results: a PNG for each photo.
        method, weights, device, faces: as for one photo.
        occlusion: an image that holds for all photos, or a folder with an image for each, of the same name but for the
            suffix.
        report: write ``report.html`` to ``out`` too.
        extras: write what became of each face too, to a folder ``NAME.faces``.
        overwrite: replace what is in ``out``.
        debug, say: as in :func:`run`.

    Raises:
        UsageError: no such method, it needs an occlusion and none was given, or ``out`` is a folder of photos.
        PluginError, WeightsError, InputError: nothing could be begun.
    """
    import deocc
    from deocc.faces import Detector
    from deocc.images import read_profile, write_image
    from deocc.plugins import get, load, packaged_weights, source_digest
    from deocc.unmasking import unmask as unmask_photo

    if occlusion is not None and not occlusion.exists():
        raise InputError(f"there is no file or folder {occlusion} to take the occlusion from")
    restorer = load(method, "restorer", weights=weights, device=device)
    if occlusion is None and not restorer.finds_occlusion:
        raise UsageError(f"method {method!r} cannot find the occlusion itself; give it one with --occlusion")
    report_file = out / "report.html"
    pages = _Pages(report_file, given=occlusion is not None, overwrite=overwrite) if report else None
    detector = Detector()
    items, failures = find(paths, out)

    def work(item: Item) -> Callable[[Path], str]:
        hidden = _occlusion_of(item, occlusion)
        result = unmask_photo(item.photo, occlusion=hidden, faces=faces, restorer=restorer, detector=detector)

        def write(target: Path) -> str:
            if extras:
                _write_faces(target.with_suffix(".faces"), result.faces, overwrite=overwrite)
            write_image(target, result.photo, overwrite=True, profile=read_profile(item.photo))
            if pages is not None:
                pages.add(item, target, result)
            return f"{len(result.faces)} face{'s' if len(result.faces) != 1 else ''}"

        return write

    file = weights or packaged_weights(get(method), "restorer")
    settings = {
        "deocc": deocc.__version__,
        "method": [method, _version_of(method)],
        "weights": None if file is None else sha256(file),
        "code": source_digest(type(restorer)),
        "files": [sha256(path) for path in restorer.files],
        "faces": faces,
        "extras": extras,
    }
    outcome = run(
        items,
        out,
        work,
        name="unmask",
        settings=settings,
        inputs=lambda item: (path for path in (item.photo, _occlusion_of(item, occlusion)) if path is not None),
        beside=lambda item: (item.relative.with_suffix(".faces"),) if extras else (),
        overwrite=overwrite,
        debug=debug,
        say=say,
    )
    if pages is not None and (outcome.done or outcome.skipped):
        for item in outcome.skipped:
            pages.add(item, out / item.relative, None)
        pages.write(settings)
        say(f"report: {report_file}")
    return replace(outcome, failures=(*failures, *outcome.failures))


def occlude(
    paths: Sequence[Path],
    out: Path,
    *,
    kinds: Sequence[str] | None = None,
    seed: int = 0,
    overwrite: bool = False,
    debug: bool = False,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Put something over every face of many photos: see :func:`deocc.occlude.occlude`.

    For each photo NAME this writes ``images/NAME.png``, ``occlusions/NAME.png`` (grey, 255 = occluded) and
    ``parameters/NAME.json`` to ``out``. What is put over a face depends on ``seed``, on the photo's place below ``out``
    and on the face's rank by size, not on which other photos are done with it. A face that cannot be occluded, one cut
    by the photo's border say, stays as it is, and the parameters say why; a photo without any other fails.

    Raises:
        UsageError: no such kind, a seed below 0, or ``out`` is a folder of photos.
        InputError: nothing could be begun.
    """
    import numpy as np

    from deocc.faces import Detector
    from deocc.images import read_image, read_profile, write_image
    from deocc.occlude import fingerprint
    from deocc.occlude import occlude as occlude_face

    if seed < 0:
        raise UsageError(f"the seed must be 0 or more, got {seed}")
    maker = fingerprint(kinds)
    detector = Detector()
    items, failures = find(paths, out, below="images")

    def beside(item: Item) -> tuple[Path, Path]:
        name = item.relative.relative_to("images")
        return "occlusions" / name, ("parameters" / name).with_suffix(".json")

    def work(item: Item) -> Callable[[Path], str]:
        picture = read_image(item.photo)
        faces = detector.detect(picture)
        if not faces:
            raise InputError(f"{item.photo}: no face was found")
        name = item.relative.relative_to("images")
        hidden = np.zeros(picture.shape[:2], dtype=np.uint8)
        notes: list[dict[str, Any]] = []
        for rank, face in enumerate(faces):
            face_seed = (seed + zlib.crc32(f"{name.as_posix()}#{rank}".encode("utf-8", "surrogateescape"))) % 2**31
            note = {"box": face.box.tolist(), "landmarks": face.landmarks.tolist(), "seed": face_seed}
            notes.append(note)
            try:
                made = occlude_face(picture, face.landmarks, face_seed, kinds=kinds)
            except InputError as error:
                note["skipped"] = str(error)
                continue
            picture, hidden = made.image, np.maximum(hidden, made.occlusion)
            note["parameters"] = made.parameters
        if all("skipped" in note for note in notes):
            raise InputError(f"{item.photo}: no face could be occluded ({notes[0]['skipped']})")
        text = json.dumps({"photo": item.photo.name, "seed": seed, "fingerprint": maker, "faces": notes}, indent=1)

        def write(target: Path) -> str:
            mask, parameters = (out / relative for relative in beside(item))
            for path in (mask, parameters):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_image(mask, hidden, overwrite=True)
            with atomic_write(parameters) as file:
                file.write(text.encode())
            write_image(target, picture, overwrite=True, profile=read_profile(item.photo))
            return ", ".join(
                f"not occluded: {note['skipped']}" if "skipped" in note else note["parameters"]["kind"]
                for note in notes
            )

        return write

    outcome = run(
        items,
        out,
        work,
        name="occlude",
        settings={"seed": seed, "fingerprint": maker},
        inputs=lambda item: (item.photo,),
        beside=beside,
        overwrite=overwrite,
        debug=debug,
        say=say,
    )
    return replace(outcome, failures=(*failures, *outcome.failures))


def _occlusion_of(item: Item, occlusion: Path | None) -> Path | None:
    """The file that says what is occluded in a photo."""
    if occlusion is None or not occlusion.is_dir():
        return occlusion
    wanted = occlusion / item.relative
    try:
        beside = {path.name: path for path in wanted.parent.iterdir()}
    except OSError:
        beside = {}
    names = [name for name in beside if Path(name).stem == wanted.stem and Path(name).suffix.lower() in IMAGE_SUFFIXES]
    if not names:
        raise InputError(f"{item.photo}: its occlusion {wanted} is missing")
    return beside[min(names, key=lambda name: (not name.endswith(".png"), name))]


def _version_of(method: str) -> str:
    """The version of the distribution that declares a method."""
    from deocc.plugins import GROUP

    entries = entry_points(group=GROUP, name=method.partition(":")[0])
    found = [entry.dist.version for entry in entries if entry.dist is not None]
    return ", ".join(found)


def _write_faces(folder: Path, faces: Sequence[UnmaskedFace], *, overwrite: bool) -> None:
    """Everything known about the faces of a photo, numbered from the largest; ``overwrite`` removes what was known."""
    import numpy as np

    from deocc.images import write_image

    folder.mkdir(parents=True, exist_ok=True)
    if overwrite:  # there may have been more faces, or other extras
        for path in folder.iterdir():
            if re.fullmatch(r"faces\.json|[1-9]\d*-.+\.(png|npy)", path.name) and path.is_file():
                path.unlink()
    notes = []
    for number, face in enumerate(faces, 1):
        pictures = {"before": face.before, "occlusion": face.occlusion}
        for name, values in face.extras.items():
            shown = _pictures_of(name, values)
            pictures |= shown
            if not (len(shown) == 1 and name in shown):
                with atomic_write(folder / f"{number}-{name}.npy") as file:
                    np.save(file, values)
        pictures["after"] = face.after
        for name, picture in pictures.items():
            write_image(folder / f"{number}-{name}.png", picture, overwrite=True)
        shown = {name: _as_large_as(face.before, picture) for name, picture in pictures.items()}
        write_image(folder / f"{number}-row.png", _in_rows(shown), overwrite=True)
        notes.append({"box": face.box.tolist(), "landmarks": face.landmarks.tolist(), "matrix": face.matrix.tolist()})
    with atomic_write(folder / "faces.json") as file:
        file.write(json.dumps(notes, indent=1).encode())


def _in_rows(pictures: Mapping[str, NDArray[np.uint8]], across: int = 6) -> NDArray[np.uint8]:
    """The pictures side by side, each below its name; in several rows where there are many."""
    import numpy as np

    from deocc.report import INVENTED, contact_sheet

    names = [*pictures]
    sheets = [
        contact_sheet(
            [[pictures[name] for name in names[first : first + across]]],
            columns=names[first : first + across],
            note=INVENTED if first + across >= len(names) else "",
        )
        for first in range(0, len(names), across)
    ]
    width = max(sheet.shape[1] for sheet in sheets)
    white = [np.full((len(sheet), width - sheet.shape[1], 3), 255, np.uint8) for sheet in sheets]
    return np.vstack([np.hstack(parts) for parts in zip(sheets, white, strict=True)])


def _pictures_of(name: str, values: NDArray[np.float32]) -> dict[str, NDArray[np.uint8]]:
    """An extra (C, h, w) as pictures: grey of one channel, RGB of three, U and V in colours of two; else none."""
    from deocc.faces import colour_field

    if values.min() < 0 or values.max() > 1:
        return {}
    if len(values) == 2:
        return {f"{name}-{axis}": colour_field(values[place]) for place, axis in enumerate("uv")}
    if len(values) not in (1, 3):
        return {}
    levels = (values * 255).round().astype("uint8")
    return {name: levels[0] if len(values) == 1 else levels.transpose(1, 2, 0)}


def _as_large_as(face: NDArray[np.uint8], picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture as RGB of the face's size; its pixels are seen where it is smaller."""
    import cv2
    import numpy as np

    grown = cv2.resize(picture, face.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    return np.repeat(grown[:, :, None], 3, axis=2) if grown.ndim == 2 else grown  # type: ignore[return-value]


class _Pages:
    """The report of ``deocc unmask``; only so many photos are shown, since they are all kept inside it."""

    shown = 100
    key = "report"  # in the journal: whatever the settings, a report is replaced by the next

    def __init__(self, path: Path, *, given: bool, overwrite: bool) -> None:
        self.journal = _Journal(path.parent, "unmask")
        if path.exists() and not overwrite and not self.journal.made(Path(path.name), self.key):
            raise InputError(
                f"{path} is there already and was not noted by this job; remove it, or --overwrite all of it"
            )
        self.path = path
        self.occlusion = "given occlusion" if given else "found occlusion"
        self.photos = 0
        self.rows: list[Any] = []

    def add(self, item: Item, target: Path, result: UnmaskResult | None) -> None:
        """A photo: of an earlier run (without ``result``) only the photo before and after is known."""
        from deocc.images import read_image
        from deocc.report import Picture, Row

        self.photos += 1
        if len(self.rows) >= self.shown:
            return
        after = read_image(target) if result is None else result.photo
        pictures = [Picture("photo", _small(read_image(item.photo))), Picture("unmasked", _small(after))]
        for face in () if result is None else result.faces[:8]:
            pictures += [
                Picture("face", face.before),
                Picture(self.occlusion, face.occlusion, lossless=True),
                Picture("restored", face.after),
            ]
        text = "done by an earlier run" if result is None else f"faces: {len(result.faces)}"
        self.rows.append(Row(str(item.photo), pictures, text=text))

    def write(self, settings: Mapping[str, Any]) -> None:
        from deocc.report import html

        intro = f"{self.photos} photos unmasked."
        if self.photos > len(self.rows):
            intro += f" The first {len(self.rows)} are shown."
        facts = {
            "deocc": str(settings["deocc"]),
            "method": " ".join(settings["method"]),
            "weights, SHA-256": settings["weights"] or "none",
        }
        if not self.journal.made(Path(self.path.name), self.key):
            self.journal.begin([Path(self.path.name)], self.key)
        with atomic_write(self.path) as file:
            file.write(
                html("Unmasked photos", intro=intro, rows=self.rows, facts=facts).encode("utf-8", "backslashreplace")
            )


def _small(picture: NDArray[np.uint8], side: int = 416) -> NDArray[np.uint8]:
    import cv2
    import numpy as np

    scale = side / max(picture.shape[:2])
    if scale >= 1:
        return picture
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


class _Journal:
    """What was begun in a folder: relative path -> fingerprint, and what lay there then."""

    def __init__(self, out: Path, name: str) -> None:
        self.out = out
        self.path = out / f"deocc-{name}.jsonl"
        self.begun: dict[str, tuple[str, list[int] | None]] = {}
        self.gap = ""
        if self.path.exists():
            text = self.path.read_text(encoding="utf-8", errors="replace")
            if text and not text.endswith("\n"):
                self.gap = "\n"  # after half a line, which a run that was killed has left
            for line in text.splitlines():
                try:
                    entry = json.loads(line)
                    self.begun[entry["output"]] = (entry["key"], entry["replaces"])
                except (ValueError, KeyError, TypeError):
                    continue  # the last line of a run that was killed

    def made(self, relative: Path, key: str) -> bool:
        """True when the file or folder that lies there now came from this job with this fingerprint."""
        entry = self.begun.get(relative.as_posix())
        return entry is not None and entry[0] == key and entry[1] != _identity(self.out / relative)

    def begin(self, relatives: Iterable[Path], key: str) -> None:
        """Note that files are about to be written; the notes are on the disk when this returns."""
        begun = {relative.as_posix(): (key, _identity(self.out / relative)) for relative in relatives}
        lines = [
            json.dumps({"output": output, "key": key, "replaces": lay}) + "\n" for output, (_, lay) in begun.items()
        ]
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            os.write(descriptor, (self.gap + "".join(lines)).encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.begun |= begun
        self.gap = ""


def _identity(path: Path) -> list[int] | None:
    """What tells a file from the one that replaces it, or None where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return [status.st_ino, status.st_mtime_ns, status.st_size]


def _fingerprint(settings: Mapping[str, Any], inputs: Iterable[Path]) -> str:
    digests = []
    for path in inputs:
        if path.exists() and not path.is_file():  # a pipe might never end
            raise InputError(f"{path} is not a file")
        digests.append(sha256(path))
    content = {"settings": dict(settings), "inputs": digests}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sentence(error: BaseException, item: Item) -> str:
    """One sentence that names the file."""
    if isinstance(error, DeoccError):
        text = str(error)
    elif isinstance(error, OSError):
        return f"{error.filename or item.photo}: {error.strerror or error}"
    elif isinstance(error, MemoryError):
        text = "there was not enough memory"
    else:
        text = f"{type(error).__name__}: {error}".splitlines()[0]
    return text if str(item.photo) in text else f"{item.photo}: {text}"


def _lies_in(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
