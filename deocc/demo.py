"""``deocc demo``: mask portraits with a fixed seed, unmask them, and show how well that went.

Each photo goes the whole way that a user's photo goes: the face is found in the masked photo, restored and pasted back.
Everything is then measured in one aligned crop of that face, cut from the photo before, masked and unmasked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

import deocc
from deocc.errors import DeoccError, InputError
from deocc.faces import Crop, Detector, align
from deocc.files import atomic_write, make_folder
from deocc.images import find_images, read_image, to_tensor, write_image
from deocc.method import Recognizer, Restorer
from deocc.metrics import occlusion_iou, psnr, ssim
from deocc.occlude import fingerprint, occlude
from deocc.plugins import get, load, packaged_weights
from deocc.report import INVENTED, Picture, Row, Table, contact_sheet, html, print_table
from deocc.unmasking import unmask

KINDS = ("surgical", "cloth", "kn95", "n95")
"""What is put over the faces, one after the other."""

RECOGNIZER = "mobilefacenet"
"""The matcher whose cosines are shown."""

SHEET = 12
"""Rows of the contact sheet at most; the report has them all."""

SHOWN = 256
"""Side of the pictures in pixels."""

_COLUMNS = (
    "photo",
    "occlusion",
    "hole PSNR (dB)",
    "hole SSIM",
    "occlusion IoU",
    "cosine original, occluded",
    "cosine original, restored",
)
_STEPS = ("before", "occluded", "found occlusion", "restored")


@dataclass(frozen=True, eq=False)
class Shown:
    """A photo's pictures, in the order of the columns, and its figures, NaN where one is not defined.

    Attributes:
        name: of the photo.
        kind: of the occlusion.
        pictures: uint8, :data:`SHOWN` pixels a side: before, occluded, found occlusion, restored.
        psnr, ssim: of the restored crop against the original, inside the hole (more than half occluded).
        iou: of the occlusion found with the one that was put there; NaN where it was given to the method.
        occluded, restored: cosine of the matcher's embedding with that of the original.
    """

    name: str
    kind: str
    pictures: tuple[NDArray[np.uint8], ...]
    psnr: float
    ssim: float
    iou: float
    occluded: float
    restored: float

    def cells(self) -> list[str]:
        """The row of the table."""
        figures = [(self.psnr, 1), (self.ssim, 3), (self.iou, 3), (self.occluded, 3), (self.restored, 3)]
        return [self.name, self.kind, *("given" if math.isnan(v) else f"{v:.{digits}f}" for v, digits in figures)]


def demo(
    photos: Sequence[Path] = (),
    out: Path = Path("demo"),
    *,
    method: str = "canet",
    device: str = "cpu",
    seed: int = 0,
) -> list[str]:
    """Run the demo: write ``contact_sheet.png`` and ``report.html`` to ``out`` and print the table.

    Args:
        photos: files, folders or patterns to show after the packaged portraits; the largest face of each is masked.
        out: folder for the results; those of an earlier demo are replaced.
        method, device: what restores, and where.
        seed: of the masks.

    Returns:
        A sentence for each photo that failed.

    Raises:
        UsageError, PluginError, WeightsError: the method or the matcher cannot be used.
        MissingDependencyError: torchmetrics is not installed.
        InputError: ``out`` cannot be written, or there is nothing to show.
    """
    restorer = load(method, "restorer", device=device)
    recognizer = load(RECOGNIZER, "recognizer", device=device)
    detector = Detector()
    shown: list[Shown] = []
    failures: list[str] = []
    for number, path in enumerate(_photos(photos, failures)):
        try:
            kind = KINDS[number % len(KINDS)]
            shown.append(_show(path, kind, seed + number, restorer, recognizer, detector))
        except InputError as error:
            failures.append(str(error) if str(path) in str(error) else f"{path}: {error}")
    if not shown:
        raise InputError(f"there is nothing to show: {'; '.join(failures)}")
    _write(shown, out, method, seed)
    return failures


def _photos(given: Sequence[Path], failures: list[str]) -> Iterator[Path]:
    with as_file(files("deocc").joinpath("portraits")) as folder:
        yield from sorted(folder.glob("*.jpg"))
    for path in given:
        try:
            yield from find_images([path])
        except DeoccError as error:
            failures.append(str(error))


def _show(path: Path, kind: str, seed: int, restorer: Restorer, recognizer: Recognizer, detector: Detector) -> Shown:
    """Mask and unmask the largest face of a photo."""
    photo = read_image(path)
    faces = detector.detect(photo)
    if not faces:
        raise InputError(f"{path}: no face was found")
    original = faces[0]
    made = occlude(photo, original.landmarks, seed, kinds=[kind])
    given = None if restorer.finds_occlusion else made.occlusion
    try:
        result = unmask(made.image, occlusion=given, faces="largest", restorer=restorer, detector=detector)
    except InputError as error:
        raise InputError(f"{path}, once it was masked: {error}") from error
    face = result.faces[0]
    if not _same(original.landmarks, face.landmarks):
        raise InputError(f"{path}, once it was masked: another face was found than before")

    crop = Crop(restorer.crop_size, restorer.crop_zoom)
    before, after = (to_tensor(align(image, face.landmarks, crop)) for image in (photo, result.photo))
    hidden = align(np.repeat(made.occlusion[:, :, None], 3, axis=2), face.landmarks, crop)[:, :, 0]
    true = torch.from_numpy((hidden > 127).astype(np.float32))[None, None]
    iou = math.nan
    if given is None:
        iou = float(occlusion_iou(torch.from_numpy(face.occlusion / np.float32(255))[None, None], true))

    # One alignment for all three, the original's, so that only the pixels make a difference.
    matched = Crop(recognizer.crop_size, recognizer.crop_zoom)
    crops = np.stack([align(image, original.landmarks, matched) for image in (photo, made.image, result.photo)])
    with torch.no_grad():
        embeddings = recognizer(to_tensor(crops)).cpu()
    cosines = embeddings[1:] @ embeddings[0]

    view = Crop(SHOWN, restorer.crop_zoom)
    pictures = [align(image, face.landmarks, view) for image in (photo, made.image, result.photo)]
    occlusion = cv2.resize(face.occlusion, (SHOWN, SHOWN)).astype(np.uint8, copy=False)
    return Shown(
        name=path.stem,
        kind=kind,
        pictures=(pictures[0], pictures[1], occlusion, pictures[2]),
        psnr=float(psnr(after, before, where=true)),
        ssim=float(ssim(after, before, where=true)),
        iou=iou,
        occluded=float(cosines[0]),
        restored=float(cosines[1]),
    )


def _same(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    """True when two faces lie in about the same place: their landmarks are less than half the eyes' distance apart."""
    eyes = float(np.linalg.norm(one[0] - one[1]))
    return float(np.linalg.norm(one - other, axis=1).mean()) < eyes / 2


