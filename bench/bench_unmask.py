"""Photos a second through the whole job: ``pytest bench/bench_unmask.py``.

One round takes each packaged portrait (512 to 720 pixels), masked with a fixed seed, from the file to the file: read,
find the face, align, restore, paste back, write. Photos a second are 4 / median. The stages are measured apart too.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deocc
from deocc.errors import DeoccError
from deocc.faces import Detector
from deocc.images import read_image, write_image
from deocc.occlude import occlude
from deocc.unmasking import unmask

PORTRAITS = sorted(Path(str(files("deocc").joinpath("portraits"))).glob("*.jpg"))


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    """Files of the masked portraits and of what hides them."""
    folder = tmp_path_factory.mktemp("masked")
    detector = Detector()
    made = []
    for seed, path in enumerate(PORTRAITS):
        photo = read_image(path)
        result = occlude(photo, detector.detect(photo)[0].landmarks, seed, kinds=["surgical", "cloth"])
        made.append((folder / f"{path.stem}.jpg", folder / f"{path.stem}.png"))
        write_image(made[-1][0], result.image)
        write_image(made[-1][1], result.occlusion)
    return made


def _restorer(method: str, device: str) -> Any:
    try:
        return deocc.restorer(method, device=device)
    except DeoccError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("method", ["canet", "opencv-telea"])
def test_whole_job(benchmark: Any, masked: list[tuple[Path, Path]], tmp_path: Path, device: str, method: str) -> None:
    restorer, detector = _restorer(method, device), Detector()

    def job() -> None:
        for photo, occlusion in masked:
            given = None if restorer.finds_occlusion else occlusion
            result = unmask(photo, occlusion=given, restorer=restorer, detector=detector)
            write_image(tmp_path / f"{photo.stem}.png", result.photo, overwrite=True)

    benchmark.pedantic(job, rounds=5, warmup_rounds=1)
    benchmark.extra_info["photos a second"] = round(len(masked) / benchmark.stats.stats.median, 2)


def test_detector(benchmark: Any, masked: list[tuple[Path, Path]]) -> None:
    detector, photos = Detector(), [read_image(photo) for photo, _ in masked]
    benchmark.pedantic(lambda: [detector.detect(photo) for photo in photos], rounds=5, warmup_rounds=1)


def test_files(benchmark: Any, masked: list[tuple[Path, Path]], tmp_path: Path) -> None:
    def job() -> None:
        for photo, _ in masked:
            write_image(tmp_path / f"{photo.stem}.png", read_image(photo), overwrite=True)

    benchmark.pedantic(job, rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("method", ["canet", "opencv-telea"])
def test_in_memory(benchmark: Any, masked: list[tuple[Path, Path]], device: str, method: str) -> None:
    """The whole job without reading and writing files."""
    restorer, detector = _restorer(method, device), Detector()
    photos = [read_image(photo) for photo, _ in masked]
    given: list[np.ndarray | None] = [None] * len(masked)
    if not restorer.finds_occlusion:
        given = [read_image(occlusion)[..., 0] for _, occlusion in masked]

    def job() -> None:
        for photo, occlusion in zip(photos, given, strict=True):
            unmask(photo, occlusion=occlusion, restorer=restorer, detector=detector)

    benchmark.pedantic(job, rounds=5, warmup_rounds=1)
