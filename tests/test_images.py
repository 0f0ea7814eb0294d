"""Image files: every kind a camera, a scanner or a careless download may produce."""

from __future__ import annotations

import contextlib
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deocc.errors import DeoccError, InputError, UsageError
from deocc.images import find_images, read_image, read_profile, to_tensor, to_uint8, write_image


def picture(height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth RGB picture whose corners differ: red grows to the right, green downwards, blue is the rest."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 / (width - 1), y * 255 / (height - 1), 255 - x * 255 / (width - 1)], -1).astype(np.uint8)


def encode(suffix: str, image: np.ndarray, *options: int) -> bytes:
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR if image.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)
    return cv2.imencode(suffix, image, list(options))[1].tobytes()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def exif(orientation: int, order: str = "<") -> bytes:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)


def with_exif(data: bytes, orientation: int, order: str = "<") -> bytes:
    """The same JPEG, PNG or lossless WebP with an orientation noted."""
    tags = exif(orientation, order)
    if data.startswith(b"\xff\xd8"):
        return data[:2] + b"\xff\xe1" + struct.pack(">H", len(tags) + 8) + b"Exif\0\0" + tags + data[2:]
    if data.startswith(b"\x89PNG"):
        return data[:33] + chunk(b"eXIf", tags) + data[33:]
    bits = struct.unpack("<I", data[21:25])[0]
    size = (bits & 0x3FFF).to_bytes(3, "little") + (bits >> 14 & 0x3FFF).to_bytes(3, "little")
    extended = b"VP8X" + struct.pack("<I4B", 10, 0x08, 0, 0, 0) + size
    body = b"WEBP" + extended + data[12:] + b"EXIF" + struct.pack("<I", len(tags)) + tags
    return b"RIFF" + struct.pack("<I", len(body)) + body


def turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """How a camera with that orientation stores the upright ``image``."""
    return {
        1: image,
        2: image[:, ::-1],
        3: image[::-1, ::-1],
        4: image[::-1],
        5: image.transpose(1, 0, 2),
        6: np.rot90(image, 1),
        7: image[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(image, -1),
    }[orientation]


def cmyk_jpeg(planes: np.ndarray, *, inverted: bool = True) -> bytes:
    """A four-component JPEG, one scan a component, from (H, W, 4); ``inverted`` as Adobe's programs write it."""
    tables, scans = b"", []
    for k in range(4):
        data = encode(".jpg", np.ascontiguousarray(planes[..., k]), cv2.IMWRITE_JPEG_QUALITY, 98)
        at, tables = 2, b""
        while True:
            marker, length = struct.unpack(">HH", data[at : at + 4])
            if marker in (0xFFDB, 0xFFC4):
                tables += data[at : at + 2 + length]
            at += 2 + length
            if marker == 0xFFDA:
                scans.append(data[at:-2])
                break
    height, width = planes.shape[:2]
    frame = struct.pack(">HHBHHB", 0xFFC0, 20, 8, height, width, 4)
    frame += b"".join(bytes([k + 1, 0x11, 0]) for k in range(4))
    adobe = b"\xff\xee" + struct.pack(">H", 14) + b"Adobe" + struct.pack(">HHHB", 100, 0, 0, 0) if inverted else b""
    coded = [struct.pack(">HHB", 0xFFDA, 8, 1) + bytes([k + 1, 0, 0, 63, 0]) + scan for k, scan in enumerate(scans)]
    return b"\xff\xd8" + adobe + tables + frame + b"".join(coded) + b"\xff\xd9"


@pytest.fixture
def save(tmp_path: Path) -> Callable[[str, bytes], Path]:
    def write(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


Save = Callable[[str, bytes], Path]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm"])
def test_lossless_formats(save: Save, suffix: str) -> None:
    read = read_image(save("a" + suffix, encode(suffix, picture())))
    assert read.dtype == np.uint8
    assert read.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(read, picture())


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_formats(save: Save, suffix: str) -> None:
    read = read_image(save("a" + suffix, encode(suffix, picture())))
    assert np.abs(read.astype(int) - picture()).mean() < 4


def test_content_decides_not_the_suffix(save: Save) -> None:
    np.testing.assert_array_equal(read_image(save("a.jpg", encode(".png", picture()))), picture())


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".pgm", ".bmp"])
def test_grey_becomes_rgb(save: Save, suffix: str) -> None:
    grey = np.full((20, 30), 77, np.uint8)
    read = read_image(save("a" + suffix, encode(suffix, grey)))
    assert read.shape == (20, 30, 3)
    assert (read == 77).all()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_are_scaled(save: Save, suffix: str, channels: int) -> None:
    levels = np.array([[0, 128, 129, 257 * 100, 65535 - 129, 65535]], np.uint16)
    image = levels if channels == 1 else np.dstack([levels] * channels)
    if channels == 4:
        image[..., 3] = 65535
    read = read_image(save("a" + suffix, encode(suffix, image)))
    np.testing.assert_array_equal(read[0, :, 0], [0, 0, 1, 100, 254, 255])


