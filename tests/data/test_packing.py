from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import deocc
from deocc.data import IdentityFolder, ImageFolder, PackedFaces, check, pack, packing
from deocc.errors import InputError, UsageError
from deocc.faces import Crop, FaceMesh, align, dense_field
from deocc.files import sha256

CROP = Crop(32, 0.75)
NAMES = [f"{person}/{number}.png" for person in "abcde" for number in range(4)]


class NoFaces:
    def detect(self, image):
        return []


class OneFace:
    """A detector that finds a face in every image but the first it sees."""

    def __init__(self) -> None:
        self.seen = 0

    def detect(self, image):
        self.seen += 1
        return [] if self.seen == 1 else [SimpleNamespace(landmarks=Crop(50, 0.7).template())]


@pytest.fixture
def root(tmp_path: Path, make, write_landmarks) -> Path:
    root = make(tmp_path / "faces", NAMES)
    write_landmarks(root, NAMES)
    return root


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_pack_is_the_aligned_source(root: Path, tmp_path: Path) -> None:
    source = IdentityFolder(root)
    seen: list[tuple[int, int]] = []
    report = pack(source, tmp_path / "out", crop=CROP, progress=lambda done, total: seen.append((done, total)))
    assert (report.faces, report.new, dict(report.skipped), dict(report.notes)) == (20, 20, {}, {})
    assert seen == [(20, 20)]
    faces = PackedFaces(tmp_path / "out")
    assert faces.images.shape == (20, 32, 32, 3)
    assert faces.names == source.names
    assert [faces.identity_names[number] for number in faces.identities] == [sample.identity for sample in source]
    for position, sample in enumerate(source):
        assert sample.landmarks is not None
        np.testing.assert_array_equal(faces.images[position], align(sample.read(), sample.landmarks, CROP))
    # Least squares leaves the five points about where the template has them.
    assert np.abs(faces.landmarks - CROP.template()).mean() < 1
    np.testing.assert_allclose(faces.landmarks.mean((0, 1)), CROP.template().mean(0), atol=1e-3)
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index["image_sha256"][3] == sha256(source[3].path)
    assert index["sha256"]["images.npy"] == sha256(tmp_path / "out" / "images.npy")
    assert str(tmp_path) not in json.dumps(index)
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "images.npy"), faces.images)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faces", "out"]


def test_workers_change_nothing(root: Path, tmp_path: Path) -> None:
    pack(IdentityFolder(root), tmp_path / "alone", crop=CROP)
    pack(IdentityFolder(root), tmp_path / "two", crop=CROP, workers=2)
    assert content(tmp_path / "two") == content(tmp_path / "alone")


def test_second_run_checks_and_is_done(root: Path, tmp_path: Path) -> None:
    pack(IdentityFolder(root), tmp_path / "out", crop=CROP)
    before = content(tmp_path / "out")
    report = pack(IdentityFolder(root), tmp_path / "out", crop=CROP)
    assert (report.faces, report.new) == (20, 0)
    assert content(tmp_path / "out") == before
    with (tmp_path / "out" / "images.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\0" if before["images.npy"][-1] else b"\1")
    with pytest.raises(InputError, match="was changed after it was packed"):
        pack(IdentityFolder(root), tmp_path / "out", crop=CROP)


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "begun"])
def test_another_source_is_refused(root: Path, tmp_path: Path, monkeypatch, finished: bool) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(packing, "CHUNK", 8)
    if finished:
        pack(IdentityFolder(root), tmp_path / "out", crop=CROP)
    else:
        with pytest.raises(KeyboardInterrupt):
            pack(IdentityFolder(root), tmp_path / "out", crop=CROP, progress=stop)
    with pytest.raises(InputError, match="its crop is"):
        pack(IdentityFolder(root), tmp_path / "out", crop=Crop(16, 0.75))
    with pytest.raises(InputError, match="its number of images is 20, wanted now is 5"):
        pack(IdentityFolder(root), tmp_path / "out", crop=CROP, limit=5)
    (root / "e" / "3.png").rename(root / "e" / "4.png")
    with pytest.raises(InputError, match=r"its list of images is .*; choose another folder than"):
        pack(IdentityFolder(root), tmp_path / "out", crop=CROP)


def test_something_else_in_the_way(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "letter.txt").touch()
    for name in ("file", "folder"):
        with pytest.raises(InputError, match="holds something else than packed faces"):
            pack(IdentityFolder(root), tmp_path / name, crop=CROP)
    (tmp_path / "empty").mkdir()
    assert pack(IdentityFolder(root), tmp_path / "empty", crop=CROP).faces == 20
    with pytest.raises(InputError, match="cannot be made"):
        pack(IdentityFolder(root), tmp_path / "no" / "out", crop=CROP)