def _write(shown: Sequence[Shown], out: Path, method: str, seed: int) -> None:
    """The sheet and the report into the folder, the table to the terminal."""
    make_folder(out)
    rows = [one.cells() for one in shown]
    figures = ("psnr", "ssim", "iou", "occluded", "restored")
    means = {name: sum(getattr(one, name) for one in shown) / len(shown) for name in figures}
    mean = Shown("mean", "", (), **means)
    sheet = contact_sheet(
        [one.pictures for one in shown[:SHEET]],
        columns=_STEPS,
        labels=[f"{one.name}\n{one.kind}" for one in shown[:SHEET]],
        cell=SHOWN,
        title=f"deocc demo: {method}",
    )
    write_image(out / "contact_sheet.png", sheet, overwrite=True)
    weights = packaged_weights(get(method), "restorer")
    page = html(
        "deocc demo",
        intro=f"Portraits masked with seed {seed}, then unmasked with {method}: the face is found in the masked photo, "
        "restored and pasted back.",
        rows=[
            Row(
                one.name,
                [Picture(step, picture) for step, picture in zip(_STEPS, one.pictures, strict=True)],
                text=f"occlusion: {one.kind}",
            )
            for one in shown
        ],
        table=Table(
            _COLUMNS,
            [*rows, mean.cells()],
            caption="PSNR and SSIM against the original inside the hole alone, in the aligned crop; cosines between "
            f"embeddings of {RECOGNIZER}; higher is better for every figure.",
        ),
        facts={
            "deocc": deocc.__version__,
            "method": method,
            "weights": "none" if weights is None else weights.name,
            "seed": str(seed),
            "set of masks": fingerprint(KINDS),
            "matcher": RECOGNIZER,
        },
    )
    with atomic_write(out / "report.html") as file:
        file.write(page.encode("utf-8", "backslashreplace"))
    print_table(_COLUMNS, [*rows, mean.cells()], left=2)
    print(f"{INVENTED} Pictures: {out / 'contact_sheet.png'}; report: {out / 'report.html'}")