def test_what_is_transparent_lies_on_white(save: Save) -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0] = 200
    rgba[0, :, 3] = [255, 51, 0]
    np.testing.assert_array_equal(
        read_image(save("a.png", encode(".png", rgba)))[0], [[200, 0, 0], [244, 204, 204], [255, 255, 255]]
    )
    np.testing.assert_array_equal(
        read_image(save("a.png", encode(".png", rgba)), background=0)[0], [[200, 0, 0], [40, 0, 0], [0, 0, 0]]
    )


def test_grey_with_alpha(save: Save) -> None:
    rows = b"\0" + bytes([10, 255, 20, 0])
    ihdr = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 8, 4, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + ihdr + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(read_image(save("a.png", data))[0], [[10] * 3, [255] * 3])


def test_palette_and_one_bit(save: Save) -> None:
    ihdr = chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 1, 1, 3, 0, 0, 0))
    palette = chunk(b"PLTE", bytes([255, 0, 0, 0, 0, 255]))
    data = b"\x89PNG\r\n\x1a\n" + ihdr + palette + chunk(b"IDAT", zlib.compress(b"\0\x40")) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(read_image(save("a.png", data))[0], [[255, 0, 0], [0, 0, 255], [255, 0, 0]])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg"])
def test_exif_rotation(save: Save, suffix: str, orientation: int) -> None:
    stored = np.ascontiguousarray(turned(picture(), orientation))
    data = encode(suffix, stored, *([cv2.IMWRITE_WEBP_QUALITY, 101] if suffix == ".webp" else []))
    order = "<" if orientation % 2 else ">"
    read = read_image(save("a" + suffix, with_exif(data, orientation, order)))
    assert read.shape == picture().shape
    assert np.abs(read.astype(int) - picture()).max() <= (30 if suffix == ".jpg" else 0)


def test_exif_rotation_with_alpha(save: Save) -> None:
    rgba = np.dstack([turned(picture(), 6), np.full((64, 48), 255, np.uint8)])
    read = read_image(save("a.png", with_exif(encode(".png", rgba), 6)))
    np.testing.assert_array_equal(read, picture())


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientations_that_do_not_exist_mean_upright(save: Save, orientation: int) -> None:
    np.testing.assert_array_equal(
        read_image(save("a.png", with_exif(encode(".png", picture()), orientation))), picture()
    )


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_tiff_orientation(save: Save, orientation: int) -> None:
    """The tag sits in the image's own directory; a TIFF is written by hand to have it."""
    stored = np.ascontiguousarray(turned(picture(), orientation))
    height, width = stored.shape[:2]
    entries = [(256, 4, width), (257, 4, height), (259, 3, 1), (262, 3, 2), (273, 4, 512), (274, 3, orientation)]
    entries += [(277, 3, 3), (278, 4, height), (279, 4, stored.size), (284, 3, 1)]
    bits = struct.pack("<HHII", 258, 3, 3, 256)
    packed = [struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries]
    directory = struct.pack("<H", len(entries) + 1) + b"".join([*packed[:2], bits, *packed[2:]]) + bytes(4)
    data = (b"II*\0" + struct.pack("<I", 8) + directory).ljust(256, b"\0")
    data = (data + struct.pack("<HHH", 8, 8, 8)).ljust(512, b"\0") + stored.tobytes()
    np.testing.assert_array_equal(read_image(save("a.tif", data)), picture())