def test_a_detector_that_cannot_travel(root: Path, tmp_path: Path) -> None:
    detector = OneFace()
    detector.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="cannot be sent to other processes, use workers=0"):
        pack(IdentityFolder(root), tmp_path / "out", crop=CROP, detector=detector, workers=1)


def test_two_processes_do_not_pack_into_one_folder(root: Path, tmp_path: Path, monkeypatch) -> None:
    def again(done: int, total: int) -> None:
        with pytest.raises(InputError, match="is being packed by another process"):
            pack(IdentityFolder(root), tmp_path / "out", crop=CROP)

    assert pack(IdentityFolder(root), tmp_path / "out", crop=CROP, progress=again).faces == 20


def test_missing_landmarks_are_detected_and_no_face_is_skipped(root: Path, tmp_path: Path) -> None:
    (root / "landmarks.npz").unlink()
    report = pack(IdentityFolder(root), tmp_path / "out", crop=CROP, detector=OneFace())
    assert report.faces == 19
    assert dict(report.skipped) == {"a/0.png": "no face was found"}
    faces = PackedFaces(tmp_path / "out")
    assert faces.names == tuple(NAMES[1:])
    assert faces.identity_names == ("a", "b", "c", "d", "e")
    with pytest.raises(InputError, match=r"gave no face to pack: all 20 images were skipped \(no face was found\)"):
        pack(IdentityFolder(root), tmp_path / "none", crop=CROP, detector=NoFaces())
    assert not (tmp_path / "none").exists()


def test_fields_are_those_of_the_aligned_faces(root: Path, tmp_path: Path, flat) -> None:
    pack(IdentityFolder(root), tmp_path / "without", crop=CROP)
    report = pack(IdentityFolder(root), tmp_path / "out", crop=CROP, dense_field=flat)
    faces = PackedFaces(tmp_path / "out")
    assert faces.field_model == "flat"
    assert faces.fields is not None
    assert faces.fields.shape == (20, 32, 32, 3)
    for sample, packed in zip(IdentityFolder(root), faces, strict=True):
        assert sample.landmarks is not None
        field, covered = dense_field(sample.read(), sample.landmarks, flat, CROP)
        np.testing.assert_array_equal(packed.field, np.rint(np.dstack([*field, covered]) * 255).astype(np.uint8))
        assert (packed.name in report.without_field) == (not covered.any())
    assert 0 < len(report.without_field) < 20
    # Everything else is as it would be without them; and an index without them is what it always was.
    with_fields, without = content(tmp_path / "out"), content(tmp_path / "without")
    assert sorted(set(with_fields) - set(without)) == ["fields.npy"]
    assert all(with_fields[name] == without[name] for name in ("images.npy", "landmarks.npy"))
    new, old = json.loads(with_fields["index.json"]), json.loads(without["index.json"])
    assert set(new) - set(old) == {"dense_field", "without_field"}
    assert new["without_field"] == list(report.without_field)
    assert new["sha256"]["fields.npy"] == sha256(tmp_path / "out" / "fields.npy")
    again = pack(IdentityFolder(root), tmp_path / "out", crop=CROP, dense_field=flat)
    assert (again.new, again.without_field) == (0, report.without_field)


def test_fields_from_workers_and_after_an_interruption_are_equal_to_the_byte(root, tmp_path, flat, monkeypatch) -> None:
    def stop(done: int, total: int) -> None:
        if done == 16:
            raise KeyboardInterrupt

    monkeypatch.setattr(packing, "CHUNK", 8)
    pack(IdentityFolder(root), tmp_path / "whole", crop=CROP, dense_field=FaceMesh())
    pack(IdentityFolder(root), tmp_path / "two", crop=CROP, dense_field=FaceMesh(), workers=2)
    assert content(tmp_path / "two") == content(tmp_path / "whole")
    pack(IdentityFolder(root), tmp_path / "flat", crop=CROP, dense_field=flat)
    with pytest.raises(KeyboardInterrupt):
        pack(IdentityFolder(root), tmp_path / "out", crop=CROP, dense_field=flat, progress=stop)
    # The last face of the last chunk that the journal knows is spoilt, in the fields alone.
    with (tmp_path / "out.partial" / "fields.npy").open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"wrong")
    assert pack(IdentityFolder(root), tmp_path / "out", crop=CROP, dense_field=flat).new == 12
    assert content(tmp_path / "out") == content(tmp_path / "flat")


