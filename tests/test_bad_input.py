"""What is wrong is said in one sentence that names it, with the right exit code; nothing is half-written; no crash."""

from __future__ import annotations

import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deocc import metrics, ops
from deocc.cli import main
from deocc.errors import DeoccError
from deocc.faces import Crop, Detector, align, colour_field, dense_field, paste_back
from deocc.images import to_tensor, to_uint8, write_image
from deocc.method import Recognizer, Restored, Restorer
from deocc.occlude import occlude
from deocc.unmasking import unmask

ROOT = Path(__file__).resolve().parents[1]
PORTRAIT = ROOT / "deocc" / "portraits" / "eileen-collins.jpg"


class Outcome:
    """What a call of the command line said and returned."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def says(self, code: int, *words: str) -> None:
        """The exit code, and a sentence that holds ``words``, with no traceback."""
        assert self.code == code, self.err
        assert "Traceback" not in self.err
        assert "this should not have happened" not in self.err
        lines = [line for line in self.err.splitlines() if not line.startswith("deocc: warning")]
        sentence = lines[-1]
        assert len(lines) == 1 or (len(lines) == 2 and lines[0].endswith("failed:")), self.err
        for word in words:
            assert word in sentence, f"{word!r} is missing in {sentence!r}"


@pytest.fixture
def deocc(capsys):
    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    return run


@pytest.fixture
def method(install) -> str:
    install("mine", extra='restorer="{module}_parts:Finder",', parts=PARTS)
    return "mine"


PARTS = """
    from dataclasses import dataclass

    import torch
    from torch import nn

    from deocc.method import Restored, Restorer


    @dataclass(frozen=True)
    class Config:
        width: int = 3


    class Finder(Restorer):
        finds_occlusion = True
        crop_size = 32

        def __init__(self, config):
            super().__init__(config)
            self.network = nn.Conv2d(3, config.width, 1)

        def restore(self, image, occlusion):
            return Restored(image, image[:, :1] * 0)