def test_cmyk_jpeg(save: Save) -> None:
    ink = np.zeros((32, 32, 4), np.uint8)  # inverted: 255 is no ink
    ink[..., 0], ink[..., 1], ink[..., 2], ink[..., 3] = 255, 128, 64, 200
    read = read_image(save("a.jpg", cmyk_jpeg(ink)))
    np.testing.assert_allclose(read.mean((0, 1)), [200, 100, 50], atol=3)


def test_truncated_jpeg_is_read_as_far_as_it_goes(save: Save, capfd: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3)).astype(np.uint8)
    data = encode(".jpg", noise)
    whole = read_image(save("whole.jpg", data))
    with pytest.warns(UserWarning, match=r"half\.jpg is damaged") as seen:
        half = read_image(save("half.jpg", data[: len(data) // 2]))
    assert len(seen) == 1
    np.testing.assert_array_equal(half[:24], whole[:24])
    assert not np.array_equal(half, whole)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_cut_anywhere(save: Save, capfd: pytest.CaptureFixture[str], progressive: bool) -> None:
    data = encode(".jpg", picture(), cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive))
    for length in [*range(0, 700, 13), *range(700, len(data), 29)]:
        path = save("cut.jpg", data[:length])
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            try:
                read = read_image(path)
            except InputError:
                assert not seen
            else:
                assert read.shape == picture().shape
                assert len(seen) == 1
    assert capfd.readouterr().err == ""


def test_jpeg_with_garbage_inside(save: Save, capfd: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3)).astype(np.uint8)
    data = bytearray(encode(".jpg", noise))
    data[len(data) // 2 : len(data) // 2 + 40] = b"\xff\x01" * 20
    with pytest.warns(UserWarning, match=r"a\.jpg is damaged"):
        read_image(save("a.jpg", bytes(data)))
    assert capfd.readouterr().err == ""


def test_jpeg_with_a_few_bytes_after_its_end_is_whole(save: Save) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(save("a.jpg", encode(".jpg", picture()) + bytes(100)))


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_with_a_film_after_its_end_is_whole(save: Save, progressive: bool) -> None:
    """The motion photos of phones: a film, megabytes of it, follows the picture."""
    data = encode(".jpg", picture(), cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive), cv2.IMWRITE_JPEG_RST_INTERVAL, 2)
    film = np.random.default_rng(0).integers(0, 256, 200_000).astype(np.uint8).tobytes().replace(b"\xff\xd9", b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = read_image(save("a.jpg", data + film))
    np.testing.assert_array_equal(read, read_image(save("b.jpg", data)))


@pytest.mark.parametrize("progressive", [False, True])
def test_the_end_of_a_thumbnail_is_not_that_of_the_jpeg(save: Save, progressive: bool) -> None:
    small = encode(".jpg", picture(8, 8))
    data = encode(".jpg", picture(), cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive))
    scan = data.rindex(b"\xff\xda")
    segment = struct.pack(">HH", 0xFFE1, len(small) + 2) + small
    for at in {2, scan}:  # in a progressive file there are scans before it too
        whole = data[:at] + segment + data[at:]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read_image(save("whole.jpg", whole))
        with pytest.warns(UserWarning, match=r"cut\.jpg is damaged"):
            read_image(save("cut.jpg", whole[: scan + len(segment) + 60]))


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("empty.png", b"", "is empty"),
        ("text.jpg", b"hello, this is no picture\n" * 20, "is not an image that deocc reads"),
        ("page.png", b"<!DOCTYPE html><html></html>", "is not an image that deocc reads"),
        ("huge.png", png_header(30000, 30000), "announces 30000x30000 pixels, and deocc reads at most 100 megapixels"),
        ("nothing.png", png_header(64, 64), "too damaged"),
        ("zero.png", png_header(0, 7), "announces 0x7 pixels"),
        ("magic.jpg", b"\xff\xd8", "damaged"),
        ("magic.tif", b"II*\0", "damaged"),
        ("magic.bmp", b"BM", "damaged"),
        ("magic.webp", b"RIFF\0\0\0\0WEBP", "damaged"),
        ("half.png", encode(".png", picture())[:500], "too damaged"),
        ("half.webp", encode(".webp", picture())[:60], "too damaged"),
        ("half.bmp", encode(".bmp", picture())[:500], "too damaged"),
        ("float.tif", encode(".tif", picture().astype(np.float32)), "type float32"),
    ],
)
def test_bad_files_give_one_sentence(
    save: Save, capfd: pytest.CaptureFixture[str], name: str, data: bytes, says: str
) -> None:
    path = save(name, data)
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8" + struct.pack(">HHBHHB", 0xFFC0, 17, 8, 30000, 30000, 3) + bytes(40),
        b"RIFF\0\0\0\0WEBPVP8X" + struct.pack("<II", 10, 0) + b"\x2f\x75\x00" * 2,
        b"BM" + bytes(12) + struct.pack("<Iii", 40, 30000, -30000) + bytes(40),
        b"MM\0*" + struct.pack(">IHHHIIHHII", 8, 2, 256, 4, 1, 30000, 257, 4, 1, 30000) + bytes(4),
        b"P6 # large\n30000 # by\n30000\n255\n",
    ],
    ids=["jpeg", "webp", "bmp", "tiff", "ppm"],
)
def test_huge_headers_are_refused_before_decoding(save: Save, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("pixels were decoded"))
    with pytest.raises(InputError, match="30000x30000"):
        read_image(save("huge", data))