def test_a_pack_keeps_its_face_model(root: Path, tmp_path: Path, flat) -> None:
    pack(IdentityFolder(root), tmp_path / "out", crop=CROP)
    with pytest.raises(InputError, match="its face model of dense fields is None, wanted now is flat"):
        pack(IdentityFolder(root), tmp_path / "out", crop=CROP, dense_field=flat)
    pack(IdentityFolder(root), tmp_path / "flat", crop=CROP, dense_field=flat)
    for other, wanted in ((None, "None"), (FaceMesh(), "facemesh")):
        with pytest.raises(InputError, match=f"its face model of dense fields is flat, wanted now is {wanted}"):
            pack(IdentityFolder(root), tmp_path / "flat", crop=CROP, dense_field=other)


def test_portraits_through_the_real_detector(tmp_path: Path) -> None:
    source = ImageFolder(Path(deocc.__file__).parent / "portraits")
    report = pack(source, tmp_path / "out", dense_field=FaceMesh())
    assert report.faces == len(source) == 4
    assert report.without_field == ()
    faces = PackedFaces(tmp_path / "out")
    assert faces.fields is not None
    for u, v, covered in faces.fields.transpose(0, 3, 1, 2):
        assert set(np.unique(covered)) == {0, 255}
        assert 0.2 < (covered > 0).mean() < 0.5
        assert min(np.ptp(u[covered > 0]), np.ptp(v[covered > 0])) > 150
    assert np.abs(faces.landmarks - faces.crop.template()).max() < 8
    assert faces.identities.tolist() == [-1] * 4


def test_broken_images_are_listed_and_skipped(root: Path, tmp_path: Path) -> None:
    whole = (root / "a" / "0.png").read_bytes()
    (root / "a" / "0.png").write_bytes(b"")
    (root / "a" / "1.png").write_bytes(b"no image at all")
    (root / "a" / "2.png").write_bytes(whole[:60])
    report = pack(IdentityFolder(root), tmp_path / "out", crop=CROP)
    assert report.faces == 17
    assert list(report.skipped) == ["a/0.png", "a/1.png", "a/2.png"]
    assert all(reason.startswith(name) for name, reason in report.skipped.items())


