"""What a job writes, replaces and leaves alone; tests/test_cli.py has the jobs as they are seen from outside."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import deocc.images
from deocc import jobs
from deocc.errors import InputError, UsageError
from deocc.faces import Detector, Face
from deocc.images import read_image, write_image

PORTRAIT = Path(__file__).resolve().parents[1] / "deocc" / "portraits" / "eileen-collins.jpg"

PARTS = """
    from dataclasses import dataclass

    import torch

    from deocc.method import Restored, Restorer


    @dataclass(frozen=True)
    class Config:
        level: float = 0.5


    class Find(Restorer):
        finds_occlusion = True
        crop_size = 32

        def restore(self, image, occlusion):
            return Restored(torch.full_like(image, self.config.level), torch.ones_like(image[:, :1]))
"""

Job = Callable[..., jobs.Outcome]


@pytest.fixture
def unmask(install: Callable[..., None]) -> Job:
    install("finder", extra='restorer="{module}_parts:Find",', parts=PARTS)
    return lambda photo, out, **options: jobs.unmask([photo], out, method="finder", say=lambda _: None, **options)


@pytest.fixture
def occlude() -> Job:
    return lambda photo, out, **options: jobs.occlude(
        [photo], out, **{"kinds": ["cloth"], "say": lambda _: None} | options
    )


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    write_image(tmp_path / "photos" / "a.jpg", read_image(PORTRAIT)[::2, ::2].copy())
    return tmp_path / "photos" / "a.jpg"


def mine(path: Path) -> Path:
    """A file that somebody made by hand."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    return path


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def killed_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """The process dies when it writes its picture number ``call``, from 1."""
    write, calls = deocc.images.write_image, []

    def kill(*arguments: object, **options: object) -> None:
        calls.append(arguments)
        if len(calls) == call:
            raise KeyboardInterrupt
        write(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(deocc.images, "write_image", kill)


@pytest.mark.parametrize("name", ["occlusions/a.png", "parameters/a.json"])
def test_occlude_replaces_no_file_beside_the_image(occlude: Job, photo: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    path = mine(out / name)
    (failure,) = occlude(photo, out).failures
    assert failure == (
        f"{path} is there already and was not made from {photo} with these settings; --overwrite replaces it"
    )
    assert files_of(out) == [name]
    assert path.read_text() == "mine"
    assert len(occlude(photo, out, overwrite=True).done) == 1
    assert path.read_bytes() != b"mine"
    assert len(occlude(photo, out).skipped) == 1


def test_occlude_replaces_no_photo(occlude: Job, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "occlusions").mkdir(parents=True)
    photo = photo.rename(tmp_path / "out" / "occlusions" / "a.png")
    data = photo.read_bytes()
    (failure,) = occlude(photo, tmp_path / "out", overwrite=True).failures
    assert "is one of the photos" in failure
    assert photo.read_bytes() == data


def test_extras_replace_no_file(unmask: Job, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    path = mine(out / "a.faces" / "1-after.png")
    (failure,) = unmask(photo, out, extras=True).failures
    assert failure.startswith(f"{path.parent} is there already and was not made from {photo}")
    assert files_of(out) == ["a.faces/1-after.png"]
    assert path.read_text() == "mine"
    assert len(unmask(photo, out).done) == 1, "without extras nothing is in the way"


def test_extras_of_faces_that_are_gone_go_too(unmask: Job, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert len(unmask(photo, out, extras=True).done) == 1
    files = files_of(out)
    for name in ("2-before.png", "2-raw.npy", "1-map.png", "notes.txt", "10.png"):
        mine(out / "a.faces" / name)
    assert len(unmask(photo, out, extras=True).skipped) == 1
    assert len(files_of(out)) == len(files) + 5
    assert len(unmask(photo, out, extras=True, overwrite=True).done) == 1
    assert files_of(out) == sorted([*files, "a.faces/notes.txt", "a.faces/10.png"])


@pytest.mark.parametrize("call", [1, 2])
def test_occlude_goes_on_with_what_it_wrote_before_it_was_killed(
    occlude: Job, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        killed_at(patch, call)
        with pytest.raises(KeyboardInterrupt):
            occlude(photo, out)
    assert not (out / "images" / "a.png").exists()
    if call == 2:
        (failure,) = occlude(photo, out, seed=1).failures
        assert "occlusions/a.png is there already" in failure
    assert occlude(photo, out).failures == ()
    assert len(occlude(photo, out).skipped) == 1


def test_extras_go_on_with_what_was_written_before_it_was_killed(
    unmask: Job, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        killed_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            unmask(photo, out, extras=True)
    assert files_of(out) == ["a.faces/1-before.png", "a.faces/1-occlusion.png", "deocc-unmask.jsonl"]
    assert unmask(photo, out, extras=True).failures == ()
    assert "a.faces/1-after.png" in files_of(out)


def test_a_report_replaces_its_own_kind_alone(unmask: Job, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    unmask(photo, out)
    report = mine(out / "report.html")
    with pytest.raises(InputError, match=r"report\.html is there already and was not noted by this job"):
        unmask(photo, out, report=True)
    assert report.read_text() == "mine"
    unmask(photo, out, report=True, overwrite=True)
    first = report.read_text()
    unmask(photo, out, report=True)
    assert "done by an earlier run" in report.read_text()
    assert "done by an earlier run" not in first


def test_results_do_not_go_among_the_photos(unmask: Job, occlude: Job, photo: Path) -> None:
    folder = photo.parent
    for job in (unmask, occlude):
        with pytest.raises(UsageError, match=r"the results need a folder of their own, got .*photos"):
            job(folder, folder)
        with pytest.raises(UsageError, match="a folder of their own"):
            job(folder, folder / ".." / "photos", overwrite=True)
        with pytest.raises(UsageError, match=r"a folder of their own, got .*photos.* among the photos of .*\*"):
            job(folder / "*", folder)
    images = folder.rename(folder.parent / "images")
    with pytest.raises(UsageError, match="a folder of their own"):
        occlude(images, images.parent)
    assert files_of(images.parent / "images") == ["a.jpg"]
    assert not list(images.parent.glob("deocc-*"))


def test_the_results_need_no_name_of_an_image(unmask: Job, occlude: Job, photo: Path, tmp_path: Path) -> None:
    for job in (unmask, occlude):
        with pytest.raises(UsageError, match=r"need a folder, got .*out\.jpg, which is the name of an image"):
            job(photo, tmp_path / "out.jpg")
    assert not (tmp_path / "out.jpg").exists()


def test_the_photos_colour_profile_is_kept(unmask: Job, occlude: Job, photo: Path, tmp_path: Path) -> None:
    profile = bytes(16) + b"RGB " + bytes(200)
    write_image(photo.parent / "b.png", read_image(photo), profile=profile)
    for job, result in ((unmask, "b.png"), (occlude, "images/b.png")):
        job(photo.parent / "b.png", tmp_path / "out")
        assert deocc.images.read_profile(tmp_path / "out" / result) == profile


def test_a_photo_is_done_again_when_the_code_has_changed(
    unmask: Job, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert len(unmask(photo, out).done) == 1
    assert len(unmask(photo, out).skipped) == 1
    source = tmp_path / "plugins" / "fake_finder_parts.py"
    source.write_text(source.read_text() + "\n# changed\n")
    (failure,) = unmask(photo, out).failures
    assert "was not made from" in failure
    assert len(unmask(photo, out, overwrite=True).done) == 1


def test_a_face_that_cannot_be_occluded_stays_as_it_is(
    occlude: Job, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Detector().detect(read_image(photo))
    cut = Face(found[0].box, found[0].landmarks - np.float32([found[0].landmarks[:, 0].max() - 1, 0]), 1.0)
    said: list[str] = []
    assert len(occlude(photo, tmp_path / "alone").done) == 1
    monkeypatch.setattr(Detector, "detect", lambda self, image: [*found, cut])
    assert occlude(photo, tmp_path / "out", say=said.append).failures == ()
    assert "(cloth, not occluded: at least three of the five landmarks must lie inside" in said[0]
    whole, skipped = json.loads((tmp_path / "out" / "parameters" / "a.json").read_text())["faces"]
    assert whole["parameters"]["kind"] == "cloth"
    assert skipped["skipped"].startswith("at least three of the five landmarks")
    assert "parameters" not in skipped
    for name in ("images/a.png", "occlusions/a.png"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()

    monkeypatch.setattr(Detector, "detect", lambda self, image: [cut])
    (failure,) = occlude(photo, tmp_path / "none").failures
    assert failure.startswith(f"{photo}: no face could be occluded (at least three of the five landmarks")
    assert not (tmp_path / "none").exists()


def test_what_was_made_before_a_failure_stays_the_jobs_own(
    occlude: Job, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = tmp_path / "out", deocc.images.write_image

    def fail(folder: str) -> None:
        def full(path: Path, *arguments: object, **options: object) -> None:
            if path.parent.name == folder:
                raise OSError(28, "No space left on device")
            write(path, *arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(deocc.images, "write_image", full)

    for folder in ("images", "occlusions"):
        fail(folder)
        assert len(occlude(photo, out).failures) == 1
    fail("nowhere")
    assert len(occlude(photo, out).done) == 1


def test_an_occlusion_is_found_whatever_its_suffix(unmask: Job, photo: Path, tmp_path: Path) -> None:
    occlusions = tmp_path / "occlusions"
    occlusions.mkdir()
    side = read_image(photo).shape[:2]
    write_image(occlusions / "a.png", np.full((*side, 3), 255, np.uint8))
    (occlusions / "a.png").rename(occlusions / "a.PNG")
    assert unmask(photo, tmp_path / "out", occlusion=occlusions).failures == ()


def test_a_name_that_is_no_text_is_a_name(occlude: Job, unmask: Job, photo: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(photo.parent) + b"/caf\xe9.jpg"))
    try:
        photo.rename(odd)
    except OSError:
        pytest.skip("this file system takes no such name")
    assert occlude(odd, tmp_path / "occluded").failures == ()
    assert unmask(odd, tmp_path / "out", report=True).failures == ()
    assert b"caf" in (tmp_path / "out" / "report.html").read_bytes()