def test_the_limit_can_be_chosen(save: Save) -> None:
    path = save("a.png", encode(".png", picture()))
    assert read_image(path, max_pixels=48 * 64).shape == (48, 64, 3)
    with pytest.raises(InputError, match="64x48"):
        read_image(path, max_pixels=48 * 64 - 1)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(InputError, match="is not a file"):
        read_image(tmp_path)
    with pytest.raises(InputError):
        read_image("nul\0.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(InputError, match="is not a file"):
            read_image(tmp_path / "pipe.png")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads every file")
def test_unreadable_file(save: Save) -> None:
    path = save("a.png", encode(".png", picture()))
    path.chmod(0)
    with pytest.raises(InputError, match="cannot read"):
        read_image(path)


def test_a_truncated_photo_of_lfw(shared: Callable[[str], Path]) -> None:
    path = shared("faces/lfw/Zydrunas_Ilgauskas/Zydrunas_Ilgauskas_0001.jpg")
    with pytest.warns(UserWarning, match=r"Ilgauskas_0001\.jpg is damaged"):
        assert read_image(path).shape == (250, 250, 3)


def test_messages_of_others_are_not_swallowed(
    save: Save, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = cv2.imdecode

    def noisy(*arguments: object) -> object:
        os.write(2, b"from another thread\n")
        return decode(*arguments)  # type: ignore[call-overload]

    path = save("a.png", encode(".png", picture()))
    monkeypatch.setattr(cv2, "imdecode", noisy)
    read_image(path)
    assert capfd.readouterr().err == "from another thread\n"


SEEDS = [
    encode(".jpg", picture(16, 16)),
    encode(".png", picture(16, 16)),
    encode(".webp", picture(16, 16)),
    encode(".bmp", picture(16, 16)),
    encode(".tif", picture(16, 16)),
    encode(".ppm", picture(16, 16)),
    with_exif(encode(".jpg", picture(16, 16)), 6),
    with_exif(encode(".png", picture(16, 16)), 6),
    with_exif(encode(".webp", picture(16, 16), cv2.IMWRITE_WEBP_QUALITY, 101), 6),
]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.sampled_from(SEEDS),
    cut=st.integers(0, 2000),
    changes=st.lists(st.tuples(st.integers(0, 1999), st.integers(0, 255)), max_size=8),
    tail=st.binary(max_size=40),
)
def test_no_bytes_crash_the_reader(
    tmp_path: Path, seed: bytes, cut: int, changes: list[tuple[int, int]], tail: bytes
) -> None:
    data = bytearray(seed[:cut])
    for at, value in changes:
        if at < len(data):
            data[at] = value
    path = tmp_path / "fuzz"
    path.write_bytes(bytes(data) + tail)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        read_profile(path) if path.stat().st_size else None
        try:
            read = read_image(path, max_pixels=1_000_000)
        except InputError:
            return
    assert read.dtype == np.uint8
    assert read.ndim == 3
    assert read.shape[2] == 3


@pytest.mark.parametrize("name", ["a.png", "a.PNG"])
def test_written_png_reads_back(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / name, picture())
    np.testing.assert_array_equal(read_image(tmp_path / name), picture())
    write_image(tmp_path / "grey.png", picture()[..., 0])
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png")[..., 2], picture()[..., 0])


PROFILE = bytes(16) + b"RGB " + bytes(range(256)) * 400


def with_profile(data: bytes, profile: bytes) -> bytes:
    """The same JPEG, PNG or lossless WebP with a colour profile."""
    if data.startswith(b"\xff\xd8"):
        parts = [profile[at : at + 65_000] for at in range(0, len(profile), 65_000)]
        marks = [b"ICC_PROFILE\0" + bytes([number, len(parts)]) + part for number, part in enumerate(parts, 1)]
        # Their numbers count, not their order.
        segments = [b"\xff\xe2" + struct.pack(">H", len(mark) + 2) + mark for mark in reversed(marks)]
        return data[:2] + b"".join(segments) + data[2:]
    if data.startswith(b"\x89PNG"):
        return data[:33] + chunk(b"iCCP", b"name\0\0" + zlib.compress(profile)) + data[33:]
    bits = struct.unpack("<I", data[21:25])[0]
    size = (bits & 0x3FFF).to_bytes(3, "little") + (bits >> 14 & 0x3FFF).to_bytes(3, "little")
    extended = b"VP8X" + struct.pack("<I4B", 10, 0x20, 0, 0, 0) + size
    body = b"WEBP" + extended + b"ICCP" + struct.pack("<I", len(profile)) + profile + data[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_a_colour_profile_is_kept(save: Save, tmp_path: Path, suffix: str) -> None:
    options = [cv2.IMWRITE_WEBP_QUALITY, 101] if suffix == ".webp" else []
    plain = encode(suffix, picture(), *options)
    path = save(f"a{suffix}", with_profile(plain, PROFILE))
    assert read_profile(path) == PROFILE
    np.testing.assert_array_equal(read_image(path), read_image(save(f"plain{suffix}", plain)))
    assert read_profile(tmp_path / f"plain{suffix}") is None
    write_image(tmp_path / "out.png", picture(), profile=read_profile(path))
    assert read_profile(tmp_path / "out.png") == PROFILE
    np.testing.assert_array_equal(read_image(tmp_path / "out.png"), picture())


def test_a_profile_that_does_not_fit_or_is_damaged_is_none(save: Save, tmp_path: Path) -> None:
    jpeg, png = encode(".jpg", picture()), encode(".png", picture())
    assert read_profile(save("cmyk.jpg", with_profile(jpeg, bytes(16) + b"CMYK"))) is None
    assert read_profile(save("cut.jpg", with_profile(jpeg, PROFILE)[:5000])) is None
    assert read_profile(save("bad.png", png[:33] + chunk(b"iCCP", b"name\0\0none") + png[33:])) is None
    bomb = chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(16) + b"RGB " + bytes(1 << 25)))
    assert read_profile(save("bomb.png", png[:33] + bomb + png[33:])) is None
    assert read_profile(save("bad.bmp", encode(".bmp", picture()))) is None
    with pytest.raises(InputError, match="no file"):
        read_profile(tmp_path / "missing.png")
    with pytest.raises(UsageError, match=r"colour profile, which deocc embeds in \.png alone"):
        write_image(tmp_path / "a.jpg", picture(), profile=PROFILE)