def test_truncated_jpeg_is_read_as_far_as_it_goes(tmp_path: Path, make, write_landmarks) -> None:
    root = make(tmp_path / "faces", ["a/1.jpg", "a/2.jpg"])
    write_landmarks(root, ["a/1.jpg", "a/2.jpg"])
    whole = (root / "a/2.jpg").read_bytes()
    (root / "a/2.jpg").write_bytes(whole[: len(whole) * 3 // 4])
    report = pack(IdentityFolder(root), tmp_path / "out", crop=CROP)
    assert report.faces == 2
    assert list(report.notes) == ["a/2.jpg"]
    assert report.notes["a/2.jpg"].startswith("a/2.jpg is damaged")


def test_arguments_out_of_range(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="limit must be at least 1, got 0"):
        pack(IdentityFolder(root), tmp_path / "out", limit=0)
    with pytest.raises(UsageError, match="workers must be 0 or more, got -1"):
        pack(IdentityFolder(root), tmp_path / "out", workers=-1)
    assert pack(IdentityFolder(root), tmp_path / "out", crop=CROP, limit=3).faces == 3


KILLED = """
import os, signal, sys
from pathlib import Path
from deocc.data import IdentityFolder, pack, packing
from deocc.faces import Crop

root, out, place, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
packing.CHUNK = 3
calls = 0

def deadly(function):
    def wrapped(*arguments, **keywords):
        global calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)
    return wrapped

if place in ("align", "sha256", "_flush", "_header", "_sync"):
    setattr(packing, place, deadly(getattr(packing, place)))
elif place == "write":
    # A line of the journal, or a chunk of images, of which only the half was written.
    real = packing._flush
    def half(file):
        global calls
        calls += 1
        if calls == count:
            file.flush()
            file.truncate(file.tell() - 20)
            os.kill(os.getpid(), signal.SIGKILL)
        real(file)
    packing._flush = half
elif place in ("rename", "unlink"):
    setattr(Path, place, deadly(getattr(Path, place)))
pack(IdentityFolder(root), out, crop=Crop(32, 0.75))
"""


@pytest.mark.parametrize(
    ("place", "count"),
    [
        *(("align", count) for count in (1, 8)),
        *(("_flush", count) for count in (1, 4, 5)),
        *(("write", count) for count in (1, 6, 7)),
        *(("_header", 2), ("sha256", 21), ("unlink", 1), ("rename", 1), ("_sync", 1)),
    ],
)
def test_killed_and_resumed_is_equal_to_the_byte(root: Path, tmp_path: Path, place: str, count: int) -> None:
    (root / "c" / "1.png").write_bytes(b"no image")
    pack(IdentityFolder(root), tmp_path / "whole", crop=CROP)
    command = [sys.executable, "-c", KILLED, str(root), str(tmp_path / "out"), place, str(count)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    if place == "_sync":
        assert check(tmp_path / "out") == []
    else:
        assert not (tmp_path / "out").exists()
        assert "was never finished" in check(tmp_path / "out")[0]
    report = pack(IdentityFolder(root), tmp_path / "out", crop=CROP)
    assert report.faces == 19
    assert report.new <= 20
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


def test_workers_do_not_outlive_a_killed_run(root: Path, tmp_path: Path) -> None:
    code = (
        "import multiprocessing, os, signal, sys\n"
        "from deocc.data import IdentityFolder, pack\n"
        "def kill(done, total):\n"
        "    print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if __name__ == '__main__':\n"
        "    pack(IdentityFolder(sys.argv[1]), sys.argv[2], workers=2, progress=kill)\n"
    )
    (tmp_path / "run.py").write_text(code)
    command = [sys.executable, str(tmp_path / "run.py"), str(root), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(Path(deocc.__file__).parents[1])}
    # The output ends when the last process that holds it does.
    run = subprocess.run(command, check=False, stdout=subprocess.PIPE, timeout=60, env=environment)
    assert run.returncode == -signal.SIGKILL
    assert len(run.stdout.split()) == 2


DEADLY = """
import os, pathlib, signal

class Detector:
    def __init__(self, mark):
        self.mark = mark

    def detect(self, image):
        pathlib.Path(self.mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_that_dies_is_an_error_and_not_a_wait(root: Path, tmp_path: Path, monkeypatch) -> None:
    (root / "landmarks.npz").unlink()
    (tmp_path / "deadly_detector.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(tmp_path)
    detector = importlib.import_module("deadly_detector").Detector(str(tmp_path / "mark"))
    with pytest.raises(InputError, match="a worker process died"):
        pack(IdentityFolder(root), tmp_path / "out", crop=CROP, detector=detector, workers=1)
    assert (tmp_path / "mark").exists()
    assert pack(IdentityFolder(root), tmp_path / "out", crop=CROP, detector=OneFace()).faces == 19


def test_killed_again_and_again(root: Path, tmp_path: Path) -> None:
    pack(IdentityFolder(root), tmp_path / "whole", crop=CROP)
    command = [sys.executable, "-c", KILLED, str(root), str(tmp_path / "out"), "align", "8"]
    ends = []
    while not ends or ends[-1]:
        ends.append(subprocess.run(command, check=False).returncode)
        assert len(ends) < 10
    # Six of every seven images are kept: chunks of three.
    assert ends == [-9, -9, -9, 0]
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_what_was_done_is_not_done_again(root: Path, tmp_path: Path, monkeypatch) -> None:
    def stop(done: int, total: int) -> None:
        if done == 16:
            raise KeyboardInterrupt

    monkeypatch.setattr(packing, "CHUNK", 8)
    with pytest.raises(KeyboardInterrupt):
        pack(IdentityFolder(root), tmp_path / "out", crop=CROP, progress=stop)
    assert pack(IdentityFolder(root), tmp_path / "out", crop=CROP).new == 4


def test_damage_in_a_partial_pack_is_made_good(root: Path, tmp_path: Path, monkeypatch) -> None:
    def stop(done: int, total: int) -> None:
        if done == 16:
            raise KeyboardInterrupt

    pack(IdentityFolder(root), tmp_path / "whole", crop=CROP)
    monkeypatch.setattr(packing, "CHUNK", 8)
    with pytest.raises(KeyboardInterrupt):
        pack(IdentityFolder(root), tmp_path / "out", crop=CROP, progress=stop)
    with (tmp_path / "out.partial" / "images.npy").open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"wrong")
    assert pack(IdentityFolder(root), tmp_path / "out", crop=CROP).new == 12
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_full_disk_is_one_sentence_and_keeps_what_is_there(root: Path, tmp_path: Path, monkeypatch) -> None:
    def full(file) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(packing, "_flush", full)
        with pytest.raises(InputError, match=r"cannot be written \(No space left on device\); what is there is kept"):
            pack(IdentityFolder(root), tmp_path / "out", crop=CROP)
    assert pack(IdentityFolder(root), tmp_path / "out", crop=CROP).faces == 20