"""


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# Photos ------------------------------------------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


BAD_PHOTOS = {
    "empty.jpg": (b"", "is empty"),
    "text.jpg": (b"hello, I am no photo\n" * 50, "is not an image"),
    "header-only.jpg": (PORTRAIT.read_bytes()[:100], "damaged"),
    "truncated.png": (png_header(64, 64) + b"\0\0\1\0IDATx\x9c", "too damaged"),
    "huge.png": (png_header(30_000, 30_000), "30000x30000 pixels"),
    "nothing.png": (png_header(0, 0), "0x0"),
    "random.webp": (b"RIFF\x10\0\0\0WEBPVP8 " + bytes(range(64)), "random.webp"),
}


@pytest.mark.parametrize("name", BAD_PHOTOS)
@pytest.mark.parametrize("verb", ["unmask", "occlude"])
def test_bad_photo(deocc, method, tmp_path, verb, name):
    data, words = BAD_PHOTOS[name]
    (tmp_path / name).write_bytes(data)
    options = ["--method", method] if verb == "unmask" else []
    started = time.perf_counter()
    deocc(verb, tmp_path / name, "-o", tmp_path / "out", *options).says(1, name, words)
    assert time.perf_counter() - started < 20
    assert not (tmp_path / "out").exists()


def test_truncated_jpeg_is_read_as_far_as_it_goes(deocc, method, tmp_path):
    data = PORTRAIT.read_bytes()
    (tmp_path / "half.jpg").write_bytes(data[: len(data) * 3 // 4])
    outcome = deocc("unmask", tmp_path / "half.jpg", "-o", tmp_path / "out", "--method", method)
    assert outcome.code == 0
    assert outcome.err.count("\n") == 1
    assert "deocc: warning: " in outcome.err
    assert "half.jpg is damaged" in outcome.err


def test_folders_and_patterns_without_images(deocc, method, tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "notes.txt").write_text("x")
    out = tmp_path / "out"
    deocc("unmask", tmp_path / "none", "-o", out, "--method", method).says(1, "none", "holds no images")
    deocc("unmask", tmp_path / "none" / "*", "-o", out, "--method", method).says(1, "no image matches")
    deocc("unmask", tmp_path / "missing.jpg", "-o", out, "--method", method).says(1, "missing.jpg")
    deocc("unmask", "-o", out, "--method", method).says(2, "at least one photo")
    assert not out.exists()


def test_photo_without_a_face(deocc, method, tmp_path):
    write_image(tmp_path / "wall.png", np.full((300, 300, 3), 120, np.uint8))
    deocc("unmask", tmp_path / "wall.png", "-o", tmp_path / "out", "--method", method).says(1, "wall.png", "no face")
    deocc("occlude", tmp_path / "wall.png", "-o", tmp_path / "out").says(1, "wall.png", "no face")


def test_unreadable_photo(deocc, method, tmp_path):
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    deocc("unmask", tmp_path / "loop.jpg", "-o", tmp_path / "out", "--method", method).says(1, "loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    deocc("unmask", tmp_path / "pipe.jpg", "-o", tmp_path / "out", "--method", method).says(1, "pipe.jpg", "not a file")
    if os.geteuid() != 0:  # root reads everything
        (tmp_path / "secret.jpg").write_bytes(PORTRAIT.read_bytes())
        (tmp_path / "secret.jpg").chmod(0)
        deocc("unmask", tmp_path / "secret.jpg", "-o", tmp_path / "out", "--method", method).says(1, "secret.jpg")


# Where to write ----------------------------------------------------------------------------------------------------


def test_unwritable_folder(deocc, method, tmp_path):
    (tmp_path / "file").write_text("mine")
    write_image(tmp_path / "photo.png", np.zeros((40, 40, 3), np.uint8))
    for out in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        for arguments in (
            ("unmask", PORTRAIT, "--method", method),
            ("occlude", PORTRAIT),
            ("data", "pack", tmp_path),
            ("new-plugin", "fresh"),
        ):
            named = out.parent if arguments[0] == "data" else out
            deocc(*arguments, "-o", out).says(1, str(named))
    assert (tmp_path / "file").read_text() == "mine"


def test_full_disk(deocc, method, tmp_path, monkeypatch):
    """The disk fills up while the result is written: the sentence names it, and no part of it stays."""

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    outcome = deocc("unmask", PORTRAIT, "-o", tmp_path / "out", "--method", method)
    outcome.says(1, "No space left on device")
    assert not [name for name in files_of(tmp_path) if name.endswith(".png")]


def test_interrupt(tmp_path):
    """Ctrl-C: one line, exit code 130, and no half-written file."""
    for number in range(200):
        (tmp_path / f"{number:03}.jpg").write_bytes(PORTRAIT.read_bytes())
    command = [sys.executable, "-m", "deocc", "occlude", str(tmp_path), "-o", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "deocc: interrupted; the same command goes on where it stopped"
    assert not [name for name in files_of(tmp_path / "out") if Path(name).name.startswith(".")]


def test_interrupt_of_what_begins_anew(deocc, tmp_path, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("deocc.demo.demo", stop)
    outcome = deocc("demo", "-o", tmp_path)
    assert (outcome.code, outcome.err.strip()) == (130, "deocc: interrupted")


# Occlusions --------------------------------------------------------------------------------------------------------


def test_bad_occlusion(deocc, method, tmp_path):
    write_image(tmp_path / "small.png", np.zeros((40, 50), np.uint8))
    (tmp_path / "text.png").write_text("x" * 100)
    (tmp_path / "folder").mkdir()
    run = ("unmask", PORTRAIT, "-o", tmp_path / "out", "--method", method, "--occlusion")
    deocc(*run, tmp_path / "small.png").says(1, "small.png", "512x512", "50x40")
    deocc(*run, tmp_path / "text.png").says(1, "text.png", "not an image")
    deocc(*run, tmp_path / "folder").says(1, "eileen-collins", "is missing")
    deocc(*run, tmp_path / "nowhere").says(1, "nowhere")
    assert not (tmp_path / "out").exists()


# Face models -------------------------------------------------------------------------------------------------------


def test_bad_face_model(deocc, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(PORTRAIT.read_bytes())
    run = ("data", "pack", tmp_path / "photos", "-o", tmp_path / "out", "--dense-field")
    (tmp_path / "a.npz").write_bytes(b"PK")
    (tmp_path / "a.txt").write_text("x")
    deocc(*run, tmp_path / "a.npz").says(1, "a.npz", "is no morphable model")
    deocc(*run, tmp_path / "a.txt").says(1, "a.txt", ".npz, .mat, .h5")
    deocc(*run, tmp_path / "none.npz").says(2, "none.npz", "'facemesh'")
    assert not (tmp_path / "out").exists()


# Weights -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path) -> Path:
    """Weights that fit the method of these tests."""
    from deocc import weights as files

    path = tmp_path / "w.safetensors"
    tensors = torch.nn.Conv2d(3, 3, 1).state_dict()
    files.save(path, tensors, {"method": "mine", "part": "restorer", "config": {"width": 3}})
    return path


def _change(path: Path, **changes: object) -> None:
    card = path.with_suffix(".json")
    card.write_text(json.dumps({**json.loads(card.read_text()), **changes}))


BAD_WEIGHTS = {
    "missing": (lambda path: path.unlink(), "cannot be read"),
    "empty": (lambda path: path.write_bytes(b""), "an empty file"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"weight": [1.0]})), "a pickle"),
    "torch pickle": (lambda path: torch.save({"weight": torch.ones(1)}, path), "pickle"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-5]), "truncated"),
    "truncated header": (lambda path: path.write_bytes(path.read_bytes()[:20]), "truncated"),
    "altered": (lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])), "sha256"),
    "without card": (lambda path: path.with_suffix(".json").unlink(), "card"),
    "of another method": (lambda path: _change(path, method="other"), "'other'"),
    "of another network": (lambda path: _change(path, config={"width": 5}), "shape"),
    "with an unknown key": (lambda path: _change(path, config={"widht": 3}), "widht"),
}


@pytest.mark.parametrize("what", BAD_WEIGHTS)
def test_bad_weights(deocc, method, weights, tmp_path, what):
    spoil, words = BAD_WEIGHTS[what]
    run = ("unmask", PORTRAIT, "-o", tmp_path / "out", "--method", method, "--weights", weights)
    spoil(weights)
    deocc(*run).says(1, "w.safetensors" if what != "without card" else "w.", words)
    assert not (tmp_path / "out").exists()


def test_good_weights(deocc, method, weights, tmp_path):
    assert deocc("unmask", PORTRAIT, "-o", tmp_path / "o", "--method", method, "--weights", weights).code == 0


# The call itself ---------------------------------------------------------------------------------------------------


def test_usage(deocc, method, tmp_path):
    out = tmp_path / "out"
    deocc("unmask", PORTRAIT, "-o", out, "--method", "mien").says(2, "'mien'", "did you mean 'mine'")
    deocc("unmask", PORTRAIT, "-o", out, "--method", method, "--device", "cuda:99").says(2, "cuda:99")
    deocc("unmask", PORTRAIT, "-o", out, "--method", method, "--device", "toaster").says(2, "toaster")
    deocc("occlude", PORTRAIT, "-o", out, "--kinds", "surgicl").says(2, "'surgicl'", "did you mean 'surgical'")
    deocc("occlude", PORTRAIT, "-o", out, "--seed", "-1").says(2, "seed", "-1")
    deocc("check", "mien").says(2, "'mien'")
    deocc("new-plugin", "Not A Name", "-o", out).says(2, "'Not A Name'")
    deocc("data", "pack", tmp_path, "-o", out, "--kind", "lwf").says(2, "'lwf'", "did you mean 'lfw'")
    deocc("data", "pack", tmp_path, "-o", out, "--kind", "folder", "--split", "test").says(2, "--split test")
    deocc("data", "pack", tmp_path, "-o", out, "--size", "0").says(2, "size")
    deocc("data", "pack", tmp_path, "-o", out, "--dense-field", "facemsh").says(2, "'facemesh'", "'facemsh'")
    deocc("data", "pack", tmp_path / "none", "-o", out).says(1, "none")
    deocc("data", "check").says(2, "at least one folder")
    deocc("data", "check", tmp_path / "none").says(1, "none")
    deocc("train", method, "--data", tmp_path, "-o", out, "--set", "width").says(2, "KEY=VALUE", "'width'")
    deocc("train", method, "--data", tmp_path, "-o", out, "--set", "widht=3").says(2, "widht", "did you mean 'width'")
    deocc("train", method, "--data", tmp_path, "-o", out, "--recipe", "nowhere.toml").says(1, "nowhere.toml")
    assert not out.exists()


def test_unparsable_calls(deocc):
    for arguments in (["unmsk"], ["unmask", "x.jpg"], ["occlude", "x.jpg", "-o", "y", "--seed", "one"], []):
        outcome = deocc(*arguments)
        assert outcome.code == 2
        assert "Traceback" not in outcome.err


def test_bad_recipe(deocc, method, tmp_path):
    recipe = tmp_path / "mine.toml"
    run = ("train", method, "--data", tmp_path, "-o", tmp_path / "out", "--recipe", recipe)
    recipe.write_text("widht = 3\n")
    deocc(*run).says(2, "mine.toml", "widht", "did you mean 'width'")
    recipe.write_text("width = 'three'\n")
    deocc(*run).says(2, "mine.toml", "width")
    recipe.write_text("width = = 3\n")
    assert deocc(*run).code in (1, 2)
    recipe.write_bytes(b"\xff\xfe\x00")
    assert "Traceback" not in deocc(*run).err
    assert not (tmp_path / "out").exists()


def test_debug_shows_the_traceback(deocc, tmp_path):
    outcome = deocc("unmask", PORTRAIT, "-o", tmp_path, "--method", "nothing-like-it", "--debug")
    assert outcome.code == 2
    assert "Traceback" in outcome.err


# Anything at all ---------------------------------------------------------------------------------------------------

DTYPES = st.sampled_from([np.uint8, np.int16, np.float16, np.float32, np.float64, np.bool_, np.complex64])
VALUES = {"f": st.sampled_from([0.0, 0.25, 1.0, -0.5, 3.0, float("nan"), float("inf"), 1e38])}


@st.composite
def arrays(draw, dims: tuple[int, ...] = (0, 1, 2, 3, 4)):
    """Arrays of any shape, dtype and value, with a leaning towards the shapes that are wanted."""
    dtype = np.dtype(draw(DTYPES))
    side = st.sampled_from([0, 1, 2, 3, 11, 16, 17])
    wanted = [(16, 16, 3), (17, 11, 3), (16, 16), (2, 3, 16, 16), (2, 1, 16, 16), (5, 2), (2, 3), (0, 3, 16, 16)]
    shape = draw(st.one_of(st.sampled_from(wanted), st.sampled_from(dims).flatmap(lambda n: st.tuples(*[side] * n))))
    if dtype.kind == "f":
        elements = VALUES["f"].map(lambda value: float(np.clip(value, -6e4, 6e4)) if dtype == np.float16 else value)
    elif dtype.kind == "c":
        elements = st.just(1j)
    elif dtype.kind == "b":
        elements = st.booleans()
    else:
        elements = st.integers(0, 255)
    return draw(hnp.arrays(dtype, shape, elements=elements, fill=elements))


@st.composite
def tensors(draw):
    array = draw(arrays())
    tensor = torch.from_numpy(array)
    if draw(st.booleans()) and tensor.ndim > 1:
        tensor = tensor.transpose(-1, -2)
    return tensor


class Echo(Restorer):
    finds_occlusion = True

    def restore(self, image, occlusion):
        return Restored(image, image[:, :1] if occlusion is None else occlusion)


class Mean(Recognizer):
    crop_size = 16

    def embed(self, image):
        return image.flatten(1)


THINGS = st.one_of(arrays(), tensors(), st.none(), st.text(max_size=3), st.integers(-1, 3), st.just([[1.0]]))
MANY = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
DETECTOR = Detector(max_size=64)

FUNCTIONS = {
    "ops.composite": (3, ops.composite),
    "ops.composite_uint8": (3, ops.composite_uint8),
    "ops.rasterise": (4, ops.rasterise),
    "ops.contextual_attention": (3, ops.contextual_attention),
    "ops.contextual_attention_offsets": (3, ops.contextual_attention_offsets),
    "ops.info_nce": (3, ops.info_nce),
    "ops.KeyQueue.enqueue": (1, ops.KeyQueue(3, 2).enqueue),
    "ops.relational_distillation": (2, ops.relational_distillation),
    "ops.domain_constrained_ranking": (5, ops.domain_constrained_ranking),
    "ops.DomainCenters.update": (3, ops.DomainCenters(3, 5).update),
    "ops.gated_projection": (4, ops.gated_projection),
    "ops.channel_attention_projection": (7, ops.channel_attention_projection),
    "ops.area_downsample": (2, ops.area_downsample),
    "ops.attention_blend": (3, ops.attention_blend),
    "ops.DualAttentionFusion": (2, ops.DualAttentionFusion(3, 2, 4)),
    "psnr": (3, metrics.psnr),
    "ssim": (3, metrics.ssim),
    "occlusion_iou": (2, metrics.occlusion_iou),
    "Restorer": (2, Echo(None)),
    "Recognizer": (1, Mean(None)),
    "to_tensor": (1, to_tensor),
    "to_uint8": (1, to_uint8),
    "Crop.matrix": (1, Crop(32, 0.75).matrix),
    "align": (2, lambda image, landmarks: align(image, landmarks, Crop(16, 0.75))),
    "paste_back": (4, paste_back),
    "Detector": (1, DETECTOR.detect),
    "dense_field": (2, dense_field),
    "colour_field": (1, colour_field),
    "occlude": (2, lambda image, landmarks: occlude(image, landmarks, 0)),
    "unmask": (2, lambda photo, hidden: unmask(photo, occlusion=hidden, restorer=Echo(None), detector=DETECTOR)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_anything_is_taken_or_refused(name):
    """Random shapes, dtypes and values: a result, or one of deocc's own errors; nothing else, and no crash."""
    count, function = FUNCTIONS[name]

    @MANY
    @given(st.lists(THINGS, min_size=count, max_size=count))
    def attempt(arguments):
        try:
            function(*arguments)
        except DeoccError as error:
            sentences.append(str(error))

    sentences: list[str] = []
    attempt()
    assert all(sentence and "\n" not in sentence for sentence in sentences)


def test_an_error_is_one_line_whatever_a_name_holds():
    assert str(DeoccError("there is no file a\nb\r\x1b[1m\u2028c")) == "there is no file a\\nb\\r\\x1b[1m\\u2028c"