@pytest.mark.parametrize("name", ["a.jpg", "a.jpeg", "a.webp"])
def test_written_lossy_files_are_close(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / name, picture())
    assert np.abs(read_image(tmp_path / name).astype(int) - picture()).mean() < 3


def test_write_refuses_to_overwrite(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", picture())
    with pytest.raises(UsageError, match="exists already"):
        write_image(tmp_path / "a.png", picture()[::-1])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), picture())
    write_image(tmp_path / "a.png", picture()[::-1].copy(), overwrite=True)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), picture()[::-1])
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("name", ["a", "a.gif", "a.exe"])
def test_write_unknown_suffix(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"\.png, \.jpg"):
        write_image(tmp_path / name, picture())


@pytest.mark.parametrize(
    "image",
    [None, [[1]], np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), np.uint8(3)],
)
def test_write_wants_pixels(tmp_path: Path, image: object) -> None:
    with pytest.raises(InputError, match="uint8"):
        write_image(tmp_path / "a.png", image)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_write_into_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing"):
        write_image(tmp_path / "missing" / "a.png", picture())


def test_write_too_large_for_the_format(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="cannot hold 20000x1"):
        write_image(tmp_path / "a.webp", np.zeros((1, 20000, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""


def test_find_images(tmp_path: Path) -> None:
    for name in ["b.JPG", "a.png", "notes.txt", "sub/c.webp", "sub/.hidden.png", ".thumbs/a.png", "sub/deep/d.tiff"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_images([tmp_path])
    assert [p.relative_to(tmp_path).as_posix() for p in found] == ["a.png", "b.JPG", "sub/c.webp", "sub/deep/d.tiff"]
    assert find_images([tmp_path / "notes.txt"]) == [tmp_path / "notes.txt"]
    assert find_images([str(tmp_path / "*.png"), tmp_path]) == found
    assert find_images([str(tmp_path / "**" / "*.tiff")]) == [tmp_path / "sub/deep/d.tiff"]
    assert find_images([str(tmp_path / "s*")]) == found[2:]
    assert find_images([]) == []


def test_find_images_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="holds no images"):
        find_images([tmp_path])
    with pytest.raises(InputError, match="no file or folder"):
        find_images([tmp_path / "missing.png"])
    with pytest.raises(InputError, match="no image matches"):
        find_images([str(tmp_path / "*.png")])


def test_a_file_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "photo[1].png").touch()
    assert find_images([tmp_path / "photo[1].png"]) == [tmp_path / "photo[1].png"]


def test_tensor_and_back_is_exact() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, -1)
    tensor = to_tensor(levels)
    assert tensor.shape == (1, 3, 16, 16)
    assert tensor.dtype == torch.float32
    assert float(tensor.max()) == 1.0
    np.testing.assert_array_equal(to_uint8(tensor)[0], levels)
    batch = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3)).astype(np.uint8)
    np.testing.assert_array_equal(to_uint8(to_tensor(batch)), batch)
    np.testing.assert_array_equal(to_uint8(to_tensor(batch).double()), batch)


def test_to_tensor_shares_no_memory() -> None:
    image = picture()
    tensor = to_tensor(image)
    image[:] = 0
    assert float(tensor.max()) == 1.0


def test_to_uint8_clamps_and_refuses_nan() -> None:
    assert to_uint8(torch.tensor([-1.0, 0.5, 2.0]).reshape(1, 3, 1, 1)).tolist() == [[[[0, 128, 255]]]]
    with pytest.raises(InputError, match="finite"):
        to_uint8(torch.full((1, 3, 2, 2), float("nan")))


@pytest.mark.parametrize("value", [None, 3, picture().astype(np.float32), picture()[..., 0], np.zeros((1, 2, 3, 4, 3))])
def test_to_tensor_wants_pixels(value: object) -> None:
    with pytest.raises(InputError, match="uint8 array"):
        to_tensor(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, torch.zeros(3, 4, 4), torch.zeros(1, 3, 4, 4, dtype=torch.uint8)])
def test_to_uint8_wants_a_batch(value: object) -> None:
    with pytest.raises(InputError, match="floating point tensor"):
        to_uint8(value)  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), max_size=5).map(tuple),
    dtype=st.sampled_from(["uint8", "int64", "float16", "float64", "bool", "complex64"]),
)
def test_conversions_never_fail_otherwise(shape: tuple[int, ...], dtype: str) -> None:
    array = np.ones(shape, dtype)
    for convert, value in ((to_tensor, array), (to_uint8, torch.from_numpy(array))):
        with contextlib.suppress(DeoccError):
            convert(value)  # type: ignore[operator]
